//! A user's process behind a channel: how it is started, and how its streams are carried.

use std::{io, net::SocketAddr, os::fd::OwnedFd, process::Stdio, sync::Arc};

use rustix::{
    fs::{Gid, Uid},
    pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt},
    termios::Winsize,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, Interest, unix::AsyncFd},
    process::{Child, Command},
};

use crate::{accounts::Account, sys};

/// Search path of a login. Source: Debian, login.defs.
const PATH: &str = "/usr/local/bin:/usr/bin:/bin:/usr/local/games:/usr/games";
const ROOT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// The group of terminals, as /dev/pts was mounted with it.
const TTY: u32 = 5;

/// What a client asks to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Program {
    /// A login shell.
    Shell,
    /// Through the user's shell.
    Command(String),
    /// Our own file transfer server.
    Sftp,
}

/// How big the client's window is, in characters and in pixels.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Window {
    pub(crate) columns: u32,
    pub(crate) rows: u32,
    pub(crate) width: u32,
    pub(crate) height: u32,
}

impl Window {
    fn size(self) -> Winsize {
        let small = |n: u32| u16::try_from(n).unwrap_or(u16::MAX);
        Winsize {
            ws_col: small(self.columns),
            ws_row: small(self.rows),
            ws_xpixel: small(self.width),
            ws_ypixel: small(self.height),
        }
    }
}

/// Our end of a pseudo-terminal.
#[derive(Clone)]
pub(crate) struct Terminal(Arc<AsyncFd<OwnedFd>>);

impl Terminal {
    pub(crate) fn resize(&self, window: Window) {
        // A terminal whose process is gone has no size.
        let _ = rustix::termios::tcsetwinsize(self.0.get_ref(), window.size());
    }

    /// The next bytes; none when the last process has let go of the terminal.
    pub(crate) async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.0.async_io(Interest::READABLE, |fd| Ok(rustix::io::read(fd, &mut *buffer)?)).await;
        // Source: Linux pty(7): reading a master whose slave is closed.
        read.or_else(|error| if error.raw_os_error() == Some(5) { Ok(0) } else { Err(error) })
    }

    pub(crate) async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let n = self.0.async_io(Interest::WRITABLE, |fd| Ok(rustix::io::write(fd, bytes)?)).await?;
            bytes = &bytes[n..];
        }
        Ok(())
    }
}

/// A process that runs, with our ends of its streams.
pub(crate) struct Started {
    pub(crate) child: Child,
    pub(crate) terminal: Option<Terminal>,
}

/// What surrounds a process.
pub(crate) struct Surroundings<'a> {
    pub(crate) account: &'a Account,
    /// `LANG` and the like, as the client asked.
    pub(crate) env: &'a [(String, String)],
    /// The name of its terminal, and the window, when it asked for one.
    pub(crate) terminal: Option<(String, Window)>,
    pub(crate) peer: SocketAddr,
    pub(crate) local: Option<SocketAddr>,
}

/// Starts a program as the account's user, in its home.
///
/// # Errors
/// What the kernel refuses: no shell of that name, too many processes.
pub(crate) fn start(program: &Program, around: &Surroundings<'_>) -> io::Result<Started> {
    let mut command = command(program, around);
    let Some((_, window)) = around.terminal else {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        sys::become_user(&mut command, around.account, false);
        return Ok(Started { child: Command::from(command).spawn()?, terminal: None });
    };
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let master = openpt(flags)?;
    unlockpt(&master)?;
    let slave = ioctl_tiocgptpeer(&master, flags)?;
    rustix::fs::fchown(&slave, Some(Uid::from_raw(around.account.uid)), Some(Gid::from_raw(TTY)))?;
    rustix::termios::tcsetwinsize(&slave, window.size())?;
    if let Ok(name) = rustix::termios::ttyname(&slave, Vec::new()) {
        command.env("SSH_TTY", name.to_string_lossy().as_ref());
    }
    rustix::io::ioctl_fionbio(&master, true)?;
    let terminal = Terminal(Arc::new(sys::watched(master)?));
    command.stdin(slave.try_clone()?).stdout(slave.try_clone()?).stderr(slave);
    sys::become_user(&mut command, around.account, true);
    Ok(Started { child: Command::from(command).spawn()?, terminal: Some(terminal) })
}

fn command(program: &Program, around: &Surroundings<'_>) -> std::process::Command {
    let account = around.account;
    let mut command = match program {
        Program::Shell => {
            let mut shell = std::process::Command::new(&account.shell);
            let name = account.shell.rsplit('/').next().unwrap_or_default();
            // A dash in front makes it a login shell.
            std::os::unix::process::CommandExt::arg0(&mut shell, format!("-{name}"));
            shell
        }
        Program::Command(text) => {
            let mut shell = std::process::Command::new(&account.shell);
            shell.args(["-c", text]);
            shell
        }
        Program::Sftp => {
            let mut own = std::process::Command::new("/proc/self/exe");
            std::os::unix::process::CommandExt::arg0(&mut own, "tombolo-sftp");
            own.arg("sftp");
            own
        }
    };
    let home = if std::path::Path::new(&account.home).is_dir() { account.home.as_str() } else { "/" };
    let port = around.local.map_or(crate::PORT, |local| local.port());
    let (peer, local) = (around.peer, around.local.map_or_else(String::new, |local| local.ip().to_string()));
    command.env_clear().envs(around.env.iter().map(|(name, value)| (name, value)));
    command.env("HOME", &account.home).env("USER", &account.name).env("LOGNAME", &account.name);
    command.env("SHELL", &account.shell).env("PATH", if account.uid == 0 { ROOT_PATH } else { PATH });
    command.env("SSH_CLIENT", format!("{} {} {port}", peer.ip(), peer.port()));
    command.env("SSH_CONNECTION", format!("{} {} {local} {port}", peer.ip(), peer.port()));
    if let Some((term, _)) = &around.terminal {
        command.env("TERM", term);
    }
    command.current_dir(home);
    command
}

/// Hands on what `from` says until it ends; false when nobody takes it any more.
pub(crate) async fn pour<F: Future<Output = bool>>(
    mut from: impl AsyncRead + Unpin,
    mut take: impl FnMut(Vec<u8>) -> F,
) {
    let mut buffer = vec![0; 32 << 10];
    while let Ok(n @ 1..) = from.read(&mut buffer).await {
        if !take(buffer[..n].to_vec()).await {
            return;
        }
    }
}

/// Where a client's bytes go. What nobody reads any more is dropped.
pub(crate) enum Sink {
    Terminal(Terminal),
    Pipe(Box<dyn AsyncWrite + Send + Unpin>),
    Closed,
}

impl Sink {
    pub(crate) async fn take(&mut self, bytes: &[u8]) {
        let taken = match self {
            Sink::Terminal(terminal) => terminal.write_all(bytes).await,
            Sink::Pipe(pipe) => pipe.write_all(bytes).await,
            Sink::Closed => Ok(()),
        };
        if taken.is_err() {
            *self = Sink::Closed;
        }
    }

    /// The client sends nothing more. A terminal stays open, as one does.
    pub(crate) fn end(&mut self) {
        if let Sink::Pipe(_) = self {
            *self = Sink::Closed;
        }
    }
}

/// Sends a signal to everything the process has started in its session's first group.
pub(crate) fn signal(pid: u32, number: i32) {
    let pid = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw);
    let signal = rustix::process::Signal::from_named_raw(number);
    if let (Some(pid), Some(signal)) = (pid, signal) {
        // One that has ended needs none.
        let _ = rustix::process::kill_process_group(pid, signal);
    }
}
