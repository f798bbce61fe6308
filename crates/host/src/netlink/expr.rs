//! Rule expressions of nf_tables: what a rule loads, compares, looks up and does. Pure data with one encoding.
//!
//! A rule is a program over registers. [`Program`] hands them out, so that who writes a rule says what it means (`the
//! input interface and the source address are in this set`) and never a register number.
//! Source of numbers: include/uapi/linux/netfilter/nf_tables.h.

use super::wire::Message;

const NFTA_LIST_ELEM: u16 = 1;
const NFTA_EXPR_NAME: u16 = 1;
const NFTA_EXPR_DATA: u16 = 2;
pub(super) const NFTA_DATA_VALUE: u16 = 1;
const NFTA_DATA_VERDICT: u16 = 2;
const NFT_REG_VERDICT: u32 = 0;
/// The sixteen four-byte registers.
const NFT_REG32_00: u32 = 8;
const NFT_REG32_COUNT: u32 = 16;

/// Where a value is loaded from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Load {
    InputName,
    OutputName,
    Mark,
    /// IANA number of the transport protocol.
    L4Proto,
    SourceIp,
    DestinationIp,
    SourceIp6,
    DestinationIp6,
    SourcePort,
    DestinationPort,
    TcpFlags,
    /// One of [`crate::netlink::expr::state`], as a bit.
    CtState,
    CtDirection,
    /// Tracking zone of the flow's first direction, in host byte order.
    CtOriginalZone,
    /// Destination of the flow's first packet, as its sender wrote it.
    CtOriginalDestination,
    /// 2 for IPv4, 10 for IPv6.
    NfProto,
}

/// How a load is done.
enum Source {
    Meta(u32),
    Payload { base: u32, offset: u32, bytes: u32 },
    Ct { key: u32, direction: Option<u8> },
}

impl Load {
    fn source(self) -> Source {
        const NETWORK: u32 = 1;
        const TRANSPORT: u32 = 2;
        match self {
            Load::Mark => Source::Meta(3),
            Load::InputName => Source::Meta(6),
            Load::OutputName => Source::Meta(7),
            Load::NfProto => Source::Meta(15),
            Load::L4Proto => Source::Meta(16),
            Load::SourceIp => Source::Payload { base: NETWORK, offset: 12, bytes: 4 },
            Load::DestinationIp => Source::Payload { base: NETWORK, offset: 16, bytes: 4 },
            Load::SourceIp6 => Source::Payload { base: NETWORK, offset: 8, bytes: 16 },
            Load::DestinationIp6 => Source::Payload { base: NETWORK, offset: 24, bytes: 16 },
            Load::SourcePort => Source::Payload { base: TRANSPORT, offset: 0, bytes: 2 },
            Load::DestinationPort => Source::Payload { base: TRANSPORT, offset: 2, bytes: 2 },
            Load::TcpFlags => Source::Payload { base: TRANSPORT, offset: 13, bytes: 1 },
            Load::CtState => Source::Ct { key: 0, direction: None },
            Load::CtDirection => Source::Ct { key: 1, direction: None },
            Load::CtOriginalZone => Source::Ct { key: 17, direction: Some(0) },
            Load::CtOriginalDestination => Source::Ct { key: 20, direction: Some(0) },
        }
    }

    /// Registers it fills.
    fn width(self) -> u32 {
        match self {
            Load::InputName | Load::OutputName | Load::SourceIp6 | Load::DestinationIp6 => 4,
            _ => 1,
        }
    }

    /// As nft writes it.
    pub fn text(self) -> &'static str {
        match self {
            Load::InputName => "iifname",
            Load::OutputName => "oifname",
            Load::Mark => "meta mark",
            Load::L4Proto => "meta l4proto",
            Load::SourceIp => "ip saddr",
            Load::DestinationIp => "ip daddr",
            Load::SourceIp6 => "ip6 saddr",
            Load::DestinationIp6 => "ip6 daddr",
            Load::SourcePort => "th sport",
            Load::DestinationPort => "th dport",
            Load::TcpFlags => "tcp flags",
            Load::CtState => "ct state",
            Load::CtDirection => "ct direction",
            Load::CtOriginalZone => "ct original zone",
            Load::CtOriginalDestination => "ct original ip daddr",
            Load::NfProto => "meta nfproto",
        }
    }
}

/// Bits of [`Load::CtState`].
pub mod state {
    pub const INVALID: u32 = 1;
    pub const ESTABLISHED: u32 = 2;
    pub const RELATED: u32 = 4;
    pub const NEW: u32 = 8;
}

