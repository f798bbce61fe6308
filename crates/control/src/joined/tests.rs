//! The join, with what is told of a call in every order, and at its bounds.

use std::time::Duration;

use model::limits::VPC_CONNECTIONS_MAX;

use super::*;

const CONSUMER: NetworkId = NetworkId(1);
const PRODUCER: NetworkId = NetworkId(2);
const TRACE: TraceId = 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736;
/// When everything in these tests happens, in milliseconds; by the one clock and by the other.
const START: i64 = 1_000_000;

fn at(ms: i64) -> Timestamp {
    Timestamp((START + ms) * 1_000)
}

fn v4(text: &str) -> SocketAddrV4 {
    text.parse().unwrap()
}

fn consumers() -> Connection {
    Connection { network: CONSUMER, client: v4("10.1.0.2:40000"), server: v4("10.1.0.5:80") }
}

fn producers() -> Connection {
    Connection { network: PRODUCER, client: v4("10.0.3.2:1024"), server: v4("10.0.1.2:80") }
}

/// The flow of this connection between two times.
fn flow(connection: Connection, first: i64, last: i64, opening: bool) -> FlowRecord {
    FlowRecord {
        network: connection.network,
        protocol: 6,
        src: *connection.client.ip(),
        dst: *connection.server.ip(),
        src_port: connection.client.port(),
        dst_port: connection.server.port(),
        packets: 5,
        bytes: 100,
        first: at(first),
        last: at(last),
        opening,
        forward: true,
    }
}

fn request(trace: TraceId, arrived: i64, ended: i64) -> RequestRecord {
    RequestRecord {
        service: None,
        revision: None,
        instance: None,
        front: None,
        arrived: at(arrived),
        latency_ns: u64::try_from(ended - arrived).unwrap() * 1_000_000,
        method: "GET".into(),
        url: "http://10.1.0.5/".into(),
        protocol: "HTTP/1.1".into(),
        status: 200,
        request_bytes: 1,
        response_bytes: 1,
        user_agent: None,
        referer: None,
        remote: [10, 0, 3, 2].into(),
        trace: format!("{trace:032x}"),
        span: String::new(),
        sampled: false,
        refusal: None,
    }
}

fn mapped(from: Connection, to: Connection, born: i64) -> Mapped {
    Mapped {
        network: to.network,
        consumer: from.client,
        endpoint: from.server,
        nat: to.client,
        target: to.server,
        at: at(born),
    }
}

type Flows = Joined<&'static str>;

/// Holds a flow and waits for it.
fn told(joined: &mut Flows, connection: Connection, flow: FlowRecord) -> Vec<TraceId> {
    assert_eq!(joined.hold(connection, flow, "it", at(0)), None);
    let due = joined.due(at(1_000));
    assert_eq!(due.len(), 1);
    due.into_iter().next().unwrap().1
}

#[test]
fn both_flows_of_a_call_find_its_trace_whatever_is_told_first() {
    let steps: [fn(&mut Flows); 4] = [
        |j| j.request(producers(), &request(TRACE, 10, 20), at(0)),
        |j| j.mapped(CONSUMER, &mapped(consumers(), producers(), 1), at(0)),
        |j| drop(j.hold(consumers(), flow(consumers(), 0, 30, true), "consumer", at(0))),
        |j| drop(j.hold(producers(), flow(producers(), 1, 30, true), "producer", at(0))),
    ];
    let mut orders = 0;
    for a in 0..4 {
        for b in (0..4).filter(|b| *b != a) {
            for c in (0..4).filter(|c| ![a, b].contains(c)) {
                let order = [a, b, c, 6 - a - b - c];
                let mut joined = Flows::default();
                order.iter().for_each(|step| steps[*step](&mut joined));
                assert_eq!(joined.due(at(999)), [], "its requests may still come");
                let mut due = joined.due(at(1_000));
                due.sort();
                assert_eq!(due, [("consumer", vec![TRACE]), ("producer", vec![TRACE])], "{order:?}");
                orders += 1;
            }
        }
    }
    assert_eq!(orders, 24);
}

