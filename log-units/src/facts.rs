//! What a unit says of itself, for people and scripts.

use std::collections::BTreeMap;

use crate::unit::Unit;

impl Unit {
    /// Facts for `milonga status`. Names are stable, values are text.
    #[must_use]
    pub fn facts(&self) -> BTreeMap<String, String> {
        let mut facts = BTreeMap::new();
        let mut put = |name: &str, value: String| {
            facts.insert(name.to_owned(), value);
        };
        match self.hello() {
            None => put("state", "recovering".to_owned()),
            Some(Err(error)) => put("state", format!("failed: {error}")),
            Some(Ok(hello)) => {
                let state = match (&self.poison, self.is_full()) {
                    (Some(_), _) => "poisoned",
                    (None, true) => "full",
                    (None, false) => "ok",
                };
                put("state", state.to_owned());
                put("id", hello.id.to_string());
                put("epoch_persisted", hello.persisted.to_string());
                put("epoch_serving", hello.serving.to_string());
                if let Some(cluster) = hello.cluster {
                    put("cluster", cluster.to_string());
                }
            }
        }
        if let Some(why) = &self.poison {
            put("poison", why.clone());
        }
        if let Some(cut) = &self.counters.cut {
            put("cut_at_start", cut.clone());
        }
        if let Some(free) = self.files.free {
            put("disk_free_bytes", free.to_string());
        }
        let span = |sum: u64, s: &crate::format::Suspect| sum.saturating_add(s.to.0 - s.from.0);
        let lost = self.index.suspects.iter().fold(0, span);
        put("high", self.index.high.to_string());
        put("settled", self.mark.to_string());
        put("trimmed", self.trimmed().to_string());
        put("entries", self.index.entries().to_string());
        put("segments", (self.index.sealed.len() + 1).to_string());
        put("index_bytes", self.index.sealed_bytes().to_string());
        put("cache_bytes", self.reader.cached_bytes().to_string());
        put("queued_bytes", self.writer.queued_bytes.to_string());
        put("reads_under_way", self.reader.jobs().to_string());
        put("streams_waiting", self.parked.len().to_string());
        if let Some(micros) = self.pace.typical() {
            put("disk_micros", micros.to_string());
        }
        put("batches", self.counters.batches.to_string());
        put("records", self.counters.records.to_string());
        put("disk_reads", self.counters.disk_reads.to_string());
        put("lost", self.index.lost.len().to_string());
        put("lost_on_read", self.counters.lost_on_read.to_string());
        put("lost_on_scrub", self.counters.lost_on_scrub.to_string());
        put("repaired", self.counters.repaired.to_string());
        put("scrubbed_bytes", self.scrub.bytes.to_string());
        put("scrub_passes", self.scrub.passes.to_string());
        put("lost_span", lost.to_string());
        facts
    }
}
