//! What the machine should be: pure functions from the [`World`] to `model::planned`.
//!
//! The same world gives the same plan. Nothing is allocated here; addresses, uids and NAT addresses were decided when
//! the resources were committed. Cloud Run's part is in [`crate::run`].

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv4Addr, Ipv6Addr},
};

use model::{
    cidr::Cidr,
    directory::{NamespaceName, Zone},
    id::{BackendId, EndpointId, ListenerId, NetworkId, WorkloadId},
    lb,
    limits::{LB_KEEPALIVE_DEFAULT, SANDBOX_PIDS_MAX},
    name::{Link, Scope},
    planned::{
        edge::{Branch, Listener, Matcher, Route},
        guest::{Account, Identity, Machine, Named, Names, Realm, Seat},
        host::{
            Attach, ConsumerEndpoint, FirewallRule, Match, PlannedProtocol, Port, Process, PublishedEndpoint, Reach,
            Rootfs, SandboxLimits, SandboxPlan, Vip, VpcChange, VpcPlan, VpcSettings,
        },
    },
    project::region_number,
    run::ServiceKey,
    vm, vpc,
};

use crate::{
    dirty::Members,
    kind::{Kind, Record},
    kinds::{endpoint::Endpoint, instance},
    world::{Holder, SeatRecord, World},
};

/// What the operator of this cloud decided, as opposed to its users.
#[derive(Clone, Debug)]
pub struct Settings {
    /// [`model::limits::PSC_IDLE`] outside tests.
    pub psc_idle_s: u32,
}

/// The /96 from which the proxy dials containers for requests that came through a network.
///
/// `fda3:e722:ac3::/48` is where the cloud's own front ends see internal callers; the low 32 bits are the client's IPv4.
/// The 40 bits between are ours to choose (docs/decisions/2026-11-25-fda3-prefix.md): the network's id.
pub fn source_prefix(network: NetworkId) -> Ipv6Addr {
    let id = u128::from(network.0) & 0xff_ffff_ffff;
    Ipv6Addr::from(0xfda3_e722_0ac3_cc00_0000_0000_0000_0000_u128 | id << 32)
}

/// The router of one network, whole.
pub fn vpc(world: &World, network: &Record<vpc::Network>, settings: &Settings) -> VpcPlan {
    let id = NetworkId(network.id.0);
    let vms = world.users::<vm::Instance>(&network.link).map(instance::workload);
    let rules = world.users::<lb::ForwardingRule>(&network.link).map(|rule| rule.id.0);
    let endpoints = Endpoint::all(world, &network.link).map(|endpoint| endpoint.id);
    let published = world.connections.of_producer(id).filter_map(|c| Some((c.connection.endpoint, publish(world, c)?)));
    let quarantined = world.quarantine.range((id, Ipv4Addr::UNSPECIFIED)..=(id, Ipv4Addr::BROADCAST));
    VpcPlan {
        settings: vpc_settings(world, network, settings),
        ports: vms.filter_map(|id| Some((id.clone(), port(world, network, &id)?))).collect(),
        vips: rules.map(ListenerId).filter_map(|id| Some((id, vip(world, network, id)?))).collect(),
        endpoints: endpoints.filter_map(|id| Some((id, endpoint(world, network, id)?))).collect(),
        published: published.collect(),
        cut: quarantined.map(|((_, address), _)| *address).collect(),
    }
}

/// What makes the router as it was planned before into what it should be, as far as these members say. Costs what they
/// cost; the result is as if [`vpc`] had been compared whole.
pub fn vpc_change(
    world: &World,
    network: &Record<vpc::Network>,
    settings: &Settings,
    members: &Members,
    before: &VpcPlan,
) -> VpcChange {
    if members.whole {
        return VpcChange::between(before, &vpc(world, network, settings));
    }
    let id = NetworkId(network.id.0);
    let now = members.settings.then(|| vpc_settings(world, network, settings));
    let is_cut = |address: &Ipv4Addr| world.quarantine.contains_key(&(id, *address));
    let here = |id: &EndpointId| world.connections.get(id).filter(|c| c.producer_network.0 == network.id.0);
    VpcChange {
        settings: now.filter(|now| *now != before.settings),
        ports: changed(&members.ports, &before.ports, |id| port(world, network, id)),
        vips: changed(&members.vips, &before.vips, |id| vip(world, network, *id)),
        endpoints: changed(&members.endpoints, &before.endpoints, |id| endpoint(world, network, *id)),
        published: changed(&members.published, &before.published, |id| publish(world, here(id)?)),
        cut: members.cut.iter().map(|a| (*a, is_cut(a))).filter(|(a, cut)| before.cut.contains(a) != *cut).collect(),
    }
}

