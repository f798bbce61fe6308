//! `networks` on the wire.

use control::{kind::Record, world::World};
use model::{fault::Fault, limits::VPC_MTU_DEFAULT, name::Link, vpc};
use serde_json::{Value, json};

use super::wire::{Fields, Json, Level, Wire, put_some, url_with_id};
use crate::schema;

impl Wire for vpc::Network {
    const SCHEMA: schema::Kind = schema::Kind::Network;
    const LEVEL: Level = Level::Global;
    const GET: &'static str = "compute.networks.get";
    const LIST: &'static str = "compute.networks.list";
    const PATCH: Option<&'static str> = Some("compute.networks.patch");

    fn read(fields: &Fields<'_>) -> Result<Self, Fault> {
        // Without the field, the network would be a legacy network, which nobody can make any more.
        let auto_create_subnetworks = fields.flag("autoCreateSubnetworks")?.ok_or_else(|| {
            let why = "Legacy networks are no longer supported: set autoCreateSubnetworks to true or false.";
            fields.fault("autoCreateSubnetworks", "", why)
        })?;
        Ok(vpc::Network {
            auto_create_subnetworks,
            mtu: fields.number("mtu")?.unwrap_or(VPC_MTU_DEFAULT),
            description: fields.written("description"),
        })
    }

    fn write(record: &Record<Self>, world: &World, out: &mut Json) {
        let spec = &record.spec;
        put_some(out, "description", spec.description.clone());
        out.insert("autoCreateSubnetworks".into(), spec.auto_create_subnetworks.into());
        if spec.mtu != VPC_MTU_DEFAULT {
            out.insert("mtu".into(), spec.mtu.into());
        }
        let is_subnet = |link: &&Link| world.get::<vpc::Subnetwork>(link).is_some();
        let subnets: Vec<Value> =
            world.referrers(&record.link).filter(is_subnet).map(|link| link.url().into()).collect();
        if !subnets.is_empty() {
            out.insert("subnetworks".into(), subnets.into());
        }
        out.insert("selfLinkWithId".into(), url_with_id(record).into());
    }

    fn defaults(_: &Record<Self>) -> Json {
        let mut out = Json::new();
        out.insert("routingConfig".into(), json!({"routingMode": "REGIONAL", "bgpBestPathSelectionMode": "LEGACY"}));
        out.insert("networkFirewallPolicyEnforcementOrder".into(), "AFTER_CLASSIC_FIREWALL".into());
        out
    }
}
