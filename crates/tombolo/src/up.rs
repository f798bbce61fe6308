//! The supervisor: starts the roles of a cloud, starts them again when they die, takes everything down at the end.
//!
//! It holds nothing that the others need. When it is killed, packets flow and workloads run on; the next `up` finds them.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    os::unix::{fs::OpenOptionsExt, process::CommandExt},
    process::{Child, Command, ExitCode, Stdio},
    sync::mpsc,
    time::{Duration, Instant},
};

use rustix::{
    fs::FlockOperation,
    process::{Pid, Signal},
};

use crate::{
    Outcome,
    cloud::{CloudName, Dirs},
    operator::{self, Answer, Ask},
    roles::Role,
    users::Users,
};

#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// Name of the cloud; two clouds can run on one machine
    #[arg(long, default_value = "main")]
    pub cloud: CloudName,
    /// Where the door listens, on loopback; port 0 picks a free one
    #[arg(long, default_value = "127.0.0.1:0")]
    pub listen: std::net::SocketAddr,
    /// Keep no state: everything is gone when the cloud goes down
    #[arg(long)]
    pub ephemeral: bool,
    /// Take the cloud down when standard input ends, so that it cannot outlive whoever started it
    #[arg(long)]
    pub leash: bool,
    /// How long an instance without requests is kept
    #[arg(long, value_name = "SECONDS", default_value_t = model::limits::RUN_IDLE_KEEP.as_secs())]
    pub idle_instance: u64,
    /// Idle limit of connections through Private Service Connect
    #[arg(long, value_name = "SECONDS", default_value_t = 1_200, hide = true)]
    pub psc_idle: u32,
    /// How long a released NAT address of Private Service Connect rests
    #[arg(long, value_name = "SECONDS", default_value_t = PSC_REST_S, hide = true)]
    #[arg(value_parser = clap::value_parser!(u64).range(..=PSC_REST_S))]
    pub psc_rest: u64,
}

const PSC_REST_S: u64 = model::limits::PSC_NAT_QUARANTINE.as_secs();
/// A role that dies is started again after this, doubled each time it dies young.
const RESTART_FIRST: Duration = Duration::from_millis(5);
const RESTART_MOST: Duration = Duration::from_secs(2);
/// Young: it did not live this long.
const LIVED: Duration = Duration::from_secs(10);
/// How long the cloud may take to become ready before we say that something is wrong.
const READY_MAX: Duration = Duration::from_secs(30);
/// How long a role may take to end after SIGTERM.
const STOP_MAX: Duration = Duration::from_secs(5);

enum Event {
    /// A signal, or the end of the leash.
    Stop,
    Died(Role, String),
    Ready(Answer),
    NeverReady(String),
}

pub fn run(args: Args) -> Outcome {
    if !rustix::process::geteuid().is_root() {
        return Err("a cloud makes network namespaces and cgroups, which takes root: run `sudo tombolo up`".into());
    }
    let started = Instant::now();
    let dirs = Dirs::of(&args.cloud);
    dirs.create().map_err(|e| format!("cannot make {} and {}: {e}", dirs.run.display(), dirs.state.display()))?;
    let lock = lock(&dirs)?;
    mark(&dirs, args.ephemeral)?;
    Users::claim(&dirs).map_err(|e| format!("cannot choose the users of the cloud's processes: {e}"))?;
    let (events, inbox) = mpsc::channel();
    crate::operator::on_stop_signal({
        let events = events.clone();
        move || drop(events.send(Event::Stop))
    })?;
    if args.leash {
        watch_leash(events.clone());
    }
    let mut children = Children::new(args.clone(), events.clone());
    for role in Role::ALL {
        children.start(role)?;
    }
    watch_ready(dirs.clone(), events);
    let result = attend(&mut children, &inbox, &args, started);
    children.stop_all();
    take_down(&args.cloud, &dirs, args.ephemeral)?;
    drop(lock);
    result
}