/// Value of [`Load::CtDirection`] for packets of the side that was called.
pub const CT_REPLY: u8 = 1;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Accept,
    Drop,
    Return,
    Jump(&'static str),
    Goto(&'static str),
}

impl Verdict {
    fn code(&self) -> i32 {
        match self {
            Verdict::Drop => 0,
            Verdict::Accept => 1,
            Verdict::Jump(_) => -3,
            Verdict::Goto(_) => -4,
            Verdict::Return => -5,
        }
    }

    fn chain(&self) -> Option<&'static str> {
        match self {
            Verdict::Jump(chain) | Verdict::Goto(chain) => Some(chain),
            Verdict::Accept | Verdict::Drop | Verdict::Return => None,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Comparison {
    Equal,
    NotEqual,
    AtLeast,
    AtMost,
}

/// What a value is looked up in and what becomes of the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// Go on only when it is there.
    In,
    /// Go on only when it is not there.
    NotIn,
}

/// What a map's answer is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// Becomes the packet's mark.
    Mark,
    /// Becomes the connection tracking zone of the original direction; replies stay in zone 0.
    OriginalZone,
    /// Becomes the destination address; the port stays.
    Destination,
    /// Becomes the source address, with a port between these.
    Source { first_port: u16, last_port: u16 },
}

/// One step of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// The loaded value compares so with the bytes (shorter bytes compare the beginning: a name's prefix).
    Compare(Load, Comparison, Vec<u8>),
    /// The loaded value and the mask, compared with the bytes.
    Masked(Load, Vec<u8>, Comparison, Vec<u8>),
    /// The loads, side by side, are (not) in the set.
    Member(Vec<Load>, Found, String),
    /// The loads are looked up in the map; the rule ends here when there is no such key.
    Mapped(Vec<Load>, String, Use),
    /// More living connections than this passed here.
    ConnectionsOver(u32),
    /// Connections made here keep the limits of this ct timeout object.
    Timeout(String),
    /// Connection tracking leaves the packet alone.
    NoTrack,
    /// Out of the device whose number is in these bits of the mark.
    ForwardByMark(u32),
    /// The kernel tells what the packet meets from here on.
    Trace,
    Verdict(Verdict),
}

/// Where the registers go while one rule is encoded.
struct Program {
    message: Message,
    next: u32,
}

impl Program {
    fn expr(mut self, name: &str, fill: impl FnOnce(Message) -> Message) -> Program {
        self.message =
            self.message.nest(NFTA_LIST_ELEM, |m| m.attr_str(NFTA_EXPR_NAME, name).nest(NFTA_EXPR_DATA, fill));
        self
    }

    fn take(&mut self, width: u32) -> u32 {
        let register = NFT_REG32_00 + self.next;
        self.next += width;
        debug_assert!(self.next <= NFT_REG32_COUNT, "a rule step uses more registers than there are");
        register
    }

    fn load(mut self, load: Load) -> (Program, u32) {
        let register = self.take(load.width());
        let program = match load.source() {
            Source::Meta(key) => self.expr("meta", |m| m.attr_be32(2, key).attr_be32(1, register)),
            Source::Payload { base, offset, bytes } => self.expr("payload", |m| {
                m.attr_be32(1, register).attr_be32(2, base).attr_be32(3, offset).attr_be32(4, bytes)
            }),
            Source::Ct { key, direction } => self.expr("ct", |m| {
                let m = m.attr_be32(2, key).attr_be32(1, register);
                m.maybe(direction, |m, direction| m.attr_u8(3, direction))
            }),
        };
        (program, register)
    }

    /// Loads side by side, for a key of several fields; answers the first register.
    fn loads(self, loads: &[Load]) -> (Program, u32) {
        let first = NFT_REG32_00 + self.next;
        (loads.iter().fold(self, |program, load| program.load(*load).0), first)
    }

    fn compare(self, register: u32, comparison: Comparison, value: &[u8]) -> Program {
        let op = match comparison {
            Comparison::Equal => 0,
            Comparison::NotEqual => 1,
            Comparison::AtMost => 3,
            Comparison::AtLeast => 5,
        };
        self.expr("cmp", |m| m.attr_be32(1, register).attr_be32(2, op).nest(3, |m| m.attr(NFTA_DATA_VALUE, value)))
    }

