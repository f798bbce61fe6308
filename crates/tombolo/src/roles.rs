//! The roles: what each process is given, and which privileges it keeps.

mod control;
mod privilege;

use std::{
    ffi::OsString,
    fmt,
    net::SocketAddr,
    path::Path,
    process::ExitCode,
    str::FromStr,
    time::{Duration, Instant},
};

use ::control::world::ImageRecord;

use crate::{
    Outcome,
    cloud::{CloudName, Dirs},
    users::Users,
};

/// The processes of a cloud beside its shims.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Host,
    Proxy,
    Guest,
    Control,
}

impl Role {
    /// In the order in which they are started.
    pub const ALL: [Role; 4] = [Role::Host, Role::Control, Role::Proxy, Role::Guest];

    fn name(self) -> &'static str {
        match self {
            Role::Host => "host",
            Role::Proxy => "proxy",
            Role::Guest => "guest",
            Role::Control => "control",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Role {
    type Err = String;
    fn from_str(text: &str) -> Result<Role, String> {
        Role::ALL.into_iter().find(|r| r.name() == text).ok_or_else(|| format!("no role is called {text:?}"))
    }
}

#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    role: Role,
    #[arg(long)]
    cloud: CloudName,
    #[arg(long)]
    listen: SocketAddr,
    #[arg(long)]
    ephemeral: bool,
    #[arg(long)]
    idle_instance: u64,
    #[arg(long)]
    psc_idle: u32,
    #[arg(long)]
    psc_rest: u64,
    /// The process id of whoever starts it.
    #[arg(long)]
    supervisor: i32,
}

/// How long a role waits for what another one makes at its start.
const START_MAX: Duration = Duration::from_secs(20);

pub fn run(args: Args) -> Outcome {
    privilege::end_with(args.supervisor)?;
    sandbox::close_inherited()?;
    // Whatever the supervisor's caller had: sockets and files are for who is named as their owner and for nobody else.
    rustix::process::umask(rustix::fs::Mode::RWXG | rustix::fs::Mode::RWXO);
    // Their limits of connections add up to more than the thousand files that a process may open by default.
    privilege::raise_open_files()?;
    let dirs = Dirs::of(&args.cloud);
    let users = Users::of(&dirs)?;
    match args.role {
        Role::Host => host(&args, &dirs, users),
        Role::Control => control::run(&args, &dirs, users),
        Role::Proxy => proxy(&args, &dirs, users),
        Role::Guest => guest(&args, &dirs, users),
    }
}

fn host_config(cloud: &CloudName, dirs: &Dirs, users: Option<Users>) -> host::agent::Config {
    host::agent::Config {
        cloud: cloud.as_str().to_owned(),
        run_dir: dirs.run.clone(),
        state_dir: dirs.state.clone(),
        shim_argv: vec![OsString::from("/proc/self/exe"), OsString::from("shim")],
        service: Some(sandbox::Service {
            program: "/proc/self/exe".into(),
            argv: ["tombolo-sshd", "sshd"].map(str::to_owned).into(),
            seed: sshd::SEED.to_owned(),
        }),
        control_uid: users.and_then(|users| users.role(Role::Control)),
        proxy_uid: users.and_then(|users| users.role(Role::Proxy)),
    }
}

fn host(args: &Args, dirs: &Dirs, users: Users) -> Outcome {
    sandbox::builtin::install(&dirs.state)?;
    host::agent::serve(host_config(&args.cloud, dirs, Some(users)))?;
    Ok(ExitCode::SUCCESS)
}

fn proxy(args: &Args, dirs: &Dirs, users: Users) -> Outcome {
    let doors = proxy::Doors::bind(&dirs.run)?;
    for socket in ["proxy.sock", "proxy-outside.sock"] {
        privilege::give(&dirs.socket(socket), users.role(Role::Control))?;
    }
    let fabric = dirs.run.join("ns").join("fabric");
    wait_for(&fabric)?;
    privilege::enter_network(&fabric)?;
    privilege::drop_to(users.role(Role::Proxy), args.supervisor)?;
    proxy::main(doors)?;
    Ok(ExitCode::SUCCESS)
}

fn guest(args: &Args, dirs: &Dirs, users: Users) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let doors = {
        let _inside = runtime.enter();
        guest::Doors::bind(&dirs.run)?
    };
    privilege::give(&dirs.socket("guest.sock"), users.role(Role::Control))?;
    privilege::drop_to(users.role(Role::Guest), args.supervisor)?;
    runtime.block_on(guest::serve(doors));
    Ok(ExitCode::SUCCESS)
}

/// The host makes the fabric's namespace as its first act.
fn wait_for(pin: &Path) -> Outcome<()> {
    let deadline = Instant::now() + START_MAX;
    while !privilege::is_namespace(pin) {
        if Instant::now() > deadline {
            return Err(format!("the host role did not make {}", pin.display()).into());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

pub fn shim() -> Outcome {
    let code = sandbox::shim_main();
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)))
}

/// The SSH server of a VM; inside it.
pub fn sshd() -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    match runtime.block_on(sshd::serve())? {}
}

/// The file transfer of one SSH client, as its user.
pub fn sftp() -> Outcome {
    sshd::sftp::run()?;
    Ok(ExitCode::SUCCESS)
}

/// Ends every sandbox and removes every namespace, cgroup and mount of a cloud whose roles have ended.
pub fn take_down(cloud: &CloudName, dirs: &Dirs) -> Outcome<()> {
    host::agent::take_down(&host_config(cloud, dirs, None))?;
    Ok(())
}

/// The process that reads a stranger's archive, without the privilege to do harm.
pub fn image() -> Outcome {
    let code = sandbox::image::image_main();
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)))
}

/// Unpacks an OCI layout or archive into the cloud's layers.
pub fn unpack(dirs: &Dirs, path: &Path, name: &str) -> Outcome<ImageRecord> {
    let loader = sandbox::image::Loader {
        state_dir: dirs.state.clone(),
        image_argv: vec![OsString::from("/proc/self/exe"), OsString::from("image")],
        uid_base: Users::of(dirs)?.images(),
    };
    let image = sandbox::image::load(&loader, path)?;
    Ok(image_record(name.to_owned(), image))
}

/// An image under the name that services use.
fn image_record(name: String, image: sandbox::image::ImageConfig) -> ImageRecord {
    ImageRecord {
        name,
        digest: image.digest,
        layers: image.layers,
        entrypoint: image.entrypoint,
        cmd: image.cmd,
        env: image.env,
        working_dir: image.workdir,
        user: image.user,
    }
}

/// What this machine can enforce: tried in a cloud of its own that is gone afterwards.
pub fn doctor() -> Outcome {
    let name: CloudName = "doctor".parse()?;
    let dirs = Dirs::of(&name);
    dirs.create()?;
    let found = host::agent::facts(&host_config(&name, &dirs, None));
    crate::up::take_down(&name, &dirs, true)?;
    let mut facts = found?;
    facts.insert(
        "egress".to_owned(),
        "VMs and containers have no way out to the internet: they are told so at once".to_owned(),
    );
    for (what, program) in [("curl", "curl"), ("gcloud", "gcloud")] {
        let found =
            std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()).any(|d| d.join(program).exists());
        let fact = if found { "installed" } else { "not installed; not needed, but good to have beside a cloud" };
        facts.insert(what.to_owned(), fact.to_owned());
    }
    for (what, fact) in facts {
        println!("{what:<22} {fact}");
    }
    Ok(ExitCode::SUCCESS)
}
