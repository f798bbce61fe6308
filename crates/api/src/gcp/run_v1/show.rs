//! Services, revisions and their relatives as Knative objects.

use control::{
    run::status::{self, Condition, Tri},
    world::{ServiceRecord, World},
};
use identity::base64::{self, Form};
use model::{
    project::Project,
    run::{ProbeCheck, Revision, RevisionState, RevisionTemplate, Service},
    time::Timestamp,
};
use serde_json::{Map, Value, json};

use super::annotations::{AUTOSCALING, RUN, ingress_text};

pub const SERVING: &str = "serving.knative.dev/v1";
const LOCATION: &str = "cloud.googleapis.com/location";

/// Microseconds as `resourceVersion` shows them: eight bytes in base64 without padding.
pub fn resource_version(version: u64) -> String {
    base64::encode(Form::Standard, &version.to_be_bytes()).trim_end_matches('=').to_owned()
}

/// The microseconds of a `resourceVersion`; None: not one of ours.
pub fn parse_version(text: &str) -> Option<u64> {
    let bytes = base64::decode(Form::Standard, &format!("{text}="))?;
    Some(u64::from_be_bytes(bytes.try_into().ok()?))
}

fn self_link(number: &str, collection: &str, name: &str) -> String {
    format!("/apis/{SERVING}/namespaces/{number}/{collection}/{name}")
}

fn number(world: &World, service: &ServiceRecord) -> String {
    world.projects.get(&service.key.project).map(|p| p.number.to_string()).unwrap_or_default()
}

pub fn service(world: &World, service: &ServiceRecord) -> Value {
    let number = number(world, service);
    let name = &service.key.name;
    let mut labels: Map<String, Value> = strings(&service.spec.labels);
    labels.insert(LOCATION.into(), service.key.region.as_str().into());
    json!({
        "apiVersion": SERVING,
        "kind": "Service",
        "metadata": {
            "name": name,
            "namespace": number,
            "selfLink": self_link(&number, "services", name),
            "uid": service.uid,
            "resourceVersion": resource_version(service.version),
            "generation": service.generation,
            "creationTimestamp": service.created.rfc3339_us(),
            "labels": labels,
            "annotations": annotations(world, service),
        },
        "spec": {"template": template(&service.spec.template), "traffic": traffic(&service.spec)},
        "status": service_status(world, service),
    })
}

fn strings<'a>(map: impl IntoIterator<Item = (&'a String, &'a String)>) -> Map<String, Value> {
    map.into_iter().map(|(k, v)| (k.clone(), v.as_str().into())).collect()
}

fn annotations(world: &World, service: &ServiceRecord) -> Map<String, Value> {
    let spec = &service.spec;
    let mut out = strings(&spec.annotations);
    out.insert("serving.knative.dev/creator".into(), spec.creator.as_str().into());
    out.insert("serving.knative.dev/lastModifier".into(), spec.last_modifier.as_str().into());
    let mut run = |name: &str, value: String| out.insert(format!("{RUN}{name}"), value.into());
    run("operation-id", service.operation.clone());
    run("ingress", ingress_text(spec.ingress).to_owned());
    run("ingress-status", ingress_text(spec.ingress).to_owned());
    let urls = status::addresses(world, service).urls;
    if !urls.is_empty() {
        run("urls", json!(urls).to_string());
    }
    if spec.invoker_iam_disabled {
        run("invoker-iam-disabled", "true".into());
    }
    if spec.default_url_disabled {
        run("default-url-disabled", "true".into());
    }
    if !spec.custom_audiences.is_empty() {
        run("custom-audiences", json!(spec.custom_audiences).to_string());
    }
    if spec.scaling.min > 0 {
        run("minScale", spec.scaling.min.to_string());
    }
    if let Some(max) = spec.scaling.max {
        run("maxScale", max.to_string());
    }
    if let Some(description) = &spec.description {
        run("description", description.clone());
    }
    out.sort_keys();
    out
}

