//! Short ways to write the plans that tests are about.

use std::net::SocketAddrV4;

use model::{
    id::{EndpointId, ListenerId, NetworkId, WorkloadId},
    planned::host::{ConsumerEndpoint, FirewallRule, Match, Port, PublishedEndpoint, Reach, Vip, VpcPlan, VpcSettings},
    vpc::{Action, Direction, PortRange},
};

use crate::scene::MTU;

/// A VPC with these VMs (name, address), in which everyone may speak to everyone.
pub fn vpc(vms: &[(&str, &str)]) -> VpcPlan {
    VpcPlan {
        settings: VpcSettings {
            mtu: MTU,
            firewall: vec![rule("allow-all", Direction::Ingress, Action::Allow)],
            flow_logs: false,
            flow_interval_s: 5,
            psc_idle_s: 1_200,
        },
        ports: vms.iter().map(|(name, address)| (WorkloadId((*name).to_owned()), Port::at(parse(address)))).collect(),
        ..VpcPlan::default()
    }
}

/// A rule about everybody and everything; narrow it by setting fields.
pub fn rule(name: &str, direction: Direction, action: Action) -> FirewallRule {
    FirewallRule {
        name: name.to_owned(),
        direction,
        action,
        targets: Match::Any,
        peers: Match::Any,
        destinations: Match::Any,
        protocols: Vec::new(),
    }
}

pub fn hosts(blocks: &[&str]) -> Match {
    Match::In(blocks.iter().map(|b| parse(b)).collect())
}

pub fn with_endpoint(mut plan: VpcPlan, address: &str, producer: Option<u64>) -> VpcPlan {
    let (address, reach) = (parse(address), Reach::Region(1));
    let endpoint = ConsumerEndpoint { address, producer: producer.map(NetworkId), reach };
    plan.endpoints.insert(EndpointId(1), endpoint);
    plan
}

/// The same for the load balancer alone, which dials from this address.
pub fn with_backend(plan: VpcPlan, address: &str, from: &str, producer: Option<u64>) -> VpcPlan {
    let mut plan = with_endpoint(plan, address, producer);
    let reach = Reach::Balancer { from: parse(from), port: 80 };
    plan.endpoints.values_mut().for_each(|endpoint| endpoint.reach = reach);
    plan
}

pub fn with_vip(mut plan: VpcPlan, at: &str) -> VpcPlan {
    let at: SocketAddrV4 = parse(at);
    plan.vips.insert(ListenerId(1), Vip { address: *at.ip(), ports: one(at.port()), reach: Reach::Region(1) });
    plan
}

pub fn with_published(plan: VpcPlan, vip: &str, endpoints: &[(u64, PublishedEndpoint)]) -> VpcPlan {
    let mut plan = with_vip(plan, vip);
    plan.published = endpoints.iter().map(|(id, endpoint)| (EndpointId(*id), endpoint.clone())).collect();
    plan
}

pub fn published(consumer: u64, address: &str, nat: &str, vip: &str) -> PublishedEndpoint {
    let vip: SocketAddrV4 = parse(vip);
    PublishedEndpoint {
        consumer: NetworkId(consumer),
        address: parse(address),
        nats: vec![parse(nat)],
        vip: *vip.ip(),
        ports: one(vip.port()),
    }
}

fn one(port: u16) -> PortRange {
    PortRange { first: port, last: port }
}

fn parse<T: std::str::FromStr>(text: &str) -> T {
    text.parse().ok().expect("tests write valid addresses")
}
