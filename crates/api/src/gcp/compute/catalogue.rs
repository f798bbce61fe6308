//! What there is to choose from: regions, zones, machine types and public images. Compiled in; nobody can change it.

use http::Method;
use model::{
    fault::Fault,
    name::{Scope, Zone},
    project::REGIONS,
    vm::{MACHINE_TYPES, MachineType},
};
use serde_json::{Value, json};

use super::{verbs::Visit, wire::url};
use crate::{
    call::Answer,
    error,
    list::{self, ListQuery, Listed},
    reply::Reply,
    schema::Body,
};

/// When this catalogue was written; what the real one says of its entries differs by entry.
const CREATED: &str = "1969-12-31T16:00:00.000-08:00";

/// The region of a path.
pub(super) fn region(name: &str) -> Result<Scope, Fault> {
    let known = REGIONS.iter().any(|(region, ..)| *region == name);
    let scope = name.parse().ok().filter(|_| known).map(Scope::Region);
    scope.ok_or_else(|| Fault::invalid(format!("Invalid value for field 'region': '{name}'. Unknown region.")))
}

/// The zone of a path.
pub(super) fn zone(name: &str) -> Result<Scope, Fault> {
    let scope = all_zones().find(|zone| zone.as_str() == name).map(Scope::Zone);
    scope.ok_or_else(|| Fault::invalid(format!("Invalid value for field 'zone': '{name}'. Unknown zone.")))
}

fn all_zones() -> impl Iterator<Item = Zone> {
    let names = REGIONS.iter().flat_map(|(region, _, letters)| letters.iter().map(move |l| format!("{region}-{l}")));
    names.filter_map(|name| name.parse().ok())
}

/// Every scope there is. Aggregated lists name them all, also those their kind cannot live in.
pub(super) fn scopes() -> Vec<Scope> {
    let regions = REGIONS.iter().filter_map(|(region, ..)| region.parse().ok().map(Scope::Region));
    std::iter::once(Scope::Global).chain(regions).chain(all_zones().map(Scope::Zone)).collect()
}

pub(super) fn regions(visit: &Visit<'_>, rest: &[&str]) -> Answer {
    let show = |(name, _, letters): &(&str, &str, &[&str])| {
        let project = visit.project;
        let zones: Vec<String> = letters.iter().map(|l| url(format!("projects/{project}/zones/{name}-{l}"))).collect();
        json!({
            "kind": "compute#region",
            "id": number(name),
            "creationTimestamp": CREATED,
            "name": name,
            "description": name,
            "status": "UP",
            "zones": zones,
            "quotas": [],
            "selfLink": url(format!("projects/{project}/regions/{name}")),
            "supportsPzs": false,
        })
    };
    let world = visit.control.read();
    match rest {
        [] => {
            visit.allow(&world, "compute.regions.list", format!("projects/{}", visit.project))?;
            plain_list(visit, "region", "regions", "Region", REGIONS.iter().map(show).collect())
        }
        [name, ..] => {
            let path = format!("projects/{}/regions/{name}", visit.project);
            visit.allow(&world, "compute.regions.get", &path)?;
            let found = REGIONS.iter().find(|(region, ..)| region == name);
            found.map(show).map(Reply::json).ok_or_else(|| Fault::not_found(path))
        }
    }
}

pub(super) fn zones(visit: &Visit<'_>, rest: &[&str]) -> Answer {
    let show = |zone: Zone| {
        let project = visit.project;
        json!({
            "kind": "compute#zone",
            "id": number(zone.as_str()),
            "creationTimestamp": CREATED,
            "name": zone.as_str(),
            "description": zone.as_str(),
            "status": "UP",
            "region": url(format!("projects/{project}/regions/{}", zone.region())),
            "selfLink": url(format!("projects/{project}/zones/{zone}")),
            "supportsPzs": false,
        })
    };
    let world = visit.control.read();
    match rest {
        [] => {
            visit.allow(&world, "compute.zones.list", format!("projects/{}", visit.project))?;
            plain_list(visit, "zone", "zones", "Zone", all_zones().map(show).collect())
        }
        [name, ..] => {
            let path = format!("projects/{}/zones/{name}", visit.project);
            visit.allow(&world, "compute.zones.get", &path)?;
            let found = all_zones().find(|zone| zone.as_str() == *name);
            found.map(show).map(Reply::json).ok_or_else(|| Fault::not_found(path))
        }
    }
}

/// Machine types are the same in every zone.
pub(super) fn machine_types(visit: &Visit<'_>, rest: &[&str]) -> Answer {
    let Scope::Zone(zone) = &visit.scope else { return Err(error::unknown_method()) };
    let world = visit.control.read();
    let path = format!("projects/{}/zones/{zone}/machineTypes", visit.project);
    match (&visit.call.method, rest) {
        (&Method::GET, []) => {
            visit.allow(&world, "compute.machineTypes.list", format!("projects/{}", visit.project))?;
            let items = MACHINE_TYPES.iter().map(|m| show_machine_type(visit, zone, m)).collect();
            plain_list(visit, "machineType", &format!("zones/{zone}/machineTypes"), "MachineType", items)
        }
        (&Method::GET, [name]) => {
            let path = format!("{path}/{name}");
            visit.allow(&world, "compute.machineTypes.get", &path)?;
            let found = model::vm::machine_type(name).map(|m| Reply::json(show_machine_type(visit, zone, m)));
            found.ok_or_else(|| Fault::not_found(path))
        }
        _ => Err(error::unknown_method()),
    }
}

