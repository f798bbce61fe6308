//! An operation that is done is obeyed: the very next packet after it proves that, a thousand times.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use acceptance::{
    journey::{Journey, Vm, subnet_link},
    tell,
};
use serde_json::json;
use tombolo::journey::{self, PRODUCER};

const ROUNDS: usize = 1_000;
/// Endpoints made and called at the same time.
const LANES: usize = 4;
/// No further round is begun after this.
const TIME: Duration = Duration::from_secs(120);

/// Calls each address it is sent, and says how that went.
fn caller(token: &str) -> String {
    format!(
        "while read -r address; do curl -s -o /dev/null -m 10 -w '%{{http_code}} %{{errormsg}}\\n' \
         -H 'Authorization: Bearer {token}' \"http://$address/\"; done"
    )
}

#[test]
fn a_call_right_after_its_endpoint_was_made_never_fails() {
    let journey = Journey::up(&[]);
    // A NAT address rests for two minutes after its endpoint is gone, so there must be one for every round.
    let purpose = Some("PRIVATE_SERVICE_CONNECT");
    journey::create_subnet(&journey.client(), PRODUCER, "producer-vpc", "wide", "10.0.16.0/20", purpose).unwrap();
    journey.attach(
        "att",
        &json!({"connectionPreference": "ACCEPT_AUTOMATIC", "natSubnets": [subnet_link(PRODUCER, "wide")]}),
    );
    let consumer = journey.consumer("10.1.0.0/16");
    let vms: Vec<Vm> = (0..LANES).map(|n| consumer.vm(&format!("vm-{n}"), None)).collect();
    let token = vms[0].id_token(&journey.url);
    let (begun, done) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let start = Instant::now();
    std::thread::scope(|scope| {
        for (lane, vm) in vms.iter().enumerate() {
            let (consumer, begun, done, script) = (&consumer, &begun, &done, caller(&token));
            scope.spawn(move || {
                let mut calls = vm.talk(&script);
                while start.elapsed() < TIME && begun.fetch_add(1, Ordering::Relaxed) < ROUNDS {
                    let name = format!("e{lane}");
                    let address = consumer.endpoint(&name, "att", None);
                    assert_eq!(calls.ask(&address).trim(), "200", "round {}", done.load(Ordering::Relaxed));
                    consumer.delete_endpoint(&name);
                    done.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    let done = done.into_inner();
    tell(&format!("{done} endpoints made, called at once and deleted in {} s", start.elapsed().as_secs()));
    assert!(done >= ROUNDS / 10, "{done} rounds prove little");
}