fn template(t: &RevisionTemplate) -> Value {
    let mut meta = Map::new();
    if let Some(name) = &t.name {
        meta.insert("name".into(), name.as_str().into());
    }
    meta.insert("labels".into(), template_labels(t).into());
    meta.insert("annotations".into(), template_annotations(t).into());
    json!({"metadata": meta, "spec": revision_spec(t)})
}

fn template_labels(t: &RevisionTemplate) -> Map<String, Value> {
    let mut labels = strings(&t.labels);
    let kind = if t.container.startup_probe.is_default { "Default" } else { "Custom" };
    labels.insert(format!("{RUN}startupProbeType"), kind.into());
    labels
}

fn template_annotations(t: &RevisionTemplate) -> Map<String, Value> {
    let mut out = Map::new();
    if t.scaling.min > 0 {
        out.insert(format!("{AUTOSCALING}minScale"), t.scaling.min.to_string().into());
    }
    if let Some(max) = t.scaling.max {
        out.insert(format!("{AUTOSCALING}maxScale"), max.to_string().into());
    }
    out.extend(strings(&t.annotations));
    out
}

fn revision_spec(t: &RevisionTemplate) -> Value {
    let c = &t.container;
    let mut container = Map::new();
    let mut put = |name: &str, value: Value| container.insert(name.into(), value);
    put("name", c.name.as_str().into());
    put("image", c.image.as_str().into());
    if !c.command.is_empty() {
        put("command", json!(c.command));
    }
    if !c.args.is_empty() {
        put("args", json!(c.args));
    }
    if !c.env.is_empty() {
        put("env", c.env.iter().map(|(name, value)| json!({"name": name, "value": value})).collect());
    }
    if let Some(dir) = &c.working_dir {
        put("workingDir", dir.as_str().into());
    }
    put("ports", json!([{"name": "http1", "containerPort": c.port}]));
    put("resources", json!({"limits": c.limits_written}));
    put("startupProbe", probe(t));
    json!({
        "containerConcurrency": t.concurrency,
        "timeoutSeconds": t.timeout_s,
        "serviceAccountName": t.service_account,
        "containers": [container],
    })
}

fn probe(t: &RevisionTemplate) -> Value {
    let p = &t.container.startup_probe;
    let mut out = Map::new();
    if p.initial_delay_s > 0 {
        out.insert("initialDelaySeconds".into(), p.initial_delay_s.into());
    }
    out.insert("timeoutSeconds".into(), p.timeout_s.into());
    out.insert("periodSeconds".into(), p.period_s.into());
    out.insert("failureThreshold".into(), p.failure_threshold.into());
    match &p.check {
        ProbeCheck::Tcp { port } => out.insert("tcpSocket".into(), json!({"port": port})),
        ProbeCheck::Http { port, path, headers } => {
            let mut get = json!({"path": path, "port": port});
            if !headers.is_empty() {
                get["httpHeaders"] =
                    headers.iter().map(|(name, value)| json!({"name": name, "value": value})).collect();
            }
            out.insert("httpGet".into(), get)
        }
    };
    out.into()
}

fn traffic(spec: &Service) -> Value {
    let line = |t: &model::run::TrafficTarget| {
        let mut out = Map::new();
        match &t.revision {
            Some(name) => out.insert("revisionName".into(), name.as_str().into()),
            None => out.insert("latestRevision".into(), true.into()),
        };
        if t.percent > 0 {
            out.insert("percent".into(), t.percent.into());
        }
        if let Some(tag) = &t.tag {
            out.insert("tag".into(), tag.as_str().into());
        }
        Value::Object(out)
    };
    spec.traffic.iter().map(line).collect()
}

