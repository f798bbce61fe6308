//! What the data plane recorded, with the names that the world gives to it, as entries of Cloud Logging.
//!
//! The shapes are `logs`' business; this file finds out who an address was.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddrV4},
};

use logs::{
    Entry,
    audit::{self, Principal},
    balanced::{self, BackendNames, BalancerNames},
    flows::{self, FlowNames, Psc, PscNames, Reporter, VmNames, VpcNames},
    lines::LineNames,
    records::{self, RunNames},
};
use model::{
    id::WorkloadId,
    lb,
    name::{Link, Scope},
    record::{FlowGap, FlowRecord, RequestRecord},
    run::RevisionKey,
    time::Timestamp,
    vm,
    vpc::{self, FlowMetadata},
};

use crate::{
    joined::Connection,
    kind::Record,
    kinds::endpoint::Endpoint,
    operation::{Operation, OperationState},
    random,
    world::{Holder, World},
};

/// The entries of one request: its service's, and its balancer's.
pub fn request(world: &World, record: &RequestRecord) -> impl Iterator<Item = Entry> + use<> {
    served(world, record).into_iter().chain(balanced(world, record))
}

fn served(world: &World, record: &RequestRecord) -> Option<Entry> {
    let names = RunNames {
        user_labels: record.revision.as_ref().map(|key| user_labels(world, key)).unwrap_or_default(),
        instance_id: record.instance.as_ref().and_then(|id| instance_id(world, id)),
    };
    records::request_entry(record, &names, random::number())
}

/// Nothing unless the backend service wants it, or there is none to ask. Source: "Logging", "even when logging is disabled
/// … if the load balancer can't associate those requests with a particular backend".
fn balanced(world: &World, record: &RequestRecord) -> Option<Entry> {
    let front = record.front.as_ref()?;
    let backend = match front.backend {
        Some(id) => {
            let service = world.by_id::<lb::BackendService>(id.0)?;
            service.spec.log.filter(|log| balanced::is_sampled(record, log))?;
            let group = service.spec.backends.first().map(|b| b.group.name.clone()).unwrap_or_default();
            Some(BackendNames { service: service.link.name.clone(), group })
        }
        None => None,
    };
    let rule = world.by_id::<lb::ForwardingRule>(front.listener.0)?;
    let lb::Target::HttpProxy { proxy, .. } = &rule.spec.target else { return None };
    let names = BalancerNames {
        project: rule.link.project.clone(),
        region: rule.link.scope.region()?,
        network: rule.spec.network.name.clone(),
        forwarding_rule: rule.link.name.clone(),
        target_proxy: proxy.name.clone(),
        url_map: world.get::<lb::TargetHttpProxy>(proxy)?.spec.url_map.name.clone(),
        backend,
    };
    Some(balanced::balanced_entry(record, front, &names, random::number()))
}

/// Source: Cloud Run, user labels are copied; the client's own bookkeeping is not one.
fn user_labels(world: &World, revision: &RevisionKey) -> BTreeMap<String, String> {
    let labels = world.revisions.get(revision).map(|r| &r.template.labels);
    let user = labels.into_iter().flatten().filter(|(k, _)| !k.starts_with("client.knative.dev/"));
    user.map(|(k, v)| (k.clone(), v.clone())).collect()
}

/// What a container instance is called in the log of its service.
pub fn line_names(world: &World, workload: &WorkloadId) -> Option<LineNames> {
    let Holder::Container { revision, instance_id, .. } = &world.seats.get(workload)?.holder else { return None };
    Some(LineNames {
        revision: revision.clone(),
        instance_id: instance_id.clone(),
        user_labels: user_labels(world, revision),
    })
}

fn instance_id(world: &World, workload: &WorkloadId) -> Option<String> {
    match &world.seats.get(workload)?.holder {
        Holder::Container { instance_id, .. } => Some(instance_id.clone()),
        Holder::Vm(_) => None,
    }
}

/// The flow log's entries of one record: one for each end that is a VM in a subnet that keeps a flow log, and one for a
/// load balancer in such a subnet that is called through an endpoint.
pub fn flow(world: &World, record: &FlowRecord, now: Timestamp) -> Vec<Entry> {
    let Some(network) = world.by_id::<vpc::Network>(record.network.0) else { return Vec::new() };
    let vm_at = |address| world.at::<vm::Instance>(&network.link, address);
    let (src, dst) = (vm_at(record.src), vm_at(record.dst));
    let ends = [(Reporter::Src, src, dst, record.dst), (Reporter::Dest, dst, src, record.src)];
    let of_vm = |(reporter, near, far, peer): (
        Reporter,
        Option<&Record<vm::Instance>>,
        Option<&Record<vm::Instance>>,
        Ipv4Addr,
    )| {
        let near = near?;
        logged(world, record, now, &near.spec.subnetwork, |subnet, metadata| {
            Some(FlowNames {
                reporter,
                near: vm_names(near),
                vpc: vpc_names(&network.link, &subnet.link)?,
                subnetwork_id: subnet.id.0,
                far: far.and_then(vm_names),
                psc: psc_at(world, &network.link, peer).map(Psc::Consumer),
                metadata,
            })
        })
    };
    ends.into_iter().filter_map(of_vm).chain(translated(world, &network.link, record, now)).collect()
}

