//! Messages as the invariants and the trace see them.

use std::fmt;
use std::hash::{Hash, Hasher};

use milonga_protocol::ServerName;
use milonga_protocol::frame::Message;
use milonga_protocol::messages::{Request, Response};

use crate::world::trace::Moment;

/// Which way a message goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// From a caller to a service.
    Request,
    /// Back.
    Response,
}

/// A message that arrived (or, in the trace, was sent).
#[derive(Clone)]
pub struct Letter {
    /// When.
    pub at: Moment,
    /// Ties a response to its request; unique in the world.
    pub call: u64,
    /// Who sent it.
    pub from: ServerName,
    /// To whom.
    pub to: ServerName,
    /// Which way.
    pub direction: Direction,
    /// What. An empty response says that there will be none.
    pub message: Message,
}

impl Letter {
    pub(crate) fn new(
        at: Moment,
        call: u64,
        (from, to): (&ServerName, &ServerName),
        direction: Direction,
        message: &Message,
    ) -> Self {
        Self {
            at,
            call,
            from: from.clone(),
            to: to.clone(),
            direction,
            message: message.clone(),
        }
    }

    /// The request, if it is one.
    #[must_use]
    pub fn request(&self) -> Option<Request> {
        match self.direction {
            Direction::Request => Request::decode(&self.message).ok(),
            Direction::Response => None,
        }
    }

    /// The response, if it is one.
    #[must_use]
    pub fn response(&self) -> Option<Response> {
        match self.direction {
            Direction::Request => None,
            Direction::Response => Response::decode(&self.message).ok(),
        }
    }
}

impl Hash for Letter {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.call.hash(state);
        self.from.as_str().hash(state);
        self.to.as_str().hash(state);
        self.direction.hash(state);
        self.message.header.hash(state);
        self.message.body.hash(state);
    }
}

/// One line: who, whom, what, how long.
impl fmt::Debug for Letter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let arrow = match self.direction {
            Direction::Request => "->",
            Direction::Response => "=>",
        };
        write!(f, "#{} {} {arrow} {}: ", self.call, self.from, self.to)?;
        let text = match (self.request(), self.response()) {
            (Some(request), _) => format!("{request:?}"),
            (_, Some(response)) => format!("{response:?}"),
            _ => "nothing".to_owned(),
        };
        let shown: String = text.chars().take(160).collect();
        let more = if shown.len() < text.len() { "..." } else { "" };
        write!(f, "{shown}{more} ({} bytes)", self.message.len())
    }
}
