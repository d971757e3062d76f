//! How long the last reconfiguration took: appends stand still meanwhile.

use std::collections::BTreeMap;
use std::time::Duration;

use milonga_protocol::Time;

#[derive(Debug, Default)]
pub(crate) struct Took {
    began: Time,
    sealing: Duration,
    /// Of the last that came to its end: until all units were sealed and had told where their streams end, and until
    /// clients could go on.
    last: Option<(Duration, Duration)>,
}

impl Took {
    /// Units are about to be sealed.
    pub(crate) fn begins(&mut self, now: Time) {
        self.began = now;
    }

    /// All are sealed, and their streams' tails are known.
    pub(crate) fn sealed(&mut self, now: Time) {
        self.sealing = now.since(self.began);
    }

    /// The next epoch is handed out.
    pub(crate) fn opened(&mut self, now: Time) {
        self.last = Some((self.sealing, now.since(self.began)));
    }

    pub(crate) fn facts(&self) -> BTreeMap<String, String> {
        let ms = |duration: Duration| format!("{:.1} ms", duration.as_secs_f64() * 1e3);
        let facts = self.last.map(|(sealing, all)| {
            [
                ("last seal took".into(), ms(sealing)),
                ("last reconfiguration took".into(), ms(all)),
            ]
        });
        facts.into_iter().flatten().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_came_to_its_end_is_told() {
        let at = |ms| Time::from_start(Duration::from_millis(ms));
        let mut took = Took::default();
        took.begins(at(10));
        took.sealed(at(14));
        assert_eq!(took.facts(), BTreeMap::new());
        took.begins(at(100));
        took.sealed(at(105));
        took.opened(at(112));
        let facts = took.facts();
        assert_eq!(facts["last seal took"], "5.0 ms");
        assert_eq!(facts["last reconfiguration took"], "12.0 ms");
    }
}
