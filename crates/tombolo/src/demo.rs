//! `tombolo demo`: the walkthrough from nothing, on a throwaway cloud, told step by step, with the truth about each hop
//! read from the wire.

mod hops;

use std::{
    io::{BufRead, BufReader, Write},
    net::SocketAddr,
    os::unix::process::CommandExt,
    path::PathBuf,
    process::{Child, Command, ExitCode, Stdio},
    time::{Duration, Instant},
};

use serde_json::Value;
use tombolo::{
    client::Client,
    journey::{self, CONSUMER, PRODUCER, Ranges},
};

use self::hops::Watch;
use crate::{
    Outcome,
    cloud::{CloudName, Dirs},
    operator::{Answer, Ask, ask_running},
    terminal,
};

#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// Give the consumer one subnet 10.0.0.0/16 that covers every subnet of the producer
    #[arg(long)]
    pub same_ranges: bool,
    /// Keep what was captured at each hop as pcap files in this directory
    #[arg(long, value_name = "DIR")]
    pub pcap: Option<PathBuf>,
    /// Leave the cloud running until Enter is pressed
    #[arg(long)]
    pub stay: bool,
}

pub fn run(args: &Args) -> Outcome {
    if !rustix::process::geteuid().is_root() {
        return Err("the demo makes real networks and containers, which takes root: sudo -E cargo demo".into());
    }
    let ranges = if args.same_ranges { Ranges::Same } else { Ranges::Apart };
    let mut told = Told::default();
    told.title(ranges);
    let cloud = Throwaway::up()?;
    told.step("a cloud", "tombolo up --ephemeral", &format!("ready, door http://{}", cloud.client.door));
    let first_call = Instant::now();
    let scene = build(&cloud, ranges, &mut told)?;
    let first_page = call(&cloud, &scene, args, &mut told, first_call)?;
    prove_refusals(&cloud, &scene, &mut told)?;
    show_logs(&cloud, ranges, &mut told)?;
    told.end(first_page, args);
    if args.stay {
        println!("\nThe cloud stays until you press Enter. In another terminal, in this directory:");
        println!("  eval \"$(target/debug/tombolo env --cloud {})\"", cloud.name.as_str());
        println!("  gcloud compute service-attachments list --project {PRODUCER}");
        std::io::stdin().lock().read_line(&mut String::new())?;
    }
    cloud.down()?;
    Ok(ExitCode::SUCCESS)
}

/// What the steps have made.
struct Scene {
    /// The audience for ID tokens: the service's own URL.
    url: String,
    vip: String,
    endpoint: String,
    vm: String,
    vm_address: String,
}

