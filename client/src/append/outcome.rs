//! What the writer of one entry does next: pure decisions, rules 7, 13 and 14.

use milonga_protocol::messages::WriteAnswer;
use milonga_protocol::plants::{self, Plant};
use milonga_protocol::{EntryId, Epoch, Layout, Position, ReadAnswer};

/// What one answer of one unit means for one entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Durable here: on to the next replica; behind the tail it is done.
    Forward,
    /// Taken for done whatever the other replicas say (only a planted bug does that).
    Done,
    /// Surely failed: a new token and a new entry id.
    Retry,
    /// Not decided: the same write again, to the same unit, a little later. Never a fill (rule 13).
    SendAgain,
    /// Too far above what is settled: settle below, then the same write again (rule 5).
    SettleBelow,
    /// The unit contradicts itself or the head: ask the log what the position holds.
    Ask,
    /// Nothing was written, and the caller has to do something about it.
    Full,
    /// Nothing was written, and the unit does not take it.
    Refused,
    /// The evidence is gone (rule 14).
    Unknown,
}

/// Judges the answer to a write in the epoch of its token. `exposed`: an earlier send of the same write may have
/// reached the head.
pub(super) fn judge(answer: WriteAnswer, at_head: bool, exposed: bool) -> Next {
    match answer {
        WriteAnswer::Durable => Next::Forward,
        WriteAnswer::Occupied if plants::active(Plant::OccupiedIsSuccess) => Next::Done,
        // The head arbitrates: it holds another value, so this one never will be there.
        WriteAnswer::Occupied if at_head => Next::Retry,
        WriteAnswer::Occupied => Next::Ask,
        WriteAnswer::TooFar => Next::SettleBelow,
        WriteAnswer::Full if at_head && !exposed => Next::Full,
        // Only positions that are settled are trimmed, and this one was not settled by us.
        WriteAnswer::Trimmed if at_head && !exposed => Next::Retry,
        WriteAnswer::Trimmed => Next::Unknown,
        WriteAnswer::Refused if at_head && !exposed => Next::Refused,
        WriteAnswer::Refused => Next::Ask,
        WriteAnswer::Full | WriteAnswer::Accepted | WriteAnswer::NotMine => Next::SendAgain,
    }
}

/// What becomes of an unfinished write when its token's epoch is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AfterEpoch {
    /// Void, or never sent: failed, surely.
    Failed,
    /// Closed: what the position holds decides.
    Ask,
    /// The epoch is too long ago to be listed.
    Unknown,
}

/// Rule 13 for a later epoch.
pub(super) fn after_epoch(
    layout: &Layout,
    token: Epoch,
    position: Position,
    exposed: bool,
) -> AfterEpoch {
    if !exposed {
        return AfterEpoch::Failed;
    }
    match layout.start_after(token) {
        Some(start) if position >= start => AfterEpoch::Failed,
        Some(start) if position.next() == start && plants::active(Plant::VoidOffByOne) => {
            AfterEpoch::Failed
        }
        Some(_) => AfterEpoch::Ask,
        None => AfterEpoch::Unknown,
    }
}

/// What the settled value of a position says about the write of `id` there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// It won.
    Own,
    /// Something else won: failed.
    Other,
    /// Nobody can tell any more.
    Gone,
    /// Not settled yet.
    Undecided,
}

/// Compares what the position holds with the write of `id`.
pub(super) fn found(answer: &ReadAnswer, id: EntryId) -> Found {
    match answer {
        ReadAnswer::Data(entry) if entry.id == id => Found::Own,
        ReadAnswer::Data(_) | ReadAnswer::Junk => Found::Other,
        ReadAnswer::Trimmed | ReadAnswer::Lost => Found::Gone,
        ReadAnswer::Unwritten => Found::Undecided,
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use milonga_protocol::layout::SequencerRef;
    use milonga_protocol::{ClusterId, Entry, Incarnation, Limits, Redundancy, WriterId};

    use super::*;

    const ALL: [WriteAnswer; 8] = [
        WriteAnswer::Accepted,
        WriteAnswer::Durable,
        WriteAnswer::Occupied,
        WriteAnswer::Full,
        WriteAnswer::TooFar,
        WriteAnswer::NotMine,
        WriteAnswer::Trimmed,
        WriteAnswer::Refused,
    ];

    #[test]
    fn only_durable_goes_on_down_the_chain() {
        for answer in ALL {
            for (head, exposed) in [(true, true), (true, false), (false, true)] {
                let next = judge(answer, head, exposed);
                assert_eq!(next == Next::Forward, answer == WriteAnswer::Durable);
                assert_ne!(next, Next::Done);
            }
        }
    }

    #[test]
    fn behind_the_head_nothing_is_failed_on_one_units_word() {
        for answer in ALL {
            let next = judge(answer, false, true);
            assert!(
                !matches!(next, Next::Retry | Next::Full | Next::Refused),
                "{answer:?} leads to {next:?}"
            );
        }
    }

    #[test]
    fn a_write_that_may_have_arrived_is_failed_only_by_the_heads_verdict() {
        for answer in ALL {
            let failed = matches!(
                judge(answer, true, true),
                Next::Retry | Next::Full | Next::Refused
            );
            assert_eq!(failed, answer == WriteAnswer::Occupied, "{answer:?}");
        }
        assert_eq!(judge(WriteAnswer::Trimmed, true, false), Next::Retry);
        assert_eq!(judge(WriteAnswer::Trimmed, true, true), Next::Unknown);
        assert_eq!(judge(WriteAnswer::Full, true, false), Next::Full);
    }

    fn layout() -> Layout {
        Layout {
            cluster: ClusterId(1),
            epoch: Epoch(4),
            start: Position(30),
            starts: vec![(Epoch(3), Position(20)), (Epoch(4), Position(30))],
            segments: Vec::new(),
            units: Vec::new(),
            redundancy: Redundancy::of(1),
            sequencer: SequencerRef {
                name: "s".into(),
                incarnation: Incarnation(1),
            },
            limits: Limits::default(),
        }
    }

    #[test]
    fn the_start_of_the_next_epoch_decides_what_is_void() {
        let after =
            |token, position| after_epoch(&layout(), Epoch(token), Position(position), true);
        assert_eq!(after(3, 30), AfterEpoch::Failed);
        assert_eq!(after(3, 29), AfterEpoch::Ask);
        assert_eq!(after(2, 25), AfterEpoch::Failed, "void since epoch 3");
        assert_eq!(after(2, 19), AfterEpoch::Ask);
        assert_eq!(after(1, 5), AfterEpoch::Unknown, "epoch 2 is not listed");
        let never_sent = after_epoch(&layout(), Epoch(1), Position(5), false);
        assert_eq!(never_sent, AfterEpoch::Failed);
    }

    #[test]
    fn only_the_own_entry_id_is_success() {
        let id = |sequence| EntryId {
            writer: WriterId(7),
            sequence,
        };
        let data = |sequence| {
            ReadAnswer::Data(Entry {
                id: id(sequence),
                links: Vec::new(),
                payload: Bytes::new(),
            })
        };
        assert_eq!(found(&data(1), id(1)), Found::Own);
        assert_eq!(found(&data(2), id(1)), Found::Other);
        assert_eq!(found(&ReadAnswer::Junk, id(1)), Found::Other);
        assert_eq!(found(&ReadAnswer::Trimmed, id(1)), Found::Gone);
        assert_eq!(found(&ReadAnswer::Lost, id(1)), Found::Gone);
        assert_eq!(found(&ReadAnswer::Unwritten, id(1)), Found::Undecided);
    }
}
