//! Scenes of a service's instances: what happens, and what the fleet does about it.

use std::collections::BTreeMap;

use model::{
    project::Project,
    run::{Ingress, Scaling, Service, TrafficTarget},
};

use super::*;
use crate::{
    ops::{Change, Control},
    testing,
    world::ServiceRecord,
};

const S: i64 = 1_000_000;

/// A cloud with one service whose only revision is in `state`, and its fleet.
struct Scene {
    control: Control,
    fleet: Fleet,
    key: RevisionKey,
    now: Timestamp,
}

impl Scene {
    fn new(state: RevisionState, min: u32, max: u32, concurrency: u32) -> Scene {
        let clock = std::sync::Arc::new(|| Timestamp(0));
        let control = Control::open(std::sync::Arc::new(store::Embedded::in_memory()), clock).expect("an empty store");
        let ready = matches!(state, RevisionState::Ready { .. });
        let mut revision = Revision { state, ..testing::revision() };
        revision.template.scaling = Scaling { min, max: Some(max) };
        revision.template.concurrency = concurrency;
        let (key, template) = (revision.key.clone(), revision.template.clone());
        let service = ServiceRecord {
            key: key.service.clone(),
            uid: "s".into(),
            created: Timestamp(0),
            updated: Timestamp(0),
            generation: 1,
            observed: 1,
            version: 1,
            operation: String::new(),
            spec: Service {
                ingress: Ingress::All,
                invoker_iam_disabled: false,
                default_url_disabled: false,
                custom_audiences: vec![],
                template,
                traffic: vec![TrafficTarget { revision: None, percent: 100, tag: None }],
                labels: BTreeMap::new(),
                annotations: BTreeMap::new(),
                scaling: Scaling::default(),
                creator: String::new(),
                last_modifier: String::new(),
                description: None,
            },
            templates: 1,
            latest_created: Some(key.name.clone()),
            latest_ready: ready.then(|| key.name.clone()),
            transitioned: Timestamp(0),
        };
        let project = Project {
            id: key.service.project.clone(),
            number: model::name::ProjectNumber(123_456_789_012),
            display_name: String::new(),
            created: Timestamp(0),
            labels: BTreeMap::new(),
            parent: None,
            active: true,
            enabled: std::collections::BTreeSet::new(),
            common_metadata: BTreeMap::new(),
            url_hash: "drmtliqopa".into(),
        };
        let mut next = 0;
        let random = move |digits: usize| {
            next += 1;
            format!("{next:0digits$x}")
        };
        let scene = Scene { control, fleet: Fleet::new(Tuning::default(), Box::new(random)), key, now: Timestamp(0) };
        scene.commit(Change::Project(Box::new(project)));
        scene.commit(Change::Service(Box::new(service)));
        scene.commit(Change::Revision(Box::new(revision)));
        scene
    }

    fn ready(min: u32, max: u32, concurrency: u32) -> Scene {
        Scene::new(RevisionState::Ready { since: Timestamp(0) }, min, max, concurrency)
    }

    fn commit(&self, change: Change) {
        let push = |_: &World, txn: &mut crate::ops::Txn| {
            txn.push(change.clone());
            Ok(())
        };
        self.control.commit(push).expect("the store takes it");
    }

    /// Tells the fleet, does what it says, and returns that in short words.
    fn on(&mut self, event: Event) -> Vec<String> {
        let actions = self.fleet.on(event, &self.control.read(), self.now);
        for action in &actions {
            match action {
                Action::Start(seat, _) => self.commit(Change::Seat(Box::new(seat.clone()))),
                Action::Stop(id) => self.commit(Change::NoSeat(id.clone())),
                Action::Drain(_) => {}
                Action::RevisionReady(key) => {
                    crate::run::revision_ready(&self.control, key).expect("the store takes it")
                }
                Action::RevisionFailed { revision, reason, message } => {
                    crate::run::revision_failed(&self.control, revision, reason, message).expect("the store takes it");
                }
            }
        }
        actions
            .iter()
            .map(|a| match a {
                Action::Start(seat, _) => format!("start {}", seat.workload),
                Action::Drain(id) => format!("drain {id}"),
                Action::Stop(id) => format!("stop {id}"),
                Action::RevisionReady(_) => "ready".into(),
                Action::RevisionFailed { reason, .. } => format!("failed {reason}"),
            })
            .collect()
    }

    fn look_after(&mut self, seconds: i64) -> Vec<String> {
        self.now = Timestamp(self.now.0 + seconds * S);
        self.on(Event::Look)
    }

    fn demand(&mut self, waiting: u32, in_flight: u32) -> Vec<String> {
        let revision = self.key.clone();
        self.on(Event::Demand { revision, waiting, in_flight })
    }

