//! Where the parts of a configuration must stand: same project, same region, an ordinary subnet of the right network.

use model::{
    fault::Fault,
    name::Link,
    vpc::{self, Purpose},
};

use crate::{kind::Record, world::World};

pub(crate) fn immutable(field: &str, value: &str) -> Fault {
    Fault::invalid_value(field, value, "Field is immutable.")
}

pub(crate) fn same_project(field: &str, me: &Link, to: &Link) -> Result<(), Fault> {
    if me.project == to.project {
        return Ok(());
    }
    Err(Fault::invalid_value(field, &to.url(), "Cross project referencing is not allowed for this resource."))
}

/// `word` names what is referred to, as in "The subnetwork must be in the same region as the forwarding rule."
pub(crate) fn same_region(field: &str, word: &str, me: &Link, mine: &str, to: &Link) -> Result<(), Fault> {
    if me.scope.region() == to.scope.region() {
        return Ok(());
    }
    let why = format!("The {word} must be in the same region as the {mine}.");
    Err(Fault::invalid_value(field, &to.url(), &why))
}

/// The reference names the wrong collection, for example a URL map where a proxy belongs.
pub(crate) fn of_collection(field: &str, collection: &str, to: &Link) -> Result<(), Fault> {
    if to.collection == collection {
        return Ok(());
    }
    Err(Fault::invalid_value(field, &to.url(), "The URL is malformed."))
}

/// An ordinary subnet in the region of `me`, of the given network where one is given.
pub(crate) fn ordinary_subnet<'w>(
    field: &str,
    me: &Link,
    subnet: &Link,
    network: &Link,
    world: &'w World,
) -> Result<&'w Record<vpc::Subnetwork>, Fault> {
    same_project(field, me, subnet)?;
    let record = world.get::<vpc::Subnetwork>(subnet).ok_or_else(|| missing(field, "subnetwork", subnet))?;
    same_region(field, "subnetwork", me, "resource", subnet)?;
    if record.spec.network != *network {
        let why = format!("The subnetwork must belong to the network '{}'.", network.url());
        return Err(Fault::invalid_value(field, &subnet.url(), &why));
    }
    if record.spec.purpose != Purpose::Private {
        return Err(Fault::invalid_value(field, &subnet.url(), "Subnetwork must have purpose=PRIVATE."));
    }
    Ok(record)
}

/// A reference to something that does not exist.
pub(crate) fn missing(field: &str, word: &str, to: &Link) -> Fault {
    Fault::invalid_value(field, &to.url(), &format!("The referenced {word} resource cannot be found."))
}
