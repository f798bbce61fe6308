//! Private Service Connect with real packets. Consumer and producer use the same ranges everywhere, and the consumer
//! owns VMs with the VIP's and the NAT address, so that any leak finds somebody at home.

#![allow(clippy::unwrap_used)]

use std::{
    io::{self, Read, Write},
    net::{IpAddr, SocketAddr, SocketAddrV4},
    sync::mpsc::{Receiver, sync_channel},
    time::Duration,
};

use host::{
    capture::Headers,
    names,
    net::{
        flow::{self, Said},
        state, vpc,
    },
    netlink::{conntrack, expr::Step},
};
use lab::{
    Lab, Vm, packet, plan,
    tcp::{self, Server},
    until,
};
use model::{
    id::{NetworkId, WorkloadId},
    planned::{
        guest::Realm,
        host::{Port, PublishedEndpoint, Reach, VpcPlan},
    },
    record::{FlowRecord, Mapped},
    vpc::{Action, Direction},
};

const SHOP: u64 = 7001;
const CAFE: u64 = 7002;
const BANK: u64 = 9001;
const ENDPOINT: &str = "10.0.0.5:80";
const VIP: &str = "10.0.1.2:80";

fn consumer(prefix: &str) -> VpcPlan {
    let names: Vec<_> = ["till", "vip", "nat"].iter().map(|n| format!("{prefix}-{n}")).collect();
    let vms = [(&names[0][..], "10.0.0.2"), (&names[1], "10.0.1.2"), (&names[2], "10.0.3.2")];
    plan::with_endpoint(plan::vpc(&vms), "10.0.0.5", Some(BANK))
}

fn producer(endpoints: &[(u64, PublishedEndpoint)]) -> VpcPlan {
    plan::with_published(plan::vpc(&[("bank-vault", "10.0.0.2")]), VIP, endpoints)
}