fn service_status(world: &World, service: &ServiceRecord) -> Value {
    let conditions = status::conditions(world, service);
    let mut out = Map::new();
    out.insert("observedGeneration".into(), status::observed_generation(service).into());
    out.insert(
        "conditions".into(),
        json!([
            condition("Ready", &conditions.ready, None),
            condition("ConfigurationsReady", &conditions.configurations_ready, None),
            condition("RoutesReady", &conditions.routes_ready, None),
        ]),
    );
    if let Some(name) = &service.latest_ready {
        out.insert("latestReadyRevisionName".into(), name.as_str().into());
    }
    if let Some(name) = &service.latest_created {
        out.insert("latestCreatedRevisionName".into(), name.as_str().into());
    }
    let targets = resolved_traffic(world, service);
    if !targets.is_empty() {
        out.insert("traffic".into(), targets.into());
    }
    if let Some(url) = status::addresses(world, service).url {
        out.insert("url".into(), url.as_str().into());
        out.insert("address".into(), json!({"url": url}));
    }
    out.into()
}

fn resolved_traffic(world: &World, service: &ServiceRecord) -> Vec<Value> {
    let project = world.projects.get(&service.key.project);
    let line = |t: status::Target| {
        let mut out = Map::new();
        out.insert("revisionName".into(), t.revision.name.as_str().into());
        if t.percent > 0 {
            out.insert("percent".into(), t.percent.into());
        }
        if t.latest {
            out.insert("latestRevision".into(), true.into());
        }
        if let (Some(tag), Some(project)) = (&t.tag, project) {
            out.insert("tag".into(), tag.as_str().into());
            out.insert("url".into(), status::tag_url(project, &service.key, tag).into());
        }
        Value::Object(out)
    };
    status::targets(world, service).into_iter().map(line).collect()
}

fn tri(status: Tri) -> &'static str {
    match status {
        Tri::True => "True",
        Tri::False => "False",
        Tri::Unknown => "Unknown",
    }
}

fn condition(kind: &str, c: &Condition, severity: Option<&str>) -> Value {
    let mut out = json!({"type": kind, "status": tri(c.status)});
    if let Some(reason) = &c.reason {
        out["reason"] = reason.as_str().into();
    }
    if let Some(message) = c.message.as_ref().filter(|m| !m.is_empty()) {
        out["message"] = message.as_str().into();
    }
    out["lastTransitionTime"] = c.since.rfc3339_us().into();
    if let Some(severity) = severity {
        out["severity"] = severity.into();
    }
    out
}

pub fn revision(world: &World, r: &Revision) -> Value {
    let key = &r.key.service;
    let service = world.services.get(key);
    let number = world.projects.get(&key.project).map(|p: &Project| p.number.to_string()).unwrap_or_default();
    let mut labels = template_labels(&r.template);
    for (name, value) in [
        ("serving.knative.dev/configuration", key.name.clone()),
        ("serving.knative.dev/configurationGeneration", r.number.to_string()),
        ("serving.knative.dev/route", key.name.clone()),
        ("serving.knative.dev/service", key.name.clone()),
        ("serving.knative.dev/serviceUid", service.map(|s| s.uid.clone()).unwrap_or_default()),
        (LOCATION, key.region.to_string()),
    ] {
        labels.insert(name.into(), value.into());
    }
    let mut annotations = template_annotations(&r.template);
    annotations.insert("serving.knative.dev/creator".into(), r.creator.as_str().into());
    json!({
        "apiVersion": SERVING,
        "kind": "Revision",
        "metadata": {
            "name": r.key.name,
            "namespace": number,
            "selfLink": self_link(&number, "revisions", &r.key.name),
            "uid": r.uid,
            "resourceVersion": resource_version(u64::try_from(changed(r).0).unwrap_or(0)),
            "generation": 1,
            "creationTimestamp": r.created.rfc3339_us(),
            "labels": labels,
            "annotations": annotations,
            "ownerReferences": [{
                "kind": "Configuration", "apiVersion": SERVING, "name": key.name,
                "uid": service.map(|s| s.uid.clone()), "controller": true, "blockOwnerDeletion": true,
            }],
        },
        "spec": revision_spec(&r.template),
        "status": revision_status(world, r),
    })
}

fn changed(r: &Revision) -> Timestamp {
    match &r.state {
        RevisionState::Deploying => r.created,
        RevisionState::Ready { since } | RevisionState::Failed { since, .. } => *since,
    }
}