/// The connection of a flow into a load balancer, or to an endpoint: such flows carry requests.
pub fn carrier(world: &World, record: &FlowRecord) -> Option<Connection> {
    let connection = Connection::of_flow(record)?;
    let network = world.by_id::<vpc::Network>(record.network.0)?;
    world.at::<lb::ForwardingRule>(&network.link, *connection.server.ip())?;
    Some(connection)
}

/// The connection that a request came over, if flows to its load balancer are logged.
pub fn carried(world: &World, record: &RequestRecord) -> Option<Connection> {
    let front = record.front.as_ref()?;
    let rule = world.by_id::<lb::ForwardingRule>(front.listener.0)?;
    let lb::Target::HttpProxy { ports, .. } = &rule.spec.target else { return None };
    let subnet = world.get::<vpc::Subnetwork>(&rule.spec.subnetwork)?;
    subnet.spec.flow_logs.as_ref().filter(|settings| settings.enable)?;
    let server = SocketAddrV4::new(rule.spec.address, ports.first);
    Connection::of_peer(world.network_id(&rule.spec.network)?, front.peer, server)
}

/// The entry of a connection that came through an endpoint, as the producer's VPC sees it.
fn translated(world: &World, network: &Link, record: &FlowRecord, now: Timestamp) -> Option<Entry> {
    let (reporter, nat, vip) = match record.forward {
        true => (Reporter::Dest, record.src, record.dst),
        false => (Reporter::Src, record.dst, record.src),
    };
    let connection = world.connections.behind(record.network, nat)?;
    let rule = world.at::<lb::ForwardingRule>(network, vip)?;
    logged(world, record, now, &rule.spec.subnetwork, |subnet, metadata| {
        let vpc = vpc_names(network, &subnet.link)?;
        let end = PscNames { connection_id: connection.connection.connection_id.0, vpc: vpc.clone() };
        Some(FlowNames {
            reporter,
            near: None,
            vpc,
            subnetwork_id: subnet.id.0,
            far: None,
            psc: Some(Psc::Producer(end)),
            metadata,
        })
    })
}

/// The entry in the log of a subnet, if it keeps one and this record is in it.
fn logged(
    world: &World,
    record: &FlowRecord,
    now: Timestamp,
    subnet: &Link,
    names: impl FnOnce(&Record<vpc::Subnetwork>, FlowMetadata) -> Option<FlowNames>,
) -> Option<Entry> {
    let subnet = world.get::<vpc::Subnetwork>(subnet)?;
    let settings = subnet.spec.flow_logs.as_ref().filter(|settings| flows::is_sampled(record, settings))?;
    Some(flows::flow_entry(record, &names(subnet, settings.metadata)?, now, random::number()))
}

fn vm_names(vm: &Record<vm::Instance>) -> Option<VmNames> {
    let Scope::Zone(zone) = &vm.link.scope else { return None };
    Some(VmNames {
        project: vm.link.project.clone(),
        zone: zone.clone(),
        vm: vm.link.name.clone(),
        vpc: vpc_names(&vm.spec.network, &vm.spec.subnetwork)?,
    })
}

fn vpc_names(network: &Link, subnet: &Link) -> Option<VpcNames> {
    let Scope::Region(region) = &subnet.scope else { return None };
    Some(VpcNames {
        project: network.project.clone(),
        network: network.name.clone(),
        subnetwork: subnet.name.clone(),
        region: region.clone(),
    })
}

/// The Private Service Connect endpoint that has this address in the network.
fn psc_at(world: &World, network: &Link, address: Ipv4Addr) -> Option<PscNames> {
    let endpoint = Endpoint::at(world, network, address)?;
    let connection = world.connections.get(&endpoint.id)?;
    Some(PscNames {
        connection_id: connection.connection.connection_id.0,
        vpc: vpc_names(network, endpoint.subnetwork)?,
    })
}

/// The end of a Compute operation, in the activity log; None while it runs.
pub fn ended(operation: &Operation) -> Option<Entry> {
    let OperationState::Done { at, fault } = &operation.state else { return None };
    let kind = if operation.user.ends_with("gserviceaccount.com") { "serviceAccount" } else { "user" };
    let ended = audit::Ended {
        name: &operation.name,
        target: &operation.target,
        target_id: &operation.target_id.to_string(),
        verb: &operation.verb,
        principal: Principal { email: operation.user.clone(), subject: format!("{kind}:{}", operation.user) },
        status: fault.as_ref().map_or(Ok(()), |fault| Err((fault.code, fault.message.clone()))),
        at: *at,
    };
    Some(audit::ended(&ended, random::number()))
}

/// Says in the flow log of every project concerned that records are missing.
pub fn gap(world: &World, gap: &FlowGap, now: Timestamp) -> Vec<Entry> {
    let logged = |s: &&Record<vpc::Subnetwork>| s.spec.flow_logs.as_ref().is_some_and(|f| f.enable);
    let here = |s: &&Record<vpc::Subnetwork>| gap.network.is_none_or(|n| world.network_id(&s.spec.network) == Some(n));
    let subnets = world.all::<vpc::Subnetwork>().filter(logged).filter(here);
    let projects: std::collections::BTreeSet<_> = subnets.map(|s| s.link.project.clone()).collect();
    projects.iter().map(|project| flows::gap_entry(gap, project, now, random::number())).collect()
}
