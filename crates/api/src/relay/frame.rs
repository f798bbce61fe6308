//! Frames of the relay protocol v4 and its close codes. Pure; reads what a client sends, writes what a server sends.
//!
//! One frame is one binary WebSocket message: a 16-bit tag and a body, all integers big-endian.
//! Source: `relay.tunnel.cloudproxy.app`, as its stock client reads and writes it.

use model::limits::IAP_DATA_BYTES_MAX;

const CONNECT_SUCCESS_SID: u16 = 1;
const RECONNECT_SUCCESS_ACK: u16 = 2;
/// Once had a meaning; whoever still sends it means no harm.
const DEPRECATED: u16 = 3;
const DATA: u16 = 4;
const ACK: u16 = 7;

/// Why a tunnel ends: the code and the reason of a WebSocket close frame. The client shows both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Close {
    pub code: u16,
    pub reason: &'static str,
}

impl Close {
    pub const NORMAL: Close = Close::new(1000, "");
    /// RFC 6455, 7.4.1: a frame that the protocol forbids.
    pub const PROTOCOL: Close = Close::new(1002, "protocol error");
    pub const UNKNOWN: Close = Close::new(4000, "unknown error");
    pub const SID_UNKNOWN: Close = Close::new(4001, "session id unknown");
    pub const SID_IN_USE: Close = Close::new(4002, "session id in use");
    pub const NO_BACKEND: Close = Close::new(4003, "failed to connect to backend");
    /// The credential that the client came with has ended. The only code after which the client comes back, with a new
    /// one.
    pub const REAUTHENTICATE: Close = Close::new(4004, "reauthentication required");
    /// The count in a reconnect.
    pub const BAD_ACK: Close = Close::new(4005, "bad ack");
    /// The count in an ACK frame.
    pub const INVALID_ACK: Close = Close::new(4006, "invalid ack");
    pub const INVALID_OPCODE: Close = Close::new(4007, "invalid websocket opcode");
    pub const INVALID_TAG: Close = Close::new(4008, "invalid tag");
    pub const WRITE_FAILED: Close = Close::new(4009, "destination write failed");
    pub const READ_FAILED: Close = Close::new(4010, "destination read failed");
    pub const INVALID_DATA: Close = Close::new(4013, "invalid data");
    pub const NOT_AUTHORIZED: Close = Close::new(4033, "not authorized");
    pub const LOOKUP_FAILED: Close = Close::new(4047, "Failed to lookup instance");
    pub const LOOKUP_FAILED_ON_RECONNECT: Close = Close::new(4051, "Failed to lookup instance on reconnect");
    pub const REWIND_FAILED: Close = Close::new(4074, "rewind failed");

    const fn new(code: u16, reason: &'static str) -> Close {
        Close { code, reason }
    }
}

/// What a client says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FromClient<'a> {
    Data(&'a [u8]),
    /// Payload bytes that the client has received since the tunnel was opened.
    Ack(u64),
    Nothing,
}

/// Reads one message. What follows the body of a frame is discarded, as the client does.
///
/// # Errors
/// [`Close::INVALID_TAG`] for a tag that clients do not send; [`Close::INVALID_DATA`] for a body that is cut short or
/// longer than a frame may be.
pub fn read(message: &[u8]) -> Result<FromClient<'_>, Close> {
    let (tag, body) = message.split_first_chunk().ok_or(Close::INVALID_DATA)?;
    match u16::from_be_bytes(*tag) {
        DATA => {
            let (len, rest) = body.split_first_chunk().ok_or(Close::INVALID_DATA)?;
            let len = usize::try_from(u32::from_be_bytes(*len)).map_err(|_| Close::INVALID_DATA)?;
            let fits = len <= IAP_DATA_BYTES_MAX;
            fits.then(|| rest.get(..len)).flatten().map(FromClient::Data).ok_or(Close::INVALID_DATA)
        }
        ACK => {
            let (count, _) = body.split_first_chunk().ok_or(Close::INVALID_DATA)?;
            Ok(FromClient::Ack(u64::from_be_bytes(*count)))
        }
        DEPRECATED => Ok(FromClient::Nothing),
        _ => Err(Close::INVALID_TAG),
    }
}

/// The first message of a new tunnel.
pub fn connected(sid: &str) -> Vec<u8> {
    with_length(CONNECT_SUCCESS_SID, sid.as_bytes())
}

