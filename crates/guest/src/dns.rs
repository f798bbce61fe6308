//! The resolver at 169.254.169.254: the names of one realm, and nothing else. It asks nobody.
//!
//! [`answer`] is pure, bytes to bytes. What is not a well-formed query gets no answer. Source: RFC 1035, 2308, 6891;
//! VPC "internal DNS".

use std::{
    collections::{BTreeSet, HashMap},
    net::{IpAddr, Ipv4Addr},
};

use hickory_proto::{
    op::{Edns, Message, MessageType, OpCode, Query, ResponseCode},
    rr::{DNSClass, Name, RData, Record, RecordType, rdata},
};
use model::limits::{DNS_TTL_METADATA_S, DNS_TTL_NAME_S, DNS_UDP_BYTES_MAX};

/// The name of the metadata server, everywhere.
const METADATA: &str = "metadata.google.internal";
/// What it is called for short, where a client asks without its search list.
const METADATA_SHORT: &str = "metadata";

/// The names of a realm, ready for looking up in both directions.
#[derive(Clone, Debug)]
pub struct Zone {
    /// Two VMs of one name in different zones share their global name: the lowest address has it.
    forward: HashMap<String, BTreeSet<Ipv4Addr>>,
    reverse: HashMap<Ipv4Addr, BTreeSet<String>>,
    /// Names that stand above one that has an address, and how many do: they exist too.
    above: HashMap<String, usize>,
    /// There is no other name.
    whole: bool,
}

impl Default for Zone {
    /// The metadata server's names, which nobody else can have.
    fn default() -> Zone {
        let mut zone = Zone { forward: HashMap::new(), reverse: HashMap::new(), above: HashMap::new(), whole: true };
        zone.put(METADATA, crate::ADDRESS);
        zone.put(METADATA_SHORT, crate::ADDRESS);
        zone
    }
}

impl Zone {
    /// As long as nobody has said which names there are: those that are known, and no word on others.
    pub fn incomplete(self) -> Zone {
        Zone { whole: false, ..self }
    }

    /// A fully qualified name, lower case, without the final dot.
    pub fn add(&mut self, name: &str, address: Ipv4Addr) {
        if name != METADATA && name != METADATA_SHORT {
            self.put(name, address);
        }
    }

    fn put(&mut self, name: &str, address: Ipv4Addr) {
        if !self.forward.entry(name.to_owned()).or_default().insert(address) {
            return;
        }
        self.reverse.entry(address).or_default().insert(name.to_owned());
        for parent in parents(name) {
            *self.above.entry(parent.to_owned()).or_default() += 1;
        }
    }

    /// Takes back what [`Zone::add`] gave.
    pub fn remove(&mut self, name: &str, address: Ipv4Addr) {
        let Some(addresses) = self.forward.get_mut(name).filter(|_| name != METADATA && name != METADATA_SHORT) else {
            return;
        };
        if !addresses.remove(&address) {
            return;
        }
        if addresses.is_empty() {
            self.forward.remove(name);
        }
        if let Some(names) = self.reverse.get_mut(&address) {
            names.remove(name);
            if names.is_empty() {
                self.reverse.remove(&address);
            }
        }
        for parent in parents(name) {
            if let Some(below) = self.above.get_mut(parent) {
                *below -= 1;
                if *below == 0 {
                    self.above.remove(parent);
                }
            }
        }
    }

    fn look_up(&self, query: &Query) -> Found {
        let name = query.name().to_ascii().to_ascii_lowercase();
        let name = name.strip_suffix('.').unwrap_or(&name);
        // Of several names the longest says most: it has the zone in it.
        let longest = |address| self.reverse.get(&address)?.iter().max_by_key(|name| name.len());
        if let Some(host) = reverse_address(query.name()).and_then(longest) {
            return match (query.query_type(), Name::from_ascii(format!("{host}."))) {
                (RecordType::PTR | RecordType::ANY, Ok(host)) => Found::Record(RData::PTR(rdata::PTR(host)), ttl(name)),
                (_, _) => Found::NoData,
            };
        }
        match (self.forward.get(name).and_then(BTreeSet::first), query.query_type()) {
            (Some(address), RecordType::A | RecordType::ANY) => Found::Record(RData::A(rdata::A(*address)), ttl(name)),
            (Some(_), _) => Found::NoData,
            (None, _) if self.above.contains_key(name) => Found::NoData,
            (None, _) if self.whole => Found::NoName,
            (None, _) => Found::NotKnown,
        }
    }
}

enum Found {
    Record(RData, u32),
    /// The name exists and has no such record.
    NoData,
    NoName,
    /// It may exist.
    NotKnown,
}

/// The names above a name.
fn parents(name: &str) -> impl Iterator<Item = &str> {
    std::iter::successors(name.split_once('.'), |(_, parent)| parent.split_once('.')).map(|(_, parent)| parent)
}

