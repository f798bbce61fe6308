//! What the network costs, as ratios within one run: attaching a VM where N are attached already, adding an endpoint
//! where N exist, and a round trip through an endpoint against a bare cable. Run as root, on an idle machine:
//! `cargo run --release -p lab --example bench_net`.

use std::{
    io::{self, Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

use host::{
    names::{self, IfName},
    net::{cable, kernel::Space},
    netlink::route::{self, End},
    netns::{Netns, Pins},
};
use lab::{Lab, plan};
use model::{
    id::{NetworkId, WorkloadId},
    planned::host::{Attach, PublishedEndpoint},
};

const SHOP: NetworkId = NetworkId(1);
const BANK: NetworkId = NetworkId(2);
const VIP: &str = "10.0.1.2:80";
const SAMPLES: u32 = 50;
const ROUNDS: usize = 7;
const TRIPS: u32 = 5_000;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    attach()?;
    endpoints()?;
    round_trips()?;
    Ok(())
}

fn median(mut samples: Vec<Duration>) -> Duration {
    samples.sort_unstable();
    samples[samples.len() / 2]
}

fn attach() -> Result<(), Box<dyn std::error::Error>> {
    let mut lab = Lab::new();
    lab.hands().apply_vpc(SHOP, &plan::vpc(&[]))?;
    let pins = Pins::under(&lab.run_dir().join("vms"))?;
    let mut attached = 0;
    let mut base = None;
    for existing in [0, 100, 500] {
        let mut samples = Vec::new();
        while attached < existing + SAMPLES {
            let name = format!("vm-{attached}");
            let start = Instant::now();
            let netns = pins.create(&name)?;
            let address = Ipv4Addr::from(0x0a00_0002 + attached);
            let gateway = Ipv4Addr::new(10, 0, 0, 1);
            let attach = Attach::Vpc { network: SHOP, address, gateway, mtu: 1_460 };
            lab.hands().wire(&WorkloadId(name), &attach, netns)?;
            if attached >= existing {
                samples.push(start.elapsed());
            }
            attached += 1;
        }
        let median = median(samples);
        let ratio = median.as_secs_f64() / base.get_or_insert(median).as_secs_f64();
        println!("attach a vm, {existing:>4} attached: {median:>10.1?}  {ratio:.2} of the first");
    }
    Ok(())
}

fn endpoints() -> Result<(), Box<dyn std::error::Error>> {
    let mut lab = Lab::new();
    lab.hands().apply_vpc(SHOP, &plan::vpc(&[]))?;
    let many = |count: u32| -> Vec<(u64, PublishedEndpoint)> {
        let at = |base: u32, n: u32| Ipv4Addr::from(base + n).to_string();
        let endpoint = |n| plan::published(SHOP.0, &at(0x0a01_0000, n), &at(0x0a02_0000, n), VIP);
        (0..count).map(|n| (u64::from(n), endpoint(n))).collect()
    };
    let mut base = None;
    for existing in [1, 1_000, 10_000] {
        lab.hands().apply_vpc(BANK, &plan::with_published(plan::vpc(&[]), VIP, &many(existing)))?;
        let mut samples = Vec::new();
        for more in 1..=7 {
            let plan = plan::with_published(plan::vpc(&[]), VIP, &many(existing + more));
            let start = Instant::now();
            lab.hands().apply_vpc(BANK, &plan)?;
            samples.push(start.elapsed());
        }
        let median = median(samples);
        let ratio = median.as_secs_f64() / base.get_or_insert(median).as_secs_f64();
        println!("add an endpoint, {existing:>6} there: {median:>10.1?}  {ratio:.2} of the first");
    }
    Ok(())
}

/// Pings one byte to and fro; the mean of the best round.
fn round_trips() -> Result<(), Box<dyn std::error::Error>> {
    let mut lab = Lab::new();
    let endpoint = plan::published(SHOP.0, "10.0.0.5", "10.0.3.2", VIP);
    lab.hands().apply_vpc(BANK, &plan::with_published(plan::vpc(&[]), VIP, &[(1, endpoint)]))?;
    let shop = plan::with_endpoint(plan::vpc(&[("till", "10.0.0.2")]), "10.0.0.5", Some(BANK.0));
    lab.hands().apply_vpc(SHOP, &shop)?;
    let till = lab.vm(SHOP.0, "till", "10.0.0.2");
    let listener = lab.hands().listen(BANK, VIP.parse()?)??;
    let mut psc = ping_pong(TcpListener::from(listener), || till.connect("10.0.0.5:80"))?;

    let pins = Pins::under(&lab.run_dir().join("vms"))?;
    let (here, there) = bare_cable(&pins)?;
    let listener = there.run(|| TcpListener::bind("10.9.0.2:80"))??;
    let mut direct =
        ping_pong(listener, || here.run(|| TcpStream::connect("10.9.0.2:80")).map_err(io::Error::other)?)?;

    let mut best = [Duration::MAX; 2];
    for _ in 0..ROUNDS {
        for (stream, best) in [&mut direct, &mut psc].into_iter().zip(&mut best) {
            *best = (*best).min(trips(stream)?);
        }
    }
    let ratio = best[1].as_secs_f64() / best[0].as_secs_f64();
    println!("round trip: bare cable {:.1?}, through an endpoint {:.1?}: {ratio:.2} of it", best[0], best[1]);
    Ok(())
}

fn ping_pong(listener: TcpListener, connect: impl FnOnce() -> io::Result<TcpStream>) -> io::Result<TcpStream> {
    listener.set_nonblocking(false)?;
    let server = thread::spawn(move || listener.accept());
    let stream = connect()?;
    let (mut other, _) = server.join().map_err(|_| io::Error::other("the server panicked"))??;
    other.set_nodelay(true)?;
    stream.set_nodelay(true)?;
    thread::spawn(move || {
        let mut byte = [0];
        while other.read_exact(&mut byte).and_then(|()| other.write_all(&byte)).is_ok() {}
    });
    Ok(stream)
}

fn trips(stream: &mut TcpStream) -> io::Result<Duration> {
    let mut byte = [7];
    let start = Instant::now();
    for _ in 0..TRIPS {
        stream.write_all(&byte)?;
        stream.read_exact(&mut byte)?;
    }
    Ok(start.elapsed() / TRIPS)
}

/// Two namespaces with one cable between them and nothing else.
fn bare_cable(pins: &Pins) -> Result<(Netns, Netns), Box<dyn std::error::Error>> {
    let [mut a, mut b] = [Space::enter(pins.create("bare-a")?)?, Space::enter(pins.create("bare-b")?)?];
    let [near, far]: [IfName; 2] = names::mux();
    let end = |name: &IfName, mac| End { name: name.clone(), mac, mtu: 1_460, index: None };
    a.lay(&end(&near, cable::ROUTER_MAC), &end(&far, cable::MUX_MAC), Some(&mut b))?;
    for (space, name, other, mac, own, peer) in [
        (&mut a, &near, &far, cable::MUX_MAC, Ipv4Addr::new(10, 9, 0, 1), Ipv4Addr::new(10, 9, 0, 2)),
        (&mut b, &far, &near, cable::ROUTER_MAC, Ipv4Addr::new(10, 9, 0, 2), Ipv4Addr::new(10, 9, 0, 1)),
    ] {
        let index = space.links().index(name).ok_or_else(|| format!("no cable to {other}"))?;
        let to = route::Route::host(peer, route::Hop::Link(name.clone()));
        let neighbour = route::Neighbour { at: name.clone(), address: peer.into(), mac };
        let requests = [
            Some(route::add_address(index, own.into())),
            route::set_neighbour(&neighbour, space.links()),
            route::set_route(&to, space.links()),
        ];
        space.requests(requests.into_iter().flatten().map(|m| ("lay a bare cable".to_owned(), m)).collect())?;
    }
    let opened = |name| -> Result<Netns, Box<dyn std::error::Error>> { Ok(pins.open(name)?.ok_or("just made")?) };
    Ok((opened("bare-a")?, opened("bare-b")?))
}
