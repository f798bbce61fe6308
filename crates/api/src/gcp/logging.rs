//! Cloud Logging: reading entries and writing one's own.

use std::{collections::BTreeSet, time::Duration};

use control::{
    kind::Need,
    ops::{Caller, Control},
    world::World,
};
use http::Method;
use logs::{Entry, Filter, Journal, LogTime, Order, Query, QueryError, entry::LogName, written::Batch};
use model::{
    fault::{Code, Fault},
    limits::{FILTER_CHARS_MAX, LOG_AHEAD_MAX, LOG_NAMES_MAX, LOG_RETENTION, LOG_WRITE_ENTRIES_MAX, LOGGING_PAGE_MAX},
};
use serde::Deserialize;
use serde_json::{Map, json};

use super::Cloud;
use crate::{
    call::{Answer, Call},
    error,
    reply::Reply,
};

const PAGE_DEFAULT: usize = 50;
/// Source: entries.list, at most 100 resource names.
const RESOURCES_MAX: usize = 100;

/// The logs that the platform writes, by id; nobody else writes into them, so that what they say is what happened.
const PLATFORM_LOGS: [&str; 6] = [
    "cloudaudit.googleapis.com/activity",
    "compute.googleapis.com/vpc_flows",
    "run.googleapis.com/requests",
    "run.googleapis.com/stderr",
    "run.googleapis.com/stdout",
    "run.googleapis.com/varlog/system",
];

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ListBody {
    #[serde(default)]
    resource_names: Vec<String>,
    #[serde(default)]
    project_ids: Vec<String>,
    #[serde(default)]
    filter: String,
    #[serde(default)]
    order_by: String,
    #[serde(default)]
    page_size: i64,
    #[serde(default)]
    page_token: String,
}

pub(super) fn route(cloud: &Cloud, call: &Call) -> Answer {
    let caller = cloud.caller(call, "google.logging.v2.LoggingServiceV2")?;
    match (&call.method, call.parts().as_slice(), call.verb()) {
        (&Method::POST, ["v2", "entries"], Some("list")) => list(cloud, &caller, call.read()?),
        (&Method::POST, ["v2", "entries"], Some("write")) => write(cloud, &caller, &call.read()?),
        (&Method::POST, ["v2", "entries"], Some(verb @ ("tail" | "copy"))) => {
            Err(Fault::not_enforced(&format!("entries.{verb}")))
        }
        (&Method::GET, ["v2", "projects", project, "logs"], None) => log_names(cloud, &caller, project),
        (_, ["v2", _, _, collection @ ("sinks" | "metrics" | "exclusions" | "locations"), ..], _) => {
            Err(Fault::not_enforced(collection))
        }
        _ => Err(error::unknown_method()),
    }
}

fn list(cloud: &Cloud, caller: &Caller, body: ListBody) -> Answer {
    let parents = parents(&cloud.control, caller, &body)?;
    if body.filter.chars().count() > FILTER_CHARS_MAX {
        return Err(Fault::invalid(format!("The filter is longer than {FILTER_CHARS_MAX} characters.")));
    }
    let query = Query {
        parents,
        filter: Filter::parse(&body.filter).map_err(|why| Fault::invalid(why.message))?,
        order: order(&body.order_by)?,
        page_size: page_size(body.page_size)?,
        page_token: Some(body.page_token).filter(|token| !token.is_empty()),
    };
    let page = read(&cloud.journal, &query)?;
    let mut shown = json!({});
    if !page.entries.is_empty() {
        shown["entries"] = page.entries.into();
    }
    if let Some(token) = page.next_page_token {
        shown["nextPageToken"] = token.into();
    }
    Ok(Reply::json(shown))
}

fn read(journal: &Journal, query: &Query) -> Result<logs::Page, Fault> {
    journal.query(query).map_err(|why| match why {
        QueryError::Token => Fault::invalid(why.to_string()),
        QueryError::Read { .. } => {
            eprintln!("api: {why}");
            Fault::internal("The logs cannot be read.")
        }
    })
}

/// The projects whose logs are asked for, by id. All of them must be readable.
fn parents(control: &Control, caller: &Caller, body: &ListBody) -> Result<Vec<String>, Fault> {
    let world = control.read();
    let old = body.project_ids.iter().map(|id| format!("projects/{id}"));
    let names: Vec<String> = body.resource_names.iter().cloned().chain(old).collect();
    match names.len() {
        0 => return Err(Fault::invalid("At least one resource name must be given in 'resource_names'.")),
        n if n > RESOURCES_MAX => {
            return Err(Fault::invalid(format!("At most {RESOURCES_MAX} resource names can be given.")));
        }
        _ => {}
    }
    names.iter().map(|name| parent(control, &world, caller, name)).collect()
}

fn parent(control: &Control, world: &World, caller: &Caller, name: &str) -> Result<String, Fault> {
    let parts: Vec<&str> = name.split('/').collect();
    let project = match parts.as_slice() {
        ["projects", project] => project,
        // Both views show all that there is.
        ["projects", project, "locations", "global", "buckets", "_Default", "views", "_AllLogs" | "_Default"] => {
            project
        }
        ["organizations" | "folders" | "billingAccounts", _] => return Err(Fault::not_enforced("resourceNames")),
        _ => return Err(Fault::invalid(format!("Invalid resource name '{name}'."))),
    };
    let absent = || Fault::new(Code::NotFound, "notFound", format!("Project does not exist: {project}"));
    let project = &world.project(project).ok_or_else(absent)?.id;
    let need = Need::on("logging.logEntries.list", format!("projects/{project}"));
    let denied = |_| Fault::new(Code::PermissionDenied, "forbidden", "Permission denied for all log views");
    control.authorize(world, caller, &[need]).map_err(denied)?;
    Ok(format!("projects/{project}"))
}

