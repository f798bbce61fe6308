//! The server's side of a WebSocket, as far as a relay needs it. Pure: bytes go in, messages come out, and back.
//!
//! The rules of the relay are narrower than those of RFC 6455: only binary messages and close frames, in both
//! directions. A server frame is never masked, never fragmented, never a ping (docs/decisions/2026-11-28-own-websocket.md).

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use identity::base64::{Form, encode};
use model::limits::IAP_MESSAGE_BYTES_MAX;

use super::frame::Close;

const CONTINUATION: u8 = 0;
const BINARY: u8 = 2;
const CLOSE: u8 = 8;
pub const SUBPROTOCOL: &str = "relay.tunnel.cloudproxy.app";
/// What a server appends to a client's key to prove that it speaks the protocol. Source: RFC 6455, 1.3.
const GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// The headers that agree to a client's handshake; None when it is none, or not for this protocol.
/// Source: RFC 6455, 4.2.1.
pub fn handshake(method: &Method, headers: &HeaderMap) -> Option<HeaderMap> {
    let text = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let lists = |name, word: &str| text(name).split(',').any(|part| part.trim().eq_ignore_ascii_case(word));
    let asked = method == Method::GET
        && lists(header::UPGRADE, "websocket")
        && lists(header::CONNECTION, "upgrade")
        && text(header::SEC_WEBSOCKET_VERSION) == "13"
        && lists(header::SEC_WEBSOCKET_PROTOCOL, SUBPROTOCOL);
    let key = text(header::SEC_WEBSOCKET_KEY);
    let agreed = HeaderValue::from_str(&accept(key)).ok()?;
    (asked && !key.is_empty()).then(|| {
        HeaderMap::from_iter([
            (header::UPGRADE, HeaderValue::from_static("websocket")),
            (header::CONNECTION, HeaderValue::from_static("Upgrade")),
            (header::SEC_WEBSOCKET_ACCEPT, agreed),
            (header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(SUBPROTOCOL)),
        ])
    })
}

/// The value of `Sec-WebSocket-Accept`.
fn accept(key: &str) -> String {
    encode(Form::Standard, digest(&SHA1_FOR_LEGACY_USE_ONLY, format!("{key}{GUID}").as_bytes()).as_ref())
}

/// A whole message of the client's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    Binary(Vec<u8>),
    /// The code, when the client gave one.
    Close(Option<u16>),
}

/// Takes the client's bytes as they come.
#[derive(Debug, Default)]
pub struct Reader {
    /// Bytes that are no whole frame yet. Whoever feeds it takes the messages out before feeding more.
    pub bytes: Vec<u8>,
    /// The beginning of a message that came in fragments.
    begun: Option<Vec<u8>>,
}

/// The head of one frame.
struct Head {
    last: bool,
    opcode: u8,
    mask: [u8; 4],
    /// Where the payload begins, and how long it is.
    at: usize,
    len: usize,
}

impl Reader {
    /// The next whole message, if it is there.
    ///
    /// # Errors
    /// What the protocol forbids; nothing more can be read then.
    pub fn message(&mut self) -> Result<Option<Message>, Close> {
        loop {
            let Some(head) = head(&self.bytes)? else { return Ok(None) };
            let end = head.at + head.len;
            if self.bytes.len() < end {
                return Ok(None);
            }
            let mut payload = self.bytes[head.at..end].to_vec();
            payload.iter_mut().zip(head.mask.iter().cycle()).for_each(|(byte, mask)| *byte ^= mask);
            self.bytes.drain(..end);
            match (head.opcode, self.begun.take()) {
                (CLOSE, _) => {
                    return Ok(Some(Message::Close(payload.first_chunk().map(|code| u16::from_be_bytes(*code)))));
                }
                (BINARY, None) if head.last => return Ok(Some(Message::Binary(payload))),
                (BINARY, None) => self.begun = Some(payload),
                (CONTINUATION, Some(mut begun)) => {
                    begun.append(&mut payload);
                    if begun.len() > IAP_MESSAGE_BYTES_MAX {
                        return Err(Close::INVALID_DATA);
                    }
                    if head.last {
                        return Ok(Some(Message::Binary(begun)));
                    }
                    self.begun = Some(begun);
                }
                // A fragment of nothing, or a message within another.
                _ => return Err(Close::PROTOCOL),
            }
        }
    }
}

