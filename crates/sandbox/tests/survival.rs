//! Who outlives whom. Needs root.

#![allow(clippy::unwrap_used)]

mod scene;

use std::{fs, sync::mpsc, time::Duration};

use model::planned::host::SandboxEvent;
use rustix::process::{Pid, Signal, kill_process};
use sandbox::Launcher;
use scene::{PATIENCE, Scene, sh, wait_until};

/// The shim of a sandbox: the parent of its pid 1.
fn shim_of(pid: i32) -> Pid {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let parent = status.lines().find_map(|l| l.strip_prefix("PPid:")).unwrap();
    Pid::from_raw(parent.trim().parse().unwrap()).unwrap()
}

fn lives(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

#[test]
fn a_sandbox_outlives_its_launcher_and_is_adopted_by_the_next() {
    let mut scene = Scene::new();
    let vm = scene.start("till", &scene.vm(0));
    drop(scene.launcher.take());
    let (sender, events) = mpsc::channel();
    scene.launcher = Some(Launcher::new(scene.config.clone(), sender).unwrap());
    scene.events = events;
    let adopted = scene.launcher().adopt().unwrap();
    assert_eq!(
        adopted.iter().map(|r| (r.id().0.as_str(), r.incarnation(), r.pid())).collect::<Vec<_>>(),
        [("till", 1, vm.pid())]
    );
    assert_eq!(scene.event(), SandboxEvent::Started { pid: vm.pid() });
    scene.launcher().sweep().unwrap();
    assert_eq!(sh(&adopted[0], "echo here").out, "here\n");
    adopted[0].stop(Duration::from_secs(5)).unwrap();
    assert_eq!(scene.exit().0, Some(0));
}

#[test]
fn a_sandbox_outlives_the_process_that_launched_it_being_killed() {
    let scene = Scene::new();
    // The launcher in a process of its own, killed without warning as soon as the sandbox runs.
    let mut launcher = std::process::Command::new(env!("CARGO_BIN_EXE_sandbox"))
        .arg("start")
        .arg(serde_json::to_string(&scene.vm(0)).unwrap())
        .args([scene.config.run_dir.as_os_str(), scene.config.state_dir.as_os_str()])
        .arg(&scene.config.cloud)
        .spawn()
        .unwrap();
    let socket = scene.config.run_dir.join("shim/till.sock");
    wait_until("the sandbox runs", || socket.exists() && !scene.launcher().adopt().unwrap().is_empty());
    launcher.kill().unwrap();
    launcher.wait().unwrap();
    let adopted = scene.launcher().adopt().unwrap();
    assert_eq!(sh(&adopted[0], "echo here").out, "here\n");
}

#[test]
fn an_end_that_nobody_heard_is_told_to_the_next_launcher() {
    let mut scene = Scene::new();
    let vm = scene.start("till", &scene.vm(0));
    drop(scene.launcher.take());
    vm.stop(Duration::ZERO).unwrap();
    let end = scene.config.run_dir.join("shim/till.end");
    wait_until("it has ended", || end.exists() && !scene.config.run_dir.join("shim/till.sock").exists());
    let (sender, events) = mpsc::channel();
    scene.launcher = Some(Launcher::new(scene.config.clone(), sender).unwrap());
    assert_eq!(scene.launcher().adopt().unwrap().len(), 0);
    let event = events.recv_timeout(PATIENCE).unwrap();
    assert_eq!(event.workload.0, "till");
    assert!(matches!(event.event, SandboxEvent::Exited { signal: Some(9), .. }), "{event:?}");
    wait_until("it is told once only", || !end.exists());
}

#[test]
fn a_killed_shim_takes_the_sandbox_with_it_and_a_sweep_removes_the_rest() {
    let scene = Scene::new();
    let vm = scene.start("till", &scene.vm(0));
    let null = fs::File::options().read(true).write(true).open("/dev/null").unwrap();
    let fd = std::os::fd::AsFd::as_fd(&null);
    let streams = sandbox::Stdio::Streams { stdin: fd, stdout: fd, stderr: fd };
    let sleeper = vm.exec(&scene::request(&["sleep", "1000"]), streams).unwrap();
    kill_process(shim_of(vm.pid()), Signal::KILL).unwrap();
    wait_until("pid 1 and the command are gone", || !lives(vm.pid()) && !lives(sleeper.pid()));
    let (code, signal, ..) = scene.exit();
    assert_eq!((code, signal), (None, Some(9)));
    assert!(!scene.cgroups().is_empty(), "the dead shim could not remove its groups");
    scene.launcher().sweep().unwrap();
    assert_eq!(scene.cgroups(), Vec::<std::path::PathBuf>::new());
    wait_until("the files are gone", || scene.shim_files().is_empty());
}

#[test]
fn a_sweep_leaves_the_living_alone() {
    let scene = Scene::new();
    let parked = scene.launcher().park(scene.uids(1)).unwrap();
    let vm = scene.start("till", &scene.vm(0));
    scene.launcher().sweep().unwrap();
    assert_eq!(sh(&vm, "echo here").out, "here\n");
    assert!(lives(parked.pid()));
}
