//! One tunnel: what each side has sent and the other has. Pure: no socket, no clock; events go in, messages come out.
//!
//! ```text
//!   client ── client_says ──▶ inbox ── for_vm ──▶ VM
//!   client ◀── say ── kept until acknowledged ◀── vm_says ── VM
//! ```
//!
//! The client's connection may break and be made again while the one to the VM stands. Both sides count the bytes they
//! have received; what the other has not confirmed is kept and sent again, so none is lost and none comes twice.

use std::collections::VecDeque;

use model::limits::{IAP_DATA_BYTES_MAX, IAP_INBOX_BYTES_MAX, IAP_UNACKED_BYTES_MAX};

use super::frame::{self, Close, FromClient};

/// The client is told what has arrived when this much of it was not confirmed. Source: the stock client does the same.
const ACK_AFTER: u64 = 2 * IAP_DATA_BYTES_MAX as u64;

#[derive(Debug)]
pub struct Session {
    /// How the client names it when it comes back.
    sid: String,
    /// What the client's present connection has to hear before all else.
    greeting: Option<Vec<u8>>,
    attached: bool,
    /// Bytes of the client's that have arrived, and how many of them it was told about.
    received: u64,
    confirmed: u64,
    inbox: VecDeque<u8>,
    /// Bytes of the VM's: kept from `acked` on; `sent` is the furthest that any connection carried, `next` is where the
    /// present one is.
    kept: VecDeque<u8>,
    acked: u64,
    next: u64,
    sent: u64,
    /// The VM has closed, or its connection broke: what to say when everything else is said.
    end: Option<Close>,
}

/// What goes to the client next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Say {
    Message(Vec<u8>),
    /// The last word.
    Close(Close),
}

impl Session {
    /// A tunnel whose connection to the VM stands; its first client is there.
    pub fn open(sid: String) -> Session {
        Session {
            greeting: Some(frame::connected(&sid)),
            sid,
            attached: true,
            received: 0,
            confirmed: 0,
            inbox: VecDeque::new(),
            kept: VecDeque::new(),
            acked: 0,
            next: 0,
            sent: 0,
            end: None,
        }
    }

    pub fn sid(&self) -> &str {
        &self.sid
    }

    /// The client's connection has ended without a close frame.
    pub fn cut(&mut self) {
        self.attached = false;
        self.greeting = None;
    }

    /// The client is back and has `ack` bytes.
    ///
    /// # Errors
    /// [`Close::SID_IN_USE`] while another connection is there, which is not disturbed; [`Close::BAD_ACK`] for more
    /// than was ever sent; [`Close::REWIND_FAILED`] for less than was confirmed, since that is not kept any more.
    pub fn reconnect(&mut self, ack: u64) -> Result<(), Close> {
        match ack {
            _ if self.attached => Err(Close::SID_IN_USE),
            _ if ack > self.sent => Err(Close::BAD_ACK),
            _ if ack < self.acked => Err(Close::REWIND_FAILED),
            _ => {
                self.confirm(ack);
                self.next = ack;
                self.confirmed = self.received;
                self.greeting = Some(frame::reconnected(self.received));
                self.attached = true;
                Ok(())
            }
        }
    }

    /// Whether the client may be read: there is room for what it sends.
    pub fn hears_client(&self) -> bool {
        self.attached && self.inbox.len() + IAP_DATA_BYTES_MAX <= IAP_INBOX_BYTES_MAX
    }

    /// A message of the client's.
    ///
    /// # Errors
    /// What the protocol forbids. It ends the tunnel.
    pub fn client_says(&mut self, message: &[u8]) -> Result<(), Close> {
        match frame::read(message)? {
            FromClient::Data(payload) => {
                self.received += payload.len() as u64;
                self.inbox.extend(payload);
            }
            FromClient::Ack(count) if (self.acked..=self.sent).contains(&count) => self.confirm(count),
            FromClient::Ack(_) => return Err(Close::INVALID_ACK),
            FromClient::Nothing => {}
        }
        Ok(())
    }

