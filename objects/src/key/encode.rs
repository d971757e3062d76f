//! The encodings of the types that may be keys.

use std::borrow::Cow;
use std::sync::Arc;

use bytes::Bytes;

use super::{EncodeKey, Key};

const ESCAPE: u8 = 0xff;

/// Bytes inside a longer key: a zero becomes `00 ff`, and the end is `00 00`.
fn encode_bytes(bytes: &[u8], out: &mut Vec<u8>, last: bool) {
    if last {
        out.extend_from_slice(bytes);
        return;
    }
    for &byte in bytes {
        out.push(byte);
        if byte == 0 {
            out.push(ESCAPE);
        }
    }
    out.extend_from_slice(&[0, 0]);
}

pub(super) fn decode_bytes<'a>(bytes: &mut &'a [u8], last: bool) -> Option<Cow<'a, [u8]>> {
    if last {
        return Some(Cow::Borrowed(std::mem::take(bytes)));
    }
    let mut out = Vec::new();
    loop {
        let zero = bytes.iter().position(|byte| *byte == 0)?;
        out.extend_from_slice(&bytes[..zero]);
        let mark = *bytes.get(zero + 1)?;
        *bytes = &bytes[zero + 2..];
        match mark {
            0 => return Some(Cow::Owned(out)),
            ESCAPE => out.push(0),
            _ => return None,
        }
    }
}

macro_rules! bytes_like {
    ($type:ty, $name:literal, |$key:ident| $as_bytes:expr) => {
        impl EncodeKey for $type {
            fn encode(&self, out: &mut Vec<u8>, last: bool) {
                let $key = self;
                encode_bytes($as_bytes, out, last);
            }

            fn with_bytes<R>(&self, with: impl FnOnce(&[u8]) -> R) -> R {
                let $key = self;
                with($as_bytes)
            }
        }
    };
    ($type:ty, $name:literal, |$key:ident| $as_bytes:expr, |$cow:ident| $from_bytes:expr) => {
        bytes_like!($type, $name, |$key| $as_bytes);

        impl Key for $type {
            fn encoding() -> Cow<'static, str> {
                Cow::Borrowed($name)
            }

            fn decode(bytes: &mut &[u8], last: bool) -> Option<Self> {
                let $cow = decode_bytes(bytes, last)?;
                $from_bytes
            }
        }
    };
}

bytes_like!(str, "str", |key| key.as_bytes());

bytes_like!([u8], "bytes", |key| key);

bytes_like!(String, "str", |key| key.as_bytes(), |found| {
    String::from_utf8(found.into_owned()).ok()
});

bytes_like!(Arc<str>, "str", |key| key.as_bytes(), |found| {
    std::str::from_utf8(&found).ok().map(Self::from)
});

bytes_like!(Vec<u8>, "bytes", |key| key, |found| Some(
    found.into_owned()
));

bytes_like!(Bytes, "bytes", |key| key, |found| Some(Self::from(
    found.into_owned()
)));

fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (head, tail) = bytes.split_first_chunk::<N>()?;
    *bytes = tail;
    Some(*head)
}

macro_rules! integer {
    ($($type:ty, $unsigned:ty, $flip:expr;)*) => { $(
        impl EncodeKey for $type {
            fn encode(&self, out: &mut Vec<u8>, _: bool) {
                self.with_bytes(|bytes| out.extend_from_slice(bytes));
            }

            fn with_bytes<R>(&self, with: impl FnOnce(&[u8]) -> R) -> R {
                with(&(<$unsigned>::from_ne_bytes(self.to_ne_bytes()) ^ $flip).to_be_bytes())
            }
        }

        impl Key for $type {
            fn encoding() -> Cow<'static, str> {
                Cow::Borrowed(stringify!($type))
            }

            fn decode(bytes: &mut &[u8], _: bool) -> Option<Self> {
                let flipped = <$unsigned>::from_be_bytes(take(bytes)?) ^ $flip;
                Some(Self::from_ne_bytes(flipped.to_ne_bytes()))
            }
        }
    )* };
}

integer! {
    u8, u8, 0;
    u16, u16, 0;
    u32, u32, 0;
    u64, u64, 0;
    u128, u128, 0;
    i8, u8, 1 << 7;
    i16, u16, 1 << 15;
    i32, u32, 1 << 31;
    i64, u64, 1 << 63;
    i128, u128, 1 << 127;
}

