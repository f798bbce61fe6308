//! The roles of this crate as a program of their own, so that its tests and benches can start them by exec.

use std::{env, error::Error, ffi::OsString, process::ExitCode, sync::mpsc};

use model::{id::WorkloadId, planned::host::SandboxPlan};
use sandbox::{Config, Launcher};

fn main() -> ExitCode {
    let arguments: Vec<OsString> = env::args_os().collect();
    let code = match arguments.get(1).and_then(|a| a.to_str()) {
        Some("shim") => sandbox::shim_main(),
        Some("image") => sandbox::image::image_main(),
        Some("start") => match start(&arguments[2..]) {
            Ok(()) => 0,
            Err(e) => {
                eprintln!("sandbox: {e}");
                1
            }
        },
        Some(_) | None => {
            eprintln!("usage: sandbox shim | sandbox image | sandbox start PLAN RUN_DIR STATE_DIR CLOUD");
            64
        }
    };
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}

/// Starts the sandbox `till` from a plan in JSON and then only waits for events.
fn start(arguments: &[OsString]) -> Result<(), Box<dyn Error>> {
    let [plan, run_dir, state_dir, cloud] = arguments else { return Err("four arguments are needed".into()) };
    let plan: SandboxPlan = serde_json::from_str(&plan.to_string_lossy())?;
    let config = Config {
        cloud: cloud.to_string_lossy().into_owned(),
        run_dir: run_dir.into(),
        state_dir: state_dir.into(),
        shim_argv: vec![env::current_exe()?.into(), "shim".into()],
        service: None,
    };
    let (sender, events) = mpsc::channel();
    let launcher = Launcher::new(config, sender)?;
    let sandbox = launcher.park(plan.uid_base)?.launch(&WorkloadId("till".into()), &plan)?;
    for event in events {
        println!("{}: {:?}", sandbox.id(), event.event);
    }
    Ok(())
}
