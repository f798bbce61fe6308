//! The loop against a host that comes and goes.

#![allow(clippy::unwrap_used, reason = "helpers of tests panic like tests")]

use std::{
    path::PathBuf,
    sync::atomic::{AtomicI64, AtomicU32, Ordering},
};

use logs::{Journal, journal::Bounds};
use model::{
    iam::Principal,
    name::{self, ProjectId, Scope},
    planned::host::SandboxEvent,
    vm, vpc,
};
use tokio::{
    net::{UnixListener, UnixStream},
    task::AbortHandle,
};

use super::*;
use crate::{
    instances::Tuning,
    kind::Kind,
    ops::{Call, Caller, Draft},
    projects::{self, ADMIN_DEFAULT, Wanted},
    tokens::Mint,
    world::{Holder, World},
};

/// A driver with a proxy and a guest that agree to everything. The host is the test's.
struct Scene {
    control: Arc<Control>,
    admin: Caller,
    dir: PathBuf,
    tasks: Vec<AbortHandle>,
}

impl Drop for Scene {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

impl Scene {
    fn new() -> Scene {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("tombolo-driver-{}-{n}", std::process::id()));
        std::fs::create_dir(&dir).unwrap();
        let clock = AtomicI64::new(1);
        let tell = Arc::new(move || Timestamp(clock.fetch_add(1, Ordering::Relaxed)));
        let control = Arc::new(Control::open(Arc::new(store::Embedded::in_memory()), tell).unwrap());
        projects::bootstrap(&control, None).unwrap();
        let admin = Caller::new(Principal::User { email: ADMIN_DEFAULT.into() }, vec![]);
        let wanted = Wanted { id: "producer-1".into(), display_name: None, parent: None, labels: Default::default() };
        projects::create(&control, &admin, &wanted).unwrap();
        let mint = Arc::new(Mint::open(&control).unwrap());
        mint.tend(&control).unwrap();
        let serving = Serving::new(Tuning::default(), mint, Arc::new(Journal::in_memory(Bounds::default())));
        let driver = Driver::new(control.clone(), &dir, plan::Settings { psc_idle_s: 1 }, serving);
        let (proxy, guest) = (bind(&dir, "proxy.sock"), bind(&dir, "guest.sock"));
        let tasks = vec![
            tokio::spawn(driver.run()).abort_handle(),
            tokio::spawn(agree(proxy, |m| if let ToProxy::Mark(n) = m { Some(FromProxy::Applied(n)) } else { None }))
                .abort_handle(),
            tokio::spawn(agree(guest, |m| if let ToGuest::Mark(n) = m { Some(FromGuest::Applied(n)) } else { None }))
                .abort_handle(),
        ];
        Scene { control, admin, dir, tasks }
    }

    fn host(&self) -> UnixListener {
        let _ = std::fs::remove_file(self.dir.join("host.sock"));
        bind(&self.dir, "host.sock")
    }

    fn link(&self) -> name::Link {
        let project: ProjectId = "producer-1".parse().unwrap();
        name::Link::new(&project, Scope::Global, "networks", "n")
    }

    fn create(&self) -> String {
        self.begin(self.link(), vpc::Network { auto_create_subnetworks: false, mtu: 1_460, description: None })
    }

    fn begin<K: Kind>(&self, link: name::Link, spec: K) -> String {
        let (labels, inert) = Default::default();
        let draft = Draft { link, labels, spec, inert, verb: "insert", request_id: None };
        self.control.insert(&self.admin, draft).unwrap().name
    }

    /// Makes it, and says that it is done whatever the host says.
    fn insert<K: Kind>(&self, name: &str, scope: Scope, spec: K) -> name::Link {
        let link = name::Link::new(&self.link().project, scope, K::COLLECTION, name);
        let operation = self.begin(link.clone(), spec);
        self.control.finish(&[(operation, None)]).unwrap();
        link
    }

