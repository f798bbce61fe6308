//! Random identifiers. Cryptographic randomness, because some of these end up in URLs and tokens.

use std::fmt::Write as _;

fn bytes<const N: usize>() -> [u8; N] {
    let mut out = [0; N];
    aws_lc_rs::rand::fill(&mut out).expect("the kernel's random source does not fail once the machine is up");
    out
}

/// 63 random bits with the highest decimal digits set, so that ids look like the cloud's: 18 or 19 digits.
pub fn resource_id() -> u64 {
    1_000_000_000_000_000_000 + u64::from_le_bytes(bytes()) % 8_000_000_000_000_000_000
}

/// `digits` lower-case hexadecimal digits.
pub fn hex(digits: usize) -> String {
    let mut out = String::with_capacity(digits + 32);
    while out.len() < digits {
        for b in bytes::<16>() {
            write!(out, "{b:02x}").expect("writing to a String does not fail");
        }
    }
    out.truncate(digits);
    out
}

/// `len` characters of `alphabet` (ASCII).
pub fn text(alphabet: &[u8], len: usize) -> String {
    (0..len)
        .map(|_| {
            let n = u32::from_le_bytes(bytes()) as usize % alphabet.len();
            char::from(alphabet[n])
        })
        .collect()
}

/// A random (version 4) UUID.
pub fn uuid() -> String {
    let mut b = bytes::<16>();
    b[6] = b[6] & 0x0f | 0x40;
    b[8] = b[8] & 0x3f | 0x80;
    let mut h = String::with_capacity(36);
    for (i, byte) in b.iter().enumerate() {
        if [4, 6, 8, 10].contains(&i) {
            h.push('-');
        }
        write!(h, "{byte:02x}").expect("writing to a String does not fail");
    }
    h
}

/// Any 32 bits.
pub fn number() -> u32 {
    u32::from_le_bytes(bytes())
}
