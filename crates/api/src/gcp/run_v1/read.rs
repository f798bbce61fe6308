//! A Knative Service as gcloud sends it, read into what `control` stores.
//!
//! Names and types were checked by [`crate::schema`], fields we do not obey were refused by [`crate::support`]; here
//! defaults are filled in. What values may be is `control`'s business.

use std::collections::BTreeMap;

use control::run::check::{parse_cpu, parse_memory};
use model::{
    fault::Fault,
    limits::{RUN_CONCURRENCY_DEFAULT, RUN_TIMEOUT_S_DEFAULT},
    run::{Container, Probe, ProbeCheck, RevisionTemplate, Service, ServiceKey, TrafficTarget},
};
use serde_json::Value;

use super::annotations;
use crate::{
    schema::{self, Kind, integer},
    support,
};

const PROBE_TYPE: &str = "run.googleapis.com/startupProbeType";
const LOCATION: &str = "cloud.googleapis.com/location";
const CONTAINER: &str = "spec.template.spec.containers[0]";

/// A request body.
#[derive(Clone, Debug, PartialEq)]
pub struct Asked {
    pub service: Service,
    pub name: String,
    /// What the client had read; None: whatever is there.
    pub resource_version: Option<String>,
}

/// Reads a Service. `region` is where it is to be; `namespaces` are the spellings of its project.
///
/// # Errors
/// 400 for what is no Service, [`Fault::not_enforced`] for what we would not obey.
pub fn service(body: Value, namespaces: &[String], region: &str) -> Result<Asked, Fault> {
    schema::check(Kind::RunServiceV1, &body)?;
    let admitted = support::admit(Kind::RunServiceV1, body)?;
    let body = Value::Object(admitted.effective);
    for (field, want) in [("apiVersion", "serving.knative.dev/v1"), ("kind", "Service")] {
        match body[field].as_str() {
            None | Some("") => {}
            Some(given) if given == want => {}
            Some(given) => return Err(Fault::invalid(format!("{field}: '{given}' is not '{want}'."))),
        }
    }
    let meta = &body["metadata"];
    let namespace = meta["namespace"].as_str().unwrap_or("");
    if !namespace.is_empty() && !namespaces.iter().any(|n| n == namespace) {
        return Err(Fault::invalid(format!(
            "metadata.namespace: '{namespace}' does not match the project of the request."
        )));
    }
    let mut labels = map(&meta["labels"]);
    if labels.remove(LOCATION).is_some_and(|at| at != region) {
        return Err(Fault::invalid(format!(
            "metadata.labels[{LOCATION}]: must be the region of the request, '{region}'."
        )));
    }
    let says = annotations::of_service(&map(&meta["annotations"]))?;
    let service = Service {
        ingress: says.ingress,
        invoker_iam_disabled: says.invoker_iam_disabled,
        default_url_disabled: says.default_url_disabled,
        custom_audiences: says.custom_audiences,
        template: template(&body["spec"]["template"])?,
        traffic: traffic(&body["spec"]["traffic"])?,
        labels,
        annotations: says.kept,
        scaling: says.scaling,
        creator: String::new(),
        last_modifier: String::new(),
        description: says.description,
    };
    Ok(Asked {
        service,
        name: text(&meta["name"]),
        resource_version: Some(text(&meta["resourceVersion"])).filter(|version| !version.is_empty()),
    })
}

