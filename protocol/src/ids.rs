//! Types that cannot be confused.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Address in the log; also the version of everything and the only clock (`Position(0)` is first).
///
/// As a *mark* it is exclusive: "settled below p" says nothing about p itself.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Position(pub u64);

impl Position {
    /// The first position.
    pub const ZERO: Self = Self(0);
    /// Above every position that is ever granted.
    pub const MAX: Self = Self(u64::MAX);

    /// The position after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }

    /// The position before this one, if there is one.
    #[must_use]
    pub const fn before(self) -> Option<Self> {
        match self.0.checked_sub(1) {
            Some(p) => Some(Self(p)),
            None => None,
        }
    }

    /// This position moved up by `n`, saturating.
    #[must_use]
    pub const fn plus(self, n: u64) -> Self {
        Self(self.0.saturating_add(n))
    }

    /// This position moved down by `n`, saturating at zero.
    #[must_use]
    pub const fn minus(self, n: u64) -> Self {
        Self(self.0.saturating_sub(n))
    }
}

/// Number of the layout. Epoch 0 is "none yet"; the first layout is epoch 1.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Epoch(pub u64);

impl Epoch {
    /// Before the first layout.
    pub const NONE: Self = Self(0);

    /// The epoch after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

/// Names a stream: the subsequence of entries that carry it.
///
/// Ids with the top bit set are *raw* streams, for applications that use the log directly;
/// ids without it belong to objects (1 is the directory).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct StreamId(pub u64);

impl StreamId {
    /// The stream of the directory, the object that names all others.
    pub const DIRECTORY: Self = Self(1);
    const RAW: u64 = 1 << 63;

    /// The `n`-th raw stream (the top bit of `n` is ignored).
    #[must_use]
    pub const fn raw(n: u64) -> Self {
        Self(n | Self::RAW)
    }

    /// Whether the stream belongs to an object.
    #[must_use]
    pub const fn is_object(self) -> bool {
        self.0 & Self::RAW == 0
    }
}

macro_rules! random_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
        pub struct $name(pub u128);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:032x}", self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({:08x}…)"), self.0 >> 96)
            }
        }
    };
}

random_id!(
    /// One writer of the log: drawn at random by each client when it starts.
    WriterId
);
random_id!(
    /// One cluster, made at genesis; stamped into every directory and every handshake.
    ClusterId
);
random_id!(
    /// Persistent identity of a log unit, stored in its directory. An emptied directory is a new unit.
    UnitId
);
random_id!(
    /// One run of a server process: drawn anew at each start.
    Incarnation
);

/// Tells my write from another's and makes retries exactly-once. Never used for two values.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct EntryId {
    /// Who wrote.
    pub writer: WriterId,
    /// Number of the attempt at that writer; a failed attempt is retried under a new number.
    pub sequence: u64,
}

/// Name of a server process as operators know it, such as `unit-1a`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ServerName(Arc<str>);

impl ServerName {
    /// Wraps a name.
    #[must_use]
    pub fn new(name: impl AsRef<str>) -> Self {
        Self(Arc::from(name.as_ref()))
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&str> for ServerName {
    fn from(name: &str) -> Self {
        Self::new(name)
    }
}

impl fmt::Display for ServerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ServerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

macro_rules! show_number {
    ($name:ident, $prefix:literal) => {
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }
    };
}

show_number!(Position, "@");
show_number!(Epoch, "e");

impl fmt::Display for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_object() {
            write!(f, "{}", self.0)
        } else {
            write!(f, "raw:{}", self.0 & !Self::RAW)
        }
    }
}

impl fmt::Debug for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s{self}")
    }
}

impl fmt::Display for EntryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}.{}", self.writer.0 >> 96, self.sequence)
    }
}

impl fmt::Debug for EntryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