    fn mask(mut self, from: u32, mask: &[u8]) -> (Program, u32) {
        let to = self.take(1);
        let len = u32::try_from(mask.len()).expect("a mask is at most 16 bytes");
        let zero = vec![0; mask.len()];
        let program = self.expr("bitwise", |m| {
            m.attr_be32(1, from)
                .attr_be32(2, to)
                .attr_be32(3, len)
                .nest(4, |m| m.attr(NFTA_DATA_VALUE, mask))
                .nest(5, |m| m.attr(NFTA_DATA_VALUE, &zero))
        });
        (program, to)
    }

    fn immediate(mut self, value: &[u8]) -> (Program, u32) {
        let register = self.take(1);
        let program = self.expr("immediate", |m| m.attr_be32(1, register).nest(2, |m| m.attr(NFTA_DATA_VALUE, value)));
        (program, register)
    }

    fn lookup(self, key: u32, set: &str, found: Found) -> Program {
        let invert = u32::from(found == Found::NotIn);
        self.expr("lookup", |m| m.attr_str(1, set).attr_be32(2, key).attr_be32(5, invert))
    }

    fn map(mut self, key: u32, map: &str) -> (Program, u32) {
        let to = self.take(1);
        (self.expr("lookup", |m| m.attr_str(1, map).attr_be32(2, key).attr_be32(3, to)), to)
    }

    fn apply(self, value: u32, purpose: Use) -> Program {
        const NFPROTO_IPV4: u32 = 2;
        const SNAT: u32 = 0;
        const DNAT: u32 = 1;
        let nat = |m: Message, kind| m.attr_be32(1, kind).attr_be32(2, NFPROTO_IPV4).attr_be32(3, value);
        match purpose {
            Use::Mark => self.expr("meta", |m| m.attr_be32(2, 3).attr_be32(3, value)),
            Use::OriginalZone => self.expr("ct", |m| m.attr_be32(2, 17).attr_u8(3, 0).attr_be32(4, value)),
            Use::Destination => self.expr("nat", |m| nat(m, DNAT)),
            Use::Source { first_port, last_port } => {
                let (program, first) = self.immediate(&first_port.to_be_bytes());
                let (program, last) = program.immediate(&last_port.to_be_bytes());
                program.expr("nat", |m| nat(m, SNAT).attr_be32(5, first).attr_be32(6, last))
            }
        }
    }

    fn step(mut self, step: &Step) -> Program {
        // No step looks at what an earlier one loaded, so each may use all registers.
        self.next = 0;
        match step {
            Step::Compare(load, comparison, value) => {
                let (program, register) = self.load(*load);
                program.compare(register, *comparison, value)
            }
            Step::Masked(load, mask, comparison, value) => {
                let (program, register) = self.load(*load);
                let (program, masked) = program.mask(register, mask);
                program.compare(masked, *comparison, value)
            }
            Step::Member(loads, found, set) => {
                let (program, key) = self.loads(loads);
                program.lookup(key, set, *found)
            }
            Step::Mapped(loads, map, purpose) => {
                let (program, key) = self.loads(loads);
                let (program, value) = program.map(key, map);
                program.apply(value, *purpose)
            }
            Step::ConnectionsOver(count) => self.expr("connlimit", |m| m.attr_be32(1, *count).attr_be32(2, 1)),
            Step::Timeout(object) => self.expr("objref", |m| m.attr_be32(1, OBJECT_CT_TIMEOUT).attr_str(2, object)),
            Step::NoTrack => self.expr("notrack", |m| m),
            Step::ForwardByMark(bits) => {
                let (program, mark) = self.load(Load::Mark);
                let (program, device) = program.mask(mark, &bits.to_ne_bytes());
                program.expr("fwd", |m| m.attr_be32(1, device))
            }
            Step::Trace => {
                const NFTRACE: u32 = 12;
                let (program, on) = self.immediate(&[1]);
                program.expr("meta", |m| m.attr_be32(2, NFTRACE).attr_be32(3, on))
            }
            Step::Verdict(verdict) => self.expr("immediate", |m| {
                m.attr_be32(1, NFT_REG_VERDICT).nest(2, |m| {
                    m.nest(NFTA_DATA_VERDICT, |m| {
                        m.attr(1, &verdict.code().to_be_bytes()).maybe(verdict.chain(), |m, chain| m.attr_str(2, chain))
                    })
                })
            }),
        }
    }
}

pub(super) const OBJECT_CT_TIMEOUT: u32 = 7;

/// Appends the expressions of a rule to a message that is inside its list of expressions.
pub(super) fn encode(message: Message, steps: &[Step]) -> Message {
    steps.iter().fold(Program { message, next: 0 }, |program, step| program.step(step)).message
}