    fn confirm(&mut self, count: u64) {
        let done = usize::try_from(count - self.acked).expect("no more than is kept, and that is in memory");
        self.kept.drain(..done);
        self.acked = count;
    }

    /// Bytes that wait for the VM, or the first of them.
    pub fn for_vm(&self) -> &[u8] {
        self.inbox.as_slices().0
    }

    pub fn vm_took(&mut self, bytes: usize) {
        self.inbox.drain(..bytes);
    }

    /// How much may be read of the VM.
    pub fn room_for_vm(&self) -> usize {
        if self.end.is_some() { 0 } else { IAP_UNACKED_BYTES_MAX - self.kept.len() }
    }

    /// At most as many bytes as there is room for.
    pub fn vm_says(&mut self, bytes: &[u8]) {
        debug_assert!(bytes.len() <= self.room_for_vm(), "the VM was read without room");
        let len = self.kept.len() + bytes.len();
        if len > self.kept.capacity() {
            // Never more memory than may be kept.
            self.kept.reserve_exact((2 * len).min(IAP_UNACKED_BYTES_MAX.max(len)) - self.kept.len());
        }
        self.kept.extend(bytes);
    }

    /// Nothing more comes from the VM. Told to the client after everything that came.
    pub fn vm_ended(&mut self, how: Close) {
        self.end.get_or_insert(how);
    }

    pub fn has_vm_ended(&self) -> bool {
        self.end.is_some()
    }

