//! `addresses` on the wire: regional internal ones.

use control::{
    kind::Record,
    kinds::holding::{self, UNDECIDED},
    world::World,
};
use model::{fault::Fault, vpc};
use serde_json::{Value, json};

use super::wire::{Fields, Json, Level, Wire, put_some};
use crate::schema;

impl Wire for vpc::Address {
    const SCHEMA: schema::Kind = schema::Kind::Address;
    const LEVEL: Level = Level::Region;
    const GET: &'static str = "compute.addresses.get";
    const LIST: &'static str = "compute.addresses.list";
    const SET_LABELS: Option<&'static str> = Some("compute.addresses.setLabels");

    fn read(fields: &Fields<'_>) -> Result<Self, Fault> {
        // There is no outside, and so no external address; the default of the field is EXTERNAL.
        if fields.text("addressType")? != Some("INTERNAL") {
            return Err(Fault::not_enforced("resource.addressType"));
        }
        Ok(vpc::Address {
            address: fields.address("address")?.unwrap_or(UNDECIDED),
            subnetwork: fields.required_link("subnetwork")?,
            description: fields.written("description"),
        })
    }

    fn write(record: &Record<Self>, world: &World, out: &mut Json) {
        let users: Vec<Value> = holding::users(record, world).map(|link| link.url().into()).collect();
        put_some(out, "description", record.spec.description.clone());
        out.insert("address".into(), record.spec.address.to_string().into());
        out.insert("addressType".into(), "INTERNAL".into());
        out.insert("networkTier".into(), "PREMIUM".into());
        out.insert("purpose".into(), "GCE_ENDPOINT".into());
        out.insert("status".into(), if users.is_empty() { "RESERVED" } else { "IN_USE" }.into());
        out.insert("subnetwork".into(), record.spec.subnetwork.url().into());
        if !users.is_empty() {
            out.insert("users".into(), json!(users));
        }
    }
}
