//! What travels and what lies on disk.

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

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Records of version 1 stay as they are. Layouts in them follow the protocol: if those change, so must the version.
#[test]
fn records_of_version_1_are_read_and_written_alike() {
    let vote = Vote::new_committed(3, MemberId(2));
    let record = encode(&VoteRecord::from(vote));
    assert_eq!(hex(&record), "0100030201");
    assert_eq!(
        decode("vote", &record).map(<VoteRecord as Into<Vote>>::into),
        Ok(vote)
    );

    let record = encode(&LogIdRecord::from(log_id(300)));
    assert_eq!(hex(&record), "01000302ac02");

    let membership = Membership::new(vec![[MemberId(1)].into()], members(1));
    let payloads = [
        (EntryPayload::Blank, "010003020700"),
        (EntryPayload::Normal(intent(9)), "0100030207010009"),
        (
            EntryPayload::Membership(membership.clone()),
            "0100030207020101010101086c61796f75742d31086c61796f75742d31",
        ),
    ];
    for (payload, expected) in payloads {
        let log_id = log_id(7);
        let entry = Entry { log_id, payload };
        let record = encode(&EntryRecord::from(entry.clone()));
        assert_eq!(hex(&record), expected);
        let read: EntryRecord = decode("entry", &record).unwrap();
        assert_eq!(Entry::from(read), entry);
    }

    let meta = SnapshotMeta {
        last_log_id: Some(log_id(7)),
        last_membership: StoredMembership::new(Some(log_id(0)), membership),
        snapshot_id: "id".into(),
    };
    let record = encode(&MetaRecord::from(meta.clone()));
    let expected = "010001030207010302000101010101086c61796f75742d31086c61796f75742d31026964";
    assert_eq!(hex(&record), expected);
    let read: MetaRecord = decode("meta", &record).unwrap();
    assert_eq!(SnapshotMeta::from(read), meta);

    let member = Some(MemberId(2));
    let header = Header { version: 1, member };
    assert_eq!(
        hex(&header.encode()),
        "4d4c475201000102000000000000 00".replace(' ', "")
    );
    assert_eq!(Header::decode(&header.encode()), Ok(header));
    assert_eq!(hex(&encode_history(&History::default())), "01000000000000");
}

#[test]
fn a_history_survives_its_encoding() {
    let mut history = History::default();
    for epoch in 1..=5 {
        history.apply(&intent(epoch)).unwrap();
        let next = commit(&history, epoch * 10 - 10);
        history.apply(&next).unwrap();
        assert_eq!(
            decode_history(&encode_history(&history)),
            Ok(history.clone())
        );
    }
    // What no history can be is refused.
    history
        .starts
        .insert(Epoch(6), milonga_protocol::Position(0));
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
