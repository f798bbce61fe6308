//! Any plan may follow any other, and a restart may come in between: the kernel equals the last one each time.

#![allow(clippy::unwrap_used)]

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use host::{
    names,
    net::{kernel::Space, state, vpc},
};
use lab::{Lab, plan};
use model::{
    cidr::Cidr,
    id::{EndpointId, ListenerId, NetworkId, WorkloadId},
    planned::host::{
        ConsumerEndpoint, FirewallRule, Match, PlannedProtocol, Port, PublishedEndpoint, Reach, Vip, VpcPlan,
    },
    vpc::{Action, Direction, PortRange},
};

const NET: NetworkId = NetworkId(801);

/// A small generator of numbers (xorshift), so that a failing run can be repeated by its seed.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u32) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        u32::try_from(self.0 % u64::from(limit)).unwrap()
    }

    fn often(&mut self) -> bool {
        self.below(3) > 0
    }

    fn address(&mut self) -> Ipv4Addr {
        Ipv4Addr::from(0x0a00_0000 + self.below(64))
    }

    fn condition(&mut self) -> Match {
        if self.often() {
            let blocks =
                (0..self.below(6)).map(|_| Cidr::containing(self.address(), u8::try_from(26 + self.below(7)).unwrap()));
            let blocks = blocks.collect();
            return if self.often() { Match::In(blocks) } else { Match::Tagged(self.tags(), blocks) };
        }
        Match::Any
    }

    fn tags(&mut self) -> BTreeSet<String> {
        (0..self.below(3)).map(|_| format!("tag-{}", self.below(3))).collect()
    }

    fn ports(&mut self) -> PortRange {
        let first = u16::try_from(1 + self.below(9)).unwrap();
        PortRange { first, last: first + u16::try_from(self.below(3)).unwrap() }
    }

    fn rule(&mut self, n: u32) -> FirewallRule {
        let direction = if self.often() { Direction::Ingress } else { Direction::Egress };
        let action = if self.often() { Action::Allow } else { Action::Deny };
        let mut rule = plan::rule(&format!("rule-{n}"), direction, action);
        (rule.targets, rule.peers, rule.destinations) = (self.condition(), self.condition(), self.condition());
        rule.protocols = (0..self.below(3))
            .map(|_| PlannedProtocol { protocol: 6, ports: (0..self.below(3)).map(|_| self.ports()).collect() })
            .collect();
        rule
    }

    fn reach(&mut self) -> Reach {
        if self.often() { Reach::Region(1 + self.below(2)) } else { Reach::Everywhere }
    }

    fn reach_of_endpoint(&mut self) -> Reach {
        let from = Ipv4Addr::new(10, 3, 0, u8::try_from(self.below(2)).unwrap());
        if self.often() { self.reach() } else { Reach::Balancer { from, port: 80 } }
    }

    fn plan(&mut self) -> VpcPlan {
        let mut plan = plan::vpc(&[]);
        plan.settings.firewall =
            (0..5).filter(|_| self.often()).collect::<Vec<_>>().into_iter().map(|n| self.rule(n)).collect();
        plan.ports = (0..6)
            .map(|n| (WorkloadId(format!("vm-{n}")), Port { address: self.address(), tags: self.tags(), region: 1 }))
            .filter(|(_, port)| port.address.octets()[3] % 2 == 0)
            .collect();
        plan.vips = (0..self.below(3))
            .map(|n| {
                (
                    ListenerId(n.into()),
                    Vip {
                        address: Ipv4Addr::new(10, 1, 0, u8::try_from(n).unwrap()),
                        ports: self.ports(),
                        reach: self.reach(),
                    },
                )
            })
            .collect();
        plan.endpoints = (0..4)
            .map(|n| {
                let producer = self.often().then(|| NetworkId(810 + u64::from(self.below(3))));
                (
                    EndpointId(n),
                    ConsumerEndpoint {
                        address: Ipv4Addr::new(10, 2, 0, u8::try_from(n).unwrap()),
                        producer,
                        reach: self.reach_of_endpoint(),
                    },
                )
            })
            .collect();
        plan.published = (0..4)
            .map(|n| {
                let [address, nat, vip, other] =
                    [3, 4, 1, 5].map(|net| Ipv4Addr::new(10, net, 0, u8::try_from(n).unwrap()));
                let nats = if self.often() { vec![nat, other] } else { vec![nat] };
                let consumer = NetworkId(820 + u64::from(self.below(3)));
                (
                    EndpointId(100 + n),
                    PublishedEndpoint { consumer, address, nats, vip, ports: PortRange { first: 80, last: 80 } },
                )
            })
            .filter(|(id, _)| id.0 % 2 == 0)
            .collect();
        plan.cut = (0..self.below(3)).map(|_| self.address()).collect();
        plan.settings.flow_logs = self.often();
        plan.settings.psc_idle_s = 1_200 + self.below(2);
        plan
    }
}

/// The number that the kernel gave each consumer's link.
fn zones(space: &Space) -> BTreeMap<NetworkId, u16> {
    let links = space.links().iter();
    links
        .filter_map(|(name, index)| Some((names::linked(names::INCOMING_PREFIX, name)?, vpc::zone_of(index)?)))
        .collect()
}

#[test]
fn the_kernel_equals_the_last_plan_whatever_the_one_before_was() {
    let mut lab = Lab::new();
    let mut dice = Dice(0x7071);
    for round in 0..40 {
        let plan = dice.plan();
        if dice.below(4) == 0 {
            lab.restart();
        }
        lab.hands().apply_vpc(NET, &plan).unwrap_or_else(|e| panic!("round {round}: {e:?}\n{plan:?}"));
        let space = lab.hands().space(&names::vpc_ns(NET)).unwrap();
        let wanted = vpc::router(&plan, &zones(space));
        let found = space.read(&wanted).unwrap();
        assert_eq!(state::diff(&wanted, &found), vec![], "round {round}");
    }
    lab.hands().remove_vpc(NET).unwrap();
    lab.hands().retain().unwrap();
    assert!(lab.hands().pins().names().unwrap().is_empty(), "routers that were there for a link only are gone as well");
}
