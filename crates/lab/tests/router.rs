//! What a VPC's router lets through, and what the fabric does.

#![allow(clippy::unwrap_used)]

use std::{
    io,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket},
    sync::mpsc::sync_channel,
    time::Duration,
};

use host::{
    capture::Headers,
    names,
    net::flow::{self, Said},
};
use lab::{Lab, Vm, packet, plan, scene::SILENCE, tcp, until};
use model::{
    id::{NetworkId, WorkloadId},
    planned::{
        guest::Realm,
        host::{Attach, FabricPlan, FabricPort, PlannedProtocol, VpcPlan},
    },
    record::FlowRecord,
    vpc::{Action, Direction, PortRange},
};

const NET: u64 = 501;
const METADATA: &str = "169.254.169.254:80";

fn apply(lab: &mut Lab, plan: &VpcPlan) {
    lab.hands().apply_vpc(NetworkId(NET), plan).unwrap();
}

fn two_vms(plan: &VpcPlan) -> (Lab, Vm, Vm) {
    let mut lab = Lab::new();
    apply(&mut lab, plan);
    let [a, b] = [("web", "10.1.0.2"), ("db", "10.1.0.3")].map(|(name, address)| lab.vm(NET, name, address));
    (lab, a, b)
}

fn vpc() -> VpcPlan {
    plan::vpc(&[("web", "10.1.0.2"), ("db", "10.1.0.3")])
}

fn reaches(from: &Vm, to: &str) -> bool {
    from.connect(to).and_then(|mut stream| tcp::greeting(&mut stream)).is_ok()
}

/// A denied packet is dropped without an answer.
fn is_denied(from: &Vm, to: &str) -> bool {
    from.refused(to).kind() == io::ErrorKind::TimedOut
}

#[test]
fn without_rules_everything_may_leave_and_nothing_may_enter() {
    let mut closed = vpc();
    closed.settings.firewall.clear();
    let (mut lab, web, db) = two_vms(&closed);
    let _server = db.serve(5432);
    assert!(is_denied(&web, "10.1.0.3:5432"));
    apply(&mut lab, &vpc());
    assert!(reaches(&web, "10.1.0.3:5432"));
}

#[test]
fn the_first_packet_of_a_new_vm_arrives() {
    let vms: Vec<(String, String)> = (2..42).map(|n| (format!("vm-{n}"), format!("10.1.0.{n}"))).collect();
    let all: Vec<(&str, &str)> = vms.iter().map(|(name, address)| (&name[..], &address[..])).collect();
    let mut lab = Lab::new();
    apply(&mut lab, &plan::vpc(&all));
    let server = lab.vm(NET, all[0].0, all[0].1).serve(80);
    let lost = all[1..].iter().filter(|(name, address)| !reaches(&lab.vm(NET, name, address), "10.1.0.2:80")).count();
    assert_eq!((lost, server.clients().len()), (0, 39), "a lost one is repeated later than this test waits");
}

#[test]
fn the_first_rule_that_matches_decides() {
    let tcp_5432 = PlannedProtocol { protocol: 6, ports: vec![PortRange { first: 5000, last: 5999 }] };
    let mut plan = vpc();
    let mut allow = plan::rule("allow-db", Direction::Ingress, Action::Allow);
    allow.targets = plan::hosts(&["10.1.0.3/32"]);
    allow.peers = plan::hosts(&["10.1.0.0/24"]);
    allow.protocols = vec![tcp_5432];
    plan.settings.firewall = vec![allow, plan::rule("deny-all", Direction::Ingress, Action::Deny)];
    let (mut lab, web, db) = two_vms(&plan);
    let _servers = [db.serve(5432), db.serve(80), web.serve(5432)];
    assert!(reaches(&web, "10.1.0.3:5432"));
    assert!(is_denied(&web, "10.1.0.3:80"), "another port");
    assert!(is_denied(&db, "10.1.0.2:5432"), "another target");
    plan.settings.firewall.reverse();
    apply(&mut lab, &plan);
    assert!(is_denied(&web, "10.1.0.3:5432"), "the denying rule comes first now");
}

