//! The host process from outside: what control says and hears, what proxy and guest are handed, and what a second host
//! process finds when the first is gone. Workloads are plain network namespaces here.

#![allow(clippy::unwrap_used)]

use std::{
    collections::{BTreeMap, BTreeSet},
    net::TcpListener,
    os::{
        fd::OwnedFd,
        unix::net::{UnixListener, UnixStream},
    },
    path::Path,
    sync::{Arc, Mutex, mpsc},
    thread,
    time::Duration,
};

use host::{
    agent::Agent,
    netns::{Netns, Pins},
    sandboxes::{Event, Heard, SandboxError, Sandboxes},
};
use lab::{Lab, Vm, plan, scene::PATIENCE, tcp, until};
use model::{
    id::{Generation, ListenerId, NetworkId, WorkloadId},
    planned::{
        edge,
        guest::{self, Realm},
        host::{
            Attach, CellId, CellPlan, FromHost, Process, Rootfs, SandboxEvent, SandboxLimits, SandboxPlan, ToHost,
            VpcChange, VpcPlan,
        },
    },
};

const NET: NetworkId = NetworkId(601);
const VIP: &str = "10.1.1.2:80";

/// Namespaces in the place of sandboxes; what they were started with can be looked at.
#[derive(Clone)]
struct Plain {
    pins: Pins,
    heard: mpsc::Sender<Heard>,
    running: Arc<Mutex<BTreeMap<WorkloadId, u32>>>,
}

/// A workload of this name is never launched and never refused.
const STUCK: &str = "stuck";

impl Sandboxes for Plain {
    fn prepare(&mut self, id: &WorkloadId, plan: &SandboxPlan) {
        let netns = self.pins.create(&plan.uid_base.to_string()).unwrap();
        let outcome = std::os::fd::AsFd::as_fd(&netns).try_clone_to_owned();
        let outcome = outcome.map_err(|source| SandboxError::Namespace { source });
        self.heard.send(Heard::Prepared { workload: id.clone(), incarnation: plan.incarnation, outcome }).unwrap();
    }

    fn launch(&mut self, id: &WorkloadId, plan: &SandboxPlan) {
        if id.0 == STUCK {
            return;
        }
        self.running.lock().unwrap().insert(id.clone(), plan.incarnation);
        self.tell(id, plan.incarnation, SandboxEvent::Started { pid: 1 });
        let (workload, incarnation) = (id.clone(), plan.incarnation);
        self.heard.send(Heard::Launched { workload, incarnation, outcome: Ok(()) }).unwrap();
    }

    fn discard(&mut self, _: &SandboxPlan) {}

    fn keep_parked(&mut self, _: &BTreeSet<u32>) -> Result<(), SandboxError> {
        Ok(())
    }

    fn adopt(&mut self) -> Result<Vec<(WorkloadId, u32)>, SandboxError> {
        Ok(self.running.lock().unwrap().clone().into_iter().collect())
    }

    fn stop(&mut self, id: &WorkloadId, _: Duration) -> Result<(), SandboxError> {
        let incarnation = self.running.lock().unwrap().remove(id);
        if let Some(incarnation) = incarnation {
            let event =
                SandboxEvent::Exited { code: None, signal: Some(15), out_of_memory: false, output_tail: String::new() };
            self.tell(id, incarnation, event);
        }
        Ok(())
    }

    fn forget(&mut self, id: &WorkloadId, incarnation: u32) {
        self.running.lock().unwrap().retain(|i, n| i != id || *n != incarnation);
    }

    fn facts(&self) -> Vec<(String, String)> {
        vec![("memory limits".into(), "plain".into())]
    }
}

impl Plain {
    fn tell(&self, id: &WorkloadId, incarnation: u32, event: SandboxEvent) {
        let event = Event { workload: id.clone(), incarnation, event };
        self.heard.send(Heard::Event(event)).unwrap();
    }
}

/// A host process as a thread. Starting another on the same directory takes the place of the one before.
fn start(lab: &Lab, running: &Arc<Mutex<BTreeMap<WorkloadId, u32>>>) {
    let (heard, hears) = mpsc::channel();
    let pins = Pins::under(&lab.run_dir().join("vms")).unwrap();
    let sandboxes = Plain { pins, heard, running: running.clone() };
    let mut agent = Agent::start(lab.run_dir(), sandboxes, hears).unwrap();
    thread::spawn(move || agent.run());
}