/// The first message after a reconnect: how much the server has received.
pub fn reconnected(received: u64) -> Vec<u8> {
    with_count(RECONNECT_SUCCESS_ACK, received)
}

/// `payload` is at most [`IAP_DATA_BYTES_MAX`] long.
pub fn data(payload: &[u8]) -> Vec<u8> {
    debug_assert!(payload.len() <= IAP_DATA_BYTES_MAX, "a frame of {} bytes", payload.len());
    with_length(DATA, payload)
}

pub fn ack(received: u64) -> Vec<u8> {
    with_count(ACK, received)
}

fn with_length(tag: u16, bytes: &[u8]) -> Vec<u8> {
    let len = u32::try_from(bytes.len()).expect("bounded by the limit of a frame");
    [&tag.to_be_bytes()[..], &len.to_be_bytes(), bytes].concat()
}

fn with_count(tag: u16, count: u64) -> Vec<u8> {
    [&tag.to_be_bytes()[..], &count.to_be_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_frame_is_read_to_the_letter_and_what_follows_it_is_discarded() {
        let long = [&[0, 4, 0, 0, 0x40, 0][..], &[7; IAP_DATA_BYTES_MAX]].concat();
        let too_long = [&[0, 4, 0, 0, 0x40, 1][..], &[7; IAP_DATA_BYTES_MAX + 1]].concat();
        for (message, read_as) in [
            (&[0, 4, 0, 0, 0, 2, b'h', b'i'][..], Ok(FromClient::Data(b"hi"))),
            (&[0, 4, 0, 0, 0, 1, b'h', b'i'], Ok(FromClient::Data(b"h"))),
            (&[0, 4, 0, 0, 0, 0], Ok(FromClient::Data(b""))),
            (&long, Ok(FromClient::Data(&[7; IAP_DATA_BYTES_MAX]))),
            (&too_long, Err(Close::INVALID_DATA)),
            (&[0, 4, 0, 0, 0, 3, b'h', b'i'], Err(Close::INVALID_DATA)),
            (&[0, 4, 0xff, 0xff, 0xff, 0xff, b'h'], Err(Close::INVALID_DATA)),
            (&[0, 4, 0, 0, 0], Err(Close::INVALID_DATA)),
            (&[0, 7, 0, 0, 0, 0, 0, 0, 1, 2], Ok(FromClient::Ack(258))),
            (&[0, 7, 0, 0, 0, 0, 0, 0, 1, 2, 9], Ok(FromClient::Ack(258))),
            (&[0, 7, 0, 0, 0, 0, 0, 0, 1], Err(Close::INVALID_DATA)),
            (&[0, 3, 1, 2], Ok(FromClient::Nothing)),
            (&[0, 1, 0, 0, 0, 1, b'x'], Err(Close::INVALID_TAG)),
            (&[0, 2, 0, 0, 0, 0, 0, 0, 0, 0], Err(Close::INVALID_TAG)),
            (&[4, 0, 0, 0, 0, 0], Err(Close::INVALID_TAG)),
            (&[0], Err(Close::INVALID_DATA)),
            (&[], Err(Close::INVALID_DATA)),
        ] {
            assert_eq!(read(message), read_as, "{:02x?}", &message[..message.len().min(12)]);
        }
    }

    #[test]
    fn what_the_server_says_is_written_to_the_letter() {
        assert_eq!(connected("s1"), [0, 1, 0, 0, 0, 2, b's', b'1']);
        assert_eq!(reconnected(258), [0, 2, 0, 0, 0, 0, 0, 0, 1, 2]);
        assert_eq!(data(b"hi"), [0, 4, 0, 0, 0, 2, b'h', b'i']);
        assert_eq!(ack(258), [0, 7, 0, 0, 0, 0, 0, 0, 1, 2]);
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_frame_or_a_refusal_and_never_more_data_than_came(
            message in prop::collection::vec(any::<u8>(), 0..64),
        ) {
            if let Ok(FromClient::Data(payload)) = read(&message) {
                prop_assert!(payload.len() + 6 <= message.len());
            }
        }

        #[test]
        fn every_payload_is_read_back(payload in prop::collection::vec(any::<u8>(), 0..2_000)) {
            let written = data(&payload);
            prop_assert_eq!(read(&written), Ok(FromClient::Data(&payload)));
        }
    }
}
