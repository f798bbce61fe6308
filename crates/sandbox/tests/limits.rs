//! Limits of memory, processes and CPU, as the kernel keeps them. Needs root.

#![allow(clippy::unwrap_used)]

mod scene;

use model::planned::host::{Process, SandboxEvent};
use scene::{Scene, exec, request, sh};

fn limited(scene: &Scene, argv: &[&str], memory_mb: u64) -> model::planned::host::SandboxPlan {
    let mut plan = scene.vm(0);
    plan.limits.memory_bytes = memory_mb << 20;
    plan.process = Process::Run {
        argv: argv.iter().map(|a| (*a).to_owned()).collect(),
        env: vec![],
        cwd: "/".into(),
        user: "root".into(),
    };
    plan
}

#[test]
fn a_container_over_its_memory_is_killed_and_the_reason_is_told() {
    let scene = Scene::new();
    scene.start("fat", &limited(&scene, &["perl", "-e", "my @all; push @all, 'x' x (1 << 20) . $_ for 1..512;"], 64));
    let (code, signal, out_of_memory, _) = scene.exit();
    assert_eq!((code, signal, out_of_memory), (None, Some(9), true));
}

#[test]
fn a_container_dies_with_the_child_that_used_up_its_memory() {
    let scene = Scene::new();
    let script = "perl -e 'my @all; push @all, \"x\" x (1 << 20) . $_ for 1..512;'; sleep 1000";
    scene.start("fat", &limited(&scene, &["/bin/sh", "-c", script], 64));
    let (_, signal, out_of_memory, _) = scene.exit();
    assert_eq!((signal, out_of_memory), (Some(9), true));
}

#[test]
fn files_written_to_the_root_count_as_memory() {
    let scene = Scene::new();
    let vm = scene.start("till", &scene.vm(0));
    let before = vm.status().unwrap().memory_bytes;
    assert_eq!(sh(&vm, "head -c 33554432 /dev/zero > /root/big").status.code, Some(0));
    let after = vm.status().unwrap().memory_bytes;
    // The kernel counts in batches.
    assert!(after - before >= 30 << 20, "{before} -> {after}");
    sh(&vm, "rm /root/big");
    assert!(vm.status().unwrap().memory_bytes < after - (24 << 20));
}

#[test]
fn a_file_larger_than_the_memory_ends_a_container() {
    let scene = Scene::new();
    scene.start(
        "writer",
        &limited(&scene, &["/bin/sh", "-c", "head -c 268435456 /dev/zero > /root/big; sleep 1000"], 64),
    );
    let (_, signal, out_of_memory, _) = scene.exit();
    assert_eq!((signal, out_of_memory), (Some(9), true));
}

#[test]
fn in_a_vm_only_the_process_over_the_memory_dies() {
    let scene = Scene::new();
    let vm = scene.start("till", &scene.vm(0));
    let said = exec(&vm, &request(&["perl", "-e", "my @all; push @all, 'x' x (1 << 20) . $_ for 1..512;"]), "");
    assert_eq!(said.status.signal, Some(9));
    assert_eq!(sh(&vm, "echo alive").out, "alive\n");
}

#[test]
fn a_fork_bomb_stops_at_the_limit_of_processes() {
    let scene = Scene::new();
    let mut plan = scene.vm(0);
    plan.limits.pids = 24;
    let vm = scene.start("till", &plan);
    let bomb = "my $n = 0; my @kids; while (defined(my $p = fork)) { if (!$p) { sleep 1000 } push @kids, $p; last if ++$n > 200 }
        kill 9, @kids; print $n";
    let said = exec(&vm, &request(&["perl", "-e", bomb]), "");
    let forked: u32 = said.out.parse().unwrap();
    assert!((10..24).contains(&forked), "{forked}");
    assert!(vm.status().unwrap().pids <= 24);
    vm.stop(std::time::Duration::ZERO).unwrap();
    scene.exit();
}

#[test]
fn what_the_limits_say_is_what_the_kernel_has() {
    let scene = Scene::new();
    let mut plan = scene.vm(0);
    plan.limits.cpu_millis = 250;
    let vm = scene.start("till", &plan);
    assert!(matches!(scene.event(), SandboxEvent::Started { .. }));
    let uid = scene.uids(0).to_string();
    let read = |name: &str| {
        let files = scene.cgroups().into_iter().map(|g| g.join(&uid).join(name));
        files.filter_map(|f| std::fs::read_to_string(f).ok()).next().map(|t| t.trim().to_owned())
    };
    let quota =
        read("cpu.max").or_else(|| Some(format!("{} {}", read("cpu.cfs_quota_us")?, read("cpu.cfs_period_us")?)));
    assert_eq!(quota.as_deref(), Some("25000 100000"));
    assert_eq!(read("memory.max").or_else(|| read("memory.limit_in_bytes")).as_deref(), Some("134217728"));
    assert_eq!(read("pids.max").as_deref(), Some("64"));
    assert_eq!(vm.status().unwrap().limits, plan.limits);
    let files = sh(&vm, "ulimit -n").out.trim().parse::<u64>().unwrap();
    assert!(files >= 20_000, "{files}");
}
