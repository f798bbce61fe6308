//! Cells applied: makes namespaces, cables and links as the plans ask, converges each namespace, opens listening
//! sockets inside. Blocking, single-threaded, idempotent: what is there already is taken over, so a restarted host
//! disturbs no living connection.

pub mod verify;
mod vpcs;

use std::{
    collections::BTreeMap,
    io,
    net::{Ipv4Addr, SocketAddrV4},
    os::fd::OwnedFd,
    path::Path,
    time::Duration,
};

use model::{
    id::{EndpointId, NetworkId, WorkloadId},
    limits,
    planned::{
        guest::Realm,
        host::{Attach, ConsumerEndpoint, FabricPlan, Reach},
    },
};
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};

use self::vpcs::Vpc;
use crate::{
    names::{self, IfName},
    net::{
        cable::{self, Cable},
        fabric,
        kernel::{KernelError, Space},
        rules::{METADATA, RELAY},
        vpc,
    },
    netlink::{
        route::{self, End, LOOPBACK},
        wire::Message,
    },
    netns::{Netns, Pins},
};

/// Connections that may wait to be accepted at a listening socket.
const BACKLOG: i32 = 4_096;

/// A silent connection of a tunnel or to a backend is asked after this whether it lives: a VM that was stopped says no farewell.
const SILENT_ASKS_AFTER: Duration = Duration::from_secs(10);
/// And so often again, each time after half as long, until it is given up.
const SILENT_ASKS: u32 = 2;

/// Settings of a VPC's router, made before it has links: nothing passes until its rules hold.
const ROUTER_SYSCTLS: &[(&str, &str)] = &[
    // Identity comes from the anti-spoofing rule; reverse paths are meaningless where ranges overlap.
    ("ipv4/conf/all/rp_filter", "0"),
    ("ipv4/conf/default/rp_filter", "0"),
    ("ipv4/conf/all/send_redirects", "0"),
    ("ipv4/conf/default/send_redirects", "0"),
    ("ipv6/conf/all/disable_ipv6", "1"),
    ("ipv6/conf/default/disable_ipv6", "1"),
    // A segment of no known connection does not make one: what idled out or was cut off stays dead.
    ("netfilter/nf_conntrack_tcp_loose", "0"),
    // Errors go to the VM that caused them and to nobody else, so each may have all of its own.
    ("ipv4/icmp_ratelimit", "0"),
];

const FABRIC_SYSCTLS: &[(&str, &str)] = &[
    ("ipv4/ip_forward", "0"),
    ("ipv6/conf/all/forwarding", "0"),
    ("ipv4/conf/all/rp_filter", "0"),
    ("ipv4/conf/default/rp_filter", "0"),
    ("ipv6/conf/all/accept_ra", "0"),
    ("ipv6/conf/default/accept_ra", "0"),
    ("ipv6/conf/default/autoconf", "0"),
    ("ipv6/conf/all/accept_dad", "0"),
    ("ipv6/conf/default/accept_dad", "0"),
    ("ipv6/conf/default/dad_transmits", "0"),
    // The proxy binds any address below the source prefixes.
    ("ipv6/ip_nonlocal_bind", "1"),
    ("ipv4/ip_local_port_range", "1024 65535"),
];

/// The proxy's namespace: connections waiting at a listener of a proxy that ends move to its successor's.
const EDGE_SYSCTLS: &[(&str, &str)] = &[("ipv4/tcp_migrate_req", "1")];

pub struct Hands {
    pins: Pins,
    spaces: BTreeMap<String, Space>,
    vpcs: BTreeMap<NetworkId, Vpc>,
    fabric: FabricPlan,
    /// Messages into namespaces that are closed again (workloads', deleted ones).
    messages_elsewhere: u64,
}

impl Hands {
    /// Hands over what is pinned below this run directory.
    pub fn open(run_dir: &Path) -> Result<Hands, KernelError> {
        Ok(Hands {
            pins: Pins::under(run_dir)?,
            spaces: BTreeMap::new(),
            vpcs: BTreeMap::new(),
            fabric: FabricPlan::default(),
            messages_elsewhere: 0,
        })
    }

