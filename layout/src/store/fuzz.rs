//! The records, for fuzzing.

use milonga_protocol::Layout;

use super::records::{
    Header, decode_intent, decode_layout, decode_policy, encode_intent, encode_layout,
    encode_policy,
};
use crate::history::History;

pub(crate) fn records(bytes: &[u8]) -> Option<Layout> {
    if let Ok(header) = Header::decode(bytes)
        && header.version == super::STORE_VERSION
    {
        assert_eq!(header.encode(), bytes);
    }
    if let Ok(intent) = decode_intent(bytes) {
        // An older version is read, and written anew as the newest.
        assert_eq!(decode_intent(&encode_intent(intent)), Ok(intent));
    }
    if let Ok(policy) = decode_policy(bytes) {
        assert_eq!(decode_policy(&encode_policy(&policy)), Ok(policy));
    }
    let layout = decode_layout(bytes).ok()?;
    assert_eq!(decode_layout(&encode_layout(&layout)).as_ref(), Ok(&layout));
    let history = History {
        cluster: Some(layout.cluster),
        current: Some(layout.clone()),
        starts: layout.starts.iter().copied().collect(),
        ..History::default()
    };
    history.check().ok().map(|()| layout)
}

pub(crate) fn encoded(layout: &Layout) -> [Vec<u8>; 3] {
    let header = Header::new(Some(layout.cluster)).encode();
    [header, encode_layout(layout), encode_intent(layout.epoch)]
}
