//! What the command line says before any cloud exists.

#![allow(clippy::unwrap_used)]

use std::process::{Command, Output};

fn tombolo(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_tombolo")).args(args).output().unwrap()
}

fn err(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_cloud_that_is_not_up_is_named_with_the_command_that_starts_it() {
    for command in [&["status"][..], &["env"], &["ssh", "vm", "--", "true"]] {
        let (name, rest) = command.split_first().unwrap();
        let args = [&[*name, "--cloud", "nobody"], rest].concat();
        let output = tombolo(&args);
        assert_eq!(output.status.code(), Some(1), "{command:?}");
        assert!(err(&output).contains("tombolo up --cloud nobody"), "{command:?}: {}", err(&output));
    }
}

#[test]
fn a_cloud_name_that_would_not_fit_into_the_kernels_names_is_refused() {
    for name in ["", "toolonganame", "Main", "a-b", "../x"] {
        let output = tombolo(&["status", "--cloud", name]);
        assert_eq!(output.status.code(), Some(2), "{name:?}");
        assert!(err(&output).contains("lower-case letters or digits"), "{name:?}: {}", err(&output));
    }
}

#[test]
fn the_commands_of_processes_are_not_shown_to_people() {
    let output = tombolo(&["--help"]);
    let help = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(help.contains("demo") && help.contains("doctor"), "{help}");
    for hidden in ["role", "shim", "image "] {
        assert!(!help.contains(&format!("  {hidden}")), "{hidden} in {help}");
    }
}