fn changed<K: Ord + Clone, V: PartialEq>(
    members: &BTreeSet<K>,
    before: &BTreeMap<K, V>,
    plan: impl Fn(&K) -> Option<V>,
) -> BTreeMap<K, Option<V>> {
    let planned = members.iter().map(|id| (id, plan(id)));
    planned.filter(|(id, now)| before.get(*id) != now.as_ref()).map(|(id, now)| (id.clone(), now)).collect()
}

/// What lives in a network; nothing while its project is on its way out.
fn living<'w, K: Kind>(world: &'w World, network: &Record<vpc::Network>) -> impl Iterator<Item = &'w Record<K>> {
    let is_active = world.is_active(&network.link.project);
    world.users(&network.link).filter(move |_| is_active)
}

fn vpc_settings(world: &World, network: &Record<vpc::Network>, settings: &Settings) -> VpcSettings {
    let subnets = living::<vpc::Subnetwork>(world, network);
    let logs = subnets.filter_map(|s| s.spec.flow_logs.as_ref()).filter(|f| f.enable);
    let flow_interval_s = logs.map(|f| f.interval_s).min();
    VpcSettings {
        mtu: network.spec.mtu,
        firewall: firewall(world, network),
        flow_logs: flow_interval_s.is_some(),
        flow_interval_s: flow_interval_s.unwrap_or(5),
        psc_idle_s: settings.psc_idle_s,
    }
}

/// A VM that is switched on and has a seat.
fn port(world: &World, network: &Record<vpc::Network>, id: &WorkloadId) -> Option<Port> {
    let Holder::Vm(link) = &world.seats.get(id)?.holder else { return None };
    let vm = &world.get::<vm::Instance>(link)?.spec;
    let is_here = vm.network == network.link && vm.wanted == vm::Power::On && world.is_active(&link.project);
    let region = region_number(&link.scope.region()?)?;
    is_here.then(|| Port { address: vm.address, tags: vm.tags.iter().cloned().collect(), region })
}

/// In the order in which rules are tried. Source: VPC firewall rules: lower number first, deny before allow.
fn firewall(world: &World, network: &Record<vpc::Network>) -> Vec<FirewallRule> {
    let mut rules: Vec<_> = living::<vpc::Firewall>(world, network).filter(|f| !f.spec.disabled).collect();
    rules.sort_by_key(|f| (f.spec.priority, f.spec.action, f.link.name.clone()));
    rules.into_iter().map(|f| firewall_rule(&f.link.name, &f.spec)).collect()
}

fn firewall_rule(name: &str, spec: &vpc::Firewall) -> FirewallRule {
    let tagged = |tags: &[String], ranges: &[Cidr]| {
        Match::Tagged(tags.iter().cloned().collect(), ranges.iter().copied().collect())
    };
    let ranges = |ranges: &[Cidr]| -> Match {
        if ranges.is_empty() || ranges.contains(&Cidr::ALL) {
            Match::Any
        } else {
            Match::In(ranges.iter().copied().collect())
        }
    };
    let (peers, destinations) = match spec.direction {
        vpc::Direction::Ingress if spec.source_tags.is_empty() => {
            (ranges(&spec.source_ranges), ranges(&spec.destination_ranges))
        }
        // Ranges and tags are alternatives; no range beside a tag means the tag alone.
        vpc::Direction::Ingress => (tagged(&spec.source_tags, &spec.source_ranges), ranges(&spec.destination_ranges)),
        vpc::Direction::Egress => (ranges(&spec.destination_ranges), Match::Any),
    };
    let all_protocols = spec.protocols.iter().any(|p| p.protocol.is_none());
    let protocols =
        spec.protocols.iter().filter_map(|p| Some(PlannedProtocol { protocol: p.protocol?, ports: p.ports.clone() }));
    FirewallRule {
        name: name.to_owned(),
        direction: spec.direction,
        action: spec.action,
        targets: if spec.target_tags.is_empty() { Match::Any } else { tagged(&spec.target_tags, &[]) },
        peers,
        destinations,
        protocols: if all_protocols { Vec::new() } else { protocols.collect() },
    }
}

