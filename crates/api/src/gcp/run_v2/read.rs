//! From a v2 Service to the Knative object that says the same.

use model::{fault::Fault, run::ServiceKey};
use serde_json::{Map, Value, json};

use crate::{
    gcp::run_v1::annotations::{AUTOSCALING, RUN},
    schema::{self, Kind, integer},
    support,
};

/// Namespaces of labels and annotations that only fields may set. Source: Cloud Run v2, `annotations`.
const RESERVED: [&str; 4] = [RUN, "cloud.googleapis.com/", "serving.knative.dev/", AUTOSCALING];

/// # Errors
/// 400 for what is no v2 Service, [`Fault::not_enforced`] for what we would not obey.
pub fn to_v1(key: &ServiceKey, body: Value) -> Result<Value, Fault> {
    schema::check(Kind::RunServiceV2, &body)?;
    let body = Value::Object(support::admit(Kind::RunServiceV2, body)?.effective);
    let template = &body["template"];
    let mut spec = Map::new();
    copy(&mut spec, "serviceAccountName", &template["serviceAccount"]);
    copy(&mut spec, "containerConcurrency", &template["maxInstanceRequestConcurrency"]);
    if let Some(text) = template["timeout"].as_str() {
        spec.insert("timeoutSeconds".into(), seconds(text)?.into());
    }
    let containers: Result<Vec<Value>, Fault> = list(&template["containers"]).map(container).collect();
    spec.insert("containers".into(), containers?.into());
    let mut meta = Map::new();
    copy(&mut meta, "name", &template["revision"]);
    copy(&mut meta, "labels", &template["labels"]);
    meta.insert("annotations".into(), template_annotations(template)?.into());
    Ok(json!({
        "apiVersion": "serving.knative.dev/v1",
        "kind": "Service",
        "metadata": {
            "name": key.name,
            "labels": body.get("labels").cloned().unwrap_or(json!({})),
            "annotations": annotations(&body)?,
        },
        "spec": {
            "template": {"metadata": meta, "spec": spec},
            "traffic": list(&body["traffic"]).map(traffic).collect::<Result<Vec<_>, _>>()?,
        },
    }))
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn copy(into: &mut Map<String, Value>, name: &str, value: &Value) {
    if !value.is_null() {
        into.insert(name.to_owned(), value.clone());
    }
}

/// The user's annotations, none of which may be one that a field sets.
fn users(at: &str, value: &Value) -> Result<Map<String, Value>, Fault> {
    let Some(map) = value.as_object() else { return Ok(Map::new()) };
    if let Some(name) = map.keys().find(|name| RESERVED.iter().any(|prefix| name.starts_with(prefix))) {
        return Err(Fault::invalid(format!(
            "{at}: annotation '{name}' is in a reserved namespace; use the field that sets it."
        )));
    }
    Ok(map.clone())
}

fn annotations(body: &Value) -> Result<Map<String, Value>, Fault> {
    let mut out = users("annotations", &body["annotations"])?;
    let mut run = |name: &str, text: String| out.insert(format!("{RUN}{name}"), text.into());
    let ingress = match body["ingress"].as_str() {
        None | Some("INGRESS_TRAFFIC_UNSPECIFIED" | "INGRESS_TRAFFIC_ALL") => "all",
        Some("INGRESS_TRAFFIC_INTERNAL_ONLY") => "internal",
        Some("INGRESS_TRAFFIC_INTERNAL_LOAD_BALANCER") => "internal-and-cloud-load-balancing",
        Some("INGRESS_TRAFFIC_NONE") => "none",
        Some(other) => return Err(Fault::invalid(format!("ingress: '{other}' is not an ingress."))),
    };
    run("ingress", ingress.into());
    for (field, name) in
        [("invokerIamDisabled", "invoker-iam-disabled"), ("defaultUriDisabled", "default-url-disabled")]
    {
        if body[field] == true {
            run(name, "true".into());
        }
    }
    for (field, name) in
        [("description", "description"), ("client", "client-name"), ("clientVersion", "client-version")]
    {
        if let Some(text) = body[field].as_str().filter(|t| !t.is_empty()) {
            run(name, text.into());
        }
    }
    if let Some(audiences) = body.get("customAudiences") {
        run("custom-audiences", audiences.to_string());
    }
    // GA is what it is without a word.
    if let Some(stage) = body["launchStage"].as_str().filter(|s| !["GA", "LAUNCH_STAGE_UNSPECIFIED"].contains(s)) {
        run("launch-stage", stage.into());
    }
    for (field, name) in [("minInstanceCount", "minScale"), ("maxInstanceCount", "maxScale")] {
        if let Some(count) = integer(&body["scaling"][field]).filter(|n| *n > 0) {
            run(name, count.to_string());
        }
    }
    Ok(out)
}

fn template_annotations(template: &Value) -> Result<Map<String, Value>, Fault> {
    let mut out = users("template.annotations", &template["annotations"])?;
    for (field, name) in [("minInstanceCount", "minScale"), ("maxInstanceCount", "maxScale")] {
        if let Some(count) = integer(&template["scaling"][field]).filter(|n| *n > 0) {
            out.insert(format!("{AUTOSCALING}{name}"), count.to_string().into());
        }
    }
    let mut run = |name: &str, text: &str| out.insert(format!("{RUN}{name}"), text.into());
    match template["executionEnvironment"].as_str() {
        Some("EXECUTION_ENVIRONMENT_GEN1") => drop(run("execution-environment", "gen1")),
        Some("EXECUTION_ENVIRONMENT_GEN2") => drop(run("execution-environment", "gen2")),
        _ => {}
    }
    for (field, name) in [("client", "client-name"), ("clientVersion", "client-version")] {
        if let Some(text) = template[field].as_str().filter(|t| !t.is_empty()) {
            run(name, text);
        }
    }
    let resources = &template["containers"][0]["resources"];
    // Source: v2, `cpuIdle` is true by default only where `resources` is not sent at all.
    if resources.as_object().is_some_and(|r| !r.is_empty()) && resources["cpuIdle"] != true {
        run("cpu-throttling", "false");
    }
    if let Some(boost) = resources["startupCpuBoost"].as_bool() {
        run("startup-cpu-boost", if boost { "true" } else { "false" });
    }
    Ok(out)
}

fn container(c: &Value) -> Result<Value, Fault> {
    let mut out = Map::new();
    for field in ["name", "image", "command", "args", "env", "workingDir", "ports", "startupProbe"] {
        copy(&mut out, field, &c[field]);
    }
    if let Some(limits) = c["resources"].get("limits") {
        out.insert("resources".into(), json!({"limits": limits}));
    }
    Ok(out.into())
}

/// A duration of whole seconds.
fn seconds(text: &str) -> Result<u32, Fault> {
    let whole = text.strip_suffix('s').and_then(|n| n.strip_suffix(".0").unwrap_or(n).parse().ok());
    whole.ok_or_else(|| {
        Fault::invalid(format!("template.timeout: '{text}' is not a duration of whole seconds such as \"300s\"."))
    })
}

fn traffic(t: &Value) -> Result<Value, Fault> {
    let mut out = Map::new();
    match t["type"].as_str() {
        Some("TRAFFIC_TARGET_ALLOCATION_TYPE_LATEST") => drop(out.insert("latestRevision".into(), true.into())),
        Some("TRAFFIC_TARGET_ALLOCATION_TYPE_REVISION") => {}
        _ if t["revision"].as_str().is_some_and(|r| !r.is_empty()) => {}
        _ => return Err(Fault::invalid("traffic.type: an allocation type is required.")),
    }
    copy(&mut out, "revisionName", &t["revision"]);
    copy(&mut out, "percent", &t["percent"]);
    copy(&mut out, "tag", &t["tag"]);
    Ok(out.into())
}

/// Takes from `body` what the mask names; a named field that the body lacks is cleared.
///
/// # Errors
/// 400 for a path that no service has.
pub fn merge(current: &mut Value, body: &Value, mask: &str) -> Result<(), Fault> {
    for path in mask.split(',') {
        let names: Vec<String> = path.trim().split('.').map(camel).collect();
        if !schema::has_path(Kind::RunServiceV2.body(), &names) {
            return Err(Fault::invalid(format!("Invalid field mask path '{}'.", path.trim())));
        }
        let new = names.iter().try_fold(body, |at, name| at.get(name)).cloned();
        put(current, &names, new);
    }
    Ok(())
}

fn put(at: &mut Value, names: &[String], new: Option<Value>) {
    let [name, rest @ ..] = names else { return };
    let Value::Object(fields) = at else { return };
    if rest.is_empty() {
        match new {
            Some(value) => drop(fields.insert(name.clone(), value)),
            None => drop(fields.shift_remove(name)),
        }
    } else {
        put(fields.entry(name.clone()).or_insert_with(|| json!({})), rest, new);
    }
}

/// `latest_revision` in JSON's spelling.
fn camel(name: &str) -> String {
    let mut out = String::new();
    for (n, word) in name.split('_').enumerate() {
        match word.chars().next() {
            Some(first) if n > 0 => {
                out.push(first.to_ascii_uppercase());
                out.push_str(&word[first.len_utf8()..]);
            }
            _ => out.push_str(word),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mask_replaces_what_it_names_and_clears_what_is_not_there() {
        let mut current =
            json!({"description": "old", "labels": {"a": "1"}, "template": {"timeout": "300s", "revision": "x"}});
        let body = json!({"labels": {"b": "2"}, "template": {"timeout": "60s"}});
        merge(&mut current, &body, "labels,description,template.timeout").unwrap();
        assert_eq!(current, json!({"labels": {"b": "2"}, "template": {"timeout": "60s", "revision": "x"}}));
        merge(&mut current, &json!({"invokerIamDisabled": true}), "invoker_iam_disabled").unwrap();
        assert_eq!(current["invokerIamDisabled"], true);
        assert!(merge(&mut current, &body, "nothing").is_err());
    }
}
