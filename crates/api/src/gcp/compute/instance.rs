//! `instances` on the wire.

use std::{collections::BTreeMap, net::Ipv4Addr};

use control::{kind::Record, kinds::holding::UNDECIDED, world::World};
use model::{
    fault::{Code, Fault},
    name::{Link, Scope},
    vm::{AttachedAccount, Instance, Power},
    vpc,
};
use serde_json::{Value, json};

use super::{
    catalogue,
    verbs::{Policies, Visit},
    wire::{
        Around, Fields, Json, Level, Lock, Wire, digest_of, fingerprint, parse_link, put_some, same_fingerprint, stale,
        url,
    },
};
use crate::{call::Answer, error, schema};

impl Wire for Instance {
    const SCHEMA: schema::Kind = schema::Kind::Instance;
    const LEVEL: Level = Level::Zone;
    const GET: &'static str = "compute.instances.get";
    const LIST: &'static str = "compute.instances.list";
    const SET_LABELS: Option<&'static str> = Some("compute.instances.setLabels");
    const LOCK: Lock = Lock::Checked;
    const POLICIES: Option<Policies> =
        Some(Policies { get: "compute.instances.getIamPolicy", set: "compute.instances.setIamPolicy" });

    fn read(fields: &Fields<'_>) -> Result<Self, Fault> {
        check_disks(fields)?;
        let interfaces = fields.objects("networkInterfaces")?;
        let interface = match interfaces.as_slice() {
            [] => return Err(fields.required("networkInterfaces")),
            [one] => one,
            [_, _, ..] => return Err(Fault::not_enforced("resource.networkInterfaces[1]")),
        };
        if !interface.objects("accessConfigs")?.is_empty() {
            return Err(Fault::not_enforced("resource.networkInterfaces[0].accessConfigs"));
        }
        let address = read_address(interface)?;
        let (network, subnetwork) = read_place(interface)?;
        Ok(Instance {
            machine_type: read_machine_type(fields)?,
            network,
            subnetwork,
            address,
            tags: match fields.object("tags")? {
                Some(tags) => tags.texts("items")?.into_iter().map(str::to_owned).collect(),
                None => Vec::new(),
            },
            metadata: match fields.object("metadata")? {
                Some(metadata) => read_metadata(&metadata)?,
                None => BTreeMap::new(),
            },
            service_account: read_account(fields)?,
            description: fields.written("description"),
            wanted: Power::On,
            automatic_restart: match fields.object("scheduling")? {
                Some(scheduling) => scheduling.flag("automaticRestart")?.unwrap_or(true),
                None => true,
            },
        })
    }

    fn write(record: &Record<Self>, world: &World, out: &mut Json) {
        let spec = &record.spec;
        let link = &record.link;
        put_some(out, "description", spec.description.clone());
        let zone = format!("projects/{}/{}", link.project, link.scope);
        out.insert("machineType".into(), url(format!("{zone}/machineTypes/{}", spec.machine_type)).into());
        out.insert("status".into(), status(record, world).into());
        out.insert("tags".into(), write_tags(&spec.tags));
        out.insert("metadata".into(), write_metadata(&spec.metadata));
        out.insert("networkInterfaces".into(), json!([write_interface(record)]));
        out.insert("scheduling".into(), json!({"automaticRestart": spec.automatic_restart}));
        if let Some(account) = &spec.service_account {
            out.insert("serviceAccounts".into(), json!([{"email": account.email, "scopes": account.scopes}]));
        }
        out.insert("lastStartTimestamp".into(), record.created.rfc3339_pacific_ms().into());
    }

    fn defaults(record: &Record<Self>) -> Json {
        let mut out = Json::new();
        out.insert("disks".into(), json!([boot_disk(record)]));
        out.insert("canIpForward".into(), false.into());
        out.insert("deletionProtection".into(), false.into());
        out.insert("startRestricted".into(), false.into());
        out.insert("cpuPlatform".into(), "Unknown CPU Platform".into());
        let scheduling = json!({
            "onHostMaintenance": "MIGRATE",
            "preemptible": false,
            "provisioningModel": "STANDARD",
        });
        out.insert("scheduling".into(), scheduling);
        out
    }

    fn part(visit: &Visit<'_>, link: &Link, part: &str) -> Answer {
        match part {
            "getGuestAttributes" => guest_attributes(visit, link),
            _ => Err(error::unknown_method()),
        }
    }

    fn verb(visit: &Visit<'_>, link: &Link, verb: &str) -> Answer {
        match verb {
            "start" => power(visit, link, verb, "compute.instances.start", Power::On),
            "stop" => power(visit, link, verb, "compute.instances.stop", Power::Off),
            "setMetadata" => set_metadata(visit, link),
            "setTags" => set_tags(visit, link),
            _ => Err(error::unknown_method()),
        }
    }
}

