//! The rules of the kinds as tables, over a world in memory and without a wire.

#![allow(clippy::unwrap_used, reason = "helpers of tests panic like tests")]

use std::{
    net::Ipv4Addr,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
};

use model::{
    fault::{Code, Fault},
    iam::Principal,
    lb,
    name::{Link, ProjectId, Scope},
    psc,
    time::Timestamp,
    vm,
    vpc::{self, ProxyRole, Purpose},
};

use super::{holding, seat};
use crate::{
    kind::{Kind, Record},
    ops::{Call, Caller, Control, Draft, Txn},
    projects::{self, ADMIN_DEFAULT, Wanted},
};

pub(crate) struct Scene {
    pub control: Control,
    pub admin: Caller,
}

impl Scene {
    pub fn new() -> Scene {
        let clock = AtomicI64::new(1);
        let tell = Arc::new(move || Timestamp(clock.fetch_add(1, Ordering::Relaxed)));
        let control = Control::open(Arc::new(store::Embedded::in_memory()), tell).unwrap();
        projects::bootstrap(&control, None).unwrap();
        let admin = Caller::new(Principal::User { email: ADMIN_DEFAULT.into() }, vec![]);
        let wanted = Wanted { id: "producer-1".into(), display_name: None, parent: None, labels: Default::default() };
        projects::create(&control, &admin, &wanted).unwrap();
        let scene = Scene { control, admin };
        let network = vpc::Network { auto_create_subnetworks: false, mtu: 1_460, description: None };
        scene.insert("n", Scope::Global, network).unwrap();
        scene
    }

    pub fn insert<K: Kind>(&self, name: &str, scope: Scope, spec: K) -> Result<Link, Fault> {
        let link = Link::new(&project(), scope, K::COLLECTION, name);
        let draft = Draft {
            link: link.clone(),
            labels: Default::default(),
            spec,
            inert: Default::default(),
            verb: "insert",
            request_id: None,
        };
        let operation = self.control.insert(&self.admin, draft)?;
        self.control.finish(&[(operation.name, None)]).unwrap();
        Ok(link)
    }

    pub fn subnet(&self, name: &str, spec: vpc::Subnetwork) -> Result<Link, Fault> {
        self.insert(name, region(), spec)
    }

    pub fn change<K: Kind>(&self, link: &Link, edit: impl Fn(&mut Record<K>)) -> Result<(), Fault> {
        let call = Call { caller: &self.admin, verb: "patch", request_id: None };
        let edit = |_: &_, record: &mut Record<K>| {
            edit(record);
            Ok(())
        };
        self.control.change(call, link, edit).map(drop)
    }

    pub fn delete<K: Kind>(&self, link: &Link) -> Result<(), Fault> {
        let call = Call { caller: &self.admin, verb: "delete", request_id: None };
        self.control.delete::<K>(call, link).map(drop)
    }
}

pub(crate) fn project() -> ProjectId {
    "producer-1".parse().unwrap()
}

pub(crate) fn region() -> Scope {
    Scope::Region("us-west1".parse().unwrap())
}

pub(crate) fn network() -> Link {
    Link::new(&project(), Scope::Global, "networks", "n")
}

pub(crate) fn subnet(range: &str, purpose: Purpose, role: Option<ProxyRole>) -> vpc::Subnetwork {
    vpc::Subnetwork {
        network: network(),
        range: range.parse().unwrap(),
        purpose,
        role,
        private_ip_google_access: false,
        flow_logs: None,
        description: None,
    }
}

pub(crate) fn private(range: &str) -> vpc::Subnetwork {
    subnet(range, Purpose::Private, None)
}

#[test]
fn a_range_is_long_enough_allowed_and_free() {
    let scene = Scene::new();
    scene.subnet("taken", private("10.1.0.0/24")).unwrap();
    for (range, fine) in [
        ("10.0.0.0/29", true),
        ("10.0.1.0/30", false),
        ("240.0.0.0/4", false), // 255.255.255.255 is inside
        ("100.64.0.0/10", true),
        ("198.18.0.0/15", true),
        ("0.0.0.0/8", false),
        ("169.254.1.0/24", false),
        ("199.36.153.8/29", false),
        ("35.235.242.0/24", false),
        ("10.1.0.0/24", false),
        ("10.1.0.128/25", false),
        ("10.1.0.0/16", false),
        ("10.1.1.0/24", true),
    ] {
        let name = format!("s-{}", range.replace(['.', '/'], "-"));
        let made = scene.subnet(&name, private(range));
        assert_eq!(made.is_ok(), fine, "{range}: {made:?}");
    }
}

