//! Inside a VM: what it finds at 169.254.169.254, what stock client libraries make of it, and what a hostile one gets.

use std::sync::Arc;

use acceptance::{
    ZONE,
    journey::{Journey, Shared, Vm},
    skip,
};
use serde_json::{Value, json};
use tombolo::journey::CONSUMER;

static JOURNEY: Shared<Journey> = Shared::new();

const OTHER: &str = "other-consumer";
const ENDPOINT: &str = "10.1.0.5";

/// Two consumers with a VM each, at the same address of networks with the same range.
fn journey() -> Arc<Journey> {
    JOURNEY.get(|| {
        let journey = Journey::up(&[]);
        journey.attach("att", &json!({"connectionPreference": "ACCEPT_AUTOMATIC"}));
        let consumer = journey.consumer("10.1.0.0/24");
        consumer.endpoint("e", "att", Some(ENDPOINT));
        consumer.vm("test-vm", Some("10.1.0.10"));
        consumer.vm("neighbour", Some("10.1.0.11"));
        let other = journey.other_consumer(OTHER, "10.1.0.0/24");
        other.vm("far-vm", Some("10.1.0.20"));
        for consumer in [&consumer, &other] {
            consumer.allow("tcp", 80);
            consumer.allow("udp", 9_000);
        }
        journey
    })
}

fn test_vm(journey: &Journey) -> Vm<'_> {
    Vm::find(&journey.cloud, CONSUMER, "test-vm")
}

#[test]
fn the_metadata_server_keeps_googles_rules() {
    let journey = journey();
    let vm = test_vm(&journey);
    let base = "http://metadata.google.internal/computeMetadata/v1";
    let status = |options: &str, path: &str| {
        vm.sh(&format!("curl -s -o /dev/null -m 10 -w '%{{http_code}}' {options} '{base}{path}'")).ok()
    };
    let flavor = "-H 'Metadata-Flavor: Google'";
    for (what, options, path, want) in [
        ("with the header", flavor, "/instance/name", "200"),
        ("without the header", "", "/instance/name", "403"),
        ("with another flavor", "-H 'Metadata-Flavor: Amazon'", "/instance/name", "403"),
        ("relayed by a proxy", &format!("{flavor} -H 'X-Forwarded-For: 10.0.0.1'"), "/instance/name", "403"),
        ("what is not there", flavor, "/instance/nothing", "404"),
        ("a directory without its slash", flavor, "/instance", "301"),
        ("an identity without an audience", flavor, "/instance/service-accounts/default/identity", "400"),
        ("an account of another project", flavor, "/instance/service-accounts/somebody@else.example/token", "404"),
    ] {
        assert_eq!(status(options, path), want, "{what}");
    }
    let head = vm.sh(&format!("curl -si -m 10 {flavor} {base}/instance/name")).ok().to_ascii_lowercase();
    assert!(head.contains("metadata-flavor: google") && head.contains("server: metadata server for vm"), "{head}");
    assert_eq!(vm.metadata("project/project-id"), CONSUMER);
    assert!(vm.metadata("instance/zone").ends_with(&format!("/zones/{ZONE}")));
    assert_eq!(vm.metadata("instance/network-interfaces/0/ip"), "10.1.0.10");
    let all: Value = serde_json::from_str(&vm.metadata("?recursive=true")).unwrap();
    assert_eq!(all["instance"]["name"], "test-vm");
    assert!(!all.to_string().contains("ya29."), "a listing shows no token");
}

#[test]
fn names_of_the_own_network_resolve_and_no_others() {
    let journey = journey();
    let vm = test_vm(&journey);
    let resolve = |name: &str| {
        let script = format!("getent ahostsv4 {name} | cut -d' ' -f1 | sort -u");
        vm.sh(&script).ok()
    };
    let internal = |name: &str, project: &str| format!("{name}.{ZONE}.c.{project}.internal");
    assert_eq!(resolve("metadata.google.internal"), "169.254.169.254");
    assert_eq!(resolve(&internal("test-vm", CONSUMER)), "10.1.0.10");
    assert_eq!(resolve(&internal("neighbour", CONSUMER)), "10.1.0.11");
    assert_eq!(resolve("neighbour"), "10.1.0.11", "by the search list");
    assert_eq!(resolve(&internal("far-vm", OTHER)), "", "of another network");
    assert_eq!(resolve(&internal("nobody", CONSUMER)), "");
}

/// What a user's program does, with nothing configured.
const GOOGLE_AUTH: &str = "
import google.auth, google.auth.transport.requests, google.oauth2.id_token, requests, sys
url, endpoint = sys.argv[1:]
request = google.auth.transport.requests.Request()
credentials, project = google.auth.default()
credentials.refresh(request)
token = google.oauth2.id_token.fetch_id_token(request, url)
answer = requests.get(endpoint, headers={'Authorization': 'Bearer ' + token}, timeout=10)
print(type(credentials).__module__, project, credentials.service_account_email, credentials.token[:5], answer.status_code)
";

