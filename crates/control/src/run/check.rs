//! What may be asked of a service: Cloud Run's rules about values, and the refusal of what is not obeyed here.
//!
//! Nothing here needs the world. Paths in messages are those of v1, which gcloud shows.

use std::collections::{BTreeMap, BTreeSet};

use model::{
    fault::Fault,
    limits,
    run::{Container, ProbeCheck, RevisionTemplate, Service, TrafficTarget},
};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// Names that Cloud Run sets itself. Source: container contract, "reserved env names".
const RESERVED_ENV: &[&str] = &["PORT", "K_SERVICE", "K_REVISION", "K_CONFIGURATION"];

fn invalid(field: &str, why: impl std::fmt::Display) -> Fault {
    Fault::invalid(format!("{field}: {why}"))
}

/// Everything of a service called `name`.
pub fn service(name: &str, spec: &Service) -> Result<(), Fault> {
    service_name(name)?;
    labels("metadata.labels", &spec.labels)?;
    if spec.description.as_ref().is_some_and(|d| d.len() > 512) {
        return Err(invalid("metadata.annotations[run.googleapis.com/description]", "must not exceed 512 characters."));
    }
    if spec.custom_audiences.iter().map(String::len).sum::<usize>() > 32_768 {
        return Err(invalid(
            "metadata.annotations[run.googleapis.com/custom-audiences]",
            "must not exceed 32768 characters.",
        ));
    }
    scaling("metadata.annotations", spec.scaling.min, spec.scaling.max)?;
    template(name, &spec.template)?;
    traffic(name, &spec.traffic)
}

/// RFC 1035, fewer than 50 characters.
pub fn service_name(name: &str) -> Result<(), Fault> {
    if model::name::is_resource_name(name) && name.len() < 50 {
        return Ok(());
    }
    Err(invalid(
        "metadata.name",
        "only lowercase, digits, and hyphens; must begin with letter, and cannot end with hyphen; must be less than 50 \
         characters",
    ))
}

fn labels(field: &str, labels: &BTreeMap<String, String>) -> Result<(), Fault> {
    let reserved = ["run.googleapis.com/", "cloud.googleapis.com/", "serving.knative.dev/", "autoscaling.knative.dev/"];
    for (key, value) in labels {
        if let Some(domain) = reserved.iter().find(|domain| key.starts_with(**domain)) {
            let domain = domain.trim_end_matches('/');
            return Err(invalid(field, format!("label '{key}' is in the reserved namespace '{domain}'.")));
        }
        let name = key.rsplit('/').next().unwrap_or(key);
        let ok = |text: &str| {
            text.chars().count() <= 63
                && text.chars().all(|c| {
                    c.is_lowercase()
                        || c.is_numeric()
                        || matches!(c, '-' | '_' | '.')
                        || (!c.is_ascii() && c.is_alphanumeric())
                })
        };
        if name.is_empty() || !ok(name) || !ok(value) {
            return Err(invalid(
                field,
                format!(
                    "label '{key}={value}' is invalid: at most 63 lowercase letters, digits, '-', '_' and '.' are allowed."
                ),
            ));
        }
    }
    Ok(())
}

fn scaling(field: &str, min: u32, max: Option<u32>) -> Result<(), Fault> {
    match max {
        Some(0) => Err(invalid(field, "maxScale must be at least 1.")),
        Some(max) if max < min => Err(invalid(field, format!("minScale {min} must not exceed maxScale {max}."))),
        Some(_) | None if min > 1_000 => Err(invalid(field, "minScale must not exceed 1000.")),
        Some(_) | None => Ok(()),
    }
}

