//! Comparing the kernel with the plans: nothing differs after the hands have done their work, and whatever somebody else
//! changes is told.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use host::{
    hands::verify::Lies,
    names,
    net::{kernel::Space, vpc},
    netlink::{
        route::{self, End, Mac},
        socket::{Family, Socket},
    },
};
use lab::{Lab, plan};
use model::{
    id::{NetworkId, WorkloadId},
    planned::host::{Attach, FabricPlan, VpcPlan},
};

const CONSUMER: NetworkId = NetworkId(801);
const PRODUCER: NetworkId = NetworkId(802);

fn plans() -> [(NetworkId, VpcPlan); 2] {
    let consumer = plan::with_endpoint(plan::vpc(&[("vm", "10.1.0.2")]), "10.1.0.5", Some(PRODUCER.0));
    let endpoint = plan::published(CONSUMER.0, "10.1.0.5", "10.0.3.2", "10.0.1.2:80");
    [(CONSUMER, consumer), (PRODUCER, plan::with_published(plan::vpc(&[]), "10.0.1.2:80", &[(1, endpoint)]))]
}

fn scene() -> Lab {
    let mut lab = Lab::new();
    lab.hands().apply_fabric(&FabricPlan::default()).unwrap();
    for (network, plan) in plans() {
        lab.hands().apply_vpc(network, &plan).unwrap();
    }
    lab.vm(CONSUMER.0, "vm", "10.1.0.2");
    lab
}

/// Differences as `namespace: what`.
fn differences(lab: &mut Lab) -> Vec<String> {
    let [address, gateway] = ["10.1.0.2", "10.1.0.1"].map(|a| a.parse().unwrap());
    let attach = Attach::Vpc { network: CONSUMER, address, gateway, mtu: lab::scene::MTU };
    let workloads = BTreeMap::from([(WorkloadId("vm".into()), Lies::So(&attach))]);
    let (namespaces, found) = lab.hands().verify(&workloads).unwrap();
    assert_eq!(namespaces, 4, "fabric, two routers, the namespace of the load balancer's sockets");
    found.into_iter().map(|d| format!("{}: {}", d.namespace, d.what)).collect()
}

#[test]
fn nothing_differs_after_the_plans_were_applied_and_after_the_next_host_process_took_over() {
    let mut lab = scene();
    assert_eq!(differences(&mut lab), Vec::<String>::new());
    lab.restart();
    lab.hands().found_fabric().unwrap();
    for (network, plan) in plans() {
        lab.hands().apply_vpc(network, &plan).unwrap();
    }
    assert_eq!(differences(&mut lab), Vec::<String>::new());
}

#[test]
fn whatever_somebody_else_changes_is_told() {
    let router = names::vpc_ns(CONSUMER);
    let nothing = vpc::router(&plan::vpc(&[]), &BTreeMap::new());
    let end = |name| End { name, mac: Mac([2, 0, 0, 0, 0, 9]), mtu: 1_500, index: None };
    type Meddle<'a> = &'a dyn Fn(&mut Space);
    let cases: [(&str, Meddle<'_>, &[&str]); 5] = [
        (
            "rules, routes and neighbours",
            &|space| assert!(space.converge(&nothing).unwrap() > 0),
            &[
                "vpc-801: set ports of table vpc lacks 1 elements",
                "vpc-801: the route of 10.1.0.5/32 to 169.254.9.9 at o-ma is missing",
                "vpc-801: neighbour 169.254.9.9 at o-ma is missing",
            ],
        ),
        (
            "a cable",
            &|space| space.cut(&names::port(&WorkloadId("vm".into()))).unwrap(),
            &["vpc-801: interface p-vm is missing", "vpc-801: the route of 10.1.0.2/32 out of p-vm is missing"],
        ),
        (
            "a link",
            &|space| space.lay(&end(names::incoming(NetworkId(9))), &end(names::outgoing(NetworkId(9))), None).unwrap(),
            &["vpc-801: interface i-9 is in no plan", "vpc-801: interface o-9 is in no plan"],
        ),
        (
            "a setting",
            &|space| space.netns().sysctls(&[("ipv4/ip_forward", "0")]).unwrap(),
            &["vpc-801: ipv4/ip_forward is \"0\", not \"1\""],
        ),
        ("nothing", &|_| {}, &[]),
    ];
    for (what, meddle, told) in cases {
        let mut lab = scene();
        let netns = lab.hands().pins().open(&router).unwrap().unwrap();
        meddle(&mut Space::enter(netns).unwrap());
        let found = differences(&mut lab);
        for line in told {
            assert!(found.iter().any(|f| f == line), "{what}: {line:?} is not in {found:#?}");
        }
        assert_eq!(found.is_empty(), told.is_empty(), "{what}: {found:#?}");
    }
}

#[test]
fn a_namespace_that_is_gone_or_of_no_plan_is_told() {
    let mut lab = scene();
    let pins = lab.hands().pins().clone();
    pins.delete(&names::edge_ns(PRODUCER)).unwrap();
    drop(pins.create("vpc-77").unwrap());
    let found = differences(&mut lab);
    assert!(found.contains(&"edge-802: the namespace is missing".to_owned()), "{found:?}");
    assert!(found.contains(&"vpc-77: the namespace is in no plan".to_owned()), "{found:?}");
}

#[test]
fn a_router_whose_host_process_died_while_it_was_made_is_finished_by_the_next() {
    let mut lab = Lab::new();
    let half = lab.hands().pins().create(&names::vpc_ns(CONSUMER)).unwrap();
    half.run(|| {
        let [mux, deaf] = names::mux().map(|name| End { name, mac: Mac([2, 0, 0, 0, 0, 9]), mtu: 1_500, index: None });
        let mut socket = Socket::open(Family::Route).unwrap();
        socket.request("lay a cable", route::new_cable(&mux, &deaf, None)).unwrap();
    })
    .unwrap();
    lab.hands().apply_fabric(&FabricPlan::default()).unwrap();
    for (network, plan) in plans() {
        lab.hands().apply_vpc(network, &plan).unwrap();
    }
    lab.vm(CONSUMER.0, "vm", "10.1.0.2");
    assert_eq!(differences(&mut lab), Vec::<String>::new());
}
