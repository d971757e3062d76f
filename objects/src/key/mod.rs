//! Keys as order-preserving bytes: what records name, versions are kept for and conflicts are decided by.

mod encode;
mod show;

use std::borrow::{Borrow, Cow};
use std::fmt;
use std::sync::Arc;

use serde::de::{Error, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

pub use show::show;

/// A key in its order-preserving encoding: comparing bytes compares keys. Cheap to clone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyBytes(Arc<[u8]>);

impl KeyBytes {
    /// The encoding of `key`.
    pub fn of(key: &(impl EncodeKey + ?Sized)) -> Self {
        key.with_bytes(|bytes| Self::from(bytes))
    }

    /// The bytes.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        &self.0
    }
}

impl From<&[u8]> for KeyBytes {
    fn from(bytes: &[u8]) -> Self {
        Self(Arc::from(bytes))
    }
}

impl Borrow<[u8]> for KeyBytes {
    fn borrow(&self) -> &[u8] {
        &self.0
    }
}

impl AsRef<[u8]> for KeyBytes {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Serialize for KeyBytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for KeyBytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Raw;

        impl Visitor<'_> for Raw {
            type Value = KeyBytes;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a key's bytes")
            }

            fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<KeyBytes, E> {
                Ok(KeyBytes::from(bytes))
            }
        }

        deserializer.deserialize_bytes(Raw)
    }
}

impl fmt::Debug for KeyBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&show("", &self.0))
    }
}

/// What can be written as order-preserving bytes. Also implemented by the unsized forms (`str`, `[u8]`), which
/// encode like their owned ones, so that lookups need no owned key.
pub trait EncodeKey {
    /// Appends the encoding. `last`: nothing follows, so the end of the key needs no mark.
    fn encode(&self, out: &mut Vec<u8>, last: bool);

    /// Lends the whole key's encoding.
    fn with_bytes<R>(&self, with: impl FnOnce(&[u8]) -> R) -> R {
        let mut bytes = Vec::with_capacity(32);
        self.encode(&mut bytes, true);
        with(&bytes)
    }
}

/// A key of a map: strings, integers, `bool`, bytes, and tuples of two or three of these.
///
/// An implementation's encoding MUST be injective and MUST order like the keys shall be ordered; it is stored in
/// the log, so it can never change. One that is not `last` MUST mark its own end.
pub trait Key: EncodeKey + Clone + Send + Sync + 'static {
    /// Name of the encoding, kept in the directory so that tools can show keys; `str`, `u64`, `(str,i64)`, ….
    fn encoding() -> Cow<'static, str>;

    /// Takes one key off the front of `bytes`; `None` if they hold none.
    fn decode(bytes: &mut &[u8], last: bool) -> Option<Self>;

    /// Decodes a whole key.
    fn from_key_bytes(mut bytes: &[u8]) -> Option<Self> {
        let key = Self::decode(&mut bytes, true)?;
        bytes.is_empty().then_some(key)
    }
}
