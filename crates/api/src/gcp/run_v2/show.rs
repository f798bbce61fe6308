//! Services and revisions as v2 shows them. What is false, zero or empty is left out, as proto3 does.

use control::{
    run::status::{self, Condition, Tri},
    world::{ServiceRecord, World},
};
use model::run::{Ingress, ProbeCheck, Revision, RevisionState, RevisionTemplate, Scaling};
use serde_json::{Map, Value, json};

use crate::gcp::run_v1::{annotations::RUN, show::resource_version};

pub fn etag(version: u64) -> String {
    format!("\"{}\"", resource_version(version))
}

pub fn service(world: &World, s: &ServiceRecord) -> Value {
    let spec = &s.spec;
    let conditions = status::conditions(world, s);
    let addresses = status::addresses(world, s);
    let mut out = Map::new();
    let mut put = |name: &str, value: Value| {
        if !crate::support::is_default(&value) {
            out.insert(name.to_owned(), value);
        }
    };
    put("name", s.key.to_string().into());
    put("description", json!(spec.description));
    put("uid", s.uid.as_str().into());
    put("generation", s.generation.to_string().into());
    put("labels", json!(spec.labels));
    let (run, users): (Vec<_>, Vec<_>) = spec.annotations.iter().partition(|(name, _)| name.starts_with(RUN));
    put("annotations", users.into_iter().map(|(k, v)| (k.clone(), json!(v))).collect::<Map<_, _>>().into());
    put("createTime", s.created.rfc3339_us().into());
    put("updateTime", s.updated.rfc3339_us().into());
    put("creator", spec.creator.as_str().into());
    put("lastModifier", spec.last_modifier.as_str().into());
    let kept = |name: &str| run.iter().find(|(k, _)| k.strip_prefix(RUN) == Some(name)).map(|(_, v)| v.as_str());
    put("client", json!(kept("client-name")));
    put("clientVersion", json!(kept("client-version")));
    put("ingress", ingress(spec.ingress).into());
    put("launchStage", kept("launch-stage").unwrap_or("GA").into());
    put("template", template(&spec.template));
    put("traffic", spec.traffic.iter().map(|t| traffic(t.revision.as_deref(), t.percent, t.tag.as_deref())).collect());
    put("scaling", scaling(&spec.scaling));
    put("invokerIamDisabled", spec.invoker_iam_disabled.into());
    put("defaultUriDisabled", spec.default_url_disabled.into());
    put("observedGeneration", s.observed.to_string().into());
    put("terminalCondition", condition("Ready", &conditions.ready));
    put(
        "conditions",
        json!([
            condition("RoutesReady", &conditions.routes_ready),
            condition("ConfigurationsReady", &conditions.configurations_ready),
        ]),
    );
    let revision = |name: &Option<String>| json!(name.as_ref().map(|name| format!("{}/revisions/{name}", s.key)));
    put("latestReadyRevision", revision(&s.latest_ready));
    put("latestCreatedRevision", revision(&s.latest_created));
    put("trafficStatuses", traffic_statuses(world, s));
    put("uri", json!(addresses.url));
    put("urls", json!(addresses.urls));
    put("customAudiences", json!(spec.custom_audiences));
    put("reconciling", (conditions.ready.status == Tri::Unknown).into());
    put("etag", etag(s.version).into());
    out.into()
}

fn ingress(ingress: Ingress) -> &'static str {
    match ingress {
        Ingress::All => "INGRESS_TRAFFIC_ALL",
        Ingress::Internal => "INGRESS_TRAFFIC_INTERNAL_ONLY",
        Ingress::InternalAndCloudLoadBalancing => "INGRESS_TRAFFIC_INTERNAL_LOAD_BALANCER",
        Ingress::None => "INGRESS_TRAFFIC_NONE",
    }
}

fn scaling(s: &Scaling) -> Value {
    let mut out = Map::new();
    if s.min > 0 {
        out.insert("minInstanceCount".into(), s.min.into());
    }
    if let Some(max) = s.max {
        out.insert("maxInstanceCount".into(), max.into());
    }
    out.into()
}

fn traffic(revision: Option<&str>, percent: u8, tag: Option<&str>) -> Value {
    let mut out = Map::new();
    match revision {
        Some(name) => {
            out.insert("type".into(), "TRAFFIC_TARGET_ALLOCATION_TYPE_REVISION".into());
            out.insert("revision".into(), name.into());
        }
        None => {
            out.insert("type".into(), "TRAFFIC_TARGET_ALLOCATION_TYPE_LATEST".into());
        }
    }
    if percent > 0 {
        out.insert("percent".into(), percent.into());
    }
    if let Some(tag) = tag {
        out.insert("tag".into(), tag.into());
    }
    out.into()
}

fn traffic_statuses(world: &World, s: &ServiceRecord) -> Value {
    let project = world.projects.get(&s.key.project);
    let line = |t: status::Target| {
        let mut out = traffic(Some(&t.revision.name), t.percent, t.tag.as_deref());
        if t.latest {
            out["type"] = "TRAFFIC_TARGET_ALLOCATION_TYPE_LATEST".into();
        }
        if let (Some(tag), Some(project)) = (&t.tag, project) {
            out["uri"] = status::tag_url(project, &s.key, tag).into();
        }
        out
    };
    status::targets(world, s).into_iter().map(line).collect()
}

