//! The trace of a connection's packets: which rules they met, where they were translated, where they died.

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use host::{
    names,
    trace::{Passage, Trace},
};
use lab::{Lab, plan};
use model::{
    id::{NetworkId, WorkloadId},
    planned::host::{FirewallRule, Match, PlannedProtocol},
    vpc::{Action, Direction},
};

const SHOP: u64 = 7101;
const BANK: u64 = 9101;
const PORT: u16 = 40_321;

fn trace(lab: &mut Lab, network: u64, port: u16) -> Trace {
    let netns = lab.hands().pins().open(&names::vpc_ns(NetworkId(network))).unwrap().unwrap();
    Trace::start(&netns, port).unwrap()
}

fn opening(trace: &mut Trace) -> Passage {
    let passages = trace.passages(Duration::from_millis(200), Duration::from_secs(5)).unwrap();
    passages.into_iter().find(|p| p.came.opens()).expect("the kernel told of the first segment")
}

fn deny_web() -> FirewallRule {
    FirewallRule {
        name: "no-web".to_owned(),
        direction: Direction::Egress,
        action: Action::Deny,
        targets: Match::Any,
        peers: Match::Any,
        destinations: Match::Any,
        protocols: vec![PlannedProtocol { protocol: 6, ports: vec![] }],
    }
}

#[test]
fn a_connection_through_an_endpoint_shows_both_translations_and_the_rules_that_let_it_pass() {
    let mut lab = Lab::new();
    let published = plan::published(SHOP, "10.0.0.5", "10.0.3.2", "10.0.1.2:80");
    let bank = plan::with_published(plan::vpc(&[]), "10.0.1.2:80", &[(1, published)]);
    lab.hands().apply_vpc(NetworkId(BANK), &bank).unwrap();
    let shop = plan::with_endpoint(plan::vpc(&[("till", "10.0.0.2")]), "10.0.0.5", Some(BANK));
    lab.hands().apply_vpc(NetworkId(SHOP), &shop).unwrap();
    let till = lab.vm(SHOP, "till", "10.0.0.2");
    let _server = lab.serve_vip(BANK, "10.0.1.2:80");
    let [mut at_shop, mut at_bank] = [SHOP, BANK].map(|network| trace(&mut lab, network, PORT));
    till.connect_from(PORT, "10.0.0.5:80").unwrap();

    let shop = opening(&mut at_shop);
    assert_eq!(shop.input, Some(names::port(&WorkloadId("till".to_owned()))));
    assert_eq!(shop.output, Some(names::outgoing(NetworkId(BANK))));
    assert!(shop.met.contains(&("egress".to_owned(), "implied allow egress".to_owned())), "{shop:?}");
    assert_eq!((shop.dropped, shop.came), (None, shop.left));

    let bank = opening(&mut at_bank);
    let addresses = |h: host::capture::Headers| (h.src.to_string(), h.dst.to_string());
    assert_eq!(addresses(bank.came), ("10.0.0.2".to_owned(), "10.0.0.5".to_owned()));
    assert_eq!(addresses(bank.left), ("10.0.3.2".to_owned(), "10.0.1.2".to_owned()));
    assert_eq!(bank.dropped, None);
    assert!(bank.met.contains(&("from_consumer".to_owned(), "new".to_owned())), "{bank:?}");
}

#[test]
fn a_packet_that_a_rule_drops_names_the_rule_and_nothing_stays_when_the_trace_ends() {
    let mut lab = Lab::new();
    let mut plan = plan::vpc(&[("till", "10.0.0.2"), ("shelf", "10.0.0.3")]);
    plan.settings.firewall = vec![deny_web()];
    lab.hands().apply_vpc(NetworkId(SHOP), &plan).unwrap();
    let till = lab.vm(SHOP, "till", "10.0.0.2");
    let _shelf = lab.vm(SHOP, "shelf", "10.0.0.3");
    let mut at_shop = trace(&mut lab, SHOP, 80);
    till.refused("10.0.0.3:80");
    let met = opening(&mut at_shop);
    assert_eq!(met.dropped, Some(("egress".to_owned(), "no-web".to_owned())), "{met:?}");

    drop(at_shop);
    lab.restart();
    lab.hands().apply_vpc(NetworkId(SHOP), &plan).unwrap();
    let space = lab.hands().realm(model::planned::guest::Realm::Vpc(NetworkId(SHOP))).unwrap();
    let left = host::netlink::trace::rules(space.netfilter().unwrap()).unwrap();
    assert!(left.keys().all(|(table, _)| !table.starts_with(host::netlink::trace::TABLE_PREFIX)), "{left:?}");
}
