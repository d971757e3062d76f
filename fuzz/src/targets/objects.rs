//! What entries say to objects.

use bytes::Bytes;
use milonga_objects::Key;

pub(crate) fn payload(data: &[u8]) {
    milonga_objects::fuzz::play(data);
}

/// Keys as maps and queues keep them.
pub(crate) fn keys(data: &[u8]) {
    key::<String>(data);
    key::<Bytes>(data);
    key::<(String, u32)>(data);
    key::<(Vec<u8>, bool, String)>(data);
    key::<((String, i64), (u128, i8))>(data);
    let _ = milonga_objects::show_key("(str,u32)", data);
}

fn key<K: Key>(data: &[u8]) {
    for last in [false, true] {
        let mut rest = data;
        if let Some(key) = K::decode(&mut rest, last) {
            let mut again = Vec::new();
            key.encode(&mut again, last);
            assert_eq!(
                again,
                data[..data.len() - rest.len()],
                "one key, one encoding"
            );
        }
    }
}