/// The template's fields; a revision shows the same ones at its top level.
fn template(t: &RevisionTemplate) -> Value {
    let mut out = Map::new();
    if let Some(name) = &t.name {
        out.insert("revision".into(), name.as_str().into());
    }
    let users: Map<String, Value> =
        t.annotations.iter().filter(|(k, _)| !k.starts_with(RUN)).map(|(k, v)| (k.clone(), json!(v))).collect();
    let kept = |name: &str| t.annotations.get(&format!("{RUN}{name}")).map(String::as_str);
    let mut put = |name: &str, value: Value| {
        if !crate::support::is_default(&value) {
            out.insert(name.to_owned(), value);
        }
    };
    put("labels", json!(t.labels));
    put("annotations", users.into());
    put("client", json!(kept("client-name")));
    put("clientVersion", json!(kept("client-version")));
    put("scaling", scaling(&t.scaling));
    put("timeout", format!("{}s", t.timeout_s).into());
    put("serviceAccount", t.service_account.as_str().into());
    put("containers", json!([container(t)]));
    put(
        "executionEnvironment",
        match kept("execution-environment") {
            Some("gen1") => "EXECUTION_ENVIRONMENT_GEN1".into(),
            Some(_) => "EXECUTION_ENVIRONMENT_GEN2".into(),
            None => Value::Null,
        },
    );
    put("maxInstanceRequestConcurrency", t.concurrency.into());
    out.into()
}

fn container(t: &RevisionTemplate) -> Value {
    let c = &t.container;
    let mut out = json!({"name": c.name, "image": c.image});
    for (name, list) in [("command", &c.command), ("args", &c.args)] {
        if !list.is_empty() {
            out[name] = json!(list);
        }
    }
    if !c.env.is_empty() {
        out["env"] = c.env.iter().map(|(name, value)| json!({"name": name, "value": value})).collect();
    }
    out["resources"] = json!({"limits": c.limits_written});
    if t.annotations.get(&format!("{RUN}cpu-throttling")).map(String::as_str) != Some("false") {
        out["resources"]["cpuIdle"] = true.into();
    }
    if t.annotations.get(&format!("{RUN}startup-cpu-boost")).map(String::as_str) == Some("true") {
        out["resources"]["startupCpuBoost"] = true.into();
    }
    out["ports"] = json!([{"name": "http1", "containerPort": c.port}]);
    if let Some(dir) = &c.working_dir {
        out["workingDir"] = dir.as_str().into();
    }
    let p = &c.startup_probe;
    let mut probe =
        json!({"timeoutSeconds": p.timeout_s, "periodSeconds": p.period_s, "failureThreshold": p.failure_threshold});
    if p.initial_delay_s > 0 {
        probe["initialDelaySeconds"] = p.initial_delay_s.into();
    }
    match &p.check {
        ProbeCheck::Tcp { port } => probe["tcpSocket"] = json!({"port": port}),
        ProbeCheck::Http { port, path, headers } => {
            probe["httpGet"] = json!({"path": path, "port": port});
            if !headers.is_empty() {
                probe["httpGet"]["httpHeaders"] = headers.iter().map(|(n, v)| json!({"name": n, "value": v})).collect();
            }
        }
    }
    out["startupProbe"] = probe;
    out
}

fn condition(kind: &str, c: &Condition) -> Value {
    let state = match c.status {
        Tri::True => "CONDITION_SUCCEEDED",
        Tri::False => "CONDITION_FAILED",
        Tri::Unknown => "CONDITION_RECONCILING",
    };
    let mut out = json!({"type": kind, "state": state});
    if let Some(message) = c.message.as_ref().filter(|m| !m.is_empty()) {
        out["message"] = message.as_str().into();
    }
    out["lastTransitionTime"] = c.since.rfc3339_us().into();
    match c.reason.as_deref() {
        Some("HealthCheckContainerError") => out["revisionReason"] = "HEALTH_CHECK_CONTAINER_ERROR".into(),
        Some("ContainerMissing") => out["reason"] = "CONTAINER_MISSING".into(),
        Some("ProgressDeadlineExceeded") => out["reason"] = "PROGRESS_DEADLINE_EXCEEDED".into(),
        Some(_) => out["reason"] = "REVISION_FAILED".into(),
        None => {}
    }
    out
}

pub fn revision(world: &World, r: &Revision) -> Value {
    let since = match &r.state {
        RevisionState::Deploying => r.created,
        RevisionState::Ready { since } | RevisionState::Failed { since, .. } => *since,
    };
    let ready = match &r.state {
        RevisionState::Deploying => {
            Condition { status: Tri::Unknown, reason: None, message: Some("Deploying Revision.".into()), since }
        }
        RevisionState::Ready { .. } => {
            let message = format!("Deploying revision succeeded in {}.", status::seconds(r, since));
            Condition { status: Tri::True, reason: None, message: Some(message), since }
        }
        RevisionState::Failed { reason, message, .. } => {
            Condition { status: Tri::False, reason: Some(reason.clone()), message: Some(message.clone()), since }
        }
    };
    let mut out = json!({
        "name": r.key.to_string(),
        "uid": r.uid,
        "generation": "1",
        "createTime": r.created.rfc3339_us(),
        "updateTime": since.rfc3339_us(),
        "service": r.key.service.name,
        "launchStage": "GA",
    });
    if let (Value::Object(out), Value::Object(fields)) = (&mut out, template(&r.template)) {
        out.extend(fields.into_iter().filter(|(name, _)| name != "revision"));
    }
    let mut conditions = vec![condition("Ready", &ready)];
    let active = if status::has_instances(world, &r.key) { Tri::True } else { Tri::False };
    let mut shown = condition("Active", &Condition { status: active, reason: None, message: None, since });
    shown["severity"] = "INFO".into();
    conditions.push(shown);
    out["conditions"] = conditions.into();
    out["observedGeneration"] = "1".into();
    if r.state == RevisionState::Deploying {
        out["reconciling"] = true.into();
    }
    out["creator"] = r.creator.as_str().into();
    out["etag"] = etag(u64::try_from(since.0).unwrap_or(0)).into();
    out
}