fn both() -> Vec<(u64, PublishedEndpoint)> {
    let endpoint = |consumer, nat| plan::published(consumer, "10.0.0.5", nat, VIP);
    vec![(1, endpoint(SHOP, "10.0.3.2")), (2, endpoint(CAFE, "10.0.3.3"))]
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
fn an_endpoint_may_have_the_vips_own_address_and_its_client_the_nat_address() {
    let mut lab = Lab::new();
    let endpoint = plan::published(SHOP, "10.0.1.2", "10.0.3.2", VIP);
    apply(&mut lab, BANK, &producer(&[(1, endpoint)]));
    apply(&mut lab, SHOP, &plan::with_endpoint(plan::vpc(&[("twin", "10.0.3.2")]), "10.0.1.2", Some(BANK)));
    let twin = lab.vm(SHOP, "twin", "10.0.3.2");
    let _server = lab.serve_vip(BANK, VIP);
    let mut stream = twin.connect_from(40_000, VIP).unwrap();
    assert_eq!(tcp::greeting(&mut stream).unwrap().to_string(), "10.0.3.2:40000");
    assert_eq!(tcp::ask(&mut stream, "same?").unwrap(), "same?");
}

/// A producer that serves, and a till with the same address at each of its two consumers.
fn two_consumers() -> (Lab, Server, [Vm; 2]) {
    let mut lab = Lab::new();
    apply(&mut lab, BANK, &producer(&both()));
    apply(&mut lab, SHOP, &consumer("shop"));
    apply(&mut lab, CAFE, &consumer("cafe"));
    let tills = [(SHOP, "shop-till"), (CAFE, "cafe-till")].map(|(n, name)| lab.vm(n, name, "10.0.0.2"));
    let server = lab.serve_vip(BANK, VIP);
    (lab, server, tills)
}

#[test]
fn two_consumers_with_one_address_and_one_port_are_told_apart() {
    let (_lab, _server, tills) = two_consumers();
    let mut streams = tills.each_ref().map(|vm| vm.connect_from(40_000, ENDPOINT).unwrap());
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
    assert_eq!(till.refused(ENDPOINT).kind(), io::ErrorKind::TimedOut);
    until("the VM's try is seen", || cable.headers().iter().any(Headers::opens));
    assert!(cable.headers().iter().all(|h| h.src == v4("10.0.0.2")), "no RST and no ICMP came back");
    assert_eq!((edge.headers(), server.clients()), (vec![], vec![]));
}

#[test]
fn an_endpoint_is_reached_from_its_own_region_and_with_global_access_from_every_one() {
    let mut lab = Lab::new();
    let abroad = |reach: Reach| {
        let mut plan = consumer("shop");
        plan.ports.get_mut(&WorkloadId("shop-vip".into())).unwrap().region = 2;
        plan.endpoints.values_mut().for_each(|e| e.reach = reach);
        plan
    };
    apply(&mut lab, BANK, &producer(&both()));
    apply(&mut lab, SHOP, &abroad(Reach::Region(1)));
    let till = lab.vm(SHOP, "shop-till", "10.0.0.2");
    let far = lab.vm(SHOP, "shop-vip", "10.0.1.2");
    let _server = lab.serve_vip(BANK, VIP);
    let link = lab.capture(&names::vpc_ns(NetworkId(BANK)), &names::incoming(NetworkId(SHOP)));
    let from_far =
        |headers: Vec<Headers>| headers.iter().filter(|h| h.src == v4("10.0.1.2") && h.payload_bytes > 0).count();
    let opened = |headers: Vec<Headers>| headers.iter().filter(|h| h.src == v4("10.0.1.2") && h.opens()).count();
    let mut near = till.connect(ENDPOINT).unwrap();
    tcp::greeting(&mut near).unwrap();
    assert_eq!(far.refused(ENDPOINT).kind(), io::ErrorKind::TimedOut);
    assert_eq!(opened(link.headers()), 0, "no packet from another region");

    apply(&mut lab, SHOP, &abroad(Reach::Everywhere));
    let mut stream = far.connect(ENDPOINT).unwrap();
    tcp::greeting(&mut stream).unwrap();
    apply(&mut lab, SHOP, &abroad(Reach::Region(1)));
    assert!(tcp::ask(&mut stream, "balance?").is_err(), "its connection is cut with the access");
    assert_eq!(from_far(link.headers()), 0, "not a byte of it reaches the producer");
    assert_eq!(tcp::ask(&mut near, "balance?").unwrap(), "balance?", "one from its own region never noticed");
}

#[test]
fn an_endpoint_that_the_producer_does_not_publish_reaches_nothing_although_its_link_lies() {
    let mut lab = Lab::new();
    apply(&mut lab, SHOP, &consumer("shop"));
    apply(&mut lab, BANK, &producer(&both()[1..]));
    let till = lab.vm(SHOP, "shop-till", "10.0.0.2");
    let server = lab.serve_vip(BANK, VIP);
    let edge = lab.capture(&names::vpc_ns(NetworkId(BANK)), &names::to_edge());
    assert_eq!(till.refused(ENDPOINT).kind(), io::ErrorKind::TimedOut);
    assert_eq!((edge.headers(), server.clients()), (vec![], vec![]));
}

#[test]
fn a_cut_endpoint_passes_no_further_byte_in_either_direction_and_others_live_on() {
    let (mut lab, _server, tills) = two_consumers();
    let mut streams = tills.each_ref().map(|vm| vm.connect(ENDPOINT).unwrap());
    streams.iter_mut().for_each(|s| assert!(tcp::greeting(s).is_ok()));

    let mut cut = producer(&both()[1..]);
    cut.cut = ["10.0.3.2".parse().unwrap()].into();
    apply(&mut lab, BANK, &cut);
    let cable = lab.capture(&names::vpc_ns(NetworkId(SHOP)), &tills[0].port());
    let edge = lab.capture(&names::vpc_ns(NetworkId(BANK)), &names::to_edge());
    streams[0].set_read_timeout(Some(lab::scene::SILENCE)).unwrap();
    streams[0].write_all(b"still there?").unwrap();
    let silence = streams[0].read(&mut [0; 8]).unwrap_err().kind();
    assert!(matches!(silence, io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut), "{silence:?}");
    assert_eq!(tcp::ask(&mut streams[1], "and you?").unwrap(), "and you?");

    until("what the VM sent is seen", || cable.headers().iter().any(|h| h.payload_bytes > 0));
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

/// Seconds that each tracked connection through an endpoint may still idle.
fn idle_left(lab: &mut Lab) -> Vec<u32> {
    let space = lab.hands().realm(Realm::Vpc(NetworkId(BANK))).unwrap();
    let entries = conntrack::list(space.netfilter().unwrap()).unwrap();
    entries.iter().filter(|e| e.original.zone != 0).filter_map(|e| e.timeout_s).collect()
}

fn assert_idle_limit(lab: &mut Lab, when: &str) {
    let left = idle_left(lab);
    assert_eq!(left.len(), 1, "{when}");
    assert!((900..=1200).contains(&left[0]), "{when}: {left:?}");
}

#[test]
fn a_connection_keeps_its_idle_limit_over_unrelated_changes_and_restarts() {
    let mut lab = Lab::new();
    apply(&mut lab, BANK, &producer(&both()[..1]));
    apply(&mut lab, SHOP, &consumer("shop"));
    let till = lab.vm(SHOP, "shop-till", "10.0.0.2");
    let _server = lab.serve_vip(BANK, VIP);
    let mut stream = till.connect(ENDPOINT).unwrap();
    tcp::greeting(&mut stream).unwrap();
    assert_idle_limit(&mut lab, "at first");

    let mut changed = producer(&both());
    changed.settings.firewall.push(plan::rule("deny-ssh", Direction::Ingress, Action::Deny));
    changed.ports.insert(WorkloadId("bank-two".into()), Port::at("10.0.0.9".parse().unwrap()));
    apply(&mut lab, BANK, &changed);
    assert_eq!(tcp::ask(&mut stream, "after a change").unwrap(), "after a change");
    assert_idle_limit(&mut lab, "after an unrelated change");

    lab.restart();
    apply(&mut lab, SHOP, &consumer("shop"));
    apply(&mut lab, BANK, &changed);
    assert_eq!(tcp::ask(&mut stream, "after a restart").unwrap(), "after a restart");
    assert_idle_limit(&mut lab, "after a restart");
}

#[test]
fn a_connection_that_idled_too_long_hangs_instead_of_being_picked_up_again() {
    let mut lab = Lab::new();
    let mut bank = producer(&both()[..1]);
    bank.settings.psc_idle_s = 1;
    apply(&mut lab, BANK, &bank);
    apply(&mut lab, SHOP, &consumer("shop"));
    let till = lab.vm(SHOP, "shop-till", "10.0.0.2");
    let _server = lab.serve_vip(BANK, VIP);
    let mut stream = till.connect(ENDPOINT).unwrap();
    tcp::greeting(&mut stream).unwrap();
    until("the router has forgotten the connection", || idle_left(&mut lab).is_empty());
    let edge = lab.capture(&names::vpc_ns(NetworkId(BANK)), &names::to_edge());
    stream.set_read_timeout(Some(lab::scene::SILENCE)).unwrap();
    stream.write_all(b"hello again").unwrap();
    let silence = stream.read(&mut [0; 8]).unwrap_err().kind();
    assert!(matches!(silence, io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut), "{silence:?}");
    assert_eq!(edge.headers(), vec![]);
}

#[test]
fn a_plan_without_translation_is_seen_on_the_wire_and_lets_nothing_through() {
    let mut lab = Lab::new();
    apply(&mut lab, BANK, &producer(&both()[..1]));
    apply(&mut lab, SHOP, &consumer("shop"));
    let till = lab.vm(SHOP, "shop-till", "10.0.0.2");
    let server = lab.serve_vip(BANK, VIP);
    // The defect that the last rule is there for: the translation is missing, everything else is in place.
    let network = NetworkId(BANK);
    let mut broken = vpc::router(&producer(&both()[..1]), &[(NetworkId(SHOP), 1)].into());
    broken.tables[0].chains.get_mut("snat").unwrap().rules.clear();
    lab.hands().realm(Realm::Vpc(network)).unwrap().converge(&broken).unwrap();
    let edge = lab.capture(&names::vpc_ns(network), &names::to_edge());
    assert_eq!(till.refused(ENDPOINT).kind(), io::ErrorKind::TimedOut);
    assert_eq!((edge.headers(), server.clients()), (vec![], vec![]), "the last rule drops it");

    broken.tables[0].chains.get_mut("last").unwrap().rules.clear();
    lab.hands().realm(Realm::Vpc(network)).unwrap().converge(&broken).unwrap();
    assert_eq!(till.refused(ENDPOINT).kind(), io::ErrorKind::TimedOut);
    until("without it the consumer's address leaks", || {
        edge.headers().iter().any(|h| h.opens() && h.src == v4("10.0.0.2"))
    });
}

#[test]
fn adding_an_endpoint_costs_the_same_however_many_there_are() {
    let mut lab = Lab::new();
    apply(&mut lab, SHOP, &plan::vpc(&[]));
    let many = |count: u32| -> Vec<(u64, PublishedEndpoint)> {
        let address = |base: u32, n: u32| std::net::Ipv4Addr::from(base + n).to_string();
        let endpoint = |n: u32| plan::published(SHOP, &address(0x0a01_0000, n), &address(0x0a02_0000, n), VIP);
        (0..count).map(|n| (u64::from(n), endpoint(n))).collect()
    };
    let mut cost = |from: u32, to: u32| {
        apply(&mut lab, BANK, &producer(&many(from)));
        let before = lab.hands().messages_sent();
        apply(&mut lab, BANK, &producer(&many(to)));
        lab.hands().messages_sent() - before
    };
    let few = cost(2, 3);
    let more = cost(2_000, 2_001);
    assert_eq!(few, more);
    assert!(few <= 8, "one message for each map and the ends of the transaction, not {few}");
}

#[test]
fn a_released_nat_address_takes_its_connections_along() {
    let mut lab = Lab::new();
    apply(&mut lab, BANK, &producer(&both()));
    apply(&mut lab, SHOP, &consumer("shop"));
    let till = lab.vm(SHOP, "shop-till", "10.0.0.2");
    let _server = lab.serve_vip(BANK, VIP);
    let mut stream = till.connect(ENDPOINT).unwrap();
    tcp::greeting(&mut stream).unwrap();
    assert_eq!(idle_left(&mut lab).len(), 1);
    apply(&mut lab, BANK, &producer(&both()[1..]));
    assert!(idle_left(&mut lab).is_empty());
}

#[test]
fn an_endpoint_with_two_nat_addresses_shares_its_connections_among_them_and_loses_both() {
    let mut lab = Lab::new();
    let mut bank = producer(&both());
    let shop = bank.published.values_mut().next().unwrap();
    shop.nats.push("10.0.3.9".parse().unwrap());
    apply(&mut lab, BANK, &bank);
    apply(&mut lab, SHOP, &consumer("shop"));
    let till = lab.vm(SHOP, "shop-till", "10.0.0.2");
    let _server = lab.serve_vip(BANK, VIP);
    let mut streams: Vec<_> = (40_000..40_004).map(|port| till.connect_from(port, ENDPOINT).unwrap()).collect();
    let seen: Vec<_> = streams.iter_mut().map(|stream| tcp::greeting(stream).unwrap().to_string()).collect();
    assert_eq!(seen, ["10.0.3.2:40000", "10.0.3.2:40001", "10.0.3.9:40002", "10.0.3.9:40003"]);
    for stream in &mut streams {
        assert_eq!(tcp::ask(stream, "mine?").unwrap(), "mine?");
    }
    assert_eq!(idle_left(&mut lab).len(), 4);
    apply(&mut lab, BANK, &producer(&both()));
    assert_eq!(idle_left(&mut lab).len(), 2, "those of the address that stays");
    assert_eq!(tcp::ask(&mut streams[0], "still?").unwrap(), "still?");
    apply(&mut lab, BANK, &producer(&both()[1..]));
    assert!(idle_left(&mut lab).is_empty());
}

#[test]
fn what_is_in_no_plan_is_gone_and_a_second_apply_changes_nothing() {
    let mut lab = Lab::new();
    apply(&mut lab, SHOP, &consumer("shop"));
    apply(&mut lab, BANK, &producer(&both()));
    let wanted = vpc::router(&producer(&both()), &[(NetworkId(SHOP), 1), (NetworkId(CAFE), 2)].into());
    lab.restart();
    let space = lab.hands().realm(Realm::Vpc(NetworkId(BANK))).unwrap();
    let found = space.read(&wanted).unwrap();
    assert_eq!(state::diff(&wanted, &found), vec![], "the kernel holds the plan and nothing else");
    assert_eq!(space.converge(&wanted).unwrap(), 0);

    lab.hands().remove_vpc(NetworkId(BANK)).unwrap();
    apply(&mut lab, SHOP, &plan::vpc(&[]));
    assert_eq!(lab.hands().pins().names().unwrap(), ["vpc-7001"]);
    let links = lab.hands().realm(Realm::Vpc(NetworkId(SHOP))).unwrap().links();
    assert_eq!(links.index(&names::outgoing(NetworkId(BANK))), None);
}

#[test]
fn a_vpc_that_has_its_fill_of_connections_takes_no_new_one_and_keeps_the_old() {
    let mut lab = Lab::new();
    let plan = plan::vpc(&[("a", "10.0.0.2"), ("b", "10.0.0.3")]);
    apply(&mut lab, SHOP, &plan);
    let [a, b] = [("a", "10.0.0.2"), ("b", "10.0.0.3")].map(|(name, address)| lab.vm(SHOP, name, address));
    let _server = b.serve(80);
    // The same program with a limit that a test can reach.
    let mut small = vpc::router(&plan, &[].into());
    let cap = &mut small.tables[0].chains.get_mut("cap").unwrap().rules[0].steps;
    let limit = cap.iter_mut().find(|step| matches!(step, Step::ConnectionsOver(_))).unwrap();
    *limit = Step::ConnectionsOver(2);
    lab.hands().realm(Realm::Vpc(NetworkId(SHOP))).unwrap().converge(&small).unwrap();
    let mut streams = [a.connect("10.0.0.3:80").unwrap(), a.connect("10.0.0.3:80").unwrap()];
    assert_eq!(a.refused("10.0.0.3:80").kind(), io::ErrorKind::TimedOut);
    for stream in &mut streams {
        assert!(tcp::greeting(stream).is_ok());
    }
}

#[test]
fn what_the_kernel_says_of_a_translation_is_what_the_load_balancers_socket_says() {
    let mut lab = Lab::new();
    let mut bank = producer(&both());
    bank.settings.flow_logs = true;
    for (network, plan) in [(BANK, &bank), (SHOP, &consumer("shop")), (CAFE, &consumer("cafe"))] {
        apply(&mut lab, network, plan);
    }
    let server = lab.serve_vip(BANK, VIP);
    let netns = lab.hands().pins().open(&names::vpc_ns(NetworkId(BANK))).unwrap().unwrap();
    let watch = || {
        let (out, said) = sync_channel(64);
        let tuning = flow::Tuning { interval: Duration::from_millis(50), events_bytes: None };
        (flow::watch(NetworkId(BANK), &netns, tuning, out).unwrap(), said)
    };
    let (first, said) = watch();
    // Two consumers use one address and one port at once, and two VMs of one consumer one port: behind the one NAT address
    // of their endpoint the second gets another.
    let vms = [
        lab.vm(SHOP, "shop-till", "10.0.0.2"),
        lab.vm(SHOP, "shop-vip", "10.0.1.2"),
        lab.vm(CAFE, "cafe-till", "10.0.0.2"),
    ];
    let mut streams: Vec<_> = vms.iter().map(|vm| vm.connect_from(41_000, ENDPOINT).unwrap()).collect();
    let want: Vec<_> = std::iter::zip(&vms, &mut streams)
        .map(|(vm, stream)| (SocketAddr::from((vm.address, 41_000)), tcp::greeting(stream).unwrap()))
        .collect();
    let ports: Vec<_> = want.iter().map(|(_, peer)| peer.port()).collect();
    assert!(ports[0] == 41_000 && ports[1] != 41_000 && ports[2] == 41_000, "{ports:?}");
    assert_eq!(server.clients().len(), 3);

    let mut heard = Heard::default();
    let told = |mapped: &[Mapped]| mapped.iter().map(|m| (m.consumer.into(), m.nat.into())).collect::<Vec<_>>();
    until("every translation and what passed through it was told", || {
        heard.hear(&said);
        heard.mapped.len() == 3 && want.iter().all(|(_, peer)| heard.flow(*peer).is_some())
    });
    assert_eq!(told(&heard.mapped), want);
    for mapped in &heard.mapped {
        assert_eq!(
            (mapped.network, mapped.endpoint.to_string(), mapped.target.to_string()),
            (NetworkId(BANK), ENDPOINT.into(), VIP.into())
        );
        let flow = heard.flow(mapped.nat.into()).unwrap();
        assert_eq!(SocketAddrV4::new(flow.dst, flow.dst_port), mapped.target);
        assert!(flow.opening && flow.first <= mapped.at, "it began before it was heard of: {flow:?} {mapped:?}");
    }

    first.tell_again();
    let mut again = Heard::default();
    until("they were told once more, to a control that is new", || {
        again.hear(&said);
        again.mapped.len() == 3
    });
    drop(first);
    let (_second, said) = watch();
    let mut met = Heard::default();
    until("they were told by a host that is new", || {
        met.hear(&said);
        met.mapped.len() == 3
    });
    for heard in [again, met] {
        let mut mapped = heard.mapped;
        mapped.sort_by_key(|m| want.iter().position(|(_, peer)| *peer == m.nat.into()));
        assert_eq!(told(&mapped), want);
    }
}

/// What a flow thread said.
#[derive(Default)]
struct Heard {
    mapped: Vec<Mapped>,
    flows: Vec<FlowRecord>,
}

impl Heard {
    fn hear(&mut self, said: &Receiver<Said>) {
        for said in said.try_iter() {
            match said {
                Said::Mapped(mapped) => self.mapped.extend(mapped),
                Said::Flows(flows) => self.flows.extend(flows),
                Said::Gap(gap) => panic!("{gap:?}"),
            }
        }
    }

    /// The first record of what came from here.
    fn flow(&self, from: SocketAddr) -> Option<&FlowRecord> {
        self.flows.iter().find(|flow| from == SocketAddr::from((flow.src, flow.src_port)))
    }
}