#[test]
fn the_reply_is_of_the_same_connection() {
    let there = flow(consumers(), 0, 30, true);
    let back = FlowRecord {
        src: there.dst,
        dst: there.src,
        src_port: there.dst_port,
        dst_port: there.src_port,
        forward: false,
        ..there.clone()
    };
    assert_eq!(Connection::of_flow(&there), Some(consumers()));
    assert_eq!(Connection::of_flow(&back), Some(consumers()));
    assert_eq!(Connection::of_flow(&FlowRecord { protocol: 17, ..there }), None);
}

#[test]
fn a_flow_names_the_requests_of_its_own_interval_oldest_first_and_each_once() {
    let mut joined = Flows::default();
    joined.mapped(CONSUMER, &mapped(consumers(), producers(), 1), at(0));
    for (trace, arrived, ended) in [(1, 10, 20), (2, 30, 40), (2, 50, 60), (3, 90, 4_995), (4, 5_500, 5_600)] {
        joined.request(producers(), &request(trace, arrived, ended), at(0));
    }
    assert_eq!(told(&mut joined, consumers(), flow(consumers(), 0, 5_000, true)), [1, 2, 3]);
    let next = flow(consumers(), 5_000, 10_000, false);
    assert_eq!(
        told(&mut joined, consumers(), next),
        [3, 4],
        "the last bytes of the third may have left a moment later"
    );
    assert_eq!(told(&mut joined, consumers(), flow(consumers(), 10_000, 15_000, false)), []);
}

#[test]
fn a_connection_that_is_older_than_this_control_is_joined_once_the_host_has_told_it_again() {
    let mut joined = Flows::default();
    joined.request(producers(), &request(TRACE, 6_000, 6_100), at(0));
    let interval = || flow(consumers(), 5_000, 10_000, false);
    assert_eq!(told(&mut joined, consumers(), interval()), [], "nobody has said how it is translated");
    joined.mapped(CONSUMER, &mapped(consumers(), producers(), -60_000), at(0));
    assert_eq!(told(&mut joined, consumers(), interval()), [TRACE]);
}

#[test]
fn a_call_within_one_network_needs_no_translation() {
    let mut joined = Flows::default();
    joined.request(producers(), &request(TRACE, 10, 20), at(0));
    assert_eq!(told(&mut joined, producers(), flow(producers(), 0, 30, true)), [TRACE]);
}

#[test]
fn equal_addresses_of_two_consumers_stay_apart() {
    let other = NetworkId(3);
    let [behind, theirs] =
        ["10.0.3.3:1024", "10.1.0.2:40000"].map(|client| Connection { client: v4(client), ..producers() });
    let theirs = Connection { network: other, server: consumers().server, ..theirs };
    let mut joined = Flows::default();
    joined.mapped(CONSUMER, &mapped(consumers(), producers(), 1), at(0));
    joined.mapped(other, &mapped(theirs, behind, 1), at(0));
    joined.request(producers(), &request(1, 10, 20), at(0));
    joined.request(behind, &request(2, 10, 20), at(0));
    assert_eq!(told(&mut joined, consumers(), flow(consumers(), 0, 30, true)), [1]);
    assert_eq!(told(&mut joined, theirs, flow(theirs, 0, 30, true)), [2]);
}

#[test]
fn ports_that_are_used_again_do_not_bring_the_traces_of_whoever_had_them() {
    let mut joined = Flows::default();
    joined.mapped(CONSUMER, &mapped(consumers(), producers(), 1), at(0));
    joined.request(producers(), &request(1, 10, 20), at(0));
    // The VM opens another connection from its port, and how that is translated was not heard.
    joined.request(producers(), &request(2, 60_010, 60_020), at(0));
    assert_eq!(told(&mut joined, consumers(), flow(consumers(), 60_000, 60_100, true)), []);
    assert_eq!(told(&mut joined, consumers(), flow(consumers(), 60_100, 60_200, false)), []);

    // Another VM gets the NAT port.
    let neighbour = Connection { client: v4("10.1.0.3:50000"), ..consumers() };
    joined.mapped(CONSUMER, &mapped(consumers(), producers(), 1), at(0));
    joined.mapped(CONSUMER, &mapped(neighbour, producers(), 70_000), at(0));
    joined.request(producers(), &request(3, 70_010, 70_020), at(0));
    assert_eq!(told(&mut joined, consumers(), flow(consumers(), 70_005, 70_100, false)), []);
    assert_eq!(told(&mut joined, neighbour, flow(neighbour, 69_999, 70_100, true)), [3]);
}

