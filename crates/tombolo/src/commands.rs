//! The operator's commands, apart from `up` and `demo`.

use std::{
    ffi::OsString,
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};

use crate::{
    Outcome,
    cloud::{CloudName, Dirs},
    operator::{Answer, Ask, ask_running},
    roles, terminal, up,
};

#[derive(clap::Args, Clone, Debug)]
pub struct CloudArgs {
    /// Name of the cloud
    #[arg(long, default_value = "main")]
    pub cloud: CloudName,
}

#[derive(clap::Args, Clone, Debug)]
pub struct SshArgs {
    #[command(flatten)]
    pub cloud: CloudArgs,
    /// Project of the VM, when its name alone is not enough
    #[arg(long)]
    pub project: Option<String>,
    /// Name of the VM
    pub vm: String,
    /// The command; a login shell without one
    #[arg(last = true)]
    pub command: Vec<OsString>,
}

#[derive(clap::Args, Clone, Debug)]
pub struct LoadArgs {
    #[command(flatten)]
    pub cloud: CloudArgs,
    /// An OCI layout directory, or an OCI or Docker archive
    pub path: PathBuf,
    /// The name under which services use it, such as example.com/team/app:v1
    pub name: String,
}

#[derive(clap::Args, Clone, Debug)]
pub struct ConsentArgs {
    #[command(flatten)]
    pub cloud: CloudArgs,
    /// E-mail address of the user
    pub user: String,
    /// The address that `gcloud auth login --no-launch-browser` shows, in single quotes
    pub url: String,
}

/// How long `down` waits for the supervisor to finish.
const DOWN_MAX: Duration = Duration::from_secs(60);