    /// Netlink messages sent so far: what changes cost.
    pub fn messages_sent(&self) -> u64 {
        self.messages_elsewhere + self.spaces.values().map(Space::messages_sent).sum::<u64>()
    }

    pub fn apply_fabric(&mut self, plan: &FabricPlan) -> Result<(), KernelError> {
        self.fabric_space()?;
        self.space_mut(names::FABRIC_NS).converge(&fabric::fabric(plan))?;
        self.fabric = plan.clone();
        Ok(())
    }

    /// Makes the fabric's namespace unless it is there: shut, and ready for the proxy to live in.
    pub fn found_fabric(&mut self) -> Result<(), KernelError> {
        match self.pins.open(names::FABRIC_NS)? {
            Some(_) => self.fabric_space().map(|_| ()),
            None => self.apply_fabric(&FabricPlan::default()),
        }
    }

    /// Lays the workload's cable: one end in its realm's router, the other in `inside`.
    pub fn wire(&mut self, workload: &WorkloadId, attach: &Attach, inside: Netns) -> Result<(), KernelError> {
        let plan = cable::cable(workload, attach);
        let Cable { realm, router, workload: end, addresses, router_routes, router_neighbours, .. } = &plan;
        let mut inside = Space::enter(inside)?;
        let space = self.realm(*realm)?;
        // A cable of an earlier incarnation: its namespace may take a while to go.
        space.cut(&router.name)?;
        space.plug(router, end, Some(&mut inside))?;
        space.requests(route_requests(space, router_routes, router_neighbours))?;
        let index = inside.links().index(&end.name).unwrap_or(LOOPBACK);
        let mut requests = vec![("take lo up".to_owned(), route::up(LOOPBACK))];
        requests.extend(addresses.iter().map(|a| (format!("give address {a}"), route::add_address(index, *a))));
        requests.extend(route_requests(&inside, &plan.workload_routes, &plan.workload_neighbours));
        inside.requests(requests)?;
        inside.await_link(&end.name)?;
        self.messages_elsewhere += inside.messages_sent();
        Ok(())
    }

    /// Whether the workload's cable lies.
    pub fn is_wired(&mut self, workload: &WorkloadId, realm: Realm) -> Result<bool, KernelError> {
        Ok(self.realm(realm)?.links().index(&names::port(workload)).is_some())
    }

    /// Takes the workload's cable away; nothing happens when there is none.
    pub fn unwire(&mut self, workload: &WorkloadId, realm: Realm) -> Result<(), KernelError> {
        self.realm(realm)?.cut(&names::port(workload))
    }

    /// A TCP socket that listens on a VIP inside the proxy's namespace of the network. The plan with the VIP must have
    /// been applied.
    pub fn listen(&mut self, network: NetworkId, at: SocketAddrV4) -> Result<io::Result<OwnedFd>, KernelError> {
        let space = self.space_mut(&names::edge_ns(network));
        Ok(space.netns().run(|| tcp_listener(at))?)
    }

    /// A TCP socket that is being connected to an address in the network, from the addresses of the Identity-Aware
    /// Proxy. Its packets cross the router and its firewall like any other ingress.
    pub fn dial(&mut self, network: NetworkId, to: SocketAddrV4) -> Result<io::Result<OwnedFd>, KernelError> {
        Ok(self.relay(network)?.netns().run(|| begin_connection(RELAY, to))?)
    }

    /// A TCP socket that is being connected from the load balancer of the network to one of its backends, as the plan has
    /// both. None: no such backend.
    pub fn dial_backend(
        &mut self,
        network: NetworkId,
        endpoint: EndpointId,
    ) -> Result<Option<io::Result<OwnedFd>>, KernelError> {
        let backend = self.vpcs.get(&network).and_then(|vpc| vpc.plan().endpoints.get(&endpoint));
        let Some(&ConsumerEndpoint { address, reach: Reach::Balancer { from, port }, .. }) = backend else {
            return Ok(None);
        };
        let Some(space) = self.spaces.get(&names::edge_ns(network)) else { return Ok(None) };
        Ok(Some(space.netns().run(|| begin_connection(from, SocketAddrV4::new(address, port)))?))
    }