#[test]
fn googles_own_python_library_finds_its_identity_and_calls_the_service() {
    let journey = journey();
    let vm = test_vm(&journey);
    let test = "google-auth in a VM";
    if vm.sh("/usr/bin/python3 -c 'import google.auth.transport.requests, requests'").code != Some(0) {
        return skip(test, "python3-google-auth and python3-requests are not installed");
    }
    let has_fetch = vm.sh("/usr/bin/python3 -c 'from google.oauth2.id_token import fetch_id_token'").code == Some(0);
    let script = match has_fetch {
        true => GOOGLE_AUTH.to_owned(),
        // Older releases leave the question to their users.
        false => GOOGLE_AUTH.replace("import google.auth,", "import google.auth, google.auth.compute_engine,").replace(
            "token = google.oauth2.id_token.fetch_id_token(request, url)",
            "token = google.auth.compute_engine._metadata.get(request, \
             'instance/service-accounts/default/identity?audience=' + url)",
        ),
    };
    let said = vm.sh(&format!("/usr/bin/python3 - '{}' 'http://{ENDPOINT}/' <<'END'\n{script}\nEND", journey.url));
    let number =
        journey.cloud.call("GET", "cloudresourcemanager.googleapis.com", &format!("/v1/projects/{CONSUMER}"), None);
    let number = number.body["projectNumber"].as_str().expect("a number").to_owned();
    let want = format!(
        "google.auth.compute_engine.credentials {CONSUMER} {number}-compute@developer.gserviceaccount.com ya29. 200"
    );
    assert_eq!(said.out, want, "{}", said.err);
}

/// Sends a UDP packet to 10.1.0.11:9000 from the address in the first word, on a raw socket.
const SPOOF: &str = r#"
import socket, struct, sys
source, target = sys.argv[1], "10.1.0.11"
def checksum(data):
    total = sum(struct.unpack("!%dH" % (len(data) // 2), data))
    total = (total >> 16) + (total & 0xffff)
    return ~(total + (total >> 16)) & 0xffff
body = struct.pack("!HHHH", 9001, 9000, 13, 0) + b"spoof"
ends = socket.inet_aton(source) + socket.inet_aton(target)
head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), 1, 0, 64, 17, 0) + ends
head = head[:10] + struct.pack("!H", checksum(head)) + head[12:]
raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
raw.sendto(head + body, (target, 0))
"#;

#[test]
fn a_packet_under_a_borrowed_source_address_leaves_the_vm_and_arrives_nowhere() {
    let journey = journey();
    let vm = test_vm(&journey);
    let neighbour = Vm::find(&journey.cloud, CONSUMER, "neighbour");
    let network = acceptance::journey::network_id(&journey.cloud, CONSUMER, "consumer-vpc");
    let sent = journey.cloud.watch_vm(network, &vm.workload);
    let arrived = journey.cloud.watch_vm(network, &neighbour.workload);
    let spoofed = ["10.1.0.77", "10.1.0.5", "10.1.0.1", "169.254.169.254", "127.0.0.1", "8.8.8.8"];
    for source in spoofed.iter().chain(&["10.1.0.10"]) {
        vm.sh(&format!("/usr/bin/python3 - {source} <<'END'\n{SPOOF}\nEND")).ok();
    }
    let sources = |watch: &acceptance::wire::Watch| -> Vec<String> {
        watch.seen().iter().filter(|h| h.dst_port == 9_000).map(|h| h.src.to_string()).collect()
    };
    let left = sources(&sent);
    assert!(left.len() >= 5, "raw sockets work in a VM, or this proves nothing: {left:?}");
    assert_eq!(sources(&arrived), ["10.1.0.10"], "only the VM's own address arrives");
}

#[test]
fn no_packet_crosses_into_another_network() {
    let journey = journey();
    let vm = test_vm(&journey);
    let far = Vm::find(&journey.cloud, OTHER, "far-vm");
    let network = acceptance::journey::network_id(&journey.cloud, OTHER, "consumer-vpc");
    let at_far = journey.cloud.watch_vm(network, &far.workload);
    let at_balancer = journey.cloud.watch_balancer(journey.producer);
    for address in ["10.1.0.20", &journey.vip, "10.0.3.2"] {
        let said = vm.sh(&format!("curl -s -m 2 -o /dev/null http://{address}/"));
        assert_ne!(said.code, Some(0), "{address}");
    }
    let from_us = |h: &host::capture::Headers| h.src.to_string() == "10.1.0.10";
    assert_eq!((at_far.count(from_us), at_balancer.count(from_us)), (0, 0));
}

#[test]
fn no_header_makes_one_workload_another() {
    let journey = journey();
    let vm = test_vm(&journey);
    let far = Vm::find(&journey.cloud, OTHER, "far-vm");
    let email = "service-accounts/default/email";
    assert_ne!(vm.metadata(&format!("instance/{email}")), far.metadata(&format!("instance/{email}")));
    let url = format!("http://169.254.169.254/computeMetadata/v1/instance/{email}");
    let ours = vm.metadata(&format!("instance/{email}"));
    for header in [
        "Host: far-vm",
        "X-Real-IP: 10.1.0.20",
        "Forwarded: for=10.1.0.20",
        "X-Instance-Id: 1",
        "X-Goog-Instance: far-vm",
        "X-Google-Metadata-Request: True",
        "Via: far-vm",
    ] {
        let said = vm.sh(&format!("curl -s -m 10 -H 'Metadata-Flavor: Google' -H '{header}' {url}"));
        assert!(said.out == ours || !said.out.contains("gserviceaccount.com"), "{header}: {said:?}");
    }
    // Nor does the service believe what a VM says about itself.
    let claim = "-H 'X-Goog-Authenticated-User-Email: accounts.google.com:admin@example.com' \
                 -H 'X-Serverless-Authorization: Bearer x'";
    let code = vm.sh(&format!("curl -s -o /dev/null -m 10 -w '%{{http_code}}' {claim} http://{ENDPOINT}/")).ok();
    assert!(["401", "403"].contains(&code.as_str()), "{code}");
}
