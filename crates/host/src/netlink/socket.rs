//! One netlink socket: requests with acknowledgement, dumps, nf_tables transactions, events.
//!
//! A socket belongs to the network namespace in which it was made, for ever; so holding one is being able to program
//! that namespace from any thread.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::Duration,
};

use rustix::{
    buffer::spare_capacity,
    event::{PollFd, PollFlags, Timespec, poll},
    net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, sockopt},
};

use super::wire::{self, Attributes, HEADER_BYTES, Message, NLM_F_ACK, NLM_F_DUMP};
use crate::sys;

const SOL_NETLINK: i32 = 270;
const NETLINK_ADD_MEMBERSHIP: i32 = 1;
const NETLINK_CAP_ACK: i32 = 10;
const NETLINK_EXT_ACK: i32 = 11;
const NLMSGERR_ATTR_MSG: u16 = 1;
const NFNL_MSG_BATCH_BEGIN: u16 = 0x10;
const NFNL_MSG_BATCH_END: u16 = 0x11;
const NFNL_SUBSYS_NFTABLES: u16 = 10;

/// Bytes of one transaction. Source: the kernel copies a batch from one send, so the send buffer must hold it all.
const SEND_BYTES_MAX: usize = 32 << 20;
/// Bytes of answers and events that may wait to be read.
pub const RECEIVE_BYTES_MAX: usize = 8 << 20;
/// One datagram of a dump at most. Source: the kernel allots 32 KiB for dumps to readers that offer it.
const DATAGRAM_BYTES_MAX: usize = 64 << 10;
/// A kernel answer that takes longer than this means something is broken; waiting for ever would hide it.
const ANSWER_WAIT_MAX: Duration = Duration::from_secs(30);
/// A dump that keeps being disturbed is given up after this many tries.
const DUMP_TRIES_MAX: u32 = 16;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    Route,
    Netfilter,
}

#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    #[error("cannot open a netlink socket")]
    Open { source: io::Error },
    #[error("cannot {what} by netlink")]
    Transport { what: String, source: io::Error },
    /// The kernel said no. `text` is its own explanation, empty when it gave none.
    #[error("the kernel refused to {what}: {source} {text}")]
    Refused { what: String, text: String, source: io::Error },
    #[error("a dump to {what} was disturbed every time")]
    Disturbed { what: String },
}

impl NetlinkError {
    /// The errno behind a refusal.
    pub fn errno(&self) -> Option<i32> {
        match self {
            NetlinkError::Refused { source, .. } => source.raw_os_error(),
            NetlinkError::Open { .. } | NetlinkError::Transport { .. } | NetlinkError::Disturbed { .. } => None,
        }
    }
}

#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    sequence: u32,
    sent: u64,
}

impl Socket {
    /// A socket in the calling thread's network namespace.
    pub fn open(family: Family) -> Result<Socket, NetlinkError> {
        Socket::try_open(family).map_err(|source| NetlinkError::Open { source })
    }

