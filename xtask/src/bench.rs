//! Measures what SPECIFICATION.md promises, beside a peer in the same run where there is one.
//!
//! The measuring is done by the `bench` crate; this installs the peers, builds for release and starts it.

use std::process::{Command, ExitCode};

use crate::root;

/// Packages of Debian and Ubuntu, each with a program of the same name.
const PEERS: [&str; 3] = ["haproxy", "crun", "wrk"];

pub fn run(names: &[String]) -> ExitCode {
    if !crate::test::is_root() {
        eprintln!("The benches make namespaces, cgroups and whole clouds: run as root (sudo -E cargo xtask bench).");
        return ExitCode::FAILURE;
    }
    if !install_peers() {
        return ExitCode::FAILURE;
    }
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["build", "--release", "--package", "tombolo", "--package", "bench", "--bins"]).current_dir(root());
    if !cargo.status().is_ok_and(|s| s.success()) {
        return ExitCode::FAILURE;
    }
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["run", "--release", "--quiet", "--package", "bench", "--"]).args(names).current_dir(root());
    if cargo.status().is_ok_and(|s| s.success()) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn install_peers() -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let here = |program: &&str| std::env::split_paths(&path).any(|dir| dir.join(program).exists());
    let missing: Vec<&str> = PEERS.into_iter().filter(|p| !here(p)).collect();
    if missing.is_empty() {
        return true;
    }
    println!("apt-get install {}: ours is measured beside them", missing.join(" "));
    let mut apt = Command::new("apt-get");
    apt.args(["install", "--yes", "--quiet", "--no-install-recommends"]).args(&missing);
    let installed = apt.env("DEBIAN_FRONTEND", "noninteractive").status().is_ok_and(|s| s.success());
    if !installed {
        eprintln!("The peers could not be installed; with stale package lists, apt-get update helps.");
    }
    installed
}
