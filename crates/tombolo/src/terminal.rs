//! A command or a shell in a sandbox, with our own standard streams.

use std::{
    ffi::OsString,
    io::{self, IsTerminal, Read, Write},
    os::fd::{AsFd, BorrowedFd},
    path::Path,
};

use model::id::WorkloadId;
use rustix::termios::{self, OptionalActions, Termios};
use sandbox::{Exec, ExecRequest, ExecStatus, Running, Stdio};

use crate::Outcome;

/// The environment of a login in a VM; nothing of ours goes along but the kind of terminal.
fn environment() -> Vec<(String, String)> {
    let path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    let terminal = std::env::var("TERM").unwrap_or_else(|_| "dumb".to_owned());
    [("PATH", path), ("HOME", "/root"), ("USER", "root"), ("LANG", "C.UTF-8"), ("TERM", &terminal)]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into()
}

/// Runs `command`, or a login shell when it is empty; returns the code with which a shell would report its end.
pub fn exec(run_dir: &Path, workload: &str, command: &[OsString]) -> Outcome<u8> {
    let running = Running::find(run_dir, &WorkloadId(workload.to_owned()))?;
    let mut argv: Vec<String> = command.iter().map(|word| word.to_string_lossy().into_owned()).collect();
    if argv.is_empty() {
        argv = vec!["bash".to_owned(), "-l".to_owned()];
    }
    let tty = command.is_empty() && io::stdin().is_terminal() && io::stdout().is_terminal();
    let request = ExecRequest { argv, env: environment(), cwd: "/root".to_owned(), user: "root".to_owned(), tty };
    let status = if tty { in_terminal(&running, &request)? } else { in_streams(&running, &request)? };
    Ok(code(status))
}

/// A command whose output is wanted rather than shown.
pub fn output(run_dir: &Path, workload: &str, argv: &[&str]) -> Outcome<(u8, String)> {
    let running = Running::find(run_dir, &WorkloadId(workload.to_owned()))?;
    let (mut reader, writer) = io::pipe()?;
    let null = std::fs::File::open("/dev/null")?;
    let argv = argv.iter().map(|word| (*word).to_owned()).collect();
    let request =
        ExecRequest { argv, env: environment(), cwd: "/root".to_owned(), user: "root".to_owned(), tty: false };
    let streams = Stdio::Streams { stdin: null.as_fd(), stdout: writer.as_fd(), stderr: writer.as_fd() };
    let exec = running.exec(&request, streams)?;
    drop(writer);
    let mut text = Vec::new();
    reader.read_to_end(&mut text)?;
    let status = exec.wait()?;
    Ok((code(status), String::from_utf8_lossy(&text).into_owned()))
}

fn code(status: ExecStatus) -> u8 {
    let code = status.code.or_else(|| status.signal.map(|s| 128 + s)).unwrap_or(255);
    u8::try_from(code).unwrap_or(255)
}

fn in_streams(running: &Running, request: &ExecRequest) -> Outcome<ExecStatus> {
    let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
    let streams = Stdio::Streams { stdin: stdin.as_fd(), stdout: stdout.as_fd(), stderr: stderr.as_fd() };
    Ok(running.exec(request, streams)?.wait()?)
}

fn in_terminal(running: &Running, request: &ExecRequest) -> Outcome<ExecStatus> {
    let exec = running.exec(request, Stdio::Terminal)?;
    let _raw = Raw::enter()?;
    let Some(master) = exec.terminal().map(|fd| fd.try_clone_to_owned()).transpose()? else {
        return Err("the sandbox gave no terminal".into());
    };
    if let Ok(size) = termios::tcgetwinsize(io::stdout()) {
        termios::tcsetwinsize(&master, size)?;
    }
    let keys = std::fs::File::from(master.try_clone()?);
    // Ends with this process: nobody waits for another key once the shell is gone.
    std::thread::spawn(move || pump(io::stdin().lock(), keys));
    pump(std::fs::File::from(master), io::stdout().lock());
    wait(exec)
}

fn wait(exec: Exec) -> Outcome<ExecStatus> {
    Ok(exec.wait()?)
}

/// Copies without waiting for more than there is. A terminal whose other side is gone reads as an error: the end.
fn pump(mut from: impl Read, mut to: impl Write) {
    let mut buffer = [0; 4096];
    while let Ok(n @ 1..) = from.read(&mut buffer) {
        if to.write_all(&buffer[..n]).and_then(|()| to.flush()).is_err() {
            return;
        }
    }
}

/// The terminal hands every key through while this lives.
struct Raw(Termios);

impl Raw {
    fn enter() -> io::Result<Raw> {
        let stdin = io::stdin();
        let before = termios::tcgetattr(stdin.as_fd())?;
        let mut raw = before.clone();
        raw.make_raw();
        termios::tcsetattr(stdin.as_fd(), OptionalActions::Now, &raw)?;
        Ok(Raw(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let stdin = io::stdin();
        let fd: BorrowedFd<'_> = stdin.as_fd();
        // The terminal is gone: so is the need.
        let _ = termios::tcsetattr(fd, OptionalActions::Now, &self.0);
    }
}