/// Guests write no attributes here, so none is found. gcloud takes that for what it is and asks the server for its host key.
/// Source: instances.getGuestAttributes, the refusal of a key that is not there.
fn guest_attributes(visit: &Visit<'_>, link: &Link) -> Answer {
    let world = visit.control.read();
    visit.allow(&world, "compute.instances.getGuestAttributes", link)?;
    world.get::<Instance>(link).ok_or_else(|| Fault::not_found(link))?;
    let query = &visit.call.query;
    let key = query.get("variableKey").or_else(|| query.get("queryPath")).unwrap_or_default();
    let why = format!("The resource '{key}' of type 'Guest Attribute' was not found.");
    Err(Fault::new(Code::NotFound, "notFound", why))
}

/// RUNNING and TERMINATED are what is wanted; in between, while an operation on the VM runs, it is on its way.
fn status(record: &Record<Instance>, world: &World) -> &'static str {
    let verb = world.running_on(&record.link).map(|operation| operation.verb.as_str()).next();
    match (record.spec.wanted, verb) {
        (Power::On, Some("insert" | "start")) => "STAGING",
        (Power::On, _) => "RUNNING",
        (Power::Off, Some("stop")) => "STOPPING",
        (Power::Off, _) => "TERMINATED",
    }
}

/// The boot disk's image must be one that a VM can have; a disk of one's own does not exist here.
fn check_disks(fields: &Fields<'_>) -> Result<(), Fault> {
    let disks = fields.objects("disks")?;
    for (i, disk) in disks.iter().enumerate() {
        if i > 0 || disk.has("source") && !disk.has("index") {
            return Err(Fault::not_enforced(&format!("resource.disks[{i}].source")));
        }
        if let Some(params) = disk.object("initializeParams")?
            && let Some(image) = params.text("sourceImage")?
            && catalogue::find_image(image).is_none()
        {
            return Err(params.fault("sourceImage", image, "The referenced image resource cannot be found."));
        }
    }
    Ok(())
}

/// A link to a type of the VM's own zone, or its bare name.
fn read_machine_type(fields: &Fields<'_>) -> Result<String, Fault> {
    let text = fields.text("machineType")?.ok_or_else(|| fields.required("machineType"))?;
    let me = fields.around.link;
    let name = match parse_link(text, &me.project, fields.world()) {
        None if !text.contains('/') => text.to_owned(),
        Some(link) if link.collection == "machineTypes" && link.scope == me.scope => link.name,
        Some(_) | None => return Err(fields.fault("machineType", text, "The URL is malformed.")),
    };
    if model::vm::machine_type(&name).is_none() {
        let zone = match &me.scope {
            Scope::Zone(zone) => zone.as_str(),
            Scope::Region(_) | Scope::Global => "",
        };
        let why = format!("Machine type with name '{name}' does not exist in zone '{zone}'.");
        return Err(fields.fault("machineType", text, &why));
    }
    Ok(name)
}

/// `networkIP`: a number, or a link to a reserved address.
fn read_address(interface: &Fields<'_>) -> Result<Ipv4Addr, Fault> {
    const FIELD: &str = "networkIP";
    let Some(text) = interface.text(FIELD)? else { return Ok(UNDECIDED) };
    if !text.contains('/') {
        return Ok(interface.address(FIELD)?.unwrap_or(UNDECIDED));
    }
    let link = interface.required_link(FIELD)?;
    let reserved = interface.own::<vpc::Address>(&link).ok_or_else(|| Fault::not_found(&link))?;
    Ok(reserved.spec.address)
}

fn read_place(interface: &Fields<'_>) -> Result<(Link, Link), Fault> {
    let me = interface.around.link;
    let network = interface.link("network")?;
    if let Some(subnetwork) = interface.link("subnetwork")? {
        let of_subnet = interface.own::<vpc::Subnetwork>(&subnetwork).map(|s| s.spec.network.clone());
        let network = network.or(of_subnet).ok_or_else(|| {
            interface.fault("subnetwork", &subnetwork.url(), "The referenced subnetwork resource cannot be found.")
        })?;
        return Ok((network, subnetwork));
    }
    let network = network.unwrap_or_else(|| Link::new(&me.project, Scope::Global, "networks", "default"));
    let Some(record) = interface.own::<vpc::Network>(&network) else {
        return Err(interface.fault("network", &network.url(), "The referenced network resource cannot be found."));
    };
    if !record.spec.auto_create_subnetworks {
        let why = "Subnetwork should be specified for custom subnetmode network";
        return Err(interface.fault("subnetwork", "", why));
    }
    let region = me.scope.region().map_or(Scope::Global, Scope::Region);
    let subnetwork = Link::new(&network.project, region, "subnetworks", &network.name);
    Ok((network, subnetwork))
}

fn read_account(fields: &Fields<'_>) -> Result<Option<AttachedAccount>, Fault> {
    let accounts = fields.objects("serviceAccounts")?;
    let account = match accounts.as_slice() {
        [] => return Ok(None),
        [one] => one,
        [_, _, ..] => {
            return Err(fields.fault("serviceAccounts", "", "At most one service account can be attached."));
        }
    };
    let email = account.text("email")?.unwrap_or("default");
    let email = if email == "default" {
        let project = fields.world().projects.get(&fields.around.link.project);
        project.map(model::project::Project::compute_default_account).unwrap_or_default()
    } else {
        email.to_ascii_lowercase()
    };
    let scopes = account.texts("scopes")?.into_iter().map(str::to_owned).collect();
    Ok(Some(AttachedAccount { email, scopes }))
}

