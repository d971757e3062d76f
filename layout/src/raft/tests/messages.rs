//! What travels and what lies on disk.

use milonga_protocol::Position;
use openraft::{CommittedLeaderId, EntryPayload};

use super::super::header::Header;
use super::super::messages::Request;
use super::super::records::{
    EntryRecord, LogIdRecord, MetaRecord, VoteRecord, decode, decode_history, encode,
    encode_history,
};
use super::*;

fn log_id(index: u64) -> LogId {
    LogId::new(CommittedLeaderId::new(3, MemberId(2)), index)
}

/// One line for each record: its name and its bytes in hex.
const GOLDEN: &str = include_str!("../../../tests/golden/raft-records-v2.txt");

/// A record that a build of version 1 wrote.
pub(super) fn of_version_1(name: &str) -> Vec<u8> {
    let file = include_str!("../../../tests/golden/raft-records-v1.txt");
    let mut lines = file.lines().filter_map(|line| line.split_once(": "));
    let (_, hex) = lines.find(|line| line.0 == name).expect("recorded");
    let byte = |at| u8::from_str_radix(&hex[at..at + 2], 16).expect("hex");
    (0..hex.len()).step_by(2).map(byte).collect()
}

/// Compares with what was recorded.
fn check(name: &str, bytes: &[u8]) {
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let line = format!("{name}: {hex}");
    let recorded = GOLDEN.lines().any(|recorded| recorded == line);
    assert!(recorded, "not as recorded: {line}");
}

/// Records of version 2 stay as they are. The layouts in them follow the protocol: if those change, so must the
/// version.
#[test]
fn records_of_version_2_are_read_and_written_alike() {
    let vote = Vote::new_committed(3, MemberId(2));
    let record = encode(&VoteRecord::from(vote));
    check("vote", &record);
    let read: VoteRecord = decode("vote", &record).unwrap();
    assert_eq!(Vote::from(read), vote);

    check("log-id", &encode(&LogIdRecord::from(log_id(300))));

    let mut history = History::default();
    check("history-new", &encode_history(&history));
    history.apply(&intent(1)).unwrap();
    let membership = Membership::new(vec![[MemberId(1)].into()], members(1));
    let policy = samples::policy();
    let payloads = [
        ("blank", EntryPayload::Blank),
        ("intent", EntryPayload::Normal(intent(9))),
        ("commit", EntryPayload::Normal(commit(&history, 0))),
        (
            "settled",
            EntryPayload::Normal(StoreChange::Settled { epoch: Epoch(9) }),
        ),
        ("membership", EntryPayload::Membership(membership.clone())),
        (
            "policy",
            EntryPayload::Normal(StoreChange::Policy { policy }),
        ),
    ];
    for (name, payload) in payloads {
        let log_id = log_id(7);
        let entry = Entry { log_id, payload };
        let record = encode(&EntryRecord::from(entry.clone()));
        check(name, &record);
        let read: EntryRecord = decode("entry", &record).unwrap();
        assert_eq!(Entry::from(read), entry);
    }
    let first = commit(&history, 0);
    history.apply(&first).unwrap();
    check("history", &encode_history(&history));

    let meta = SnapshotMeta {
        last_log_id: Some(log_id(7)),
        last_membership: StoredMembership::new(Some(log_id(0)), membership),
        snapshot_id: "id".into(),
    };
    let record = encode(&MetaRecord::from(meta.clone()));
    check("snapshot", &record);
    let read: MetaRecord = decode("snapshot", &record).unwrap();
    assert_eq!(SnapshotMeta::from(read), meta);

    for (name, member) in [("header-new", None), ("header", Some(MemberId(2)))] {
        let header = Header { version: 2, member };
        check(name, &header.encode());
        assert_eq!(Header::decode(&header.encode()), Ok(header));
    }
}