/// Source: entries.write; a batch is written whole or not at all unless `partialSuccess` is set. What was answered is
/// on disk, and with it every entry that came before.
fn write(cloud: &Cloud, caller: &Caller, batch: &Batch) -> Answer {
    let now = cloud.control.now();
    // Insert ids sort entries of one instant: those of a batch keep its order.
    let mut ids = (control::random::number() & 0xffff_0000..).map(|chance| logs::entry::insert_id(now, chance));
    let entries = batch.entries(now.into(), || ids.next().unwrap_or_default());
    if entries.is_empty() || entries.len() > LOG_WRITE_ENTRIES_MAX {
        return Err(Fault::invalid(format!("Between 1 and {LOG_WRITE_ENTRIES_MAX} log entries must be given.")));
    }
    let world = cloud.control.read();
    let mut faults = Map::new();
    let mut first = None;
    let mut good = Vec::new();
    for (number, entry) in entries.into_iter().enumerate() {
        match entry.map_err(Fault::invalid).and_then(|entry| admit(&cloud.control, &world, caller, entry)) {
            Ok(entry) => good.push(entry),
            Err(fault) => {
                faults.insert(number.to_string(), json!({"code": fault.code.grpc(), "message": fault.message}));
                first.get_or_insert(fault);
            }
        }
    }
    drop(world);
    if !batch.dry_run && (first.is_none() || batch.partial_success) {
        let ahead = |entry: &Entry| entry.timestamp.0.saturating_sub(LogTime::from(now).0);
        let within = -nanoseconds(LOG_RETENTION)..=nanoseconds(LOG_AHEAD_MAX);
        good.retain(|entry| within.contains(&ahead(entry)));
        cloud.journal.append(&good);
        cloud.journal.flush().map_err(|_| Fault::unavailable("The service is currently unavailable."))?;
    }
    match first {
        None => Ok(Reply::json(json!({}))),
        Some(fault) => Err(fault.with_detail(json!({
            "@type": "type.googleapis.com/google.logging.v2.WriteLogEntriesPartialErrors",
            "logEntryErrors": faults,
        }))),
    }
}

/// The entry under its project's id, if the caller may write it.
fn admit(control: &Control, world: &World, caller: &Caller, mut entry: Entry) -> Result<Entry, Fault> {
    let name = entry.log_name.to_string();
    let Some(project) = entry.log_name.parent.strip_prefix("projects/") else {
        return Err(Fault::not_enforced("logName"));
    };
    let denied = || {
        let message = "Permission 'logging.logEntries.create' denied on resource (or it may not exist).";
        Fault::new(Code::PermissionDenied, "forbidden", message)
    };
    let project = world.project(project).filter(|project| project.active).ok_or_else(denied)?.id.clone();
    let need = Need::on("logging.logEntries.create", format!("projects/{project}"));
    control.authorize(world, caller, &[need]).map_err(|_| denied())?;
    if PLATFORM_LOGS.contains(&entry.log_name.id.as_str()) {
        let message = format!("Log '{name}' is written by the platform and by nobody else.");
        return Err(Fault::new(Code::PermissionDenied, "forbidden", message));
    }
    entry.log_name = LogName::in_project(&project, &entry.log_name.id);
    entry.resource.labels.entry("project_id".to_owned()).or_insert_with(|| project.to_string());
    Ok(entry)
}

/// The names of logs that have entries: each is found by leaving out those that are known.
fn log_names(cloud: &Cloud, caller: &Caller, project: &str) -> Answer {
    let world = cloud.control.read();
    let absent = || Fault::new(Code::NotFound, "notFound", format!("Project does not exist: {project}"));
    let project = world.project(project).ok_or_else(absent)?.id.clone();
    let need = Need::on("logging.logs.list", format!("projects/{project}"));
    cloud
        .control
        .authorize(&world, caller, &[need])
        .map_err(|need| error::denied(error::Family::Logging, need.permission, &need.resource))?;
    drop(world);
    let mut names: BTreeSet<String> = BTreeSet::new();
    while names.len() < LOG_NAMES_MAX {
        let known = names.iter().filter_map(|name| LogName::parse(name));
        let others: Vec<String> = known.map(|name| format!("NOT log_id(\"{}\")", name.id)).collect();
        let filter = Filter::parse(&others.join(" AND ")).map_err(|why| Fault::internal(why.message))?;
        let parents = vec![format!("projects/{project}")];
        let query = Query { parents, filter, order: Order::Desc, page_size: 1, page_token: None };
        match read(&cloud.journal, &query)?.entries.first().and_then(|entry| entry["logName"].as_str()) {
            Some(name) => names.insert(name.to_owned()),
            None => break,
        };
    }
    Ok(Reply::json(if names.is_empty() { json!({}) } else { json!({"logNames": names}) }))
}

fn nanoseconds(length: Duration) -> i64 {
    i64::try_from(length.as_nanos()).unwrap_or(i64::MAX)
}

fn order(text: &str) -> Result<Order, Fault> {
    let words: Vec<&str> = text.split_whitespace().collect();
    match words.as_slice() {
        [] | ["timestamp"] | ["timestamp", "asc"] => Ok(Order::Asc),
        ["timestamp", "desc"] => Ok(Order::Desc),
        _ => Err(Fault::invalid(format!(
            "Invalid order_by '{text}': only \"timestamp asc\" and \"timestamp desc\" are allowed."
        ))),
    }
}

fn page_size(asked: i64) -> Result<usize, Fault> {
    match usize::try_from(asked) {
        Ok(0) => Ok(PAGE_DEFAULT),
        Ok(size) => Ok(size.min(LOGGING_PAGE_MAX)),
        Err(_) => Err(Fault::invalid("page_size must not be negative.")),
    }
}
