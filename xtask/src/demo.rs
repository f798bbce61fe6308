//! `cargo demo`: builds the program as the tests build it, and lets it show itself.

use std::{
    os::unix::process::CommandExt,
    process::{Command, ExitCode},
};

use crate::root;

pub fn run(arguments: &[String]) -> ExitCode {
    println!("building tombolo (a first build takes some minutes)");
    let mut cargo = Command::new(env!("CARGO"));
    // One of the tests with it: cargo chooses the libraries' features by what is built, and with a test among it the
    // choice is that of all tests. So whoever runs the demo and then the tests builds each library once.
    cargo.args(["build", "--workspace", "--bin", "tombolo", "--test", "cli"]).current_dir(root());
    if !cargo.status().is_ok_and(|status| status.success()) {
        return ExitCode::FAILURE;
    }
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), Into::into);
    let error = Command::new(target.join("debug/tombolo")).arg("demo").args(arguments).exec();
    eprintln!("the program that was just built cannot be started: {error}");
    ExitCode::FAILURE
}