/// Version 2 brought origins.
#[test]
fn records_of_version_1_are_still_read() {
    let mut history = History::default();
    assert_eq!(
        decode_history(&of_version_1("history-new")),
        Ok(history.clone())
    );
    history.apply(&intent(1)).unwrap();
    let mut first = commit(&history, 0);
    if let StoreChange::Commit { origin, .. } = &mut first {
        *origin = None;
    }
    history.apply(&first).unwrap();
    assert_eq!(decode_history(&of_version_1("history")), Ok(history));
    let policy = samples::policy();
    for (name, change) in [
        ("commit", first),
        ("intent", intent(9)),
        ("settled", StoreChange::Settled { epoch: Epoch(9) }),
        ("policy", StoreChange::Policy { policy }),
    ] {
        let read: EntryRecord = decode("entry", &of_version_1(name)).unwrap();
        let (log_id, payload) = (log_id(7), EntryPayload::Normal(change));
        assert_eq!(Entry::from(read), Entry { log_id, payload }, "{name}");
    }
    let read: VoteRecord = decode("vote", &of_version_1("vote")).unwrap();
    assert_eq!(Vote::from(read), Vote::new_committed(3, MemberId(2)));
    for (name, member) in [("header-new", None), ("header", Some(MemberId(2)))] {
        let header = Header { version: 1, member };
        assert_eq!(Header::decode(&of_version_1(name)), Ok(header));
    }
    let mut cut = of_version_1("commit");
    cut.pop();
    assert!(decode::<EntryRecord>("entry", &cut).is_err());
}

#[test]
fn a_history_survives_its_encoding() {
    let mut history = History::default();
    for epoch in 1..=5 {
        history.apply(&intent(epoch)).unwrap();
        let next = commit(&history, epoch * 10 - 10);
        history.apply(&next).unwrap();
        let (from, to) = (Position(epoch), Position(epoch * 10));
        history.apply(&StoreChange::GivenUp { from, to }).unwrap();
        let policy = samples::policy();
        history.apply(&StoreChange::Policy { policy }).unwrap();
        assert_eq!(
            decode_history(&encode_history(&history)),
            Ok(history.clone())
        );
    }
    // What no history can be is refused.
    history.starts.insert(Epoch(6), Position(0));
    assert!(decode_history(&encode_history(&history)).is_err());
    assert!(decode_history(b"\x01").unwrap_err().contains("cut"));
}

#[test]
fn what_no_member_says_is_refused() {
    let entry = |index| {
        EntryRecord::from(Entry {
            log_id: log_id(index),
            payload: EntryPayload::Blank,
        })
    };
    let append = |committed, previous: Option<u64>, entries: &[u64]| {
        let request = Request::Append {
            vote: VoteRecord {
                committed,
                ..VoteRecord::from(Vote::new(3, MemberId(2)))
            },
            previous: previous.map(|index| log_id(index).into()),
            entries: entries.iter().map(|index| entry(*index)).collect(),
            committed: None,
        };
        request.check().is_ok()
    };
    assert!(append(true, None, &[0, 1, 2]) && append(true, Some(4), &[5]));
    assert!(append(true, Some(4), &[]));
    assert!(!append(false, None, &[0]));
    assert!(!append(true, None, &[1]) && !append(true, Some(4), &[6]));
    assert!(!append(true, Some(4), &[5, 5]) && !append(true, Some(u64::MAX), &[0]));
    let vote = VoteRecord::from(Vote::new_committed(3, MemberId(2)));
    assert!(Request::Vote { vote, last: None }.check().is_err());
}

#[test]
fn what_is_no_message_is_refused() {
    assert!(RaftRequest::decode(b"").is_err());
    assert!(RaftRequest::decode(b"\x09").is_err());
    let large = vec![0; MESSAGE_BYTES + 1];
    let bytes = large.len();
    assert_eq!(
        RaftRequest::decode(&large),
        Err(RaftDecodeError::TooLarge { bytes })
    );
    assert!(RaftResponse::decode(&large).is_err());
}
