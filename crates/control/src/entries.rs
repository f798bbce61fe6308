//! Records of what happened, with the names that the world knows for them: entries of the logs.

use logs::{
    Entry,
    records::{self, FlowNames, PscNames, Reporter, RunNames, VmNames, VpcNames},
};
use model::{
    id::NetworkId,
    lb,
    name::{Link, Scope},
    record::{FlowGap, FlowRecord, RequestRecord},
    time::Timestamp,
    vm, vpc,
};

use crate::{
    kind::Record,
    random,
    world::{Holder, World},
};

/// A request's entry in the log of its service's project.
pub fn request(world: &World, record: &RequestRecord) -> Entry {
    let instance_id = record.instance.as_ref().and_then(|id| match &world.seats.get(id)?.holder {
        Holder::Container { instance_id, .. } => Some(instance_id.clone()),
        Holder::Vm(_) => None,
    });
    let revision = record.revision.as_ref().and_then(|key| world.revisions.get(key));
    let names = RunNames { user_labels: revision.map(|r| r.template.labels.clone()).unwrap_or_default(), instance_id };
    records::request_entry(record, &names, random::number())
}

/// The entries of one direction of a flow: one from each end that is a VM in a subnet whose logs are on.
pub fn flow(world: &World, record: &FlowRecord, now: Timestamp) -> Vec<Entry> {
    let Some(network) = network(world, record.network) else { return Vec::new() };
    let src = vm_at(world, &network.link, record.src);
    let dst = vm_at(world, &network.link, record.dst);
    let ends = [(Reporter::Src, src, dst, record.dst), (Reporter::Dest, dst, src, record.src)];
    let entries = ends.into_iter().filter_map(|(reporter, near, far, far_address)| {
        let near = near?;
        let subnet = world.get::<vpc::Subnetwork>(&near.spec.subnetwork)?;
        let settings = subnet.spec.flow_logs.as_ref().filter(|f| records::is_sampled(record, f))?;
        let names = FlowNames {
            reporter,
            near: vm_names(world, near)?,
            subnetwork_id: subnet.id.0,
            far: far.and_then(|vm| vm_names(world, vm)),
            psc: endpoint_at(world, &network.link, far_address),
            metadata: settings.metadata,
        };
        Some(records::flow_entry(record, &names, now, random::number()))
    });
    entries.collect()
}

/// Flows that were not counted: said in the log of every project whose network is concerned.
pub fn gap(world: &World, gap: &FlowGap, now: Timestamp) -> Vec<Entry> {
    let concerned = world.all::<vpc::Network>().filter(|n| gap.network.is_none_or(|id| id.0 == n.id.0));
    let mut projects: Vec<_> = concerned.map(|n| n.link.project.clone()).collect();
    projects.dedup();
    projects.iter().map(|project| records::gap_entry(gap, project, now, random::number())).collect()
}

fn network(world: &World, id: NetworkId) -> Option<&Record<vpc::Network>> {
    world.all::<vpc::Network>().find(|n| n.id.0 == id.0)
}

fn vm_at<'w>(world: &'w World, network: &Link, address: std::net::Ipv4Addr) -> Option<&'w Record<vm::Instance>> {
    world.referrers(network).filter_map(|link| world.get::<vm::Instance>(link)).find(|vm| vm.spec.address == address)
}

fn vm_names(world: &World, vm: &Record<vm::Instance>) -> Option<VmNames> {
    let Scope::Zone(zone) = &vm.link.scope else { return None };
    let vpc = vpc_names(world, &vm.spec.network, &vm.spec.subnetwork)?;
    Some(VmNames { project: vm.link.project.clone(), zone: zone.clone(), vm: vm.link.name.clone(), vpc })
}

fn vpc_names(world: &World, network: &Link, subnetwork: &Link) -> Option<VpcNames> {
    let subnet = world.get::<vpc::Subnetwork>(subnetwork)?;
    Some(VpcNames {
        project: network.project.clone(),
        network: network.name.clone(),
        subnetwork: subnet.link.name.clone(),
        region: subnet.link.scope.region()?,
    })
}

fn endpoint_at(world: &World, network: &Link, address: std::net::Ipv4Addr) -> Option<PscNames> {
    let rules = world.referrers(network).filter_map(|link| world.get::<lb::ForwardingRule>(link));
    let rule = rules.filter(|r| r.spec.address == address).find(|r| matches!(r.spec.target, lb::Target::ServiceAttachment { .. }))?;
    let connection = world.connections.get(&model::id::EndpointId(rule.id.0))?;
    Some(PscNames {
        connection_id: connection.connection.connection_id.0,
        vpc: vpc_names(world, &rule.spec.network, &rule.spec.subnetwork)?,
    })
}
