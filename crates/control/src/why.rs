//! What the plans say of a call that somebody asks about: what the address is, who may pass, where the request would go.
//! Pure functions of the world; what really happens to the call is for others to watch.
//!
//! Start with [`case`], for a packet, then [`backend`], for a request.

use std::{collections::BTreeMap, net::Ipv4Addr};

use model::{
    fault::{Code, Fault},
    id::{EndpointId, ListenerId, NetworkId, WorkloadId},
    lb,
    name::{Link, ProjectId},
    planned::edge::{EdgeService, Listener},
    psc::{ConnectionStatus, Consumer, Preference, ServiceAttachment},
    run::{RevisionState, ServiceKey},
    time::Timestamp,
    vm,
    vpc::{self, PortRange},
};
use serde::{Deserialize, Serialize};

use crate::{
    kind::Record,
    kinds::endpoint::Endpoint,
    org_policies::Effective,
    plan, run,
    tokens::{Mint, account_claims},
    world::{Holder, PscConnection, World},
};

/// A packet from a VM to an address, and what both are.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Case {
    pub vm: Link,
    pub workload: WorkloadId,
    pub from: Ipv4Addr,
    pub network: Link,
    pub network_id: NetworkId,
    /// The VM's own service account.
    pub account: Option<String>,
    pub to: Ipv4Addr,
    pub target: Target,
    /// The firewall rules of the VM's network by name.
    pub firewall: BTreeMap<String, vpc::Firewall>,
}

/// What an address is in the VM's network.
#[expect(clippy::large_enum_variant, reason = "one is made for a question of a person")]
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Target {
    Vm {
        vm: Link,
        on: bool,
        tags: Vec<String>,
    },
    Balancer(Balancer),
    Endpoint {
        rule: Link,
        attachment: Link,
        producer: Option<NetworkId>,
        balancer: Option<Balancer>,
        held: Option<Held>,
    },
    /// A network endpoint group's, which only the load balancer of the network dials.
    Group(Link),
    /// Reserved, and used by nothing.
    Reserved(Link),
    /// In a subnet, and nobody's.
    Vacant(Link),
    /// In no subnet of this network; the other networks in which something has it.
    Elsewhere(Vec<Link>),
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Balancer {
    pub rule: Link,
    pub ports: PortRange,
    pub listener: Box<Listener>,
}

/// Why an endpoint forwards nothing.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Held {
    /// PENDING: on no accept list. `by_network`: the lists of this attachment name networks.
    NotListed { project: ProjectId, network: Link, by_network: bool },
    /// PENDING: the consumer has as many endpoints as it may.
    AtLimit { project: ProjectId, limit: u32 },
    /// REJECTED: on the reject list.
    Rejected { project: ProjectId },
    /// REJECTED: an organisation policy of the producer does not let the consumer connect.
    Forbidden { project: ProjectId, producer: ProjectId },
    /// REJECTED once, and since then nobody has reconsidered.
    StaysRejected,
    /// CLOSED: the attachment it was made for was deleted.
    Closed,
    /// NEEDS_ATTENTION: the NAT subnets have no address left.
    NoNatAddress { subnets: Vec<Link> },
    /// What the attachment publishes is gone.
    NoTarget,
}

/// A request that has reached a route to a service.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Backend {
    pub service: ServiceKey,
    /// As the proxy was told; None: there is no such service, or its project is going.
    pub planned: Option<EdgeService>,
    /// An audience that it expects: its own URL, where it has one.
    pub url: Option<String>,
    /// Condition Ready, where it is not true: reason and message.
    pub unready: Option<(String, String)>,
    /// Whether the account that was asked about may invoke it.
    pub admits: bool,
}

