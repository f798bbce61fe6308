//! The load balancer: endpoint groups, backend services, URL maps, proxies and the rules in front of them.

use http::Method;
use serde_json::{Value, json};

use crate::cloud::{Cloud, R, shown};

fn r(collection: &str) -> String {
    format!("producer-1/regions/{R}/{collection}")
}

fn with(mut body: Value, extra: &Value) -> Value {
    for (name, value) in extra.as_object().unwrap() {
        body[name] = value.clone();
    }
    body
}

#[test]
fn an_endpoint_group_names_a_service_or_a_mask_and_nothing_else() {
    let cloud = Cloud::new();
    let body = json!({"name": "neg", "networkEndpointType": "SERVERLESS", "cloudRun": {"service": "hello"}});
    let operation = cloud.done(Method::POST, &r("networkEndpointGroups"), body.clone());
    assert_eq!(operation["operationType"], "compute.regionNetworkEndpointGroups.insert");
    let group = cloud.get(&r("networkEndpointGroups/neg"));
    assert_eq!((&group["size"], &group["cloudRun"]), (&json!(0), &json!({"service": "hello"})));
    for (extra, status) in [
        (json!({"cloudRun": {"service": "a", "urlMask": "/<service>"}}), 400),
        (json!({"cloudRun": {}}), 400),
        (json!({"cloudRun": {"urlMask": "/nothing"}}), 400),
        (json!({"cloudRun": {"urlMask": "/<service>/<service>"}}), 400),
        (json!({"cloudRun": {"urlMask": "/<service>/<version>"}}), 400),
        (json!({"cloudRun": {"urlMask": "https://example.com/<service>"}}), 400),
        (json!({"cloudRun": {"urlMask": "example.com/<service>?x"}}), 400),
        (json!({"cloudRun": {"urlMask": "/<service>", "tag": "t"}}), 501),
        (json!({"cloudRun": null}), 400),
        (json!({"networkEndpointType": "GCE_VM_IP_PORT"}), 501),
        (json!({"network": "global/networks/n"}), 400),
        (json!({"networkEndpointType": "NOPE"}), 400),
    ] {
        let got = cloud.refused(
            Method::POST,
            &r("networkEndpointGroups"),
            with(with(body.clone(), &json!({"name": "x"})), &extra),
        );
        assert_eq!(got.0, status, "{extra}: {got:?}");
    }
    assert_eq!(cloud.call(Method::PATCH, &r("networkEndpointGroups/neg"), json!({})).0, 404, "immutable");
    cloud.delete(&r("networkEndpointGroups/neg"));
}

