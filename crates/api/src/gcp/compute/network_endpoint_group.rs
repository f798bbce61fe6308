//! `networkEndpointGroups` on the wire: serverless ones, for Cloud Run, and those of Private Service Connect.

use control::{kind::Record, kinds::holding::UNDECIDED, world::World};
use model::{
    fault::Fault,
    id::EndpointId,
    lb::{self, Endpoints, PscBackend, Serverless},
};
use serde_json::Map;

use super::{
    forwarding_rule::read_place,
    wire::{Fields, Json, Level, Wire, put_some},
};
use crate::schema;

impl Wire for lb::NetworkEndpointGroup {
    const SCHEMA: schema::Kind = schema::Kind::NetworkEndpointGroup;
    const LEVEL: Level = Level::Region;
    const GET: &'static str = "compute.regionNetworkEndpointGroups.get";
    const LIST: &'static str = "compute.regionNetworkEndpointGroups.list";
    const INSERT: &'static str = "compute.regionNetworkEndpointGroups.insert";
    const DELETE: &'static str = "compute.regionNetworkEndpointGroups.delete";

    fn read(fields: &Fields<'_>) -> Result<Self, Fault> {
        let endpoints = match fields.text("networkEndpointType")? {
            Some("SERVERLESS") => Endpoints::Serverless(read_serverless(fields)?),
            Some("PRIVATE_SERVICE_CONNECT") => Endpoints::PrivateServiceConnect(read_psc(fields)?.into()),
            Some(_) => return Err(Fault::not_enforced("resource.networkEndpointType")),
            None => return Err(fields.required("networkEndpointType")),
        };
        Ok(lb::NetworkEndpointGroup { endpoints, description: fields.written("description") })
    }

    fn write(record: &Record<Self>, world: &World, out: &mut Json) {
        put_some(out, "description", record.spec.description.clone());
        match &record.spec.endpoints {
            Endpoints::Serverless(serverless) => {
                out.insert("networkEndpointType".into(), "SERVERLESS".into());
                let mut run = Map::new();
                put_some(&mut run, "service", serverless.service.clone());
                put_some(&mut run, "tag", serverless.tag.clone());
                put_some(&mut run, "urlMask", serverless.url_mask.clone());
                out.insert("cloudRun".into(), run.into());
            }
            Endpoints::PrivateServiceConnect(psc) => {
                out.insert("networkEndpointType".into(), "PRIVATE_SERVICE_CONNECT".into());
                out.insert("network".into(), psc.network.url().into());
                out.insert("subnetwork".into(), psc.subnetwork.url().into());
                out.insert("pscTargetService".into(), psc.written.clone().into());
                let mut data = Map::new();
                data.insert("consumerPscAddress".into(), psc.address.to_string().into());
                put_some(&mut data, "producerPort", psc.port);
                let connection = world.connections.get(&EndpointId(record.id.0)).map(|c| &c.connection);
                put_some(&mut data, "pscConnectionId", connection.map(|c| c.connection_id.to_string()));
                put_some(&mut data, "pscConnectionStatus", connection.map(|c| c.status.as_str()));
                out.insert("pscData".into(), data.into());
            }
        }
        out.insert("size".into(), 0.into());
    }
}

/// Neither type has what is the other's.
fn none_of(fields: &Fields<'_>, names: &[&str], kind: &str) -> Result<(), Fault> {
    match names.iter().find(|name| fields.has(name)) {
        Some(name) => {
            let why = format!("Cannot be specified for a network endpoint group of type {kind}.");
            Err(fields.fault(name, "", &why))
        }
        None => Ok(()),
    }
}

fn read_serverless(fields: &Fields<'_>) -> Result<Serverless, Fault> {
    none_of(fields, &["network", "subnetwork", "pscTargetService", "pscData"], "SERVERLESS")?;
    let run = fields.object("cloudRun")?.ok_or_else(|| fields.required("cloudRun"))?;
    let text = |name| Ok::<_, Fault>(run.text(name)?.map(str::to_owned));
    Ok(Serverless { service: text("service")?, tag: text("tag")?, url_mask: text("urlMask")? })
}

fn read_psc(fields: &Fields<'_>) -> Result<PscBackend, Fault> {
    none_of(fields, &["cloudRun"], "PRIVATE_SERVICE_CONNECT")?;
    let written = fields.text("pscTargetService")?.ok_or_else(|| fields.required("pscTargetService"))?;
    // `REGION-NAME.googleapis.com` is one of Google's own services.
    if !written.contains('/') && written.ends_with(".googleapis.com") {
        return Err(Fault::not_enforced("resource.pscTargetService"));
    }
    let data = fields.object("pscData")?;
    let port = data.as_ref().map(|data| data.number::<u16>("producerPort")).transpose()?.flatten();
    if let (Some(data), Some(0)) = (&data, port) {
        return Err(data.fault("producerPort", "0", "Must be between 1 and 65535."));
    }
    let (network, subnetwork) = read_place(fields, None)?;
    Ok(PscBackend {
        attachment: fields.required_link("pscTargetService")?,
        written: written.to_owned(),
        network,
        subnetwork,
        address: UNDECIDED,
        port,
    })
}
