//! The two sides of the journey, in as many copies as a test wants: one producer whose service has pages for tests, and
//! consumers with networks, endpoints and VMs of their own.

use std::{
    net::Ipv4Addr,
    process::Stdio,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use model::id::{NetworkId, WorkloadId};
use serde_json::{Value, json};
use tombolo::{
    client::Client,
    journey::{self, CONSUMER, PRODUCER},
};

use crate::{Cloud, REGION, Said, ZONE, line::Line, until};

/// The service attachment of the journey.
pub const ATTACHMENT: &str = "hello-service-attachment";

/// A cloud with a producer: service, network, load balancer. Nothing is published yet.
pub struct Journey {
    pub cloud: Cloud,
    /// The service's own URL, which is the audience of ID tokens for it.
    pub url: String,
    /// The load balancer's address.
    pub vip: String,
    pub producer: NetworkId,
}

/// A project with a network, one subnet and what it puts into it.
pub struct Consumer<'j> {
    journey: &'j Journey,
    pub project: String,
    pub network: NetworkId,
}

pub struct Vm<'j> {
    cloud: &'j Cloud,
    pub name: String,
    pub project: String,
    pub workload: WorkloadId,
    pub address: Ipv4Addr,
}

/// A journey that the tests of one file share while any of them runs; the last one takes it down.
pub struct Shared<T>(Mutex<Weak<T>>);

impl<T> Shared<T> {
    pub const fn new() -> Shared<T> {
        Shared(Mutex::new(Weak::new()))
    }

    pub fn get(&self, make: impl FnOnce() -> T) -> Arc<T> {
        let mut shared = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(living) = shared.upgrade() {
            return living;
        }
        let made = Arc::new(make());
        *shared = Arc::downgrade(&made);
        made
    }
}

impl<T> Default for Shared<T> {
    fn default() -> Shared<T> {
        Shared::new()
    }
}

pub fn regional(project: &str, path: &str) -> String {
    format!("projects/{project}/regions/{REGION}/{path}")
}

impl Journey {
    /// A throwaway cloud with the producer's side in it.
    pub fn up(args: &[&str]) -> Journey {
        Journey::on(Cloud::up_with(args))
    }

    /// Builds the producer's side; both projects of the walkthrough are there afterwards.
    pub fn on(cloud: Cloud) -> Journey {
        let client = client(&cloud);
        for (project, apis) in [
            (PRODUCER, ["run.googleapis.com", "compute.googleapis.com"]),
            (CONSUMER, ["compute.googleapis.com", "iap.googleapis.com"]),
        ] {
            journey::create_project(&client, project).unwrap();
            journey::enable(&client, project, &apis).unwrap();
        }
        let url = deploy_test_service(&cloud);
        journey::let_invoke(&client, &invoker(&client, CONSUMER)).unwrap();
        journey::create_network(&client, PRODUCER, "producer-vpc").unwrap();
        for (name, range, purpose) in [
            ("producer-subnet", "10.0.1.0/24", None),
            ("proxy-only-subnet", "10.0.2.0/24", Some("REGIONAL_MANAGED_PROXY")),
            ("producer-psc-subnet", "10.0.3.0/24", Some("PRIVATE_SERVICE_CONNECT")),
        ] {
            journey::create_subnet(&client, PRODUCER, "producer-vpc", name, range, purpose).unwrap();
        }
        let vip = journey::create_load_balancer(&client).unwrap();
        let producer = network_id(&cloud, PRODUCER, "producer-vpc");
        Journey { cloud, url, vip, producer }
    }

    /// The producer's side, published to the walkthrough's consumer.
    pub fn published(args: &[&str]) -> Journey {
        let journey = Journey::up(args);
        journey::publish(&journey.client(), &[(CONSUMER, 10)]).unwrap();
        journey
    }

    pub fn client(&self) -> Client {
        client(&self.cloud)
    }

