//! Keys for people.

use super::Key;
use super::encode::decode_bytes;

/// A key for people, by the name of its encoding; what the name does not explain is shown as text if it is text,
/// else in hexadecimal.
#[must_use]
pub fn show(encoding: &str, bytes: &[u8]) -> String {
    let mut rest = bytes;
    match show_part(encoding, &mut rest, true) {
        Some(shown) if rest.is_empty() => shown,
        _ => show_unknown(bytes),
    }
}

fn show_part(encoding: &str, bytes: &mut &[u8], last: bool) -> Option<String> {
    macro_rules! by_name {
        ($($type:ident)*) => {
            match encoding {
                "str" => String::decode(bytes, last).map(|key| format!("{key:?}")),
                "bytes" => decode_bytes(bytes, last).map(|key| show_unknown(&key)),
                $(stringify!($type) => $type::decode(bytes, last).map(|key| key.to_string()),)*
                _ => None,
            }
        };
    }
    let Some(inner) = encoding
        .strip_prefix('(')
        .and_then(|rest| rest.strip_suffix(')'))
    else {
        return by_name!(bool u8 u16 u32 u64 u128 i8 i16 i32 i64 i128);
    };
    let parts = split_outside_parentheses(inner);
    let mut shown = Vec::with_capacity(parts.len());
    for (index, part) in parts.iter().enumerate() {
        shown.push(show_part(part, bytes, last && index + 1 == parts.len())?);
    }
    Some(format!("({})", shown.join(", ")))
}

fn split_outside_parentheses(text: &str) -> Vec<&str> {
    let (mut parts, mut depth, mut start) = (Vec::new(), 0_u32, 0);
    for (at, character) in text.char_indices() {
        match character {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            ',' if depth == 0 => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

fn show_unknown(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.is_empty() && !text.chars().any(char::is_control) => format!("{text:?}"),
        _ => {
            let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            format!("0x{hex}")
        }
    }
}