fn revision_status(world: &World, r: &Revision) -> Value {
    let since = changed(r);
    let plain = |status, message: Option<String>| Condition { status, reason: None, message, since };
    let seconds = status::seconds(r, since);
    let (ready, healthy) = match &r.state {
        RevisionState::Deploying => {
            (plain(Tri::Unknown, Some("Deploying Revision.".into())), plain(Tri::Unknown, None))
        }
        RevisionState::Ready { .. } => (
            plain(Tri::True, Some(format!("Deploying revision succeeded in {seconds}."))),
            plain(Tri::True, Some(format!("Containers became healthy in {seconds}."))),
        ),
        RevisionState::Failed { reason, message, .. } => {
            let failed =
                Condition { status: Tri::False, reason: Some(reason.clone()), message: Some(message.clone()), since };
            (failed.clone(), failed)
        }
    };
    let active = if status::has_instances(world, &r.key) {
        plain(Tri::True, None)
    } else {
        Condition {
            status: Tri::False,
            reason: Some("Reserve".into()),
            message: Some("Revision is not serving traffic.".into()),
            since,
        }
    };
    let mut conditions = vec![
        condition("Ready", &ready, None),
        condition("Active", &active, Some("Info")),
        condition("ContainerHealthy", &healthy, None),
    ];
    let mut out = json!({"observedGeneration": 1});
    if !r.image_digest.is_empty() {
        conditions.push(condition("ContainerReady", &plain(Tri::True, None), None));
        conditions.push(condition("ResourcesAvailable", &plain(Tri::True, None), None));
        let image = r.template.container.image.split('@').next().unwrap_or_default();
        let digest = format!("{}@{}", control::run::image::untagged(image), r.image_digest);
        out["imageDigest"] = digest.as_str().into();
        out["containerStatuses"] = json!([{"name": r.template.container.name, "imageDigest": digest}]);
    }
    out["conditions"] = conditions.into();
    if r.template.scaling.min > 0 {
        out["desiredReplicas"] = r.template.scaling.min.into();
    }
    out
}

/// A service's Configuration: its template, without routes.
pub fn configuration(world: &World, service: &ServiceRecord) -> Value {
    let mut shown = relative(world, service, "Configuration", "configurations");
    shown["spec"] = json!({"template": template(&service.spec.template)});
    let ready = status::conditions(world, service).configurations_ready;
    let mut state = json!({"observedGeneration": service.generation, "conditions": [condition("Ready", &ready, None)]});
    if let Some(name) = &service.latest_created {
        state["latestCreatedRevisionName"] = name.as_str().into();
    }
    if let Some(name) = &service.latest_ready {
        state["latestReadyRevisionName"] = name.as_str().into();
    }
    shown["status"] = state;
    shown
}

/// A service's Route: its traffic.
pub fn route(world: &World, service: &ServiceRecord) -> Value {
    let mut shown = relative(world, service, "Route", "routes");
    shown["spec"] = json!({"traffic": traffic(&service.spec)});
    let ready = status::conditions(world, service).routes_ready;
    let mut state = json!({
        "observedGeneration": service.generation,
        "conditions": [condition("Ready", &ready, None)],
        "traffic": resolved_traffic(world, service),
    });
    if let Some(url) = status::addresses(world, service).url {
        state["url"] = url.as_str().into();
        state["address"] = json!({"url": url});
    }
    shown["status"] = state;
    shown
}

fn relative(world: &World, service: &ServiceRecord, kind: &str, collection: &str) -> Value {
    let number = number(world, service);
    let name = &service.key.name;
    json!({
        "apiVersion": SERVING,
        "kind": kind,
        "metadata": {
            "name": name,
            "namespace": number,
            "selfLink": self_link(&number, collection, name),
            "uid": service.uid,
            "resourceVersion": resource_version(service.version),
            "generation": service.generation,
            "creationTimestamp": service.created.rfc3339_us(),
            "labels": {LOCATION: service.key.region, "serving.knative.dev/service": name},
            "ownerReferences": [{
                "kind": "Service", "apiVersion": SERVING, "name": name, "uid": service.uid,
                "controller": true, "blockOwnerDeletion": true,
            }],
        },
    })
}