    fn subnet(&self) -> name::Link {
        let network = vpc::Network { auto_create_subnetworks: false, mtu: 1_460, description: None };
        let subnet = vpc::Subnetwork {
            network: self.insert("n", Scope::Global, network),
            range: "10.0.0.0/24".parse().unwrap(),
            purpose: vpc::Purpose::Private,
            role: None,
            private_ip_google_access: false,
            flow_logs: None,
            description: None,
        };
        self.insert("s", Scope::Region("us-west1".parse().unwrap()), subnet)
    }

    fn vm(&self, subnetwork: name::Link, automatic_restart: bool) -> vm::Instance {
        vm::Instance {
            machine_type: "e2-micro".into(),
            network: self.link(),
            subnetwork,
            address: crate::kinds::holding::UNDECIDED,
            tags: vec![],
            metadata: Default::default(),
            service_account: None,
            description: None,
            wanted: vm::Power::On,
            automatic_restart,
        }
    }

    fn delete(&self) -> String {
        let call = Call { caller: &self.admin, verb: "delete", request_id: None };
        self.control.delete::<vpc::Network>(call, &self.link()).unwrap().name
    }

    fn is_done(&self, operation: &str) -> bool {
        self.control.read().operations[operation].is_done()
    }

    async fn done(&self, operation: &str) {
        loop {
            let finished = self.control.finished.notified();
            tokio::pin!(finished);
            finished.as_mut().enable();
            if self.is_done(operation) {
                return;
            }
            finished.await;
        }
    }
}

fn zone() -> Scope {
    Scope::Zone("us-west1-b".parse().unwrap())
}

fn bind(dir: &Path, name: &str) -> UnixListener {
    UnixListener::bind(dir.join(name)).unwrap()
}

async fn agree<In, Out>(listener: UnixListener, answer: fn(In) -> Option<Out>)
where
    In: serde::de::DeserializeOwned,
    Out: serde::Serialize,
{
    let (mut stream, _) = listener.accept().await.unwrap();
    while let Ok(Some(message)) = ipc::read_async(&mut stream).await {
        if let Some(answer) = answer(message) {
            ipc::write_async(&mut stream, &answer).await.unwrap();
        }
    }
}

async fn hear(host: &mut UnixStream) -> ToHost {
    ipc::read_async(host).await.unwrap().expect("control stays")
}

/// Says yes to everything until the operation is done.
async fn obey(host: &mut UnixStream, scene: &Scene, operation: &str) {
    let obeying = async {
        loop {
            let (cell, generation) = match hear(host).await {
                ToHost::Apply { cell, generation, .. } | ToHost::Remove { cell, generation } => (cell, generation),
                ToHost::Change { network, generation, .. } => (CellId::Vpc(network), generation),
                ToHost::Complete | ToHost::Logged { .. } => continue,
            };
            ipc::write_async(host, &FromHost::Observed { cell, generation, fault: None }).await.unwrap();
        }
    };
    tokio::select! {
        () = scene.done(operation) => {}
        () = obeying => {}
    }
}

/// What a host that is back is told, up to `Complete`: the removals, everything else confirmed.
async fn told_anew(host: &mut UnixStream) -> Vec<(CellId, Generation)> {
    let mut removals = Vec::new();
    loop {
        match hear(host).await {
            ToHost::Apply { cell, generation, .. } => {
                ipc::write_async(host, &FromHost::Observed { cell, generation, fault: None }).await.unwrap();
            }
            ToHost::Remove { cell, generation } => removals.push((cell, generation)),
            change @ ToHost::Change { .. } => panic!("{change:?} of what it was not told yet"),
            ToHost::Complete => return removals,
            ToHost::Logged { .. } => {}
        }
    }
}

#[tokio::test]
async fn a_deletion_that_a_dying_host_did_not_confirm_is_asked_of_the_next_one() {
    let scene = Scene::new();
    let listener = scene.host();
    let (mut host, _) = listener.accept().await.unwrap();
    obey(&mut host, &scene, &scene.create()).await;
    let deletion = scene.delete();
    while !matches!(hear(&mut host).await, ToHost::Remove { .. }) {}
    drop(host);
    let (mut host, _) = listener.accept().await.unwrap();
    let removals = told_anew(&mut host).await;
    assert!(!scene.is_done(&deletion));
    let [(cell, generation)] = removals.as_slice() else { panic!("{removals:?}") };
    let gone = FromHost::Observed { cell: cell.clone(), generation: *generation, fault: None };
    ipc::write_async(&mut host, &gone).await.unwrap();
    scene.done(&deletion).await;
}

