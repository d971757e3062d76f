//! Certificates, from files and from peers.

use milonga_transport::Tls;

const CA: &str = include_str!("../../certificates/ca.pem");
const CERT: &str = include_str!("../../certificates/unit-1a.pem");
const KEY: &str = include_str!("../../certificates/unit-1a.key");

/// The first byte says in whose place the rest is read: authority, certificate, key; as PEM, or wrapped in it.
pub(crate) fn certificates(data: &[u8]) {
    let Some((place, data)) = data.split_first() else {
        return;
    };
    let text = match place / 3 % 2 {
        0 => String::from_utf8_lossy(data).into_owned(),
        _ if place % 3 == 2 => pem("PRIVATE KEY", data),
        _ => pem("CERTIFICATE", data),
    };
    let tls = match place % 3 {
        0 => Tls::from_pem(&text, CERT, KEY),
        1 => Tls::from_pem(CA, &text, KEY),
        _ => Tls::from_pem(CA, CERT, &text),
    };
    if let Ok(tls) = tls {
        assert_eq!(tls.name().as_str(), "unit-1a", "only that one is signed");
    }
}

const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

fn pem(label: &str, der: &[u8]) -> String {
    let mut text = format!("-----BEGIN {label}-----\n");
    for (nth, three) in der.chunks(3).enumerate() {
        let byte = |at: usize| u32::from(three.get(at).copied().unwrap_or_default());
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for digit in 0..4 {
            let six = (bits >> (18 - 6 * digit) & 63) as usize;
            let there = digit <= three.len();
            text.push(if there { char::from(DIGITS[six]) } else { '=' });
        }
        if nth % 16 == 15 {
            text.push('\n');
        }
    }
    text.push_str(&format!("\n-----END {label}-----\n"));
    text
}

/// What a PEM file of one section holds.
pub(crate) fn der(pem: &[u8]) -> Vec<u8> {
    let text = String::from_utf8_lossy(pem);
    let lines = text.lines().filter(|line| !line.starts_with('-'));
    let digits = lines.flat_map(str::bytes);
    let values = digits.filter_map(|byte| DIGITS.iter().position(|digit| *digit == byte));
    let (mut out, mut bits, mut count) = (Vec::new(), 0_usize, 0);
    for six in values {
        bits = (bits << 6 | six) & 0xffff;
        count += 6;
        if count >= 8 {
            count -= 8;
            out.extend(u8::try_from(bits >> count & 0xff));
        }
    }
    out
}
