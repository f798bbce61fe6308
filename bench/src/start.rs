//! How long a container takes from the decision to start it until the first byte of its answer, without the network
//! around it: the client sits in the sandbox's own network namespace. User namespace, system call filter and limits are
//! on, for ours and for crun, with the same program.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, TcpStream},
    path::PathBuf,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use model::{
    id::{NetworkId, WorkloadId},
    planned::host::{Attach, Process, Rootfs, SandboxEvent, SandboxLimits, SandboxPlan},
};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use sandbox::{Config, Event, Launcher, Parked, Running};

use crate::{
    Outcome, Tools,
    crun::Crun,
    ms,
    report::{Aim, Row, Spread},
};

const RUNS: usize = 25;
/// An idle machine is slower: control groups and namespaces wait for the kernel's grace periods.
const IDLE: Duration = Duration::from_millis(250);
pub const PORT: u16 = 8_080;
pub const MEMORY_BYTES: u64 = 512 << 20;
pub const PIDS: u32 = 1_024;
pub const UID_BASE: u32 = model::limits::SANDBOX_UID_END - model::limits::SANDBOX_UIDS;

pub fn bench(tools: &Tools) -> Outcome<Vec<Row>> {
    let state_dir = tools.scratch.join("state");
    let config = Config {
        cloud: "bench".into(),
        run_dir: tools.scratch.join("run"),
        state_dir: state_dir.clone(),
        shim_argv: vec![tools.tombolo.clone().into(), "shim".into()],
        service: None,
    };
    let layers = sandbox::builtin::install(&state_dir)?[0].1.layers.clone();
    let mut crun = Crun::start(&tools.scratch.join("crun"), &program(&state_dir)?)?;
    let (sender, events) = mpsc::channel();
    let launcher = Launcher::new(config, sender)?;
    let plan = plan(layers);
    let [mut pooled, mut cold, mut peer, mut peer_again] = [const { Vec::new() }; 4];
    for _ in 0..RUNS {
        thread::sleep(IDLE);
        let parked = launcher.park(UID_BASE)?;
        // As from a pool: parked a while before it is wanted.
        thread::sleep(IDLE);
        pooled.push(ms(one_start(parked, &plan, &events)?));
        thread::sleep(IDLE);
        peer.push(crun.one_start()?);
        thread::sleep(IDLE);
        let start = Instant::now();
        let parked = launcher.park(UID_BASE)?;
        let parking = start.elapsed();
        cold.push(ms(parking + one_start(parked, &plan, &events)?));
        thread::sleep(IDLE);
        peer_again.push(crun.one_start()?);
    }
    let row = |promise, aim, ours, peer| Row {
        promise,
        aim,
        unit: "ms",
        ours: Spread::of(ours),
        peer: Some(("crun", Spread::of(peer))),
    };
    Ok(vec![
        row("container start to first byte, from the pool", Aim::OfPeer(0.25), pooled, peer),
        row("container start to first byte, no pool", Aim::None, cold, peer_again),
    ])
}

/// The program of the one built-in layer.
fn program(state_dir: &std::path::Path) -> Outcome<PathBuf> {
    let layer = std::fs::read_dir(state_dir.join("layers"))?.next().ok_or("no layer was installed")??;
    Ok(layer.path().join("hello"))
}

/// From the plan until the first byte, then back to nothing.
fn one_start(parked: Parked, plan: &SandboxPlan, events: &mpsc::Receiver<Event>) -> Outcome<Duration> {
    use std::os::fd::AsFd;

    let netns = parked.netns().try_clone_to_owned()?;
    let (ready, go) = mpsc::channel();
    let client = thread::spawn(move || {
        let entered = move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network));
        ready.send(()).ok();
        entered.map(|()| first_byte())
    });
    go.recv()?;
    let start = Instant::now();
    let running = parked.launch(&WorkloadId("bench".into()), plan)?;
    let took = client.join().map_err(|_| "the client panicked")?? - start;
    stop(&running, events)?;
    Ok(took)
}

/// Asks until an answer comes; when its first byte was there.
pub fn first_byte() -> Instant {
    loop {
        if let Ok(mut stream) = TcpStream::connect((Ipv4Addr::LOCALHOST, PORT))
            && stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").is_ok()
            && stream.read_exact(&mut [0]).is_ok()
        {
            return Instant::now();
        }
        thread::sleep(Duration::from_micros(100));
    }
}

fn stop(running: &Running, events: &mpsc::Receiver<Event>) -> Outcome<()> {
    running.stop(Duration::ZERO)?;
    while !matches!(events.recv()?.event, SandboxEvent::Exited { .. }) {}
    Ok(())
}

fn plan(layers: Vec<String>) -> SandboxPlan {
    SandboxPlan {
        incarnation: 1,
        attach: Attach::Vpc {
            network: NetworkId(1),
            address: Ipv4Addr::new(10, 0, 0, 2),
            gateway: Ipv4Addr::new(10, 0, 0, 1),
            mtu: 1460,
        },
        rootfs: Rootfs::Layers(layers),
        process: Process::Run {
            argv: vec!["/hello".into()],
            env: vec![("PORT".into(), PORT.to_string())],
            cwd: "/".into(),
            user: String::new(),
        },
        hostname: "bench".into(),
        search: Vec::new(),
        limits: SandboxLimits { cpu_millis: 1_000, memory_bytes: MEMORY_BYTES, pids: PIDS },
        uid_base: UID_BASE,
    }
}