/// What is known of the packet's way. `to`: an address, or the name of a VM in the same network.
pub fn case(world: &World, vm: &Link, to: &str) -> Result<Case, Fault> {
    let record = world.get::<vm::Instance>(vm).ok_or_else(|| Fault::not_found(vm))?;
    let seated = |holder: &Holder| matches!(holder, Holder::Vm(link) if link == vm);
    let seat = world.seats.values().find(|seat| seated(&seat.holder));
    let seat =
        seat.ok_or_else(|| Fault::new(Code::FailedPrecondition, "notRunning", format!("VM '{vm}' is not running")))?;
    let network = &record.spec.network;
    let network_id = world.network_id(network).ok_or_else(|| Fault::not_found(network))?;
    let to = address(world, network, to)?;
    let rules = world.referrers(network).filter_map(|link| world.get::<vpc::Firewall>(link));
    Ok(Case {
        vm: vm.clone(),
        workload: seat.workload.clone(),
        from: record.spec.address,
        network: network.clone(),
        network_id,
        account: record.spec.service_account.as_ref().map(|a| a.email.clone()),
        to,
        target: target(world, network, to),
        firewall: rules.map(|rule| (rule.link.name.clone(), rule.spec.clone())).collect(),
    })
}

fn address(world: &World, network: &Link, to: &str) -> Result<Ipv4Addr, Fault> {
    if let Ok(address) = to.parse() {
        return Ok(address);
    }
    if let Some(vm) = world.users::<vm::Instance>(network).find(|vm| vm.link.name == to) {
        return Ok(vm.spec.address);
    }
    let names = world.get::<vpc::Network>(network).into_iter().flat_map(|network| {
        let id = NetworkId(network.id.0);
        plan::named(world, network).filter_map(move |named| plan::names(world, id, &named))
    });
    let mut called = names.filter(|names| names.names.iter().any(|name| name == to));
    called.find_map(|names| names.addresses.first().copied()).ok_or_else(|| {
        let message = format!("'{to}' is neither an address nor a name that resolves in '{network}'");
        Fault::new(Code::NotFound, "notFound", message)
    })
}

fn target(world: &World, network: &Link, to: Ipv4Addr) -> Target {
    let (mut reserved, mut vacant) = (None, None);
    for link in world.referrers(network) {
        if let Some(vm) = world.get::<vm::Instance>(link).filter(|vm| vm.spec.address == to) {
            let on = vm.spec.wanted == vm::Power::On;
            return Target::Vm { vm: link.clone(), on, tags: vm.spec.tags.clone() };
        }
        if let Some(rule) = world.get::<lb::ForwardingRule>(link).filter(|rule| rule.spec.address == to) {
            return front(world, rule);
        }
        let group = world.get::<lb::NetworkEndpointGroup>(link).and_then(Endpoint::of_group);
        if group.is_some_and(|group| group.address == to) {
            return Target::Group(link.clone());
        }
        if let Some(subnet) = world.get::<vpc::Subnetwork>(link).filter(|subnet| subnet.spec.range.contains(to)) {
            vacant = Some(link.clone());
            let mut addresses = world.referrers(&subnet.link).filter_map(|link| world.get::<vpc::Address>(link));
            reserved = addresses.find(|a| a.spec.address == to).map(|a| a.link.clone());
        }
    }
    match (reserved, vacant) {
        (Some(address), _) => Target::Reserved(address),
        (None, Some(subnet)) => Target::Vacant(subnet),
        (None, None) => Target::Elsewhere(owners(world, to)),
    }
}

/// The networks in which a VM or a forwarding rule has the address.
fn owners(world: &World, address: Ipv4Addr) -> Vec<Link> {
    let vms = world.all::<vm::Instance>().filter(|vm| vm.spec.address == address).map(|vm| &vm.spec.network);
    let rules = world.all::<lb::ForwardingRule>().filter(|r| r.spec.address == address).map(|r| &r.spec.network);
    let mut owners: Vec<Link> = vms.chain(rules).cloned().collect();
    owners.sort();
    owners.dedup();
    owners
}

fn front(world: &World, rule: &Record<lb::ForwardingRule>) -> Target {
    match (&rule.spec.target, balancer(world, rule)) {
        (lb::Target::HttpProxy { .. }, Some(balancer)) => Target::Balancer(balancer),
        (lb::Target::HttpProxy { .. }, None) => Target::Reserved(rule.link.clone()),
        (lb::Target::ServiceAttachment { attachment, .. }, _) => {
            let connection = world.connections.get(&EndpointId(rule.id.0));
            let published = world.get::<ServiceAttachment>(attachment);
            let behind = published.and_then(|a| world.get::<lb::ForwardingRule>(&a.spec.target));
            Target::Endpoint {
                rule: rule.link.clone(),
                attachment: attachment.clone(),
                producer: connection.map(|c| c.producer_network),
                balancer: behind.and_then(|rule| balancer(world, rule)),
                held: held(world, connection, published, behind.is_some()),
            }
        }
    }
}