/// The spellings of a project in `metadata.namespace`.
pub fn namespaces(key: &ServiceKey, number: impl ToString) -> Vec<String> {
    vec![key.project.to_string(), number.to_string()]
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn texts(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().map(text).collect()
}

fn map(value: &Value) -> BTreeMap<String, String> {
    value.as_object().into_iter().flatten().map(|(k, v)| (k.clone(), text(v))).collect()
}

/// A number that the schema found to be one; None when it is not there.
fn number(field: &str, value: &Value) -> Result<Option<u32>, Fault> {
    match integer(value) {
        None => Ok(None),
        Some(n) => u32::try_from(n).map(Some).map_err(|_| Fault::invalid(format!("{field}: must not be negative."))),
    }
}

fn port(field: &str, value: &Value) -> Result<Option<u16>, Fault> {
    let out = || Fault::invalid(format!("{field}: should be between 1 and 65535"));
    match number(field, value)? {
        None => Ok(None),
        Some(0) => Err(out()),
        Some(n) => u16::try_from(n).map(Some).map_err(|_| out()),
    }
}

fn template(value: &Value) -> Result<RevisionTemplate, Fault> {
    let (meta, spec) = (&value["metadata"], &value["spec"]);
    let says = annotations::of_template(&map(&meta["annotations"]))?;
    let mut labels = map(&meta["labels"]);
    let default_probe = labels.remove(PROBE_TYPE).as_deref() == Some("Default");
    labels.remove(LOCATION);
    let container = container(&spec["containers"], default_probe)?;
    let concurrency = number("spec.template.spec.containerConcurrency", &spec["containerConcurrency"])?;
    let concurrency = concurrency.filter(|n| *n > 0).unwrap_or(if container.cpu_millis < 1_000 {
        1
    } else {
        RUN_CONCURRENCY_DEFAULT
    });
    Ok(RevisionTemplate {
        name: Some(text(&meta["name"])).filter(|name| !name.is_empty()),
        labels,
        annotations: says.kept,
        container,
        concurrency,
        timeout_s: number("spec.template.spec.timeoutSeconds", &spec["timeoutSeconds"])?
            .unwrap_or(RUN_TIMEOUT_S_DEFAULT),
        service_account: text(&spec["serviceAccountName"]),
        scaling: says.scaling,
    })
}

fn container(list: &Value, default_probe: bool) -> Result<Container, Fault> {
    let c = match list.as_array().map(Vec::as_slice) {
        Some([one]) => one,
        None | Some([]) => {
            return Err(Fault::invalid("spec.template.spec.containers: at least one container is required."));
        }
        // Sidecars would have to run beside it.
        Some(_) => return Err(Fault::not_enforced("spec.template.spec.containers[1]")),
    };
    let image = text(&c["image"]);
    let port = container_port(&c["ports"])?;
    let mut limits = map(&c["resources"]["limits"]);
    limits.entry("cpu".into()).or_insert_with(|| "1000m".into());
    limits.entry("memory".into()).or_insert_with(|| "512Mi".into());
    let at = format!("{CONTAINER}.resources.limits");
    if let Some(other) = limits.keys().find(|k| !["cpu", "memory"].contains(&k.as_str())) {
        return Err(Fault::not_enforced(&format!("{at}.{other}")));
    }
    let cpu = parse_cpu(&limits["cpu"])
        .ok_or_else(|| Fault::invalid(format!("{at}.cpu: '{}' is not a valid Quantity.", limits["cpu"])))?;
    let memory = parse_memory(&format!("{at}.memory"), &limits["memory"])?;
    Ok(Container {
        name: Some(text(&c["name"])).filter(|n| !n.is_empty()).unwrap_or_else(|| default_name(&image)),
        image,
        command: texts(&c["command"]),
        args: texts(&c["args"]),
        env: env(&c["env"]),
        working_dir: Some(text(&c["workingDir"])).filter(|dir| !dir.is_empty()),
        port,
        cpu_millis: cpu,
        memory_bytes: memory,
        limits_written: limits,
        startup_probe: probe(&c["startupProbe"], port, default_probe)?,
    })
}

/// The image's last name with a number. Source: names that Cloud Run gives to containers without one.
fn default_name(image: &str) -> String {
    let path = image.split('@').next().unwrap_or(image);
    let base = control::run::image::untagged(path).rsplit('/').next().unwrap_or("");
    let clean: String =
        base.to_ascii_lowercase().chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).take(60).collect();
    format!("{}-1", clean.trim_matches('-'))
}

fn container_port(list: &Value) -> Result<u16, Fault> {
    let at = format!("{CONTAINER}.ports");
    let one = match list.as_array().map(Vec::as_slice) {
        None | Some([]) => return Ok(8_080),
        Some([one]) => one,
        Some(_) => return Err(Fault::invalid(format!("{at}: at most one port is allowed."))),
    };
    match one["name"].as_str() {
        None | Some("" | "http1") => {}
        Some("h2c") => return Err(Fault::not_enforced(&format!("{at}.name"))),
        Some(other) => return Err(Fault::invalid(format!("{at}.name: '{other}' should be one of [http1, h2c]."))),
    }
    Ok(port(&format!("{at}.containerPort"), &one["containerPort"])?.unwrap_or(8_080))
}