    /// The walkthrough's consumer, with the subnet `range`.
    pub fn consumer(&self, range: &str) -> Consumer<'_> {
        self.consumer_network(CONSUMER, range)
    }

    /// Another consumer, which may invoke the service too.
    pub fn other_consumer(&self, project: &str, range: &str) -> Consumer<'_> {
        let client = self.client();
        journey::create_project(&client, project).unwrap();
        journey::enable(&client, project, &["compute.googleapis.com"]).unwrap();
        self.let_invoke_too(&invoker(&client, project));
        self.consumer_network(project, range)
    }

    fn consumer_network(&self, project: &str, range: &str) -> Consumer<'_> {
        let client = self.client();
        journey::create_network(&client, project, "consumer-vpc").unwrap();
        journey::create_subnet(&client, project, "consumer-vpc", "consumer-subnet", range, None).unwrap();
        Consumer {
            journey: self,
            project: project.to_owned(),
            network: network_id(&self.cloud, project, "consumer-vpc"),
        }
    }

    fn let_invoke_too(&self, member: &str) {
        let service = format!("/v1/projects/{PRODUCER}/locations/{REGION}/services/hello-service");
        until("the policy was written before anybody else wrote it", || {
            let mut policy =
                self.cloud.call("GET", "run.googleapis.com", &format!("{service}:getIamPolicy"), None).body;
            policy["bindings"][0]["members"].as_array_mut().expect("somebody may invoke").push(json!(member));
            let body = json!({"policy": policy});
            let set = self.cloud.call("POST", "run.googleapis.com", &format!("{service}:setIamPolicy"), Some(body));
            match set.status {
                200 => Ok(()),
                // Tests share the cloud: another one changed the policy in between, as any two users may.
                409 => Err(set.body.to_string()),
                _ => panic!("{}", set.body),
            }
        });
    }

    /// Makes an attachment to the load balancer; `more` overrides and adds fields.
    pub fn attach(&self, name: &str, more: &Value) {
        let mut body = json!({
            "name": name, "connectionPreference": "ACCEPT_MANUAL",
            "targetService": journey::link(PRODUCER, &format!("regions/{REGION}/forwardingRules/hello-forwarding-rule")),
            "natSubnets": [subnet_link(PRODUCER, "producer-psc-subnet")],
        });
        for (field, value) in more.as_object().expect("fields") {
            body[field] = value.clone();
        }
        self.cloud.compute("POST", &regional(PRODUCER, "serviceAttachments"), body);
    }

    pub fn attachment(&self, name: &str) -> Value {
        self.cloud.get(&regional(PRODUCER, &format!("serviceAttachments/{name}")))
    }

    /// Changes fields of an attachment; when this returns, packets obey.
    pub fn change(&self, name: &str, changes: &Value) {
        let mut body = changes.clone();
        body["fingerprint"] = self.attachment(name)["fingerprint"].clone();
        self.cloud.compute("PATCH", &regional(PRODUCER, &format!("serviceAttachments/{name}")), body);
    }
}

impl<'j> Consumer<'j> {
    /// Makes an endpoint of an attachment at an address (or any), and returns that address.
    pub fn endpoint(&self, name: &str, attachment: &str, address: Option<&str>) -> String {
        let mut body = json!({
            "name": name, "network": journey::link(&self.project, "global/networks/consumer-vpc"),
            "subnetwork": subnet_link(&self.project, "consumer-subnet"),
            "target": journey::link(PRODUCER, &format!("regions/{REGION}/serviceAttachments/{attachment}")),
        });
        if let Some(address) = address {
            body["IPAddress"] = json!(address);
        }
        self.journey.cloud.compute("POST", &regional(&self.project, "forwardingRules"), body);
        self.rule(name)["IPAddress"].as_str().expect("an address").to_owned()
    }

    pub fn rule(&self, name: &str) -> Value {
        self.journey.cloud.get(&regional(&self.project, &format!("forwardingRules/{name}")))
    }

