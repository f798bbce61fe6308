//! Cables: veth pairs with chosen names, link-layer addresses and permanent neighbours, so that the first packet
//! arrives and nobody ever asks for an address.

use std::net::{IpAddr, Ipv4Addr};

use model::{
    id::WorkloadId,
    planned::{guest::Realm, host::Attach},
};

use super::rules::{HOP, HOP6};
use crate::{
    names,
    netlink::route::{End, Hop, Mac, Neighbour, Route},
};

/// Every router's end of every cable; locally administered.
pub const ROUTER_MAC: Mac = Mac([0x02, 0x54, 0x4d, 0x42, 0, 1]);
/// A producer's end of a PSC link.
pub const INCOMING_MAC: Mac = Mac([0x02, 0x54, 0x4d, 0x42, 0, 2]);
/// The proxy namespace's end of its cable.
pub const EDGE_MAC: Mac = Mac([0x02, 0x54, 0x4d, 0x42, 0, 3]);
/// The relay namespace's end of its cable.
pub const RELAY_MAC: Mac = Mac([0x02, 0x54, 0x4d, 0x42, 0, 5]);
/// The deaf end of the mux.
pub const MUX_MAC: Mac = Mac([0x02, 0x54, 0x4d, 0x42, 0, 4]);

/// Cables between routers carry whatever either side may send. Source: VPC, largest MTU, 8896.
pub const INNER_MTU: u32 = 8_896;
/// MTU inside the fabric: nothing leaves the machine.
pub const FABRIC_MTU: u32 = 8_896;

/// As the cloud forms it: 42:01 and the address.
pub fn workload_mac(address: Ipv4Addr) -> Mac {
    let [a, b, c, d] = address.octets();
    Mac([0x42, 0x01, a, b, c, d])
}

/// A workload's cable, with everything on both of its ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cable {
    pub realm: Realm,
    pub router: End,
    pub workload: End,
    /// Addresses of the workload.
    pub addresses: Vec<IpAddr>,
    pub router_routes: Vec<Route>,
    pub router_neighbours: Vec<Neighbour>,
    pub workload_routes: Vec<Route>,
    pub workload_neighbours: Vec<Neighbour>,
}

/// What a workload's attachment means.
pub fn cable(workload: &WorkloadId, attach: &Attach) -> Cable {
    let (realm, mtu, v4, v6, gateway) = match attach {
        Attach::Vpc { network, address, gateway, mtu } => {
            (Realm::Vpc(*network), u32::from(*mtu), *address, None, *gateway)
        }
        Attach::Fabric(port) => (Realm::Fabric, FABRIC_MTU, port.v4, Some(port.v6), HOP),
    };
    let port = names::port(workload);
    let inside = names::workload_port(realm);
    let mac = workload_mac(v4);
    let addresses: Vec<IpAddr> = [Some(v4.into()), v6.map(Into::into)].into_iter().flatten().collect();
    let gateways: Vec<IpAddr> = [Some(gateway.into()), v6.map(|_| HOP6.into())].into_iter().flatten().collect();
    let default = |gateway: &IpAddr| {
        let hop = Hop::Via(*gateway, inside.clone());
        if gateway.is_ipv4() { Route::default_v4(hop) } else { Route::default_v6(hop) }
    };
    Cable {
        realm,
        router: End { name: port.clone(), mac: ROUTER_MAC, mtu, index: None },
        workload: End { name: inside.clone(), mac, mtu, index: None },
        router_routes: addresses.iter().map(|a| Route::host(*a, Hop::Link(port.clone()))).collect(),
        router_neighbours: addresses.iter().map(|a| Neighbour { at: port.clone(), address: *a, mac }).collect(),
        workload_routes: gateways.iter().map(default).collect(),
        workload_neighbours: gateways
            .iter()
            .map(|g| Neighbour { at: inside.clone(), address: *g, mac: ROUTER_MAC })
            .collect(),
        addresses,
    }
}
