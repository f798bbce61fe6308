//! Cloud DNS v1, as far as it shows the zones that Private Service Connect makes. Nobody makes one here: what users would
//! write into zones is refused. What the zones answer is `control::plan`'s.

use control::{directory, plan, world::World};
use http::Method;
use model::{
    directory::{Namespace, ZONE_MAILBOX, ZONE_SERVER, ZONE_SOA, ZONE_TTL_S, Zone},
    fault::{Code, Fault},
    limits::DNS_TTL_NAME_S,
    planned::guest::Named,
};
use serde_json::{Value, json};

use super::Cloud;
use crate::{
    call::{Answer, Call},
    error,
    paging::{Order, Paging},
    reply::Reply,
};

const PAGES: Paging = Paging { size: "maxResults", default: 100, max: 100, order: Order::ByKey };

pub(super) fn route(cloud: &Cloud, call: &Call) -> Answer {
    let caller = cloud.caller(call, "google.cloud.dns.v1")?;
    let parts = call.parts();
    let ["dns", "v1", "projects", project, rest @ ..] = parts.as_slice() else {
        return Err(error::unknown_method());
    };
    let zones = |permission| directory::zones(&cloud.control, &caller, project, permission);
    match (&call.method, rest) {
        (&Method::GET, ["managedZones"]) => {
            let wanted = call.query.get("dnsName").filter(|name| !name.is_empty());
            let all = zones("dns.managedZones.list")?.into_iter().filter_map(|n| Some((n.zone.clone()?, n)));
            let here = all.filter(|(zone, _)| wanted.is_none_or(|name| zone.dns_name == name));
            let shown = here.map(|(zone, namespace)| managed_zone(&namespace, &zone)).collect();
            list(call, "dns#managedZonesListResponse", "managedZones", shown)
        }
        (&Method::GET, ["managedZones", name]) => {
            let (namespace, zone) = find(zones("dns.managedZones.get")?, name)?;
            Ok(Reply::json(managed_zone(&namespace, &zone)))
        }
        (&Method::GET, ["managedZones", name, "rrsets"]) => {
            let (namespace, zone) = find(zones("dns.resourceRecordSets.list")?, name)?;
            let mut all = record_sets(&cloud.control.read(), &namespace, &zone);
            for field in ["name", "type"] {
                if let Some(wanted) = call.query.get(field).filter(|text| !text.is_empty()) {
                    all.retain(|set| set[field] == wanted);
                }
            }
            list(call, "dns#resourceRecordSetsListResponse", "rrsets", all)
        }
        (_, ["managedZones", ..]) => Err(Fault::not_enforced("managedZones")),
        (_, ["policies" | "responsePolicies", ..]) => Err(Fault::not_enforced(rest[0])),
        _ => Err(error::unknown_method()),
    }
}

/// By name or by id.
fn find(all: Vec<Namespace>, name: &str) -> Result<(Namespace, Zone), Fault> {
    let mut all = all.into_iter().filter_map(|namespace| Some((namespace.zone.clone()?, namespace)));
    let found = all.find(|(zone, namespace)| namespace.zone_name() == name || zone.id.to_string() == name);
    found.map(|(zone, namespace)| (namespace, zone)).ok_or_else(|| {
        let text = format!("The 'parameters.managedZone' resource named '{name}' does not exist.");
        Fault::new(Code::NotFound, "notFound", text)
    })
}

/// The items are there even when there are none.
fn list(call: &Call, kind: &str, field: &str, items: Vec<Value>) -> Answer {
    // Record sets of one name differ in their type; those of the zone itself come first.
    let key = |item: &Value| {
        let [name, kind] = ["name", "type"].map(|field| item[field].as_str().unwrap_or_default());
        format!("{}/{name}/{kind}", u8::from(!matches!(kind, "SOA" | "NS")))
    };
    let (items, next) = PAGES.page(&call.query, items.into_iter().map(|item| (key(&item), item)).collect())?;
    let mut shown = json!({"kind": kind, field: items});
    if let Some(token) = next {
        shown["nextPageToken"] = token.into();
    }
    Ok(Reply::json(shown))
}

fn managed_zone(namespace: &Namespace, zone: &Zone) -> Value {
    json!({
        "kind": "dns#managedZone",
        "id": zone.id.to_string(),
        "name": namespace.zone_name(),
        "dnsName": zone.dns_name,
        "description": "",
        "creationTime": zone.created.rfc3339_us(),
        "nameServers": [ZONE_SERVER],
        "visibility": "private",
        "privateVisibilityConfig": {
            "kind": "dns#managedZonePrivateVisibilityConfig",
            "networks": [{
                "kind": "dns#managedZonePrivateVisibilityConfigNetwork", "networkUrl": zone.network.url(),
            }],
        },
        "serviceDirectoryConfig": {
            "kind": "dns#managedZoneServiceDirectoryConfig",
            "namespace": {
                "kind": "dns#managedZoneServiceDirectoryConfigNamespace",
                "namespaceUrl": format!("https://servicedirectory.googleapis.com/v1/{}", namespace.name),
            },
        },
        "cloudLoggingConfig": {"kind": "dns#managedZoneCloudLoggingConfig"},
    })
}

/// What the resolver answers with, read from the same plan.
fn record_sets(world: &World, namespace: &Namespace, zone: &Zone) -> Vec<Value> {
    let set = |name: &str, of: &str, ttl: u32, data: Vec<String>| {
        let kind = "dns#resourceRecordSet";
        json!({"kind": kind, "name": name, "type": of, "ttl": ttl, "rrdatas": data})
    };
    let soa = ZONE_SOA.map(|number| number.to_string()).join(" ");
    let soa = format!("{ZONE_SERVER} {ZONE_MAILBOX} {soa}");
    let mut all = vec![
        set(&zone.dns_name, "NS", ZONE_TTL_S, vec![ZONE_SERVER.to_owned()]),
        set(&zone.dns_name, "SOA", ZONE_TTL_S, vec![soa]),
    ];
    let services = world.directory.services(&namespace.name);
    let named = services.map(|service| Named::Service(service.name.clone()));
    let names = named.filter_map(|named| plan::names(world, zone.network_id, &named));
    all.extend(names.filter(|names| !names.addresses.is_empty()).flat_map(|names| {
        let data: Vec<String> = names.addresses.iter().map(ToString::to_string).collect();
        names.names.into_iter().map(move |name| set(&format!("{name}."), "A", DNS_TTL_NAME_S, data.clone()))
    }));
    all
}