#[test]
fn an_egress_rule_stops_what_an_ingress_rule_would_let_in() {
    let mut plan = vpc();
    let mut deny = plan::rule("deny-out", Direction::Egress, Action::Deny);
    deny.targets = plan::hosts(&["10.1.0.2/32"]);
    plan.settings.firewall.push(deny);
    let (_lab, web, db) = two_vms(&plan);
    let _servers = [db.serve(80), web.serve(80)];
    assert!(is_denied(&web, "10.1.0.3:80"));
    assert!(reaches(&db, "10.1.0.2:80"), "replies of the target pass");
}

#[test]
fn a_tag_that_moves_is_a_set_element_and_no_rule_is_touched() {
    let tagged = |blocks: &[&str]| {
        let mut plan = vpc();
        let mut allow = plan::rule("allow-tagged", Direction::Ingress, Action::Allow);
        allow.targets = plan::hosts(blocks);
        plan.settings.firewall = vec![allow];
        plan
    };
    let (mut lab, web, db) = two_vms(&tagged(&[]));
    let _server = db.serve(80);
    assert!(is_denied(&web, "10.1.0.3:80"), "a tag that no vm carries matches nothing");
    let before = lab.hands().messages_sent();
    apply(&mut lab, &tagged(&["10.1.0.3/32"]));
    assert_eq!(lab.hands().messages_sent() - before, 3, "begin, one message of elements, end");
    assert!(reaches(&web, "10.1.0.3:80"));
}

#[test]
fn a_forged_source_does_not_get_past_the_port() {
    let (mut lab, web, db) = two_vms(&vpc());
    let router = names::vpc_ns(NetworkId(NET));
    let [into_router, to_db] = [web.port(), db.port()].map(|port| lab.capture(&router, &port));
    let at = |a: &str| -> SocketAddrV4 { a.parse().unwrap() };
    web.forge(&packet::udp(at("10.1.0.9:1"), at("10.1.0.3:53"), b"x"), "10.1.0.3".parse().unwrap());
    web.forge(&packet::tcp(at("10.1.0.3:2"), at("10.1.0.3:53"), Headers::SYN), "10.1.0.3".parse().unwrap());
    web.forge(&packet::udp(at("10.1.0.2:3"), at("10.1.0.3:53"), b"x"), "10.1.0.3".parse().unwrap());
    until("the honest packet came through", || to_db.headers().iter().any(|h| h.src_port == 3));
    // The captures have a reader each: one may be behind the other.
    until("all three were sent", || into_router.headers().iter().filter(|h| (1..4).contains(&h.src_port)).count() == 3);
    assert!(to_db.headers().iter().all(|h| h.src_port != 1 && h.src_port != 2));
}

#[test]
fn metadata_answers_a_vm_by_its_own_address_and_the_router_answers_nothing_else() {
    let (mut lab, web, _db) = two_vms(&vpc());
    let [http, dns, _dns_tcp] = lab.hands().metadata_sockets(Realm::Vpc(NetworkId(NET))).unwrap().unwrap();
    let server = tcp::Server::on(TcpListener::from(http)).unwrap();
    let dns = UdpSocket::from(dns);
    dns.set_nonblocking(false).unwrap();
    let mut stream = web.connect(METADATA).unwrap();
    assert_eq!(tcp::greeting(&mut stream).unwrap().ip().to_string(), "10.1.0.2");
    web.inside(|| UdpSocket::bind("0.0.0.0:0").unwrap().send_to(b"name?", "169.254.169.254:53")).unwrap();
    let mut buffer = [0; 16];
    assert_eq!(dns.recv_from(&mut buffer).unwrap().1.ip().to_string(), "10.1.0.2");
    assert_eq!(web.refused("169.254.169.254:22").kind(), io::ErrorKind::TimedOut);

    let port = lab.capture(&names::vpc_ns(NetworkId(NET)), &web.port());
    let forged: SocketAddrV4 = "10.1.0.3:7".parse().unwrap();
    let target: SocketAddrV4 = METADATA.parse().unwrap();
    web.forge(&packet::tcp(forged, target, Headers::SYN), *target.ip());
    until("the forged packet was sent", || port.headers().iter().any(|h| h.src_port == 7));
    assert_eq!(server.clients().len(), 1);
    assert!(port.headers().iter().all(|h| h.dst_port != 7), "no answer to it");
}

