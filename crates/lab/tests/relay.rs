//! Tunnels of the Identity-Aware Proxy enter a VPC as packets like any other, from addresses that nobody else has.

#![allow(clippy::unwrap_used)]

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddrV4, TcpStream},
    sync::mpsc::sync_channel,
    time::Duration,
};

use host::{
    capture::Capture,
    hands::verify::Lies,
    names,
    net::flow::{self, Said},
};
use lab::{
    Lab, Vm, packet, plan,
    scene::{SILENCE, connected},
    tcp, until,
};
use model::{
    id::NetworkId,
    planned::host::{Difference, FirewallRule, PlannedProtocol, VpcPlan},
    vpc::{Action, Direction, PortRange},
};

const NET: u64 = 901;
const OTHER: u64 = 902;
const RELAY: &str = "35.235.240.0/20";
const VM: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 2);

fn closed() -> VpcPlan {
    let mut plan = plan::vpc(&[("web", "10.1.0.2"), ("db", "10.1.0.3")]);
    plan.settings.firewall.clear();
    plan
}

const SYN: u8 = 2;

/// Who tried to connect to whom, as the capture saw it.
fn opened(at: &Capture) -> Vec<(IpAddr, IpAddr)> {
    at.headers().into_iter().filter(|h| h.opens()).map(|h| (h.src, h.dst)).collect()
}

/// What people write to let the proxy in: `--allow=tcp:22 --source-ranges=35.235.240.0/20`.
fn allow_iap_ssh() -> FirewallRule {
    let mut rule = plan::rule("allow-iap-ssh", Direction::Ingress, Action::Allow);
    rule.peers = plan::hosts(&[RELAY]);
    rule.protocols = vec![PlannedProtocol { protocol: 6, ports: vec![PortRange { first: 22, last: 22 }] }];
    rule
}

fn open() -> VpcPlan {
    let mut plan = closed();
    plan.settings.firewall = vec![allow_iap_ssh()];
    plan
}

fn scene(plan: &VpcPlan) -> (Lab, Vm) {
    let mut lab = Lab::new();
    lab.hands().apply_vpc(NetworkId(NET), plan).unwrap();
    let vm = lab.vm(NET, "web", "10.1.0.2");
    (lab, vm)
}

/// As the relay waits for a connection that the hands have begun.
fn dial(lab: &mut Lab, network: u64, to: &str) -> io::Result<TcpStream> {
    connected(lab.hands().dial(NetworkId(network), to.parse().unwrap()).unwrap()?, SILENCE)
}

#[test]
fn a_tunnel_reaches_a_vm_from_the_published_range_where_a_rule_lets_it_in() {
    let (mut lab, vm) = scene(&open());
    let server = vm.serve(22);
    let cable = lab.capture(&names::vpc_ns(NetworkId(NET)), &vm.port());
    let mut stream = dial(&mut lab, NET, "10.1.0.2:22").unwrap();
    let seen = tcp::greeting(&mut stream).unwrap();
    assert_eq!(tcp::ask(&mut stream, "hello").unwrap(), "hello");
    let range: model::cidr::Cidr = RELAY.parse().unwrap();
    let IpAddr::V4(source) = seen.ip() else { panic!("{seen} is no IPv4 address") };
    assert!(range.contains(source), "the VM sees {source}");
    assert_eq!(server.clients(), [seen]);
    until("the first packet is seen", || !opened(&cable).is_empty());
    assert_eq!(opened(&cable), [(IpAddr::V4(source), IpAddr::V4(VM))]);
}

#[test]
fn without_a_rule_no_packet_of_a_tunnel_reaches_the_vm() {
    let (mut lab, vm) = scene(&closed());
    let server = vm.serve(22);
    let cable = lab.capture(&names::vpc_ns(NetworkId(NET)), &vm.port());
    let sent = {
        // Made by the first attempt, which is as silent as the second.
        assert_eq!(dial(&mut lab, NET, "10.1.0.2:22").unwrap_err().kind(), io::ErrorKind::TimedOut);
        let sent = lab.capture(&names::relay_ns(NetworkId(NET)), &names::to_vpc());
        assert_eq!(dial(&mut lab, NET, "10.1.0.2:22").unwrap_err().kind(), io::ErrorKind::TimedOut);
        until("the attempt is seen where it is made", || !sent.headers().is_empty());
        opened(&sent).len()
    };
    assert!(sent > 0, "it was tried");
    let reached = cable.headers().iter().filter(|h| h.dst == IpAddr::V4(VM)).count();
    assert_eq!((reached, server.clients().len()), (0, 0));

    // The rule is about one port.
    lab.hands().apply_vpc(NetworkId(NET), &open()).unwrap();
    let _other = vm.serve(23);
    assert_eq!(dial(&mut lab, NET, "10.1.0.2:23").unwrap_err().kind(), io::ErrorKind::TimedOut);
    assert!(dial(&mut lab, NET, "10.1.0.2:22").is_ok());
}

