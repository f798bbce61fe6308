//! Regional URL maps: which hosts, paths and matchers make a map that has one answer for every request.

use std::collections::BTreeSet;

use model::{
    fault::Fault,
    lb::{self, PathMatcher, UrlMap},
    name::{Link, is_resource_name},
};

use crate::{
    kind::{Kind, Need, Record, Reference},
    kinds::place,
    ops::Txn,
    world::World,
};

impl Kind for UrlMap {
    const COLLECTION: &'static str = "urlMaps";
    const WIRE_KIND: &'static str = "urlMap";
    const WORD: &'static str = "url_map";

    fn needs_to_create(&self, me: &Link) -> Vec<Need> {
        needs("compute.regionUrlMaps.create", self, me)
    }

    fn needs_to_update(&self, me: &Link) -> Vec<Need> {
        needs("compute.regionUrlMaps.update", self, me)
    }

    fn needs_to_delete(&self, me: &Link) -> Vec<Need> {
        vec![Need::on("compute.regionUrlMaps.delete", me)]
    }

    fn references(&self) -> Vec<Reference> {
        services(self).map(|(field, to)| Reference { field, to: to.clone() }).collect()
    }

    fn check(&self, _: Option<&Self>) -> Result<(), Fault> {
        for (field, service) in services(self) {
            place::of_collection(field, lb::BackendService::COLLECTION, service)?;
        }
        check_hosts(self)?;
        check_matchers(self)
    }

    fn admit(record: &mut Record<Self>, _: Option<&Record<Self>>, _: &World, _: &mut Txn) -> Result<(), Fault> {
        for (field, service) in services(&record.spec) {
            place::same_project(field, &record.link, service)?;
            place::same_region(field, "backend service", &record.link, "URL map", service)?;
        }
        Ok(())
    }

    fn retire(_: &Record<Self>, _: &World, _: &mut Txn) -> Result<(), Fault> {
        Ok(())
    }
}

fn needs(permission: &'static str, map: &UrlMap, me: &Link) -> Vec<Need> {
    let used: BTreeSet<&Link> = services(map).map(|(_, service)| service).collect();
    let uses = used.into_iter().map(|s| Need::on("compute.regionBackendServices.use", s));
    std::iter::once(Need::on(permission, me)).chain(uses).collect()
}

/// Every backend service the map can choose, with the field that names it.
fn services(map: &UrlMap) -> impl Iterator<Item = (&'static str, &Link)> {
    let in_matchers = map.path_matchers.iter().flat_map(|matcher| {
        let rules = matcher.path_rules.iter().map(|rule| ("pathMatchers[0].pathRules[0].service", &rule.service));
        std::iter::once(("pathMatchers[0].defaultService", &matcher.default_service)).chain(rules)
    });
    std::iter::once(("defaultService", &map.default_service)).chain(in_matchers)
}

fn check_hosts(map: &UrlMap) -> Result<(), Fault> {
    let mut seen = BTreeSet::new();
    for (i, rule) in map.host_rules.iter().enumerate() {
        if rule.hosts.is_empty() {
            return Err(Fault::invalid_value(&format!("hostRules[{i}].hosts"), "", "At least one host is required."));
        }
        for (j, host) in rule.hosts.iter().enumerate() {
            let field = format!("hostRules[{i}].hosts[{j}]");
            if !is_host_pattern(host) {
                let why = "Invalid host pattern: '*' may only be the first character, followed by '-' or '.'.";
                return Err(Fault::invalid_value(&field, host, why));
            }
            if !seen.insert(host.to_ascii_lowercase()) {
                return Err(Fault::invalid_value(&field, host, "A host may appear in only one host rule."));
            }
        }
        if !map.path_matchers.iter().any(|m| m.name == rule.path_matcher) {
            let field = format!("hostRules[{i}].pathMatcher");
            return Err(Fault::invalid_value(&field, &rule.path_matcher, "The path matcher does not exist."));
        }
    }
    Ok(())
}

/// `*`, an exact name, or `*` followed by `.` or `-` and a name; each perhaps with a port.
fn is_host_pattern(host: &str) -> bool {
    let (name, port) = host.split_once(':').map_or((host, None), |(name, port)| (name, Some(port)));
    if port.is_some_and(|p| p.parse::<u16>().is_err()) {
        return false;
    }
    let rest = match name.strip_prefix('*') {
        Some("") => return true,
        Some(rest) if !rest.starts_with(['.', '-']) => return false,
        Some(rest) => rest,
        None => name,
    };
    !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b))
}

fn check_matchers(map: &UrlMap) -> Result<(), Fault> {
    let mut seen = BTreeSet::new();
    for (i, matcher) in map.path_matchers.iter().enumerate() {
        let field = format!("pathMatchers[{i}].name");
        if !is_resource_name(&matcher.name) {
            let why = "Must be a match of regex '(?:[a-z](?:[-a-z0-9]{0,61}[a-z0-9])?)'";
            return Err(Fault::invalid_value(&field, &matcher.name, why));
        }
        if !seen.insert(&matcher.name) {
            return Err(Fault::invalid_value(&field, &matcher.name, "Path matcher names must be unique."));
        }
        if !map.host_rules.iter().any(|rule| rule.path_matcher == matcher.name) {
            let why = "The path matcher is not used by any host rule.";
            return Err(Fault::invalid_value(&field, &matcher.name, why));
        }
        check_paths(i, matcher)?;
    }
    Ok(())
}

fn check_paths(i: usize, matcher: &PathMatcher) -> Result<(), Fault> {
    let mut seen = BTreeSet::new();
    for (j, rule) in matcher.path_rules.iter().enumerate() {
        let field = format!("pathMatchers[{i}].pathRules[{j}].paths");
        if rule.paths.is_empty() {
            return Err(Fault::invalid_value(&field, "", "At least one path is required."));
        }
        for path in &rule.paths {
            if !is_path_pattern(path) {
                let why = "Paths must start with '/', and '*' may only stand at the end, after a '/'.";
                return Err(Fault::invalid_value(&field, path, why));
            }
            if !seen.insert(path) {
                return Err(Fault::invalid_value(&field, path, "A path may appear only once in a path matcher."));
            }
        }
    }
    Ok(())
}

fn is_path_pattern(path: &str) -> bool {
    let literal = path.strip_suffix("/*").unwrap_or(path);
    path.starts_with('/') && !literal.contains(['*', '?', '#'])
}
