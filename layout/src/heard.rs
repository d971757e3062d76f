//! Who said hello, and when last.

use std::collections::BTreeMap;
use std::time::Duration;

use milonga_protocol::messages::Hello;
use milonga_protocol::{Incarnation, Layout, ServerName, Time};
use milonga_transport::Peer;

/// A server that has not been heard of for so long may be gone.
const FRESH: Duration = Duration::from_secs(3);

/// So much time does not pass between two messages to a layout server that listens.
const NOT_LISTENING: Duration = Duration::from_millis(250);
/// The next excuse counts after this long only.
const EXCUSED_FOR: Duration = Duration::from_secs(1);
/// Who was silent for so long comes back, and perhaps others with it.
const LONG: Duration = Duration::from_millis(500);

/// The last hello of each listed server.
#[derive(Debug, Default)]
pub(crate) struct Heard {
    servers: BTreeMap<ServerName, Server>,
    /// When a new run was last heard of.
    last_new: Time,
    /// When somebody was last heard that had been silent for long.
    last_back: Time,
    /// When anything was last received from anybody.
    received: Time,
    /// Silence before this moment is nobody's fault: this process did not listen.
    excused: Time,
}

#[derive(Debug)]
struct Server {
    hello: Hello,
    at: Time,
    /// When this run was heard first.
    since: Time,
}

impl Heard {
    /// Notes a hello; says whether it comes from a run that was not the last one heard under that name.
    pub(crate) fn hear(&mut self, now: Time, hello: Hello) -> bool {
        if self.was_silent(now, &hello.name, LONG) {
            self.last_back = now;
        }
        let before = self.servers.get(&hello.name);
        let same_run = before.filter(|server| server.hello.incarnation == hello.incarnation);
        let since = same_run.map_or(now, |server| server.since);
        let new = same_run.is_none();
        if new {
            self.last_new = now;
        }
        let server = Server {
            hello,
            at: now,
            since,
        };
        self.servers.insert(server.hello.name.clone(), server);
        new
    }

    /// Whether nothing was heard of it for so long, or ever.
    pub(crate) fn was_silent(&self, now: Time, name: &ServerName, long: Duration) -> bool {
        let server = self.servers.get(name);
        server.is_none_or(|server| now.since(server.at) >= long)
    }

    pub(crate) const fn last_new(&self) -> Time {
        self.last_new
    }

    /// When somebody was last heard for the first time, after a long silence, or in a new run.
    pub(crate) fn last_back(&self) -> Time {
        self.last_back.max(self.last_new)
    }

    /// The last hello, however old.
    pub(crate) fn last(&self, name: &ServerName) -> Option<&Hello> {
        self.servers.get(name).map(|server| &server.hello)
    }

    /// The last hello, if it is recent.
    pub(crate) fn fresh(&self, now: Time, name: &ServerName) -> Option<&Hello> {
        let server = self.servers.get(name)?;
        (now.since(server.at) < FRESH).then_some(&server.hello)
    }

    /// Something was received. If nothing had been for long, this process was paused or cut off: whoever was silent is
    /// excused, unless that was the reason a moment ago already (few may be left to be heard).
    pub(crate) fn received(&mut self, now: Time) {
        let excused_lately =
            now.since(self.excused) < EXCUSED_FOR && self.excused > Time::default();
        if !self.is_listening(now) && !excused_lately {
            self.excused = now;
        }
        self.received = self.received.max(now);
    }

    /// Whether silence says anything about others.
    pub(crate) fn is_listening(&self, now: Time) -> bool {
        now.since(self.received) <= NOT_LISTENING
    }

    /// Since when nothing was heard of `name`, as far as that is its fault; `None` if it never said hello.
    pub(crate) fn silent_since(&self, name: &ServerName) -> Option<Time> {
        let server = self.servers.get(name)?;
        Some(server.at.max(self.excused))
    }

    /// When the last run of `name` was heard first.
    pub(crate) fn since(&self, name: &ServerName) -> Option<Time> {
        self.servers.get(name).map(|server| server.since)
    }

    pub(crate) fn run(&self, name: &ServerName) -> Option<Incarnation> {
        self.last(name).map(|hello| hello.incarnation)
    }

    pub(crate) fn peer(&self, name: &ServerName) -> Option<Peer> {
        let hello = self.last(name)?;
        Some(Peer {
            name: name.clone(),
            address: hello.address.as_str().into(),
        })
    }

    /// A server of `layout` that nobody can be told the address of.
    pub(crate) fn without_address<'a>(&self, layout: &'a Layout) -> Option<&'a ServerName> {
        let members = layout.members().into_iter();
        let names = members.map(|unit| &layout.unit(unit).name);
        let mut names = names.chain([&layout.sequencer.name]);
        names.find(|name| !self.servers.contains_key(*name))
    }

    pub(crate) fn addresses(&self) -> BTreeMap<ServerName, String> {
        let servers = self.servers.iter();
        servers
            .map(|(name, server)| (name.clone(), server.hello.address.clone()))
            .collect()
    }
}