#[test]
fn an_address_that_is_nobodys_is_refused_at_once() {
    let (_lab, web, _db) = two_vms(&vpc());
    for outside in ["8.8.8.8:53", "10.1.0.77:80"] {
        assert_eq!(web.refused(outside).kind(), io::ErrorKind::HostUnreachable, "{outside}");
    }
}

#[test]
fn a_vm_of_the_same_vpc_reaches_the_load_balancer_on_its_port_only() {
    let (mut lab, web, _db) = two_vms(&plan::with_vip(vpc(), "10.1.1.2:80"));
    let server = lab.serve_vip(NET, "10.1.1.2:80");
    let mut stream = web.connect("10.1.1.2:80").unwrap();
    assert_eq!(tcp::greeting(&mut stream).unwrap().ip().to_string(), "10.1.0.2");
    let edge = lab.capture(&names::vpc_ns(NetworkId(NET)), &names::to_edge());
    assert_eq!(web.refused("10.1.1.2:81").kind(), io::ErrorKind::TimedOut);
    assert!(edge.headers().iter().all(|h| h.dst_port != 81));
    assert_eq!(server.clients().len(), 1);
}

#[test]
fn two_vpcs_with_one_range_do_not_know_each_other() {
    let (mut lab, web, db) = two_vms(&vpc());
    lab.hands().apply_vpc(NetworkId(502), &plan::vpc(&[("other", "10.1.0.3")])).unwrap();
    let other = lab.vm(502, "other", "10.1.0.3");
    let (ours, theirs) = (db.serve(80), other.serve(80));
    assert!(reaches(&web, "10.1.0.3:80"));
    assert_eq!((ours.clients().len(), theirs.clients().len()), (1, 0));
}

#[test]
fn flow_records_say_who_spoke_to_whom_and_how_much() {
    let mut counted = vpc();
    counted.settings.flow_logs = true;
    let (mut lab, web, db) = two_vms(&counted);
    let _server = db.serve(80);
    let (out, said) = sync_channel(64);
    let netns = lab.hands().pins().open(&names::vpc_ns(NetworkId(NET))).unwrap().unwrap();
    let tuning = flow::Tuning { interval: Duration::from_millis(300), events_bytes: None };
    let _watch = flow::watch(NetworkId(NET), &netns, tuning, out).unwrap();
    let mut stream = web.connect_from(41_000, "10.1.0.3:80").unwrap();
    let greeted = tcp::greeting(&mut stream).unwrap().to_string().len() + 1;
    assert_eq!(tcp::ask(&mut stream, "12345").unwrap(), "12345");

    let mut records: Vec<FlowRecord> = Vec::new();
    until("both directions were told", || {
        while let Ok(Said::Flows(more)) = said.try_recv() {
            records.extend(more);
        }
        [true, false].iter().all(|forward| records.iter().any(|r| r.forward == *forward))
    });
    let total = |forward: bool| -> u64 { records.iter().filter(|r| r.forward == forward).map(|r| r.bytes).sum() };
    let there = records.iter().find(|r| r.forward).unwrap();
    let ends = (there.src.to_string(), there.src_port, there.dst.to_string(), there.dst_port, there.protocol);
    assert_eq!(ends, ("10.1.0.2".to_owned(), 41_000, "10.1.0.3".to_owned(), 80, 6));
    assert!(there.opening && there.packets >= 3);
    // TCP options are payload to a counter of packets and bytes: 12 of time stamps a segment, 20 on a SYN.
    let options =
        |forward: bool| -> u64 { records.iter().filter(|r| r.forward == forward).map(|r| 12 * r.packets + 8).sum() };
    let bounds =
        |payload: usize, forward| u64::try_from(payload).unwrap()..=u64::try_from(payload).unwrap() + options(forward);
    assert!(bounds(5, true).contains(&total(true)), "{records:?}");
    assert!(bounds(5 + greeted, false).contains(&total(false)), "{records:?}");
    let metadata: Ipv4Addr = "169.254.169.254".parse().unwrap();
    assert!(records.iter().all(|r| r.src != metadata && r.dst != metadata));
}