#[test]
fn a_proxy_subnet_has_a_role_of_its_own_and_room_for_proxies() {
    use ProxyRole::{Active, Backup};
    let scene = Scene::new();
    let proxy = |range, role| subnet(range, Purpose::RegionalManagedProxy, role);
    for (name, spec, fine) in [
        ("none", proxy("10.0.0.0/26", None), false),
        ("small", proxy("10.0.0.0/27", Some(Active)), false),
        ("odd", subnet("10.0.0.0/26", Purpose::Private, Some(Active)), false),
        ("one", proxy("10.0.0.0/26", Some(Active)), true),
        ("two", proxy("10.0.1.0/26", Some(Active)), false),
        ("spare", proxy("10.0.1.0/26", Some(Backup)), true),
        ("spare2", proxy("10.0.2.0/26", Some(Backup)), false),
    ] {
        let made = scene.subnet(name, spec);
        assert_eq!(made.is_ok(), fine, "{name}: {made:?}");
    }
    let spare = Link::new(&project(), region(), "subnetworks", "spare");
    let one = Link::new(&project(), region(), "subnetworks", "one");
    scene.change::<vpc::Subnetwork>(&spare, |record| record.spec.role = Some(Active)).unwrap();
    let world = scene.control.read();
    let role = |link: &Link| world.get::<vpc::Subnetwork>(link).unwrap().spec.role;
    assert_eq!((role(&spare), role(&one)), (Some(Active), Some(Backup)));
}

#[test]
fn purpose_network_and_a_smaller_range_are_refused_as_changes() {
    let scene = Scene::new();
    let link = scene.subnet("s", private("10.0.0.0/24")).unwrap();
    let other = Link { name: "other".into(), ..network() };
    type Edit = Box<dyn Fn(&mut vpc::Subnetwork)>;
    let edits: [(&str, Edit); 3] = [
        ("purpose", Box::new(|s| s.purpose = Purpose::PrivateServiceConnect)),
        ("network", Box::new(move |s| s.network = other.clone())),
        ("range", Box::new(|s| s.range = "10.0.0.0/25".parse().unwrap())),
    ];
    for (what, edit) in edits {
        let refused = scene.change::<vpc::Subnetwork>(&link, |record| edit(&mut record.spec)).unwrap_err();
        assert_eq!(refused.code, Code::InvalidArgument, "{what}");
    }
    scene.change::<vpc::Subnetwork>(&link, |record| record.spec.range = "10.0.0.0/23".parse().unwrap()).unwrap();
}

#[test]
fn an_address_once_held_is_refused_and_once_left_is_the_lowest_free_again() {
    let scene = Scene::new();
    let link = scene.subnet("s", private("10.0.0.0/29")).unwrap();
    let reserve = |name: &str, address: Ipv4Addr| {
        scene.insert(name, region(), vpc::Address { address, subnetwork: link.clone(), description: None })
    };
    let address_of = |link: &Link| scene.control.read().get::<vpc::Address>(link).unwrap().spec.address;
    let a = reserve("a", holding::UNDECIDED).unwrap();
    let b = reserve("b", holding::UNDECIDED).unwrap();
    assert_eq!([address_of(&a), address_of(&b)], [Ipv4Addr::new(10, 0, 0, 2), Ipv4Addr::new(10, 0, 0, 3)]);
    assert_eq!(reserve("c", Ipv4Addr::new(10, 0, 0, 2)).unwrap_err().code, Code::AlreadyExists);
    scene.delete::<vpc::Address>(&a).unwrap();
    assert_eq!(address_of(&reserve("c", holding::UNDECIDED).unwrap()), Ipv4Addr::new(10, 0, 0, 2));
}

