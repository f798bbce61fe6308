//! Regional HTTP proxies.

use model::{fault::Fault, lb, name::Link};

use crate::{
    kind::{Kind, Need, Record, Reference},
    kinds::place,
    ops::Txn,
    world::World,
};

/// Bounds of `httpKeepAliveTimeoutSec`. Source: targetHttpProxies.
const KEEPALIVE_S_MIN: u32 = 5;
const KEEPALIVE_S_MAX: u32 = 1_200;

impl Kind for lb::TargetHttpProxy {
    const COLLECTION: &'static str = "targetHttpProxies";
    const WIRE_KIND: &'static str = "targetHttpProxy";
    const WORD: &'static str = "target_http_proxy";

    fn needs_to_create(&self, me: &Link) -> Vec<Need> {
        vec![
            Need::on("compute.regionTargetHttpProxies.create", me),
            Need::on("compute.regionUrlMaps.use", &self.url_map),
        ]
    }

    fn needs_to_update(&self, me: &Link) -> Vec<Need> {
        vec![
            Need::on("compute.regionTargetHttpProxies.setUrlMap", me),
            Need::on("compute.regionUrlMaps.use", &self.url_map),
        ]
    }

    fn needs_to_delete(&self, me: &Link) -> Vec<Need> {
        vec![Need::on("compute.regionTargetHttpProxies.delete", me)]
    }

    fn references(&self) -> Vec<Reference> {
        vec![Reference { field: "urlMap", to: self.url_map.clone() }]
    }

    fn check(&self, _: Option<&Self>) -> Result<(), Fault> {
        place::of_collection("urlMap", lb::UrlMap::COLLECTION, &self.url_map)?;
        match self.keepalive_s {
            Some(s) if !(KEEPALIVE_S_MIN..=KEEPALIVE_S_MAX).contains(&s) => {
                let why = format!("Must be between {KEEPALIVE_S_MIN} and {KEEPALIVE_S_MAX}.");
                Err(Fault::invalid_value("httpKeepAliveTimeoutSec", &s.to_string(), &why))
            }
            Some(_) | None => Ok(()),
        }
    }

    fn admit(record: &mut Record<Self>, _: Option<&Record<Self>>, _: &World, _: &mut Txn) -> Result<(), Fault> {
        place::same_project("urlMap", &record.link, &record.spec.url_map)?;
        place::same_region("urlMap", "URL map", &record.link, "target HTTP proxy", &record.spec.url_map)
    }

    fn retire(_: &Record<Self>, _: &World, _: &mut Txn) -> Result<(), Fault> {
        Ok(())
    }
}