/// From where in its VPC a rule's address is reached. Source: "Client access", global access.
pub fn reach(rule: &Record<lb::ForwardingRule>) -> Option<Reach> {
    if rule.spec.global_access {
        return Some(Reach::Everywhere);
    }
    Some(Reach::Region(region_number(&rule.link.scope.region()?)?))
}

fn vip(world: &World, network: &Record<vpc::Network>, id: ListenerId) -> Option<Vip> {
    let rule = world.by_id::<lb::ForwardingRule>(id.0)?;
    if rule.spec.network != network.link || !world.is_active(&network.link.project) {
        return None;
    }
    match &rule.spec.target {
        lb::Target::HttpProxy { ports, .. } => {
            Some(Vip { address: rule.spec.address, ports: *ports, reach: reach(rule)? })
        }
        lb::Target::ServiceAttachment { .. } => None,
    }
}

fn endpoint(world: &World, network: &Record<vpc::Network>, id: EndpointId) -> Option<ConsumerEndpoint> {
    let is_active = world.is_active(&network.link.project);
    let endpoint = Endpoint::by_id(world, id).filter(|e| *e.network == network.link && is_active)?;
    let connection = world.connections.get(&id);
    let target = connection.and_then(|c| Some((c, target_of(world, c)?.1)));
    let live = target.filter(|(c, _)| c.connection.status.forwards(&c.connection.nats));
    Some(ConsumerEndpoint {
        address: endpoint.address,
        producer: live.map(|(c, _)| c.producer_network),
        reach: endpoint.reach(target.map(|(_, ports)| ports), world)?,
    })
}

/// The load balancer behind a connection, while its attachment exists in a project that is not on its way out.
fn target_of<'w>(
    world: &'w World,
    c: &crate::world::PscConnection,
) -> Option<(&'w Record<lb::ForwardingRule>, vpc::PortRange)> {
    let attachment = world.get::<model::psc::ServiceAttachment>(&c.attachment).filter(|a| a.id == c.attachment_id)?;
    if !world.is_active(&attachment.link.project) {
        return None;
    }
    let rule = world.get::<lb::ForwardingRule>(&attachment.spec.target)?;
    match &rule.spec.target {
        lb::Target::HttpProxy { ports, .. } => Some((rule, *ports)),
        lb::Target::ServiceAttachment { .. } => None,
    }
}

/// A connection as the producer's router sees it.
fn publish(world: &World, c: &crate::world::PscConnection) -> Option<PublishedEndpoint> {
    if !c.connection.status.forwards(&c.connection.nats) {
        return None;
    }
    let (target, ports) = target_of(world, c)?;
    let endpoint = Endpoint::by_id(world, c.connection.endpoint)?;
    if !world.is_active(&endpoint.link.project) {
        return None;
    }
    Some(PublishedEndpoint {
        consumer: c.connection.consumer_network_id,
        address: endpoint.address,
        nats: c.connection.nats.clone(),
        vip: target.spec.address,
        ports,
    })
}

/// A VM's sandbox; None while it is switched off, or it or its project is on its way out.
pub fn vm(world: &World, seat: &SeatRecord) -> Option<SandboxPlan> {
    let Holder::Vm(link) = &seat.holder else { return None };
    if !world.is_active(&link.project) {
        return None;
    }
    let vm = world.get::<vm::Instance>(link).filter(|vm| vm.spec.wanted == vm::Power::On)?;
    let network = world.get::<vpc::Network>(&vm.spec.network)?;
    let subnet = world.get::<vpc::Subnetwork>(&vm.spec.subnetwork)?;
    let machine = vm::machine_type(&vm.spec.machine_type)?;
    Some(SandboxPlan {
        incarnation: seat.incarnation,
        attach: Attach::Vpc {
            network: NetworkId(network.id.0),
            address: vm.spec.address,
            gateway: subnet.spec.range.gateway(),
            mtu: network.spec.mtu,
        },
        rootfs: Rootfs::HostView,
        process: Process::Init,
        hostname: link.name.clone(),
        search: search_list(link),
        limits: SandboxLimits {
            cpu_millis: machine.cpu_millis,
            memory_bytes: u64::from(machine.memory_mb) << 20,
            pids: SANDBOX_PIDS_MAX,
        },
        uid_base: seat.uid_base,
    })
}

