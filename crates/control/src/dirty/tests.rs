//! Planning what a commit made dirty gives what planning everything gives, and costs the same however much there is.

#![allow(clippy::unwrap_used, reason = "helpers of tests panic like tests")]

use model::{
    directory::{NAMESPACE_DEFAULT, Registration},
    fault::Fault,
    lb::{self, Target},
    name::Scope,
    planned::{
        edge::Listener,
        guest::{Identity, Named, Names, Seat},
        host::{SandboxPlan, VpcPlan},
    },
    psc::{AcceptEntry, Consumer, Preference},
    vpc::{Action, Direction, FlowLogs, PortRange, ProxyRole, Purpose},
};

use super::*;
use crate::{
    kinds::{
        holding::UNDECIDED,
        tests::{Scene, network, project, region, subnet},
    },
    plan::{self, Settings},
    projects,
};

const SETTINGS: Settings = Settings { psc_idle_s: 1 };

/// All plans that follow from the world alone.
#[derive(Debug, Default, PartialEq)]
struct Plans {
    vpcs: BTreeMap<NetworkId, VpcPlan>,
    sandboxes: BTreeMap<WorkloadId, SandboxPlan>,
    identities: BTreeMap<WorkloadId, (Seat, Identity)>,
    listeners: BTreeMap<ListenerId, Listener>,
    names: BTreeMap<(NetworkId, Named), Names>,
}

fn put<K: Ord, V>(map: &mut BTreeMap<K, V>, key: K, value: Option<V>) {
    match value {
        Some(value) => map.insert(key, value),
        None => map.remove(&key),
    };
}

impl Plans {
    fn of(world: &World) -> Plans {
        let mut plans = Plans::default();
        for network in world.all::<vpc::Network>() {
            let id = NetworkId(network.id.0);
            plans.vpcs.insert(id, plan::vpc(world, network, &SETTINGS));
            for named in plan::named(world, network) {
                put(&mut plans.names, (id, named.clone()), plan::names(world, id, &named));
            }
        }
        for (id, seat) in world.seats.iter() {
            put(&mut plans.sandboxes, id.clone(), plan::vm(world, seat));
            put(&mut plans.identities, id.clone(), plan::vm_identity(world, seat));
        }
        for rule in world.all::<lb::ForwardingRule>() {
            let id = ListenerId(rule.id.0);
            put(&mut plans.listeners, id, plan::listener(world, id));
        }
        plans
    }

    fn follow(&mut self, world: &World, dirty: &Dirty) {
        assert!(!dirty.everything);
        for (id, members) in &dirty.vpcs {
            match (world.by_id::<vpc::Network>(id.0), self.vpcs.get_mut(id)) {
                (Some(network), Some(before)) => {
                    before.change(plan::vpc_change(world, network, &SETTINGS, members, before));
                }
                (network, _) => put(&mut self.vpcs, *id, network.map(|n| plan::vpc(world, n, &SETTINGS))),
            }
        }
        for id in &dirty.workloads {
            let seat = world.seats.get(id);
            put(&mut self.sandboxes, id.clone(), seat.and_then(|seat| plan::vm(world, seat)));
            put(&mut self.identities, id.clone(), seat.and_then(|seat| plan::vm_identity(world, seat)));
        }
        for key in &dirty.edge {
            if let EdgeKey::Listener(id) = key {
                put(&mut self.listeners, *id, plan::listener(world, *id));
            }
        }
        for id in &dirty.names {
            put(&mut self.names, id.clone(), plan::names(world, id.0, &id.1));
        }
    }
}

/// A load balancer with an attachment that accepts everyone, and a subnet for consumers.
struct Market {
    scene: Scene,
    consumers: Link,
    attachment: Link,
    map: Link,
    second: Link,
    front: Link,
    serves: lb::ForwardingRule,
    published: ServiceAttachment,
}