impl EncodeKey for bool {
    fn encode(&self, out: &mut Vec<u8>, _: bool) {
        out.push(u8::from(*self));
    }
}

impl Key for bool {
    fn encoding() -> Cow<'static, str> {
        Cow::Borrowed("bool")
    }

    fn decode(bytes: &mut &[u8], _: bool) -> Option<Self> {
        match take::<1>(bytes)? {
            [0] => Some(false),
            [1] => Some(true),
            _ => None,
        }
    }
}

macro_rules! tuple {
    ($($first:ident $index:tt),+ ; $last:ident $last_index:tt) => {
        impl<$($first: EncodeKey,)+ $last: EncodeKey> EncodeKey for ($($first,)+ $last) {
            fn encode(&self, out: &mut Vec<u8>, last: bool) {
                $(self.$index.encode(out, false);)+
                self.$last_index.encode(out, last);
            }
        }

        impl<$($first: Key,)+ $last: Key> Key for ($($first,)+ $last) {
            fn encoding() -> Cow<'static, str> {
                let parts = [$($first::encoding(),)+ $last::encoding()];
                Cow::Owned(format!("({})", parts.join(",")))
            }

            fn decode(bytes: &mut &[u8], last: bool) -> Option<Self> {
                Some(($($first::decode(bytes, false)?,)+ $last::decode(bytes, last)?))
            }
        }
    };
}

tuple!(A 0; B 1);

tuple!(A 0, B 1; C 2);

#[cfg(test)]
mod tests {
    use std::fmt;

    use super::*;
    use crate::key::{KeyBytes, show};
    use proptest::prelude::*;

    fn check<K: Key + Ord + fmt::Debug>(a: &K, b: &K) {
        let (x, y) = (KeyBytes::of(a), KeyBytes::of(b));
        assert_eq!(a.cmp(b), x.cmp(&y), "{a:?} {b:?}");
        assert_eq!(K::from_key_bytes(x.as_slice()).as_ref(), Some(a));
        let mut inner = Vec::new();
        a.encode(&mut inner, false);
        b.encode(&mut inner, true);
        let mut rest = inner.as_slice();
        assert_eq!(K::decode(&mut rest, false).as_ref(), Some(a));
        assert_eq!(K::decode(&mut rest, true).as_ref(), Some(b));
        assert!(rest.is_empty());
    }

    proptest! {
        #[test]
        fn encodings_keep_order_and_value(
            integers in any::<(i64, i64)>(), wide in any::<(u128, i128, u128, i128)>(), small in any::<(i8, u16, bool)>(),
            text in ("[a\0\u{ff}]{0,4}", "[a\0\u{ff}]{0,4}", "[ab\0]{0,3}", "[ab\0]{0,3}"),
            bytes in any::<(Vec<u8>, Vec<u8>)>(),
        ) {
            check(&integers.0, &integers.1);
            check(&(wide.0, wide.1), &(wide.2, wide.3));
            check(&small, &(small.0.wrapping_add(1), small.1 ^ 7, !small.2));
            check(&text.0, &text.1);
            check(&(text.0.clone(), text.2.clone()), &(text.1.clone(), text.3.clone()));
            check(&(text.0.clone(), integers.0, text.2.clone()), &(text.1.clone(), integers.1, text.3));
            check(&((text.0, integers.0), text.2), &((text.1, integers.1), String::new()));
            check(&bytes.0, &bytes.1);
        }
    }

    #[test]
    fn borrowed_forms_encode_alike() {
        assert_eq!(KeyBytes::of("ab"), KeyBytes::of(&String::from("ab")));
        assert_eq!(KeyBytes::of(&[1_u8, 0][..]), KeyBytes::of(&vec![1_u8, 0]));
    }

    #[test]
    fn keys_are_shown_by_the_name_of_their_encoding() {
        let key = (String::from("a,b"), (7_i64, true));
        let encoding = <(String, (i64, bool))>::encoding();
        assert_eq!(encoding, "(str,(i64,bool))");
        assert_eq!(
            show(&encoding, KeyBytes::of(&key).as_slice()),
            r#"("a,b", (7, true))"#
        );
        assert_eq!(show("nobody knows", b"text"), "\"text\"");
        assert_eq!(show("u64", b"text"), "\"text\"");
        assert_eq!(show("", &[1, 255]), "0x01ff");
    }
}
