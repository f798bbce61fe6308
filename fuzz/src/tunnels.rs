//! Tunnels: WebSocket frames, the relay's messages in them, and what a session makes of both.

use api::relay::{
    frame::{self, Close, FromClient},
    session::{Say, Session},
    websocket::{self, Message, Reader},
};
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use model::limits::{IAP_INBOX_BYTES_MAX, IAP_MESSAGE_BYTES_MAX, IAP_UNACKED_BYTES_MAX};

/// All messages of a client's bytes, when they come in pieces of this length.
fn read(bytes: &[u8], piece: usize) -> (Vec<Message>, Option<Close>) {
    let (mut reader, mut all) = (Reader::default(), Vec::new());
    for piece in bytes.chunks(piece.max(1)) {
        reader.bytes.extend_from_slice(piece);
        loop {
            match reader.message() {
                Ok(Some(message)) => all.push(message),
                Ok(None) => break,
                Err(close) => return (all, Some(close)),
            }
        }
    }
    (all, None)
}

/// A client's bytes: however they are cut into packets they mean the same, and a session that hears them keeps within
/// its bounds.
pub(crate) fn tunnel(input: &[u8]) {
    let Some((piece, bytes)) = input.split_first() else { return };
    let whole = read(bytes, bytes.len());
    assert_eq!(read(bytes, usize::from(*piece)), whole, "other packets, other messages");
    let mut session = Session::open("s".into());
    session.vm_says(&[0; 3_000]);
    for message in &whole.0 {
        let Message::Binary(message) = message else { return };
        assert!(message.len() <= IAP_MESSAGE_BYTES_MAX, "a message of {} bytes", message.len());
        if !session.hears_client() || session.client_says(message).is_err() {
            return;
        }
        session.say();
        assert!(session.for_vm().len() <= IAP_INBOX_BYTES_MAX, "too much waits for the VM");
    }
}

/// A client and a VM that do what the input says, in any order, with cuts: each byte arrives once, in order.
pub(crate) fn cuts(input: &[u8]) {
    let mut session = Session::open("s".into());
    // What was sent and what arrived, by count: the byte at each place is known.
    let (mut up_sent, mut up_at_vm, mut down_said, mut down_got) = (0_u64, 0_u64, 0_u64, 0_u64);
    let mut attached = true;
    let byte = |at: u64| u8::try_from(at % 251).unwrap_or_default();
    let bytes = |from: u64, len: usize| (from..).take(len).map(byte).collect::<Vec<u8>>();
    for step in input.chunks_exact(2) {
        let len = usize::from(step[1]) * 64;
        match step[0] % 6 {
            0 if attached && session.hears_client() => {
                session.client_says(&frame::data(&bytes(up_sent, len))).expect("data is always allowed");
                up_sent += len as u64;
            }
            1 => {
                let len = len.min(session.room_for_vm());
                session.vm_says(&bytes(down_said, len));
                down_said += len as u64;
            }
            2 => {
                let taken = session.for_vm().len().min(len);
                for byte_of_client in &session.for_vm()[..taken] {
                    assert_eq!(*byte_of_client, byte(up_at_vm), "at {up_at_vm} of what the client sent");
                    up_at_vm += 1;
                }
                session.vm_took(taken);
            }
            // Said, and either heard or lost on the way.
            3 => match session.say() {
                Some(Say::Message(message)) if step[1] & 1 == 0 => down_got += heard(&message, down_got, up_sent),
                Some(Say::Message(_)) => {
                    session.cut();
                    attached = false;
                }
                Some(Say::Close(_)) | None => {}
            },
            4 if attached => session.client_says(&frame::ack(down_got)).expect("what was heard may be confirmed"),
            5 if attached => {
                session.cut();
                attached = false;
            }
            _ if !attached => {
                session.reconnect(down_got).expect("what was heard may be gone on with");
                attached = true;
                let Some(Say::Message(greeting)) = session.say() else { panic!("no greeting") };
                assert_eq!(greeting[..2], [0, 2], "the first word is how much came");
                // All that was sent had come: nothing is lost between this client and the session.
                assert_eq!(count(&greeting), up_sent);
            }
            _ => {}
        }
        assert!(session.for_vm().len() <= IAP_INBOX_BYTES_MAX && session.room_for_vm() <= IAP_UNACKED_BYTES_MAX);
    }
}

fn count(message: &[u8]) -> u64 {
    message.get(2..).and_then(|rest| rest.first_chunk()).map_or(0, |count| u64::from_be_bytes(*count))
}

/// How many new bytes a message brings.
fn heard(message: &[u8], got: u64, sent: u64) -> u64 {
    match (message[1], frame::read(message)) {
        (4, Ok(FromClient::Data(payload))) => {
            let right = payload.iter().zip(got..).all(|(byte, at)| u64::from(*byte) == at % 251);
            assert!(right, "at {got} of what the VM said");
            payload.len() as u64
        }
        (7, Ok(FromClient::Ack(count))) => {
            assert!(count <= sent, "more is confirmed than was sent");
            0
        }
        _ => 0,
    }
}

/// A request that wants to become a WebSocket: lines `name: value`.
pub(crate) fn handshake(input: &[u8]) {
    let mut headers = HeaderMap::new();
    for line in input.split(|byte| *byte == b'\n') {
        let mut halves = line.splitn(2, |byte| *byte == b':');
        let (Some(name), Some(value)) = (halves.next(), halves.next()) else { continue };
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name), HeaderValue::from_bytes(value.trim_ascii())) {
            headers.append(name, value);
        }
    }
    if let Some(agreed) = websocket::handshake(&Method::GET, &headers) {
        assert_eq!(agreed.len(), 4, "what is agreed on is said in four lines");
        assert!(headers.contains_key("sec-websocket-key"), "nobody asked");
    }
}
