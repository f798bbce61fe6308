//! Measures what SPECIFICATION.md promises, beside a peer in the same run where there is one.

use std::process::{Command, ExitCode};

use crate::root;

/// Name, package, example, and what it prints.
const BENCHES: &[(&str, &str, &str)] = &[];

pub fn run(names: &[String]) -> ExitCode {
    let mut ok = true;
    for (name, package, example) in BENCHES {
        if names.is_empty() || names.iter().any(|n| n == name) {
            println!("== {name}");
            let mut command = Command::new(env!("CARGO"));
            command.args(["run", "--release", "--quiet", "--package", package, "--example", example]);
            ok &= command.current_dir(root()).status().is_ok_and(|s| s.success());
        }
    }
    if ok { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
