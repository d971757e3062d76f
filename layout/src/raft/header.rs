//! The first record of a raft store: what the file is, and whose.
//!
//! ```text
//! "MLGR", version u16, 0 or 1 and member u64     (little-endian)
//! ```

use super::MemberId;
use super::records::{OLDEST_RECORD_VERSION, RECORD_VERSION};

const MAGIC: [u8; 4] = *b"MLGR";

/// First record of every raft store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) version: u16,
    /// `None` before the store is used for the first time.
    pub(super) member: Option<MemberId>,
}

impl Header {
    pub(super) fn encode(self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend(self.version.to_le_bytes());
        bytes.push(u8::from(self.member.is_some()));
        bytes.extend(
            self.member
                .map(|id| id.0.to_le_bytes())
                .into_iter()
                .flatten(),
        );
        bytes
    }

    /// Of another version only the version is read.
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, String> {
        let Some(rest) = bytes.strip_prefix(&MAGIC) else {
            return Err("its header has another magic".into());
        };
        let (version, rest) = rest.split_first_chunk().ok_or("its header is cut")?;
        let version = u16::from_le_bytes(*version);
        let member = match rest {
            [0] => None,
            [1, id @ ..] if id.len() == 8 => {
                let id = id.try_into().map_err(|_| "its header is cut")?;
                Some(MemberId(u64::from_le_bytes(id)))
            }
            _ if (OLDEST_RECORD_VERSION..=RECORD_VERSION).contains(&version) => {
                return Err("its header is malformed".into());
            }
            _ => None,
        };
        Ok(Self { version, member })
    }
}