#[derive(Debug, PartialEq)]
enum Said {
    Hello,
    /// The generation, and whether all is well.
    Observed(u64, bool),
    Lacking,
}

/// Control's end of the connection.
struct Control {
    stream: UnixStream,
    receiver: ipc::Receiver,
}

impl Control {
    fn connect(run_dir: &Path) -> Control {
        let stream = UnixStream::connect(run_dir.join("host.sock")).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Control { receiver: ipc::Receiver::new(stream.try_clone().unwrap()), stream }
    }

    fn say(&self, message: &ToHost) {
        ipc::send(&self.stream, message, &[]).unwrap();
    }

    fn apply(&self, cell: CellId, generation: u64, plan: CellPlan) {
        self.say(&ToHost::Apply { cell, generation: Generation(generation), plan: Box::new(plan) });
    }

    fn vpc(&self, generation: u64, plan: &VpcPlan) {
        self.apply(CellId::Vpc(NET), generation, CellPlan::Vpc(plan.clone()));
    }

    fn change(&self, from: u64, generation: u64, before: &VpcPlan, after: &VpcPlan) {
        let change = Box::new(VpcChange::between(before, after));
        let [from, generation] = [from, generation].map(Generation);
        self.say(&ToHost::Change { network: NET, from, generation, change });
    }

    /// The next word, in short.
    fn said(&mut self) -> Said {
        match self.hears() {
            FromHost::Hello { .. } => Said::Hello,
            FromHost::Observed { generation, fault, .. } => Said::Observed(generation.0, fault.is_none()),
            FromHost::Lacking { .. } => Said::Lacking,
            other => panic!("{other:?}"),
        }
    }

    fn hears(&mut self) -> FromHost {
        self.receiver.recv().unwrap().expect("the host lives").0
    }

    /// The next word about a cell: its generation and what is wrong.
    fn observed(&mut self) -> (CellId, u64, Option<String>) {
        loop {
            if let FromHost::Observed { cell, generation, fault } = self.hears() {
                return (cell, generation.0, fault);
            }
        }
    }
}

fn sandbox_plan(uid_base: u32, incarnation: u32, address: &str) -> SandboxPlan {
    let [address, gateway] = [address, "10.1.0.1"].map(|a| a.parse().unwrap());
    SandboxPlan {
        incarnation,
        attach: Attach::Vpc { network: NET, address, gateway, mtu: 1460 },
        rootfs: Rootfs::HostView,
        process: Process::Init,
        hostname: "h".into(),
        search: vec![],
        limits: SandboxLimits { cpu_millis: 100, memory_bytes: 1 << 20, pids: 10 },
        uid_base,
    }
}

fn vm(lab: &Lab, id: &str, uid_base: u32, address: &str) -> Vm {
    let pins = Pins::under(&lab.run_dir().join("vms")).unwrap();
    let netns: Netns = pins.open(&uid_base.to_string()).unwrap().unwrap();
    Vm::of(WorkloadId(id.into()), Realm::Vpc(NET), address.parse().unwrap(), netns)
}

fn workload(id: &str) -> CellId {
    CellId::Workload(WorkloadId(id.into()))
}

/// The proxy's or the guest's end of a socket door.
struct Taker {
    listener: UnixListener,
}

impl Taker {
    fn new(lab: &Lab, name: &str) -> Taker {
        Taker { listener: UnixListener::bind(lab.run_dir().join(name)).unwrap() }
    }

    fn meets_host(&self) -> ipc::Receiver {
        let (stream, _) = self.listener.accept().unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        ipc::Receiver::new(stream)
    }
}

fn takes<T: serde::de::DeserializeOwned>(from: &mut ipc::Receiver) -> (T, Vec<OwnedFd>) {
    from.recv().unwrap().expect("the host lives")
}

