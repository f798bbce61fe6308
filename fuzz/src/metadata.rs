//! What a VM's server and its guest agent take from metadata and from clients, and what the metadata server is asked.

use std::{collections::BTreeMap, net::Ipv4Addr, sync::OnceLock};

use guest::metadata::{Step, consider};
use http::Request;
use model::{
    planned::guest::{Account, Identity, Machine},
    time::Timestamp,
};
use russh::keys::PublicKey;
use serde_json::json;
use sshd::{
    accounts, keys,
    sftp::packet::{Packet, Request as Asked},
};

/// The key of every line that would count.
const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAILM+rvN+ot98qgEN796jTiQfZfG1KaT0PtFDJ/XFSqti";

/// Lines of `ssh-keys`: a key logs in only as a user whose name stands before it on one of them.
pub(crate) fn keys(input: &[u8]) {
    let Ok(lines) = std::str::from_utf8(input) else { return };
    let now = Timestamp(1_800_000_000_000_000);
    let attributes = keys::Attributes { instance: json!({"ssh-keys": lines}), project: json!({"ssh-keys": lines}) };
    let admitted = attributes.admit("ada", &PublicKey::from_openssh(KEY).expect("a key"), now).expect("no OS Login");
    let (_, data) = KEY.split_once(' ').expect("two words");
    assert!(!admitted || lines.contains("ada:") && lines.contains(data), "a key was let in that is not listed");
}

/// A name that somebody logs in under: what is taken makes one row in each table, and finds it again.
pub(crate) fn accounts(input: &[u8]) {
    let Ok(name) = std::str::from_utf8(input) else { return };
    if accounts::is_name(name) {
        assert!(!name.contains([':', '/', '\n', '\0', ' ']) && name != "." && name != "..", "{name:?}");
    }
}

/// A packet of a client that transfers files: what is read of it is in it, and with its last byte gone it is less.
pub(crate) fn sftp(input: &[u8]) {
    let len = |packet: &Packet<'_>| match packet {
        Packet::Request(_, Ok(Asked::Write { data, .. })) => data.len(),
        Packet::Request(_, Ok(Asked::Rename { from, to, .. } | Asked::HardLink { from, to })) => {
            from.as_os_str().len() + to.as_os_str().len()
        }
        Packet::Request(_, Ok(Asked::Stat { path, .. } | Asked::Open { path, .. })) => path.as_os_str().len(),
        Packet::Init | Packet::Request(..) => 0,
    };
    let packet = Packet::read(input);
    assert!(len(&packet) <= input.len());
    let cut = Packet::read(&input[..input.len().saturating_sub(1)]);
    assert!(len(&cut) <= len(&packet), "{cut:?} is more than {packet:?}");
}

/// A request to 169.254.169.254: `METHOD PATH`, then lines `name: value`.
pub(crate) fn metadata(input: &[u8]) {
    static IDENTITY: OnceLock<Identity> = OnceLock::new();
    let identity = IDENTITY.get_or_init(identity);
    let Ok(text) = std::str::from_utf8(input) else { return };
    let mut lines = text.lines();
    let Some((method, path)) = lines.next().and_then(|line| line.split_once(' ')) else { return };
    let mut request = Request::builder().method(method).uri(path);
    let mut flavored = false;
    for (name, value) in lines.filter_map(|line| line.split_once(':')) {
        flavored |=
            name.eq_ignore_ascii_case("metadata-flavor") || name.eq_ignore_ascii_case("x-google-metadata-request");
        request = request.header(name, value.trim());
    }
    let Ok(request) = request.body(()) else { return };
    let (head, ()) = request.into_parts();
    match consider(&head, Some(identity)) {
        Step::Mint(_) => assert!(flavored, "a token for who did not say the word"),
        Step::Hang(hang) => drop(hang.look(identity)),
        Step::Answer(_) | Step::Login(_) => {}
    }
    consider(&head, None);
}

fn identity() -> Identity {
    let text = str::to_owned;
    Identity {
        project_id: text("proj-one"),
        project_number: 1,
        project_attributes: BTreeMap::from([(text("ssh-keys"), text("ada:ssh-rsa AAAA"))]),
        region: text("asia-northeast1"),
        zone: text("asia-northeast1-b"),
        account: Some(Account {
            email: text("a@proj-one.iam.gserviceaccount.com"),
            scopes: vec![text("cloud-platform")],
        }),
        machine: Machine::Vm {
            id: 7,
            name: text("vm"),
            hostname: text("vm.c.proj-one.internal"),
            machine_type: text("e2-micro"),
            tags: vec![text("web")],
            attributes: BTreeMap::from([(text("a b/c"), text("d"))]),
            address: Ipv4Addr::new(10, 0, 0, 2),
            gateway: Ipv4Addr::new(10, 0, 0, 1),
            netmask: Ipv4Addr::new(255, 255, 255, 0),
            mac: text("42:01:0a:00:00:02"),
            mtu: 1460,
            network: text("net"),
            image: text("debian"),
        },
    }
}
