//! How long a container takes from the decision to start it until the first byte of its answer, without the network
//! around it: the client sits in the sandbox's own network namespace. Run as root:
//! `cargo run -p sandbox --example bench_start -- target/debug/sandbox [RUNS] [IDLE_MS]`.

use std::{
    error::Error,
    io::{Read, Write},
    net::{Ipv4Addr, TcpStream},
    os::fd::{AsFd, BorrowedFd},
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

const UID_BASE: u32 = 3_000_000_000;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let shim = arguments.next().ok_or("the program with the shim role is needed")?;
    let runs = arguments.next().map_or(Ok(30), |n| n.parse())?;
    // An idle machine is slower: control groups and namespaces wait for the kernel's grace periods.
    let idle = Duration::from_millis(arguments.next().map_or(Ok(250), |n| n.parse())?);
    let dir = std::env::temp_dir().join(format!("tombolo-bench-{}", std::process::id()));
    let measured = measure(&shim, &dir, runs, idle);
    std::fs::remove_dir_all(&dir)?;
    measured
}

fn measure(shim: &str, dir: &std::path::Path, runs: usize, idle: Duration) -> Result<(), Box<dyn Error>> {
    let config = Config {
        cloud: "bench".into(),
        run_dir: dir.join("run"),
        state_dir: dir.join("state"),
        shim_argv: vec![PathBuf::from(shim).into(), "shim".into()],
    };
    let layers = sandbox::builtin::install(&config.state_dir)?[0].1.layers.clone();
    let (sender, events) = mpsc::channel();
    let launcher = Launcher::new(config, sender)?;
    let plan = plan(layers);
    let (mut parks, mut launches, mut claims, mut colds, mut ends) = (vec![], vec![], vec![], vec![], vec![]);
    for run in 0..runs {
        thread::sleep(idle);
        let start = Instant::now();
        let parked = launcher.park(UID_BASE)?;
        parks.push(start.elapsed());
        // Claimed after a pause, as from a pool, in every second run; at once in the others.
        let cold = run % 2 == 0;
        if !cold {
            thread::sleep(idle);
        }
        let claim = Instant::now();
        let (running, first_byte) = race(parked, &plan, &mut launches)?;
        if cold {
            colds.push(first_byte - start);
        } else {
            claims.push(first_byte - claim);
        }
        ends.push(stop(&running, &events)?);
    }
    for (what, times) in [
        ("park: namespaces, control groups, /proc, /dev", parks),
        ("launch: plan to exec", launches),
        ("parked claim to first byte", claims),
        ("cold start to first byte", colds),
        ("kill to everything removed", ends),
    ] {
        print(what, times);
    }
    Ok(())
}

/// Launches, and asks from inside the network namespace until an answer comes. Returns when its first byte came.
fn race(
    parked: Parked,
    plan: &SandboxPlan,
    launches: &mut Vec<Duration>,
) -> Result<(Running, Instant), Box<dyn Error>> {
    let netns = parked.netns().try_clone_to_owned()?;
    let (ready, go) = mpsc::channel();
    let client = thread::spawn(move || {
        let entered = enter(netns.as_fd());
        ready.send(()).ok();
        entered.map(|()| ask())
    });
    go.recv()?;
    let start = Instant::now();
    let running = parked.launch(&WorkloadId("bench".into()), plan)?;
    launches.push(start.elapsed());
    Ok((running, client.join().map_err(|_| "the client panicked")??))
}

fn enter(netns: BorrowedFd<'_>) -> rustix::io::Result<()> {
    move_into_link_name_space(netns, Some(LinkNameSpaceType::Network))
}

fn ask() -> Instant {
    loop {
        if let Ok(mut stream) = TcpStream::connect((Ipv4Addr::LOCALHOST, 8080))
            && stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").is_ok()
            && stream.read_exact(&mut [0]).is_ok()
        {
            return Instant::now();
        }
        thread::sleep(Duration::from_micros(100));
    }
}

fn stop(running: &Running, events: &mpsc::Receiver<Event>) -> Result<Duration, Box<dyn Error>> {
    let start = Instant::now();
    running.stop(Duration::ZERO)?;
    while !matches!(events.recv()?.event, SandboxEvent::Exited { .. }) {}
    Ok(start.elapsed())
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
            env: vec![("PORT".into(), "8080".into())],
            cwd: "/".into(),
            user: String::new(),
        },
        hostname: "bench".into(),
        search: Vec::new(),
        limits: SandboxLimits { cpu_millis: 1_000, memory_bytes: 512 << 20, pids: 1_024 },
        uid_base: UID_BASE,
    }
}

fn print(what: &str, mut times: Vec<Duration>) {
    times.sort();
    let at = |percent: usize| times.get((times.len() * percent / 100).min(times.len().saturating_sub(1)));
    let ms = |percent| at(percent).map_or(f64::NAN, |d| d.as_secs_f64() * 1e3);
    println!("{what:<48} p50 {:7.2} ms   p90 {:7.2} ms   runs {}", ms(50), ms(90), times.len());
}
