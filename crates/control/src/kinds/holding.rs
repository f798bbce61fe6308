//! Who holds which address of a subnet, and which one is handed out next.

use std::net::Ipv4Addr;

use model::{
    fault::{Code, Fault},
    name::Link,
    vpc,
};

use crate::{kind::Record, world::World};

/// Stands in a spec for an address that is decided at commit.
pub const UNDECIDED: Ipv4Addr = Ipv4Addr::UNSPECIFIED;

/// The resources that use a reserved address.
pub fn users<'w>(reserved: &'w Record<vpc::Address>, world: &'w World) -> impl Iterator<Item = &'w Link> {
    let holders = world.holders(&reserved.spec.subnetwork, reserved.spec.address);
    holders.filter(|holder| **holder != reserved.link)
}

/// What a new holder asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Claim {
    /// A reservation: the address must be wholly free.
    Reserve,
    /// A use: the address may be reserved, if nothing uses it yet.
    Use,
}

/// The address `me` gets: the one wanted, or the lowest free one. Says also which reservation it falls under.
pub(crate) fn claim(
    claim: Claim,
    field: &str,
    wanted: Ipv4Addr,
    me: &Link,
    subnet: &Record<vpc::Subnetwork>,
    world: &World,
) -> Result<(Ipv4Addr, Option<Link>), Fault> {
    if wanted == UNDECIDED {
        return Ok((lowest_free(subnet, world)?, None));
    }
    let range = subnet.spec.range;
    if !range.contains(wanted) {
        let why = "Requested internal IP address is outside the network/subnetwork range.";
        return Err(Fault::invalid_value(field, &wanted.to_string(), why));
    }
    if !range.is_usable(wanted) {
        let why = "Requested internal IP address is reserved in the subnetwork range.";
        return Err(Fault::invalid_value(field, &wanted.to_string(), why));
    }
    let mut reservation = None;
    for holder in world.holders(&subnet.link, wanted).filter(|holder| *holder != me) {
        match (claim, world.get::<vpc::Address>(holder)) {
            (Claim::Use, Some(reserved)) => reservation = Some(reserved.link.clone()),
            (Claim::Use, None) | (Claim::Reserve, _) => return Err(in_use(wanted)),
        }
    }
    Ok((wanted, reservation))
}

fn in_use(address: Ipv4Addr) -> Fault {
    let text = format!("IP '{address}' is already being used by another resource.");
    Fault::new(Code::AlreadyExists, "ipInUseByAnotherResource", text)
}

/// For a new holder.
fn lowest_free(subnet: &Record<vpc::Subnetwork>, world: &World) -> Result<Ipv4Addr, Fault> {
    let range = subnet.spec.range;
    let free = range.usable().next().and_then(|first| world.free_address(&subnet.link, first));
    free.filter(|address| range.is_usable(*address)).ok_or_else(|| {
        let text = format!("IP space of '{}' is exhausted.", subnet.link);
        Fault::new(Code::FailedPrecondition, "ipSpaceExhausted", text)
    })
}
