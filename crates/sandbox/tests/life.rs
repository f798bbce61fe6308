//! Birth, commands and death of sandboxes, on the real kernel. Needs root.

#![allow(clippy::unwrap_used)]

mod scene;

use std::{
    io::{Read, Write},
    os::fd::AsFd,
    time::Duration,
};

use model::planned::host::SandboxEvent;
use scene::{Scene, exec, request, sh, wait_until};

#[test]
fn a_vm_starts_and_runs_commands_and_stops() {
    let scene = Scene::new();
    let vm = scene.start("till", &scene.vm(0));
    assert_eq!(scene.event(), SandboxEvent::Started { pid: vm.pid() });
    let said = sh(&vm, "id -u; hostname; cat /proc/1/comm; echo oops >&2; exit 7");
    assert_eq!((said.out.as_str(), said.err.as_str()), ("0\ntill\ninit\n", "oops\n"));
    assert_eq!((said.status.code, said.status.signal), (Some(7), None));
    vm.stop(Duration::from_secs(10)).unwrap();
    let (code, signal, out_of_memory, _) = scene.exit();
    assert_eq!((code, signal, out_of_memory), (Some(0), None, false));
    wait_until("the last words are heard and gone", || scene.shim_files().is_empty());
}

#[test]
fn a_container_runs_its_program_as_pid_1_and_its_output_is_kept() {
    let scene = Scene::new();
    let env = [("CLOUD_RUN_JOB", "nightly"), ("CLOUD_RUN_TASK_INDEX", "3")];
    scene.start("job", &scene.container(0, &["/job"], &env));
    let (code, _, _, output) = scene.exit();
    assert_eq!(code, Some(0));
    assert_eq!(output, "Starting task #3, attempt #\nCompleted task #3 of nightly\n");
}

#[test]
fn input_ends_where_the_callers_ends() {
    let scene = Scene::new();
    let vm = scene.start("till", &scene.vm(0));
    assert_eq!(exec(&vm, &request(&["cat"]), "one\ntwo\n").out, "one\ntwo\n");
}

#[test]
fn a_signal_that_ends_a_command_is_told_as_a_signal() {
    let scene = Scene::new();
    let vm = scene.start("till", &scene.vm(0));
    let said = sh(&vm, "kill -TERM $$");
    assert_eq!((said.status.code, said.status.signal), (None, Some(15)));
    let null = std::fs::File::options().read(true).write(true).open("/dev/null").unwrap();
    let streams = || sandbox::Stdio::Streams { stdin: null.as_fd(), stdout: null.as_fd(), stderr: null.as_fd() };
    let sleeper = vm.exec(&request(&["sleep", "1000"]), streams()).unwrap();
    sleeper.signal(2).unwrap();
    assert_eq!(sleeper.wait().unwrap().signal, Some(2));
}

#[test]
fn a_command_whose_caller_has_gone_ends() {
    let scene = Scene::new();
    let vm = scene.start("till", &scene.vm(0));
    let null = std::fs::File::options().read(true).write(true).open("/dev/null").unwrap();
    let streams = sandbox::Stdio::Streams { stdin: null.as_fd(), stdout: null.as_fd(), stderr: null.as_fd() };
    let sleeper = vm.exec(&request(&["sleep", "1000"]), streams).unwrap();
    let pid = sleeper.pid();
    drop(sleeper);
    wait_until("it is gone", || !std::path::Path::new(&format!("/proc/{pid}")).exists());
}

#[test]
fn what_does_not_exist_is_not_executed() {
    let scene = Scene::new();
    let vm = scene.start("till", &scene.vm(0));
    let null = std::fs::File::options().read(true).write(true).open("/dev/null").unwrap();
    let streams = || sandbox::Stdio::Streams { stdin: null.as_fd(), stdout: null.as_fd(), stderr: null.as_fd() };
    let refused = vm.exec(&request(&["/no/such"]), streams()).err().unwrap();
    assert!(refused.to_string().contains("/no/such"), "{refused}");
    let refused =
        vm.exec(&sandbox::ExecRequest { user: "ghost".into(), ..request(&["true"]) }, streams()).err().unwrap();
    assert!(refused.to_string().contains("ghost"), "{refused}");
}

