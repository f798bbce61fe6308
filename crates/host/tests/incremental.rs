//! A plan that was changed step by step means the same as one that was read at once, and a step costs what it changes.

#![allow(clippy::unwrap_used)]

use std::{collections::BTreeSet, net::Ipv4Addr};

use host::net::{
    pieces::{Held, Part},
    state::{Found, Step, Wanted, after, diff},
    vpc::{self, Zones},
};
use model::{
    id::{EndpointId, ListenerId, NetworkId, WorkloadId},
    planned::host::{
        ConsumerEndpoint, FirewallRule, Match, Port, PublishedEndpoint, Reach, Vip, VpcChange, VpcPlan, VpcSettings,
    },
    vpc::{Action, Direction, PortRange},
};
use proptest::prelude::*;

const HTTP: PortRange = PortRange { first: 80, last: 80 };

fn address(net: u8, n: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, net, 0, n)
}

/// Every consumer has a link; its number is its own.
fn zones() -> Zones {
    (0..4).map(|n| (NetworkId(n), u16::try_from(n + 1).unwrap())).collect()
}

fn tags() -> impl Strategy<Value = BTreeSet<String>> {
    proptest::collection::btree_set((0..3_u8).prop_map(|n| format!("tag-{n}")), 0..3)
}

fn condition() -> impl Strategy<Value = Match> {
    let blocks = || {
        let block = (0..8_u8).prop_map(|n| format!("10.0.{n}.0/24").parse().unwrap());
        proptest::collection::btree_set(prop_oneof![4 => block, 1 => Just("0.0.0.0/0".parse().unwrap())], 0..3)
    };
    prop_oneof![
        Just(Match::Any),
        blocks().prop_map(Match::In),
        (tags(), blocks()).prop_map(|(tags, blocks)| Match::Tagged(tags, blocks)),
    ]
}

fn settings() -> impl Strategy<Value = VpcSettings> {
    let rule = (condition(), condition(), any::<bool>()).prop_map(|(targets, peers, ingress)| FirewallRule {
        name: String::new(),
        direction: if ingress { Direction::Ingress } else { Direction::Egress },
        action: Action::Allow,
        targets,
        peers,
        destinations: Match::Any,
        protocols: Vec::new(),
    });
    (proptest::collection::btree_map(0..3_u8, rule, 0..4), 0..2_u32).prop_map(|(rules, more)| VpcSettings {
        firewall: rules.into_iter().map(|(n, rule)| FirewallRule { name: format!("rule-{n}"), ..rule }).collect(),
        psc_idle_s: 1_200 + more,
        ..VpcSettings::default()
    })
}

fn list<T: std::fmt::Debug>(of: impl Strategy<Value = T>, less_than: usize) -> impl Strategy<Value = Vec<T>> {
    proptest::collection::vec(of, 0..less_than)
}

fn reach() -> impl Strategy<Value = Reach> {
    prop_oneof![Just(Reach::Everywhere), (1..3_u32).prop_map(Reach::Region)]
}

fn plan() -> impl Strategy<Value = VpcPlan> {
    let ports = (0..6_u8, tags()).prop_map(|(n, tags)| {
        (WorkloadId(format!("vm-{n}")), Port { address: address(0, n), tags, region: u32::from(n % 3) })
    });
    let vips = (0..3_u8, 0..2_u8, reach())
        .prop_map(|(n, a, reach)| (ListenerId(n.into()), Vip { address: address(1, 2 * n + a), ports: HTTP, reach }));
    let balancer = (0..2_u8).prop_map(|n| Reach::Balancer { from: address(5, n), port: 80 });
    let endpoints =
        (0..6_u8, proptest::option::of(0..3_u64), prop_oneof![reach(), balancer]).prop_map(|(n, producer, reach)| {
            (
                EndpointId(n.into()),
                ConsumerEndpoint { address: address(2, n), producer: producer.map(NetworkId), reach },
            )
        });
    let published = (0..6_u8, 0..4_u64, 0..2_u8, 0..3_u8).prop_map(|(n, consumer, a, vip)| {
        let published = PublishedEndpoint {
            consumer: NetworkId(consumer),
            address: address(3, n),
            nats: (0..=a).map(|i| address(4 + 3 * i, 2 * n + a)).collect(),
            vip: address(1, vip),
            ports: HTTP,
        };
        (EndpointId(n.into()), published)
    });
    (
        settings(),
        list(ports, 6),
        list(vips, 3),
        list(endpoints, 6),
        list(published, 6),
        list((0..4_u8).prop_map(|n| address(4, n)), 3),
    )
        .prop_map(|(settings, ports, vips, endpoints, published, cut)| VpcPlan {
            settings,
            ports: ports.into_iter().collect(),
            vips: vips.into_iter().collect(),
            endpoints: endpoints.into_iter().collect(),
            published: published.into_iter().collect(),
            cut: cut.into_iter().collect(),
        })
}