#[test]
fn control_hears_what_the_kernel_equals_and_an_older_plan_is_refused() {
    let lab = Lab::new();
    start(&lab, &Arc::default());
    let mut control = Control::connect(lab.run_dir());
    let FromHost::Hello { facts } = control.hears() else { panic!("the first word is Hello") };
    assert_eq!(facts["memory limits"], "plain");

    control.vpc(5, &plan::vpc(&[]));
    assert_eq!(control.observed(), (CellId::Vpc(NET), 5, None));
    control.vpc(4, &plan::with_vip(plan::vpc(&[]), VIP));
    control.vpc(6, &plan::vpc(&[]));
    assert_eq!(control.observed(), (CellId::Vpc(NET), 6, None), "nothing is said about generation 4");
    let pins = Pins::under(lab.run_dir()).unwrap();
    assert_eq!(pins.names().unwrap(), ["fabric", "vpc-601"], "and nothing of it was done");

    let mut wide = plan::with_vip(plan::vpc(&[]), VIP);
    wide.vips.get_mut(&ListenerId(1)).unwrap().ports.last = 90;
    control.vpc(7, &wide);
    let fault = control.observed().2.expect("what cannot be obeyed is said");
    assert!(fault.contains("80-90"), "{fault}");

    control.say(&ToHost::Remove { cell: CellId::Vpc(NET), generation: Generation(8) });
    assert_eq!(control.observed(), (CellId::Vpc(NET), 8, None));
    assert_eq!(pins.names().unwrap(), ["fabric"]);
}

#[test]
fn a_change_is_obeyed_by_a_host_that_holds_what_it_starts_from_and_any_other_asks_for_the_whole() {
    let mut lab = Lab::new();
    start(&lab, &Arc::default());
    let mut control = Control::connect(lab.run_dir());
    let Said::Hello = control.said() else { panic!("the first word is Hello") };
    let [empty, served, moved] = [plan::vpc(&[]), plan::with_vip(plan::vpc(&[]), VIP), plan::vpc(&[("a", "10.1.0.2")])];

    control.change(1, 2, &empty, &served);
    assert_eq!(control.said(), Said::Lacking, "it has heard of nothing yet");
    control.vpc(2, &served);
    assert_eq!(control.said(), Said::Observed(2, true));
    control.change(2, 3, &served, &moved);
    assert_eq!(control.said(), Said::Observed(3, true));
    control.change(2, 4, &served, &empty);
    assert_eq!(control.said(), Said::Lacking, "it holds generation 3");

    let mut wide = served.clone();
    wide.vips.get_mut(&ListenerId(1)).unwrap().ports.last = 90;
    control.change(3, 5, &moved, &wide);
    assert_eq!(control.said(), Said::Observed(5, false));
    control.change(5, 6, &wide, &empty);
    assert_eq!(control.said(), Said::Lacking, "what failed is not held");
    control.vpc(6, &moved);
    assert_eq!(control.said(), Said::Observed(6, true));

    lab.restart();
    let space = lab.hands().realm(Realm::Vpc(NET)).unwrap();
    let wanted = host::net::vpc::router(&moved, &BTreeMap::new());
    let found = space.read(&wanted).unwrap();
    assert_eq!(host::net::state::diff(&wanted, &found), vec![], "the kernel holds the last plan");
}

#[test]
fn a_proxy_that_comes_back_is_handed_its_listeners_again() {
    let lab = Lab::new();
    start(&lab, &Arc::default());
    let mut control = Control::connect(lab.run_dir());
    control.vpc(1, &plan::with_vip(plan::vpc(&[]), VIP));
    assert_eq!(control.observed().2, None);
    let proxy = Taker::new(&lab, "proxy-sockets.sock");
    for _ in 0..2 {
        let mut sockets = proxy.meets_host();
        let (message, fds) = takes::<edge::Sockets>(&mut sockets);
        assert_eq!((message, fds.len()), (edge::Sockets::Listen(ListenerId(1)), 1));
        let at = TcpListener::from(fds.into_iter().next().unwrap()).local_addr().unwrap();
        assert_eq!(at.to_string(), VIP);
    }
    let mut sockets = proxy.meets_host();
    takes::<edge::Sockets>(&mut sockets);
    control.say(&ToHost::Complete);
    assert_eq!(takes::<edge::Sockets>(&mut sockets).0, edge::Sockets::Complete, "only now the plan is known");
    control.vpc(2, &plan::vpc(&[]));
    assert_eq!(takes::<edge::Sockets>(&mut sockets).0, edge::Sockets::Unlisten(ListenerId(1)));
}

