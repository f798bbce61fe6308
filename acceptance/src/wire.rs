//! Captures at the places that a call passes.

use std::{
    net::Ipv4Addr,
    path::PathBuf,
    time::{Duration, SystemTime},
};

use host::{
    capture::{Capture, Headers},
    names::{self, IfName},
    netns::{Netns, Pins},
};
use model::id::{NetworkId, WorkloadId};

use crate::Cloud;

/// Between a frame's passing and its being read.
const SETTLE: Duration = Duration::from_millis(100);

impl Cloud {
    pub fn run_dir(&self) -> PathBuf {
        PathBuf::from(format!("/run/tombolo/{}", self.name))
    }

    pub fn state_dir(&self) -> PathBuf {
        PathBuf::from(format!("/var/lib/tombolo/{}", self.name))
    }

    #[track_caller]
    pub fn netns(&self, name: &str) -> Netns {
        let pins = Pins::under(&self.run_dir()).unwrap();
        pins.open(name).unwrap().unwrap_or_else(|| panic!("no namespace {name}"))
    }

    /// The namespaces of networks: routers, load balancers, tunnels.
    pub fn networks(&self) -> Vec<String> {
        let names = Pins::under(&self.run_dir()).and_then(|pins| pins.names()).unwrap();
        let of_a_network = |name: &String| ["vpc-", "edge-", "iap-"].iter().any(|prefix| name.starts_with(prefix));
        names.into_iter().filter(of_a_network).collect()
    }

    #[track_caller]
    pub fn watch(&self, namespace: &str, interface: &IfName) -> Watch {
        Watch(Capture::start(&self.netns(namespace), interface).unwrap())
    }

    /// The cable of a VM, at its router's end: what leaves the VM and what reaches it.
    #[track_caller]
    pub fn watch_vm(&self, network: NetworkId, vm: &WorkloadId) -> Watch {
        self.watch(&names::vpc_ns(network), &names::port(vm))
    }

    /// The Private Service Connect link at its producer's end.
    #[track_caller]
    pub fn watch_link(&self, producer: NetworkId, consumer: NetworkId) -> Watch {
        self.watch(&names::vpc_ns(producer), &names::incoming(consumer))
    }

    /// What reaches a producer's load balancers, and what they answer.
    #[track_caller]
    pub fn watch_balancer(&self, producer: NetworkId) -> Watch {
        self.watch(&names::edge_ns(producer), &names::to_vpc())
    }
}

pub struct Watch(Capture);

impl Watch {
    /// What has passed by now, all of it.
    pub fn seen(&self) -> Vec<Headers> {
        std::thread::sleep(SETTLE);
        assert_eq!(self.0.missed(), 0, "the capture is complete");
        self.0.headers()
    }

    /// When the first and the last frame passed for which `wanted` holds.
    pub fn span(&self, wanted: impl Fn(&Headers) -> bool) -> Option<(SystemTime, SystemTime)> {
        std::thread::sleep(SETTLE);
        let frames = self.0.frames();
        let times: Vec<_> = frames.iter().filter(|f| f.headers().is_some_and(|h| wanted(&h))).map(|f| f.at).collect();
        Some((*times.first()?, *times.last()?))
    }

    pub fn count(&self, wanted: impl Fn(&Headers) -> bool) -> usize {
        self.seen().iter().filter(|h| wanted(h)).count()
    }

    /// Connections that somebody tried to open here.
    pub fn opened(&self) -> Vec<Headers> {
        self.seen().into_iter().filter(Headers::opens).collect()
    }

    pub fn opened_to(&self, address: Ipv4Addr) -> usize {
        self.opened().iter().filter(|h| h.dst == address).count()
    }
}