fn attend(children: &mut Children, inbox: &mpsc::Receiver<Event>, args: &Args, started: Instant) -> Outcome {
    loop {
        match inbox.recv() {
            Ok(Event::Stop) | Err(_) => return Ok(ExitCode::SUCCESS),
            Ok(Event::Ready(answer)) => {
                children.keep_door(&answer);
                print_ready(args, &answer, started.elapsed());
            }
            Ok(Event::NeverReady(why)) => return Err(format!("the cloud did not become ready: {why}").into()),
            Ok(Event::Died(role, how)) => children.restart(role, &how),
        }
    }
}

/// In one write: whoever started us may read the first line and close the pipe, which is no reason to take the cloud down.
fn print_ready(args: &Args, answer: &Answer, took: Duration) {
    let Answer::Ready { door } = answer else { return };
    let cloud = args.cloud.as_str();
    let text = format!(
        "ready in {} ms: cloud {cloud:?}, door http://{door}\n\
         next: eval \"$(tombolo env --cloud {cloud})\"   then gcloud, curl and client libraries talk to it\n",
        took.as_millis()
    );
    let mut out = io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

fn lock(dirs: &Dirs) -> Outcome<File> {
    // Whoever may open it may lock it.
    let file = File::options().create(true).truncate(false).read(true).write(true).mode(0o600).open(dirs.lock())?;
    rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(|_| {
        let name = dirs.run.file_name().unwrap_or_default().to_string_lossy().into_owned();
        format!(
            "cloud {name:?} is already up (its lock {} is held): use it, `tombolo down`, or another --cloud",
            dirs.lock().display()
        )
    })?;
    file.set_len(0)?;
    writeln!(&file, "{}", std::process::id())?;
    Ok(file)
}

/// Says on the disk whether the cloud's state is to go with it. Kept state never is.
fn mark(dirs: &Dirs, ephemeral: bool) -> Outcome<()> {
    if ephemeral && dirs.store().exists() {
        return Err(format!(
            "the cloud has state in {}, which --ephemeral would remove when it goes down: start it without, or another one \
             with --cloud",
            dirs.state.display()
        )
        .into());
    }
    match ephemeral {
        true => fs::write(dirs.ephemeral(), "")?,
        false if dirs.ephemeral().exists() => fs::remove_file(dirs.ephemeral())?,
        false => {}
    }
    Ok(())
}

fn watch_leash(events: mpsc::Sender<Event>) {
    std::thread::spawn(move || {
        let mut sink = [0; 64];
        while matches!(io::stdin().lock().read(&mut sink), Ok(n) if n > 0) {}
        drop(events.send(Event::Stop));
    });
}

fn watch_ready(dirs: Dirs, events: mpsc::Sender<Event>) {
    std::thread::spawn(move || {
        let deadline = Instant::now() + READY_MAX;
        let why = loop {
            match operator::ask(&dirs, &Ask::Ready) {
                Ok(answer @ Answer::Ready { .. }) => return drop(events.send(Event::Ready(answer))),
                Ok(Answer::NotYet) | Err(_) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(2))
                }
                Ok(answer) => break format!("control answered {answer:?}"),
                Err(error) => break format!("control does not answer: {error}"),
            }
        };
        drop(events.send(Event::NeverReady(why)));
    });
}

/// The roles' processes. Each has a thread that waits for its end.
struct Children {
    args: Args,
    events: mpsc::Sender<Event>,
    running: Vec<(Role, Pid, Instant, Duration)>,
    stopping: bool,
}

impl Children {
    fn new(args: Args, events: mpsc::Sender<Event>) -> Children {
        Children { args, events, running: Vec::new(), stopping: false }
    }

    /// A control process that is started again opens the door where its clients know it to be.
    fn keep_door(&mut self, answer: &Answer) {
        if let Answer::Ready { door } = answer {
            self.args.listen = *door;
        }
    }

    fn start(&mut self, role: Role) -> Outcome<()> {
        self.spawn(role, RESTART_FIRST)
    }

    fn spawn(&mut self, role: Role, pause: Duration) -> Outcome<()> {
        let mut child = self.command(role).spawn().map_err(|e| format!("cannot start the {role} role: {e}"))?;
        let pid = pid_of(&child);
        self.running.push((role, pid, Instant::now(), pause));
        let events = self.events.clone();
        std::thread::spawn(move || {
            let how = match child.wait() {
                Ok(status) => status.to_string(),
                Err(error) => error.to_string(),
            };
            drop(events.send(Event::Died(role, how)));
        });
        Ok(())
    }

