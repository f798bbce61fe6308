//! Private Service Connect with real packets. Consumer and producer use the same ranges everywhere, and the consumer
//! owns VMs with the VIP's and the NAT address, so that any leak finds somebody at home.

use std::{
    collections::BTreeMap,
    io::{self, Read, Write},
    net::{IpAddr, SocketAddrV4},
};

use host::{capture::Headers, names};
use lab::{Lab, packet, tcp, until};
use model::{
    id::{EndpointId, ListenerId, NetworkId, WorkloadId},
    planned::host::{ConsumerEndpoint, FirewallRule, Match, PublishedEndpoint, Vip, VpcPlan},
    vpc::{Action, Direction, PortRange},
};

const SHOP: u64 = 7001;
const CAFE: u64 = 7002;
const BANK: u64 = 9001;
const ENDPOINT: &str = "10.0.0.5:80";
const VIP: &str = "10.0.1.2:80";
const HTTP: PortRange = PortRange { first: 80, last: 80 };

fn vpc(vms: &[(&str, &str)]) -> VpcPlan {
    let allow = FirewallRule {
        name: "allow-all".into(),
        direction: Direction::Ingress,
        action: Action::Allow,
        targets: Match::Any,
        peers: Match::Any,
        destinations: Match::Any,
        protocols: vec![],
    };
    VpcPlan {
        mtu: 1460,
        ports: vms.iter().map(|(n, a)| (WorkloadId((*n).into()), a.parse().unwrap())).collect(),
        firewall: vec![allow],
        flow_interval_s: 5,
        psc_idle_s: 1200,
        ..VpcPlan::default()
    }
}

fn consumer(prefix: &str) -> VpcPlan {
    let names: Vec<_> = ["till", "vip", "nat"].iter().map(|n| format!("{prefix}-{n}")).collect();
    let mut plan = vpc(&[(&names[0], "10.0.0.2"), (&names[1], "10.0.1.2"), (&names[2], "10.0.3.2")]);
    let endpoint = ConsumerEndpoint { address: "10.0.0.5".parse().unwrap(), producer: Some(NetworkId(BANK)) };
    plan.endpoints = BTreeMap::from([(EndpointId(1), endpoint)]);
    plan
}

fn published(consumer: u64, nat: &str) -> PublishedEndpoint {
    PublishedEndpoint {
        consumer: NetworkId(consumer),
        address: "10.0.0.5".parse().unwrap(),
        nat: nat.parse().unwrap(),
        vip: "10.0.1.2".parse().unwrap(),
        ports: HTTP,
    }
}

fn producer(endpoints: &[(u64, PublishedEndpoint)]) -> VpcPlan {
    let mut plan = vpc(&[("bank-vault", "10.0.0.2")]);
    plan.vips = BTreeMap::from([(ListenerId(1), Vip { address: "10.0.1.2".parse().unwrap(), ports: HTTP })]);
    plan.published = endpoints.iter().map(|(id, e)| (EndpointId(*id), e.clone())).collect();
    plan
}

fn both() -> Vec<(u64, PublishedEndpoint)> {
    vec![(1, published(SHOP, "10.0.3.2")), (2, published(CAFE, "10.0.3.3"))]
}

fn apply(lab: &mut Lab, network: u64, plan: &VpcPlan) {
    lab.hands().apply_vpc(NetworkId(network), plan).unwrap();
}

fn v4(a: &str) -> IpAddr {
    a.parse().unwrap()
}