fn template(service: &str, t: &RevisionTemplate) -> Result<(), Fault> {
    if let Some(name) = &t.name {
        let own =
            name.strip_prefix(service).and_then(|rest| rest.strip_prefix('-')).is_some_and(|rest| !rest.is_empty());
        if !own || !model::name::is_resource_name(name) {
            return Err(invalid(
                "spec.template.metadata.name",
                format!(
                    "revision name '{name}' must be prefixed with the service name '{service}-' and be a lowercase DNS label of at most 63 characters."
                ),
            ));
        }
    }
    let user = t.labels.iter().filter(|(k, _)| !k.starts_with("client.knative.dev/"));
    labels("spec.template.metadata.labels", &user.map(|(k, v)| (k.clone(), v.clone())).collect())?;
    scaling("spec.template.metadata.annotations", t.scaling.min, t.scaling.max)?;
    if !(1..=limits::RUN_CONCURRENCY_MAX).contains(&t.concurrency) {
        return Err(invalid(
            "spec.template.spec.containerConcurrency",
            format!("should be 0-{}", limits::RUN_CONCURRENCY_MAX),
        ));
    }
    if t.container.cpu_millis < 1_000 && t.concurrency != 1 {
        return Err(invalid("spec.template.spec.containerConcurrency", "must be 1 when the CPU limit is less than 1."));
    }
    if !(1..=limits::RUN_TIMEOUT_S_MAX).contains(&t.timeout_s) {
        return Err(invalid("spec.template.spec.timeoutSeconds", format!("should be 1-{}", limits::RUN_TIMEOUT_S_MAX)));
    }
    container(&t.container, t.annotations.get("run.googleapis.com/execution-environment").map(String::as_str))
}

fn container(c: &Container, environment: Option<&str>) -> Result<(), Fault> {
    const AT: &str = "spec.template.spec.containers[0]";
    let at = |field: &str| format!("{AT}.{field}");
    if c.image.is_empty() {
        return Err(invalid(&at("image"), "should be a non-empty string"));
    }
    if !is_image_name(&c.image) {
        return Err(invalid(&at("image"), format!("'{}' is not a valid image name.", c.image)));
    }
    if !model::name::is_resource_name(&c.name) && !is_label(&c.name) {
        return Err(invalid(
            &at("name"),
            format!("'{}' must be a lowercase RFC 1123 label of at most 63 characters.", c.name),
        ));
    }
    if c.command.len() > 1_000 || c.args.len() > 1_000 {
        return Err(invalid(AT, "at most 1000 entries of command and args are allowed."));
    }
    if c.port == 0 {
        return Err(invalid(&at("ports.containerPort"), "should be between 1 and 65535"));
    }
    if c.working_dir.as_ref().is_some_and(|dir| !dir.starts_with('/')) {
        return Err(invalid(&at("workingDir"), "must be an absolute path."));
    }
    env(&at("env"), &c.env)?;
    resources(&at("resources.limits"), c, environment)?;
    startup_probe(&at("startupProbe"), c)
}

fn is_label(text: &str) -> bool {
    (1..=63).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !text.starts_with('-')
        && !text.ends_with('-')
}

fn is_image_name(image: &str) -> bool {
    image.len() <= 512
        && image.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._/:@".contains(&b))
        && !image.starts_with(['/', ':', '@', '.', '-'])
        && image.split_once('@').is_none_or(|(_, digest)| {
            digest
                .strip_prefix("sha256:")
                .is_some_and(|hex| hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_hexdigit()))
        })
}

fn env(field: &str, env: &[(String, String)]) -> Result<(), Fault> {
    if env.len() > 1_000 {
        return Err(invalid(field, "at most 1000 environment variables are allowed."));
    }
    let reserved: Vec<&str> = env
        .iter()
        .map(|(name, _)| name.as_str())
        .filter(|name| RESERVED_ENV.contains(name) || name.starts_with("X_GOOGLE_") || name.starts_with("CLOUD_RUN_"))
        .collect();
    if !reserved.is_empty() {
        return Err(invalid(
            field,
            format!(
                "The following reserved env names were provided: {}. These values are automatically set by the system.",
                reserved.join(", ")
            ),
        ));
    }
    for (name, value) in env {
        if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
            return Err(invalid(field, format!("'{name}' is not a valid environment variable name.")));
        }
        if value.len() > 32_768 {
            return Err(invalid(field, format!("the value of '{name}' must not exceed 32768 bytes.")));
        }
    }
    Ok(())
}