    /// What the present client has to hear next; None when there is nothing to say to it now, or nobody is there.
    pub fn say(&mut self) -> Option<Say> {
        if !self.attached {
            return None;
        }
        if let Some(greeting) = self.greeting.take() {
            return Some(Say::Message(greeting));
        }
        if self.received - self.confirmed > ACK_AFTER {
            self.confirmed = self.received;
            return Some(Say::Message(frame::ack(self.received)));
        }
        let from = usize::try_from(self.next - self.acked).expect("no more than is kept, and that is in memory");
        let to = self.kept.len().min(from + IAP_DATA_BYTES_MAX);
        if from < to {
            let payload: Vec<u8> = self.kept.range(from..to).copied().collect();
            self.next += payload.len() as u64;
            self.sent = self.sent.max(self.next);
            return Some(Say::Message(frame::data(&payload)));
        }
        self.end.map(Say::Close)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A client that keeps the rules, and remembers like one.
    #[derive(Default)]
    struct Client {
        got: Vec<u8>,
        confirmed: u64,
        unconfirmed: VecDeque<u8>,
        closed: Option<Close>,
        sid: String,
    }

    impl Client {
        fn send(&mut self, session: &mut Session, payload: &[u8]) {
            self.unconfirmed.extend(payload);
            session.client_says(&frame::data(payload)).unwrap();
        }

        fn confirm(&mut self, count: u64) {
            let done = usize::try_from(count.checked_sub(self.confirmed).expect("acks do not go back")).unwrap();
            assert!(done <= self.unconfirmed.len(), "more is confirmed than was sent");
            self.unconfirmed.drain(..done);
            self.confirmed = count;
        }

        fn hear(&mut self, say: Say) {
            let message = match say {
                Say::Close(close) => return self.closed = Some(close),
                Say::Message(message) => message,
            };
            let count = || u64::from_be_bytes(message[2..10].try_into().unwrap());
            match message[1] {
                1 => self.sid = String::from_utf8(message[6..].to_vec()).unwrap(),
                2 | 7 => self.confirm(count()),
                4 => self.got.extend(&message[6..]),
                tag => panic!("tag {tag}"),
            }
        }

        fn hear_all(&mut self, session: &mut Session) {
            while self.closed.is_none()
                && let Some(say) = session.say()
            {
                self.hear(say);
            }
        }

        /// Comes back and sends again what was not confirmed.
        fn come_back(&mut self, session: &mut Session) {
            session.reconnect(self.got.len() as u64).unwrap();
            self.hear(session.say().expect("a greeting"));
            let again: Vec<u8> = self.unconfirmed.iter().copied().collect();
            for payload in again.chunks(IAP_DATA_BYTES_MAX) {
                session.client_says(&frame::data(payload)).unwrap();
            }
        }
    }

    fn drained(session: &mut Session) -> Vec<u8> {
        let mut out = Vec::new();
        while !session.for_vm().is_empty() {
            out.extend_from_slice(session.for_vm());
            session.vm_took(session.for_vm().len());
        }
        out
    }

    fn bytes(len: usize) -> Vec<u8> {
        (0..len).map(|i| u8::try_from(i % 251).unwrap()).collect()
    }

    #[test]
    fn the_session_id_is_the_first_word_and_data_goes_both_ways() {
        let (mut session, mut client) = (Session::open("s1".into()), Client::default());
        session.vm_says(b"SSH-2.0-there");
        assert_eq!(session.say(), Some(Say::Message(frame::connected("s1"))));
        client.send(&mut session, b"SSH-2.0-here");
        client.hear_all(&mut session);
        assert_eq!((drained(&mut session), client.got), (b"SSH-2.0-here".to_vec(), b"SSH-2.0-there".to_vec()));
    }

    #[test]
    fn a_cut_after_any_message_loses_no_byte_and_doubles_none_in_either_direction() {
        let (down, up) = (bytes(150_000), bytes(150_000));
        let run = |cut_after: usize| {
            let (mut session, mut client) = (Session::open("s".into()), Client::default());
            let (mut said, mut sent, mut at_vm, mut messages) = (0, 0, Vec::new(), 0);
            while client.closed.is_none() {
                let room = session.room_for_vm().min(20_000).min(down.len() - said);
                session.vm_says(&down[said..said + room]);
                said += room;
                if said == down.len() {
                    session.vm_ended(Close::NORMAL);
                }
                let next = (sent + 10_000).min(up.len());
                client.send(&mut session, &up[sent..next]);
                sent = next;
                while client.closed.is_none()
                    && let Some(say) = session.say()
                {
                    // The connection breaks with this message on its way: sometimes it still arrives, sometimes not.
                    messages += 1;
                    if messages == cut_after && cut_after.is_multiple_of(2) {
                        break;
                    }
                    client.hear(say);
                    if messages == cut_after {
                        break;
                    }
                }
                if messages == cut_after && client.closed.is_none() {
                    session.cut();
                    client.come_back(&mut session);
                    messages += 1;
                }
                session.client_says(&frame::ack(client.got.len() as u64)).unwrap();
                at_vm.extend(drained(&mut session));
            }
            assert!(client.got == down, "downward, cut after {cut_after}");
            assert!(at_vm == up[..at_vm.len()] && at_vm.len() == sent, "upward, cut after {cut_after}");
            messages
        };
        let all = run(usize::MAX);
        assert!(all > 15, "{all} messages");
        for cut_after in 1..=all {
            run(cut_after);
        }
    }

    #[test]
    fn what_a_reconnect_may_say_depends_on_what_was_sent_and_confirmed() {
        let at = |attached: bool, ack: u64| {
            let mut session = Session::open("s".into());
            session.vm_says(&[0; 300]);
            while session.say().is_some() {}
            session.client_says(&frame::ack(100)).unwrap();
            session.vm_says(&[0; 50]);
            if !attached {
                session.cut();
            }
            session.reconnect(ack)
        };
        for (attached, ack, outcome) in [
            (false, 100, Ok(())),
            (false, 200, Ok(())),
            (false, 300, Ok(())),
            (false, 301, Err(Close::BAD_ACK)),
            (false, u64::MAX, Err(Close::BAD_ACK)),
            (false, 99, Err(Close::REWIND_FAILED)),
            (true, 200, Err(Close::SID_IN_USE)),
        ] {
            assert_eq!(at(attached, ack), outcome, "attached: {attached}, ack {ack}");
        }
    }

    #[test]
    fn a_second_connection_does_not_disturb_the_first() {
        let (mut session, mut client) = (Session::open("s".into()), Client::default());
        session.vm_says(b"one");
        client.hear_all(&mut session);
        assert_eq!(session.reconnect(0), Err(Close::SID_IN_USE));
        session.vm_says(b", two");
        client.hear_all(&mut session);
        assert_eq!(client.got, b"one, two");
    }

    #[test]
    fn an_ack_may_not_go_back_nor_beyond_what_was_sent() {
        for (acks, outcome) in [
            (&[0, 100, 100, 300][..], Ok(())),
            (&[301], Err(Close::INVALID_ACK)),
            (&[u64::MAX], Err(Close::INVALID_ACK)),
            (&[200, 199], Err(Close::INVALID_ACK)),
        ] {
            let mut session = Session::open("s".into());
            session.vm_says(&[0; 300]);
            while session.say().is_some() {}
            // Kept, but on no wire yet.
            session.vm_says(&[0; 10]);
            let said = acks.iter().try_for_each(|ack| session.client_says(&frame::ack(*ack)));
            assert_eq!(said, outcome, "{acks:?}");
        }
    }

    #[test]
    fn a_client_that_does_not_confirm_stops_the_vm_and_a_vm_that_does_not_read_stops_the_client() {
        let mut session = Session::open("s".into());
        while session.room_for_vm() > 0 {
            session.vm_says(&vec![0; session.room_for_vm().min(7_000)]);
        }
        while session.say().is_some() {}
        assert_eq!((session.room_for_vm(), session.kept.len()), (0, IAP_UNACKED_BYTES_MAX));
        session.client_says(&frame::ack(1_000)).unwrap();
        assert_eq!(session.room_for_vm(), 1_000);

        while session.hears_client() {
            session.client_says(&frame::data(&[0; IAP_DATA_BYTES_MAX])).unwrap();
        }
        assert!(session.inbox.len() <= IAP_INBOX_BYTES_MAX);
        session.vm_took(session.for_vm().len());
        assert!(session.hears_client());
    }

    #[test]
    fn the_end_of_the_vm_is_the_last_word_and_is_said_again_to_who_was_cut_off_before_it() {
        let (mut session, mut client) = (Session::open("s".into()), Client::default());
        session.vm_says(b"bye");
        session.vm_ended(Close::NORMAL);
        session.vm_ended(Close::READ_FAILED);
        session.say();
        session.cut();
        assert_eq!(session.say(), None);
        client.come_back(&mut session);
        client.hear_all(&mut session);
        assert_eq!((client.got, client.closed), (b"bye".to_vec(), Some(Close::NORMAL)));
    }

    #[test]
    fn the_client_is_told_what_arrived_once_it_is_more_than_two_frames() {
        let mut session = Session::open("s".into());
        session.say();
        for _ in 0..2 {
            session.client_says(&frame::data(&[0; IAP_DATA_BYTES_MAX])).unwrap();
        }
        assert_eq!(session.say(), None);
        session.client_says(&frame::data(b"x")).unwrap();
        assert_eq!(session.say(), Some(Say::Message(frame::ack(32_769))));
        assert_eq!(session.say(), None);
    }

    proptest! {
        #[test]
        fn whatever_a_client_says_memory_is_bounded_and_nothing_breaks(
            messages in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..40),
        ) {
            let mut session = Session::open("s".into());
            session.vm_says(&[0; 1_000]);
            for message in messages {
                if session.hears_client() && session.client_says(&message).is_err() {
                    break;
                }
                session.say();
            }
            prop_assert!(session.inbox.len() <= IAP_INBOX_BYTES_MAX && session.kept.len() <= IAP_UNACKED_BYTES_MAX);
        }
    }
}
