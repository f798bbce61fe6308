//! Who holds which address of a subnet, and which one is handed out next.

use std::{collections::BTreeSet, net::Ipv4Addr};

use model::{
    fault::{Code, Fault},
    lb,
    name::Link,
    vm, vpc,
};

use crate::{kind::Record, world::World};

/// Stands in a spec for an address that is decided at commit.
pub const UNDECIDED: Ipv4Addr = Ipv4Addr::UNSPECIFIED;

/// Everything that holds an address of `subnet`, with the address, in link order.
pub fn holders<'w>(subnet: &'w Link, world: &'w World) -> impl Iterator<Item = (Ipv4Addr, &'w Link)> {
    world.referrers(subnet).filter_map(move |user| {
        let address = if let Some(rule) = world.get::<lb::ForwardingRule>(user) {
            (rule.spec.subnetwork == *subnet).then_some(rule.spec.address)
        } else if let Some(vm) = world.get::<vm::Instance>(user) {
            Some(vm.spec.address)
        } else {
            world.get::<vpc::Address>(user).map(|reserved| reserved.spec.address)
        };
        address.map(|address| (address, user))
    })
}

/// The resources that use a reserved address.
pub fn users<'w>(reserved: &'w Record<vpc::Address>, world: &'w World) -> impl Iterator<Item = &'w Link> {
    let all = holders(&reserved.spec.subnetwork, world);
    let is_mine =
        |(address, holder): &(Ipv4Addr, &Link)| *address == reserved.spec.address && **holder != reserved.link;
    all.filter(is_mine).map(|(_, holder)| holder)
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
        return Ok((lowest_free(me, subnet, world)?, None));
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
    for (address, holder) in holders(&subnet.link, world) {
        if address != wanted || holder == me {
            continue;
        }
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

fn lowest_free(me: &Link, subnet: &Record<vpc::Subnetwork>, world: &World) -> Result<Ipv4Addr, Fault> {
    let taken: BTreeSet<Ipv4Addr> =
        holders(&subnet.link, world).filter(|(_, holder)| *holder != me).map(|(address, _)| address).collect();
    subnet.spec.range.usable().find(|address| !taken.contains(address)).ok_or_else(|| {
        let text = format!("IP space of '{}' is exhausted.", subnet.link);
        Fault::new(Code::FailedPrecondition, "ipSpaceExhausted", text)
    })
}