#[test]
fn what_is_referred_to_stays() {
    let scene = Scene::new();
    let link = scene.subnet("s", private("10.0.0.0/29")).unwrap();
    let reserved = vpc::Address { address: holding::UNDECIDED, subnetwork: link.clone(), description: None };
    scene.insert("a", region(), reserved).unwrap();
    let refused = scene.delete::<vpc::Subnetwork>(&link).unwrap_err();
    assert_eq!(refused.reason, "resourceInUseByAnotherResource");
    let expected = "The subnetwork resource 'projects/producer-1/regions/us-west1/subnetworks/s' is already being used by \
                    'projects/producer-1/regions/us-west1/addresses/a'";
    assert_eq!(refused.message, expected);
}

#[test]
fn a_resource_stays_within_its_region_and_project() {
    let scene = Scene::new();
    scene.subnet("s", private("10.0.0.0/24")).unwrap();
    let serverless = lb::Serverless { service: Some("x".into()), tag: None, url_mask: None };
    let group = lb::NetworkEndpointGroup { endpoints: lb::Endpoints::Serverless(serverless), description: None };
    let far = Scope::Region("us-east1".parse().unwrap());
    let group = scene.insert("g", far, group).unwrap();
    let service = lb::BackendService {
        protocol: lb::Protocol::Http,
        backends: vec![lb::Backend { group }],
        timeout_s: 30,
        log: None,
        description: None,
    };
    let refused = scene.insert("b", region(), service).unwrap_err();
    let why = "The network endpoint group must be in the same region as the backend service.";
    assert!(refused.message.ends_with(why), "{refused}");
    let vm = vm::Instance {
        machine_type: "e2-micro".into(),
        network: network(),
        subnetwork: Link::new(&project(), region(), "subnetworks", "s"),
        address: holding::UNDECIDED,
        tags: vec![],
        metadata: Default::default(),
        service_account: None,
        description: None,
        wanted: vm::Power::On,
        automatic_restart: true,
    };
    let zone = |name: &str| Scope::Zone(name.parse().unwrap());
    assert!(scene.insert("far", zone("us-east1-b"), vm.clone()).is_err());
    assert!(scene.insert("near", zone("us-west1-b"), vm).is_ok());
}

#[test]
fn a_refused_change_leaves_nothing_behind() {
    let scene = Scene::new();
    let link = scene.subnet("s", private("10.0.0.0/24")).unwrap();
    let before = scene.control.read().clone();
    assert!(scene.subnet("t", private("10.0.0.0/25")).is_err());
    assert!(scene.change::<vpc::Subnetwork>(&link, |r| r.spec.purpose = Purpose::PrivateServiceConnect).is_err());
    let after = scene.control.read();
    assert_eq!((before.revision, &before.objects), (after.revision, &after.objects));
    assert_eq!(before.operations, after.operations);
}

#[test]
fn uid_ranges_of_one_transaction_and_of_the_world_never_meet() {
    let scene = Scene::new();
    let world = scene.control.read();
    let mut txn = Txn::scratch(Timestamp(1));
    let mut last = None;
    for n in 0..3 {
        let uid_base = seat::free_uid_base(&world, &txn).unwrap();
        assert!(uid_base >= seat::UID_FIRST && uid_base.is_multiple_of(model::limits::SANDBOX_UIDS));
        assert!(last.is_none_or(|last| uid_base > last));
        last = Some(uid_base);
        txn.push(crate::ops::Change::Seat(Box::new(crate::world::SeatRecord {
            workload: model::id::WorkloadId(format!("vm-{n}")),
            uid_base,
            incarnation: 0,
            holder: crate::world::Holder::Vm(network()),
        })));
    }
}

