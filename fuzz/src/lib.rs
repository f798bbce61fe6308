//! Everything that reads a stranger's bytes, one function for each door: it is given any bytes and panics when what must
//! hold does not.
//!
//! `cargo xtask fuzz` lets libFuzzer look for such bytes (`fuzz/libfuzzer`, a workspace of its own that the ordinary
//! build does not see). What it found worth keeping lies in `fuzz/corpus`, a directory for each target, and is read
//! again whenever the tests run. Start with [`TARGETS`].

mod calls;
mod entries;
mod metadata;
mod packets;
mod tunnels;

/// A function that survives any bytes.
pub type Target = fn(&[u8]);

/// Every target by its name, which is also that of its corpus.
pub const TARGETS: &[(&str, Target)] = &[
    ("call", calls::call),
    ("batch", calls::batch),
    ("body", calls::body),
    ("list", calls::list),
    ("token", calls::token),
    ("log-filter", entries::filter),
    ("log-write", entries::write),
    ("log-line", entries::line),
    ("tunnel", tunnels::tunnel),
    ("tunnel-cuts", tunnels::cuts),
    ("handshake", tunnels::handshake),
    ("ssh-keys", metadata::keys),
    ("ssh-accounts", metadata::accounts),
    ("sftp", metadata::sftp),
    ("metadata", metadata::metadata),
    ("dns", packets::dns),
    ("netlink", packets::netlink),
    ("ipc", packets::ipc),
];

/// The target of this name. Decided at compile time by whoever wants to link one target and nothing of the others.
pub const fn target(name: &str) -> Option<Target> {
    let mut i = 0;
    while i < TARGETS.len() {
        if is(TARGETS[i].0.as_bytes(), name.as_bytes()) {
            return Some(TARGETS[i].1);
        }
        i += 1;
    }
    None
}

const fn is(one: &[u8], other: &[u8]) -> bool {
    let mut i = 0;
    while i < one.len() && i < other.len() && one[i] == other[i] {
        i += 1;
    }
    i == one.len() && i == other.len()
}