#[test]
fn a_serverless_backend_has_one_group_and_no_timeout_of_its_own() {
    let cloud = Cloud::new();
    cloud.producer_up_to_proxy();
    cloud.make(
        &r("networkEndpointGroups"),
        json!({"name": "neg2", "networkEndpointType": "SERVERLESS", "cloudRun": {"service": "hello"}}),
    );
    let group = |name: &str| json!({"group": cloud.url(&r(&format!("networkEndpointGroups/{name}")))});
    let body = json!({"name": "b", "loadBalancingScheme": "INTERNAL_MANAGED", "protocol": "HTTP"});
    for (extra, status, why) in [
        (
            json!({"backends": [group("neg")], "timeoutSec": 60}),
            400,
            "Invalid value for field 'resource.timeoutSec': '60'. Timeout sec is not supported for a backend service with \
             Serverless network endpoint groups.",
        ),
        (json!({"backends": [group("neg"), group("neg2")]}), 400, "only one Serverless network endpoint group"),
        (json!({"backends": [group("neg"), group("neg")]}), 400, "Duplicate"),
        (json!({"backends": [group("none")]}), 400, "The referenced network_endpoint_group resource cannot be found."),
        (json!({"backends": [{"group": cloud.url(&r("urlMaps/map"))}]}), 400, "The URL is malformed."),
        (json!({"logConfig": {"enable": true, "sampleRate": 1.5}}), 400, "logConfig.sampleRate"),
        (json!({"logConfig": {"enable": true, "optionalMode": "INCLUDE_ALL_OPTIONAL"}}), 501, "logConfig.optionalMode"),
        (json!({"healthChecks": ["global/healthChecks/h"]}), 501, "healthChecks"),
        (json!({"loadBalancingScheme": "EXTERNAL"}), 400, "loadBalancingScheme"),
    ] {
        let (got, _, message) = cloud.refused(Method::POST, &r("backendServices"), with(body.clone(), &extra));
        assert!(got == status && message.contains(why), "{extra}: {got} {message}");
    }
    // Without a backend, any timeout is fine; with one, thirty seconds ride along.
    cloud.make(&r("backendServices"), with(body.clone(), &json!({"name": "slow", "timeoutSec": 60})));
    let path = r("backendServices/back");
    let stale = with(cloud.get(&path), &json!({"fingerprint": "AAAAAAAAAAA="}));
    assert_eq!(cloud.refused(Method::PUT, &path, stale).0, 412);
    let shown_service = cloud.get(&path);
    assert_eq!(shown_service.get("logConfig"), None, "nothing is logged unless somebody asks for it");
    for (written, shown) in [
        (json!({"enable": true}), json!({"enable": true, "sampleRate": 1.0, "optionalMode": "EXCLUDE_ALL_OPTIONAL"})),
        (
            json!({"sampleRate": 0.5}),
            json!({"enable": true, "sampleRate": 0.5, "optionalMode": "EXCLUDE_ALL_OPTIONAL"}),
        ),
        (json!({"enable": false}), json!({"enable": false})),
    ] {
        cloud.done(Method::PATCH, &path, json!({"fingerprint": cloud.get(&path)["fingerprint"], "logConfig": written}));
        assert_eq!(cloud.get(&path)["logConfig"], shown);
    }
    assert_eq!(shown_service["usedBy"], json!([{"reference": shown(&r("urlMaps/map"))}]));
    assert_eq!(
        cloud.refused(Method::DELETE, &path, Value::Null),
        (
            400,
            "resourceInUseByAnotherResource".into(),
            format!(
                "The backend_service resource 'projects/{}' is already being used by 'projects/{}'",
                r("backendServices/back"),
                r("urlMaps/map")
            )
        )
    );
}

#[test]
fn a_url_map_has_one_answer_for_every_request() {
    let cloud = Cloud::new();
    cloud.producer_up_to_proxy();
    let back = cloud.url(&r("backendServices/back"));
    let good = json!({
        "name": "m", "defaultService": back,
        "hostRules": [{"hosts": ["*.example.com", "shop"], "pathMatcher": "pm"}],
        "pathMatchers": [{"name": "pm", "defaultService": back, "pathRules": [{"paths": ["/a/*", "/b"], "service": back}]}],
    });
    let map = cloud.make(&r("urlMaps"), good.clone());
    assert_eq!(map["pathMatchers"][0]["pathRules"][0]["service"], shown(&r("backendServices/back")));
    let matcher = |extra: Value| with(good["pathMatchers"][0].clone(), &extra);
    for (extra, why) in [
        (json!({"hostRules": []}), "not used by any host rule"),
        (json!({"hostRules": [{"hosts": ["a*"], "pathMatcher": "pm"}]}), "Invalid host pattern"),
        (json!({"hostRules": [{"hosts": ["*x"], "pathMatcher": "pm"}]}), "Invalid host pattern"),
        (json!({"hostRules": [{"hosts": ["a", "a"], "pathMatcher": "pm"}]}), "only one host rule"),
        (json!({"hostRules": [{"hosts": ["a"], "pathMatcher": "none"}]}), "The path matcher does not exist."),
        (
            json!({"pathMatchers": [matcher(json!({"pathRules": [{"paths": ["a"], "service": back}]}))]}),
            "must start with '/'",
        ),
        (
            json!({"pathMatchers": [matcher(json!({"pathRules": [{"paths": ["/a*"], "service": back}]}))]}),
            "'*' may only stand",
        ),
        (json!({"defaultService": null}), "Required field 'resource.defaultService' not specified"),
        (
            json!({"defaultService": cloud.url(&r("backendServices/none"))}),
            "The referenced backend_service resource cannot be found.",
        ),
    ] {
        let body = with(with(good.clone(), &json!({"name": "x"})), &extra);
        let (status, _, message) = cloud.refused(Method::POST, &r("urlMaps"), body);
        assert!(status == 400 && message.contains(why), "{extra}: {message}");
    }
    let edited = cloud.edit(&r("urlMaps/m"), json!({"description": "changed"}));
    assert_ne!(edited["fingerprint"], map["fingerprint"]);
    assert_eq!(cloud.refused(Method::PATCH, &r("urlMaps/m"), map).0, 412);
}

