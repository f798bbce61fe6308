//! The host process: hears plans from control, makes the kernel obey them, answers what it now equals.
//!
//! One thread decides and acts (the loop in [`Agent::run`]); others only listen and hand it what they heard. It keeps no
//! file: what must survive it is in the kernel and with the shims. Start with [`serve`].

mod backlog;
mod printed;
mod tunnels;
mod verify;
mod vpcs;
mod workloads;

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    fs, io,
    net::SocketAddrV4,
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender, sync_channel},
    thread,
    time::{Duration, Instant},
};

use model::{
    id::{Generation, ListenerId, NetworkId, WorkloadId},
    planned::{
        edge, guest,
        guest::Realm,
        host::{CellId, CellPlan, Dial, FabricPlan, FromHost, SandboxEvent, ToHost, Verified, Vip},
    },
};

pub use self::verify::verify;
use self::{backlog::Backlog, printed::Printed, vpcs::Vpc, workloads::Workload};
use crate::{
    doors::Door,
    facts,
    hands::Hands,
    net::{flow::Said, kernel::KernelError},
    sandboxes::{self, Launched, SandboxError, Sandboxes},
};

/// Where control asks for connections into VMs.
pub const DIAL_SOCKET: &str = "host-dial.sock";
/// Where the proxy asks for connections to backends.
pub const BACKENDS_SOCKET: &str = "host-backends.sock";
/// What was heard and not yet looked at.
const HEARD_MAX: usize = 1_024;
/// A control that takes no frame for this long is treated as gone.
const TAKE_MAX: Duration = Duration::from_secs(5);
/// Nothing more is to be done right now when nothing was heard for this long.
const QUIET: Duration = Duration::from_millis(3);
/// Killed sandboxes are gone after milliseconds; the kernel may be slow to free what they held.
const TAKE_DOWN_MAX: Duration = Duration::from_secs(15);

#[derive(Clone, Debug)]
pub struct Config {
    /// The cloud's id.
    pub cloud: String,
    /// `host.sock`, `host-dial.sock` and `host-backends.sock` are made in it; `proxy-sockets.sock` and `guest-sockets.sock`
    /// are looked for in it.
    pub run_dir: PathBuf,
    /// Holds `layers/`.
    pub state_dir: PathBuf,
    /// How a shim is started: program and first arguments.
    pub shim_argv: Vec<OsString>,
    /// What runs in every VM.
    pub service: Option<sandbox::Service>,
    /// Whom the sockets are for, beside root: the first two for control's own user, the third for the proxy's.
    pub control_uid: Option<u32>,
    pub proxy_uid: Option<u32>,
}