    /// What the metadata server needs in a realm: TCP port 80, UDP port 53, TCP port 53.
    pub fn metadata_sockets(&mut self, realm: Realm) -> Result<io::Result<[OwnedFd; 3]>, KernelError> {
        let at = |port| SocketAddrV4::new(METADATA, port);
        let open = || Ok([tcp_listener(at(80))?, udp_socket(at(53))?, tcp_listener(at(53))?]);
        Ok(self.realm(realm)?.netns().run(open)?)
    }

    /// The namespace of a realm, for captures and flow records.
    pub fn realm(&mut self, realm: Realm) -> Result<&mut Space, KernelError> {
        match realm {
            Realm::Vpc(network) => self.router(network),
            Realm::Fabric => self.fabric_space(),
        }
    }

    /// An open namespace of ours by its name.
    pub fn space(&mut self, name: &str) -> Option<&mut Space> {
        self.spaces.get_mut(name)
    }

    pub fn pins(&self) -> &Pins {
        &self.pins
    }

    // ---- routers ----

    fn router(&mut self, network: NetworkId) -> Result<&mut Space, KernelError> {
        let name = names::vpc_ns(network);
        if !self.spaces.contains_key(&name) {
            let mut space =
                self.enter(&name, &[&[("ipv4/ip_forward", "0")], ROUTER_SYSCTLS].concat(), ROUTER_SYSCTLS)?;
            loopback(&mut space)?;
            let [mux, deaf] = names::mux();
            if space.links().index(&mux).is_none() {
                let end = |name, mac| End { name, mac, mtu: cable::INNER_MTU, index: None };
                space.lay(&end(mux, cable::ROUTER_MAC), &end(deaf, cable::MUX_MAC), None)?;
            }
            self.spaces.insert(name.clone(), space);
        }
        Ok(self.space_mut(&name))
    }

    fn fabric_space(&mut self) -> Result<&mut Space, KernelError> {
        if !self.spaces.contains_key(names::FABRIC_NS) {
            let mut space = self.enter(names::FABRIC_NS, FABRIC_SYSCTLS, FABRIC_SYSCTLS)?;
            loopback(&mut space)?;
            let own = route::add_address(LOOPBACK, fabric::OWN.into());
            space.requests(vec![("give the fabric's own address".to_owned(), own)])?;
            self.spaces.insert(names::FABRIC_NS.to_owned(), space);
        }
        Ok(self.space_mut(names::FABRIC_NS))
    }

    /// Opens the pinned namespace, or makes one. A pin may be left of a start that was interrupted, so whatever is set
    /// up here is set up again, and cables that were laid are taken up.
    fn enter(&self, name: &str, new: &[(&str, &str)], adopted: &[(&str, &str)]) -> Result<Space, KernelError> {
        let Some(netns) = self.pins.open(name)? else {
            let netns = self.pins.create(name)?;
            netns.sysctls(new)?;
            return Space::enter(netns);
        };
        netns.sysctls(adopted)?;
        let mut space = Space::enter(netns)?;
        let laid: Vec<IfName> = space.links().iter().map(|(name, _)| name.clone()).filter(is_kept).collect();
        laid.iter().try_for_each(|name| space.take_up(name))?;
        Ok(space)
    }

    fn space_mut(&mut self, name: &str) -> &mut Space {
        self.spaces.get_mut(name).expect("the namespace was entered before, in the same call")
    }