/// Source: Cloud Run, "CPU limits", "Memory limits" and the table of their pairs.
fn resources(field: &str, c: &Container, environment: Option<&str>) -> Result<(), Fault> {
    let (cpu, memory) = (c.cpu_millis, c.memory_bytes);
    let at = |what: &str| format!("{field}.{what}");
    let whole = [1_000, 2_000, 4_000, 6_000, 8_000].contains(&cpu);
    let fraction = (80..1_000).contains(&cpu) && cpu % 10 == 0;
    if !whole && !fraction {
        return Err(invalid(
            &at("cpu"),
            "Invalid value specified for cpu. The value must be 0.08 to 0.99 in steps of 0.01, or 1, 2, 4, 6 or 8.",
        ));
    }
    let least = match (cpu, environment) {
        (6_000.., _) => 4 * GIB,
        (4_000.., _) => 2 * GIB,
        (_, Some("gen2")) => 512 * MIB,
        (_, _) => 128 * MIB,
    };
    if memory < least {
        return Err(invalid(
            &at("memory"),
            format!(
                "Invalid value specified for memory. The value must be at least {}Mi for the specified CPU and execution environment.",
                least / MIB
            ),
        ));
    }
    let cpu_needed = match memory {
        m if m > 32 * GIB => {
            return Err(invalid(&at("memory"), "Invalid value specified for memory. The value must not exceed 32Gi."));
        }
        m if m > 24 * GIB => 8_000,
        m if m > 16 * GIB => 6_000,
        m if m > 8 * GIB => 4_000,
        m if m > 4 * GIB => 2_000,
        m if m > GIB => 1_000,
        m if m > 512 * MIB => 500,
        _ => 0,
    };
    if cpu < cpu_needed {
        return Err(invalid(
            &at("cpu"),
            format!(
                "Invalid value specified for cpu. For the specified memory, the value must be at least {}.",
                f64::from(cpu_needed) / 1_000.0
            ),
        ));
    }
    Ok(())
}

fn startup_probe(field: &str, c: &Container) -> Result<(), Fault> {
    let p = &c.startup_probe;
    let within = |what: &str, value: u32, range: std::ops::RangeInclusive<u32>| {
        if range.contains(&value) {
            return Ok(());
        }
        Err(invalid(&format!("{field}.{what}"), format!("should be between {} and {}", range.start(), range.end())))
    };
    within("initialDelaySeconds", p.initial_delay_s, 0..=240)?;
    within("timeoutSeconds", p.timeout_s, 1..=240)?;
    within("periodSeconds", p.period_s, 1..=240)?;
    within("failureThreshold", p.failure_threshold, 1..=240)?;
    if p.timeout_s > p.period_s {
        return Err(invalid(&format!("{field}.timeoutSeconds"), "must be less than or equal to periodSeconds."));
    }
    if p.initial_delay_s + p.failure_threshold * p.period_s > 240 {
        return Err(invalid(
            field,
            "initialDelaySeconds + failureThreshold * periodSeconds must not exceed 240 seconds.",
        ));
    }
    match &p.check {
        ProbeCheck::Tcp { port } | ProbeCheck::Http { port, .. } if *port == 0 => {
            Err(invalid(&format!("{field}.port"), "should be between 1 and 65535"))
        }
        ProbeCheck::Http { path, .. } if !path.starts_with('/') => {
            Err(invalid(&format!("{field}.httpGet.path"), "must start with '/'."))
        }
        ProbeCheck::Tcp { .. } | ProbeCheck::Http { .. } => Ok(()),
    }
}