fn vm(scene: &Scene, name: &str, subnetwork: &Link, tags: &[&str]) -> Result<Link, Fault> {
    let spec = vm::Instance {
        machine_type: "e2-micro".into(),
        network: network(),
        subnetwork: subnetwork.clone(),
        address: UNDECIDED,
        tags: tags.iter().map(|tag| (*tag).to_owned()).collect(),
        metadata: Default::default(),
        service_account: None,
        description: None,
        wanted: vm::Power::On,
        automatic_restart: true,
    };
    scene.insert(name, Scope::Zone("us-west1-b".parse().unwrap()), spec)
}

fn market(domain: Option<&str>) -> Market {
    let scene = Scene::new();
    let producer = vpc::Network { auto_create_subnetworks: false, mtu: 1_460, description: None };
    let producer = scene.insert("producer", Scope::Global, producer).unwrap();
    let insert = |name: &str, network: &Link, range: &str, purpose, role| {
        scene.subnet(name, vpc::Subnetwork { network: network.clone(), ..subnet(range, purpose, role) }).unwrap()
    };
    let (proxy, active) = (Purpose::RegionalManagedProxy, Some(ProxyRole::Active));
    insert("proxies", &network(), "10.9.0.0/26", proxy, active);
    insert("producers-proxies", &producer, "10.9.0.0/26", proxy, active);
    let nat = insert("nat", &producer, "10.8.0.0/16", Purpose::PrivateServiceConnect, None);
    let fronts = insert("fronts", &producer, "10.10.0.0/16", Purpose::Private, None);
    let consumers = insert("consumers", &network(), "10.10.0.0/16", Purpose::Private, None);
    let serverless = lb::Serverless { service: Some("s".into()), tag: None, url_mask: None };
    let neg = lb::NetworkEndpointGroup { endpoints: lb::Endpoints::Serverless(serverless), description: None };
    let neg = scene.insert("neg", region(), neg).unwrap();
    let service = |backends| lb::BackendService {
        protocol: lb::Protocol::Http,
        backends,
        timeout_s: 30,
        log: None,
        description: None,
    };
    let backends = vec![lb::Backend { group: neg }];
    let first = scene.insert("first", region(), service(backends)).unwrap();
    let second = scene.insert("second", region(), service(vec![])).unwrap();
    let map = lb::UrlMap { default_service: first, host_rules: vec![], path_matchers: vec![], description: None };
    let map = scene.insert("map", region(), map).unwrap();
    let proxy = lb::TargetHttpProxy { url_map: map.clone(), keepalive_s: None, description: None };
    let proxy = scene.insert("proxy", region(), proxy).unwrap();
    let ports = PortRange { first: 80, last: 80 };
    let serves = lb::ForwardingRule { network: producer, ..rule(&fronts, Target::HttpProxy { proxy, ports }) };
    let front = scene.insert("front", region(), serves.clone()).unwrap();
    let published = ServiceAttachment {
        target: front.clone(),
        preference: Preference::AcceptAutomatic,
        nat_subnets: vec![nat],
        accept: vec![],
        reject: vec![],
        reconcile: true,
        nats_per_endpoint: None,
        domain: domain.map(str::to_owned),
        description: None,
    };
    let attachment = scene.insert("attachment", region(), published.clone()).unwrap();
    Market { scene, consumers, attachment, map, second, front, serves, published }
}

fn rule(subnetwork: &Link, target: Target) -> lb::ForwardingRule {
    let subnetwork = subnetwork.clone();
    lb::ForwardingRule {
        address: UNDECIDED,
        reserved: None,
        network: network(),
        subnetwork,
        // What a front does not have no endpoint of it can have.
        global_access: matches!(target, Target::HttpProxy { .. }),
        registration: matches!(target, Target::ServiceAttachment { .. })
            .then(|| Registration { namespace: NAMESPACE_DEFAULT.to_owned(), no_zone: false }),
        target,
        description: None,
    }
}

impl Market {
    fn endpoint(&self, name: &str) -> Link {
        let target = Target::ServiceAttachment { attachment: self.attachment.clone(), written: String::new() };
        self.scene.insert(name, region(), rule(&self.consumers, target)).unwrap()
    }

    fn group(&self, name: &str) -> Link {
        let psc = lb::PscBackend {
            attachment: self.attachment.clone(),
            written: String::new(),
            network: network(),
            subnetwork: self.consumers.clone(),
            address: UNDECIDED,
            port: None,
        };
        let endpoints = lb::Endpoints::PrivateServiceConnect(psc.into());
        self.scene.insert(name, region(), lb::NetworkEndpointGroup { endpoints, description: None }).unwrap()
    }
}