#[test]
fn a_proxy_points_at_a_url_map_and_can_be_pointed_at_another() {
    let cloud = Cloud::new();
    cloud.producer_up_to_proxy();
    let bad = json!({"name": "x", "urlMap": cloud.url(&r("urlMaps/map")), "httpKeepAliveTimeoutSec": 4});
    assert_eq!(cloud.refused(Method::POST, &r("targetHttpProxies"), bad).0, 400);
    cloud.make(&r("urlMaps"), json!({"name": "map2", "defaultService": cloud.url(&r("backendServices/back"))}));
    cloud.done(Method::POST, &r("targetHttpProxies/proxy/setUrlMap"), json!({"urlMap": cloud.url(&r("urlMaps/map2"))}));
    assert_eq!(cloud.get(&r("targetHttpProxies/proxy"))["urlMap"], shown(&r("urlMaps/map2")));
    cloud.delete(&r("urlMaps/map"));
}

#[test]
fn a_front_needs_a_proxy_subnet_and_an_address_that_is_free() {
    let cloud = Cloud::new();
    cloud.producer_up_to_proxy();
    cloud.network("producer-1", "other");
    cloud.subnet("producer-1", "other", "os", "10.5.0.0/24", "PRIVATE");
    let proxy = shown(&r("targetHttpProxies/proxy"));
    let body = cloud.front_body("f");
    let elsewhere = json!({"network": cloud.url("producer-1/global/networks/other"), "subnetwork": cloud.url(&r("subnetworks/os"))});
    for (extra, status, why) in [
        (
            elsewhere,
            400,
            format!(
                "Invalid value for field 'resource.target': '{proxy}'. An active proxy-only subnetwork is required in the \
                 same region and VPC as the forwarding rule."
            ),
        ),
        (json!({"IPAddress": "10.9.9.9"}), 400, "outside the network/subnetwork range.".into()),
        (
            json!({"subnetwork": cloud.url(&r("subnetworks/proxies"))}),
            400,
            "Subnetwork must have purpose=PRIVATE.".into(),
        ),
        (json!({"subnetwork": cloud.url(&r("subnetworks/os"))}), 400, "must belong to the network".into()),
        (json!({"subnetwork": null}), 400, "Subnetwork must be specified".into()),
        (json!({"portRange": null}), 400, "Required field 'resource.portRange' not specified".into()),
        (json!({"portRange": "0"}), 400, "Must be a port".into()),
        (json!({"ports": ["80"]}), 400, "INTERNAL_MANAGED".into()),
        (json!({"allPorts": true}), 501, "allPorts".into()),
        (json!({"loadBalancingScheme": "EXTERNAL"}), 501, "loadBalancingScheme".into()),
        (
            json!({"target": cloud.url(&r("targetHttpProxies/none"))}),
            400,
            "The referenced target_http_proxy resource cannot be found.".into(),
        ),
    ] {
        let (got, _, message) = cloud.refused(Method::POST, &r("forwardingRules"), with(body.clone(), &extra));
        assert!(got == status && message.contains(&why), "{extra}: {got} {message}");
    }
    let rule = cloud.front("front");
    assert_eq!((&rule["IPAddress"], &rule["networkTier"]), (&json!("10.0.1.2"), &json!("PREMIUM")));
    assert_eq!(
        cloud.refused(Method::POST, &r("forwardingRules"), with(body, &json!({"IPAddress": "10.0.1.2"}))).0,
        409
    );
    assert_eq!(cloud.refused(Method::DELETE, &r("targetHttpProxies/proxy"), Value::Null).0, 400);
    assert_eq!(cloud.refused(Method::DELETE, &r("subnetworks/plain"), Value::Null).0, 400);
}