fn traffic(service: &str, targets: &[TrafficTarget]) -> Result<(), Fault> {
    let sum: u32 = targets.iter().map(|t| u32::from(t.percent)).sum();
    if sum != 100 {
        return Err(invalid("spec.traffic", format!("Traffic percent must sum to 100, but it sums to {sum}.")));
    }
    let mut tags = BTreeSet::new();
    for tag in targets.iter().filter_map(|t| t.tag.as_deref()) {
        if tag.len() < 3 || !model::name::is_resource_name(tag) {
            return Err(invalid(
                "spec.traffic.tag",
                format!(
                    "traffic tag '{tag}' must be a lowercase DNS label of at least 3 characters that starts with a letter."
                ),
            ));
        }
        if tag.len() + service.len() > 46 {
            return Err(invalid(
                "spec.traffic.tag",
                format!(
                    "traffic tag '{tag}' and service name '{service}' together are too long. Combined traffic tag and \
                     service name cannot exceed 46 characters."
                ),
            ));
        }
        if !tags.insert(tag) {
            return Err(invalid("spec.traffic.tag", format!("traffic tag '{tag}' is used more than once.")));
        }
    }
    Ok(())
}

/// `1`, `0.5`, `1000m` as thousandths of a core.
pub fn parse_cpu(text: &str) -> Option<u32> {
    if let Some(millis) = text.strip_suffix('m') {
        return millis.parse().ok();
    }
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    if fraction.len() > 3 || !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let whole: u32 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    let thousandths: u32 = format!("{fraction:0<3}").parse().ok()?;
    whole.checked_mul(1_000)?.checked_add(thousandths)
}

/// A Kubernetes quantity such as `512Mi`, `1G` or `1.5Gi`, in bytes.
///
/// # Errors
/// Cloud Run's sentence about suffixes; `field` stands in front.
pub fn parse_memory(field: &str, text: &str) -> Result<u64, Fault> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(digits);
    let unit: u64 = match suffix {
        "" => 1,
        "k" => 1_000,
        "M" => 1_000_000,
        "G" => 1_000_000_000,
        "T" => 1_000_000_000_000,
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        "Ti" => 1 << 40,
        "Pi" => 1 << 50,
        "Ei" => 1 << 60,
        "m" => 0,
        other => {
            return Err(invalid(
                field,
                format!(
                    "could not match suffix {other} while parsing Quantity. Allowed values are [m, k, M, G, T, Ki, Mi, Gi, Ti, Pi, Ei]"
                ),
            ));
        }
    };
    let bad = || invalid(field, format!("'{text}' is not a valid Quantity."));
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let whole: u64 = whole.parse().map_err(|_| bad())?;
    if unit == 0 {
        return Ok(whole / 1_000);
    }
    let mut bytes = whole.checked_mul(unit).ok_or_else(bad)?;
    if !fraction.is_empty() {
        if fraction.len() > 6 {
            return Err(bad());
        }
        let scale = 10_u64.pow(u32::try_from(fraction.len()).map_err(|_| bad())?);
        let part: u64 = fraction.parse().map_err(|_| bad())?;
        bytes = bytes.checked_add(unit.checked_mul(part).ok_or_else(bad)? / scale).ok_or_else(bad)?;
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_read_as_kubernetes_writes_them() {
        for (text, want) in [
            ("1", Some(1_000)),
            ("1000m", Some(1_000)),
            ("0.5", Some(500)),
            (".08", Some(80)),
            ("2.0", Some(2_000)),
            ("1.2345", None),
            ("x", None),
            ("", Some(0)),
        ] {
            assert_eq!(parse_cpu(text), want, "{text}");
        }
        for (text, want) in [
            ("512Mi", 536_870_912),
            ("1Gi", 1_073_741_824),
            ("1.5Gi", 1_610_612_736),
            ("1G", 1_000_000_000),
            ("1000", 1_000),
        ] {
            assert_eq!(parse_memory("f", text).unwrap(), want, "{text}");
        }
        assert_eq!(
            parse_memory("spec.template.spec.containers[0].resources.limits.memory", "512MB").unwrap_err().message,
            "spec.template.spec.containers[0].resources.limits.memory: could not match suffix MB while parsing Quantity. \
             Allowed values are [m, k, M, G, T, Ki, Mi, Gi, Ti, Pi, Ei]"
        );
    }
}