#[test]
fn planning_what_is_dirty_gives_what_planning_everything_gives() {
    let market = market(Some("p.example.com."));
    let Market { scene, consumers, attachment, map, second, front, serves, published } = &market;
    projects::enable(&scene.control, &scene.admin, project().as_str(), &["dns.googleapis.com".to_owned()]).unwrap();
    let mut plans = Plans::of(&scene.control.look().0);
    let mut names = Vec::new();
    let mut check = |what: &str| {
        let (world, touched) = scene.control.look();
        plans.follow(&world, &touched.dirty);
        assert_eq!(plans, Plans::of(&world), "{what}");
        names.extend(plans.names.values().flat_map(|n| n.names.clone()));
        assert!(!touched.started.is_empty(), "{what}: its operation is told");
    };
    let firewall = |scene: &Scene, name: &str, tags: &[&str]| {
        let firewall = vpc::Firewall {
            network: network(),
            direction: Direction::Ingress,
            priority: 1_000,
            action: Action::Allow,
            protocols: vec![vpc::ProtocolPorts { protocol: None, written: "all".into(), ports: vec![] }],
            source_ranges: vec!["10.0.0.0/8".parse().unwrap()],
            source_tags: tags.iter().map(|tag| (*tag).to_owned()).collect(),
            destination_ranges: vec![],
            target_tags: vec!["web".to_owned()],
            disabled: false,
            description: None,
        };
        scene.insert(name, Scope::Global, firewall).unwrap()
    };
    let one = market.endpoint("one");
    check("an endpoint comes, with a zone");
    let two = market.endpoint("two");
    check("another comes");
    let web = vm(scene, "web", consumers, &["web"]).unwrap();
    check("a vm comes");
    let wall = firewall(scene, "wall", &["web"]);
    check("a rule comes");
    vm(scene, "db", consumers, &[]).unwrap();
    check("another vm comes");
    scene.change(&web, |vm: &mut Record<vm::Instance>| vm.spec.tags = vec!["db".into()]).unwrap();
    check("tags change");
    scene.change(&web, |vm: &mut Record<vm::Instance>| vm.spec.wanted = vm::Power::Off).unwrap();
    check("a vm is switched off");
    scene.change(&web, |vm: &mut Record<vm::Instance>| vm.spec.wanted = vm::Power::On).unwrap();
    check("and on again");
    scene.change(&wall, |f: &mut Record<vpc::Firewall>| f.spec.disabled = true).unwrap();
    check("a rule is switched off");
    let metadata = vpc::FlowMetadata::ExcludeAllMetadata;
    let logs = FlowLogs { enable: true, interval_s: 5, sampling: 1.0, metadata };
    scene.change(consumers, |s: &mut Record<vpc::Subnetwork>| s.spec.flow_logs = Some(logs.clone())).unwrap();
    check("a subnet logs flows");
    scene.change(&network(), |n: &mut Record<vpc::Network>| n.spec.mtu = 1_500).unwrap();
    check("a network gets another mtu");
    scene.change(map, |m: &mut Record<lb::UrlMap>| m.spec.default_service = second.clone()).unwrap();
    check("a url map leads elsewhere");
    scene.change(&two, |rule: &mut Record<lb::ForwardingRule>| rule.spec.global_access = true).unwrap();
    check("an endpoint is reached from every region");
    let list = |limit| {
        let consumer = Consumer::Project { id: project(), written: String::new() };
        move |a: &mut Record<ServiceAttachment>| {
            a.spec.preference = Preference::AcceptManual;
            a.spec.accept = if limit == 0 { vec![] } else { vec![AcceptEntry { consumer: consumer.clone(), limit }] };
        }
    };
    let group = market.group("group");
    check("a network endpoint group comes");
    let backends = vec![lb::Backend { group: group.clone() }];
    scene.change(second, |s: &mut Record<lb::BackendService>| s.spec.backends.clone_from(&backends)).unwrap();
    check("a backend service gets it");
    scene.change(second, |s: &mut Record<lb::BackendService>| s.spec.timeout_s = 5).unwrap();
    check("which waits no longer than this");
    scene.change(attachment, list(0)).unwrap();
    check("an attachment lets nobody in");
    scene.change(attachment, list(1)).unwrap();
    check("it lets one in");
    scene.delete::<lb::ForwardingRule>(&one).unwrap();
    check("that one goes and the other gets its place");
    scene.delete::<ServiceAttachment>(attachment).unwrap();
    check("the attachment goes");
    scene.delete::<lb::ForwardingRule>(&two).unwrap();
    check("the other endpoint goes");
    scene.delete::<lb::ForwardingRule>(front).unwrap();
    check("the front of the load balancer goes");
    scene
        .delete::<vpc::Subnetwork>(&Link { collection: "subnetworks".into(), name: "proxies".into(), ..front.clone() })
        .unwrap();
    check("the subnet goes out of which the load balancer dials");
    scene.change(second, |s: &mut Record<lb::BackendService>| s.spec.backends.clear()).unwrap();
    check("a backend service loses its backend");
    scene.delete::<lb::NetworkEndpointGroup>(&group).unwrap();
    check("a network endpoint group goes");
    scene.delete::<vm::Instance>(&web).unwrap();
    check("a vm goes");
    scene.delete::<vpc::Firewall>(&wall).unwrap();
    check("a rule goes");
    let other = vpc::Network { auto_create_subnetworks: false, mtu: 1_460, description: None };
    let other = scene.insert("other", Scope::Global, other).unwrap();
    check("a network comes");
    let range = vpc::Subnetwork { network: other.clone(), ..subnet("10.11.0.0/16", Purpose::Private, None) };
    let range = scene.subnet("range", range).unwrap();
    check("with a subnet");
    scene.insert("front", region(), serves.clone()).unwrap();
    check("the front of the load balancer comes back");
    let again = scene.insert("attachment", region(), published.clone()).unwrap();
    check("and so does the attachment");
    let target = Target::ServiceAttachment { attachment: again, written: String::new() };
    let registration = Some(Registration { namespace: "elsewhere".to_owned(), no_zone: false });
    let there = lb::ForwardingRule { network: other.clone(), registration, ..rule(&range, target) };
    let there = scene.insert("there", region(), there).unwrap();
    check("an endpoint comes, with a zone for its network");
    scene.delete::<lb::ForwardingRule>(&there).unwrap();
    check("it goes, and its zone stays");
    scene.delete::<vpc::Subnetwork>(&range).unwrap();
    check("a subnet goes");
    scene.delete::<vpc::Network>(&other).unwrap();
    check("a network goes, and its zone with it");
    for name in ["one.p.example.com", "there.p.example.com"] {
        assert!(names.iter().any(|known| known == name), "{name} was never planned");
    }
}

#[test]
fn an_endpoint_or_a_vm_more_or_less_is_as_many_plans_however_many_there_are() {
    let market = market(None);
    let cost = |change: &dyn Fn()| {
        drop(market.scene.control.look());
        change();
        market.scene.control.look().1.dirty.keys()
    };
    let mut costs = Vec::new();
    for n in 0..300 {
        let [endpoint, group, name] = ["endpoint", "group", "vm"].map(|word| format!("{word}-{n}"));
        let comes = cost(&|| drop(market.endpoint(&endpoint)));
        assert_eq!(cost(&|| drop(market.group(&group))), comes, "an endpoint of another kind");
        let vm = cost(&|| drop(vm(&market.scene, &name, &market.consumers, &[]).unwrap()));
        costs.push((comes, vm));
    }
    let link = Link::new(&project(), region(), "forwardingRules", "endpoint-7");
    let goes = cost(&|| market.scene.delete::<lb::ForwardingRule>(&link).unwrap());
    assert!(costs.iter().all(|cost| *cost == costs[0]), "{costs:?}");
    assert_eq!(
        (costs[0], goes),
        ((2, 3), 3),
        "an endpoint at both of its ends; a port, a sandbox and a name; and a NAT address that rests"
    );
}