// ---- the fabric ----

/// The fabric itself has `::1`.
fn fabric_port(n: u16) -> FabricPort {
    let v6 = format!("fda3:e722:ac3:1::{:x}", n + 1).parse().unwrap();
    FabricPort { v6, v4: Ipv4Addr::new(169, 254, 100, u8::try_from(n).unwrap()) }
}

fn containers() -> (Lab, Vm, Vm) {
    let mut lab = Lab::new();
    let plan = FabricPlan {
        ports: [("one", 1), ("two", 2)].map(|(id, n)| (WorkloadId(id.into()), fabric_port(n))).into(),
        sources: [(NetworkId(NET), "fda3:e722:ac3:cc00:1:1::".parse().unwrap())].into(),
        ..FabricPlan::default()
    };
    lab.hands().apply_fabric(&plan).unwrap();
    let [one, two] = [("one", 1), ("two", 2)].map(|(id, n)| {
        let port = fabric_port(n);
        lab.workload(id, Attach::Fabric(port.clone()), Realm::Fabric, port.v4)
    });
    (lab, one, two)
}

/// A connection as the proxy makes it, from inside the fabric's namespace.
fn dial(lab: &mut Lab, from: Option<&str>, to: &str) -> io::Result<TcpStream> {
    let to: SocketAddr = to.parse().unwrap();
    let from: Option<SocketAddr> = from.map(|f| f.parse().unwrap());
    let netns = lab.hands().realm(Realm::Fabric).unwrap().netns();
    let socket = netns.run(|| {
        use rustix::net::{AddressFamily, SocketType, bind, connect, socket, sockopt};
        let family = if to.is_ipv6() { AddressFamily::INET6 } else { AddressFamily::INET };
        let socket = socket(family, SocketType::STREAM, None)?;
        sockopt::set_socket_timeout(&socket, sockopt::Timeout::Send, Some(SILENCE))?;
        if let Some(from) = from {
            bind(&socket, &from)?;
        }
        connect(&socket, &to)?;
        io::Result::Ok(socket)
    });
    let stream = TcpStream::from(socket.unwrap()?);
    stream.set_read_timeout(Some(lab::scene::PATIENCE))?;
    Ok(stream)
}

#[test]
fn the_proxy_dials_a_container_from_the_address_that_names_the_client() {
    let (mut lab, one, _two) = containers();
    let listener = one.inside(|| TcpListener::bind("[::]:8080")).unwrap();
    let _server = tcp::Server::on(listener).unwrap();
    let client = "fda3:e722:ac3:cc00:1:1:a00:302";
    let mut stream = dial(&mut lab, Some(&format!("[{client}]:0")), "[fda3:e722:ac3:1::2]:8080").unwrap();
    assert_eq!(tcp::greeting(&mut stream).unwrap().ip().to_string(), client);
}

