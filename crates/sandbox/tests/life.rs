//! Birth, commands and death of sandboxes, on the real kernel. Needs root.

mod scene;

use std::time::Duration;

use model::planned::host::SandboxEvent;
use scene::{Scene, exec, request, sh};

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
    scene::wait_until("the last words are heard and gone", || scene.shim_files().is_empty());
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
