//! The records of the store, byte by byte.
//!
//! ```text
//! header  "MLGL", version u16, 1 and cluster u128, or 0     (little-endian)
//! layout  version u16, postcard of the layout                intent  version u16, epoch u64
//! given up  version u16, from u64, to u64                    policy  version u16, postcard of what operators decided
//! ```

use milonga_protocol::{ClusterId, Epoch, Layout, Position};

use super::{OLDEST_VERSION, STORE_VERSION, version_1};
use crate::policy::Policy;

const MAGIC: [u8; 4] = *b"MLGL";

/// First record of every store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) version: u16,
    /// `None` before genesis.
    pub(super) cluster: Option<ClusterId>,
}

impl Header {
    pub(super) const fn new(cluster: Option<ClusterId>) -> Self {
        Self {
            version: STORE_VERSION,
            cluster,
        }
    }

    pub(super) fn encode(self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend(self.version.to_le_bytes());
        match self.cluster {
            None => bytes.push(0),
            Some(cluster) => {
                bytes.push(1);
                bytes.extend(cluster.0.to_le_bytes());
            }
        }
        bytes
    }

    /// Of another version only the version is read.
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, String> {
        let Some(rest) = bytes.strip_prefix(&MAGIC) else {
            return Err("its header has another magic".into());
        };
        let (version, rest) = take_version(rest)?;
        let known = (OLDEST_VERSION..=STORE_VERSION).contains(&version);
        let cluster = match rest {
            [0] => None,
            [1, id @ ..] if id.len() == 16 => {
                let id = id.try_into().map_err(|_| "its header is cut")?;
                Some(ClusterId(u128::from_le_bytes(id)))
            }
            _ if known => return Err("its header is malformed".into()),
            _ => None,
        };
        Ok(Self { version, cluster })
    }
}

pub(super) fn encode_layout(layout: &Layout) -> Vec<u8> {
    let mut bytes = STORE_VERSION.to_le_bytes().to_vec();
    bytes.extend_from_slice(&milonga_protocol::messages::encode(layout));
    bytes
}

pub(super) fn decode_layout(bytes: &[u8]) -> Result<Layout, String> {
    let layout = match known_version(bytes)? {
        (1, rest) => milonga_protocol::messages::decode("layout", rest)
            .map(|old: version_1::Layout| old.into()),
        (_, rest) => milonga_protocol::messages::decode("layout", rest),
    };
    layout.map_err(|error| error.to_string())
}

pub(super) fn encode_intent(epoch: Epoch) -> Vec<u8> {
    let mut bytes = STORE_VERSION.to_le_bytes().to_vec();
    bytes.extend(epoch.0.to_le_bytes());
    bytes
}

pub(super) fn decode_intent(bytes: &[u8]) -> Result<Epoch, String> {
    let epoch = known_version(bytes)?.1.try_into();
    let epoch = epoch.map_err(|_| "its intent is malformed")?;
    Ok(Epoch(u64::from_le_bytes(epoch)))
}

pub(super) fn encode_given_up((from, to): (Position, Position)) -> Vec<u8> {
    let mut bytes = STORE_VERSION.to_le_bytes().to_vec();
    bytes.extend(from.0.to_le_bytes());
    bytes.extend(to.0.to_le_bytes());
    bytes
}

pub(super) fn decode_given_up(bytes: &[u8]) -> Result<(Position, Position), String> {
    let malformed = || "what was given up is malformed".to_owned();
    let (from, to) = known_version(bytes)?
        .1
        .split_first_chunk()
        .ok_or_else(malformed)?;
    let to = to.try_into().map_err(|_| malformed())?;
    let [from, to] = [*from, to].map(|bytes| Position(u64::from_le_bytes(bytes)));
    Ok((from, to))
}

pub(super) fn encode_policy(policy: &Policy) -> Vec<u8> {
    let mut bytes = STORE_VERSION.to_le_bytes().to_vec();
    bytes.extend_from_slice(&milonga_protocol::messages::encode(policy));
    bytes
}

pub(super) fn decode_policy(bytes: &[u8]) -> Result<Policy, String> {
    let (_, rest) = known_version(bytes)?;
    let policy = milonga_protocol::messages::decode("policy", rest);
    policy.map_err(|error| error.to_string())
}

fn known_version(bytes: &[u8]) -> Result<(u16, &[u8]), String> {
    match take_version(bytes)? {
        (version @ OLDEST_VERSION..=STORE_VERSION, rest) => Ok((version, rest)),
        (other, _) => Err(format!("a record of unknown version {other}")),
    }
}

