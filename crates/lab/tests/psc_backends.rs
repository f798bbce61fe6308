//! Private Service Connect backends with real packets: the load balancer of a consumer dials into a producer's network.
//! Everybody uses the same ranges, the proxies' subnet included.

#![allow(clippy::unwrap_used)]

use std::{
    io,
    net::{IpAddr, SocketAddrV4, TcpStream},
    time::Duration,
};

use host::{capture::Headers, hands::verify::Lies, names};
use lab::{
    Lab, packet, plan,
    scene::{PATIENCE, SILENCE},
    tcp, until,
};
use model::{
    id::NetworkId,
    planned::host::{PublishedEndpoint, VpcPlan},
};

const SHOP: u64 = 7_101;
const CAFE: u64 = 7_102;
const BANK: u64 = 9_101;
const BACKEND: &str = "10.0.0.5";
const PROXY: &str = "10.0.2.2";
const VIP: &str = "10.0.1.2:80";
const SYN: u8 = 2;

fn consumer(vms: &[(&str, &str)], producer: Option<u64>) -> VpcPlan {
    plan::with_backend(plan::with_vip(plan::vpc(vms), VIP), BACKEND, PROXY, producer)
}

fn published(consumer: u64, nat: &str) -> PublishedEndpoint {
    plan::published(consumer, BACKEND, nat, VIP)
}

fn producer(endpoints: &[(u64, PublishedEndpoint)]) -> VpcPlan {
    plan::with_published(plan::vpc(&[]), VIP, endpoints)
}

fn both() -> VpcPlan {
    producer(&[(1, published(SHOP, "10.0.3.2")), (2, published(CAFE, "10.0.3.3"))])
}

fn apply(lab: &mut Lab, network: u64, plan: &VpcPlan) {
    lab.hands().apply_vpc(NetworkId(network), plan).unwrap();
}

/// A connection out of the namespace of a network's load balancer, from this address.
fn dial_from_edge(lab: &mut Lab, network: u64, from: &str, to: &str) -> io::Result<TcpStream> {
    let (from, to): (SocketAddrV4, SocketAddrV4) = (format!("{from}:0").parse().unwrap(), to.parse().unwrap());
    let edge = lab.hands().pins().open(&names::edge_ns(NetworkId(network))).unwrap().expect("there is a balancer");
    let dial = || {
        use rustix::net::{AddressFamily, SocketType, sockopt};
        let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None)?;
        sockopt::set_socket_timeout(&socket, sockopt::Timeout::Send, Some(SILENCE))?;
        rustix::net::bind(&socket, &from)?;
        rustix::net::connect(&socket, &to)?;
        Ok(TcpStream::from(socket))
    };
    edge.run(dial).unwrap()
}

