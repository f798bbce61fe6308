//! Datagrams and frames: DNS from workloads, netlink from the kernel, frames between our processes.

use std::{net::Ipv4Addr, sync::OnceLock};

use guest::dns::{Transport, Zone, answer};
use host::netlink::{
    conntrack,
    wire::{Attributes, messages},
};
use model::{
    limits::DNS_UDP_BYTES_MAX,
    planned::{
        guest::{FromGuest, Names},
        host::FromHost,
    },
};

fn zone() -> &'static Zone {
    static ZONE: OnceLock<Zone> = OnceLock::new();
    ZONE.get_or_init(|| {
        let mut zone = Zone::default();
        for (zone_of, name) in [(None, "vm.c.proj-one.internal"), (Some("p.example.com"), "e.p.example.com")] {
            let addresses = vec![Ipv4Addr::new(10, 0, 0, 2)];
            zone.add(&Names { zone: zone_of.map(str::to_owned), names: vec![name.to_owned()], addresses });
        }
        zone
    })
}

/// A datagram at port 53: its answer fits, is an answer to it, and is never itself answered.
pub(crate) fn dns(input: &[u8]) {
    for transport in [Transport::Udp, Transport::Tcp] {
        let Some(reply) = answer(zone(), input, transport) else { continue };
        let max = if transport == Transport::Udp { usize::from(DNS_UDP_BYTES_MAX) } else { usize::from(u16::MAX) };
        assert!(reply.len() <= max, "an answer of {} bytes", reply.len());
        assert_eq!(reply.get(..2), input.get(..2), "an answer to something else");
        assert_eq!(answer(zone(), &reply, transport), None, "two servers would talk forever");
    }
}

/// A datagram from the kernel.
pub(crate) fn netlink(input: &[u8]) {
    for message in messages(input) {
        assert!(message.payload.len() <= input.len());
        for (_, payload) in Attributes::after(message.payload, 4).iter() {
            let inner = Attributes(payload);
            (0..32).for_each(|kind| drop((inner.text(kind), inner.u32(kind), inner.be16(kind), inner.be64(kind))));
        }
    }
    conntrack::events(input).for_each(drop);
}

/// A frame from one of our processes that talk to workloads.
pub(crate) fn ipc(input: &[u8]) {
    let _ = ipc::read::<FromGuest>(&mut &*input);
    let _ = ipc::read::<FromHost>(&mut &*input);
}
