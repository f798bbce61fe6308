//! Endpoints that are called by names: the private zone of a producer's domain, Service Directory, Cloud DNS.

#![allow(clippy::unwrap_used)]

use acceptance::{
    Cloud, REGION, installed,
    journey::{Consumer, Journey, Vm, regional},
    until,
};
use serde_json::{Value, json};
use tombolo::journey::{self, PRODUCER};

const DOMAIN: &str = "asia.p.example.com";
const ATTACHMENT: &str = "att-named";
const DIRECTORY: &str = "servicedirectory.googleapis.com";

/// A producer with a domain, and a consumer whose project has the APIs of names.
struct Scene<'j> {
    journey: &'j Journey,
    consumer: Consumer<'j>,
    vm: Vm<'j>,
}

impl<'j> Scene<'j> {
    fn new(journey: &'j Journey, project: &str) -> Scene<'j> {
        let domain = json!({"connectionPreference": "ACCEPT_AUTOMATIC", "domainNames": [format!("{DOMAIN}.")]});
        journey.attach(ATTACHMENT, &domain);
        let consumer = journey.other_consumer(project, "10.1.0.0/24");
        journey::enable(&journey.client(), project, &["dns.googleapis.com", DIRECTORY]).unwrap();
        let vm = consumer.vm("vm", None);
        Scene { journey, consumer, vm }
    }

    fn directory(&self, method: &str, path: &str) -> (u16, Value) {
        let path = format!("/v1/projects/{}/locations/{REGION}/namespaces{path}", self.consumer.project);
        let body = (method == "POST").then(|| json!({}));
        let answer = self.journey.cloud.call(method, DIRECTORY, &path, body);
        (answer.status, answer.body)
    }
}

/// What a name resolves to in a VM: an address, or nothing.
fn resolve(vm: &Vm<'_>, name: &str) -> String {
    let said = vm.sh(&format!("getent ahostsv4 {name} | cut -d' ' -f1 | sort -u"));
    said.ok().trim().to_owned()
}

#[test]
fn an_endpoint_is_reached_by_its_name_from_its_own_network_as_long_as_it_is_there() {
    let journey = Journey::on(Cloud::kept());
    let scene = Scene::new(&journey, "named-1");
    let token = scene.vm.id_token(&journey.url);
    let name = format!("shop.{DOMAIN}");
    assert_eq!(resolve(&scene.vm, &name), "", "before");
    let address = scene.consumer.endpoint("shop", ATTACHMENT, None);
    assert_eq!(resolve(&scene.vm, &name), address, "right after the operation is done");
    assert_eq!(scene.vm.status(&format!("http://{name}/"), &token), 200);
    let why = |name: &str| journey.cloud.tombolo("why", &["--json", "--project", &scene.consumer.project, "vm", name]);
    let said: Value = serde_json::from_str(&why(&name).out).unwrap();
    assert_eq!((&said["verdict"], &said["to"]["address"]), (&json!("reached"), &json!(address)), "{said}");
    let unknown = format!("other.{DOMAIN}");
    assert_eq!(resolve(&scene.vm, &unknown), "", "the zone knows no other");
    assert!(why(&unknown).err.contains(&unknown), "{:?}", why(&unknown));
    let stranger = journey.other_consumer("named-2", "10.1.0.0/24");
    let outside = stranger.vm("vm-outside", None);
    assert_eq!(resolve(&outside, &name), "", "from another network");

    let (status, resolved) = scene.directory("POST", "/goog-psc-default/services/shop:resolve");
    let endpoint = &resolved["service"]["endpoints"][0];
    assert_eq!((status, &endpoint["address"], &endpoint["port"]), (200, &json!(address), &json!(443)), "{resolved}");
    let (status, refused) = scene.directory("DELETE", "/goog-psc-default/services/shop");
    assert_eq!((status, &refused["error"]["status"]), (400, &json!("FAILED_PRECONDITION")), "{refused}");

    // Begun before, because control knows which VM is meant.
    let mut asks =
        scene.vm.talk("while read -r name; do echo \"is $(getent ahostsv4 $name | cut -d' ' -f1 | sort -u)\"; done");
    let found = format!("is {address}");
    journey.cloud.kill("guest");
    assert_eq!(asks.ask(&name), found, "the next guest is told again");
    let held = journey.cloud.hold_supervisor();
    journey.cloud.kill("control");
    assert_eq!(asks.ask(&name), found, "without control its last word holds");
    drop(held);
    until("the next control", || {
        let path = format!("/compute/v1/{}", regional(PRODUCER, "forwardingRules"));
        match journey.cloud.try_call("GET", "compute.googleapis.com", &path, &Value::Null) {
            Some(answer) if answer.status == 200 => Ok(()),
            other => Err(format!("{:?}", other.map(|answer| answer.status))),
        }
    });
    let second = scene.consumer.endpoint("second", ATTACHMENT, None);
    assert_eq!(asks.ask(&format!("second.{DOMAIN}")), format!("is {second}"), "from the next control");
    assert_eq!(asks.ask(&name), found, "which has forgotten nothing");
    drop(asks);

    scene.consumer.delete_endpoint("shop");
    assert_eq!(resolve(&scene.vm, &name), "", "the endpoint is gone, and its name with it");
    assert_eq!(scene.directory("GET", "/goog-psc-default/services/shop").0, 404);
    assert_eq!(scene.directory("GET", "/goog-psc-default").0, 200, "the namespace stays");
    let again = scene.consumer.endpoint("again", ATTACHMENT, None);
    assert_eq!(resolve(&scene.vm, &format!("again.{DOMAIN}")), again);
    journey.cloud.forget();
}

#[test]
fn gcloud_publishes_below_a_domain_and_shows_what_was_registered() {
    const TEST: &str = "gcloud_publishes_below_a_domain_and_shows_what_was_registered";
    if !installed("gcloud", TEST) {
        return;
    }
    let journey = Journey::up(&[]);
    let consumer = journey.other_consumer("named-3", "10.1.0.0/24");
    let vm = consumer.vm("vm", None);
    let gcloud = |args: String| journey.cloud.gcloud(&args).ok();
    let (mine, region) = ("--project=named-3", format!("--region={REGION}"));
    gcloud(format!("services enable dns.googleapis.com {DIRECTORY} {mine}"));
    gcloud(format!(
        "compute service-attachments create {ATTACHMENT} --producer-forwarding-rule=hello-forwarding-rule \
         --connection-preference=ACCEPT_AUTOMATIC --nat-subnets=producer-psc-subnet --domain-names={DOMAIN}. \
         {region} --project={PRODUCER}"
    ));
    let attachment = format!("projects/{PRODUCER}/regions/{REGION}/serviceAttachments/{ATTACHMENT}");
    for (name, more) in [("shop", ""), ("silent", "--disable-automate-dns-zone")] {
        gcloud(format!("compute addresses create ip-{name} --subnet=consumer-subnet {region} {mine}"));
        gcloud(format!(
            "compute forwarding-rules create {name} --network=consumer-vpc --address=ip-{name} \
             --target-service-attachment={attachment} {more} {region} {mine}"
        ));
    }
    let address = consumer.rule("shop")["IPAddress"].as_str().expect("an address").to_owned();
    let token = vm.id_token(&journey.url);
    assert_eq!(vm.status(&format!("http://shop.{DOMAIN}/"), &token), 200);

    let place = format!("--location={REGION} {mine}");
    let of = "--namespace=goog-psc-default";
    let listed = gcloud(format!("service-directory namespaces list {place} --format='value(name)'"));
    assert!(listed.trim().ends_with("goog-psc-default"), "{listed}");
    let listed = gcloud(format!("service-directory services list {of} {place} --format='value(name)'"));
    assert!(listed.contains("services/shop"), "{listed}");
    let shown = "--format='value(service.endpoints[0].address,service.endpoints[0].port)'";
    let resolved = gcloud(format!("service-directory services resolve shop {of} {place} {shown}"));
    assert_eq!(resolved.split_whitespace().collect::<Vec<_>>(), [address.as_str(), "443"]);
    let zones = gcloud(format!("dns managed-zones list {mine} --format='value(name,dnsName,visibility)'"));
    let zone = format!("goog-psc-default--{REGION}");
    assert_eq!(zones.split_whitespace().collect::<Vec<_>>(), [&zone, &format!("{DOMAIN}."), "private"]);
    let records = gcloud(format!("dns record-sets list --zone={zone} {mine} --format='value(name,type,rrdatas[0])'"));
    assert!(records.contains(&format!("shop.{DOMAIN}.")) && records.contains(&address), "{records}");

    // A namespace of one's own.
    gcloud(format!("service-directory namespaces create own {place}"));
    gcloud(format!("service-directory services create db --namespace=own --annotations=tier=one {place}"));
    let own = "--namespace=own --service=db";
    gcloud(format!("service-directory endpoints create one {own} --address=10.1.0.77 --port=5432 {place}"));
    gcloud(format!("service-directory endpoints update one {own} --port=5433 {place}"));
    let said = gcloud(format!("service-directory endpoints describe one {own} {place} --format='value(address,port)'"));
    assert_eq!(said.split_whitespace().collect::<Vec<_>>(), ["10.1.0.77", "5433"]);
    gcloud(format!("service-directory namespaces delete own {place} --quiet"));
    gcloud(format!("compute forwarding-rules delete shop {region} {mine} --quiet"));
    let left = gcloud(format!("service-directory services list {of} {place} --format='value(name)'"));
    assert!(!left.contains("services/shop") && left.contains("services/silent"), "{left}");
}