    pub fn delete_endpoint(&self, name: &str) {
        self.journey.cloud.compute("DELETE", &regional(&self.project, &format!("forwardingRules/{name}")), json!({}));
    }

    /// Lets everybody in the network reach this port of its VMs.
    pub fn allow(&self, protocol: &str, port: u16) {
        let cloud = &self.journey.cloud;
        cloud.compute(
            "POST",
            &format!("projects/{}/global/firewalls", self.project),
            json!({
                "name": format!("allow-{protocol}-{port}"), "direction": "INGRESS", "sourceRanges": ["0.0.0.0/0"],
                "network": journey::link(&self.project, "global/networks/consumer-vpc"),
                "allowed": [{"IPProtocol": protocol, "ports": [port.to_string()]}],
            }),
        );
    }

    /// The status of an endpoint as its consumer sees it, after making sure that the producer sees the same.
    #[track_caller]
    pub fn status(&self, endpoint: &str, attachment: &str) -> String {
        let rule = self.rule(endpoint);
        let status = rule["pscConnectionStatus"].as_str().expect("a connection status").to_owned();
        let path = regional(PRODUCER, &format!("serviceAttachments/{attachment}"));
        let seen = self.journey.cloud.call("GET", "compute.googleapis.com", &format!("/compute/v1/{path}"), None);
        if seen.status == 200 {
            let connected = seen.body["connectedEndpoints"].as_array().cloned().unwrap_or_default();
            let mine =
                connected.iter().find(|c| c["endpoint"] == rule["selfLink"]).expect("the producer sees the endpoint");
            assert_eq!(mine["status"], status, "producer and consumer see one status");
            assert_eq!(mine["pscConnectionId"], rule["pscConnectionId"]);
        }
        status
    }

    pub fn vm(&self, name: &str, address: Option<&str>) -> Vm<'j> {
        let mut interface = json!({"subnetwork": subnet_link(&self.project, "consumer-subnet")});
        if let Some(address) = address {
            interface["networkIP"] = json!(address);
        }
        self.vm_in(ZONE, name, interface)
    }

    /// A VM in a new subnet of the consumer's VPC, in this zone of another region.
    pub fn vm_abroad(&self, zone: &str, name: &str, range: &str) -> Vm<'j> {
        let region = zone.rsplit_once('-').expect("a zone").0;
        let subnets = format!("projects/{}/regions/{region}/subnetworks", self.project);
        let network = journey::link(&self.project, "global/networks/consumer-vpc");
        let subnet = json!({"name": "abroad", "network": network, "ipCidrRange": range});
        self.journey.cloud.compute("POST", &subnets, subnet);
        let subnetwork = journey::link(&self.project, &format!("regions/{region}/subnetworks/abroad"));
        self.vm_in(zone, name, json!({"subnetwork": subnetwork}))
    }

    fn vm_in(&self, zone: &str, name: &str, mut interface: Value) -> Vm<'j> {
        interface["network"] = json!(journey::link(&self.project, "global/networks/consumer-vpc"));
        let cloud = &self.journey.cloud;
        cloud.compute(
            "POST",
            &format!("projects/{}/zones/{zone}/instances", self.project),
            json!({
                "name": name, "machineType": format!("zones/{zone}/machineTypes/e2-micro"),
                "disks": [{"boot": true, "autoDelete": true, "initializeParams": {
                    "sourceImage": "projects/debian-cloud/global/images/family/debian-12"}}],
                "networkInterfaces": [interface],
                "serviceAccounts": [{"email": "default", "scopes": ["https://www.googleapis.com/auth/cloud-platform"]}],
            }),
        );
        Vm::find_in(cloud, &self.project, zone, name)
    }
}

/// Who may connect to the producer's attachments.
const CONSUMERS: &str = "compute.restrictPrivateServiceConnectConsumer";

