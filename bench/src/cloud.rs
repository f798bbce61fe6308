//! A whole cloud from outside: how soon it is ready, what it takes when nothing happens, how soon a page comes.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use tombolo::{
    client::Client,
    journey::{self, CONSUMER, PRODUCER, Ranges},
};

use crate::{
    Outcome, Tools, ms,
    report::{Aim, Row, Spread},
};

const CLOUD: &str = "bench";
const STATE: &str = "/var/lib/tombolo/bench";
const RUNS: usize = 9;
/// Changes that are measured, each time.
const MORE: usize = 99;
/// After this a cloud that is left alone has finished what it began.
const SETTLE: Duration = Duration::from_secs(3);

/// A cloud that goes down when this value is dropped.
struct Up {
    process: Child,
    door: String,
    /// From the start of the program until its ready line could be read.
    took: Duration,
}

impl Up {
    fn start(tombolo: &Path, more: &[&str]) -> Outcome<Up> {
        let start = Instant::now();
        let mut command = Command::new(tombolo);
        command.args(["up", "--leash", "--cloud", CLOUD]).args(more);
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let out = process.stdout.take().ok_or("no standard output")?;
        let ready = BufReader::new(out).lines().next().transpose()?.unwrap_or_default();
        let took = start.elapsed();
        let door = ready.rsplit("http://").next().unwrap_or_default().to_owned();
        let up = Up { process, door, took };
        if ready.starts_with("ready in ") { Ok(up) } else { Err(format!("not a ready line: {ready:?}").into()) }
    }

    fn client(&self) -> Outcome<Client> {
        let token = fs::read_to_string(Path::new(STATE).join("control/admin-token"))?;
        Ok(Client { door: self.door.parse()?, token: token.trim().to_owned() })
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        // Its standard input is its leash.
        drop(self.process.stdin.take());
        let _ = self.process.wait();
    }
}

pub fn ready(tools: &Tools) -> Outcome<Vec<Row>> {
    let [mut ephemeral, mut first, mut again] = [const { Vec::new() }; 3];
    for _ in 0..RUNS {
        ephemeral.push(ms(Up::start(&tools.tombolo, &["--ephemeral"])?.took));
        first.push(ms(Up::start(&tools.tombolo, &[])?.took));
        again.push(ms(Up::start(&tools.tombolo, &[])?.took));
        fs::remove_dir_all(STATE)?;
    }
    let row =
        |promise, times| Row { promise, aim: Aim::AtMost(200.0), unit: "ms", ours: Spread::of(times), peer: None };
    Ok(vec![
        row("tombolo up to ready, ephemeral", ephemeral),
        row("tombolo up to ready, first start", first),
        row("tombolo up to ready, state is there", again),
    ])
}

pub fn memory(tools: &Tools) -> Outcome<Vec<Row>> {
    let (mut idle, mut used) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        let up = Up::start(&tools.tombolo, &["--ephemeral"])?;
        thread::sleep(SETTLE);
        idle.push(proportional_mib()?);
        let client = up.client()?;
        for project in [PRODUCER, CONSUMER] {
            journey::create_project(&client, project)?;
            journey::enable(&client, project, &["run.googleapis.com", "compute.googleapis.com"])?;
        }
        journey::deploy(&client, "internal")?;
        journey::create_network(&client, CONSUMER, "consumer-vpc")?;
        journey::create_subnet(&client, CONSUMER, "consumer-vpc", "consumer-subnet", Ranges::Apart.consumer(), None)?;
        journey::create_vm(&client, "test-vm", None)?;
        thread::sleep(SETTLE);
        used.push(proportional_mib()?);
    }
    let row =
        |promise, sizes| Row { promise, aim: Aim::AtMost(40.0), unit: "MiB", ours: Spread::of(sizes), peer: None };
    Ok(vec![row("memory of an idle cloud", idle), row("memory with one VM and one service", used)])
}