/// Source: internal DNS, search path of VMs with zonal names.
fn search_list(vm: &Link) -> Vec<String> {
    let Scope::Zone(zone) = &vm.scope else { return Vec::new() };
    vec![
        format!("{zone}.c.{}.internal", vm.project),
        format!("c.{}.internal", vm.project),
        "google.internal".to_owned(),
    ]
}

/// A forwarding rule that the proxy serves, its chain resolved.
pub fn listener(world: &World, id: ListenerId) -> Option<Listener> {
    let rule = world.by_id::<lb::ForwardingRule>(id.0)?;
    let lb::Target::HttpProxy { proxy, .. } = &rule.spec.target else { return None };
    if !world.is_active(&rule.link.project) {
        return None;
    }
    let network = world.network_id(&rule.spec.network)?;
    let proxy = &world.get::<lb::TargetHttpProxy>(proxy)?.spec;
    let map = &world.get::<lb::UrlMap>(&proxy.url_map)?.spec;
    let number = |name: &str| map.path_matchers.iter().position(|m| m.name == name);
    let hosts = map.host_rules.iter().filter_map(|h| Some((h, number(&h.path_matcher)?)));
    Some(Listener {
        network,
        address: rule.spec.address,
        hosts: hosts.flat_map(|(h, n)| h.hosts.iter().map(move |host| (host.clone(), n))).collect(),
        matchers: map.path_matchers.iter().map(|m| matcher(world, &rule.spec.network, m)).collect(),
        default: branch(world, &rule.spec.network, &map.default_service),
        keepalive_ms: proxy
            .keepalive_s
            .map_or(u64::try_from(LB_KEEPALIVE_DEFAULT.as_millis()).expect("a limit of minutes"), |s| {
                u64::from(s) * 1_000
            }),
    })
}

fn matcher(world: &World, network: &Link, matcher: &lb::PathMatcher) -> Matcher {
    let paths = matcher.path_rules.iter().flat_map(|rule| {
        let to = branch(world, network, &rule.service);
        rule.paths.iter().map(move |path| (path.clone(), to.clone()))
    });
    Matcher { paths: paths.collect(), default: branch(world, network, &matcher.default_service) }
}

fn branch(world: &World, network: &Link, backend_service: &Link) -> Branch {
    let route = route(world, network, backend_service);
    let service = world.get::<lb::BackendService>(backend_service).filter(|_| route != Route::NoBackend);
    Branch { backend: service.map(|service| BackendId(service.id.0)), route }
}

fn route(world: &World, network: &Link, backend_service: &Link) -> Route {
    let Some(service) = world.get::<lb::BackendService>(backend_service) else { return Route::NoBackend };
    let Some(backend) = service.spec.backends.first() else { return Route::NoBackend };
    let Some(group) = world.get::<lb::NetworkEndpointGroup>(&backend.group) else { return Route::NoBackend };
    match &group.spec.endpoints {
        lb::Endpoints::Serverless(serverless) => serverless_route(&group.link, serverless),
        // The balancer of one network dials nothing in another.
        lb::Endpoints::PrivateServiceConnect(psc) if psc.network != *network => Route::NoBackend,
        lb::Endpoints::PrivateServiceConnect(_) => {
            Route::Endpoint { endpoint: EndpointId(group.id.0), timeout_ms: u64::from(service.spec.timeout_s) * 1_000 }
        }
    }
}

fn serverless_route(group: &Link, spec: &lb::Serverless) -> Route {
    let Scope::Region(region) = &group.scope else { return Route::NoBackend };
    let project = group.project.clone();
    match (&spec.service, &spec.url_mask) {
        (Some(name), _) => Route::Service {
            service: ServiceKey { project, region: region.clone(), name: name.clone() },
            tag: spec.tag.clone(),
        },
        (None, Some(mask)) => Route::Mask { project, region: region.clone(), mask: mask.clone() },
        (None, None) => Route::NoBackend,
    }
}

