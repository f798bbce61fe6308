//! Knative annotations: which exist, on what, and what becomes of each. Values are texts.
//!
//! An annotation of Google's that we do not know is refused, and so is one that would change something we do not do.

use std::collections::BTreeMap;

use model::{
    fault::Fault,
    run::{Ingress, Scaling},
};

use crate::support::{
    Row::{Effective, Kept, Only},
    Rows,
    tables::{ALWAYS_CPU, CLIENT, ONE_ENVIRONMENT, STAGES},
};

/// What becomes of an annotation of Google's on a service; those that stand in no table are refused. For the document:
/// the words of refusals differ, so [`of_service`] and [`of_template`] decide, and a test holds them to this.
pub const OF_SERVICE: Rows = &[
    ("run.googleapis.com/ingress", Effective),
    ("run.googleapis.com/invoker-iam-disabled", Effective),
    ("run.googleapis.com/default-url-disabled", Effective),
    ("run.googleapis.com/custom-audiences", Effective),
    ("run.googleapis.com/minScale", Effective),
    ("run.googleapis.com/maxScale", Effective),
    ("run.googleapis.com/scalingMode", Only(&["automatic"], "instances follow demand")),
    ("run.googleapis.com/description", Kept("a text for people")),
    ("run.googleapis.com/launch-stage", Kept(STAGES)),
    ("run.googleapis.com/client-name", Kept(CLIENT)),
    ("run.googleapis.com/client-version", Kept(CLIENT)),
    ("run.googleapis.com/build-*", Kept("nothing is built here")),
    ("run.googleapis.com/iap-enabled", Only(&["false"], "there is no identity-aware proxy")),
    ("run.googleapis.com/ssh-enabled", Only(&["false"], "containers have no SSH")),
    ("run.googleapis.com/gc-traffic-tags", Only(&["false"], "tags stay until they are taken away")),
    ("run.googleapis.com/threat-detection", Only(&["false"], "nothing watches containers for threats")),
];

/// The same of a revision template.
pub const OF_TEMPLATE: Rows = &[
    ("autoscaling.knative.dev/minScale", Effective),
    ("autoscaling.knative.dev/maxScale", Effective),
    ("run.googleapis.com/cpu-throttling", Kept(ALWAYS_CPU)),
    ("run.googleapis.com/startup-cpu-boost", Kept(ALWAYS_CPU)),
    ("run.googleapis.com/execution-environment", Kept(ONE_ENVIRONMENT)),
    ("run.googleapis.com/client-name", Kept(CLIENT)),
    ("run.googleapis.com/client-version", Kept(CLIENT)),
    ("run.googleapis.com/build-*", Kept("nothing is built here")),
    ("run.googleapis.com/sessionAffinity", Only(&["false"], "every request finds its instance anew")),
    ("run.googleapis.com/health-check-disabled", Only(&["false"], "a revision is ready when it listens")),
    ("run.googleapis.com/gpu-zonal-redundancy-disabled", Only(&["false"], "there are no GPUs")),
];

pub const RUN: &str = "run.googleapis.com/";
pub const AUTOSCALING: &str = "autoscaling.knative.dev/";
const SERVING: &str = "serving.knative.dev/";

/// What the annotations of a service say.
#[derive(Clone, Debug, PartialEq)]
pub struct OfService {
    pub ingress: Ingress,
    pub invoker_iam_disabled: bool,
    pub default_url_disabled: bool,
    pub custom_audiences: Vec<String>,
    pub scaling: Scaling,
    pub description: Option<String>,
    /// Shown back as they are.
    pub kept: BTreeMap<String, String>,
}

/// What the annotations of a revision template say.
#[derive(Clone, Debug, PartialEq)]
pub struct OfTemplate {
    pub scaling: Scaling,
    pub kept: BTreeMap<String, String>,
}

fn invalid(at: &str, name: &str, why: impl std::fmt::Display) -> Fault {
    Fault::invalid(format!("{at}[{name}]: {why}"))
}

/// Source: Cloud Run, annotations on the wrong kind of object or unknown ones.
fn unknown(at: &str, name: &str, kind: &str) -> Fault {
    invalid(at, name, format!("annotation '{name}' is not supported on resources of kind '{kind}'."))
}

fn is_googles(name: &str) -> bool {
    [RUN, AUTOSCALING, SERVING].iter().any(|prefix| name.starts_with(prefix))
}