    fn command(&self, role: Role) -> Command {
        let mut command = Command::new("/proc/self/exe");
        command.arg0(format!("tombolo-{role}")).arg("role").arg(role.to_string());
        command.args(["--cloud", self.args.cloud.as_str()]);
        command.args(["--listen", &self.args.listen.to_string()]);
        command.args(["--idle-instance", &self.args.idle_instance.to_string()]);
        command.args(["--psc-idle", &self.args.psc_idle.to_string()]);
        command.args(["--psc-rest", &self.args.psc_rest.to_string()]);
        command.args(["--supervisor", &std::process::id().to_string()]);
        if self.args.ephemeral {
            command.arg("--ephemeral");
        }
        // Its own group: Ctrl-C is for the supervisor, which stops them in order.
        command.stdin(Stdio::null()).stdout(Stdio::null()).process_group(0).env_clear();
        command
    }

    fn restart(&mut self, role: Role, how: &str) {
        let Some(i) = self.running.iter().position(|(r, ..)| *r == role) else { return };
        let (_, _, since, pause) = self.running.swap_remove(i);
        if self.stopping {
            return;
        }
        eprintln!("tombolo: the {role} role ended ({how}); starting it again");
        std::thread::sleep(pause);
        let next = if since.elapsed() > LIVED { RESTART_FIRST } else { (pause * 2).min(RESTART_MOST) };
        if let Err(error) = self.spawn(role, next) {
            eprintln!("tombolo: {error}");
            drop(self.events.send(Event::Stop));
        }
    }

    /// Control first, so that nobody plans while the hands are taken away.
    fn stop_all(&mut self) {
        self.stopping = true;
        let (control, others): (Vec<_>, Vec<_>) =
            self.running.iter().map(|(role, pid, ..)| (*role, *pid)).partition(|(role, _)| *role == Role::Control);
        stop(&control);
        stop(&others);
    }
}

/// Returns when they have ended.
fn stop(roles: &[(Role, Pid)]) {
    signal(roles, Signal::TERM);
    let left = wait_for_end(roles.to_vec());
    if left.is_empty() {
        return;
    }
    eprintln!("tombolo: {} does not end; killing it", names(&left));
    signal(&left, Signal::KILL);
    let left = wait_for_end(left);
    if !left.is_empty() {
        eprintln!("tombolo: the kernel does not let go of {}", names(&left));
    }
}

fn signal(roles: &[(Role, Pid)], signal: Signal) {
    for (_, pid) in roles {
        // It may have ended by itself; then there is nothing to stop.
        let _ = rustix::process::kill_process(*pid, signal);
    }
}

/// Those that are still there after [`STOP_MAX`].
fn wait_for_end(mut roles: Vec<(Role, Pid)>) -> Vec<(Role, Pid)> {
    let deadline = Instant::now() + STOP_MAX;
    loop {
        roles.retain(|(_, pid)| rustix::process::test_kill_process(*pid).is_ok());
        if roles.is_empty() || Instant::now() > deadline {
            return roles;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn names(roles: &[(Role, Pid)]) -> String {
    roles.iter().map(|(role, _)| role.to_string()).collect::<Vec<_>>().join(", ")
}

fn pid_of(child: &Child) -> Pid {
    let raw = i32::try_from(child.id()).expect("a pid is below 2^22");
    Pid::from_raw(raw).expect("a child's pid is not zero")
}

/// Removes all that a cloud put into the kernel and the run directory. Its roles must not be running any more.
pub fn take_down(name: &CloudName, dirs: &Dirs, state_too: bool) -> Outcome<()> {
    crate::roles::take_down(name, dirs)?;
    remove(&dirs.run)?;
    if state_too {
        remove(&dirs.state)?;
    }
    Ok(())
}

fn remove(dir: &std::path::Path) -> Outcome<()> {
    match fs::remove_dir_all(dir) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(format!("cannot remove {}: {error}", dir.display()).into()),
    }
    // The parent is shared by all clouds of the machine; the last one removes it.
    if let Some(parent) = dir.parent() {
        let _ = fs::remove_dir(parent);
    }
    Ok(())
}
