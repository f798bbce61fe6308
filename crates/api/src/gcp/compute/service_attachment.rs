//! `serviceAttachments` on the wire.

use control::{
    kind::Record,
    kinds::service_attachment,
    world::{PscConnection, World},
};
use model::{
    fault::{Code, Fault},
    name::Link,
    psc::{AcceptEntry, Consumer, Preference, ServiceAttachment},
};
use serde_json::{Map, Value, json};

use super::{
    verbs::Policies,
    wire::{Fields, Json, Level, Lock, Wire, parse_link, put_some},
};
use crate::{call::Query, schema};

const PREFERENCES: &[(&str, Preference)] =
    &[("ACCEPT_AUTOMATIC", Preference::AcceptAutomatic), ("ACCEPT_MANUAL", Preference::AcceptManual)];

impl Wire for ServiceAttachment {
    const SCHEMA: schema::Kind = schema::Kind::ServiceAttachment;
    const LEVEL: Level = Level::Region;
    const GET: &'static str = "compute.serviceAttachments.get";
    const LIST: &'static str = "compute.serviceAttachments.list";
    const LOCK: Lock = Lock::Checked;
    const PATCH: Option<&'static str> = Some("patch");

    const POLICIES: Option<Policies> = Some(Policies {
        get: "compute.serviceAttachments.getIamPolicy",
        set: "compute.serviceAttachments.setIamPolicy",
    });

    fn read(fields: &Fields<'_>) -> Result<Self, Fault> {
        let preference = fields.word("connectionPreference", PREFERENCES)?;
        let reject = fields.texts("consumerRejectLists")?;
        let reject = reject
            .iter()
            .enumerate()
            .map(|(i, text)| read_consumer(fields, &format!("consumerRejectLists[{i}]"), text));
        Ok(ServiceAttachment {
            target: read_service(fields)?,
            preference: preference.ok_or_else(|| fields.required("connectionPreference"))?,
            nat_subnets: fields.links("natSubnets")?,
            accept: fields.objects("consumerAcceptLists")?.iter().map(read_entry).collect::<Result<_, _>>()?,
            reject: reject.collect::<Result<_, _>>()?,
            reconcile: fields.flag("reconcileConnections")?.unwrap_or(false),
            nats_per_endpoint: fields.number("natIpsPerEndpoint")?,
            domain: read_domain(fields)?,
            description: fields.written("description"),
        })
    }

    fn write(record: &Record<Self>, world: &World, out: &mut Json) {
        let spec = &record.spec;
        out.insert("description".into(), spec.description.clone().unwrap_or_default().into());
        let preference = PREFERENCES.iter().find(|(_, p)| *p == spec.preference).map_or("", |(word, _)| word);
        out.insert("connectionPreference".into(), preference.into());
        out.insert("targetService".into(), spec.target.url().into());
        out.insert("producerForwardingRule".into(), spec.target.url().into());
        out.insert("natSubnets".into(), spec.nat_subnets.iter().map(Link::url).collect());
        if !spec.accept.is_empty() {
            out.insert("consumerAcceptLists".into(), spec.accept.iter().map(write_entry).collect());
        }
        if !spec.reject.is_empty() {
            out.insert("consumerRejectLists".into(), spec.reject.iter().map(consumer_text).collect());
        }
        out.insert("enableProxyProtocol".into(), false.into());
        out.insert("reconcileConnections".into(), spec.reconcile.into());
        put_some(out, "natIpsPerEndpoint", spec.nats_per_endpoint);
        if let Some(domain) = &spec.domain {
            out.insert("domainNames".into(), json!([domain]));
        }
        let connected: Vec<Value> = service_attachment::connections(record, world).map(write_connection).collect();
        if !connected.is_empty() {
            out.insert("connectedEndpoints".into(), connected.into());
        }
        // A 128-bit id in two halves: ours is the project's number and the resource's.
        let project = world.projects.get(&record.link.project).map_or(0, |p| p.number.0);
        let id = json!({"high": project.to_string(), "low": record.id.to_string()});
        out.insert("pscServiceAttachmentId".into(), id);
    }