impl Journey {
    /// Sets an organisation policy on the producer that keeps one consumer out.
    #[track_caller]
    pub fn forbid(&self, consumer: &str) {
        const CRM: &str = "cloudresourcemanager.googleapis.com";
        let organization = format!("/v1/{}", control::projects::ORGANIZATION);
        let admin = json!({"role": "roles/orgpolicy.policyAdmin", "members": ["user:admin@tombolo.local"]});
        self.cloud.change_policy(CRM, &organization, |bindings| bindings.push(admin));
        journey::enable(&self.client(), PRODUCER, &["orgpolicy.googleapis.com"]).expect("an API that there is");
        let name = format!("projects/{PRODUCER}/policies/{CONSUMERS}");
        let rules = json!([{"values": {"deniedValues": [format!("under:projects/{consumer}")]}}]);
        let policies = format!("/v2/projects/{PRODUCER}/policies");
        self.say("POST", "orgpolicy.googleapis.com", &policies, json!({"name": name, "spec": {"rules": rules}}));
    }

    /// Takes the policy away.
    #[track_caller]
    pub fn forbid_nobody(&self) {
        let policy = format!("/v2/projects/{PRODUCER}/policies/{CONSUMERS}");
        self.say("DELETE", "orgpolicy.googleapis.com", &policy, json!({}));
    }

    #[track_caller]
    fn say(&self, method: &str, host: &str, path: &str, body: Value) -> Value {
        let answer = self.cloud.call(method, host, path, Some(body));
        assert_eq!(answer.status, 200, "{method} {path}: {}", answer.body);
        answer.body
    }
}