    fn try_open(family: Family) -> io::Result<Socket> {
        let protocol = match family {
            Family::Route => None,
            Family::Netfilter => Some(netlink::NETFILTER),
        };
        let fd = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, protocol)?;
        // The kernel numbers it. Events pass by a socket without a number: it is taken for their sender.
        rustix::net::bind(&fd, &netlink::SocketAddrNetlink::new(0, 0))?;
        sys::set_option(&fd, SOL_NETLINK, NETLINK_EXT_ACK, 1)?;
        sys::set_option(&fd, SOL_NETLINK, NETLINK_CAP_ACK, 1)?;
        // The plain calls obey a limit of the machine that is below a large transaction; ours are bounded above.
        sockopt::set_socket_send_buffer_size_force(&fd, SEND_BYTES_MAX)?;
        sockopt::set_socket_recv_buffer_size_force(&fd, RECEIVE_BYTES_MAX)?;
        Ok(Socket { fd, sequence: 0, sent: 0 })
    }

    /// Messages sent since the socket was opened: what a change costs, independent of the clock.
    pub fn sent(&self) -> u64 {
        self.sent
    }

    /// Sends one request and waits for the kernel's acknowledgement. `what` completes "the kernel refused to …".
    pub fn request(&mut self, what: &str, message: Message) -> Result<(), NetlinkError> {
        self.requests(vec![(what.to_owned(), message)])
    }

    /// Sends requests in one system call, in order, and waits for all acknowledgements; the first refusal is returned.
    pub fn requests(&mut self, requests: Vec<(String, Message)>) -> Result<(), NetlinkError> {
        self.attempts(requests)?.into_iter().collect()
    }

    /// [`Socket::requests`], each with its own outcome. A refusal does not keep the later ones from being tried.
    pub fn attempts(
        &mut self,
        requests: Vec<(String, Message)>,
    ) -> Result<Vec<Result<(), NetlinkError>>, NetlinkError> {
        let mut outcomes = Vec::new();
        for chunk in requests.chunks(64) {
            let start = self.sequence.wrapping_add(1);
            let mut bytes = Vec::new();
            for (_, message) in chunk {
                bytes.extend(self.next(message.clone().with_flags(NLM_F_ACK)));
            }
            self.send("send requests", &bytes)?;
            for (i, (what, _)) in (0..).zip(chunk) {
                let answer = self.acknowledgement(start.wrapping_add(i))?;
                outcomes.push(answer.verdict(what));
            }
        }
        Ok(outcomes)
    }

    /// Commits nf_tables messages as one transaction: all of them hold from one packet to the next, or none.
    pub fn transaction(&mut self, what: &str, messages: Vec<Message>) -> Result<(), NetlinkError> {
        if messages.is_empty() {
            return Ok(());
        }
        let edge = |kind| Message::new(kind, 0).fixed(&nfgen(0, NFNL_SUBSYS_NFTABLES));
        let count = messages.len();
        let mut bytes = self.next(edge(NFNL_MSG_BATCH_BEGIN));
        for (i, message) in messages.into_iter().enumerate() {
            // The kernel answers only after commit or abort, refusals and this one acknowledgement in order. The
            // batch's end would be the place to ask, but kernels before 6.10 don't answer it.
            let flags = if i + 1 == count { NLM_F_ACK } else { 0 };
            bytes.extend(self.next(message.with_flags(flags)));
        }
        let last = self.sequence;
        bytes.extend(self.next(edge(NFNL_MSG_BATCH_END)));
        self.send(what, &bytes)?;
        let mut refusal = None;
        loop {
            let answer = self.answer()?;
            let sequence = answer.sequence;
            if let Err(error) = answer.verdict(what) {
                refusal.get_or_insert(error);
            }
            if sequence == last {
                return refusal.map_or(Ok(()), Err);
            }
        }
    }

    /// Asks for everything that matches and gathers `read`'s results from each message (kind, payload).
    pub fn dump<T>(
        &mut self,
        what: &str,
        request: &Message,
        mut read: impl FnMut(u16, &[u8]) -> Option<T>,
    ) -> Result<Vec<T>, NetlinkError> {
        for _ in 0..DUMP_TRIES_MAX {
            let bytes = self.next(request.clone().with_flags(NLM_F_DUMP));
            self.send(what, &bytes)?;
            if let Some(found) = self.gather(what, &mut read)? {
                return Ok(found);
            }
        }
        Err(NetlinkError::Disturbed { what: what.to_owned() })
    }

    /// Sends a request whose answer is one message (and its acknowledgement); None when the kernel says there is none.
    pub fn get<T>(
        &mut self,
        what: &str,
        request: &Message,
        mut read: impl FnMut(u16, &[u8]) -> Option<T>,
    ) -> Result<Option<T>, NetlinkError> {
        let bytes = self.next(request.clone().with_flags(NLM_F_ACK));
        let sequence = self.sequence;
        self.send(what, &bytes)?;
        let mut found = None;
        loop {
            let datagram = self.receive(what)?;
            for message in wire::messages(&datagram).filter(|m| m.sequence == sequence) {
                if message.kind != wire::NLMSG_ERROR {
                    found = read(message.kind, message.payload);
                    continue;
                }
                return match Answer::of(message).verdict(what) {
                    Ok(()) => Ok(found),
                    Err(error) if error.errno() == Some(libc::ENOENT) => Ok(None),
                    Err(error) => Err(error),
                };
            }
        }
    }

    /// Lets so many bytes wait to be read, and no more.
    pub fn limit_receive(&self, bytes: usize) -> Result<(), NetlinkError> {
        sockopt::set_socket_recv_buffer_size_force(&self.fd, bytes)
            .map_err(|e| NetlinkError::Transport { what: "limit what may wait".to_owned(), source: e.into() })
    }

    pub fn join(&self, group: u32) -> Result<(), NetlinkError> {
        let group = i32::try_from(group).expect("group numbers are small");
        sys::set_option(&self.fd, SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, group)
            .map_err(|source| NetlinkError::Transport { what: "join an event group".to_owned(), source })
    }

    /// The next datagram of events, or None when none came within `wait`. ENOBUFS says that events were lost.
    pub fn event(&self, wait: Duration) -> io::Result<Option<Vec<u8>>> {
        if self.wait_readable(wait)? { self.read_datagram().map(Some) } else { Ok(None) }
    }

    fn gather<T>(
        &mut self,
        what: &str,
        read: &mut impl FnMut(u16, &[u8]) -> Option<T>,
    ) -> Result<Option<Vec<T>>, NetlinkError> {
        let mut found = Vec::new();
        let mut disturbed = false;
        let sequence = self.sequence;
        loop {
            let datagram = self.receive(what)?;
            for message in wire::messages(&datagram).filter(|m| m.sequence == sequence) {
                disturbed |= message.flags & wire::NLM_F_DUMP_INTR != 0;
                match message.kind {
                    wire::NLMSG_DONE => return Ok((!disturbed).then_some(found)),
                    wire::NLMSG_ERROR => Answer::of(message).verdict(what)?,
                    kind => found.extend(read(kind, message.payload)),
                }
            }
        }
    }

    fn next(&mut self, message: Message) -> Vec<u8> {
        self.sequence = self.sequence.wrapping_add(1);
        self.sent += 1;
        message.finish(self.sequence)
    }

    fn send(&self, what: &str, bytes: &[u8]) -> Result<(), NetlinkError> {
        rustix::io::retry_on_intr(|| rustix::net::send(&self.fd, bytes, SendFlags::empty()))
            .map_err(|e| NetlinkError::Transport { what: what.to_owned(), source: e.into() })?;
        Ok(())
    }

    /// The kernel answers in the order of the requests; what is older belongs to a request that was given up.
    fn acknowledgement(&self, sequence: u32) -> Result<Answer, NetlinkError> {
        loop {
            let answer = self.answer()?;
            if answer.sequence == sequence {
                return Ok(answer);
            }
        }
    }

    fn answer(&self) -> Result<Answer, NetlinkError> {
        loop {
            let datagram = self.receive("read an acknowledgement")?;
            if let Some(message) = wire::messages(&datagram).find(|m| m.kind == wire::NLMSG_ERROR) {
                return Ok(Answer::of(message));
            }
        }
    }

    fn receive(&self, what: &str) -> Result<Vec<u8>, NetlinkError> {
        let transport = |source| NetlinkError::Transport { what: what.to_owned(), source };
        if !self.wait_readable(ANSWER_WAIT_MAX).map_err(transport)? {
            return Err(transport(io::ErrorKind::TimedOut.into()));
        }
        self.read_datagram().map_err(transport)
    }

    fn wait_readable(&self, wait: Duration) -> io::Result<bool> {
        let wait = Timespec::try_from(wait).map_err(io::Error::other)?;
        let ready = rustix::io::retry_on_intr(|| poll(&mut [PollFd::new(&self.fd, PollFlags::IN)], Some(&wait)))?;
        Ok(ready > 0)
    }

    fn read_datagram(&self) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::with_capacity(DATAGRAM_BYTES_MAX);
        rustix::io::retry_on_intr(|| rustix::net::recv(&self.fd, spare_capacity(&mut bytes), RecvFlags::empty()))?;
        // A dump is many datagrams that are far smaller than they may be.
        bytes.shrink_to_fit();
        Ok(bytes)
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The fixed part of every netfilter message: family, version 0, resource id.
pub(super) fn nfgen(family: u8, resource: u16) -> [u8; 4] {
    let [high, low] = resource.to_be_bytes();
    [family, 0, high, low]
}

impl Message {
    pub(super) fn with_flags(self, flags: u16) -> Message {
        let mut bytes = self.finish(0);
        let old = wire::u16_at(&bytes, 6).expect("a message has a header");
        bytes[6..8].copy_from_slice(&(old | flags).to_ne_bytes());
        Message::from_finished(bytes)
    }
}

struct Answer {
    sequence: u32,
    errno: i32,
    text: String,
}

impl Answer {
    fn of(message: wire::Received<'_>) -> Answer {
        let code = message.payload.get(..4).and_then(|b| b.try_into().ok()).map_or(0, i32::from_ne_bytes);
        let text = Attributes::after(message.payload, 4 + HEADER_BYTES).text(NLMSGERR_ATTR_MSG).unwrap_or_default();
        Answer { sequence: message.sequence, errno: code.saturating_neg(), text }
    }

    fn verdict(self, what: &str) -> Result<(), NetlinkError> {
        if self.errno == 0 {
            return Ok(());
        }
        let source = io::Error::from_raw_os_error(self.errno);
        Err(NetlinkError::Refused { what: what.to_owned(), text: self.text, source })
    }
}