#[test]
fn of_many_requests_on_one_connection_the_last_ones_are_known() {
    let mut joined = Flows::default();
    let most = TraceId::try_from(TRACES_PER_CONNECTION_MAX).unwrap();
    for trace in 1..=most + 3 {
        joined.request(producers(), &request(trace, 10, 20), at(0));
    }
    let want: Vec<_> = (4..=most + 3).collect();
    assert_eq!(told(&mut joined, producers(), flow(producers(), 0, 30, true)), want);
}

#[test]
fn when_there_is_no_room_the_oldest_flow_is_told_at_once_and_none_is_lost() {
    let mut joined = Joined::default();
    joined.request(producers(), &request(TRACE, 10, 20), at(0));
    let mut early = Vec::new();
    for n in 0..FLOWS_WAITING_MAX + 2 {
        early.extend(joined.hold(producers(), flow(producers(), 0, 30, true), n, at(0)));
    }
    assert_eq!(early, [(0, vec![TRACE]), (1, vec![TRACE])]);
    let due: Vec<_> = joined.due(at(1_000)).into_iter().map(|(n, _)| n).collect();
    assert_eq!(due, (2..FLOWS_WAITING_MAX + 2).collect::<Vec<_>>());
}

#[test]
fn of_more_connections_than_there_is_room_for_the_oldest_are_forgotten() {
    assert_eq!(TRACED_CONNECTIONS_MAX, usize::try_from(VPC_CONNECTIONS_MAX).unwrap());
    let nth = |base: Connection, n: usize| {
        let [b, c] = [n / 250, n % 250].map(|part| u8::try_from(part).unwrap());
        Connection { client: SocketAddrV4::new([10, 9, b, c].into(), 1_024), ..base }
    };
    let mut joined = Flows::default();
    for n in 0..TRACED_CONNECTIONS_MAX + 1 {
        joined.mapped(CONSUMER, &mapped(nth(consumers(), n), nth(producers(), n), 1), at(0));
        joined.request(nth(producers(), n), &request(TRACE, 10, 20), at(0));
    }
    let sizes = [joined.calls.all.len(), joined.translated.all.len(), joined.translates.all.len()];
    assert_eq!(sizes, [TRACED_CONNECTIONS_MAX; 3]);
    let traces = |joined: &mut Flows, n| told(joined, nth(consumers(), n), flow(nth(consumers(), n), 0, 30, true));
    assert_eq!(traces(&mut joined, 0), []);
    assert_eq!(traces(&mut joined, 1), [TRACE]);
    assert_eq!(traces(&mut joined, TRACED_CONNECTIONS_MAX), [TRACE]);
}

#[test]
fn what_was_not_heard_of_for_long_takes_no_memory() {
    let mut joined = Flows::default();
    joined.mapped(CONSUMER, &mapped(consumers(), producers(), 1), at(0));
    joined.request(producers(), &request(TRACE, 10, 20), at(0));
    let keep = i64::try_from(TRACES_KEEP.as_millis()).unwrap();
    joined.forget(at(keep - 1));
    assert_eq!(told(&mut joined, consumers(), flow(consumers(), 0, 30, true)), [TRACE]);
    joined.forget(at(keep - 1).plus(TRACES_KEEP + Duration::from_secs(2)));
    assert_eq!((joined.calls.all.capacity(), joined.translated.all.capacity(), joined.waiting.capacity()), (0, 0, 0));
}
