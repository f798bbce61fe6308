//! VM instances: one address in an ordinary subnet, perhaps a service account, and a seat on this machine.

use model::{
    fault::Fault,
    id::WorkloadId,
    name::{Link, is_resource_name},
    vm::{self, Instance},
};

use crate::{
    kind::{Kind, Need, Record, Reference},
    kinds::{
        holding::{self, Claim},
        place, seat,
    },
    ops::{Change, Txn},
    world::{Holder, SeatRecord, World},
};

/// Network tags of one VM. Source: instances `tags`.
const TAGS_MAX: usize = 64;
/// Bytes of one metadata value and of all keys and values. Source: Compute, "Metadata limitations".
const METADATA_VALUE_BYTES_MAX: usize = 256 << 10;
const METADATA_BYTES_MAX: usize = 512 << 10;
const METADATA_KEY_BYTES_MAX: usize = 128;
/// OS Login with a second factor, security keys or certificates.
const NOT_ASKED_FOR: [&str; 3] = ["enable-oslogin-2fa", "enable-oslogin-sk", "enable-oslogin-certificates"];

impl Kind for Instance {
    const COLLECTION: &'static str = "instances";
    const WIRE_KIND: &'static str = "instance";
    const WORD: &'static str = "instance";

    fn needs_to_create(&self, me: &Link) -> Vec<Need> {
        let mut needs = vec![
            Need::on("compute.instances.create", me),
            Need::on("compute.disks.create", Link { collection: "disks".to_owned(), ..me.clone() }),
            Need::on("compute.subnetworks.use", &self.subnetwork),
        ];
        if !self.metadata.is_empty() {
            needs.push(Need::on("compute.instances.setMetadata", me));
        }
        if !self.tags.is_empty() {
            needs.push(Need::on("compute.instances.setTags", me));
        }
        if self.service_account.is_some() {
            needs.push(Need::on("compute.instances.setServiceAccount", me));
        }
        needs
    }

    fn needs_to_update(&self, me: &Link) -> Vec<Need> {
        vec![Need::on("compute.instances.update", me)]
    }

    fn needs_to_delete(&self, me: &Link) -> Vec<Need> {
        vec![Need::on("compute.instances.delete", me)]
    }

    fn references(&self) -> Vec<Reference> {
        vec![
            Reference { field: "networkInterfaces[0].network", to: self.network.clone() },
            Reference { field: "networkInterfaces[0].subnetwork", to: self.subnetwork.clone() },
        ]
    }

    fn accounts_used(&self) -> Vec<&str> {
        self.service_account.iter().map(|account| account.email.as_str()).collect()
    }

    fn check(&self, old: Option<&Self>) -> Result<(), Fault> {
        if vm::machine_type(&self.machine_type).is_none() {
            let why = format!("Machine type with name '{}' does not exist.", self.machine_type);
            return Err(Fault::invalid_value("machineType", &self.machine_type, &why));
        }
        check_tags(&self.tags)?;
        check_metadata(&self.metadata)?;
        let Some(old) = old else { return Ok(()) };
        if (&self.network, &self.subnetwork, self.address) != (&old.network, &old.subnetwork, old.address) {
            return Err(place::immutable("networkInterfaces", &self.address.to_string()));
        }
        Ok(())
    }

    fn admit(record: &mut Record<Self>, old: Option<&Record<Self>>, world: &World, txn: &mut Txn) -> Result<(), Fault> {
        match old {
            None => {
                admit_address(record, world)?;
                let seat = SeatRecord {
                    workload: workload(record),
                    uid_base: seat::free_uid_base(world, txn)?,
                    incarnation: 0,
                    holder: Holder::Vm(record.link.clone()),
                };
                txn.push(Change::Seat(Box::new(seat)));
            }
            Some(old) if old.spec.wanted == vm::Power::Off && record.spec.wanted == vm::Power::On => {
                start_anew(record, world, txn);
            }
            Some(_) => {}
        }
        Ok(())
    }

    fn retire(record: &Record<Self>, _: &World, txn: &mut Txn) -> Result<(), Fault> {
        txn.push(Change::NoSeat(workload(record)));
        Ok(())
    }

    fn is_found_late(fault: &Fault) -> bool {
        fault.reason == "serviceAccountAccessDenied"
    }
}

/// The workload of a VM: its id names the incarnation, so a VM made anew under a name is another one.
pub fn workload(record: &Record<Instance>) -> WorkloadId {
    WorkloadId(format!("vm-{:x}", record.id.0))
}

/// A VM that is started again is a new incarnation in the seat it had.
fn start_anew(record: &Record<Instance>, world: &World, txn: &mut Txn) {
    if let Some(seat) = world.seats.get(&workload(record)) {
        let seat = SeatRecord { incarnation: seat.incarnation + 1, ..seat.clone() };
        txn.push(Change::Seat(Box::new(seat)));
    }
}

fn admit_address(record: &mut Record<Instance>, world: &World) -> Result<(), Fault> {
    const FIELD: &str = "networkInterfaces[0].subnetwork";
    let spec = &record.spec;
    place::same_project("networkInterfaces[0].network", &record.link, &spec.network)?;
    let subnet = place::ordinary_subnet(FIELD, &record.link, &spec.subnetwork, &spec.network, world)?;
    let field = "networkInterfaces[0].networkIP";
    let (address, _) = holding::claim(Claim::Use, field, spec.address, &record.link, subnet, world)?;
    record.spec.address = address;
    Ok(())
}

fn check_tags(tags: &[String]) -> Result<(), Fault> {
    if tags.len() > TAGS_MAX {
        let why = format!("At most {TAGS_MAX} tags may be specified.");
        return Err(Fault::invalid_value("tags.items", &tags.len().to_string(), &why));
    }
    match tags.iter().enumerate().find(|(_, tag)| !is_resource_name(tag)) {
        Some((i, tag)) => {
            let why = "Must be a match of regex '(?:[a-z](?:[-a-z0-9]{0,61}[a-z0-9])?)'";
            Err(Fault::invalid_value(&format!("tags.items[{i}]"), tag, why))
        }
        None => Ok(()),
    }
}

/// Also for the metadata of a project.
pub fn check_metadata(items: &std::collections::BTreeMap<String, String>) -> Result<(), Fault> {
    for (key, value) in items {
        let is_key = (1..=METADATA_KEY_BYTES_MAX).contains(&key.len())
            && key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
        if !is_key {
            let why = "Must be a match of regex '[a-zA-Z0-9-_]{1,128}'";
            return Err(Fault::invalid_value("metadata.items.key", key, why));
        }
        if value.len() > METADATA_VALUE_BYTES_MAX {
            let why = format!("The value of '{key}' is longer than {METADATA_VALUE_BYTES_MAX} bytes.");
            return Err(Fault::invalid_value("metadata.items.value", key, &why));
        }
        // They ask for more than a key, and nothing here could.
        if NOT_ASKED_FOR.contains(&key.as_str()) && value.eq_ignore_ascii_case("true") {
            return Err(Fault::not_enforced(&format!("metadata.items[{key}]")));
        }
    }
    let total: usize = items.iter().map(|(key, value)| key.len() + value.len()).sum();
    if total > METADATA_BYTES_MAX {
        let why = format!("Metadata is longer than {METADATA_BYTES_MAX} bytes in total.");
        return Err(Fault::invalid_value("metadata.items", &total.to_string(), &why));
    }
    Ok(())
}