fn build(cloud: &Throwaway, ranges: Ranges, told: &mut Told) -> Outcome<Scene> {
    let client = &cloud.client;
    for (project, apis) in [
        (PRODUCER, ["run.googleapis.com", "compute.googleapis.com"]),
        (CONSUMER, ["compute.googleapis.com", "iap.googleapis.com"]),
    ] {
        journey::create_project(client, project)?;
        journey::enable(client, project, &apis)?;
    }
    told.step(
        "two projects",
        &format!("gcloud projects create {PRODUCER}; gcloud projects create {CONSUMER}"),
        "APIs enabled",
    );

    let service = journey::deploy(client, "internal")?;
    let url = service["status"]["url"].as_str().ok_or("a service without a URL")?.to_owned();
    told.step(
        "a private service",
        "gcloud run deploy hello-service --ingress=internal --no-allow-unauthenticated",
        &format!("serving, {url}"),
    );

    let member =
        format!("serviceAccount:{}-compute@developer.gserviceaccount.com", journey::project_number(client, CONSUMER)?);
    journey::let_invoke(client, &member)?;
    told.step(
        "who may call it",
        "gcloud run services add-iam-policy-binding hello-service --role=roles/run.invoker",
        &member,
    );

    journey::create_network(client, PRODUCER, "producer-vpc")?;
    for (name, range, purpose) in [
        ("producer-subnet", "10.0.1.0/24", None),
        ("proxy-only-subnet", "10.0.2.0/24", Some("REGIONAL_MANAGED_PROXY")),
        ("producer-psc-subnet", "10.0.3.0/24", Some("PRIVATE_SERVICE_CONNECT")),
    ] {
        journey::create_subnet(client, PRODUCER, "producer-vpc", name, range, purpose)?;
    }
    told.step(
        "the producer's network",
        "gcloud compute networks create producer-vpc; … subnets create …",
        "10.0.1.0/24, 10.0.2.0/24 for proxies, 10.0.3.0/24 for NAT",
    );

    let vip = journey::create_load_balancer(client)?;
    told.step(
        "an internal load balancer",
        "gcloud compute forwarding-rules create hello-forwarding-rule …",
        &format!("address {vip}"),
    );

    journey::publish(client, &[(CONSUMER, 10)])?;
    told.step(
        "publish it",
        "gcloud compute service-attachments create hello-service-attachment …",
        &format!("accepts {CONSUMER}, at most 10 endpoints"),
    );

    journey::create_network(client, CONSUMER, "consumer-vpc")?;
    journey::create_subnet(client, CONSUMER, "consumer-vpc", "consumer-subnet", ranges.consumer(), None)?;
    let status = journey::create_endpoint(client, ranges.endpoint())?;
    told.step(
        "an endpoint in the consumer's network",
        "gcloud compute forwarding-rules create psc-endpoint …",
        &format!("{} in {}: {status}", ranges.endpoint(), ranges.consumer()),
    );
    if status != "ACCEPTED" {
        return Err(format!("the connection is {status}").into());
    }
    let vm_address = journey::create_vm(client, "test-vm", None)?;
    if ranges == Ranges::Same {
        // Machines of the consumer that own the very addresses that the producer uses.
        for (name, address) in [("vm-at-the-balancers-address", vip.as_str()), ("vm-at-the-nat-address", "10.0.3.2")] {
            journey::create_vm(client, name, Some(address))?;
        }
    }
    journey::enable_flow_logs(client)?;
    told.step(
        "a VM, without an external address",
        "gcloud compute instances create test-vm --network-interface=…,no-address",
        &format!("{vm_address}, flow logs on"),
    );
    let vm = cloud.workload("test-vm")?;
    Ok(Scene { url, vip, endpoint: ranges.endpoint().to_owned(), vm, vm_address })
}

/// The call itself, watched at every hop. Returns the time from the first API call to the page.
fn call(cloud: &Throwaway, scene: &Scene, args: &Args, told: &mut Told, since: Instant) -> Outcome<Duration> {
    let watch = Watch::start(&cloud.dirs, &cloud.client, &scene.vm)?;
    let token = cloud.in_vm(&scene.vm, &token_command(&scene.url))?;
    let page = cloud.in_vm(&scene.vm, &get(&scene.endpoint, Some(token.trim())))?;
    let took = since.elapsed();
    let title = page.split("<title>").nth(1).and_then(|rest| rest.split("</title>").next());
    let Some(title) = title else { return Err(format!("the VM got no page but: {page}").into()) };
    told.step(
        "the call",
        &format!("in test-vm: curl http://{}/ -H \"Authorization: Bearer $TOKEN\"", scene.endpoint),
        &format!("200, {title:?}"),
    );
    let hops = watch.hops(&scene.vm_address, &scene.endpoint, &scene.vip)?;
    println!("\n{hops}");
    if let Some(dir) = &args.pcap {
        watch.write(dir)?;
        println!("captures kept in {}", dir.display());
    }
    hops.check()?;
    Ok(took)
}

