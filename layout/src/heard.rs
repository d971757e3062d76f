//! Who said hello, and when last.

use std::collections::BTreeMap;
use std::time::Duration;

use milonga_protocol::messages::Hello;
use milonga_protocol::{Incarnation, Layout, ServerName, Time};
use milonga_transport::Peer;

use crate::restless::Starts;

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
    /// When it was last heard for the first time, after a long silence, or in a new run.
    back: Time,
    starts: Starts,
}

impl Heard {
    /// Notes a hello; says whether it comes from a run that was not the last one heard under that name.
    pub(crate) fn hear(&mut self, now: Time, hello: Hello) -> bool {
        let silent = self.was_silent(now, &hello.name, LONG);
        let Some(server) = self.servers.get_mut(&hello.name) else {
            let server = Server {
                at: now,
                since: now,
                back: now,
                starts: Starts::default(),
                hello,
            };
            self.servers.insert(server.hello.name.clone(), server);
            return true;
        };
        let (old, run) = (server.hello.incarnation, hello.incarnation);
        let new = old != run;
        if new {
            server.since = now;
            server.starts.restarted(now, old, run);
        }
        if new || silent {
            server.back = now;
        }
        (server.hello, server.at) = (hello, now);
        new
    }

    /// Whether nothing was heard of it for so long, or ever.
    pub(crate) fn was_silent(&self, now: Time, name: &ServerName, long: Duration) -> bool {
        let server = self.servers.get(name);
        server.is_none_or(|server| now.since(server.at) >= long)
    }

    /// When `name` was last heard for the first time, after a long silence, or in a new run.
    pub(crate) fn back(&self, name: &ServerName) -> Option<Time> {
        self.servers.get(name).map(|server| server.back)
    }

    /// When `name` was restarted lately.
    pub(crate) fn starts(&self, name: &ServerName) -> Option<&Starts> {
        self.servers.get(name).map(|server| &server.starts)
    }

    /// All that ever said hello.
    pub(crate) fn names(&self) -> impl Iterator<Item = &ServerName> {
        self.servers.keys()
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

    /// When `name` was heard last.
    pub(crate) fn at(&self, name: &ServerName) -> Option<Time> {
        self.servers.get(name).map(|server| server.at)
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