/// None when the head has not come whole.
fn head(bytes: &[u8]) -> Result<Option<Head>, Close> {
    let [first, second, rest @ ..] = bytes else { return Ok(None) };
    let (last, reserved, opcode) = (first & 0x80 != 0, first & 0x70, first & 0x0f);
    if !matches!(opcode, CONTINUATION | BINARY | CLOSE) {
        return Err(Close::INVALID_OPCODE);
    }
    // Clients always mask, extensions were not agreed on, a close frame is short and whole.
    if second & 0x80 == 0 || reserved != 0 || opcode == CLOSE && (!last || second & 0x7f > 125) {
        return Err(Close::PROTOCOL);
    }
    let (len, rest) = match (second & 0x7f, rest) {
        (126, [a, b, rest @ ..]) => (u64::from(u16::from_be_bytes([*a, *b])), rest),
        (127, [a, b, c, d, e, f, g, h, rest @ ..]) => (u64::from_be_bytes([*a, *b, *c, *d, *e, *f, *g, *h]), rest),
        (126 | 127, _) => return Ok(None),
        (short, rest) => (u64::from(short), rest),
    };
    let len = usize::try_from(len).ok().filter(|len| *len <= IAP_MESSAGE_BYTES_MAX).ok_or(Close::INVALID_DATA)?;
    let Some(mask) = rest.first_chunk() else { return Ok(None) };
    Ok(Some(Head { last, opcode, mask: *mask, at: bytes.len() - rest.len() + 4, len }))
}

/// Appends a binary message.
pub fn write_binary(payload: &[u8], out: &mut Vec<u8>) {
    write(BINARY, payload, out);
}

pub fn write_close(close: Close, out: &mut Vec<u8>) {
    write(CLOSE, &[&close.code.to_be_bytes()[..], close.reason.as_bytes()].concat(), out);
}