impl Config {
    fn launcher(&self) -> sandbox::Config {
        sandbox::Config {
            cloud: self.cloud.clone(),
            run_dir: self.run_dir.clone(),
            state_dir: self.state_dir.clone(),
            shim_argv: self.shim_argv.clone(),
            service: self.service.clone(),
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    #[error("cannot listen at {}", path.display())]
    Listen { path: PathBuf, source: io::Error },
    #[error("cannot take over what the kernel holds")]
    Kernel { source: KernelError },
    #[error("cannot read what containers print")]
    Printed { source: io::Error },
    #[error("cannot run sandboxes")]
    Sandboxes { source: SandboxError },
}

/// Why a cell does not equal its plan.
#[derive(Debug, thiserror::Error)]
pub enum CellError {
    #[error(transparent)]
    Kernel(#[from] KernelError),
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    #[error("cannot listen on {at}")]
    Listen { at: SocketAddrV4, source: io::Error },
    #[error("cannot serve metadata")]
    Metadata { source: io::Error },
    #[error("forwarding rules of the load balancer have one port each, not {}-{}", .0.ports.first, .0.ports.last)]
    PortRange(Vip),
    #[error("the plan of cell {0} is of another kind")]
    Kind(CellId),
}

/// An error with its causes, on one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// Runs the host process. Returns only when it cannot start.
pub fn serve(config: Config) -> Result<(), AgentError> {
    let (events, sandbox_events) = mpsc::channel();
    let sandboxes = Launched::new(config.launcher(), events).map_err(|source| AgentError::Sandboxes { source })?;
    let mut agent = Agent::start(&config.run_dir, sandboxes, sandbox_events)?;
    let own =
        [("host.sock", config.control_uid), (DIAL_SOCKET, config.control_uid), (BACKENDS_SOCKET, config.proxy_uid)];
    for (name, user) in own {
        let path = config.run_dir.join(name);
        std::os::unix::fs::chown(&path, user, None).map_err(|source| AgentError::Listen { path, source })?;
    }
    agent.run();
    Ok(())
}

/// What this machine can enforce, tried in a run directory that must not be a living cloud's.
pub fn facts(config: &Config) -> Result<BTreeMap<String, String>, AgentError> {
    let (events, _) = mpsc::channel();
    let sandboxes = Launched::new(config.launcher(), events).map_err(|source| AgentError::Sandboxes { source })?;
    let mut hands = Hands::open(&config.run_dir).map_err(|source| AgentError::Kernel { source })?;
    Ok(facts::gather(&mut hands, sandboxes.facts()))
}

/// Ends every sandbox and removes every namespace of a cloud whose host process has ended. Blocks until all is gone.
pub fn take_down(config: &Config) -> Result<(), AgentError> {
    let sandboxes = |source: sandbox::Error| AgentError::Sandboxes { source: source.into() };
    let (events, ended) = mpsc::channel();
    let launcher = sandbox::Launcher::new(config.launcher(), events).map_err(sandboxes)?;
    let mut living: BTreeSet<WorkloadId> = BTreeSet::new();
    for running in launcher.adopt().map_err(sandboxes)? {
        running.stop(Duration::ZERO).map_err(sandboxes)?;
        living.insert(running.id().clone());
    }
    let deadline = Instant::now() + TAKE_DOWN_MAX;
    while !living.is_empty() {
        let left = deadline.saturating_duration_since(Instant::now());
        let Ok(event) = ended.recv_timeout(left) else { break };
        if let SandboxEvent::Exited { .. } | SandboxEvent::Failed { .. } = event.event {
            living.remove(&event.workload);
        }
    }
    launcher.sweep().map_err(sandboxes)?;
    let kernel = |source: crate::netns::NetnsError| AgentError::Kernel { source: source.into() };
    let pins = crate::netns::Pins::under(&config.run_dir).map_err(kernel)?;
    for name in pins.names().map_err(kernel)? {
        pins.delete(&name).map_err(kernel)?;
    }
    Ok(())
}

/// What the loop is told.
enum Heard {
    Connected(UnixStream),
    /// From the connection of this number.
    Frame(u64, Box<ToHost>),
    /// The connection of this number is over.
    Ended(u64),
    Sandbox(sandboxes::Heard),
    Flows(Said),
    /// An operator's question, and where the answer goes.
    Verify(SyncSender<Verified>),
    Dial(Dial, SyncSender<tunnels::Outcome>),
    DialBackend(edge::DialBackend, SyncSender<tunnels::Outcome>),
    Printed(FromHost),
}

pub struct Agent<S> {
    hands: Hands,
    sandboxes: S,
    heard: Receiver<Heard>,
    flows: SyncSender<Said>,
    proxy: Door<ListenerId, edge::Sockets>,
    guest: Door<Realm, guest::Sockets>,
    facts: BTreeMap<String, String>,
    control: Option<UnixStream>,
    connection: u64,
    /// The newest generation seen of each cell, removed ones included.
    generations: BTreeMap<CellId, Generation>,
    /// Cells heard of since control connected.
    sent: BTreeSet<CellId>,
    /// Control has sent everything once.
    complete: bool,
    vpcs: BTreeMap<NetworkId, Vpc>,
    fabric_serves: bool,
    /// Sandboxes to keep ready, once there is a quiet moment.
    parking: Option<BTreeSet<u32>>,
    workloads: BTreeMap<WorkloadId, Workload>,
    waiting: Backlog,
    printed: Printed,
}

impl<S: Sandboxes> Agent<S> {
    /// Takes over what is there, opens `host.sock`, and starts listening.
    pub fn start(run_dir: &Path, mut sandboxes: S, events: Receiver<sandboxes::Heard>) -> Result<Agent<S>, AgentError> {
        let kernel = |source| AgentError::Kernel { source };
        let mut hands = Hands::open(run_dir).map_err(kernel)?;
        hands.found_fabric().map_err(kernel)?;
        let adopted = sandboxes.adopt().map_err(|source| AgentError::Sandboxes { source })?;
        let facts = sandboxes.facts().into_iter().collect();
        let (tell, heard) = sync_channel(HEARD_MAX);
        let (flows, said) = sync_channel(HEARD_MAX);
        let open = |name: &str| {
            let path = run_dir.join(name);
            listen(&path).map_err(|source| AgentError::Listen { path, source })
        };
        let (listener, door) = (open("host.sock")?, tell.clone());
        thread::spawn(move || accept(&listener, &door));
        let (listener, door) = (open(DIAL_SOCKET)?, tell.clone());
        thread::spawn(move || tunnels::accept(&listener, &door, Heard::Dial));
        let (listener, door) = (open(BACKENDS_SOCKET)?, tell.clone());
        thread::spawn(move || tunnels::accept(&listener, &door, Heard::DialBackend));
        forward(events, tell.clone(), Heard::Sandbox);
        forward(said, tell.clone(), Heard::Flows);
        verify::open(run_dir, tell.clone())
            .map_err(|source| AgentError::Listen { path: run_dir.to_owned(), source })?;
        let living = adopted.iter().map(|(id, _)| id.clone());
        let printed = Printed::start(run_dir, living, tell).map_err(|source| AgentError::Printed { source })?;
        Ok(Agent {
            hands,
            sandboxes,
            heard,
            flows,
            proxy: Door::to(run_dir.join("proxy-sockets.sock")),
            guest: Door::to(run_dir.join("guest-sockets.sock")),
            facts,
            control: None,
            connection: 0,
            generations: BTreeMap::new(),
            sent: BTreeSet::new(),
            complete: false,
            vpcs: BTreeMap::new(),
            fabric_serves: false,
            parking: None,
            workloads: adopted.into_iter().map(|(id, incarnation)| (id, Workload::adopted(incarnation))).collect(),
            waiting: Backlog::default(),
            printed,
        })
    }

    /// Obeys until every listener is gone, which is never.
    pub fn run(&mut self) {
        loop {
            let heard = match self.parking {
                None => self.heard.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(_) => self.heard.recv_timeout(QUIET),
            };
            match heard {
                Err(RecvTimeoutError::Timeout) => self.park(),
                Err(RecvTimeoutError::Disconnected) => return,
                Ok(heard) => self.hear(heard),
            }
        }
    }

    fn hear(&mut self, heard: Heard) {
        match heard {
            Heard::Connected(stream) => self.meet(stream),
            Heard::Frame(connection, frame) if connection == self.connection => self.obey(*frame),
            // What an earlier control still had to say is overtaken by everything its successor sends.
            Heard::Frame(..) => {}
            Heard::Ended(connection) if connection == self.connection => self.lose_control(),
            Heard::Ended(_) => {}
            Heard::Sandbox(sandboxes::Heard::Event(event)) => self.workload_event(event),
            Heard::Sandbox(sandboxes::Heard::Prepared { workload, incarnation, outcome }) => {
                self.prepared(workload, incarnation, outcome);
            }
            Heard::Sandbox(sandboxes::Heard::Launched { workload, incarnation, outcome }) => {
                self.launched(workload, incarnation, outcome);
            }
            // Whoever asked waits for the answer, or has ended.
            Heard::Dial(dial, answer) => drop(answer.try_send(self.dial(&dial))),
            Heard::DialBackend(dial, answer) => drop(answer.try_send(self.dial_backend(dial))),
            // Without control it waits in its file: the reader is told when there is a new one.
            Heard::Printed(batch) => drop(self.report(&batch)),
            Heard::Flows(Said::Flows(records)) => self.report_later(FromHost::Flows(records)),
            Heard::Flows(Said::Gap(gap)) => self.report_later(FromHost::Gap(gap)),
            // A control that comes is told of those that live.
            Heard::Flows(Said::Mapped(mapped)) => drop(self.report(&FromHost::Mapped(mapped))),
            // Whoever asked may have given up.
            Heard::Verify(answer) => drop(answer.try_send(self.verify())),
        }
    }

    // ---- control ----

    fn meet(&mut self, stream: UnixStream) {
        self.lose_control();
        self.connection += 1;
        self.sent.clear();
        let hello = FromHost::Hello { facts: self.facts.clone() };
        // A stream whose timeout cannot be set is one that has ended.
        self.control = stream.set_write_timeout(Some(TAKE_MAX)).is_ok().then_some(stream);
        self.report(&hello);
        self.printed.anew();
        self.vpcs.values().filter_map(|vpc| vpc.flows.as_ref()).for_each(|(_, watch)| watch.tell_again());
        while self.control.is_some()
            && let Some(message) = self.waiting.next()
        {
            self.report_later(message);
        }
    }

    fn lose_control(&mut self) {
        if self.control.take().is_some() {
            self.waiting.broke(Instant::now());
        }
    }

    /// False when there is no control to hear it.
    fn report(&mut self, message: &FromHost) -> bool {
        let Some(stream) = &self.control else { return false };
        let sent = ipc::send(stream, message, &[]).is_ok();
        if !sent {
            self.lose_control();
        }
        sent
    }

    /// Flow records wait for a control that is away, up to a limit.
    fn report_later(&mut self, message: FromHost) {
        match self.report(&message) {
            true => self.waiting.sent(message, Instant::now()),
            false => self.waiting.keep(message),
        }
    }

    fn observed(&mut self, cell: CellId, generation: Generation, outcome: Result<(), CellError>) {
        let fault = outcome.err().map(|error| chain(&error));
        self.report(&FromHost::Observed { cell, generation, fault });
    }

    fn obey(&mut self, frame: ToHost) {
        match frame {
            ToHost::Apply { cell, generation, plan } => {
                self.sent.insert(cell.clone());
                if self.is_new(&cell, generation) {
                    self.apply(cell, generation, *plan);
                }
            }
            ToHost::Change { network, from, generation, change } => {
                let cell = CellId::Vpc(network);
                self.sent.insert(cell.clone());
                if self.is_new(&cell, generation) {
                    self.change_vpc(network, from, generation, *change);
                }
            }
            ToHost::Remove { cell, generation } => {
                self.sent.remove(&cell);
                if self.is_new(&cell, generation) {
                    self.remove(cell, generation);
                }
            }
            ToHost::Complete => self.complete(),
            ToHost::Logged { workload, next } => self.printed.logged(workload, next),
        }
    }

    /// Refuses what is older than what was seen. The same generation may be sent again by a control that came back.
    fn is_new(&mut self, cell: &CellId, generation: Generation) -> bool {
        let seen = self.generations.entry(cell.clone()).or_default();
        let new = generation >= *seen;
        *seen = generation.max(*seen);
        new
    }

    fn apply(&mut self, cell: CellId, generation: Generation, plan: CellPlan) {
        let outcome = match (&cell, plan) {
            (CellId::Vpc(network), CellPlan::Vpc(plan)) => self.apply_vpc(*network, generation, &plan),
            (CellId::Fabric, CellPlan::Fabric(plan)) => self.apply_fabric(&plan),
            (CellId::Workload(id), CellPlan::Workload(plan)) => {
                return self.apply_workload(id.clone(), generation, plan);
            }
            (CellId::Vpc(_) | CellId::Fabric | CellId::Workload(_), _) => Err(CellError::Kind(cell.clone())),
        };
        self.observed(cell, generation, outcome);
    }

    fn remove(&mut self, cell: CellId, generation: Generation) {
        let outcome = match &cell {
            CellId::Vpc(network) => self.remove_vpc(*network),
            // The proxy lives in it: without a plan it is merely empty.
            CellId::Fabric => self.apply_fabric(&FabricPlan::default()),
            CellId::Workload(id) => return self.remove_workload(id.clone(), generation),
        };
        self.observed(cell, generation, outcome);
    }

    /// What control has not sent is in no plan.
    fn complete(&mut self) {
        let sent = std::mem::take(&mut self.sent);
        let strange: Vec<_> = self.vpcs.keys().filter(|n| !sent.contains(&CellId::Vpc(**n))).copied().collect();
        for network in strange {
            let outcome = self.remove_vpc(network);
            self.complain(CellId::Vpc(network), outcome);
        }
        let strange: Vec<_> =
            self.workloads.keys().filter(|id| !sent.contains(&CellId::Workload((*id).clone()))).cloned().collect();
        for id in strange {
            let generation = self.generations.get(&CellId::Workload(id.clone())).copied().unwrap_or_default();
            self.remove_workload(id, generation);
        }
        let outcome = self.hands.retain().map_err(CellError::from);
        self.complain(CellId::Fabric, outcome);
        self.generations.retain(|cell, _| sent.contains(cell));
        self.sent = sent;
        self.complete = true;
        self.proxy.complete(edge::Sockets::Complete);
        self.guest.complete(guest::Sockets::Complete);
    }

    /// Says only what went wrong, about a cell that nobody asked about.
    fn complain(&mut self, cell: CellId, outcome: Result<(), CellError>) {
        if outcome.is_err() {
            let generation = self.generations.get(&cell).copied().unwrap_or_default();
            self.observed(cell, generation, outcome);
        }
    }

    // ---- the fabric and metadata ----

    fn serve_metadata(&mut self, realm: Realm) -> Result<(), CellError> {
        let sockets = self.hands.metadata_sockets(realm)?.map_err(|source| CellError::Metadata { source })?;
        self.guest.set(realm, guest::Sockets::Serve(realm), sockets.into());
        Ok(())
    }

    fn apply_fabric(&mut self, plan: &FabricPlan) -> Result<(), CellError> {
        self.hands.apply_fabric(plan)?;
        if !self.fabric_serves {
            self.serve_metadata(Realm::Fabric)?;
            self.fabric_serves = true;
        }
        self.parking = Some(plan.parked.clone());
        Ok(())
    }

    /// Parks what the fabric's plan wants parked. Not at once: the plan that claims a parked sandbox no longer lists it,
    /// and the claim itself comes right behind.
    fn park(&mut self) {
        if let Some(wanted) = self.parking.take()
            && let Err(error) = self.sandboxes.keep_parked(&wanted)
        {
            eprintln!("host: cannot keep sandboxes ready: {}", chain(&error));
        }
    }
}

/// Listens at the path, in the place of whoever listened there before.
fn listen(path: &Path) -> io::Result<UnixListener> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => UnixListener::bind(path),
    }
}

/// Takes connections of control; each has a thread that reads it to its end.
fn accept(listener: &UnixListener, tell: &SyncSender<Heard>) {
    let mut connection = 0;
    for stream in listener.incoming() {
        // Out of descriptors: the next one may fit.
        let Ok((reader, writer)) = stream.and_then(|s| Ok((s.try_clone()?, s))) else {
            thread::sleep(Duration::from_millis(100));
            continue;
        };
        connection += 1;
        if tell.send(Heard::Connected(writer)).is_err() {
            return;
        }
        let tell = tell.clone();
        thread::spawn(move || {
            let mut receiver = ipc::Receiver::new(reader);
            while let Ok(Some((frame, _))) = receiver.recv::<ToHost>() {
                if tell.send(Heard::Frame(connection, Box::new(frame))).is_err() {
                    return;
                }
            }
            // Nobody hears it only when the process ends.
            drop(tell.send(Heard::Ended(connection)));
        });
    }
}

fn forward<T: Send + 'static>(from: Receiver<T>, tell: SyncSender<Heard>, wrap: fn(T) -> Heard) {
    thread::spawn(move || {
        while let Ok(item) = from.recv() {
            if tell.send(wrap(item)).is_err() {
                return;
            }
        }
    });
}