#[test]
fn a_port_on_which_nobody_listens_refuses() {
    let (mut lab, _vm) = scene(&open());
    assert_eq!(dial(&mut lab, NET, "10.1.0.2:22").unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
}

#[test]
fn a_tunnel_reaches_vms_and_nothing_else() {
    let mut plan = plan::with_vip(plan::vpc(&[("web", "10.1.0.2")]), "10.1.0.9:80");
    plan = plan::with_endpoint(plan, "10.1.0.5", None);
    let (mut lab, _vm) = scene(&plan);
    let _balancer = lab.serve_vip(NET, "10.1.0.9:80");
    for elsewhere in ["10.1.0.9:80", "10.1.0.5:80", "169.254.169.254:80", "10.1.0.77:22"] {
        assert!(dial(&mut lab, NET, elsewhere).is_err(), "{elsewhere}");
    }
}

#[test]
fn a_vm_can_neither_speak_as_the_proxy_nor_to_it() {
    let (mut lab, web) = scene(&open());
    let db = lab.vm(NET, "db", "10.1.0.3");
    let _server = db.serve(22);
    let cable = lab.capture(&names::vpc_ns(NetworkId(NET)), &db.port());
    let forged = packet::tcp("35.235.240.1:40000".parse().unwrap(), SocketAddrV4::new(db.address, 22), SYN);
    web.forge(&forged, db.address);
    assert!(dial(&mut lab, NET, "10.1.0.3:22").is_ok(), "the proxy itself gets in");
    until("the proxy's own packet is seen", || !opened(&cable).is_empty());
    assert_eq!(opened(&cable).len(), 1, "the forged one, sent before it, did not");
    let relay = lab.capture(&names::relay_ns(NetworkId(NET)), &names::to_vpc());
    assert_eq!(web.refused("35.235.240.1:40000").kind(), io::ErrorKind::TimedOut);
    assert_eq!(
        relay.headers().iter().filter(|h| h.src == IpAddr::V4(web.address)).count(),
        0,
        "nor does it hear of the VM"
    );
}

#[test]
fn vms_with_one_address_in_two_networks_are_reached_each_through_its_own() {
    let (mut lab, here) = scene(&open());
    let mut other = plan::vpc(&[("web-2", "10.1.0.2")]);
    other.settings.firewall = vec![allow_iap_ssh()];
    lab.hands().apply_vpc(NetworkId(OTHER), &other).unwrap();
    let there = lab.vm(OTHER, "web-2", "10.1.0.2");
    let servers = [here.serve(22), there.serve(22)];
    let mut streams = [NET, OTHER].map(|network| dial(&mut lab, network, "10.1.0.2:22").unwrap());
    for (stream, server) in streams.iter_mut().zip(&servers) {
        let seen = tcp::greeting(stream).unwrap();
        assert_eq!(server.clients(), [seen]);
        assert_eq!(tcp::ask(stream, "who").unwrap(), "who");
    }
}

#[test]
fn tunnels_live_over_a_restart_of_the_host_and_over_changes_of_the_network() {
    let (mut lab, vm) = scene(&open());
    let _server = vm.serve(22);
    let mut stream = dial(&mut lab, NET, "10.1.0.2:22").unwrap();
    tcp::greeting(&mut stream).unwrap();
    lab.restart();
    lab.hands().apply_vpc(NetworkId(NET), &open()).unwrap();
    lab.hands().apply_vpc(NetworkId(NET), &plan::with_endpoint(open(), "10.1.0.5", None)).unwrap();
    assert_eq!(tcp::ask(&mut stream, "still there").unwrap(), "still there");
    assert!(dial(&mut lab, NET, "10.1.0.2:22").is_ok(), "and new ones come about");
    let lies = BTreeMap::from([(vm.id.clone(), Lies::Perhaps)]);
    let (_, differences) = lab.hands().verify(&lies).unwrap();
    let about = |d: &Difference| d.namespace.starts_with("iap") || d.what.contains("iap0");
    assert!(!differences.iter().any(about), "{differences:?}");
    lab.hands().remove_vpc(NetworkId(NET)).unwrap();
    assert_eq!(lab.hands().pins().names().unwrap(), Vec::<String>::new());
}

#[test]
fn a_tunnel_is_a_flow_of_its_network() {
    let mut logged = open();
    logged.settings.flow_logs = true;
    let (mut lab, vm) = scene(&logged);
    let _server = vm.serve(22);
    let (out, said) = sync_channel(64);
    let netns = lab.hands().pins().open(&names::vpc_ns(NetworkId(NET))).unwrap().unwrap();
    let tuning = flow::Tuning { interval: Duration::from_millis(200), events_bytes: None };
    let _watch = flow::watch(NetworkId(NET), &netns, tuning, out).unwrap();
    let mut stream = dial(&mut lab, NET, "10.1.0.2:22").unwrap();
    let source = tcp::greeting(&mut stream).unwrap();
    let mut ends = Vec::new();
    until("both directions were told", || {
        while let Ok(Said::Flows(records)) = said.try_recv() {
            ends.extend(records.iter().map(|r| (IpAddr::V4(r.src), IpAddr::V4(r.dst), r.forward)));
        }
        [(source.ip(), IpAddr::V4(VM), true), (IpAddr::V4(VM), source.ip(), false)].iter().all(|e| ends.contains(e))
    });
}
