//! What answers of units say of positions.

use bytes::Bytes;
use milonga_protocol::frame::Message;
use milonga_protocol::messages::{
    Body, Request, Response, UnitReadAnswer, UnitRequest, UnitResponse, WireValue, WriteAnswer,
};
use milonga_protocol::{EncodedEntry, Position};

/// What a unit says that a position holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    /// An entry.
    Data(EncodedEntry),
    /// Junk.
    Junk,
    /// Nothing.
    Unwritten,
    /// It was trimmed.
    Trimmed,
    /// It cannot be given.
    Lost,
    /// Something that is not durable yet.
    Pending,
    /// This unit does not hold that position.
    NotMine,
}

impl Said {
    /// Whether it is a value: data or junk.
    #[must_use]
    pub const fn is_value(&self) -> bool {
        matches!(self, Self::Data(_) | Self::Junk)
    }

    /// Whether it is the same write: junk, or an entry of the same id.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Data(one), Self::Data(other)) => one.id() == other.id(),
            (one, other) => one == other,
        }
    }
}

/// On what occasion it says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// It was read.
    Read,
    /// It was the winner of a fill.
    Won,
    /// It was listed with a stream's entries.
    Listed,
    /// It was written just now, and is durable.
    Written,
}

/// One position in an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    /// Which.
    pub position: Position,
    /// What it holds.
    pub said: Said,
    /// On what occasion.
    pub how: How,
}

/// All that an answer to `request`, which was sent with the bytes `sent`, says of positions.
pub(super) fn shown(
    request: &Request,
    sent: Bytes,
    response: &Response,
    body: Bytes,
) -> Vec<Shown> {
    let (Request::Unit(request), Response::Unit(response)) = (request, response) else {
        return Vec::new();
    };
    match (request, response) {
        (UnitRequest::Read { positions, .. }, UnitResponse::Values { answers, .. }) => {
            let mut body = body_of(body);
            let said = answers.iter().map(|answer| said(*answer, &mut body));
            show(positions.iter().copied().zip(said), How::Read)
        }
        (UnitRequest::Fill { .. }, UnitResponse::Filled { winners, .. }) => {
            let mut body = body_of(body);
            let won = winners.iter();
            show(
                won.map(|(p, value)| (*p, valued(*value, &mut body))),
                How::Won,
            )
        }
        (UnitRequest::ReadStreams { .. }, UnitResponse::Entries { entries, .. }) => {
            let mut body = body_of(body);
            let listed = entries.iter().map(|(position, len)| match len {
                0 => (*position, Said::Lost),
                len => (*position, data(*len, &mut body)),
            });
            show(listed, How::Listed)
        }
        (
            UnitRequest::Write { items, .. } | UnitRequest::Repair { items, .. },
            UnitResponse::Written { answers, .. },
        ) => {
            let mut body = body_of(sent);
            let values = items
                .iter()
                .map(|(p, value)| (*p, valued(*value, &mut body)));
            let durable = values
                .zip(answers)
                .filter(|(_, answer)| **answer == WriteAnswer::Durable);
            show(durable.map(|(value, _)| value), How::Written)
        }
        _ => Vec::new(),
    }
}

fn show(values: impl Iterator<Item = (Position, Said)>, how: How) -> Vec<Shown> {
    let shown = values.map(|(position, said)| Shown {
        position,
        said,
        how,
    });
    shown.collect()
}

fn body_of(body: Bytes) -> Body {
    Body::of(&Message {
        header: Bytes::new(),
        body,
    })
}

fn data(len: u32, body: &mut Body) -> Said {
    let entry = body.take(len).and_then(|b| EncodedEntry::check(b).ok());
    // Damaged bytes are as good as none: so do clients take them.
    entry.map_or(Said::Lost, Said::Data)
}

fn valued(value: WireValue, body: &mut Body) -> Said {
    match value {
        WireValue::Data { len } => data(len, body),
        WireValue::Junk => Said::Junk,
    }
}

fn said(answer: UnitReadAnswer, body: &mut Body) -> Said {
    match answer {
        UnitReadAnswer::Data { len } => data(len, body),
        UnitReadAnswer::Junk => Said::Junk,
        UnitReadAnswer::Unwritten => Said::Unwritten,
        UnitReadAnswer::Trimmed => Said::Trimmed,
        UnitReadAnswer::Lost => Said::Lost,
        UnitReadAnswer::Pending => Said::Pending,
        UnitReadAnswer::NotMine => Said::NotMine,
    }
}