fn write(opcode: u8, payload: &[u8], out: &mut Vec<u8>) {
    out.push(0x80 | opcode);
    match (u8::try_from(payload.len()), u16::try_from(payload.len())) {
        (Ok(len @ ..=125), _) => out.push(len),
        (_, Ok(len)) => {
            out.push(126);
            out.extend(len.to_be_bytes());
        }
        (_, Err(_)) => {
            out.push(127);
            out.extend((payload.len() as u64).to_be_bytes());
        }
    }
    out.extend_from_slice(payload);
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A frame as a client writes it.
    pub(in crate::relay) fn masked(first: u8, payload: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        write(first & 0x0f, payload, &mut out);
        out[0] = first;
        out[1] |= 0x80;
        let at = out.len() - payload.len();
        let mask = [1, 2, 3, 4];
        out.splice(at..at, mask);
        out[at + 4..].iter_mut().zip(mask.iter().cycle()).for_each(|(byte, mask)| *byte ^= mask);
        out
    }

    fn read(bytes: &[u8]) -> Result<Vec<Message>, Close> {
        let mut reader = Reader { bytes: bytes.to_vec(), begun: None };
        let mut all = Vec::new();
        while let Some(message) = reader.message()? {
            all.push(message);
        }
        Ok(all)
    }

    #[test]
    fn the_key_of_the_rfc_is_answered_as_in_the_rfc() {
        assert_eq!(accept("dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[test]
    fn messages_are_read_whole_or_in_fragments_and_anything_else_is_refused() {
        let binary = |text: &[u8]| Message::Binary(text.to_vec());
        for (bytes, read_as) in [
            (masked(0x82, b"hi"), Ok(vec![binary(b"hi")])),
            (masked(0x82, &[7; 126]), Ok(vec![binary(&[7; 126])])),
            (masked(0x82, &[7; 20_000]), Ok(vec![binary(&[7; 20_000])])),
            ([masked(0x02, b"h"), masked(0x00, b"e"), masked(0x80, b"y")].concat(), Ok(vec![binary(b"hey")])),
            ([masked(0x82, b"a"), masked(0x82, b"b")].concat(), Ok(vec![binary(b"a"), binary(b"b")])),
            (masked(0x88, &[0x03, 0xe8]), Ok(vec![Message::Close(Some(1000))])),
            (masked(0x88, b""), Ok(vec![Message::Close(None)])),
            (masked(0x81, b"text"), Err(Close::INVALID_OPCODE)),
            (masked(0x89, b"ping"), Err(Close::INVALID_OPCODE)),
            (masked(0x8a, b"pong"), Err(Close::INVALID_OPCODE)),
            (masked(0x83, b""), Err(Close::INVALID_OPCODE)),
            (masked(0xc2, b"compressed"), Err(Close::PROTOCOL)),
            (masked(0x80, b"of nothing"), Err(Close::PROTOCOL)),
            ([masked(0x02, b"h"), masked(0x82, b"i")].concat(), Err(Close::PROTOCOL)),
            (masked(0x08, b""), Err(Close::PROTOCOL)),
            (masked(0x88, &[0; 126]), Err(Close::PROTOCOL)),
            (vec![0x82, 2, b'h', b'i'], Err(Close::PROTOCOL)),
            (masked(0x82, &vec![0; IAP_MESSAGE_BYTES_MAX + 1]), Err(Close::INVALID_DATA)),
            (vec![0x82, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff], Err(Close::INVALID_DATA)),
            ([masked(0x02, &[0; IAP_MESSAGE_BYTES_MAX]), masked(0x80, b"x")].concat(), Err(Close::INVALID_DATA)),
        ] {
            assert_eq!(read(&bytes), read_as, "{:02x?}", &bytes[..bytes.len().min(16)]);
        }
    }

    #[test]
    fn a_message_is_read_wherever_its_bytes_are_cut() {
        let bytes = [masked(0x82, &[7; 300]), masked(0x88, &[0x03, 0xe8])].concat();
        let wanted = vec![Message::Binary(vec![7; 300]), Message::Close(Some(1000))];
        for cut in 0..bytes.len() {
            let mut reader = Reader::default();
            let mut got = Vec::new();
            for part in [&bytes[..cut], &bytes[cut..]] {
                reader.bytes.extend_from_slice(part);
                while let Some(message) = reader.message().unwrap() {
                    got.push(message);
                }
            }
            assert_eq!(got, wanted, "cut at {cut}");
        }
    }

    #[test]
    fn a_server_frame_is_whole_and_unmasked() {
        for (len, head) in [
            (2, vec![0x82, 2]),
            (126, vec![0x82, 126, 0, 126]),
            (70_000, vec![0x82, 127, 0, 0, 0, 0, 0, 1, 0x11, 0x70]),
        ] {
            let mut out = Vec::new();
            write_binary(&vec![7; len], &mut out);
            assert_eq!((&out[..head.len()], out.len()), (&head[..], head.len() + len));
        }
        let mut out = Vec::new();
        write_close(Close::NO_BACKEND, &mut out);
        assert_eq!(out, [&[0x88, 30, 0x0f, 0xa3][..], b"failed to connect to backend"].concat());
    }

    proptest! {
        #[test]
        fn any_bytes_end_in_messages_or_a_refusal_within_bounded_memory(
            bytes in prop::collection::vec(any::<u8>(), 0..256),
        ) {
            let messages = read(&bytes).unwrap_or_default();
            let read: usize = messages.iter().map(|m| if let Message::Binary(b) = m { b.len() } else { 0 }).sum();
            prop_assert!(read <= bytes.len());
        }
    }
}
