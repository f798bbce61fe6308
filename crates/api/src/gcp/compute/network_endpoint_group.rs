//! `networkEndpointGroups` on the wire: serverless ones, for Cloud Run.

use control::{kind::Record, world::World};
use model::{fault::Fault, lb};
use serde_json::Map;

use super::wire::{Fields, Json, Level, Wire, put_some};
use crate::schema;

impl Wire for lb::NetworkEndpointGroup {
    const SCHEMA: schema::Kind = schema::Kind::NetworkEndpointGroup;
    const LEVEL: Level = Level::Region;
    const GET: &'static str = "compute.regionNetworkEndpointGroups.get";
    const LIST: &'static str = "compute.regionNetworkEndpointGroups.list";
    const INSERT: &'static str = "compute.regionNetworkEndpointGroups.insert";
    const DELETE: &'static str = "compute.regionNetworkEndpointGroups.delete";

    fn read(fields: &Fields<'_>) -> Result<Self, Fault> {
        match fields.text("networkEndpointType")? {
            Some("SERVERLESS") => {}
            Some(_) => return Err(Fault::not_enforced("resource.networkEndpointType")),
            None => return Err(fields.required("networkEndpointType")),
        }
        for absent in ["network", "subnetwork", "defaultPort"] {
            if fields.has(absent) {
                let why = "Cannot be specified for a network endpoint group of type SERVERLESS.";
                return Err(fields.fault(absent, "", why));
            }
        }
        let run = fields.object("cloudRun")?.ok_or_else(|| fields.required("cloudRun"))?;
        let text = |name| Ok::<_, Fault>(run.text(name)?.map(str::to_owned));
        Ok(lb::NetworkEndpointGroup {
            service: text("service")?,
            tag: text("tag")?,
            url_mask: text("urlMask")?,
            description: fields.written("description"),
        })
    }

    fn write(record: &Record<Self>, _: &World, out: &mut Json) {
        let spec = &record.spec;
        put_some(out, "description", spec.description.clone());
        out.insert("networkEndpointType".into(), "SERVERLESS".into());
        let mut run = Map::new();
        put_some(&mut run, "service", spec.service.clone());
        put_some(&mut run, "tag", spec.tag.clone());
        put_some(&mut run, "urlMask", spec.url_mask.clone());
        out.insert("cloudRun".into(), run.into());
        out.insert("size".into(), 0.into());
    }
}