    /// Made when the first tunnel into a VPC is opened: most VPCs never have one.
    fn relay(&mut self, network: NetworkId) -> Result<&mut Space, KernelError> {
        let name = names::relay_ns(network);
        if !self.spaces.contains_key(&name) {
            let mtu = self.vpcs.get(&network).map_or(limits::VPC_MTU_DEFAULT, |vpc| vpc.plan().settings.mtu);
            let mut relay = self.enter(&name, &[], &[])?;
            relay.requests(vec![("take lo up".to_owned(), route::up(LOOPBACK))])?;
            let router = self.router(network)?;
            if relay.links().index(&names::to_vpc()).is_none() {
                router.cut(&names::to_relay())?;
                let end = |name, mac| End { name, mac, mtu: u32::from(mtu), index: None };
                let here = end(names::to_relay(), cable::ROUTER_MAC);
                router.lay(&here, &end(names::to_vpc(), cable::RELAY_MAC), Some(&mut relay))?;
            }
            let (routes, neighbours) = vpc::to_relay();
            router.requests(route_requests(router, &routes, &neighbours))?;
            relay.converge(&vpc::relay())?;
            self.spaces.insert(name.clone(), relay);
        }
        Ok(self.space_mut(&name))
    }

    fn delete_space(&mut self, name: &str) -> Result<(), KernelError> {
        if let Some(space) = self.spaces.remove(name) {
            self.messages_elsewhere += space.messages_sent();
        }
        Ok(self.pins.delete(name)?)
    }
}

/// Whether the interface is an end of a cable between namespaces of ours. Workloads' cables come and go with them.
fn is_kept(name: &IfName) -> bool {
    let prefixes = [names::OUTGOING_PREFIX, names::INCOMING_PREFIX, "edge0", "iap0", "vpc0", "mux"];
    prefixes.iter().any(|prefix| name.as_str().starts_with(prefix))
}

/// `lo`, with the address at which workloads find their metadata.
fn loopback(space: &mut Space) -> Result<(), KernelError> {
    space.requests(vec![
        ("take lo up".to_owned(), route::up(LOOPBACK)),
        ("give the metadata address".to_owned(), route::add_address(LOOPBACK, METADATA.into())),
    ])
}

fn route_requests(space: &Space, routes: &[route::Route], neighbours: &[route::Neighbour]) -> Vec<(String, Message)> {
    let neighbours =
        neighbours.iter().map(|n| (format!("set neighbour {}", n.address), route::set_neighbour(n, space.links())));
    let routes =
        routes.iter().map(|r| (format!("route {}/{}", r.to, r.prefix_bits), route::set_route(r, space.links())));
    neighbours.chain(routes).filter_map(|(what, message)| Some((what, message?))).collect()
}

fn tcp_listener(at: SocketAddrV4) -> io::Result<OwnedFd> {
    let socket = shared_socket(SocketType::STREAM)?;
    // The machine's default may be one that needs pacing, which is not set up here. Where cubic is missing the default
    // serves as well, only slower.
    let _ = sockopt::set_tcp_congestion(&socket, "cubic");
    rustix::net::bind(&socket, &at)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket)
}

/// Does not wait for the other side. One that vanishes without a word is noticed by asking.
fn begin_connection(from: Ipv4Addr, to: SocketAddrV4) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?;
    let _ = sockopt::set_tcp_congestion(&socket, "cubic");
    sockopt::set_socket_keepalive(&socket, true)?;
    sockopt::set_tcp_keepidle(&socket, SILENT_ASKS_AFTER)?;
    sockopt::set_tcp_keepintvl(&socket, SILENT_ASKS_AFTER / 2)?;
    sockopt::set_tcp_keepcnt(&socket, SILENT_ASKS)?;
    rustix::net::bind(&socket, &SocketAddrV4::new(from, 0))?;
    match rustix::net::connect(&socket, &to) {
        Ok(()) | Err(rustix::io::Errno::INPROGRESS) => Ok(socket),
        Err(error) => Err(error.into()),
    }
}

fn udp_socket(at: SocketAddrV4) -> io::Result<OwnedFd> {
    let socket = shared_socket(SocketType::DGRAM)?;
    rustix::net::bind(&socket, &at)?;
    Ok(socket)
}

/// A restarted host opens the address again while the proxy still serves the socket of the one before.
fn shared_socket(kind: SocketType) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::INET, kind, flags, None)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    sockopt::set_socket_reuseport(&socket, true)?;
    Ok(socket)
}
