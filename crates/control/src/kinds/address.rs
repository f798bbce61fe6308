//! Reserved internal addresses.

use model::{fault::Fault, name::Link, vpc};

use crate::{
    kind::{Kind, Need, Record, Reference},
    kinds::{
        holding::{self, Claim},
        place,
    },
    ops::Txn,
    world::World,
};

impl Kind for vpc::Address {
    const COLLECTION: &'static str = "addresses";
    const WIRE_KIND: &'static str = "address";
    const WORD: &'static str = "address";

    fn needs_to_create(&self, me: &Link) -> Vec<Need> {
        vec![Need::on("compute.addresses.createInternal", me), Need::on("compute.subnetworks.use", &self.subnetwork)]
    }

    fn needs_to_update(&self, me: &Link) -> Vec<Need> {
        vec![Need::on("compute.addresses.setLabels", me)]
    }

    fn needs_to_delete(&self, me: &Link) -> Vec<Need> {
        vec![Need::on("compute.addresses.deleteInternal", me)]
    }

    fn references(&self) -> Vec<Reference> {
        vec![Reference { field: "subnetwork", to: self.subnetwork.clone() }]
    }

    fn check(&self, _: Option<&Self>) -> Result<(), Fault> {
        Ok(())
    }

    fn admit(record: &mut Record<Self>, old: Option<&Record<Self>>, world: &World, _: &mut Txn) -> Result<(), Fault> {
        if old.is_some() {
            return Ok(());
        }
        let subnet = &record.spec.subnetwork;
        let network = world.get::<vpc::Subnetwork>(subnet).map(|s| s.spec.network.clone());
        let network = network.ok_or_else(|| place::missing("subnetwork", "subnetwork", subnet))?;
        let subnet = place::ordinary_subnet("subnetwork", &record.link, subnet, &network, world)?;
        let wanted = record.spec.address;
        let (address, _) = holding::claim(Claim::Reserve, "address", wanted, &record.link, subnet, world)?;
        record.spec.address = address;
        Ok(())
    }

    fn retire(record: &Record<Self>, world: &World, _: &mut Txn) -> Result<(), Fault> {
        match holding::users(record, world).next() {
            Some(user) => Err(Fault::in_use(Self::WORD, &record.link, user)),
            None => Ok(()),
        }
    }
}