/// `items` of metadata, of a VM or of a project. A key may come once.
pub(super) fn read_metadata(fields: &Fields<'_>) -> Result<BTreeMap<String, String>, Fault> {
    let mut all = BTreeMap::new();
    for item in fields.objects("items")? {
        let key = item.text("key")?.ok_or_else(|| item.required("key"))?;
        let value = item.written("value").unwrap_or_default();
        if all.insert(key.to_owned(), value).is_some() {
            return Err(item.fault("key", key, "Metadata has duplicate key."));
        }
    }
    Ok(all)
}

pub(super) fn write_metadata(items: &BTreeMap<String, String>) -> Value {
    let mut out = json!({"kind": "compute#metadata", "fingerprint": metadata_fingerprint(items)});
    if !items.is_empty() {
        out["items"] = items.iter().map(|(key, value)| json!({"key": key, "value": value})).collect();
    }
    out
}

/// Of what the metadata says, so that it is the same as long as that is.
pub(super) fn metadata_fingerprint(items: &BTreeMap<String, String>) -> String {
    digest_of(&format!("metadata/{items:?}"))
}

pub(super) fn tags_fingerprint(tags: &[String]) -> String {
    digest_of(&format!("tags/{tags:?}"))
}

/// Always there, with a fingerprint: gcloud reads it before it adds a tag.
fn write_tags(tags: &[String]) -> Value {
    let mut out = json!({"fingerprint": tags_fingerprint(tags)});
    if !tags.is_empty() {
        out["items"] = json!(tags);
    }
    out
}

fn write_interface(record: &Record<Instance>) -> Value {
    let spec = &record.spec;
    json!({
        "kind": "compute#networkInterface",
        "name": "nic0",
        "network": spec.network.url(),
        "subnetwork": spec.subnetwork.url(),
        "networkIP": spec.address.to_string(),
        "stackType": "IPV4_ONLY",
        "fingerprint": fingerprint(record),
    })
}

fn boot_disk(record: &Record<Instance>) -> Value {
    let link = Link { collection: "disks".to_owned(), ..record.link.clone() };
    json!({
        "kind": "compute#attachedDisk",
        "type": "PERSISTENT",
        "mode": "READ_WRITE",
        "source": link.url(),
        "deviceName": "persistent-disk-0",
        "index": 0,
        "boot": true,
        "autoDelete": true,
        "interface": "SCSI",
        "diskSizeGb": "10",
    })
}

fn power(visit: &Visit<'_>, link: &Link, verb: &str, permission: &'static str, wanted: Power) -> Answer {
    visit.change_by::<Instance>(link, verb, permission, |world, record| {
        let common = world.projects.get(&link.project).map(|project| &project.common_metadata);
        let has_script = |metadata: &BTreeMap<String, String>| metadata.contains_key("startup-script");
        if wanted == Power::On && (has_script(&record.spec.metadata) || common.is_some_and(has_script)) {
            act_as(visit, world, &record.spec)?;
        }
        record.spec.wanted = wanted;
        Ok(())
    })
}

/// Whoever decides what a VM runs acts as the VM's account.
fn act_as(visit: &Visit<'_>, world: &World, vm: &Instance) -> Result<(), Fault> {
    let emails: Vec<&str> = vm.service_account.iter().map(|account| account.email.as_str()).collect();
    visit.control.authorize_acting(world, visit.caller, &emails)
}

fn set_metadata(visit: &Visit<'_>, link: &Link) -> Answer {
    let body = visit.body("Metadata")?;
    let given = body.get("fingerprint").and_then(Value::as_str).unwrap_or("");
    visit.change_by::<Instance>(link, "setMetadata", "compute.instances.setMetadata", |world, record| {
        if !same_fingerprint(given, &metadata_fingerprint(&record.spec.metadata)) {
            return Err(stale("Supplied fingerprint does not match current metadata fingerprint."));
        }
        act_as(visit, world, &record.spec)?;
        record.spec.metadata = read_metadata(&Fields::new(&body, &Around { world, link }))?;
        Ok(())
    })
}

fn set_tags(visit: &Visit<'_>, link: &Link) -> Answer {
    let body = visit.body("Tags")?;
    let given = body.get("fingerprint").and_then(Value::as_str).unwrap_or("");
    visit.change_by::<Instance>(link, "setTags", "compute.instances.setTags", |world, record| {
        if !same_fingerprint(given, &tags_fingerprint(&record.spec.tags)) {
            return Err(stale("Supplied fingerprint does not match current tags fingerprint."));
        }
        let around = Around { world, link };
        let tags = Fields::new(&body, &around).texts("items")?;
        record.spec.tags = tags.into_iter().map(str::to_owned).collect();
        Ok(())
    })
}
