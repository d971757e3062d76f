//! The status as people read it: what matters first, then a line for each server; 100 columns.

use std::fmt::Write as _;

use super::redundancy::SPARE;
use super::{PUBLISHED, Server, Status, layout_fact};

const WIDTH: usize = 100;
/// What becomes of a unit that was removed and still runs.
const REMOVED: &str = "by an operator; stop it, or `milonga cluster add-unit` takes it in again, with an empty directory";
/// Of the labels in front.
const LABEL: usize = 12;
const HEAD: [&str; 7] = [
    "NAME", "ADDRESS", "ROLE", "STATE", "SETTLED", "TRIMMED", "ENTRIES",
];
/// Of the columns that hold numbers, the first.
const NUMBERS: usize = 4;

impl Status {
    pub(super) fn text(&self, verbose: bool) -> String {
        let mut text = self.summary();
        text.push_str(&table(&self.servers, self));
        if verbose {
            for server in &self.servers {
                let _ = writeln!(text, "\n{} ({})", server.name, server.address);
                for (role, facts) in &server.roles {
                    let facts = facts.iter().map(|(name, value)| format!("{name} {value}"));
                    let facts = facts.collect::<Vec<_>>().join(", ");
                    wrapped(&mut text, &format!("  {role}:"), &facts);
                }
            }
        }
        text
    }

    fn summary(&self) -> String {
        let mut text = String::new();
        let mut line = |label: &str, words: &str| wrapped(&mut text, label, words);
        if let (Some(cluster), Some(epoch), Some(start)) = (&self.cluster, self.epoch, self.start) {
            line("cluster", cluster);
            line("epoch", &format!("{epoch}, began at position {start}"));
        } else {
            let why = self.waiting.as_deref().unwrap_or_default();
            line("no layout:", why);
        }
        if let Some(redundancy) = &self.redundancy {
            let troubled = self.servers.iter().filter(|s| s.is_troubled());
            let troubled = troubled.filter(|server| server.part.is_unit);
            let troubled: Vec<_> = troubled.map(|server| server.name.as_str()).collect();
            let mut words = redundancy.text(troubled.is_empty());
            if !troubled.is_empty() {
                let _ = write!(words, "; NOT SERVING: {}", troubled.join(", "));
            }
            if let Some(vacant) = layout_fact(&self.servers, "vacant") {
                let _ = write!(words, "; {vacant}");
            }
            line("redundancy", &words);
        }
        if let Some(copying) = &self.copying {
            line("copying", copying);
        }
        for out in &self.out {
            line("out", &format!("{}: {}", out.name, out.why));
        }
        if !self.removed.is_empty() {
            let names = self.removed.join(", ");
            line("removed", &format!("{names}: {REMOVED}"));
        }
        if let Some(sequencer) = &self.sequencer {
            line("sequencer", sequencer);
        }
        if let Some(words) = self.members_of_layout() {
            line("layout", &words);
        }
        if let (Some(_), Some(waiting)) = (self.epoch, &self.waiting) {
            line(
                "WAITING",
                waiting.strip_prefix("waiting ").unwrap_or(waiting),
            );
        }
        for (label, names, why) in self.troubles() {
            line(label, &format!("{}: {why}", names.join(", ")));
        }
        for fact in ["slow", "restless", "lost", "damaged below", "broken"] {
            if let Some(said) = layout_fact(&self.servers, fact) {
                let (label, rest) = fact.split_once(' ').unwrap_or((fact, ""));
                line(label, format!("{rest} {said}").trim_start());
            }
        }
        text
    }
}

impl Status {
    /// Who leads the layout, and how many of its members are there; `None` if it has only one.
    fn members_of_layout(&self) -> Option<String> {
        let members = || {
            self.servers
                .iter()
                .filter(|s| s.roles().contains(&"layout"))
        };
        let counts = |s: &&Server| s.up && (self.leader.is_none() || s.takes_part());
        let (all, up) = (members().count(), members().filter(counts).count());
        if all < 2 {
            return None;
        }
        let leads = match &self.leader {
            Some(leader) => {
                let term = leader
                    .term
                    .map_or_else(|| "?".to_owned(), |t| t.to_string());
                format!("{} leads in term {term}", leader.name)
            }
            None => "nobody leads".to_owned(),
        };
        Some(format!("{leads}; {up} of {all} members are up"))
    }

    /// What is wrong with servers, of which nothing was said before: label, names and reason.
    fn troubles(&self) -> Vec<(&'static str, Vec<&str>, &str)> {
        let mut troubles: Vec<(_, Vec<&str>, _)> = Vec::new();
        for server in &self.servers {
            let Some(problem) = server.problem.as_deref() else {
                continue;
            };
            let is_out = self.out.iter().any(|out| out.name == server.name);
            if is_out || self.waiting.as_deref() == Some(problem) {
                continue;
            }
            let label = if server.up { "trouble" } else { "down" };
            let known = format!("cannot reach {} ({}): ", server.name, server.address);
            let why = problem.strip_prefix(&*known).unwrap_or(problem);
            match troubles.iter_mut().find(|t| (t.0, t.2) == (label, why)) {
                Some((_, names, _)) => names.push(&server.name),
                None => troubles.push((label, vec![&server.name], why)),
            }
        }
        troubles
    }
}