#[tokio::test]
async fn what_was_made_and_deleted_before_any_host_came_is_done_when_one_says_it_is_not_there() {
    let scene = Scene::new();
    let (insertion, deletion) = (scene.create(), scene.delete());
    let (mut host, _) = scene.host().accept().await.unwrap();
    let removals = told_anew(&mut host).await;
    assert!(!scene.is_done(&insertion));
    for (cell, generation) in removals {
        ipc::write_async(&mut host, &FromHost::Observed { cell, generation, fault: None }).await.unwrap();
    }
    scene.done(&insertion).await;
    scene.done(&deletion).await;
}

#[tokio::test]
async fn however_often_a_host_comes_back_generations_do_not_run_ahead_of_the_store() {
    let scene = Scene::new();
    let listener = scene.host();
    for _ in 0..5 {
        let (mut host, _) = listener.accept().await.unwrap();
        loop {
            match hear(&mut host).await {
                ToHost::Complete => break,
                ToHost::Logged { .. } => {}
                ToHost::Apply { generation, .. }
                | ToHost::Change { generation, .. }
                | ToHost::Remove { generation, .. } => {
                    let revision = scene.control.read().revision;
                    assert!(generation.0 <= revision, "{generation:?} before revision {revision}");
                }
            }
        }
    }
}

#[tokio::test]
async fn a_vm_that_ends_is_started_again_unless_its_owner_said_otherwise() {
    let scene = Scene::new();
    let subnetwork = scene.subnet();
    for (name, automatic_restart) in [("again", true), ("once", false)] {
        let link = scene.insert(name, zone(), scene.vm(subnetwork.clone(), automatic_restart));
        let seat_of = |world: &World| world.seats.values().find(|s| s.holder == Holder::Vm(link.clone())).cloned();
        let seat = seat_of(&scene.control.read()).unwrap();
        serving::vm_ended(&scene.control, &seat.workload, seat.incarnation);
        let world = scene.control.read();
        let is_on = world.get::<vm::Instance>(&link).unwrap().spec.wanted == vm::Power::On;
        let restarted = seat_of(&world).unwrap().incarnation > seat.incarnation;
        assert_eq!((is_on, restarted), (automatic_restart, automatic_restart), "{name}");
    }
}

#[tokio::test]
async fn a_vm_that_the_machine_cannot_start_leaves_an_operation_that_says_so_and_no_instance() {
    let scene = Scene::new();
    let link = name::Link::new(&scene.link().project, zone(), vm::Instance::COLLECTION, "vm");
    let insertion = scene.begin(link.clone(), scene.vm(scene.subnet(), true));
    let (mut host, _) = scene.host().accept().await.unwrap();
    let refusing = async {
        loop {
            let ToHost::Apply { cell, generation, plan } = hear(&mut host).await else { continue };
            let mut fault = None;
            if let (CellId::Workload(workload), CellPlan::Workload(plan)) = (&cell, &*plan) {
                fault = Some("no cgroup".to_owned());
                let event = SandboxEvent::Failed { why: "no cgroup".to_owned() };
                let (workload, incarnation) = (workload.clone(), plan.incarnation);
                let failed = FromHost::Sandbox { workload, incarnation, event };
                ipc::write_async(&mut host, &failed).await.unwrap();
            }
            ipc::write_async(&mut host, &FromHost::Observed { cell, generation, fault }).await.unwrap();
        }
    };
    tokio::select! {
        () = scene.done(&insertion) => {}
        () = refusing => {}
    }
    let world = scene.control.read();
    let crate::operation::OperationState::Done { fault: Some(fault), .. } = &world.operations[&insertion].state else {
        panic!("{:?}", world.operations[&insertion])
    };
    assert!(fault.message.starts_with("Internal error."), "{fault:?}");
    assert!(world.get::<vm::Instance>(&link).is_none() && world.seats.is_empty(), "the name and the place are free");
}