/// A kernel that does as it is told, and only what it is told.
fn take(steps: Vec<Step<'_>>, kernel: &mut Found) {
    for step in steps {
        let table = |name| usize::from(name != "vpc");
        match step {
            Step::SetRoute(new) => {
                kernel.routes.retain(|r| (r.table, r.to, r.prefix_bits) != (new.table, new.to, new.prefix_bits));
                kernel.routes.insert(new.clone());
            }
            Step::DeleteRoute(route) => assert!(kernel.routes.remove(&route), "{route:?} is not there"),
            Step::SetNeighbour(neighbour) => assert!(kernel.neighbours.insert(neighbour.clone())),
            Step::DeleteNeighbour(neighbour) => assert!(kernel.neighbours.remove(&neighbour)),
            Step::AddMarkRule(rule) => assert!(kernel.mark_rules.insert(rule)),
            Step::NewTable(t) => kernel.tables[table(t.name)] = Some(Default::default()),
            Step::NewTimeouts(t, timeouts) => {
                kernel.tables[table(t.name)].as_mut().unwrap().timeouts.insert(timeouts.name());
            }
            Step::NewSet(t, name, _) => {
                let sets = &mut kernel.tables[table(t.name)].as_mut().unwrap().sets;
                assert_eq!(sets.insert(name.to_owned(), BTreeSet::new()), None, "{name} is there");
            }
            Step::DeleteSet(t, name) => {
                kernel.tables[table(t.name)].as_mut().unwrap().sets.remove(&name).expect("it is there");
            }
            Step::AddElements(t, name, _, new) => {
                let set = kernel.tables[table(t.name)].as_mut().unwrap().sets.get_mut(name).expect("it is there");
                new.into_iter().for_each(|e| assert!(set.insert(e)));
            }
            Step::DeleteElements(t, name, _, gone) => {
                let set = kernel.tables[table(t.name)].as_mut().unwrap().sets.get_mut(name).expect("it is there");
                gone.into_iter().for_each(|e| assert!(set.remove(&e)));
            }
            Step::NewChain(t, name, _) => {
                kernel.tables[table(t.name)].as_mut().unwrap().chains.insert(name.to_owned(), Vec::new());
            }
            Step::Refill(t, name, chain) => {
                let labels = chain.rules.iter().map(|rule| rule.label()).collect();
                kernel.tables[table(t.name)].as_mut().unwrap().chains.insert(name.to_owned(), labels);
            }
            Step::Flush(t, name) => {
                kernel.tables[table(t.name)].as_mut().unwrap().chains.insert(name, Vec::new());
            }
        }
    }
}

fn kernel(wanted: &Wanted) -> Found {
    after(wanted, Found::default())
}

/// Timeout objects stay when no rule gives them any more.
fn without_timeouts(mut found: Found) -> Found {
    found.tables.iter_mut().flatten().for_each(|table| table.timeouts.clear());
    found
}

fn obey(part: &Part, kernel: &mut Found) {
    take(diff(&part.wanted, &part.found), kernel);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn changes_one_by_one_lead_to_what_the_last_plan_means(plans in proptest::collection::vec(plan(), 2..6)) {
        let zones = zones();
        let mut held = Held::new(plans[0].clone(), &zones);
        let mut router = kernel(&vpc::router(&plans[0], &zones));
        let mut edge = kernel(&vpc::edge(&plans[0]));
        for pair in plans.windows(2) {
            let changed = held.change(VpcChange::between(&pair[0], &pair[1]), &zones);
            obey(&changed.router, &mut router);
            obey(&changed.edge, &mut edge);
            prop_assert_eq!(held.plan(), &pair[1]);
            prop_assert_eq!(without_timeouts(router.clone()), without_timeouts(kernel(&vpc::router(&pair[1], &zones))));
            prop_assert_eq!(&edge, &kernel(&vpc::edge(&pair[1])));
            let again = Held::new(pair[1].clone(), &zones);
            prop_assert_eq!(held.links().collect::<Vec<_>>(), again.links().collect::<Vec<_>>());
            let nats = |plan: &VpcPlan| plan.published.values().flat_map(|p| p.nats.clone()).collect::<BTreeSet<_>>();
            let released: BTreeSet<_> =
                nats(&pair[0]).difference(&nats(&pair[1])).chain(pair[1].cut.difference(&pair[0].cut)).copied().collect();
            prop_assert_eq!(changed.released, released);
        }
    }
}

/// A producer with this many endpoints, and as many VMs with a tag that a rule names.
fn crowded(count: u32) -> VpcPlan {
    let at = |net: u32, n: u32| Ipv4Addr::from(net + n);
    let rule = FirewallRule {
        name: "allow-web".into(),
        direction: Direction::Ingress,
        action: Action::Allow,
        targets: Match::Tagged(["web".to_owned()].into(), [].into()),
        peers: Match::Any,
        destinations: Match::Any,
        protocols: Vec::new(),
    };
    VpcPlan {
        settings: VpcSettings { firewall: vec![rule], ..VpcSettings::default() },
        ports: (0..count)
            .map(|n| {
                (
                    WorkloadId(format!("vm-{n}")),
                    Port { address: at(0x0a03_0000, n), tags: ["web".to_owned()].into(), region: 1 },
                )
            })
            .collect(),
        published: (0..count)
            .map(|n| {
                let (address, nat) = (at(0x0a01_0000, n), at(0x0a02_0000, n));
                let published = PublishedEndpoint {
                    consumer: NetworkId(1),
                    address,
                    nats: vec![nat],
                    vip: address_of_vip(),
                    ports: HTTP,
                };
                (EndpointId(n.into()), published)
            })
            .collect(),
        ..VpcPlan::default()
    }
}

fn address_of_vip() -> Ipv4Addr {
    address(1, 2)
}

#[test]
fn an_endpoint_or_a_vm_more_touches_as_many_pieces_however_many_there_are() {
    let cost = |count: u32| {
        let (before, after) = (crowded(count), crowded(count + 1));
        let change = VpcChange::between(&before, &after);
        let mut held = Held::new(before, &zones());
        let changed = held.change(change.clone(), &zones());
        let steps = diff(&changed.router.wanted, &changed.router.found).len();
        let bytes = serde_json::to_vec(&change).unwrap().len();
        (change.members(), changed.touched, steps, bytes / 100)
    };
    let few = cost(2);
    assert_eq!(few, cost(2_000));
    assert_eq!(few, (2, 12, 8, few.3), "members, pieces, sets that get an element");
}