fn prove_refusals(cloud: &Throwaway, scene: &Scene, told: &mut Told) -> Outcome<()> {
    let status = |token: Option<&str>| cloud.in_vm(&scene.vm, &format!("{} | head -1", get(&scene.endpoint, token)));
    let other = cloud.in_vm(&scene.vm, &token_command("https://example.com"))?;
    let host = scene.url.trim_start_matches("https://");
    let good = cloud.in_vm(&scene.vm, &token_command(&scene.url))?;
    let outside = Client { door: cloud.client.door, token: good.trim().to_owned() };
    let outside = outside.get_tls(host, "/", &cloud.dirs.ca())?.status;
    let got = [
        ("without a token", "403", status(None)?),
        ("with a token for another audience", "401", status(Some(other.trim()))?),
        ("from outside, with a perfect token", "404", format!("HTTP/1.1 {outside}")),
    ];
    for (what, want, line) in &got {
        if !line.contains(want) {
            return Err(format!("{what}: wanted {want}, got {line:?}").into());
        }
    }
    let told_all: Vec<String> = got.iter().map(|(what, want, _)| format!("{want} {what}")).collect();
    told.step("refusals", "the same call with less than it takes", &told_all.join(", "));
    Ok(())
}

fn show_logs(cloud: &Throwaway, ranges: Ranges, told: &mut Told) -> Outcome<()> {
    let requests = format!("logName=projects/{PRODUCER}/logs/run.googleapis.com%2Frequests AND httpRequest.status=200");
    let entry = cloud.await_log(PRODUCER, &requests)?;
    let request = &entry["httpRequest"];
    told.step(
        "the producer's request log",
        "gcloud logging read … run.googleapis.com%2Frequests",
        &format!(
            "{} {} from {}",
            request["status"],
            request["requestUrl"].as_str().unwrap_or_default(),
            request["remoteIp"].as_str().unwrap_or_default()
        ),
    );
    let flows = format!(
        "logName=projects/{CONSUMER}/logs/compute.googleapis.com%2Fvpc_flows AND jsonPayload.connection.dest_ip=\"{}\"",
        ranges.endpoint()
    );
    let entry = cloud.await_log(CONSUMER, &flows)?;
    let c = &entry["jsonPayload"]["connection"];
    let text = |v: &Value| v.as_str().map_or_else(|| v.to_string(), str::to_owned);
    told.step(
        "the consumer's flow log",
        "gcloud logging read … compute.googleapis.com%2Fvpc_flows",
        &format!("{} → {}:{}", text(&c["src_ip"]), text(&c["dest_ip"]), text(&c["dest_port"])),
    );
    Ok(())
}

/// Asks the metadata server for an ID token, with what the machine has: curl, or the shell alone.
fn token_command(audience: &str) -> String {
    let path = format!("/computeMetadata/v1/instance/service-accounts/default/identity?audience={audience}");
    format!(
        "if command -v curl >/dev/null; then curl -sf -H 'Metadata-Flavor: Google' 'http://metadata.google.internal{path}'; \
         else exec 3<>/dev/tcp/metadata.google.internal/80; \
         printf 'GET {path} HTTP/1.0\\r\\nHost: metadata.google.internal\\r\\nMetadata-Flavor: Google\\r\\n\\r\\n' >&3; \
         sed '1,/^\\r$/d' <&3; fi"
    )
}

/// Prints the status line, the head and the body.
fn get(address: &str, token: Option<&str>) -> String {
    let header = token.map(|t| format!("Authorization: Bearer {t}"));
    let curl = header.as_ref().map(|h| format!("-H '{h}'")).unwrap_or_default();
    let raw = header.map(|h| format!("{h}\\r\\n")).unwrap_or_default();
    format!(
        "if command -v curl >/dev/null; then curl -si --max-time 20 {curl} http://{address}/; \
         else exec 3<>/dev/tcp/{address}/80; printf 'GET / HTTP/1.0\\r\\nHost: {address}\\r\\n{raw}\\r\\n' >&3; cat <&3; fi"
    )
}