/// A published load balancer, and what a consumer in the same project may put in front of it.
#[test]
fn a_psc_backend_is_one_of_its_kind_over_plain_http() {
    let scene = Scene::new();
    let proxies = subnet("10.9.0.0/26", Purpose::RegionalManagedProxy, Some(ProxyRole::Active));
    let producer = vpc::Network { auto_create_subnetworks: false, mtu: 1_460, description: None };
    let producer = scene.insert("p", Scope::Global, producer).unwrap();
    let there = |spec| vpc::Subnetwork { network: producer.clone(), ..spec };
    scene.subnet("proxies", there(proxies)).unwrap();
    let nat = scene.subnet("nat", there(subnet("10.8.0.0/24", Purpose::PrivateServiceConnect, None))).unwrap();
    let fronts = scene.subnet("fronts", there(private("10.1.0.0/24"))).unwrap();
    let home = scene.subnet("home", private("10.1.0.0/24")).unwrap();
    let service = |backends: &[&Link]| lb::BackendService {
        protocol: lb::Protocol::Http,
        backends: backends.iter().map(|group| lb::Backend { group: (*group).clone() }).collect(),
        timeout_s: 30,
        log: None,
        description: None,
    };
    let group = |endpoints| lb::NetworkEndpointGroup { endpoints, description: None };
    let run = lb::Serverless { service: Some("x".into()), tag: None, url_mask: None };
    let run = scene.insert("run", region(), group(lb::Endpoints::Serverless(run))).unwrap();
    let first = scene.insert("first", region(), service(&[&run])).unwrap();
    let map = lb::UrlMap { default_service: first, host_rules: vec![], path_matchers: vec![], description: None };
    let map = scene.insert("map", region(), map).unwrap();
    let proxy = lb::TargetHttpProxy { url_map: map, keepalive_s: None, description: None };
    let proxy = scene.insert("proxy", region(), proxy).unwrap();
    let front = lb::ForwardingRule {
        address: holding::UNDECIDED,
        reserved: None,
        network: producer.clone(),
        subnetwork: fronts.clone(),
        target: lb::Target::HttpProxy { proxy, ports: vpc::PortRange { first: 80, last: 80 } },
        registration: None,
        global_access: false,
        description: None,
    };
    let attachment = psc::ServiceAttachment {
        target: scene.insert("front", region(), front).unwrap(),
        preference: psc::Preference::AcceptAutomatic,
        nat_subnets: vec![nat],
        accept: vec![],
        reject: vec![],
        nats_per_endpoint: None,
        domain: None,
        reconcile: false,
        description: None,
    };
    let attachment = scene.insert("attachment", region(), attachment).unwrap();
    let far_in = |name: &str, scope, (network, subnetwork): (&Link, &Link)| {
        let psc = lb::PscBackend {
            attachment: attachment.clone(),
            written: String::new(),
            network: network.clone(),
            subnetwork: subnetwork.clone(),
            address: holding::UNDECIDED,
            port: None,
        };
        scene.insert(name, scope, group(lb::Endpoints::PrivateServiceConnect(psc.into())))
    };
    let far = |name: &str, scope| far_in(name, scope, (&network(), &home));
    let refused = far_in("at-home", region(), (&producer, &fronts)).unwrap_err();
    assert!(refused.message.contains("must not be in the same VPC network"), "{refused}");
    let refused = far("abroad", Scope::Region("us-east1".parse().unwrap())).unwrap_err();
    assert!(refused.message.contains("must be in the same region"), "{refused}");
    let [one, two] = ["one", "two"].map(|name| far(name, region()).unwrap());
    for (backends, why) in
        [([&one, &two], "only one Private Service Connect network endpoint group"), ([&one, &run], "different types")]
    {
        let refused = scene.insert("refused", region(), service(&backends)).unwrap_err();
        assert!(refused.message.contains(why), "{refused}");
    }
    let https = lb::BackendService { protocol: lb::Protocol::Https, ..service(&[&one]) };
    assert_eq!(scene.insert("refused", region(), https).unwrap_err().code, Code::Unimplemented);
    let patient = lb::BackendService { timeout_s: 5, ..service(&[&one]) };
    let patient = scene.insert("patient", region(), patient).unwrap();
    let scaled = |value: serde_json::Value| {
        scene.change(&patient, |s: &mut Record<lb::BackendService>| {
            s.inert.insert("backends".into(), serde_json::json!([{ "capacityScaler": value }]));
        })
    };
    assert!(scaled(1.0.into()).is_ok());
    assert!(scaled(0.5.into()).unwrap_err().message.contains("Capacity scaler is not supported"));
    let in_use = scene.delete::<lb::NetworkEndpointGroup>(&one).unwrap_err();
    assert!(in_use.message.contains("is already being used by"), "{in_use}");
    scene.delete::<lb::NetworkEndpointGroup>(&two).unwrap();
    // Its address is free again, and that of the other is held.
    let world = scene.control.read();
    let held = world.by_id::<lb::NetworkEndpointGroup>(world.get::<lb::NetworkEndpointGroup>(&one).unwrap().id.0);
    let address = held.unwrap().spec.psc().unwrap().address;
    assert_eq!(world.holders(&home, address).collect::<Vec<_>>(), [&one]);
}