pub(super) fn machine_types_everywhere(visit: &Visit<'_>) -> Answer {
    let world = visit.control.read();
    visit.allow(&world, "compute.machineTypes.list", format!("projects/{}", visit.project))?;
    let query = ListQuery::parse(&visit.call.query, Body::compute("MachineType"))?;
    let of_zone = |zone: Zone| {
        let shown: Vec<(Scope, Value)> =
            MACHINE_TYPES.iter().map(|m| (Scope::Zone(zone.clone()), show_machine_type(visit, &zone, m))).collect();
        shown
    };
    let path = format!("projects/{}/aggregated/machineTypes", visit.project);
    let about = Listed { word: "machineType", path: &path };
    let items = all_zones().flat_map(of_zone).collect();
    Ok(Reply::json(list::aggregated(&query, about, &scopes(), items)))
}

fn show_machine_type(visit: &Visit<'_>, zone: &Zone, machine: &MachineType) -> Value {
    let shared = machine.cpu_millis < machine.cpus * 1_000;
    json!({
        "kind": "compute#machineType",
        "id": number(machine.name),
        "creationTimestamp": CREATED,
        "name": machine.name,
        "description": format!("{} vCPUs, {} MB RAM", machine.cpus, machine.memory_mb),
        "guestCpus": machine.cpus,
        "memoryMb": machine.memory_mb,
        "isSharedCpu": shared,
        "imageSpaceGb": 0,
        "maximumPersistentDisks": 16,
        "maximumPersistentDisksSizeGb": "3072",
        "architecture": "X86_64",
        "zone": zone.as_str(),
        "selfLink": url(format!("projects/{}/zones/{zone}/machineTypes/{}", visit.project, machine.name)),
    })
}

fn plain_list(visit: &Visit<'_>, word: &str, below: &str, body: &'static str, items: Vec<Value>) -> Answer {
    let query = ListQuery::parse(&visit.call.query, Body::compute(body))?;
    let path = format!("projects/{}/{below}", visit.project);
    Ok(Reply::json(list::list(&query, Listed { word, path: &path }, items)))
}

/// A stable number for an entry of the catalogue.
fn number(name: &str) -> String {
    let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
    (hash % 900_000_000_000_000_000 + 100_000_000_000_000_000).to_string()
}

// ---- images ----

/// A public image. Every VM has the same built-in system, whichever it names; the names are what clients expect.
pub(super) struct Image {
    project: &'static str,
    family: &'static str,
    name: &'static str,
}

const IMAGES: &[Image] = &[
    Image { project: "debian-cloud", family: "debian-12", name: "debian-12-bookworm-v20260414" },
    Image { project: "debian-cloud", family: "debian-11", name: "debian-11-bullseye-v20260414" },
    Image { project: "debian-cloud", family: "debian-13", name: "debian-13-trixie-v20260414" },
    Image { project: "ubuntu-os-cloud", family: "ubuntu-2204-lts", name: "ubuntu-2204-jammy-v20260415" },
    Image { project: "ubuntu-os-cloud", family: "ubuntu-2404-lts-amd64", name: "ubuntu-2404-noble-amd64-v20260415" },
];

/// The image of a link in any form: by name, by family, by a zone's view of a family.
pub(super) fn find_image(link: &str) -> Option<&'static Image> {
    let path = link.split_once("/compute/v1/").map_or(link, |(_, path)| path).trim_start_matches('/');
    let ["projects", project, rest @ ..] = &path.split('/').collect::<Vec<_>>()[..] else { return None };
    image_at(project, rest)
}

fn image_at(project: &str, rest: &[&str]) -> Option<&'static Image> {
    let mut images = IMAGES.iter().filter(|image| image.project == project);
    match rest {
        ["global", "images", "family", family] | ["zones", _, "imageFamilyViews", family] => {
            images.find(|image| image.family == *family)
        }
        ["global", "images", name] => images.find(|image| image.name == *name || image.family == *name),
        _ => None,
    }
}

/// Answers about images of a project that only holds images; `None` when the project is not one of those.
pub(super) fn public_image(method: &Method, project: &str, rest: &[&str]) -> Option<Answer> {
    if !IMAGES.iter().any(|image| image.project == project) {
        return None;
    }
    if method != Method::GET {
        return Some(Err(error::unknown_method()));
    }
    if let ["global", "images"] = rest {
        let items: Vec<Value> = IMAGES.iter().filter(|image| image.project == project).map(show_image).collect();
        let path = format!("projects/{project}/global/images");
        return Some(Ok(Reply::json(json!({
            "kind": "compute#imageList", "id": path, "items": items, "selfLink": url(&path),
        }))));
    }
    let found = image_at(project, rest).map(|image| match rest {
        ["zones", _, "imageFamilyViews", _] => json!({"image": show_image(image)}),
        _ => show_image(image),
    });
    let path = format!("projects/{project}/{}", rest.join("/"));
    Some(found.map(Reply::json).ok_or_else(|| Fault::not_found(path)))
}

fn show_image(image: &Image) -> Value {
    json!({
        "kind": "compute#image",
        "id": number(image.name),
        "creationTimestamp": CREATED,
        "name": image.name,
        "family": image.family,
        "status": "READY",
        "sourceType": "RAW",
        "architecture": "X86_64",
        "diskSizeGb": "10",
        "archiveSizeBytes": "0",
        "selfLink": url(format!("projects/{}/global/images/{}", image.project, image.name)),
    })
}
