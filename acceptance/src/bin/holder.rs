//! A process that holds a cloud with a journey in it, and says the cloud's name; for tests of what is left when it dies.

use std::io::Write;

use acceptance::journey::Journey;

fn main() {
    let journey = Journey::up(&[]);
    journey.attach("att", &serde_json::json!({"connectionPreference": "ACCEPT_AUTOMATIC"}));
    let consumer = journey.consumer("10.1.0.0/24");
    let vm = consumer.vm("test-vm", None);
    let address = consumer.endpoint("e", "att", None);
    assert_eq!(vm.status(&format!("http://{address}/"), &vm.id_token(&journey.url)), 200);
    println!("{}", journey.cloud.name);
    std::io::stdout().flush().expect("somebody reads");
    loop {
        std::thread::park();
    }
}