#[test]
fn a_workload_is_wired_asks_for_metadata_and_goes_when_it_has_ended() {
    let lab = Lab::new();
    start(&lab, &Arc::default());
    let guest = Taker::new(&lab, "guest-sockets.sock");
    let mut control = Control::connect(lab.run_dir());
    control.vpc(1, &plan::vpc(&[("web", "10.1.0.2")]));
    control.apply(workload("web"), 1, CellPlan::Workload(sandbox_plan(1000, 1, "10.1.0.2")));
    assert_eq!(control.observed(), (CellId::Vpc(NET), 1, None));
    assert_eq!(control.observed(), (workload("web"), 1, None));

    let mut sockets = guest.meets_host();
    let (message, fds) = takes::<guest::Sockets>(&mut sockets);
    assert_eq!((message, fds.len()), (guest::Sockets::Serve(Realm::Vpc(NET)), 3));
    let server = tcp::Server::on(TcpListener::from(fds.into_iter().next().unwrap())).unwrap();
    let web = vm(&lab, "web", 1000, "10.1.0.2");
    let mut stream = web.connect("169.254.169.254:80").unwrap();
    assert_eq!(tcp::greeting(&mut stream).unwrap().ip().to_string(), "10.1.0.2");
    assert_eq!(server.clients().len(), 1);

    // A new incarnation first ends the old one.
    control.apply(workload("web"), 2, CellPlan::Workload(sandbox_plan(2000, 2, "10.1.0.2")));
    assert_eq!(control.observed(), (workload("web"), 2, None));
    let again = vm(&lab, "web", 2000, "10.1.0.2");
    assert!(again.connect("169.254.169.254:80").is_ok());
    control.say(&ToHost::Remove { cell: workload("web"), generation: Generation(3) });
    let ended = loop {
        if let FromHost::Sandbox { event: SandboxEvent::Exited { signal, .. }, incarnation: 2, .. } = control.hears() {
            break signal;
        }
    };
    assert_eq!((ended, control.observed()), (Some(15), (workload("web"), 3, None)));
}

#[test]
fn a_host_that_restarts_disturbs_no_connection_and_removes_what_is_in_no_plan() {
    let lab = Lab::new();
    let running = Arc::default();
    start(&lab, &running);
    let mut control = Control::connect(lab.run_dir());
    let vpc = plan::with_vip(plan::vpc(&[("web", "10.1.0.2")]), VIP);
    control.vpc(1, &vpc);
    control.apply(workload("web"), 1, CellPlan::Workload(sandbox_plan(1000, 1, "10.1.0.2")));
    control.apply(CellId::Vpc(NetworkId(602)), 1, CellPlan::Vpc(plan::vpc(&[])));
    for _ in 0..3 {
        assert_eq!(control.observed().2, None);
    }
    let proxy = Taker::new(&lab, "proxy-sockets.sock");
    let mut first = proxy.meets_host();
    let mut fds = takes::<edge::Sockets>(&mut first).1;
    let _server = tcp::Server::on(TcpListener::from(fds.remove(0))).unwrap();
    let web = vm(&lab, "web", 1000, "10.1.0.2");
    let mut stream = web.connect(VIP).unwrap();
    tcp::greeting(&mut stream).unwrap();

    start(&lab, &running);
    let mut control = Control::connect(lab.run_dir());
    control.vpc(1, &vpc);
    control.apply(workload("web"), 1, CellPlan::Workload(sandbox_plan(1000, 1, "10.1.0.2")));
    control.say(&ToHost::Complete);
    assert_eq!(control.observed(), (CellId::Vpc(NET), 1, None));
    assert_eq!(control.observed(), (workload("web"), 1, None));
    assert_eq!(tcp::ask(&mut stream, "still there?").unwrap(), "still there?");
    assert_eq!(running.lock().unwrap().len(), 1, "the workload was taken over, not started again");
    let pins = Pins::under(lab.run_dir()).unwrap();
    until("the network of no plan is gone", || pins.names().unwrap() == ["edge-601", "fabric", "vpc-601"]);
    assert!(web.connect(VIP).is_ok(), "new connections find a listener");
}

#[test]
fn a_launch_that_hangs_holds_up_no_network_and_no_other_workload() {
    let lab = Lab::new();
    start(&lab, &Arc::default());
    let mut control = Control::connect(lab.run_dir());
    control.vpc(1, &plan::vpc(&[("web", "10.1.0.2"), (STUCK, "10.1.0.3")]));
    assert_eq!(control.observed(), (CellId::Vpc(NET), 1, None));
    control.apply(workload(STUCK), 1, CellPlan::Workload(sandbox_plan(1000, 1, "10.1.0.3")));
    control.apply(workload("web"), 1, CellPlan::Workload(sandbox_plan(2000, 1, "10.1.0.2")));
    assert_eq!(control.observed(), (workload("web"), 1, None), "nothing is said about the one that hangs");
    control.vpc(2, &plan::with_vip(plan::vpc(&[("web", "10.1.0.2")]), VIP));
    assert_eq!(control.observed(), (CellId::Vpc(NET), 2, None));
}