fn ttl(name: &str) -> u32 {
    if name == METADATA || name == METADATA_SHORT { DNS_TTL_METADATA_S } else { DNS_TTL_NAME_S }
}

fn reverse_address(name: &Name) -> Option<Ipv4Addr> {
    let net = name.parse_arpa_name().ok()?;
    match net.addr() {
        IpAddr::V4(address) if net.prefix_len() == 32 => Some(address),
        IpAddr::V4(_) | IpAddr::V6(_) => None,
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    Udp,
    Tcp,
}

/// The answer to a query, or None when the bytes deserve none.
pub fn answer(zone: &Zone, bytes: &[u8], transport: Transport) -> Option<Vec<u8>> {
    let query = Message::from_vec(bytes).ok()?;
    if query.metadata.message_type != MessageType::Query {
        return None;
    }
    let reply = reply(zone, &query);
    let room = match transport {
        Transport::Tcp => usize::from(u16::MAX),
        // Without EDNS a client takes 512 bytes.
        Transport::Udp => usize::from(query.max_payload().clamp(512, DNS_UDP_BYTES_MAX)),
    };
    encode(reply, room)
}

/// A message that does not fit is sent empty, with the sign to ask over TCP.
fn encode(message: Message, room: usize) -> Option<Vec<u8>> {
    let bytes = message.to_vec().ok()?;
    if bytes.len() <= room { Some(bytes) } else { message.truncate().to_vec().ok() }
}

fn reply(zone: &Zone, query: &Message) -> Message {
    let mut reply = Message::response(query.metadata.id, query.metadata.op_code);
    reply.metadata.recursion_desired = query.metadata.recursion_desired;
    reply.metadata.authoritative = true;
    // Only one question is ever answered, and more of them may not fit even into an empty answer.
    if let [question] = query.queries.as_slice() {
        reply.add_query(question.clone());
    }
    if let Some(edns) = &query.edns {
        let mut ours = Edns::new();
        ours.set_max_payload(DNS_UDP_BYTES_MAX).set_version(0);
        reply.set_edns(ours);
        if edns.version() > 0 {
            reply.metadata.response_code = ResponseCode::BADVERS;
            return reply;
        }
    }
    reply.metadata.response_code = match (query.metadata.op_code, query.queries.as_slice()) {
        (OpCode::Query, [question]) if question.query_class() == DNSClass::IN => match zone.look_up(question) {
            Found::Record(data, ttl) => {
                reply.add_answer(Record::from_rdata(question.name().clone(), ttl, data));
                ResponseCode::NoError
            }
            Found::NoData => ResponseCode::NoError,
            Found::NoName => ResponseCode::NXDomain,
            Found::NotKnown => ResponseCode::ServFail,
        },
        (OpCode::Query, [_]) => ResponseCode::Refused,
        (OpCode::Query, _) => ResponseCode::FormErr,
        (_, _) => ResponseCode::NotImp,
    };
    reply
}

#[cfg(test)]
mod tests {
    use super::*;

    fn zone() -> Zone {
        let names = [
            ("test-vm.asia-northeast1-b.c.consumer-1.internal", "10.2.0.2"),
            ("test-vm.c.consumer-1.internal", "10.2.0.2"),
            ("metadata.google.internal", "10.66.66.66"),
        ];
        let mut zone = Zone::default();
        names.iter().for_each(|(name, address)| zone.add(name, address.parse().unwrap()));
        zone
    }

    fn ask(name: &str, kind: RecordType) -> Message {
        let mut query = Message::query();
        query.metadata.recursion_desired = true;
        query.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
        query
    }

    fn asked(query: &Message) -> Message {
        let bytes = answer(&zone(), &query.to_vec().unwrap(), Transport::Udp).unwrap();
        let reply = Message::from_vec(&bytes).unwrap();
        assert_eq!((reply.metadata.id, reply.metadata.message_type), (query.metadata.id, MessageType::Response));
        reply
    }

    #[test]
    fn names_addresses_and_their_absence() {
        use RecordType as T;
        for (name, kind, code, data) in [
            ("metadata.google.internal.", T::A, ResponseCode::NoError, Some("169.254.169.254")),
            ("METADATA.google.INTERNAL.", T::A, ResponseCode::NoError, Some("169.254.169.254")),
            ("metadata.", T::A, ResponseCode::NoError, Some("169.254.169.254")),
            ("metadata.google.internal.", T::AAAA, ResponseCode::NoError, None),
            ("test-vm.asia-northeast1-b.c.consumer-1.internal.", T::A, ResponseCode::NoError, Some("10.2.0.2")),
            ("test-vm.asia-northeast1-b.c.consumer-1.internal.", T::AAAA, ResponseCode::NoError, None),
            ("test-vm.asia-northeast1-b.c.consumer-1.internal.", T::TXT, ResponseCode::NoError, None),
            ("test-vm.c.consumer-1.internal.", T::ANY, ResponseCode::NoError, Some("10.2.0.2")),
            ("c.consumer-1.internal.", T::A, ResponseCode::NoError, None),
            ("internal.", T::A, ResponseCode::NoError, None),
            ("other.c.consumer-1.internal.", T::A, ResponseCode::NXDomain, None),
            ("example.com.", T::A, ResponseCode::NXDomain, None),
            ("test-vm.", T::A, ResponseCode::NXDomain, None),
            (
                "2.0.2.10.in-addr.arpa.",
                T::PTR,
                ResponseCode::NoError,
                Some("test-vm.asia-northeast1-b.c.consumer-1.internal."),
            ),
            ("254.169.254.169.in-addr.arpa.", T::PTR, ResponseCode::NoError, Some("metadata.google.internal.")),
            ("3.0.2.10.in-addr.arpa.", T::PTR, ResponseCode::NXDomain, None),
            ("2.0.2.10.in-addr.arpa.", T::A, ResponseCode::NoError, None),
        ] {
            let reply = asked(&ask(name, kind));
            let seen = reply.answers.first().map(|record| record.data.to_string());
            assert_eq!((reply.metadata.response_code, seen.as_deref()), (code, data), "{name} {kind}");
        }
    }

    #[test]
    fn a_name_that_went_is_gone_with_what_stood_above_it_and_one_of_two_holders_keeps_it() {
        let mut zone = Zone::default();
        let [first, second] = ["10.2.0.2", "10.2.0.3"].map(|address| address.parse().unwrap());
        let code = |zone: &Zone, name: &str| reply(zone, &ask(name, RecordType::A)).metadata.response_code;
        zone.add("a.c.p.internal", second);
        zone.add("a.c.p.internal", first);
        zone.add("a.c.p.internal", first);
        let held =
            |zone: &Zone| zone.look_up(&Query::query(Name::from_ascii("a.c.p.internal.").unwrap(), RecordType::A));
        assert!(matches!(held(&zone), Found::Record(RData::A(a), _) if a.0 == first));
        zone.remove("a.c.p.internal", first);
        assert!(matches!(held(&zone), Found::Record(RData::A(a), _) if a.0 == second));
        zone.remove("a.c.p.internal", second);
        zone.remove("a.c.p.internal", second);
        assert_eq!(code(&zone, "a.c.p.internal."), ResponseCode::NXDomain);
        assert_eq!(code(&zone, "c.p.internal."), ResponseCode::NXDomain);
        assert_eq!(
            code(&zone, "google.internal."),
            ResponseCode::NoError,
            "the metadata server's name stands under it"
        );
        zone.remove(METADATA, crate::ADDRESS);
        assert_eq!(code(&zone, "metadata.google.internal."), ResponseCode::NoError);
    }

    #[test]
    fn what_is_no_query_for_us_is_answered_by_its_kind_or_not_at_all() {
        let mut chaos = ask("metadata.", RecordType::A);
        chaos.queries[0].set_query_class(DNSClass::CH);
        assert_eq!(asked(&chaos).metadata.response_code, ResponseCode::Refused);
        let mut update = ask("metadata.", RecordType::A);
        update.metadata.op_code = OpCode::Notify;
        assert_eq!(asked(&update).metadata.response_code, ResponseCode::NotImp);
        let mut two = ask("metadata.", RecordType::A);
        two.add_query(Query::query(Name::from_ascii("metadata.").unwrap(), RecordType::AAAA));
        assert_eq!(asked(&two).metadata.response_code, ResponseCode::FormErr);
        let many = (0..400).map(|_| Query::query(Name::root(), RecordType::A));
        two.add_queries(many);
        assert_eq!(asked(&two).queries, [], "they would not fit into an answer");
        let mut response = ask("metadata.", RecordType::A);
        response.metadata.message_type = MessageType::Response;
        for bytes in [&response.to_vec().unwrap()[..], b"", b"\0", &[0xff; 40]] {
            assert_eq!(answer(&zone(), bytes, Transport::Udp), None);
        }
    }

    #[test]
    fn a_client_with_edns_is_answered_with_edns() {
        let mut query = ask("metadata.", RecordType::A);
        query.set_edns(Edns::new());
        let reply = asked(&query);
        assert_eq!((reply.edns.is_some(), reply.answers.len()), (true, 1));
        let mut future = Edns::new();
        future.set_version(7);
        query.set_edns(future);
        assert_eq!(asked(&query).metadata.response_code.low(), ResponseCode::BADVERS.low());
    }

    #[test]
    fn an_answer_without_room_is_cut_and_says_so() {
        let whole = reply(&zone(), &ask("metadata.", RecordType::A));
        let cut = Message::from_vec(&encode(whole, 20).unwrap()).unwrap();
        assert!(cut.metadata.truncation && cut.answers.is_empty());
    }
}
