//! Networks. An auto-mode network brings a subnet for every region, and takes them along when it goes.

use model::{
    cidr::Cidr,
    fault::Fault,
    id::ResourceId,
    name::{Link, Scope},
    project, vpc,
};

use crate::{
    kind::{Kind, Need, Record, Reference},
    ops::{Change, Txn},
    random,
    world::World,
};

/// Bounds of `mtu`. Source: networks `mtu`.
const MTU_MIN: u16 = 1_300;
const MTU_MAX: u16 = 8_896;

/// The ranges of auto-mode subnets. Source: VPC "Auto mode IPv4 ranges".
const AUTO_RANGES: &[(&str, [u8; 2])] = &[
    ("asia-northeast1", [10, 146]),
    ("us-central1", [10, 128]),
    ("us-west1", [10, 138]),
    ("us-west3", [10, 180]),
    ("us-east1", [10, 142]),
    ("europe-west1", [10, 132]),
];
const AUTO_PREFIX_BITS: u8 = 20;

/// The block that auto-mode subnets come from, and that no other subnet of an auto-mode network may use.
pub(crate) fn auto_block() -> Cidr {
    Cidr::containing([10, 128, 0, 0].into(), 9)
}

impl Kind for vpc::Network {
    const COLLECTION: &'static str = "networks";
    const WIRE_KIND: &'static str = "network";
    const WORD: &'static str = "network";

    fn needs_to_create(&self, me: &Link) -> Vec<Need> {
        vec![Need::on("compute.networks.create", me)]
    }

    fn needs_to_update(&self, me: &Link) -> Vec<Need> {
        vec![Need::on("compute.networks.update", me)]
    }

    fn needs_to_delete(&self, me: &Link) -> Vec<Need> {
        vec![Need::on("compute.networks.delete", me)]
    }

    fn references(&self) -> Vec<Reference> {
        Vec::new()
    }

    fn check(&self, old: Option<&Self>) -> Result<(), Fault> {
        if !(MTU_MIN..=MTU_MAX).contains(&self.mtu) {
            let why = format!("Must be between {MTU_MIN} and {MTU_MAX}.");
            return Err(Fault::invalid_value("mtu", &self.mtu.to_string(), &why));
        }
        if old.is_some_and(|old| old.auto_create_subnetworks != self.auto_create_subnetworks) {
            let value = self.auto_create_subnetworks.to_string();
            return Err(Fault::invalid_value("autoCreateSubnetworks", &value, "Field is immutable."));
        }
        Ok(())
    }

    fn admit(record: &mut Record<Self>, old: Option<&Record<Self>>, _: &World, txn: &mut Txn) -> Result<(), Fault> {
        if old.is_none() && record.spec.auto_create_subnetworks {
            for subnet in auto_subnets(record, txn) {
                txn.put(subnet);
            }
        }
        Ok(())
    }

    fn retire(record: &Record<Self>, world: &World, txn: &mut Txn) -> Result<(), Fault> {
        for subnet in Self::companions(record, world) {
            txn.push(Change::NoObject(subnet));
        }
        Ok(())
    }

    fn companions(record: &Record<Self>, world: &World) -> Vec<Link> {
        if !record.spec.auto_create_subnetworks {
            return Vec::new();
        }
        let is_auto = |subnet: &&Link| {
            subnet.collection == vpc::Subnetwork::COLLECTION
                && subnet.name == record.link.name
                && world.referrers(subnet).next().is_none()
        };
        world.referrers(&record.link).filter(is_auto).cloned().collect()
    }

    /// A network in use is found out while its deletion runs. Source: Compute, networks.delete.
    fn is_found_late(fault: &Fault) -> bool {
        fault.reason == "resourceInUseByAnotherResource"
    }
}

fn auto_subnets(network: &Record<vpc::Network>, txn: &Txn) -> Vec<Record<vpc::Subnetwork>> {
    let made = project::REGIONS.iter().filter_map(|(region, ..)| {
        let (_, [a, b]) = AUTO_RANGES.iter().find(|(name, _)| name == region)?;
        let region = Scope::Region(region.parse().ok()?);
        Some(Record {
            id: ResourceId(random::resource_id()),
            link: Link::new(&network.link.project, region, vpc::Subnetwork::COLLECTION, &network.link.name),
            created: txn.now,
            generation: 1,
            labels: Default::default(),
            label_generation: 1,
            spec: vpc::Subnetwork {
                network: network.link.clone(),
                range: Cidr::containing([*a, *b, 0, 0].into(), AUTO_PREFIX_BITS),
                purpose: vpc::Purpose::Private,
                role: None,
                private_ip_google_access: false,
                flow_logs: None,
                description: None,
            },
            inert: Default::default(),
        })
    });
    made.collect()
}