    fn probed(&mut self, instance: &WorkloadId) -> Vec<String> {
        let outcome = ProbeOutcome::Ready { over_v6: true, took_ms: 5 };
        self.on(Event::Probed { instance: instance.clone(), outcome })
    }

    fn exited(&mut self, instance: &WorkloadId) -> Vec<String> {
        let event =
            SandboxEvent::Exited { code: Some(1), signal: None, out_of_memory: false, output_tail: String::new() };
        self.on(Event::Sandbox { instance: instance.clone(), event })
    }

    fn instances(&self) -> Vec<WorkloadId> {
        self.control.read().seats.keys().cloned().collect()
    }

    fn phases(&self) -> Vec<InstancePhase> {
        self.fleet.edge_instances(&self.control.read(), &self.key).values().map(|i| i.phase).collect()
    }
}

#[test]
fn a_deployment_starts_one_instance_and_is_ready_when_that_answers() {
    let mut scene = Scene::new(RevisionState::Deploying, 0, 20, 80);
    assert_eq!(scene.on(Event::Look).len(), 1);
    let [id] = scene.instances().try_into().expect("one instance");
    assert_eq!(scene.phases(), [InstancePhase::Starting]);
    assert!(scene.on(Event::Look).is_empty(), "one is enough");
    assert_eq!(scene.probed(&id), ["ready"]);
    assert_eq!(scene.phases(), [InstancePhase::Serving]);
    // It stays for the requests to come.
    assert!(scene.look_after(60).is_empty());
}

#[test]
fn a_deployment_whose_container_ends_or_never_answers_fails() {
    let mut scene = Scene::new(RevisionState::Deploying, 0, 20, 80);
    scene.on(Event::Look);
    let [id] = scene.instances().try_into().expect("one instance");
    assert_eq!(scene.exited(&id), [format!("stop {id}"), "failed HealthCheckContainerError".into()]);
    assert!(scene.look_after(1_000).is_empty(), "a failed revision is not tried again");
    match &scene.control.read().revisions[&scene.key].state {
        RevisionState::Failed { message, .. } => {
            assert!(message.contains("port defined provided by the PORT=8080 environment variable"), "{message}");
        }
        other => panic!("{other:?}"),
    }
    let mut scene = Scene::new(RevisionState::Deploying, 0, 20, 80);
    scene.on(Event::Look);
    assert!(scene.look_after(240).is_empty());
    assert_eq!(scene.look_after(61)[1], "failed ProgressDeadlineExceeded");
}

#[test]
fn instances_come_with_demand_up_to_the_maximum() {
    // Requests, concurrency, maximum, instances that should be.
    for (waiting, in_flight, concurrency, max, want) in [
        (0, 0, 80, 20, 0),
        (1, 0, 80, 20, 1),
        (48, 0, 80, 20, 1),
        (49, 0, 80, 20, 2),
        (5, 0, 1, 20, 5),
        (0, 9, 10, 20, 2),
        (500, 500, 1, 3, 3),
    ] {
        let mut scene = Scene::ready(0, max, concurrency);
        assert_eq!(scene.demand(waiting, in_flight).len(), want, "{waiting} wait, {in_flight} run, {concurrency} each");
        assert!(scene.on(Event::Look).is_empty(), "nothing is started twice");
    }
}

#[test]
fn the_minimum_is_there_without_demand_and_never_goes() {
    let mut scene = Scene::ready(2, 20, 80);
    assert_eq!(scene.on(Event::Look).len(), 2);
    for id in scene.instances() {
        scene.probed(&id);
        assert!(scene.on(Event::Idle { instance: id, idle: Duration::from_secs(3_600) }).is_empty());
    }
}

#[test]
fn an_idle_instance_is_kept_then_drained_then_stopped() {
    let mut scene = Scene::ready(0, 20, 80);
    scene.demand(1, 0);
    let [id] = scene.instances().try_into().expect("one instance");
    scene.probed(&id);
    scene.demand(0, 1);
    scene.demand(0, 0);
    let idle = |s| Event::Idle { instance: id.clone(), idle: Duration::from_secs(s) };
    assert!(scene.on(idle(899)).is_empty());
    assert_eq!(scene.on(idle(900)), [format!("drain {id}")]);
    assert_eq!(scene.phases(), [InstancePhase::Draining]);
    assert_eq!(scene.on(Event::Drained { instance: id.clone() }), [format!("stop {id}")]);
    assert!(scene.instances().is_empty());
    // One that does not end its last request is stopped when that must have timed out.
    scene.demand(1, 0);
    let [id] = scene.instances().try_into().expect("one instance");
    scene.probed(&id);
    scene.demand(0, 0);
    scene.on(Event::Idle { instance: id.clone(), idle: Duration::from_secs(900) });
    assert!(scene.look_after(300).is_empty());
    assert_eq!(scene.look_after(20), [format!("stop {id}")]);
}