/// One endpoint more through the public door, from the call to its operation's DONE, where some are and where many are.
pub fn changes(tools: &Tools) -> Outcome<Vec<Row>> {
    let up = Up::start(&tools.tombolo, &["--ephemeral"])?;
    let client = up.client()?;
    for project in [PRODUCER, CONSUMER] {
        journey::create_project(&client, project)?;
        journey::enable(&client, project, &["run.googleapis.com", "compute.googleapis.com"])?;
    }
    journey::deploy(&client, "internal-and-cloud-load-balancing")?;
    journey::create_network(&client, PRODUCER, "producer-vpc")?;
    journey::create_network(&client, CONSUMER, "consumer-vpc")?;
    for (name, range, purpose) in [
        ("producer-subnet", "10.0.0.0/24", None),
        ("producer-proxy-subnet", "10.0.2.0/24", Some("REGIONAL_MANAGED_PROXY")),
        ("producer-psc-subnet", "10.8.0.0/16", Some("PRIVATE_SERVICE_CONNECT")),
    ] {
        journey::create_subnet(&client, PRODUCER, "producer-vpc", name, range, purpose)?;
    }
    journey::create_subnet(&client, CONSUMER, "consumer-vpc", "consumer-subnet", "10.1.0.0/16", None)?;
    journey::create_load_balancer(&client)?;
    journey::publish(&client, &[(CONSUMER, 5_000)])?;
    let mut there = 0;
    let mut measured = Vec::new();
    for existing in [1, 1_000, 3_000] {
        let mut samples = Vec::new();
        while there < existing + MORE {
            let start = Instant::now();
            journey::create_endpoint_named(&client, &format!("endpoint-{there}"))?;
            if there >= existing {
                samples.push(ms(start.elapsed()));
            }
            there += 1;
        }
        measured.push(Spread::of(samples));
    }
    let [few, many, more] = <[Spread; 3]>::try_from(measured).map_err(|_| "measured three times")?;
    let row = |promise, ours| Row {
        promise,
        aim: Aim::OfPeer(1.5),
        unit: "ms",
        ours,
        peer: Some(("where 1 is", few.clone())),
    };
    Ok(vec![
        row("an endpoint more, call to DONE, at 1,000", many),
        row("an endpoint more, call to DONE, at 3,000", more),
    ])
}

/// Memory of all our processes of the cloud, each shared page counted once. Source: `/proc/PID/smaps_rollup`, Pss.
fn proportional_mib() -> Outcome<f64> {
    let mut kib = 0.0;
    for entry in fs::read_dir("/proc")? {
        let dir = entry?.path();
        let words = fs::read(dir.join("cmdline")).unwrap_or_default();
        let mut words = words.split(|b| *b == 0);
        let ours = words.next().is_some_and(|first| {
            let name = first.rsplit(|b| *b == b'/').next().unwrap_or_default();
            // A shim is started through the supervisor's link to its own program.
            name.starts_with(b"tombolo") || name == b"exe"
        });
        if !ours || !words.any(|word| word == CLOUD.as_bytes()) {
            continue;
        }
        // A process may end while we look.
        let rollup = fs::read_to_string(dir.join("smaps_rollup")).unwrap_or_default();
        let pss = rollup.lines().find_map(|l| l.strip_prefix("Pss:")).unwrap_or("0 kB");
        kib += pss.trim().trim_end_matches(" kB").parse::<f64>()?;
    }
    if kib == 0.0 { Err("no process of the cloud was found".into()) } else { Ok(kib / 1024.0) }
}

pub fn journey(tools: &Tools) -> Outcome<Vec<Row>> {
    let mut times = Vec::new();
    for _ in 0..RUNS {
        let output = Command::new(&tools.tombolo).arg("demo").stdin(Stdio::null()).output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        let last = text.lines().find_map(|l| l.strip_prefix("First API call to first page: "));
        let time = last
            .and_then(|l| l.split(' ').next())
            .ok_or_else(|| format!("the demo did not end well: {}", String::from_utf8_lossy(&output.stderr)))?;
        times.push(time.parse()?);
    }
    let ours = Spread::of(times);
    Ok(vec![Row {
        promise: "walkthrough: first API call to first 200",
        aim: Aim::AtMost(2_000.0),
        unit: "ms",
        ours,
        peer: None,
    }])
}