fn boolean(at: &str, name: &str, value: &str) -> Result<bool, Fault> {
    match value.to_ascii_lowercase().as_str() {
        "true" => Ok(true),
        "false" | "" => Ok(false),
        _ => Err(invalid(at, name, format!("'{value}' is neither 'true' nor 'false'."))),
    }
}

fn count(at: &str, name: &str, value: &str) -> Result<u32, Fault> {
    value.parse().map_err(|_| invalid(at, name, format!("'{value}' is not a number of instances.")))
}

/// Off is how things are; on would change something.
fn off(at: &str, name: &str, value: &str) -> Result<(), Fault> {
    if boolean(at, name, value).unwrap_or(true) { Err(Fault::not_enforced(&format!("{at}[{name}]"))) } else { Ok(()) }
}

/// `annotations` of a Service.
///
/// # Errors
/// 400 for what is wrong or unknown, [`Fault::not_enforced`] for what we do not do.
pub fn of_service(annotations: &BTreeMap<String, String>) -> Result<OfService, Fault> {
    const AT: &str = "metadata.annotations";
    let mut out = OfService {
        ingress: Ingress::All,
        invoker_iam_disabled: false,
        default_url_disabled: false,
        custom_audiences: Vec::new(),
        scaling: Scaling::default(),
        description: None,
        kept: BTreeMap::new(),
    };
    for (name, value) in annotations {
        let Some(short) = name.strip_prefix(RUN) else {
            match name.as_str() {
                // The server's own.
                "serving.knative.dev/creator" | "serving.knative.dev/lastModifier" => {}
                name if is_googles(name) => return Err(unknown(AT, name, "Service")),
                _ => {
                    out.kept.insert(name.clone(), value.clone());
                }
            }
            continue;
        };
        match short {
            "ingress" => out.ingress = ingress(AT, name, value)?,
            "ingress-status" | "urls" | "operation-id" | "creatorEmail" | "lastModifierEmail" => {}
            "invoker-iam-disabled" => out.invoker_iam_disabled = boolean(AT, name, value)?,
            "default-url-disabled" => out.default_url_disabled = boolean(AT, name, value)?,
            "custom-audiences" => out.custom_audiences = audiences(AT, name, value)?,
            "minScale" => out.scaling.min = count(AT, name, value)?,
            "maxScale" => out.scaling.max = Some(count(AT, name, value)?),
            "scalingMode" if value == "automatic" || value.is_empty() => {}
            "description" => out.description = Some(value.clone()).filter(|text| !text.is_empty()),
            "launch-stage" => match value.as_str() {
                "ALPHA" | "BETA" | "GA" => {
                    out.kept.insert(name.clone(), value.clone());
                }
                _ => return Err(invalid(AT, name, format!("'{value}' is not a launch stage."))),
            },
            "client-name" | "client-version" => {
                out.kept.insert(name.clone(), value.clone());
            }
            build if build.starts_with("build-") => {
                out.kept.insert(name.clone(), value.clone());
            }
            "iap-enabled" | "ssh-enabled" | "gc-traffic-tags" | "threat-detection" => off(AT, name, value)?,
            "scalingMode" | "manualInstanceCount" | "binary-authorization" | "binary-authorization-breakglass" => {
                return Err(Fault::not_enforced(&format!("{AT}[{name}]")));
            }
            _ => return Err(unknown(AT, name, "Service")),
        }
    }
    Ok(out)
}

fn ingress(at: &str, name: &str, value: &str) -> Result<Ingress, Fault> {
    match value {
        "all" | "" => Ok(Ingress::All),
        "internal" => Ok(Ingress::Internal),
        "internal-and-cloud-load-balancing" => Ok(Ingress::InternalAndCloudLoadBalancing),
        "none" => Ok(Ingress::None),
        _ => Err(invalid(
            at,
            name,
            format!(
                "'{value}' is invalid. Allowed values are [all, internal, internal-and-cloud-load-balancing, none]."
            ),
        )),
    }
}

pub fn ingress_text(ingress: Ingress) -> &'static str {
    match ingress {
        Ingress::All => "all",
        Ingress::Internal => "internal",
        Ingress::InternalAndCloudLoadBalancing => "internal-and-cloud-load-balancing",
        Ingress::None => "none",
    }
}

fn audiences(at: &str, name: &str, value: &str) -> Result<Vec<String>, Fault> {
    if value.is_empty() {
        return Ok(Vec::new());
    }
    serde_json::from_str(value).map_err(|_| invalid(at, name, "must be a JSON array of strings."))
}