#[test]
fn an_endpoint_reaches_the_load_balancer_and_nobody_who_has_its_addresses() {
    let mut lab = Lab::new();
    apply(&mut lab, SHOP, &consumer("shop"));
    apply(&mut lab, BANK, &producer(&both()));
    let till = lab.vm(SHOP, "shop-till", "10.0.0.2");
    let decoys = [lab.vm(SHOP, "shop-vip", "10.0.1.2"), lab.vm(SHOP, "shop-nat", "10.0.3.2")];
    let _vault = lab.vm(BANK, "bank-vault", "10.0.0.2");
    let decoy_servers = decoys.each_ref().map(|vm| vm.serve(80));
    let server = lab.serve_vip(BANK, VIP);
    let link = lab.capture(&names::vpc_ns(NetworkId(BANK)), &names::incoming(NetworkId(SHOP)));
    let edge = lab.capture(&names::vpc_ns(NetworkId(BANK)), &names::to_edge());

    let mut stream = till.connect_from(40_000, ENDPOINT).unwrap();
    assert_eq!(tcp::greeting(&mut stream).unwrap(), "10.0.3.2:40000".parse().unwrap());
    assert_eq!(tcp::ask(&mut stream, "balance?").unwrap(), "balance?");

    assert_eq!(server.clients().len(), 1);
    assert!(decoy_servers.iter().all(|s| s.clients().is_empty()));
    until("both hops were seen", || link.headers().len() > 3 && edge.headers().len() > 3);
    let hops = |headers: Vec<Headers>| {
        let opening = headers.into_iter().find(Headers::opens).unwrap();
        (opening.src, opening.src_port, opening.dst, opening.dst_port)
    };
    assert_eq!(hops(link.headers()), (v4("10.0.0.2"), 40_000, v4("10.0.0.5"), 80));
    assert_eq!(hops(edge.headers()), (v4("10.0.3.2"), 40_000, v4("10.0.1.2"), 80));
    assert!(edge.headers().iter().all(|h| h.src != v4("10.0.0.2") && h.dst != v4("10.0.0.2")));
}

#[test]
fn two_consumers_with_one_address_and_one_port_are_told_apart() {
    let mut lab = Lab::new();
    apply(&mut lab, BANK, &producer(&both()));
    apply(&mut lab, SHOP, &consumer("shop"));
    apply(&mut lab, CAFE, &consumer("cafe"));
    let [shop, cafe] = [(SHOP, "shop-till"), (CAFE, "cafe-till")].map(|(n, name)| lab.vm(n, name, "10.0.0.2"));
    let _server = lab.serve_vip(BANK, VIP);
    let mut streams = [&shop, &cafe].map(|vm| vm.connect_from(40_000, ENDPOINT).unwrap());
    let seen = streams.each_mut().map(|s| tcp::greeting(s).unwrap().to_string());
    assert_eq!(seen, ["10.0.3.2:40000", "10.0.3.3:40000"]);
    for (stream, text) in streams.iter_mut().zip(["shop", "cafe"]) {
        assert_eq!(tcp::ask(stream, text).unwrap(), text);
    }
}

#[test]
fn an_endpoint_that_does_not_forward_is_silent_and_nothing_reaches_the_producer() {
    let mut lab = Lab::new();
    let mut shop = consumer("shop");
    shop.endpoints.values_mut().for_each(|e| e.producer = None);
    apply(&mut lab, SHOP, &shop);
    apply(&mut lab, BANK, &producer(&both()));
    let till = lab.vm(SHOP, "shop-till", "10.0.0.2");
    let server = lab.serve_vip(BANK, VIP);
    let edge = lab.capture(&names::vpc_ns(NetworkId(BANK)), &names::to_edge());
    let cable = lab.capture(&names::vpc_ns(NetworkId(SHOP)), &till.port());
    assert_eq!(till.connect(ENDPOINT).unwrap_err().kind(), io::ErrorKind::TimedOut);
    assert!(cable.headers().iter().any(Headers::opens), "the VM did try");
    assert!(cable.headers().iter().all(|h| h.src == v4("10.0.0.2")), "no RST and no ICMP came back");
    assert_eq!((edge.headers(), server.clients()), (vec![], vec![]));
}