/// Of a name that comes twice the last one counts, where the first one stood.
fn env(list: &Value) -> Vec<(String, String)> {
    let mut out: Vec<(String, String)> = Vec::new();
    for item in list.as_array().into_iter().flatten() {
        let (name, value) = (text(&item["name"]), text(&item["value"]));
        match out.iter_mut().find(|(known, _)| *known == name) {
            Some(known) => known.1 = value,
            None => out.push((name, value)),
        }
    }
    out
}

/// A probe without a kind, and one that is the default's likeness under the default's label, is the default one: it
/// follows the port when that changes.
fn probe(value: &Value, container_port: u16, labelled_default: bool) -> Result<Probe, Fault> {
    let default = Probe::default_for(container_port);
    let at = format!("{CONTAINER}.startupProbe");
    let (tcp, http) = (value.get("tcpSocket"), value.get("httpGet"));
    let check = match (tcp, http) {
        (Some(_), Some(_)) => {
            return Err(Fault::invalid(format!("{at}: exactly one of [tcpSocket, httpGet, grpc] must be set.")));
        }
        (Some(tcp), None) => {
            ProbeCheck::Tcp { port: port(&format!("{at}.tcpSocket.port"), &tcp["port"])?.unwrap_or(container_port) }
        }
        (None, Some(http)) => ProbeCheck::Http {
            port: port(&format!("{at}.httpGet.port"), &http["port"])?.unwrap_or(container_port),
            path: Some(text(&http["path"])).filter(|p| !p.is_empty()).unwrap_or_else(|| "/".into()),
            headers: headers(&http["httpHeaders"]),
        },
        (None, None) if value.as_object().is_none_or(serde_json::Map::is_empty) => return Ok(default),
        (None, None) => ProbeCheck::Tcp { port: container_port },
    };
    let seconds =
        |field: &str, otherwise: u32| Ok(number(&format!("{at}.{field}"), &value[field])?.unwrap_or(otherwise));
    let given = Probe {
        check,
        initial_delay_s: seconds("initialDelaySeconds", 0)?,
        timeout_s: seconds("timeoutSeconds", 1)?,
        period_s: seconds("periodSeconds", 10)?,
        failure_threshold: seconds("failureThreshold", 3)?,
        is_default: true,
    };
    let tcp_port = match given.check {
        ProbeCheck::Tcp { port } => Some(port),
        ProbeCheck::Http { .. } => None,
    };
    let likeness = tcp_port.is_some_and(|port| given == Probe::default_for(port));
    if likeness && (labelled_default || tcp_port == Some(container_port)) {
        return Ok(default);
    }
    Ok(Probe { is_default: false, ..given })
}

fn headers(list: &Value) -> Vec<(String, String)> {
    list.as_array().into_iter().flatten().map(|h| (text(&h["name"]), text(&h["value"]))).collect()
}

fn traffic(list: &Value) -> Result<Vec<TrafficTarget>, Fault> {
    let latest = TrafficTarget { revision: None, percent: 100, tag: None };
    let Some(items) = list.as_array().filter(|items| !items.is_empty()) else { return Ok(vec![latest]) };
    let target = |(n, item): (usize, &Value)| {
        let revision = Some(text(&item["revisionName"])).filter(|name| !name.is_empty());
        let follows = item["latestRevision"].as_bool().unwrap_or(false);
        match (&revision, follows) {
            (Some(_), true) => Err(Fault::invalid(format!(
                "spec.traffic[{n}].latestRevision: must be false when revisionName is set."
            ))),
            (None, false) => {
                Err(Fault::invalid(format!("spec.traffic[{n}]: either revisionName or latestRevision must be set.")))
            }
            (Some(_), false) | (None, true) => {
                let percent = number("spec.traffic.percent", &item["percent"])?.unwrap_or(0);
                let percent = u8::try_from(percent)
                    .ok()
                    .filter(|p| *p <= 100)
                    .ok_or_else(|| Fault::invalid(format!("spec.traffic[{n}].percent: should be between 0 and 100")))?;
                Ok(TrafficTarget { revision, percent, tag: Some(text(&item["tag"])).filter(|tag| !tag.is_empty()) })
            }
        }
    };
    items.iter().enumerate().map(target).collect()
}
