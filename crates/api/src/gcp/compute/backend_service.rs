//! `backendServices` on the wire: regional, INTERNAL_MANAGED.

use control::{kind::Record, kinds::backend_service::TIMEOUT_S_DEFAULT, world::World};
use model::{
    fault::Fault,
    lb::{self, Protocol, RequestLog},
};
use serde_json::{Value, json};

use super::wire::{Fields, Json, Level, Lock, Wire};
use crate::schema;

const PROTOCOLS: &[(&str, Protocol)] =
    &[("HTTP", Protocol::Http), ("HTTPS", Protocol::Https), ("HTTP2", Protocol::Http2)];
const SCHEMES: &[(&str, ())] = &[("INTERNAL_MANAGED", ())];

/// Source: backendServices, `logConfig.sampleRate`.
const SAMPLE_RATE_DEFAULT: f64 = 1.0;

fn write_log(log: &RequestLog) -> Value {
    if !log.enable {
        return json!({"enable": false});
    }
    json!({"enable": true, "sampleRate": log.sample_rate, "optionalMode": "EXCLUDE_ALL_OPTIONAL"})
}

impl Wire for lb::BackendService {
    const SCHEMA: schema::Kind = schema::Kind::BackendService;
    const LEVEL: Level = Level::Region;
    const GET: &'static str = "compute.regionBackendServices.get";
    const LIST: &'static str = "compute.regionBackendServices.list";
    const LOCK: Lock = Lock::Checked;
    const PATCH: Option<&'static str> = Some("patch");
    const UPDATE: Option<&'static str> = Some("update");

    fn read(fields: &Fields<'_>) -> Result<Self, Fault> {
        if fields.word("loadBalancingScheme", SCHEMES)?.is_none() {
            return Err(Fault::not_enforced("resource.loadBalancingScheme"));
        }
        let backend = |fields: &Fields<'_>| Ok::<_, Fault>(lb::Backend { group: fields.required_link("group")? });
        let log = |config: &Fields<'_>| {
            let enable = config.flag("enable")?.unwrap_or(false);
            Ok::<_, Fault>(RequestLog {
                enable,
                sample_rate: config.fraction("sampleRate")?.unwrap_or(SAMPLE_RATE_DEFAULT),
            })
        };
        Ok(lb::BackendService {
            protocol: fields.word("protocol", PROTOCOLS)?.unwrap_or(Protocol::Http),
            backends: fields.objects("backends")?.iter().map(backend).collect::<Result<_, _>>()?,
            timeout_s: fields.number("timeoutSec")?.unwrap_or(TIMEOUT_S_DEFAULT),
            log: fields.object("logConfig")?.map(|config| log(&config)).transpose()?,
            description: fields.written("description"),
        })
    }

    fn write(record: &Record<Self>, world: &World, out: &mut Json) {
        let spec = &record.spec;
        out.insert("description".into(), spec.description.clone().unwrap_or_default().into());
        let backends: Vec<Value> = spec.backends.iter().map(|b| json!({"group": b.group.url()})).collect();
        if !backends.is_empty() {
            out.insert("backends".into(), backends.into());
        }
        let protocol = PROTOCOLS.iter().find(|(_, p)| *p == spec.protocol).map_or("", |(word, _)| word);
        out.insert("protocol".into(), protocol.into());
        out.insert("loadBalancingScheme".into(), "INTERNAL_MANAGED".into());
        out.insert("timeoutSec".into(), spec.timeout_s.into());
        if let Some(log) = &spec.log {
            out.insert("logConfig".into(), write_log(log));
        }
        let users: Vec<Value> = world.referrers(&record.link).map(|user| json!({"reference": user.url()})).collect();
        if !users.is_empty() {
            out.insert("usedBy".into(), users.into());
        }
    }

    fn defaults(_: &Record<Self>) -> Json {
        let mut out = Json::new();
        out.insert("port".into(), 80.into());
        out.insert("portName".into(), "http".into());
        out.insert("sessionAffinity".into(), "NONE".into());
        out.insert("affinityCookieTtlSec".into(), 0.into());
        out.insert("localityLbPolicy".into(), "ROUND_ROBIN".into());
        out.insert("connectionDraining".into(), json!({"drainingTimeoutSec": 0}));
        out
    }
}