pub fn down(args: &CloudArgs) -> Outcome {
    let dirs = Dirs::of(&args.cloud);
    let pid = std::fs::read_to_string(dirs.lock()).ok().and_then(|text| text.trim().parse().ok());
    let pid = pid.and_then(rustix::process::Pid::from_raw).filter(|pid| is_supervisor(*pid));
    if let Some(pid) = pid {
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        let deadline = Instant::now() + DOWN_MAX;
        while rustix::process::test_kill_process(pid).is_ok() {
            if Instant::now() > deadline {
                return Err(format!("the supervisor (process {}) does not end", pid.as_raw_nonzero()).into());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    // Also after a supervisor that was killed and left everything standing.
    if dirs.run.exists() {
        let keeps_nothing = dirs.ephemeral().exists();
        up::take_down(&args.cloud, &dirs, keeps_nothing)?;
    }
    let cloud = args.cloud.as_str();
    match dirs.state.exists() {
        true => println!("cloud {cloud:?} is down; its state is in {}", dirs.state.display()),
        false => println!("cloud {cloud:?} is down and keeps no state"),
    }
    Ok(ExitCode::SUCCESS)
}

/// A pid may have been given to somebody else since it was written down.
fn is_supervisor(pid: rustix::process::Pid) -> bool {
    let cmdline = std::fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero())).unwrap_or_default();
    cmdline.split(|b| *b == 0).any(|word| word == b"up" || word == b"demo")
}

pub fn status(args: &CloudArgs) -> Outcome {
    let dirs = Dirs::of(&args.cloud);
    let Answer::Status(status) = ask_running(&dirs, &Ask::Status)? else { return Err("unexpected answer".into()) };
    let mut out = io::stdout().lock();
    writeln!(out, "cloud {:?} is up, revision {}", args.cloud.as_str(), status.revision)?;
    if let Some(door) = status.door {
        writeln!(out, "door http://{door}")?;
    }
    for (what, count) in &status.counts {
        writeln!(out, "{count:>6}  {what}")?;
    }
    for line in status
        .vms
        .iter()
        .map(|v| format!("vm       {v}"))
        .chain(status.services.iter().map(|s| format!("service  {s}")))
    {
        writeln!(out, "{line}")?;
    }
    Ok(ExitCode::SUCCESS)
}

pub fn verify(args: &CloudArgs) -> Outcome {
    let dirs = Dirs::of(&args.cloud);
    let cloud = args.cloud.as_str();
    let found = host::agent::verify(&dirs.run)
        .map_err(|e| format!("the host process of cloud {cloud:?} does not answer: {e}"))?;
    if let Some(fault) = found.fault {
        return Err(format!("the kernel could not be read: {fault}").into());
    }
    let mut out = io::stdout().lock();
    for difference in &found.differences {
        writeln!(out, "{:<24} {}", difference.namespace, difference.what)?;
    }
    let told = if found.complete { "" } else { "; control has not sent all plans yet" };
    let count = found.differences.len();
    writeln!(out, "{count} differences between kernel and plans in {} namespaces{told}", found.namespaces)?;
    Ok(if count == 0 && found.complete { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

pub fn doctor() -> Outcome {
    if !rustix::process::geteuid().is_root() {
        return Err("the doctor tries what a cloud would do, which takes root: sudo tombolo doctor".into());
    }
    roles::doctor()
}

pub fn env(args: &CloudArgs) -> Outcome {
    let dirs = Dirs::of(&args.cloud);
    let Answer::Ready { door } = ask_running(&dirs, &Ask::Ready)? else { return Err("unexpected answer".into()) };
    let mut out = io::stdout().lock();
    for (name, value) in environment(&dirs, door) {
        writeln!(out, "export {name}={}", quoted(&value))?;
    }
    writeln!(out, "unset NO_PROXY no_proxy")?;
    Ok(ExitCode::SUCCESS)
}

/// Single quotes, for a POSIX shell.
fn quoted(value: &str) -> String {
    format!("'{}'", value.replace('\'', r"'\''"))
}

/// Everything that must be set so that no client of ours reaches another cloud. One CA file under every name that
/// something reads; the proxy under every name that something reads.
pub fn environment(dirs: &Dirs, door: std::net::SocketAddr) -> Vec<(&'static str, String)> {
    let ca = dirs.ca().display().to_string();
    let proxy = format!("http://{door}");
    let mut env = vec![
        ("CLOUDSDK_PROXY_TYPE", "http".to_owned()),
        ("CLOUDSDK_PROXY_ADDRESS", door.ip().to_string()),
        ("CLOUDSDK_PROXY_PORT", door.port().to_string()),
        ("HTTPS_PROXY", proxy.clone()),
        ("https_proxy", proxy),
        ("CLOUDSDK_CONFIG", dirs.run.join("gcloud").display().to_string()),
        ("CLOUDSDK_CORE_CHECK_GCE_METADATA", "false".to_owned()),
        ("NO_GCE_CHECK", "true".to_owned()),
        ("CLOUDSDK_CORE_DISABLE_USAGE_REPORTING", "true".to_owned()),
        ("CLOUDSDK_COMPONENT_MANAGER_DISABLE_UPDATE_CHECK", "true".to_owned()),
        ("CLOUDSDK_AUTH_ACCESS_TOKEN_FILE", dirs.token().display().to_string()),
        // Whose token that is: gcloud asks for a person's own things by this name.
        ("CLOUDSDK_CORE_ACCOUNT", control::projects::ADMIN_DEFAULT.to_owned()),
        ("CLOUDSDK_RUN_REGION", "asia-northeast1".to_owned()),
        ("CLOUDSDK_COMPUTE_REGION", "asia-northeast1".to_owned()),
        ("CLOUDSDK_COMPUTE_ZONE", "asia-northeast1-b".to_owned()),
    ];
    for name in [
        "CLOUDSDK_CORE_CUSTOM_CA_CERTS_FILE",
        "REQUESTS_CA_BUNDLE",
        "CURL_CA_BUNDLE",
        "SSL_CERT_FILE",
        "NODE_EXTRA_CA_CERTS",
        "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH",
    ] {
        env.push((name, ca.clone()));
    }
    env
}

pub fn ssh(args: &SshArgs) -> Outcome {
    let dirs = Dirs::of(&args.cloud.cloud);
    let find = Ask::FindVm { project: args.project.clone(), name: args.vm.clone() };
    let Answer::Vm { workload, .. } = ask_running(&dirs, &find)? else { return Err("unexpected answer".into()) };
    Ok(ExitCode::from(terminal::exec(&dirs.run, &workload, &args.command)?))
}

pub fn consent(args: &ConsentArgs) -> Outcome {
    let dirs = Dirs::of(&args.cloud.cloud);
    let ask = Ask::Consent { email: args.user.clone(), url: args.url.clone() };
    let Answer::Code { code, location } = ask_running(&dirs, &ask)? else { return Err("unexpected answer".into()) };
    println!("{code}");
    // A client that waits for a browser listens on this machine.
    if location.starts_with("http://localhost") || location.starts_with("http://127.0.0.1") {
        eprintln!("or open {location}");
    }
    Ok(ExitCode::SUCCESS)
}

pub fn load(args: &LoadArgs) -> Outcome {
    let dirs = Dirs::of(&args.cloud.cloud);
    let image = roles::unpack(&dirs, &args.path, &args.name)?;
    let digest = image.digest.clone();
    match ask_running(&dirs, &Ask::AddImage(Box::new(image)))? {
        Answer::Done => println!("{} is {digest}", args.name),
        other => return Err(format!("unexpected answer {other:?}").into()),
    }
    Ok(ExitCode::SUCCESS)
}
