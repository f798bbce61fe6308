//! The one binary: every role of a cloud, and the commands of its operator.
//!
//! Start with [`up`] (how the processes are started and kept) and [`roles`] (what each of them is given). The commands
//! speak to a running cloud through its public doors; only `ssh`, `load`, `status` and `down` use the operator's socket.

mod cloud;
mod commands;
mod demo;
mod operator;
mod roles;
mod terminal;
mod up;
mod users;
mod why;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(
    name = "tombolo",
    version,
    about = "A private serverless cloud in one binary",
    disable_help_subcommand = true
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Start a cloud and stay with it; Ctrl-C takes it down again
    Up(up::Args),
    /// Stop a cloud and remove everything it put into the kernel; its state stays
    Down(commands::CloudArgs),
    /// What runs in a cloud
    Status(commands::CloudArgs),
    /// Whether the kernel holds what the cloud's plans say, read anew; what differs, if anything does
    Verify(commands::CloudArgs),
    /// What this machine can and cannot enforce, and what to do about it
    Doctor,
    /// The environment that points gcloud, curl and client libraries at a cloud: eval "$(tombolo env)"
    Env(commands::CloudArgs),
    /// Run a command, or a shell, in a VM
    Ssh(commands::SshArgs),
    /// Send a packet or a request the real way and say what it met, where it ended, and what would mend that
    Why(why::Args),
    /// Let a client act as a user: prints the code that `gcloud auth login --no-launch-browser` asks for
    Consent(commands::ConsentArgs),
    /// Make a local OCI layout or archive available as an image
    Load(commands::LoadArgs),
    /// The whole journey on a throwaway cloud: a private service, published to another project, called from its VM
    Demo(demo::Args),
    /// One process of a cloud; started by `up`
    #[command(hide = true)]
    Role(roles::Args),
    /// The SSH server of a VM; started by the VM's init
    #[command(hide = true)]
    Sshd,
    /// File transfer for one SSH client; started by the VM's SSH server
    #[command(hide = true)]
    Sftp,
    /// The process that unpacks one image; started by `load`
    #[command(hide = true, disable_help_flag = true)]
    Image {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<std::ffi::OsString>,
    },
    /// The process that holds one sandbox; started by the host role
    #[command(hide = true, disable_help_flag = true)]
    Shim {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<std::ffi::OsString>,
    },
}

fn main() -> ExitCode {
    // A closed terminal or pipe ends us with an error from write, not with a signal in the middle of a change.
    match run(Cli::parse().command) {
        Ok(code) => code,
        Err(error) => {
            complain(&*error);
            ExitCode::FAILURE
        }
    }
}

/// An error with its causes.
fn complain(error: &dyn std::error::Error) {
    eprintln!("tombolo: {error}");
    let mut source = error.source();
    while let Some(cause) = source {
        eprintln!("  because {cause}");
        source = cause.source();
    }
}

/// What a command ends with.
type Outcome<T = ExitCode> = tombolo::Outcome<T>;

fn run(command: Command) -> Outcome {
    match command {
        Command::Up(args) => up::run(args),
        Command::Down(args) => commands::down(&args),
        Command::Status(args) => commands::status(&args),
        Command::Verify(args) => commands::verify(&args),
        Command::Doctor => commands::doctor(),
        Command::Env(args) => commands::env(&args),
        Command::Ssh(args) => commands::ssh(&args),
        Command::Why(args) => why::run(&args),
        Command::Consent(args) => commands::consent(&args),
        Command::Load(args) => commands::load(&args),
        Command::Demo(args) => demo::run(&args),
        Command::Role(args) => roles::run(args),
        Command::Image { .. } => roles::image(),
        Command::Shim { .. } => roles::shim(),
        Command::Sshd => roles::sshd(),
        Command::Sftp => roles::sftp(),
    }
}