#[test]
fn two_balancers_with_one_address_reach_the_producer_each_as_its_own_nat_address() {
    let mut lab = Lab::new();
    lab.hands().found_fabric().unwrap();
    apply(&mut lab, BANK, &both());
    for network in [SHOP, CAFE] {
        apply(&mut lab, network, &consumer(&[], Some(BANK)));
    }
    let server = lab.serve_vip(BANK, VIP);
    let own = lab.serve_vip(SHOP, VIP);
    let link = lab.capture(&names::vpc_ns(NetworkId(BANK)), &names::incoming(NetworkId(SHOP)));
    let mut streams = [SHOP, CAFE].map(|network| lab.dial_backend(network, PATIENCE).unwrap());
    let seen = streams.each_mut().map(|stream| tcp::greeting(stream).unwrap().ip().to_string());
    assert_eq!(seen, ["10.0.3.2", "10.0.3.3"]);
    for (n, stream) in streams.iter_mut().enumerate() {
        assert_eq!(tcp::ask(stream, &format!("balance {n}")).unwrap(), format!("balance {n}"));
    }
    assert_eq!((server.clients().len(), own.clients().len()), (2, 0));
    until("the link was seen", || link.headers().iter().any(Headers::opens));
    let opening = link.headers().into_iter().find(Headers::opens).unwrap();
    assert_eq!((opening.src.to_string(), opening.dst.to_string()), (PROXY.to_owned(), BACKEND.to_owned()));
    // A router that is looked at anew holds what the plans say.
    let (_, differences) = lab.hands().verify(&std::collections::BTreeMap::<_, Lies<'_>>::new()).unwrap();
    assert_eq!(differences, []);
}

#[test]
fn a_balancer_reaches_its_backend_at_its_port_from_its_address_and_nothing_else() {
    let mut lab = Lab::new();
    apply(&mut lab, BANK, &both());
    apply(&mut lab, SHOP, &consumer(&[("till", "10.0.0.2")], Some(BANK)));
    let till = lab.vm(SHOP, "till", "10.0.0.2");
    let (server, at_till) = (lab.serve_vip(BANK, VIP), till.serve(80));
    let link = lab.capture(&names::vpc_ns(NetworkId(BANK)), &names::incoming(NetworkId(SHOP)));
    let vip = VIP.split(':').next().unwrap();
    for (from, to) in
        [(PROXY, "10.0.0.2:80"), (PROXY, "10.0.0.5:81"), (vip, "10.0.0.5:80"), (PROXY, "169.254.169.254:80")]
    {
        assert!(dial_from_edge(&mut lab, SHOP, from, to).is_err(), "{from} to {to}");
    }
    assert_eq!((server.clients().len(), at_till.clients().len()), (0, 0));
    assert_eq!(link.headers().len(), 0, "packets on the link");
    assert!(dial_from_edge(&mut lab, SHOP, PROXY, "10.0.0.5:80").is_ok(), "the way that is open");
    until("it has arrived", || server.clients().len() == 1);
}

#[test]
fn a_vm_neither_reaches_the_backend_nor_speaks_as_the_balancer_nor_to_its_address() {
    let mut lab = Lab::new();
    apply(&mut lab, BANK, &both());
    apply(&mut lab, SHOP, &consumer(&[("till", "10.0.0.2")], Some(BANK)));
    let till = lab.vm(SHOP, "till", "10.0.0.2");
    let server = lab.serve_vip(BANK, VIP);
    let link = lab.capture(&names::vpc_ns(NetworkId(BANK)), &names::incoming(NetworkId(SHOP)));
    let edge = lab.capture(&names::vpc_ns(NetworkId(SHOP)), &names::to_edge());
    assert_eq!(till.refused("10.0.0.5:80").kind(), io::ErrorKind::TimedOut);
    assert_eq!(till.refused("10.0.2.2:80").kind(), io::ErrorKind::TimedOut);
    let backend: SocketAddrV4 = "10.0.0.5:80".parse().unwrap();
    till.forge(&packet::tcp("10.0.2.2:40000".parse().unwrap(), backend, SYN), *backend.ip());
    assert!(lab.dial_backend(SHOP, PATIENCE).is_ok(), "the balancer itself gets through");
    until("its packet is seen", || link.headers().iter().any(Headers::opens));
    assert_eq!(link.headers().iter().filter(|h| h.opens()).count(), 1, "the forged one, sent before it, did not");
    assert_eq!(edge.headers().iter().filter(|h| h.src == IpAddr::V4(till.address)).count(), 0);
    until("it has arrived", || server.clients().len() == 1);
}

#[test]
fn a_backend_that_is_cut_off_is_silent_for_open_connections_and_for_new_ones() {
    let mut lab = Lab::new();
    apply(&mut lab, BANK, &both());
    apply(&mut lab, SHOP, &consumer(&[], Some(BANK)));
    let server = lab.serve_vip(BANK, VIP);
    let mut stream = lab.dial_backend(SHOP, PATIENCE).unwrap();
    tcp::greeting(&mut stream).unwrap();
    apply(&mut lab, SHOP, &consumer(&[], None));
    stream.set_read_timeout(Some(Duration::from_millis(400))).unwrap();
    assert_eq!(
        tcp::ask(&mut stream, "balance?").unwrap_err().kind(),
        io::ErrorKind::WouldBlock,
        "neither byte nor end"
    );
    assert_eq!(lab.dial_backend(SHOP, SILENCE).unwrap_err().kind(), io::ErrorKind::TimedOut);
    assert_eq!(server.clients().len(), 1);
    // Without the group nobody is asked.
    apply(&mut lab, SHOP, &plan::with_vip(plan::vpc(&[]), VIP));
    assert_eq!(lab.dial_backend(SHOP, SILENCE).unwrap_err().kind(), io::ErrorKind::NotFound);
}

#[test]
fn the_proxys_namespace_stays_as_long_as_a_balancer_listens_or_dials() {
    let mut lab = Lab::new();
    apply(&mut lab, BANK, &both());
    let is_there = |lab: &mut Lab| lab.hands().pins().open(&names::edge_ns(NetworkId(SHOP))).unwrap().is_some();
    let dials_only = plan::with_backend(plan::vpc(&[]), BACKEND, PROXY, Some(BANK));
    for (plan, there) in [
        (plan::with_vip(plan::vpc(&[]), VIP), true),
        (dials_only, true),
        (plan::vpc(&[]), false),
        (consumer(&[], Some(BANK)), true),
    ] {
        apply(&mut lab, SHOP, &plan);
        assert_eq!(is_there(&mut lab), there);
    }
    let _server = lab.serve_vip(BANK, VIP);
    assert!(lab.dial_backend(SHOP, PATIENCE).is_ok());
}