impl<'j> Vm<'j> {
    pub fn find(cloud: &'j Cloud, project: &str, name: &str) -> Vm<'j> {
        Vm::find_in(cloud, project, ZONE, name)
    }

    fn find_in(cloud: &'j Cloud, project: &str, zone: &str, name: &str) -> Vm<'j> {
        let vm = cloud.get(&format!("projects/{project}/zones/{zone}/instances/{name}"));
        let id: u64 = vm["id"].as_str().and_then(|id| id.parse().ok()).expect("a numeric id");
        let address =
            vm["networkInterfaces"][0]["networkIP"].as_str().and_then(|a| a.parse().ok()).expect("an address");
        let workload = WorkloadId(format!("vm-{id:x}"));
        Vm { cloud, name: name.to_owned(), project: project.to_owned(), workload, address }
    }

    fn command(&self, script: &str) -> std::process::Command {
        let mut command = std::process::Command::new(crate::tombolo());
        command.args(["ssh", "--cloud", &self.cloud.name, "--project", &self.project, &self.name]);
        command.args(["--", "bash", "-c", script]);
        command
    }

    /// Runs a script of bash in the VM.
    pub fn sh(&self, script: &str) -> Said {
        Said::of(&self.command(script).stdin(Stdio::null()).output().expect("tombolo starts"))
    }

    /// Starts a script in the VM that answers each line it is sent with one line.
    pub fn talk(&self, script: &str) -> Line {
        Line::start(self.command(script))
    }

    /// What the metadata server answers below `/computeMetadata/v1/`.
    #[track_caller]
    pub fn metadata(&self, path: &str) -> String {
        let url = format!("http://metadata.google.internal/computeMetadata/v1/{path}");
        self.sh(&format!("curl -sf -m 10 -H 'Metadata-Flavor: Google' '{url}'")).ok()
    }

    /// An access token of the VM's service account.
    #[track_caller]
    pub fn access_token(&self) -> String {
        let told = self.metadata("instance/service-accounts/default/token");
        let told: Value = serde_json::from_str(&told).unwrap_or_else(|why| panic!("{why}: {told}"));
        told["access_token"].as_str().unwrap_or_else(|| panic!("no token: {told}")).to_owned()
    }

    /// An ID token of the VM's service account.
    #[track_caller]
    pub fn id_token(&self, audience: &str) -> String {
        self.metadata(&format!("instance/service-accounts/default/identity?audience={audience}"))
    }

    /// The status of a GET within two seconds; 0 when no answer came.
    pub fn status(&self, url: &str, token: &str) -> u16 {
        let header = if token.is_empty() { String::new() } else { format!("-H 'Authorization: Bearer {token}'") };
        let said = self.sh(&format!("curl -s -o /dev/null -m 2 -w '%{{http_code}}' {header} '{url}'"));
        said.out.trim().parse().unwrap_or_else(|_| panic!("no status: {said:?}"))
    }

    /// The page of a GET that must succeed.
    #[track_caller]
    pub fn page(&self, url: &str, token: &str) -> String {
        self.sh(&format!("curl -s --fail-with-body -m 10 -H 'Authorization: Bearer {token}' '{url}'")).ok()
    }

    /// Opens a connection to `address`, from a port of its own choice or this one, and keeps it for requests.
    pub fn connect(&self, address: &str, token: &str) -> Line {
        self.talk(&KEPT.replace("ADDRESS", address).replace("TOKEN", token))
    }
}

/// One connection: each path that comes in is asked for on it, and the status line and the body's first line go out.
/// Of an answer in chunks only the status goes out; its body stays unread.
const KEPT: &str = r#"
exec 3<>/dev/tcp/ADDRESS/80 || { echo 'no connection'; exit; }
trap '' PIPE
echo open
while read -r path; do
  request="GET $path HTTP/1.1\r\nHost: ADDRESS\r\nAuthorization: Bearer TOKEN\r\n\r\n"
  printf '%b' "$request" >&3 2>/dev/null || { echo closed; exit; }
  IFS= read -r status <&3 || { echo closed; exit; }
  length=0
  while IFS= read -r line <&3; do
    line=${line%$'\r'}
    [ -z "$line" ] && break
    case ${line,,} in content-length:*) length=${line#*: };; esac
  done
  body=
  [ $length -gt 0 ] && IFS= read -r -N $length body <&3
  echo "${status%$'\r'}" "${body%%$'\n'*}"
done"#;

pub fn client(cloud: &Cloud) -> Client {
    Client { door: cloud.door, token: cloud.token.clone() }
}

/// The default service account of a project, as a member of a policy.
pub fn invoker(client: &Client, project: &str) -> String {
    let number = journey::project_number(client, project).unwrap();
    format!("serviceAccount:{number}-compute@developer.gserviceaccount.com")
}

pub fn subnet_link(project: &str, name: &str) -> String {
    journey::link(project, &format!("regions/{REGION}/subnetworks/{name}"))
}

pub fn network_id(cloud: &Cloud, project: &str, name: &str) -> NetworkId {
    let network = cloud.get(&format!("projects/{project}/global/networks/{name}"));
    NetworkId(network["id"].as_str().and_then(|id| id.parse().ok()).expect("a numeric id"))
}

/// The hello service with its pages for tests; returns its URL when it is ready.
fn deploy_test_service(cloud: &Cloud) -> String {
    let host = "run.googleapis.com";
    let collection = format!("/v2/projects/{PRODUCER}/locations/{REGION}/services");
    let service = json!({
        "ingress": "INGRESS_TRAFFIC_INTERNAL_ONLY",
        "template": {"containers": [{"image": journey::IMAGE, "env": [{"name": "HELLO_TEST", "value": "1"}]}]},
    });
    let mut operation = cloud.call("POST", host, &format!("{collection}?serviceId=hello-service"), Some(service)).body;
    while operation["done"] != true {
        let name = operation["name"].as_str().unwrap_or_else(|| panic!("no operation: {operation}")).to_owned();
        operation = cloud.call("POST", host, &format!("/v2/{name}:wait"), Some(json!({"timeout": "10s"}))).body;
    }
    assert!(operation["error"].is_null(), "{operation}");
    let service = cloud.call("GET", host, &format!("{collection}/hello-service"), None).body;
    service["uri"].as_str().unwrap_or_else(|| panic!("no URL: {service}")).to_owned()
}