/// A cloud that is gone when this value is.
struct Throwaway {
    name: CloudName,
    dirs: Dirs,
    client: Client,
    process: Child,
}

impl Throwaway {
    fn up() -> Outcome<Throwaway> {
        let name: CloudName = format!("demo{}", std::process::id() % 10_000).parse()?;
        let dirs = Dirs::of(&name);
        let mut command = Command::new("/proc/self/exe");
        command.arg0("tombolo").args(["up", "--ephemeral", "--leash", "--cloud", name.as_str()]);
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let mut lines = BufReader::new(process.stdout.take().ok_or("no standard output")?).lines();
        let ready = lines.next().transpose()?.unwrap_or_default();
        let Some(door) = ready.rsplit("http://").next().and_then(|d| d.parse::<SocketAddr>().ok()) else {
            drop(process.stdin.take());
            let _ = process.wait();
            return Err("the cloud did not come up; `tombolo doctor` says what this machine lacks".into());
        };
        let token = std::fs::read_to_string(dirs.token())?;
        Ok(Throwaway { name, dirs, client: Client { door, token: token.trim().to_owned() }, process })
    }

    fn workload(&self, vm: &str) -> Outcome<String> {
        let find = Ask::FindVm { project: Some(CONSUMER.to_owned()), name: vm.to_owned() };
        match ask_running(&self.dirs, &find)? {
            Answer::Vm { workload, .. } => Ok(workload),
            other => Err(format!("unexpected answer {other:?}").into()),
        }
    }

    fn in_vm(&self, workload: &str, script: &str) -> Outcome<String> {
        let (code, text) = terminal::output(&self.dirs.run, workload, &["bash", "-c", script])?;
        if code != 0 && text.is_empty() {
            return Err(format!("in the VM: {script}: exit code {code}").into());
        }
        Ok(text)
    }

    /// Records are written within an interval; the first answer that holds one.
    fn await_log(&self, project: &str, filter: &str) -> Outcome<Value> {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            if let Some(entry) = journey::read_logs(&self.client, project, filter)?.into_iter().next() {
                return Ok(entry);
            }
            if Instant::now() > deadline {
                return Err(format!("no log entry matches {filter}").into());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn down(mut self) -> Outcome<()> {
        self.end();
        Ok(())
    }

    fn end(&mut self) {
        // Its standard input is its leash.
        drop(self.process.stdin.take());
        let _ = self.process.wait();
    }
}

impl Drop for Throwaway {
    fn drop(&mut self) {
        self.end();
    }
}

/// The story as it is printed.
#[derive(Default)]
struct Told {
    steps: usize,
    last: Option<Instant>,
}

impl Told {
    fn title(&mut self, ranges: Ranges) {
        println!("A private service of one project, called from a VM of another, on this machine, over real packets.");
        if ranges == Ranges::Same {
            println!("Both projects use 10.0.0.0/16; VMs of the consumer own the load balancer's and the NAT address.");
        }
        println!();
        self.last = Some(Instant::now());
    }

    fn step(&mut self, what: &str, command: &str, seen: &str) {
        let took = self.last.map(|l| l.elapsed().as_millis()).unwrap_or_default();
        println!("{:>2}  {what}  ({took} ms)", self.steps);
        println!("      $ {command}");
        println!("      {seen}");
        let _ = std::io::stdout().flush();
        self.steps += 1;
        self.last = Some(Instant::now());
    }

    fn end(&self, first_page: Duration, args: &Args) {
        println!("\nFirst API call to first page: {} ms. Everything is removed again now.", first_page.as_millis());
        println!("\nGo on:");
        if !args.same_ranges {
            println!("  cargo demo --same-ranges     the same with equal addresses on both sides");
        }
        println!("  cargo demo --stay            keep the cloud and drive it with gcloud");
        println!("  tombolo up                   a cloud of your own, with state that survives");
    }
}
