//! The resolver at 169.254.169.254: the names of one realm, and nothing else. It asks nobody.
//!
//! [`answer`] is pure, bytes to bytes. What is not a well-formed query gets no answer. Source: RFC 1035, 2308, 6891;
//! VPC "internal DNS".

mod zone;

use hickory_proto::{
    op::{Edns, Message, MessageType, OpCode, ResponseCode},
    rr::{DNSClass, Record},
};
use model::limits::DNS_UDP_BYTES_MAX;

use zone::Found;
pub use zone::Zone;

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
            Found::Records(all, ttl) => {
                reply.add_answers(all.into_iter().map(|d| Record::from_rdata(question.name().clone(), ttl, d)));
                ResponseCode::NoError
            }
            Found::NoData(soa) => {
                reply.add_authorities(soa.map(|soa| *soa));
                ResponseCode::NoError
            }
            Found::NoName(soa) => {
                reply.add_authorities(soa.map(|soa| *soa));
                ResponseCode::NXDomain
            }
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
    use hickory_proto::{
        op::Query,
        rr::{Name, RecordType},
    };
    use model::{
        directory::{ZONE_MAILBOX, ZONE_SERVER},
        planned::guest::Names,
    };

    use super::{zone::METADATA, *};

    fn zone() -> Zone {
        let names = [
            ("test-vm.asia-northeast1-b.c.consumer-1.internal", "10.2.0.2"),
            ("test-vm.c.consumer-1.internal", "10.2.0.2"),
            ("metadata.google.internal", "10.66.66.66"),
        ];
        let mut zone = Zone::default();
        names.iter().for_each(|(name, address)| zone.add(&called(name, address)));
        zone
    }

    fn called(name: &str, address: &str) -> Names {
        Names { zone: None, names: vec![name.to_owned()], addresses: vec![address.parse().unwrap()] }
    }

    /// A private zone, and a name in it.
    fn in_zone(apex: &str, name: &str, addresses: &[&str]) -> Names {
        let names = if name.is_empty() { vec![] } else { vec![format!("{name}.{apex}")] };
        Names { zone: Some(apex.to_owned()), names, addresses: addresses.iter().map(|a| a.parse().unwrap()).collect() }
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
        let [first, second] = ["10.2.0.2", "10.2.0.3"].map(|address| called("a.c.p.internal", address));
        let code = |zone: &Zone, name: &str| reply(zone, &ask(name, RecordType::A)).metadata.response_code;
        zone.add(&second);
        zone.add(&first);
        zone.add(&first);
        let held = |zone: &Zone| {
            reply(zone, &ask("a.c.p.internal.", RecordType::A)).answers.first().map(|record| record.data.to_string())
        };
        assert_eq!(held(&zone).as_deref(), Some("10.2.0.2"));
        zone.remove(&first);
        assert_eq!(held(&zone).as_deref(), Some("10.2.0.2"), "it came to its next holder before it left the last one");
        zone.remove(&first);
        assert_eq!(held(&zone).as_deref(), Some("10.2.0.3"));
        zone.remove(&second);
        zone.remove(&second);
        assert_eq!(code(&zone, "a.c.p.internal."), ResponseCode::NXDomain);
        assert_eq!(code(&zone, "c.p.internal."), ResponseCode::NXDomain);
        assert_eq!(
            code(&zone, "google.internal."),
            ResponseCode::NoError,
            "the metadata server's name stands under it"
        );
        zone.remove(&called(METADATA, "169.254.169.254"));
        assert_eq!(code(&zone, "metadata.google.internal."), ResponseCode::NoError);
    }

    #[test]
    fn a_private_zone_answers_for_all_that_is_below_it_and_the_longest_of_several_does() {
        use RecordType as T;
        let mut zone = zone();
        let outer = [in_zone("example.com", "", &[]), in_zone("example.com", "p", &["10.1.0.9"])];
        let inner = [in_zone("p.example.com", "", &[]), in_zone("p.example.com", "e", &["10.1.0.6", "10.1.0.5"])];
        outer.iter().chain(&inner).for_each(|names| zone.add(names));
        let asked = |zone: &Zone, name: &str, kind| {
            let reply = reply(zone, &ask(name, kind));
            let data: Vec<String> = reply.answers.iter().map(|record| record.data.to_string()).collect();
            let authority = reply.authorities.first().map(|record| record.name.to_string());
            (reply.metadata.response_code, data.join(" "), authority)
        };
        let says = |apex: &str| Some(format!("{apex}."));
        for (name, kind, code, data, authority) in [
            ("e.p.example.com.", T::A, ResponseCode::NoError, "10.1.0.5 10.1.0.6", None),
            ("E.P.example.com.", T::A, ResponseCode::NoError, "10.1.0.5 10.1.0.6", None),
            ("e.p.example.com.", T::AAAA, ResponseCode::NoError, "", says("p.example.com")),
            ("f.p.example.com.", T::A, ResponseCode::NXDomain, "", says("p.example.com")),
            ("p.example.com.", T::A, ResponseCode::NoError, "", says("p.example.com")),
            ("p.example.com.", T::NS, ResponseCode::NoError, ZONE_SERVER, None),
            ("q.example.com.", T::A, ResponseCode::NXDomain, "", says("example.com")),
            ("example.org.", T::A, ResponseCode::NXDomain, "", None),
            ("5.0.1.10.in-addr.arpa.", T::PTR, ResponseCode::NXDomain, "", None),
        ] {
            assert_eq!(asked(&zone, name, kind), (code, data.to_owned(), authority), "{name} {kind}");
        }
        let (_, soa, _) = asked(&zone, "p.example.com.", T::SOA);
        assert!(soa.starts_with(&format!("{ZONE_SERVER} {ZONE_MAILBOX} 1 ")), "{soa}");
        zone.remove(&inner[1]);
        let gone = (ResponseCode::NXDomain, String::new(), says("p.example.com"));
        assert_eq!(asked(&zone, "e.p.example.com.", T::A), gone, "the zone stays when its last name goes");
        zone.remove(&inner[0]);
        let outer = (ResponseCode::NoError, "10.1.0.9".to_owned(), None);
        assert_eq!(asked(&zone, "p.example.com.", T::A), outer, "and the one above it answers when it goes itself");
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