#[test]
fn a_container_that_listens_on_ipv4_only_is_reached_as_well() {
    let (mut lab, one, _two) = containers();
    let _server = one.serve(8080);
    let mut stream = dial(&mut lab, None, "169.254.100.1:8080").unwrap();
    assert_eq!(tcp::greeting(&mut stream).unwrap().ip().to_string(), "169.254.169.254");
}

#[test]
fn a_container_reaches_the_metadata_address_and_nobody_else() {
    let (mut lab, one, two) = containers();
    let listeners = ["[::]:8080", "0.0.0.0:8081"].map(|at| two.inside(|| TcpListener::bind(at)).unwrap());
    let servers = listeners.map(|l| tcp::Server::on(l).unwrap());
    let [http, ..] = lab.hands().metadata_sockets(Realm::Fabric).unwrap().unwrap();
    let _metadata = tcp::Server::on(TcpListener::from(http)).unwrap();
    let netns = lab.hands().realm(Realm::Fabric).unwrap().netns();
    let proxys_own = netns.run(|| TcpListener::bind("[::]:9999")).unwrap().unwrap();
    let proxys_own = tcp::Server::on(proxys_own).unwrap();

    let mut stream = one.connect(METADATA).unwrap();
    assert_eq!(tcp::greeting(&mut stream).unwrap().ip().to_string(), "169.254.100.1");
    for wall in [
        "[fda3:e722:ac3:1::3]:8080",
        "169.254.100.2:8081",
        "[fda3:e722:ac3:cc00:1:1:a00:302]:9999",
        "169.254.169.254:9999",
    ] {
        one.refused(wall);
    }
    assert!(servers.iter().chain([&proxys_own]).all(|s| s.clients().is_empty()));
    let cable = lab.capture(names::FABRIC_NS, &one.port());
    let stranger: SocketAddrV4 = "169.254.100.2:9".parse().unwrap();
    let target: SocketAddrV4 = METADATA.parse().unwrap();
    one.forge(&packet::tcp(stranger, target, Headers::SYN), *target.ip());
    until("the forged packet was sent", || cable.headers().iter().any(|h| h.src_port == 9));
    assert!(cable.headers().iter().all(|h| h.dst_port != 9));
}

#[test]
fn the_doctor_tries_everything_a_router_needs_and_leaves_nothing_of_the_trial() {
    let mut lab = Lab::new();
    let facts = host::facts::gather(lab.hands(), Vec::new());
    assert!(facts["packets"].ends_with("work"), "{}", facts["packets"]);
    let pins = lab.hands().pins().names().unwrap();
    assert!(pins.iter().all(|name| !name.starts_with("vpc-")), "{pins:?}");
}

#[test]
fn births_and_deaths_that_find_no_room_are_told_as_a_gap() {
    let mut counted = vpc();
    counted.settings.flow_logs = true;
    let (mut lab, web, db) = two_vms(&counted);
    let netns = lab.hands().pins().open(&names::vpc_ns(NetworkId(NET))).unwrap().unwrap();
    let (out, said) = sync_channel(1_024);
    // Room for one or two events, which no reader can keep up with.
    let tuning = flow::Tuning { interval: Duration::from_millis(50), events_bytes: Some(1) };
    let _watch = flow::watch(NetworkId(NET), &netns, tuning, out).unwrap();
    let mut port = 1_024;
    let mut gap = None;
    until("events were lost and that was told", || {
        for _ in 0..500 {
            port = if port == 9_024 { 1_024 } else { port + 1 };
            let [from, to] = [(web.address, port), (db.address, 9)].map(|(a, p)| SocketAddrV4::new(a, p));
            web.forge(&packet::udp(from, to, b"x"), db.address);
        }
        gap =
            gap.take().or_else(|| said.try_iter().find_map(|s| if let Said::Gap(gap) = s { Some(gap) } else { None }));
        gap.is_some()
    });
    let gap = gap.expect("just waited for");
    assert!(gap.network == Some(NetworkId(NET)) && gap.from <= gap.to, "{gap:?}");
}