#[test]
fn a_new_request_takes_a_drained_instances_place_at_once() {
    let mut scene = Scene::ready(0, 1, 80);
    scene.demand(1, 0);
    let [first] = scene.instances().try_into().expect("one instance");
    scene.probed(&first);
    scene.demand(0, 0);
    scene.on(Event::Idle { instance: first.clone(), idle: Duration::from_secs(900) });
    assert_eq!(scene.demand(1, 0).len(), 1, "what drains takes no requests");
    assert_eq!(scene.instances().len(), 2);
}

#[test]
fn a_crash_is_answered_later_each_time_until_an_instance_is_ready() {
    let mut scene = Scene::ready(1, 20, 80);
    scene.on(Event::Look);
    for wait in [1, 2, 4, 8] {
        let [id] = scene.instances().try_into().expect("one instance");
        assert_eq!(scene.exited(&id), [format!("stop {id}")]);
        scene.now = Timestamp(scene.now.0 + wait * S - 1);
        assert!(scene.on(Event::Look).is_empty(), "not before {wait} s");
        scene.now = Timestamp(scene.now.0 + 1);
        assert_eq!(scene.on(Event::Look).len(), 1);
    }
    let [id] = scene.instances().try_into().expect("one instance");
    scene.probed(&id);
    scene.exited(&id);
    assert_eq!(scene.look_after(1).len(), 1, "it worked in between");
}

#[test]
fn a_revision_that_serves_nobody_is_wound_down() {
    let mut scene = Scene::ready(1, 20, 80);
    scene.on(Event::Look);
    let [id] = scene.instances().try_into().expect("one instance");
    scene.probed(&id);
    let mut service = scene.control.read().services[&scene.key.service].clone();
    service.spec.traffic = vec![TrafficTarget { revision: Some("hello-00000-old".into()), percent: 100, tag: None }];
    scene.commit(Change::Service(Box::new(service)));
    assert_eq!(scene.on(Event::Look), [format!("drain {id}")]);
    // With the service its instances go, without ceremony.
    scene.commit(Change::NoRevision(scene.key.clone()));
    assert_eq!(scene.on(Event::Look), [format!("stop {id}")]);
}

#[test]
fn no_two_instances_share_a_place_and_one_just_left_rests() {
    let mut scene = Scene::ready(0, 20, 1);
    scene.demand(5, 0);
    let seats: Vec<SeatRecord> = scene.control.read().seats.values().cloned().collect();
    let distinct = |of: fn(&SeatRecord) -> String| seats.iter().map(of).collect::<BTreeSet<_>>().len();
    assert_eq!(distinct(|s| s.uid_base.to_string()), 5);
    assert_eq!(distinct(|s| format!("{:?}", s.holder)), 5);
    for seat in &seats {
        let Holder::Container { v6, v4, instance_id, .. } = &seat.holder else { panic!("a VM") };
        assert!(v6.to_string().starts_with("fda3:e722:ac3:1::"), "{v6}");
        assert_eq!((v4.octets()[0], v4.octets()[1], v4.octets()[2] >> 6), (169, 254, 1), "{v4}");
        assert_eq!(instance_id.len(), 158);
    }
    let parked = scene.fleet.fabric(&scene.control.read()).parked;
    assert_eq!(parked.len(), PARKED);
    assert!(seats.iter().all(|s| !parked.contains(&s.uid_base)));
    let first = seats[0].clone();
    scene.commit(Change::NoRevision(scene.key.clone()));
    scene.on(Event::Look);
    assert!(!scene.fleet.fabric(&scene.control.read()).parked.contains(&first.uid_base));
}

#[test]
fn a_restarted_fleet_finds_its_instances_and_starts_none_twice() {
    let mut scene = Scene::ready(2, 20, 80);
    scene.on(Event::Look);
    let before = scene.instances();
    scene.fleet = Fleet::new(Tuning::default(), Box::new(|digits| "f".repeat(digits)));
    assert!(scene.on(Event::Look).is_empty());
    // The proxy says again what it knows.
    for id in &before {
        assert!(scene.probed(id).is_empty());
    }
    assert_eq!(scene.phases(), [InstancePhase::Serving, InstancePhase::Serving]);
    assert_eq!(scene.instances(), before);
}

#[test]
fn a_service_wide_maximum_is_shared_out_by_traffic() {
    let mut scene = Scene::ready(0, 20, 1);
    let mut service = scene.control.read().services[&scene.key.service].clone();
    service.spec.scaling = Scaling { min: 0, max: Some(5) };
    service.spec.traffic = vec![
        TrafficTarget { revision: None, percent: 50, tag: None },
        TrafficTarget { revision: Some("hello-00000-old".into()), percent: 50, tag: None },
    ];
    scene.commit(Change::Service(Box::new(service)));
    assert_eq!(scene.demand(9, 0).len(), 3, "half of five, rounded up");
}
