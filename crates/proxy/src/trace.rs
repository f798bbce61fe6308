//! Trace context: which trace a request belongs to, and the headers that say so. Pure but for the dice it is handed.
//!
//! Source: W3C Trace Context; Cloud Trace `X-Cloud-Trace-Context: TRACE/SPAN;o=OPTIONS`.

use std::{cell::Cell, io::Write};

use http::{HeaderMap, HeaderValue};

use crate::header;

/// The span that the platform makes for a request. The trace is the caller's, if it named one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trace {
    pub id: u128,
    pub span: u64,
    pub sampled: bool,
}

impl Trace {
    /// Continues the trace in the headers or begins one that is not sampled.
    pub fn of(headers: &HeaderMap, dice: &Dice) -> Trace {
        let span = dice.roll() | 1;
        let parent = headers
            .get(&header::TRACEPARENT)
            .and_then(|v| parse_traceparent(v.as_bytes()))
            .or_else(|| headers.get(&header::X_CLOUD_TRACE_CONTEXT).and_then(|v| parse_cloud(v.as_bytes())));
        match parent {
            Some((id, sampled)) => Trace { id, span, sampled },
            None => Trace { id: (u128::from(dice.roll()) << 64) | u128::from(dice.roll() | 1), span, sampled: false },
        }
    }

    /// 32 digits.
    pub fn id_hex(self) -> Hex<32> {
        Hex::of(self.id)
    }

    /// 16 digits.
    pub fn span_hex(self) -> Hex<16> {
        Hex::of(u128::from(self.span))
    }

    /// `X-Cloud-Trace-Context` and `traceparent` for the container.
    pub fn write(self, headers: &mut HeaderMap) {
        let id = self.id_hex();
        let id = id.as_str();
        let sampled = if self.sampled { ";o=1" } else { "" };
        headers.insert(header::X_CLOUD_TRACE_CONTEXT.clone(), value(format_args!("{id}/{}{sampled}", self.span)));
        let flags = u8::from(self.sampled);
        headers.insert(
            header::TRACEPARENT.clone(),
            value(format_args!("00-{:032x}-{:016x}-{flags:02}", self.id, self.span)),
        );
    }

    /// `x-cloud-trace-context` of the answer.
    pub fn answer(self) -> HeaderValue {
        value(format_args!("{};o={}", self.id_hex().as_str(), u8::from(self.sampled)))
    }
}

/// A number in lower-case hexadecimal with leading zeros.
pub struct Hex<const DIGITS: usize>([u8; DIGITS]);

impl<const DIGITS: usize> Hex<DIGITS> {
    fn of(number: u128) -> Hex<DIGITS> {
        let mut digits = [b'0'; DIGITS];
        let mut rest = number;
        for digit in digits.iter_mut().rev() {
            *digit = b"0123456789abcdef"[usize::from(rest.to_le_bytes()[0] & 15)];
            rest >>= 4;
        }
        Hex(digits)
    }

    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).expect("hexadecimal digits are ASCII")
    }
}

fn value(text: std::fmt::Arguments<'_>) -> HeaderValue {
    let mut buffer = [0u8; 64];
    let mut rest = &mut buffer[..];
    rest.write_fmt(text).expect("a trace header is at most 58 bytes");
    let unused = rest.len();
    HeaderValue::from_bytes(&buffer[..64 - unused]).expect("digits and punctuation make a header value")
}

fn hex(text: &[u8]) -> Option<u128> {
    let text = std::str::from_utf8(text).ok()?;
    text.bytes().all(|b| b.is_ascii_hexdigit()).then(|| u128::from_str_radix(text, 16).ok())?
}

fn parse_traceparent(text: &[u8]) -> Option<(u128, bool)> {
    if text.len() < 55 || [2, 35, 52].iter().any(|dash| text[*dash] != b'-') || &text[..2] == b"ff" {
        return None;
    }
    let (id, span, flags) = (hex(&text[3..35])?, hex(&text[36..52])?, hex(&text[53..55])?);
    hex(&text[..2])?;
    (id != 0 && span != 0).then_some((id, flags & 1 == 1))
}

fn parse_cloud(text: &[u8]) -> Option<(u128, bool)> {
    let id = hex(text.get(..32)?)?;
    let rest = &text[32..];
    if id == 0 || !(rest.is_empty() || rest[0] == b'/' || rest[0] == b';') {
        return None;
    }
    Some((id, rest.ends_with(b";o=1")))
}

/// A small random generator (SplitMix64) for spans and traffic splits; not for secrets.
pub struct Dice(Cell<u64>);

impl Dice {
    pub fn new(seed: u64) -> Dice {
        Dice(Cell::new(seed))
    }

    /// Seeded by the kernel.
    pub fn seeded() -> Dice {
        let mut seed = [0; 8];
        let got = rustix::rand::getrandom(&mut seed[..], rustix::rand::GetRandomFlags::empty());
        Dice::new(if got == Ok(8) { u64::from_ne_bytes(seed) } else { u64::from(std::process::id()) })
    }

    pub fn roll(&self) -> u64 {
        let state = self.0.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.0.set(state);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number in 0..100.
    pub fn percent(&self) -> u8 {
        u8::try_from(self.roll() % 100).expect("a remainder of 100 is below 100")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(name: &'static str, text: &str) -> Trace {
        let mut headers = HeaderMap::new();
        headers.insert(name, text.parse().unwrap());
        Trace::of(&headers, &Dice::new(7))
    }

    #[test]
    fn a_callers_trace_is_kept_and_a_new_span_is_made() {
        let id = 0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c;
        let w3c = of("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
        assert_eq!((w3c.id, w3c.sampled), (id, true));
        assert_ne!(w3c.span, 0xb7ad_6b71_6920_3331);
        let cloud = of("x-cloud-trace-context", "0af7651916cd43dd8448eb211c80319c/123;o=1");
        assert_eq!((cloud.id, cloud.sampled), (id, true));
        let bare = of("x-cloud-trace-context", "0af7651916cd43dd8448eb211c80319c");
        assert_eq!((bare.id, bare.sampled), (id, false));
    }

    #[test]
    fn what_is_no_trace_begins_a_new_one() {
        for (name, text) in [
            ("traceparent", "00-00000000000000000000000000000000-b7ad6b7169203331-01"),
            ("traceparent", "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
            ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-+7ad6b7169203331-01"),
            ("traceparent", "zz"),
            ("x-cloud-trace-context", "0af7651916cd43dd8448eb211c80319cxx"),
            ("x-cloud-trace-context", "short"),
        ] {
            let trace = of(name, text);
            assert_ne!(trace.id, 0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c, "{text}");
            assert!(trace.id != 0 && !trace.sampled);
        }
    }

    #[test]
    fn both_headers_name_the_same_span() {
        let mut headers = HeaderMap::new();
        Trace { id: 0xabc, span: 255, sampled: true }.write(&mut headers);
        let zeros = "0".repeat(29);
        assert_eq!(headers["x-cloud-trace-context"], format!("{zeros}abc/255;o=1").as_str());
        assert_eq!(headers["traceparent"], format!("00-{zeros}abc-00000000000000ff-01").as_str());
    }
}