/// Where a VM sits and what it may learn about itself.
pub fn vm_identity(world: &World, seat: &SeatRecord) -> Option<(Seat, Identity)> {
    let Holder::Vm(link) = &seat.holder else { return None };
    let vm = world.get::<vm::Instance>(link)?;
    let project = world.projects.get(&link.project)?;
    let network = world.get::<vpc::Network>(&vm.spec.network)?;
    let subnet = world.get::<vpc::Subnetwork>(&vm.spec.subnetwork)?;
    let Scope::Zone(zone) = &link.scope else { return None };
    let identity = Identity {
        project_id: project.id.to_string(),
        project_number: project.number.0,
        project_attributes: project.common_metadata.clone(),
        region: zone.region().to_string(),
        zone: zone.to_string(),
        account: vm.spec.service_account.as_ref().map(|a| Account { email: a.email.clone(), scopes: a.scopes.clone() }),
        machine: Machine::Vm {
            id: vm.id.0,
            name: link.name.clone(),
            hostname: format!("{}.{zone}.c.{}.internal", link.name, link.project),
            machine_type: vm.spec.machine_type.clone(),
            tags: vm.spec.tags.clone(),
            attributes: vm.spec.metadata.clone(),
            address: vm.spec.address,
            gateway: subnet.spec.range.gateway(),
            netmask: Ipv4Addr::BROADCAST,
            mac: mac(vm.spec.address),
            mtu: network.spec.mtu,
            network: network.link.name.clone(),
            image: "projects/debian-cloud/global/images/debian-12".to_owned(),
        },
    };
    Some((Seat { realm: Realm::Vpc(NetworkId(network.id.0)), address: vm.spec.address }, identity))
}

/// `42:01` and the address, as on Compute Engine; also what clients take as a sign that they run there.
fn mac(address: Ipv4Addr) -> String {
    let [a, b, c, d] = address.octets();
    format!("42:01:{a:02x}:{b:02x}:{c:02x}:{d:02x}")
}

/// What a VM, a namespace or a service is called in a network.
pub fn names(world: &World, network: NetworkId, named: &Named) -> Option<Names> {
    match named {
        Named::Vm(link) => vm_names(world, network, link),
        Named::Namespace(name) => Some(Names {
            zone: Some(zone(world, network, name)?.apex().to_owned()),
            names: Vec::new(),
            addresses: Vec::new(),
        }),
        Named::Service(name) => {
            let apex = zone(world, network, &name.namespace)?.apex();
            let endpoints = world.directory.service(name)?.endpoints.values();
            let here = endpoints.filter(|e| e.network.as_ref().is_none_or(|(_, id)| *id == network));
            let addresses: BTreeSet<Ipv4Addr> = here.filter_map(|endpoint| endpoint.address).collect();
            let names = vec![format!("{}.{apex}", name.name)];
            Some(Names { zone: Some(apex.to_owned()), names, addresses: addresses.into_iter().collect() })
        }
    }
}

/// Everything that has names in a network.
pub fn named<'w>(world: &'w World, network: &'w Record<vpc::Network>) -> impl Iterator<Item = Named> + 'w {
    let vms = world.users::<vm::Instance>(&network.link).map(|vm| Named::Vm(vm.link.clone()));
    let zones = || world.directory.zones_of(NetworkId(network.id.0));
    let services = zones().flat_map(|name| world.directory.services(name));
    vms.chain(zones().cloned().map(Named::Namespace)).chain(services.map(|s| Named::Service(s.name.clone())))
}

fn zone<'w>(world: &'w World, network: NetworkId, namespace: &NamespaceName) -> Option<&'w Zone> {
    let zone = world.directory.zone_in(namespace, network)?;
    (world.network_id(&zone.network) == Some(network) && world.is_active(&namespace.project)).then_some(zone)
}

/// Zonal and global. Source: Compute Engine internal DNS.
fn vm_names(world: &World, network: NetworkId, vm: &Link) -> Option<Names> {
    let Scope::Zone(zone) = &vm.scope else { return None };
    let spec = &world.get::<vm::Instance>(vm)?.spec;
    let zonal = format!("{}.{zone}.c.{}.internal", vm.name, vm.project);
    let names = vec![zonal, format!("{}.c.{}.internal", vm.name, vm.project)];
    let here = world.network_id(&spec.network) == Some(network);
    here.then(|| Names { zone: None, names, addresses: vec![spec.address] })
}
