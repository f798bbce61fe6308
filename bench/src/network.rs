//! What the network costs: attaching a VM where many are attached, a round trip through an endpoint against a bare cable,
//! adding an endpoint where many exist. Made by the host's own code, in a laboratory's namespaces.

use std::{
    io::{self, Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
    sync::mpsc::sync_channel,
    thread,
    time::{Duration, Instant},
};

use host::{
    names::{self, IfName},
    net::{cable, flow, kernel::Space},
    netlink::route::{self, End},
    netns::{Netns, Pins},
};
use lab::{Lab, plan};
use model::{
    id::{EndpointId, NetworkId, WorkloadId},
    planned::host::{Attach, VpcChange, VpcPlan},
};

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::{
    Outcome, Tools, ms,
    report::{Aim, Row, Spread},
    us,
};

const SHOP: NetworkId = NetworkId(1);
const BANK: NetworkId = NetworkId(2);
const VIP: &str = "10.0.1.2:80";
/// Attaches, each time as many as are then measured.
const SAMPLES: u32 = 50;
/// Round trips: rounds in which both take turns, and trips in each.
const ROUNDS: usize = 15;
const TRIPS: u32 = 2_000;

/// One VM more: its namespace, its cable, its port at the router.
pub fn attach(_: &Tools) -> Outcome<Vec<Row>> {
    let mut lab = Lab::new();
    lab.hands().apply_vpc(SHOP, &plan::vpc(&[]))?;
    let pins = Pins::under(&lab.run_dir().join("vms"))?;
    let mut attached = 0;
    let mut measured = Vec::new();
    for existing in [0, 1_000] {
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
                samples.push(ms(start.elapsed()));
            }
            attached += 1;
        }
        measured.push(Spread::of(samples));
    }
    let [first, many] = <[Spread; 2]>::try_from(measured).map_err(|_| "measured twice")?;
    let promise = "attach a VM where 1,000 are attached";
    Ok(vec![Row { promise, aim: Aim::AtMost(2.0), unit: "ms", ours: many, peer: Some(("the first 50", first)) }])
}

pub fn endpoints(_: &Tools) -> Outcome<Vec<Row>> {
    let mut lab = Lab::new();
    lab.hands().apply_vpc(SHOP, &plan::vpc(&[]))?;
    let at = |base: u32, n: u32| Ipv4Addr::from(base + n).to_string();
    let endpoint = |n: u32| plan::published(SHOP.0, &at(0x0a01_0000, n), &at(0x0a02_0000, n), VIP);
    let mut rows = Vec::new();
    let mut first: Vec<f64> = Vec::new();
    for (existing, promise) in [
        (1, ""),
        (1_000, "apply one endpoint more where 1,000 are"),
        (10_000, "apply one endpoint more where 10,000 are"),
    ] {
        let there: Vec<_> = (0..existing).map(|n| (u64::from(n), endpoint(n))).collect();
        lab.hands().apply_vpc(BANK, &plan::with_published(plan::vpc(&[]), VIP, &there))?;
        let mut samples = Vec::new();
        for more in existing..existing + 99 {
            let published = [(EndpointId(more.into()), Some(endpoint(more)))].into();
            let change = VpcChange { published, ..VpcChange::default() };
            let start = Instant::now();
            lab.hands().change_vpc(BANK, change)?;
            samples.push(ms(start.elapsed()));
        }
        if first.is_empty() {
            first = samples;
        } else {
            let peer = Some(("where 1 is", Spread::of(first.clone())));
            rows.push(Row { promise, aim: Aim::OfPeer(1.5), unit: "ms", ours: Spread::of(samples), peer });
        }
    }
    Ok(rows)
}

/// One byte to and fro, through an endpoint and through a bare cable by turns. Firewall rules of both sides apply, flows
/// are counted, and the thread that records them listens.
pub fn round_trip(_: &Tools) -> Outcome<Vec<Row>> {
    // Both ends on one processor: what the way costs is seen, and not how long another processor takes to wake up.
    let all = sched_getaffinity(None)?;
    let mut one = CpuSet::new();
    one.set((0..CpuSet::MAX_CPU).find(|cpu| all.is_set(*cpu)).ok_or("no processor")?);
    sched_setaffinity(None, &one)?;
    let rows = compare_round_trips();
    sched_setaffinity(None, &all)?;
    rows
}

fn compare_round_trips() -> Outcome<Vec<Row>> {
    let logged = |mut plan: VpcPlan| {
        plan.settings.flow_logs = true;
        plan
    };
    let mut lab = Lab::new();
    let endpoint = plan::published(SHOP.0, "10.0.0.5", "10.0.3.2", VIP);
    lab.hands().apply_vpc(BANK, &logged(plan::with_published(plan::vpc(&[]), VIP, &[(1, endpoint)])))?;
    let shop = plan::with_endpoint(plan::vpc(&[("till", "10.0.0.2")]), "10.0.0.5", Some(BANK.0));
    lab.hands().apply_vpc(SHOP, &logged(shop))?;
    let (out, records) = sync_channel(1_024);
    let mut watches = Vec::new();
    for network in [SHOP, BANK] {
        let router = lab.hands().pins().open(&names::vpc_ns(network))?.ok_or("the router was just made")?;
        let tuning = flow::Tuning { interval: Duration::from_secs(5), events_bytes: None };
        watches.push(flow::watch(network, &router, tuning, out.clone())?);
    }
    thread::spawn(move || records.into_iter().for_each(drop));
    let till = lab.vm(SHOP.0, "till", "10.0.0.2");
    let listener = lab.hands().listen(BANK, VIP.parse()?)??;
    let mut psc = ping_pong(TcpListener::from(listener), || till.connect("10.0.0.5:80"))?;

    let pins = Pins::under(&lab.run_dir().join("vms"))?;
    let (here, there) = bare_cable(&pins)?;
    let listener = there.run(|| TcpListener::bind("10.9.0.2:80"))??;
    let mut direct =
        ping_pong(listener, || here.run(|| TcpStream::connect("10.9.0.2:80")).map_err(io::Error::other)?)?;

    let (mut through, mut bare) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        bare.push(trips(&mut direct)?);
        through.push(trips(&mut psc)?);
    }
    let peer = Some(("bare cable", Spread::of(bare)));
    let promise = "round trip through an endpoint, logs on";
    Ok(vec![Row { promise, aim: Aim::OfPeer(1.7), unit: "µs", ours: Spread::of(through), peer }])
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

/// Mean microseconds of one trip.
fn trips(stream: &mut TcpStream) -> io::Result<f64> {
    let mut byte = [7];
    let start = Instant::now();
    for _ in 0..TRIPS {
        stream.write_all(&byte)?;
        stream.read_exact(&mut byte)?;
    }
    Ok(us(start.elapsed() / TRIPS))
}

/// Two namespaces with one cable between them and nothing else.
fn bare_cable(pins: &Pins) -> Outcome<(Netns, Netns)> {
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
    let opened = |name| -> Outcome<Netns> { Ok(pins.open(name)?.ok_or("just made")?) };
    Ok((opened("bare-a")?, opened("bare-b")?))
}