fn balancer(world: &World, rule: &Record<lb::ForwardingRule>) -> Option<Balancer> {
    let lb::Target::HttpProxy { ports, .. } = &rule.spec.target else { return None };
    let listener = plan::listener(world, ListenerId(rule.id.0))?;
    Some(Balancer { rule: rule.link.clone(), ports: *ports, listener: Box::new(listener) })
}

fn held(
    world: &World,
    connection: Option<&PscConnection>,
    published: Option<&Record<ServiceAttachment>>,
    has_target: bool,
) -> Option<Held> {
    let (Some(connection), Some(attachment)) = (connection, published) else { return Some(Held::Closed) };
    let project = connection.connection.rule.project.clone();
    let spec = &attachment.spec;
    let names = |consumer: &Consumer| match consumer {
        Consumer::Project { id, .. } => *id == project,
        Consumer::Network(network) => *network == connection.connection.consumer_network,
    };
    let accepted = spec.accept.iter().find(|entry| names(&entry.consumer));
    match connection.connection.status {
        ConnectionStatus::Accepted | ConnectionStatus::NeedsAttention if !connection.connection.nats.is_empty() => {
            (!has_target).then_some(Held::NoTarget)
        }
        ConnectionStatus::Accepted | ConnectionStatus::NeedsAttention => {
            Some(Held::NoNatAddress { subnets: spec.nat_subnets.clone() })
        }
        ConnectionStatus::Closed => Some(Held::Closed),
        ConnectionStatus::Rejected if spec.reject.iter().any(names) => Some(Held::Rejected { project }),
        ConnectionStatus::Rejected => {
            let producer = attachment.link.project.clone();
            let permits = Effective::on_consumers_of(world, &producer).permits(world, &project);
            Some(if permits { Held::StaysRejected } else { Held::Forbidden { project, producer } })
        }
        ConnectionStatus::Pending => Some(match accepted {
            Some(entry) if spec.preference == Preference::AcceptManual => Held::AtLimit { project, limit: entry.limit },
            Some(_) | None => {
                let mut listed = spec.accept.iter().map(|e| &e.consumer).chain(&spec.reject);
                let by_network = listed.any(|c| matches!(c, Consumer::Network(_)));
                Held::NotListed { project, network: connection.connection.consumer_network.clone(), by_network }
            }
        }),
    }
}

/// What is known of a service that a request of this account, if any, was routed to.
pub fn backend(world: &World, key: &ServiceKey, account: Option<&str>) -> Backend {
    let record = world.services.get(key);
    let planned = record.and_then(|record| run::plan::service(world, record));
    let newest = record.and_then(|r| run::revisions_of(world, &r.key).max_by_key(|revision| revision.number));
    let unready = newest.and_then(|revision| match &revision.state {
        RevisionState::Failed { reason, message, .. } => Some((reason.clone(), message.clone())),
        RevisionState::Deploying => Some(("Deploying".to_owned(), "The newest revision is being deployed.".to_owned())),
        RevisionState::Ready { .. } => None,
    });
    let url = planned.as_ref().and_then(|service| match service.hosts.first() {
        Some(host) => Some(format!("https://{host}")),
        None => service.audiences.first().cloned(),
    });
    let account = account.and_then(|email| world.accounts.get(email));
    let admits = planned.as_ref().zip(account).is_some_and(|(service, account)| {
        service.invokers.admits(&account.unique_id, Some(&account.email.to_ascii_lowercase()))
    });
    Backend { service: key.clone(), url, admits, planned, unready }
}

/// An ID token as the account's own workloads get it.
pub fn token(mint: &Mint, world: &World, email: &str, audience: &str, now: Timestamp) -> Result<String, Fault> {
    let account = world.accounts.get(email).filter(|account| !account.disabled);
    let account = account.ok_or_else(|| {
        Fault::new(Code::NotFound, "notFound", format!("There is no service account '{email}' that may be used"))
    })?;
    mint.id_token(&account_claims(account, audience, None, now), now)
}
