//! `urlMaps` on the wire: hosts and paths, without route rules.

use control::{kind::Record, world::World};
use model::{
    fault::Fault,
    lb::{HostRule, PathMatcher, PathRule, UrlMap},
};
use serde_json::{Map, Value, json};

use super::wire::{Fields, Json, Level, Lock, Wire, put_some};
use crate::schema;

impl Wire for UrlMap {
    const SCHEMA: schema::Kind = schema::Kind::UrlMap;
    const LEVEL: Level = Level::Region;
    const GET: &'static str = "compute.regionUrlMaps.get";
    const LIST: &'static str = "compute.regionUrlMaps.list";
    const LOCK: Lock = Lock::Checked;
    const PATCH: Option<&'static str> = Some("patch");
    const UPDATE: Option<&'static str> = Some("update");

    fn read(fields: &Fields<'_>) -> Result<Self, Fault> {
        let host_rules = fields.objects("hostRules")?.iter().map(read_host_rule).collect::<Result<_, _>>()?;
        let path_matchers = fields.objects("pathMatchers")?.iter().map(read_path_matcher).collect::<Result<_, _>>()?;
        Ok(UrlMap {
            default_service: fields.required_link("defaultService")?,
            host_rules,
            path_matchers,
            description: fields.written("description"),
        })
    }

    fn write(record: &Record<Self>, _: &World, out: &mut Json) {
        let spec = &record.spec;
        put_some(out, "description", spec.description.clone());
        out.insert("defaultService".into(), spec.default_service.url().into());
        if !spec.host_rules.is_empty() {
            out.insert("hostRules".into(), spec.host_rules.iter().map(write_host_rule).collect());
        }
        if !spec.path_matchers.is_empty() {
            out.insert("pathMatchers".into(), spec.path_matchers.iter().map(write_path_matcher).collect());
        }
    }
}

fn owned(texts: Vec<&str>) -> Vec<String> {
    texts.into_iter().map(str::to_owned).collect()
}

fn read_host_rule(fields: &Fields<'_>) -> Result<HostRule, Fault> {
    Ok(HostRule {
        hosts: owned(fields.texts("hosts")?),
        path_matcher: fields.text("pathMatcher")?.ok_or_else(|| fields.required("pathMatcher"))?.to_owned(),
        description: fields.written("description"),
    })
}

fn read_path_matcher(fields: &Fields<'_>) -> Result<PathMatcher, Fault> {
    let rule = |fields: &Fields<'_>| {
        Ok::<_, Fault>(PathRule { paths: owned(fields.texts("paths")?), service: fields.required_link("service")? })
    };
    Ok(PathMatcher {
        name: fields.text("name")?.ok_or_else(|| fields.required("name"))?.to_owned(),
        default_service: fields.required_link("defaultService")?,
        path_rules: fields.objects("pathRules")?.iter().map(rule).collect::<Result<_, _>>()?,
        description: fields.written("description"),
    })
}

fn write_host_rule(rule: &HostRule) -> Value {
    let mut out = Map::new();
    put_some(&mut out, "description", rule.description.clone());
    out.insert("hosts".into(), json!(rule.hosts));
    out.insert("pathMatcher".into(), rule.path_matcher.clone().into());
    out.into()
}

fn write_path_matcher(matcher: &PathMatcher) -> Value {
    let mut out = Map::new();
    put_some(&mut out, "description", matcher.description.clone());
    out.insert("name".into(), matcher.name.clone().into());
    out.insert("defaultService".into(), matcher.default_service.url().into());
    let rule = |rule: &PathRule| json!({"paths": rule.paths, "service": rule.service.url()});
    if !matcher.path_rules.is_empty() {
        out.insert("pathRules".into(), matcher.path_rules.iter().map(rule).collect());
    }
    out.into()
}
