//! `targetHttpProxies` on the wire.

use control::{kind::Record, world::World};
use model::{fault::Fault, lb, name::Link};

use super::{
    verbs::Visit,
    wire::{Around, Fields, Json, Level, Lock, Wire, put_some},
};
use crate::{call::Answer, error, schema};

impl Wire for lb::TargetHttpProxy {
    const SCHEMA: schema::Kind = schema::Kind::TargetHttpProxy;
    const LEVEL: Level = Level::Region;
    const GET: &'static str = "compute.regionTargetHttpProxies.get";
    const LIST: &'static str = "compute.regionTargetHttpProxies.list";
    const LOCK: Lock = Lock::Checked;

    fn read(fields: &Fields<'_>) -> Result<Self, Fault> {
        Ok(lb::TargetHttpProxy {
            url_map: fields.required_link("urlMap")?,
            keepalive_s: fields.number("httpKeepAliveTimeoutSec")?,
            description: fields.written("description"),
        })
    }

    fn write(record: &Record<Self>, _: &World, out: &mut Json) {
        put_some(out, "description", record.spec.description.clone());
        out.insert("urlMap".into(), record.spec.url_map.url().into());
        put_some(out, "httpKeepAliveTimeoutSec", record.spec.keepalive_s);
    }

    fn verb(visit: &Visit<'_>, link: &Link, verb: &str) -> Answer {
        match verb {
            "setUrlMap" => {
                let body = visit.body("UrlMapReference")?;
                visit.change::<Self>(link, verb, |world, record| {
                    record.spec.url_map = Fields::new(&body, &Around { world, link }).required_link("urlMap")?;
                    Ok(())
                })
            }
            _ => Err(error::unknown_method()),
        }
    }
}