fn take_version(bytes: &[u8]) -> Result<(u16, &[u8]), String> {
    let (version, rest) = bytes.split_first_chunk().ok_or("a record is cut")?;
    Ok((u16::from_le_bytes(*version), rest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::{History, StoreChange};
    use crate::samples;

    /// One line for each record: its name and its bytes in hex.
    const GOLDEN: &str = include_str!("../../tests/golden/store-records-v3.txt");
    const GOLDEN_2: &str = include_str!("../../tests/golden/store-records-v2.txt");
    const GOLDEN_1: &str = include_str!("../../tests/golden/store-records-v1.txt");

    fn history() -> History {
        let mut history = History::default();
        for (epoch, start) in [(1, 0), (2, 1_234_567)] {
            let intent = StoreChange::Intent {
                epoch: Epoch(epoch),
            };
            history.apply(&intent).unwrap();
            let layout = samples::layout(epoch, start, &history);
            let parent = Epoch(epoch - 1);
            let commit = StoreChange::Commit {
                parent,
                layout,
                origin: None,
            };
            history.apply(&commit).unwrap();
        }
        history
    }

    fn golden(name: &str) -> Vec<u8> {
        golden_of(GOLDEN, name)
    }

    fn golden_of(file: &str, name: &str) -> Vec<u8> {
        let line = file.lines().find_map(|l| l.strip_prefix(name));
        let hex = line.expect("recorded").trim();
        let byte = |at| u8::from_str_radix(&hex[at..at + 2], 16).expect("hex");
        (0..hex.len()).step_by(2).map(byte).collect()
    }

    #[test]
    fn records_of_version_1_are_still_read() {
        let history = history();
        let header = Header {
            version: 1,
            cluster: history.cluster,
        };
        assert_eq!(Header::decode(&golden_of(GOLDEN_1, "header: ")), Ok(header));
        let intent = golden_of(GOLDEN_1, "intent: ");
        assert_eq!(decode_intent(&intent), Ok(Epoch(3)));
        let layout = golden_of(GOLDEN_1, "layout: ");
        assert_eq!(
            decode_layout(&layout).as_ref(),
            Ok(history.current().unwrap())
        );
    }

    /// Version 3 brought what was given up.
    #[test]
    fn records_of_version_2_are_still_read() {
        let history = history();
        let header = Header {
            version: 2,
            cluster: history.cluster,
        };
        assert_eq!(Header::decode(&golden_of(GOLDEN_2, "header: ")), Ok(header));
        let intent = golden_of(GOLDEN_2, "intent: ");
        assert_eq!(decode_intent(&intent), Ok(Epoch(3)));
        let layout = golden_of(GOLDEN_2, "layout: ");
        assert_eq!(
            decode_layout(&layout).as_ref(),
            Ok(history.current().unwrap())
        );
    }

    #[test]
    fn records_of_version_3_are_read_and_written_alike() {
        let history = history();
        let given_up = (Position(7), Position(70_000));
        let policy = samples::policy();
        let cases: [(&str, Vec<u8>); 6] = [
            ("given-up", encode_given_up(given_up)),
            ("header-new", Header::new(None).encode()),
            ("header", Header::new(history.cluster).encode()),
            ("intent", encode_intent(Epoch(3))),
            ("layout", encode_layout(history.current().unwrap())),
            ("policy", encode_policy(&policy)),
        ];
        for (name, bytes) in &cases {
            let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
            assert_eq!(bytes, &golden(&format!("{name}: ")), "{name}: {hex}");
        }
        assert_eq!(
            Header::decode(&golden("header: ")),
            Ok(Header::new(history.cluster))
        );
        assert_eq!(decode_intent(&golden("intent: ")), Ok(Epoch(3)));
        assert_eq!(decode_given_up(&golden("given-up: ")), Ok(given_up));
        assert_eq!(decode_policy(&golden("policy: ")), Ok(policy));
        assert_eq!(
            decode_layout(&golden("layout: ")).as_ref(),
            Ok(history.current().unwrap())
        );
    }

    #[test]
    fn what_is_foreign_or_cut_is_named() {
        let good = Header::new(Some(ClusterId(7))).encode();
        assert!(Header::decode(b"SQLite").unwrap_err().contains("magic"));
        assert!(Header::decode(&good[..5]).unwrap_err().contains("cut"));
        assert!(
            Header::decode(&good[..9])
                .unwrap_err()
                .contains("malformed")
        );
        let mut newer = good;
        newer[4] = 9;
        newer.push(1);
        assert_eq!(Header::decode(&newer).map(|h| h.version), Ok(9));
        assert!(decode_intent(&[1, 0, 5]).unwrap_err().contains("malformed"));
        assert!(
            decode_layout(&[9, 0, 5])
                .unwrap_err()
                .contains("unknown version")
        );
    }
}