/// One aligned line for each server.
fn table(servers: &[Server], status: &Status) -> String {
    if servers.is_empty() {
        return String::new();
    }
    let rows: Vec<_> = servers.iter().map(|server| server.row(status)).collect();
    let mut widths = HEAD.map(str::len);
    for row in &rows {
        // What stands last in its line may be longer than its column.
        let last = row.iter().rposition(|cell| !cell.is_empty());
        for (column, cell) in row.iter().enumerate() {
            if Some(column) != last || column >= NUMBERS {
                widths[column] = widths[column].max(cell.chars().count());
            }
        }
    }
    let mut text = String::from("\n");
    let head = HEAD.map(str::to_owned);
    for row in std::iter::once(&head).chain(&rows) {
        let mut line = String::new();
        for (column, (cell, width)) in row.iter().zip(widths).enumerate() {
            let _ = if column < NUMBERS {
                write!(line, "{cell:<width$}  ")
            } else {
                write!(line, "{cell:>width$}  ")
            };
        }
        let line = line.trim_end();
        if line.chars().count() > WIDTH && row[NUMBERS].is_empty() {
            let short: String = line.chars().take(WIDTH - 1).collect();
            let _ = writeln!(text, "{short}…");
        } else {
            let _ = writeln!(text, "{line}");
        }
    }
    text
}

impl Server {
    /// Those that decide come first.
    pub(super) fn rank(&self) -> u8 {
        match self.roles().first().copied() {
            Some("layout") => 0,
            Some("sequencer") => 1,
            Some("unit") => 2,
            _ => 3,
        }
    }

    /// Its roles: what it says, or, if it says nothing, what the layout or its name say.
    fn roles(&self) -> Vec<&'static str> {
        let named = |role: &str| !self.up && self.name.starts_with(role);
        let has = |role: &&str| match *role {
            role if self.roles.contains_key(role) => true,
            "sequencer" => self.part.is_sequencer || (!self.part.is_unit && named("sequencer")),
            "unit" => self.part.is_unit || named("unit"),
            role => named(role),
        };
        let mut roles = vec!["layout", "sequencer", "unit"];
        roles.retain(has);
        roles
    }

    fn row(&self, status: &Status) -> [String; HEAD.len()] {
        let number = |fact| self.fact("unit", fact).unwrap_or_default().to_owned();
        let roles = self.roles().into_iter().map(|role| match self.part.chain {
            Some(chain) if role == "unit" => format!("chain {chain}"),
            _ => role.to_owned(),
        });
        [
            self.name.clone(),
            self.address.clone(),
            roles.collect::<Vec<_>>().join("+"),
            self.state(status),
            number("settled"),
            number("trimmed"),
            number("entries"),
        ]
    }

    fn state(&self, status: &Status) -> String {
        if !self.up {
            return "DOWN".to_owned();
        }
        if self.fact("unit", "poison").is_some() {
            return "POISONED".to_owned();
        }
        let part = &self.part;
        if part.is_member && self.problem.is_some() {
            return "NOT SERVING".to_owned();
        }
        let mut words = Vec::new();
        if part.is_member {
            let epoch = status.epoch.unwrap_or_default();
            words.push(format!("serving epoch {epoch}"));
        } else if let Some(out) = status.out.iter().find(|out| out.name == self.name) {
            words.push(if out.why == SPARE { "waiting" } else { "out" }.to_owned());
        } else if status.removed.contains(&self.name) {
            words.push("removed".to_owned());
        } else if self.roles.contains_key("unit") || self.roles.contains_key("sequencer") {
            words.push("spare".to_owned());
        }
        if part.is_joining {
            words.push("copying".to_owned());
        }
        if self.fact("unit", "state") == Some("full") {
            words.push("disk FULL".to_owned());
        }
        if let Some(leader) = self.fact("layout", "follows") {
            words.push(format!("follows {leader}"));
        } else if status.members_of_layout().is_some() && self.leads() {
            words.push("leads".to_owned());
        }
        if let Some(layout) = self.fact("layout", "state") {
            if !layout.starts_with(PUBLISHED) {
                words.push("not published, see above".to_owned());
            } else if words.is_empty() || layout != PUBLISHED {
                words.push(layout.to_owned());
            }
        }
        words.join(", ")
    }
}

/// A label and words behind it, in as many lines as they need.
fn wrapped(text: &mut String, label: &str, words: &str) {
    let mut line = format!("{label:<LABEL$}");
    if !line.ends_with(' ') {
        line.push(' ');
    }
    let mut is_empty = true;
    for word in words.split_whitespace() {
        let length = line.trim_end().chars().count() + 1 + word.chars().count();
        if !is_empty && length > WIDTH {
            let _ = writeln!(text, "{}", line.trim_end());
            line = " ".repeat(LABEL);
        }
        line.push_str(word);
        line.push(' ');
        is_empty = false;
    }
    let _ = writeln!(text, "{}", line.trim_end());
}
