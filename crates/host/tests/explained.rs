//! What a plan means, as people read it. `TOMBOLO_GOLDEN=accept` rewrites the expectations; the diff is the review.

#![allow(clippy::unwrap_used)]

use std::{collections::BTreeMap, env, fs, path::PathBuf};

use host::net::{fabric, text, vpc};
use model::{
    id::{EndpointId, ListenerId, NetworkId, WorkloadId},
    planned::host::{
        ConsumerEndpoint, FabricPlan, FabricPort, FirewallRule, Match, PlannedProtocol, Port, PublishedEndpoint, Reach,
        Vip, VpcPlan, VpcSettings,
    },
    vpc::{Action, Direction, PortRange},
};

const HTTP: PortRange = PortRange { first: 80, last: 80 };

fn expect(name: &str, text: &str) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/explained").join(name);
    if env::var_os("TOMBOLO_GOLDEN").is_some_and(|v| v == "accept") {
        fs::write(&path, text).unwrap();
    }
    let wanted = fs::read_to_string(&path).unwrap_or_default();
    assert!(wanted == text, "{} is no longer what the plan means:\n{text}", path.display());
}

#[test]
fn a_consumer_routes_to_its_producer_and_filters_its_vms() {
    let allow = FirewallRule {
        name: "allow-ssh".into(),
        direction: Direction::Ingress,
        action: Action::Allow,
        targets: Match::In(["10.0.0.2/32".parse().unwrap()].into()),
        peers: Match::In(["10.0.0.0/24".parse().unwrap(), "10.0.1.0/24".parse().unwrap()].into()),
        destinations: Match::Any,
        protocols: vec![PlannedProtocol { protocol: 6, ports: vec![PortRange { first: 22, last: 23 }] }],
    };
    let endpoint =
        |address: &str, producer, reach| ConsumerEndpoint { address: address.parse().unwrap(), producer, reach };
    let plan = VpcPlan {
        settings: VpcSettings { mtu: 1460, firewall: vec![allow], psc_idle_s: 1200, ..VpcSettings::default() },
        ports: BTreeMap::from([(WorkloadId("till".into()), Port::at("10.0.0.2".parse().unwrap()))]),
        endpoints: BTreeMap::from([
            (EndpointId(1), endpoint("10.0.0.5", Some(NetworkId(9001)), Reach::Region(1))),
            (EndpointId(2), endpoint("10.0.0.6", None, Reach::Region(1))),
            (EndpointId(3), endpoint("10.0.0.7", Some(NetworkId(9001)), Reach::Everywhere)),
        ]),
        ..VpcPlan::default()
    };
    expect("consumer.txt", &text::render(&vpc::router(&plan, &BTreeMap::new())));
}

#[test]
fn a_producer_translates_each_endpoint_and_answers_into_its_link() {
    let published = PublishedEndpoint {
        consumer: NetworkId(7001),
        address: "10.0.0.5".parse().unwrap(),
        nats: vec!["10.0.3.2".parse().unwrap(), "10.0.3.6".parse().unwrap()],
        vip: "10.0.1.2".parse().unwrap(),
        ports: HTTP,
    };
    let plan = VpcPlan {
        settings: VpcSettings { mtu: 1460, psc_idle_s: 1200, ..VpcSettings::default() },
        vips: BTreeMap::from([(
            ListenerId(1),
            Vip { address: "10.0.1.2".parse().unwrap(), ports: HTTP, reach: Reach::Region(2) },
        )]),
        published: BTreeMap::from([(EndpointId(1), published)]),
        cut: ["10.0.3.3".parse().unwrap()].into(),
        ..VpcPlan::default()
    };
    let zones = BTreeMap::from([(NetworkId(7001), 1)]);
    let both = [vpc::router(&plan, &zones), vpc::edge(&plan)].map(|wanted| text::render(&wanted));
    expect("producer.txt", &both.join("\n"));
}

#[test]
fn the_fabric_lets_containers_answer_and_ask_for_metadata() {
    let port = FabricPort { v6: "fda3:e722:ac3:1::1".parse().unwrap(), v4: "169.254.100.1".parse().unwrap() };
    let plan = FabricPlan {
        ports: BTreeMap::from([(WorkloadId("hello-00001-abc".into()), port)]),
        sources: BTreeMap::from([(NetworkId(1), "fda3:e722:ac3:cc00:1:1::".parse().unwrap())]),
        ..FabricPlan::default()
    };
    expect("fabric.txt", &text::render(&fabric::fabric(&plan)));
}
