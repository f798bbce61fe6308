//! The truth about each hop: captures on the interfaces that a call passes, opened before it is made.

use std::{
    fmt,
    net::IpAddr,
    path::Path,
    time::{Duration, Instant, SystemTime},
};

use host::{
    capture::{Capture, Frame, Headers},
    names,
    netns::Pins,
};
use model::id::{NetworkId, WorkloadId};
use tombolo::{
    client::Client,
    journey::{CONSUMER, PRODUCER},
};

use crate::{Outcome, cloud::Dirs};

/// A frame is read from the wire a moment after it has passed.
const SETTLE_MAX: Duration = Duration::from_secs(5);

/// One place that the call passes.
struct Post {
    what: &'static str,
    /// Namespace and interface, for whoever wants to look again.
    place: String,
    capture: Capture,
}

pub struct Watch {
    posts: Vec<Post>,
    fabric: Vec<Post>,
}

impl Watch {
    /// Opens the captures; what is made after this is seen.
    pub fn start(dirs: &Dirs, client: &Client, vm: &str) -> Outcome<Watch> {
        let pins = Pins::under(&dirs.run)?;
        let consumer = network_id(client, CONSUMER, "consumer-vpc")?;
        let producer = network_id(client, PRODUCER, "producer-vpc")?;
        let open = |what, namespace: String, name: names::IfName| -> Outcome<Post> {
            let netns = pins.open(&namespace)?.ok_or_else(|| format!("there is no namespace {namespace}"))?;
            let capture = Capture::start(&netns, &name)?;
            Ok(Post { what, place: format!("{namespace} {name}"), capture })
        };
        let vm = WorkloadId(vm.to_owned());
        let posts = vec![
            open("leaves the VM", names::vpc_ns(consumer), names::port(&vm))?,
            open("enters the producer's network", names::vpc_ns(producer), names::incoming(consumer))?,
            open("reaches the load balancer", names::edge_ns(producer), names::to_vpc())?,
        ];
        let mut fabric = Vec::new();
        for instance in instances(dirs)? {
            fabric.push(open("reaches the service", names::FABRIC_NS.to_owned(), names::port(&instance))?);
        }
        Ok(Watch { posts, fabric })
    }

    /// The opening segment of the call at each hop.
    pub fn hops(&self, vm: &str, endpoint: &str, vip: &str) -> Outcome<Hops> {
        let (vm, endpoint, vip): (IpAddr, IpAddr, IpAddr) = (vm.parse()?, endpoint.parse()?, vip.parse()?);
        let deadline = Instant::now() + SETTLE_MAX;
        loop {
            let mut rows: Vec<Row> =
                self.posts.iter().filter_map(|post| row(post, |h| h.dst == endpoint || h.dst == vip)).collect();
            rows.extend(self.fabric.iter().find_map(|post| row(post, |h| h.dst_port == 8080)));
            if rows.len() == self.posts.len() + 1 || Instant::now() > deadline {
                return Ok(Hops { rows, vm, endpoint, vip });
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    pub fn write(&self, dir: &Path) -> Outcome<()> {
        std::fs::create_dir_all(dir)?;
        for (number, post) in self.posts.iter().chain(&self.fabric).enumerate() {
            post.capture.write_pcap(&dir.join(format!(
                "{}-{}.pcap",
                number + 1,
                post.place.replace([' ', '/'], "-")
            )))?;
        }
        Ok(())
    }
}

fn row(post: &Post, wanted: impl Fn(&Headers) -> bool) -> Option<Row> {
    let opening = |frame: &Frame| frame.headers().filter(|h| h.opens() && wanted(h)).map(|h| (frame.at, h));
    let (at, headers) = post.capture.frames().iter().find_map(opening)?;
    Some(Row { what: post.what, place: post.place.clone(), at, headers })
}

fn network_id(client: &Client, project: &str, name: &str) -> Outcome<NetworkId> {
    let network = client.get(&format!("projects/{project}/global/networks/{name}"))?;
    let id = network["id"].as_str().and_then(|id| id.parse().ok()).ok_or("a network without an id")?;
    Ok(NetworkId(id))
}

/// Container instances that run: each has a shim with a socket.
fn instances(dirs: &Dirs) -> Outcome<Vec<WorkloadId>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dirs.run.join("shim"))? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if let Some(id) = name.strip_suffix(".sock").filter(|id| id.starts_with("run-")) {
            found.push(WorkloadId(id.to_owned()));
        }
    }
    Ok(found)
}

struct Row {
    what: &'static str,
    place: String,
    at: SystemTime,
    headers: Headers,
}

/// What was seen on the wire.
pub struct Hops {
    rows: Vec<Row>,
    vm: IpAddr,
    endpoint: IpAddr,
    vip: IpAddr,
}

impl Hops {
    /// Whether each hop shows what it must: the demo does not end well with a table that is wrong.
    pub fn check(&self) -> Outcome<()> {
        let [vm, link, balancer, service] = self.rows.as_slice() else {
            return Err(format!("the call was seen at {} of 4 hops", self.rows.len()).into());
        };
        let wanted = [
            (vm, vm.headers.src == self.vm && vm.headers.dst == self.endpoint),
            (link, link.headers.src == self.vm && link.headers.dst == self.endpoint),
            (balancer, is_nat(balancer.headers.src) && balancer.headers.dst == self.vip),
            (service, carried(service.headers.src) == Some(balancer.headers.src)),
        ];
        match wanted.iter().find(|(_, ok)| !ok) {
            None => Ok(()),
            Some((row, _)) => Err(format!("{}: saw {} → {}", row.what, row.headers.src, row.headers.dst).into()),
        }
    }
}

/// The producer's NAT subnet in the walkthrough is 10.0.3.0/24.
fn is_nat(address: IpAddr) -> bool {
    matches!(address, IpAddr::V4(v4) if v4.octets()[..3] == [10, 0, 3])
}

/// The IPv4 address in the low 32 bits of `fda3:e722:ac3:…`.
fn carried(address: IpAddr) -> Option<IpAddr> {
    let IpAddr::V6(v6) = address else { return None };
    let segments = v6.segments();
    let ours = segments[..3] == [0xfda3, 0xe722, 0x0ac3];
    let low = u32::from(segments[6]) << 16 | u32::from(segments[7]);
    ours.then(|| IpAddr::V4(low.into()))
}

impl fmt::Display for Hops {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let start = self.rows.first().map(|row| row.at);
        writeln!(f, "  {:<31} {:<40} {:<30} {:>8}  captured on", "the call", "source", "destination", "µs")?;
        for row in &self.rows {
            let since = start.and_then(|s| row.at.duration_since(s).ok()).unwrap_or_default();
            let h = &row.headers;
            let (source, destination) = (end(h.src, h.src_port), end(h.dst, h.dst_port));
            writeln!(f, "  {:<31} {source:<40} {destination:<30} {:>8}  {}", row.what, since.as_micros(), row.place)?;
            if let Some(v4) = carried(h.src) {
                writeln!(f, "  {:<31} (its low 32 bits are {v4})", "")?;
            }
        }
        Ok(())
    }
}

fn end(address: IpAddr, port: u16) -> String {
    match address {
        IpAddr::V4(v4) => format!("{v4}:{port}"),
        IpAddr::V6(v6) => format!("[{v6}]:{port}"),
    }
}