#[test]
fn an_endpoint_that_the_producer_does_not_publish_reaches_nothing_although_its_link_lies() {
    let mut lab = Lab::new();
    apply(&mut lab, SHOP, &consumer("shop"));
    apply(&mut lab, BANK, &producer(&[(2, published(CAFE, "10.0.3.3"))]));
    let till = lab.vm(SHOP, "shop-till", "10.0.0.2");
    let server = lab.serve_vip(BANK, VIP);
    let edge = lab.capture(&names::vpc_ns(NetworkId(BANK)), &names::to_edge());
    assert_eq!(till.connect(ENDPOINT).unwrap_err().kind(), io::ErrorKind::TimedOut);
    assert_eq!((edge.headers(), server.clients()), (vec![], vec![]));
}

#[test]
fn a_cut_endpoint_passes_no_further_byte_in_either_direction_and_others_live_on() {
    let mut lab = Lab::new();
    apply(&mut lab, BANK, &producer(&both()));
    apply(&mut lab, SHOP, &consumer("shop"));
    apply(&mut lab, CAFE, &consumer("cafe"));
    let [shop, cafe] = [(SHOP, "shop-till"), (CAFE, "cafe-till")].map(|(n, name)| lab.vm(n, name, "10.0.0.2"));
    let _server = lab.serve_vip(BANK, VIP);
    let mut streams = [&shop, &cafe].map(|vm| vm.connect(ENDPOINT).unwrap());
    streams.iter_mut().for_each(|s| assert!(tcp::greeting(s).is_ok()));

    let mut cut = producer(&both()[1..]);
    cut.cut = ["10.0.3.2".parse().unwrap()].into();
    apply(&mut lab, BANK, &cut);
    let cable = lab.capture(&names::vpc_ns(NetworkId(SHOP)), &shop.port());
    let edge = lab.capture(&names::vpc_ns(NetworkId(BANK)), &names::to_edge());
    streams[0].set_read_timeout(Some(lab::scene::SILENCE)).unwrap();
    streams[0].write_all(b"still there?").unwrap();
    let silence = streams[0].read(&mut [0; 8]).unwrap_err().kind();
    assert!(matches!(silence, io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut), "{silence:?}");
    assert_eq!(tcp::ask(&mut streams[1], "and you?").unwrap(), "and you?");

    assert!(cable.headers().iter().any(|h| h.payload_bytes > 0), "the VM did send");
    assert!(cable.headers().iter().all(|h| h.src == v4("10.0.0.2")), "nothing came back, no RST and no ICMP");
    assert!(edge.headers().iter().all(|h| h.src != v4("10.0.3.2") && h.dst != v4("10.0.3.2")));
}

#[test]
fn a_producer_reaches_no_consumer_not_even_by_the_nat_address() {
    let mut lab = Lab::new();
    apply(&mut lab, SHOP, &consumer("shop"));
    apply(&mut lab, BANK, &producer(&both()));
    let _till = lab.vm(SHOP, "shop-till", "10.0.0.2");
    let nat_owner = lab.vm(SHOP, "shop-nat", "10.0.3.2");
    let vault = lab.vm(BANK, "bank-vault", "10.0.0.2");
    let _server = lab.serve_vip(BANK, VIP);
    let cables = [
        lab.capture(&names::vpc_ns(NetworkId(SHOP)), &nat_owner.port()),
        lab.capture(&names::vpc_ns(NetworkId(SHOP)), &names::outgoing(NetworkId(BANK))),
    ];
    let port = lab.capture(&names::vpc_ns(NetworkId(BANK)), &vault.port());
    let at = |a: &str| -> SocketAddrV4 { a.parse().unwrap() };
    for target in ["10.0.3.2:53", "10.0.3.3:53"] {
        for source in ["10.0.0.2:53", "10.0.1.2:80"] {
            vault.forge(&packet::udp(at(source), at(target), b"hello"), *at(target).ip());
            vault.forge(&packet::tcp(at(source), at(target), Headers::SYN | Headers::ACK), *at(target).ip());
        }
    }
    until("the forged packets were on the producer's cable", || {
        port.headers().iter().filter(|h| h.src_port == 53 || h.src_port == 80).count() == 8
    });
    assert_eq!(cables.each_ref().map(|c| c.headers()), [vec![], vec![]]);
}