    /// `?showNatIps=true` adds the NAT addresses of each connection.
    fn embellish(query: &Query, record: &Record<Self>, world: &World, shown: &mut Json) -> Result<(), Fault> {
        if query.flag("showNatIps")? != Some(true) {
            return Ok(());
        }
        if let Some(Value::Array(items)) = shown.get_mut("connectedEndpoints") {
            for (item, psc) in items.iter_mut().zip(service_attachment::connections(record, world)) {
                if !psc.connection.nats.is_empty() {
                    item["natIps"] = psc.connection.nats.iter().map(ToString::to_string).collect();
                }
            }
        }
        Ok(())
    }

    /// Source: recorded answers; this kind words its absence in its own way.
    fn absent(link: &Link) -> Fault {
        Fault::new(Code::NotFound, "notFound", format!("serviceAttachment \"{link}\" not found"))
    }

    /// The two fields of the target are one; a patch may set either.
    fn align(shown: &mut Json, patch: &Json) {
        for (one, twin) in [("targetService", "producerForwardingRule"), ("producerForwardingRule", "targetService")] {
            if patch.contains_key(one) && !patch.contains_key(twin) {
                shown.remove(twin);
            }
        }
    }
}

/// `targetService` and its deprecated twin name the same rule.
fn read_service(fields: &Fields<'_>) -> Result<Link, Fault> {
    match (fields.link("targetService")?, fields.link("producerForwardingRule")?) {
        (Some(target), Some(twin)) if target != twin => {
            let why = "producerForwardingRule and targetService must name the same forwarding rule.";
            Err(fields.fault("producerForwardingRule", &twin.url(), why))
        }
        (Some(target), _) | (None, Some(target)) => Ok(target),
        (None, None) => Err(fields.required("targetService")),
    }
}

fn read_domain(fields: &Fields<'_>) -> Result<Option<String>, Fault> {
    match fields.texts("domainNames")?.as_slice() {
        [] => Ok(None),
        [domain] => Ok(Some((*domain).to_owned())),
        [_, more, ..] => Err(fields.fault("domainNames", more, "At most 1 domain name is allowed.")),
    }
}

fn read_entry(fields: &Fields<'_>) -> Result<AcceptEntry, Fault> {
    let (project, network) = (fields.text("projectIdOrNum")?, fields.text("networkUrl")?);
    let consumer = match (project, network) {
        (Some(project), None) => read_consumer(fields, "projectIdOrNum", project)?,
        (None, Some(network)) => read_consumer(fields, "networkUrl", network)?,
        (Some(_), Some(_)) | (None, None) => {
            return Err(fields.fault("projectIdOrNum", "", "Exactly one consumer must be specified."));
        }
    };
    let limit = fields.number("connectionLimit")?.ok_or_else(|| fields.required("connectionLimit"))?;
    Ok(AcceptEntry { consumer, limit })
}

/// A project by id or number, or a network by link.
fn read_consumer(fields: &Fields<'_>, field: &str, text: &str) -> Result<Consumer, Fault> {
    let world = fields.world();
    if text.contains('/') {
        let link = parse_link(text, &fields.around.link.project, world);
        return match link {
            Some(link) if link.collection == "networks" => Ok(Consumer::Network(link)),
            // A single endpoint as a consumer: legal in the real cloud, and not matched here.
            Some(link) if link.collection == "forwardingRules" => Err(Fault::not_enforced(field)),
            Some(_) | None => Err(fields.fault(field, text, "The URL is malformed.")),
        };
    }
    let project = world.project(text).ok_or_else(|| service_attachment::unknown_consumer(text))?;
    Ok(Consumer::Project { id: project.id.clone(), written: text.to_owned() })
}

fn consumer_text(consumer: &Consumer) -> String {
    match consumer {
        Consumer::Project { written, .. } => written.clone(),
        Consumer::Network(link) => link.url(),
    }
}

fn write_entry(entry: &AcceptEntry) -> Value {
    let field = match &entry.consumer {
        Consumer::Project { .. } => "projectIdOrNum",
        Consumer::Network(_) => "networkUrl",
    };
    let mut out = Map::new();
    out.insert("connectionLimit".into(), entry.limit.into());
    out.insert(field.into(), consumer_text(&entry.consumer).into());
    out.into()
}

fn write_connection(psc: &PscConnection) -> Value {
    let connection = &psc.connection;
    let with_id = Link { name: connection.endpoint.to_string(), ..connection.rule.clone() };
    json!({
        "status": connection.status.as_str(),
        "pscConnectionId": connection.connection_id.to_string(),
        "endpoint": connection.rule.url(),
        "endpointWithId": with_id.url(),
        "consumerNetwork": connection.consumer_network.url(),
    })
}