#[test]
fn a_terminal_has_a_size_and_turns_ctrl_c_into_a_signal() {
    let scene = Scene::new();
    let vm = scene.start("till", &scene.vm(0));
    let request = sandbox::ExecRequest {
        tty: true,
        ..request(&["/bin/sh", "-c", "trap 'echo caught; exit 3' INT; tty; while :; do sleep 0.05; done"])
    };
    let exec = vm.exec(&request, sandbox::Stdio::Terminal).unwrap();
    let terminal = exec.terminal().unwrap().try_clone_to_owned().unwrap();
    rustix::termios::tcsetwinsize(
        &terminal,
        rustix::termios::Winsize { ws_row: 33, ws_col: 77, ws_xpixel: 0, ws_ypixel: 0 },
    )
    .unwrap();
    let mut terminal = std::fs::File::from(terminal);
    let mut text = String::new();
    let mut buffer = [0; 256];
    while !text.contains("/dev/pts/") {
        let n = terminal.read(&mut buffer).unwrap();
        text += std::str::from_utf8(&buffer[..n]).unwrap();
    }
    terminal.write_all(b"\x03").unwrap();
    assert_eq!(exec.wait().unwrap().code, Some(3));
}

#[test]
fn a_stop_waits_for_the_grace_and_then_kills() {
    let scene = Scene::new();
    let mut plan = scene.vm(0);
    plan.process = model::planned::host::Process::Run {
        argv: ["/bin/sh", "-c", "trap 'echo asked' TERM; echo ready; while :; do sleep 0.01; done"]
            .map(str::to_owned)
            .into(),
        env: vec![],
        cwd: "/".into(),
        user: String::new(),
    };
    let stubborn = scene.start("stubborn", &plan);
    wait_until("its trap is set", || std::fs::read_to_string(stubborn.output()).is_ok_and(|t| t.contains("ready")));
    stubborn.stop(Duration::from_millis(300)).unwrap();
    let (_, signal, out_of_memory, output) = scene.exit();
    assert_eq!((signal, out_of_memory), (Some(9), false));
    assert_eq!(output, "ready\nasked\n");
}

#[test]
fn a_plan_that_cannot_be_launched_says_why_and_leaves_nothing() {
    let scene = Scene::new();
    let mut plan = scene.container(0, &["/no/such"], &[]);
    let refused = |plan: &model::planned::host::SandboxPlan| {
        let parked = scene.launcher().park(plan.uid_base).unwrap();
        parked.launch(&model::id::WorkloadId("bad".into()), plan).unwrap_err().to_string()
    };
    let why = refused(&plan);
    assert!(why.contains("/no/such"), "{why}");
    plan.rootfs = model::planned::host::Rootfs::Layers(vec![format!("sha256:{}", "0".repeat(64))]);
    let why = refused(&plan);
    assert!(why.contains("layers/0000"), "{why}");
    plan.rootfs = model::planned::host::Rootfs::Layers(vec!["sha256:../../etc".into()]);
    assert!(refused(&plan).contains("no digest"));
    wait_until("all of it is gone", || scene.shim_files().is_empty() && scene.cgroups().is_empty());
}

#[test]
fn a_parked_sandbox_ends_with_its_owner() {
    let scene = Scene::new();
    let parked = scene.launcher().park(scene.uids(0)).unwrap();
    let pid = parked.pid();
    drop(parked);
    wait_until("it is gone", || !std::path::Path::new(&format!("/proc/{pid}")).exists());
}

#[test]
fn a_vm_reaps_orphans() {
    let scene = Scene::new();
    let vm = scene.start("till", &scene.vm(0));
    sh(&vm, "(sleep 0.01 &) ; exit 0");
    wait_until("init has reaped it", || vm.status().unwrap().pids == 1);
}
