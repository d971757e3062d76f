//! Who said hello, and when last.

use std::collections::BTreeMap;
use std::time::Duration;

use milonga_protocol::messages::Hello;
use milonga_protocol::{Incarnation, ServerName, Time};
use milonga_transport::Peer;

/// A server that has not been heard of for so long may be gone.
const FRESH: Duration = Duration::from_secs(3);

/// The last hello of each listed server.
#[derive(Debug, Default)]
pub(crate) struct Heard {
    servers: BTreeMap<ServerName, Server>,
    /// When a new run was last heard of.
    last_new: Time,
    /// Silence before this moment is nobody's fault: this process did not listen.
    excused: Time,
}

#[derive(Debug)]
struct Server {
    hello: Hello,
    at: Time,
}

impl Heard {
    /// Notes a hello; says whether it comes from a run that was not the last one heard under that name.
    pub(crate) fn hear(&mut self, now: Time, hello: Hello) -> bool {
        let run = self.run(&hello.name);
        let new = run != Some(hello.incarnation);
        if new {
            self.last_new = now;
        }
        let server = Server { hello, at: now };
        self.servers.insert(server.hello.name.clone(), server);
        new
    }

    pub(crate) const fn last_new(&self) -> Time {
        self.last_new
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

    /// This process was not listening until `now`: whoever was silent is excused.
    pub(crate) fn excuse(&mut self, now: Time) {
        self.excused = now;
    }

    /// Since when nothing was heard of `name`, as far as that is its fault; `None` if it never said hello.
    pub(crate) fn silent_since(&self, name: &ServerName) -> Option<Time> {
        let server = self.servers.get(name)?;
        Some(server.at.max(self.excused))
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

    pub(crate) fn addresses(&self) -> BTreeMap<ServerName, String> {
        let servers = self.servers.iter();
        servers
            .map(|(name, server)| (name.clone(), server.hello.address.clone()))
            .collect()
    }
}
