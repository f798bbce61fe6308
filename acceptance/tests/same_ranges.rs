//! Addresses of one network mean nothing in another: everybody uses 10.0.0.0/16 here, down to the source port.

use std::thread;

use acceptance::{
    PATIENCE,
    journey::{Consumer, Journey, Vm},
    line::Line,
};
use serde_json::json;
use tombolo::journey::CONSUMER;

const RANGE: &str = "10.0.0.0/16";
const ENDPOINT: &str = "10.0.0.5";
const PORT: u16 = 40_000;

/// Answers every request on port 80 with the VM's name.
const SERVE: &str = r#"exec python3 -c '
import http.server, socket
class Me(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        page = ("I am " + socket.gethostname() + "\n").encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(page)))
        self.end_headers()
        self.wfile.write(page)
    def log_message(self, *words):
        pass
server = http.server.HTTPServer(("", 80), Me)
print("ready", flush=True)
server.serve_forever()
'"#;

fn serve(vm: &Vm) -> Line {
    let line = vm.talk(SERVE);
    assert_eq!(line.hear(), "ready");
    line
}

#[test]
fn vms_at_the_balancers_and_at_the_nat_address_are_reached_at_them_and_never_in_place_of_the_service() {
    let journey = Journey::up(&[]);
    journey.attach("att", &json!({"connectionPreference": "ACCEPT_AUTOMATIC"}));
    let consumer = journey.consumer(RANGE);
    consumer.allow("tcp", 80);
    let nat = "10.0.3.2";
    let balancer_double = consumer.vm("balancer-double", Some(&journey.vip));
    let nat_double = consumer.vm("nat-double", Some(nat));
    let vm = consumer.vm("test-vm", None);
    consumer.endpoint("e", "att", Some(ENDPOINT));
    let token = vm.id_token(&journey.url);
    let _serving = [serve(&balancer_double), serve(&nat_double)];
    let at_double = journey.cloud.watch_vm(consumer.network, &balancer_double.workload);
    let at_nat_double = journey.cloud.watch_vm(consumer.network, &nat_double.workload);
    let at_balancer = journey.cloud.watch_balancer(journey.producer);

    for n in 0..5 {
        let page = vm.page(&format!("http://{ENDPOINT}/headers?nonce={n}"), &token);
        assert!(page.contains(&format!("GET /headers?nonce={n}\n")), "{page}");
        assert!(page.contains("a00:302]"), "the service sees 10.0.3.2: {page}");
    }
    assert_eq!((at_double.opened().len(), at_nat_double.opened().len()), (0, 0), "SYNs at the doubles");
    let sources: Vec<String> = at_balancer.opened().iter().map(|h| h.src.to_string()).collect();
    assert_eq!(sources, [nat; 5], "the balancer sees the NAT address only");

    assert_eq!(vm.page(&format!("http://{}/", journey.vip), ""), "I am balancer-double");
    assert_eq!(vm.page(&format!("http://{nat}/"), ""), "I am nat-double");
    assert_eq!((at_double.opened().len(), at_nat_double.opened().len()), (1, 1));
    assert_eq!(at_balancer.opened().len(), 5, "what was for the VMs did not reach the balancer");
    // The double itself is a client like any other.
    let page = balancer_double.page(&format!("http://{ENDPOINT}/headers?nonce=double"), &token);
    assert!(page.contains("GET /headers?nonce=double\n"), "{page}");
}

/// Three requests on one connection, from a port of our choice; the second keeps it open for a while.
fn three_requests(consumer: &Consumer, vm: &Vm, token: &str) -> String {
    let (name, base) = (&consumer.project, format!("http://{ENDPOINT}"));
    vm.sh(&format!(
        "curl -s -m {} --local-port {PORT} -H 'Authorization: Bearer {token}' '{base}/headers?nonce={name}-1' \
         '{base}/sleep?ms=1500' '{base}/headers?nonce={name}-2'",
        PATIENCE.as_secs()
    ))
    .ok()
}

#[test]
fn two_consumers_with_equal_addresses_and_ports_talk_at_once_and_each_hears_its_own_answers() {
    let journey = Journey::up(&[]);
    journey.attach("att", &json!({"connectionPreference": "ACCEPT_AUTOMATIC"}));
    let consumers = [journey.consumer(RANGE), journey.other_consumer("consumer-two", RANGE)];
    assert_eq!(consumers[0].project, CONSUMER);
    let vms = consumers.each_ref().map(|c| c.vm(&format!("vm-{}", c.project), Some("10.0.0.9")));
    for consumer in &consumers {
        consumer.endpoint("e", "att", Some(ENDPOINT));
    }
    let tokens = vms.each_ref().map(|vm| vm.id_token(&journey.url));
    let links = consumers.each_ref().map(|c| journey.cloud.watch_link(journey.producer, c.network));

    let pages = thread::scope(|scope| {
        let calls = [0, 1].map(|i| {
            let (consumer, vm, token) = (&consumers[i], &vms[i], &tokens[i]);
            scope.spawn(move || three_requests(consumer, vm, token))
        });
        calls.map(|call| call.join().expect("the call ends"))
    });

    for (consumer, page) in consumers.iter().zip(&pages) {
        let nonces: Vec<&str> = page.lines().filter_map(|l| l.strip_prefix("GET /headers?nonce=")).collect();
        assert_eq!(nonces, [format!("{}-1", consumer.project), format!("{}-2", consumer.project)], "{page}");
    }
    let ours = |h: &host::capture::Headers| h.src_port == PORT && h.dst_port == 80;
    let mut spans = Vec::new();
    for link in &links {
        let opened = link.opened();
        let [one] = opened.as_slice() else { panic!("one connection each: {opened:?}") };
        assert_eq!(
            (one.src.to_string(), one.src_port, one.dst.to_string()),
            ("10.0.0.9".into(), PORT, ENDPOINT.into())
        );
        spans.push(link.span(ours).expect("frames"));
    }
    let both = spans.iter().map(|s| s.0).max() < spans.iter().map(|s| s.1).min();
    assert!(both, "both connections were open at once: {spans:?}");
    let peers = pages
        .each_ref()
        .map(|p| p.lines().find(|l| l.starts_with("peer: ")).map(|l| l.rsplit_once(']').map(|x| x.0.to_owned())));
    assert_ne!(peers[0], peers[1], "the service tells them apart by their NAT addresses");
}