/// `annotations` of a revision template. A maximum is always there: the default of the platform fills it in.
///
/// # Errors
/// As [`of_service`].
pub fn of_template(annotations: &BTreeMap<String, String>) -> Result<OfTemplate, Fault> {
    const AT: &str = "spec.template.metadata.annotations";
    let mut scaling = Scaling { min: 0, max: Some(model::limits::RUN_INSTANCES_MAX_DEFAULT) };
    let mut kept = BTreeMap::new();
    for (name, value) in annotations {
        if let Some(short) = name.strip_prefix(AUTOSCALING) {
            match short {
                "minScale" => scaling.min = count(AT, name, value)?,
                "maxScale" => scaling.max = Some(count(AT, name, value)?),
                _ => return Err(unknown(AT, name, "Revision")),
            }
            continue;
        }
        let Some(short) = name.strip_prefix(RUN) else {
            match name.as_str() {
                "serving.knative.dev/creator" => {}
                name if is_googles(name) => return Err(unknown(AT, name, "Revision")),
                _ => {
                    kept.insert(name.clone(), value.clone());
                }
            }
            continue;
        };
        match short {
            "client-name" | "client-version" => {
                kept.insert(name.clone(), value.clone());
            }
            // An instance has its CPU limit at all times: nothing to give at a start or to take from who idles.
            "startup-cpu-boost" | "cpu-throttling" => {
                kept.insert(name.clone(), boolean(AT, name, value)?.to_string());
            }
            "execution-environment" => match value.as_str() {
                "gen1" | "gen2" => {
                    kept.insert(name.clone(), value.clone());
                }
                _ => return Err(invalid(AT, name, format!("'{value}' is invalid. Allowed values are [gen1, gen2]."))),
            },
            build if build.starts_with("build-") => {
                kept.insert(name.clone(), value.clone());
            }
            "health-check-disabled" | "sessionAffinity" | "gpu-zonal-redundancy-disabled" => off(AT, name, value)?,
            "vpc-access-connector"
            | "vpc-access-egress"
            | "network-interfaces"
            | "secrets"
            | "cloudsql-instances"
            | "container-dependencies"
            | "encryption-key"
            | "post-key-revocation-action-type"
            | "encryption-key-shutdown-hours"
            | "scaling-cpu-target"
            | "scaling-concurrency-target"
            | "mesh"
            | "ambient-networking"
            | "overflow-scaling"
            | "base-images" => {
                if !value.is_empty() {
                    return Err(Fault::not_enforced(&format!("{AT}[{name}]")));
                }
            }
            _ => return Err(unknown(AT, name, "Revision")),
        }
    }
    Ok(OfTemplate { scaling, kept })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A value that is legal in itself.
    fn sample(name: &str) -> &str {
        match name.split_once('/').map_or(name, |(_, short)| short) {
            "ingress" => "internal",
            "custom-audiences" => "[\"https://a.example\"]",
            "minScale" | "maxScale" => "3",
            "launch-stage" => "BETA",
            "execution-environment" => "gen2",
            "invoker-iam-disabled" | "default-url-disabled" | "cpu-throttling" | "startup-cpu-boost" => "true",
            _ => "text",
        }
    }

    #[test]
    fn the_tables_say_what_becomes_of_annotations() {
        let one = |name: &str, value: &str| BTreeMap::from([(name.replace('*', "id"), value.to_owned())]);
        let service = |name: &str, value: &str| of_service(&one(name, value)).map(drop);
        let template = |name: &str, value: &str| of_template(&one(name, value)).map(drop);
        type Takes<'a> = &'a dyn Fn(&str, &str) -> Result<(), Fault>;
        for (table, takes) in [(OF_SERVICE, &service as Takes<'_>), (OF_TEMPLATE, &template as Takes<'_>)] {
            for (name, row) in table {
                match row {
                    Only(values, _) => {
                        assert_eq!(takes(name, values[0]), Ok(()), "{name}");
                        assert!(takes(name, "true").is_err(), "{name}");
                    }
                    _ => assert_eq!(takes(name, sample(name)), Ok(()), "{name}"),
                }
            }
        }
        for name in ["run.googleapis.com/vpc-access-connector", "run.googleapis.com/secrets"] {
            assert!(template(name, "x").is_err() && service(name, "x").is_err(), "{name}");
        }
    }
}