#[test]
fn a_front_keeps_everything_but_its_proxy_labels_and_description() {
    let cloud = Cloud::new();
    cloud.producer_up_to_proxy();
    cloud.front("front");
    cloud.make(&r("targetHttpProxies"), json!({"name": "proxy2", "urlMap": cloud.url(&r("urlMaps/map"))}));
    let path = r("forwardingRules/front");
    for patch in [
        json!({"IPAddress": "10.0.1.9"}),
        json!({"portRange": "81"}),
        json!({"target": cloud.url(&r("targetHttpProxies/proxy2"))}),
        json!({"network": cloud.url("producer-1/global/networks/none")}),
    ] {
        assert_eq!(cloud.refused(Method::PATCH, &path, patch.clone()).0, 400, "{patch}");
    }
    cloud.done(
        Method::POST,
        &format!("{path}/setTarget"),
        json!({"target": cloud.url(&r("targetHttpProxies/proxy2"))}),
    );
    assert_eq!(cloud.get(&path)["target"], shown(&r("targetHttpProxies/proxy2")));
    assert_eq!(cloud.edit(&path, json!({"description": "front door"}))["description"], "front door");
}

#[test]
fn an_address_by_number_uses_its_reservation_like_one_by_link() {
    let cloud = Cloud::new();
    cloud.producer_up_to_proxy();
    let reserve = |name: &str| {
        let subnet = cloud.url(&r("subnetworks/plain"));
        cloud.make(&r("addresses"), json!({"name": name, "addressType": "INTERNAL", "subnetwork": subnet}))
    };
    for (name, how) in [
        ("byname", "byname".to_owned()),
        ("bylink", cloud.url(&r("addresses/bylink"))),
        ("bynumber", "10.0.1.4".into()),
    ] {
        let reserved = reserve(name);
        let rule = format!("rule-{name}");
        let body = with(cloud.front_body(&rule), &json!({"IPAddress": how}));
        let rule = cloud.make(&r("forwardingRules"), body);
        assert_eq!(rule["IPAddress"], reserved["address"]);
        let reserved = cloud.get(&r(&format!("addresses/{name}")));
        assert_eq!((&reserved["status"], &reserved["users"]), (&json!("IN_USE"), &json!([rule["selfLink"]])));
        let (status, reason, _) = cloud.refused(Method::DELETE, &r(&format!("addresses/{name}")), Value::Null);
        assert_eq!((status, reason.as_str()), (400, "resourceInUseByAnotherResource"));
    }
    cloud.delete(&r("forwardingRules/rule-byname"));
    assert_eq!(cloud.get(&r("addresses/byname"))["status"], "RESERVED");
}

#[test]
fn many_at_once_get_different_addresses() {
    let cloud = std::sync::Arc::new(Cloud::new());
    cloud.producer_up_to_proxy();
    let threads: Vec<_> = (0..8)
        .map(|t| {
            let cloud = cloud.clone();
            std::thread::spawn(move || {
                for n in 0..5 {
                    let body = cloud.front_body(&format!("f-{t}-{n}"));
                    assert_eq!(cloud.call(Method::POST, &r("forwardingRules"), body).0, 200);
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    let list = cloud.get(&r("forwardingRules"));
    let addresses: std::collections::BTreeSet<&str> =
        list["items"].as_array().unwrap().iter().map(|i| i["IPAddress"].as_str().unwrap()).collect();
    assert_eq!(addresses.len(), 40);
}
