//! What a shim does for those who talk to it.

use std::{
    fs, io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
    time::{Duration, Instant},
};

use model::planned::host::SandboxEvent;
use rustix::process::{Pid, Signal};

use super::{ENTER_MAX, OOM_SCORE, Shim, birth::sibling};
use crate::{
    inside, sys,
    wire::{Answer, ExecRequest, Outward, Request, Status},
};

/// Longest grace between SIGTERM and SIGKILL that is believed; a day.
const GRACE_MAX: Duration = Duration::from_secs(86_400);

/// Sends a signal to a process group that a newcomer leads. It is our child and not yet reaped, so the number is its.
pub(super) fn signal_group(pid: i32, signal: i32) {
    if let (Some(pid), Some(signal)) = (Pid::from_raw(pid), Signal::from_named_raw(signal)) {
        rustix::process::kill_process_group(pid, signal).ok();
    }
}

impl Shim {
    /// Answers one question. False when the connection is over.
    pub(super) fn converse(&mut self, n: usize) -> bool {
        let (request, fds) = match self.connections[n].receiver.recv::<Request>() {
            Ok(Some(question)) => question,
            Ok(None) | Err(_) => return false,
        };
        let mut beside: Vec<OwnedFd> = Vec::new();
        let answer = match request {
            Request::Launch { id, plan } => match self.running {
                Some(_) => Answer::Refused { why: "it runs already".into() },
                None => match self.launch(id, *plan) {
                    Ok(()) => return self.launched(n),
                    Err(why) => {
                        self.abandon(why);
                        return true;
                    }
                },
            },
            Request::Exec(request) => self.exec(n, &request, fds, &mut beside),
            Request::Signal { signal } => {
                if let Some(pid) = self.connections[n].exec {
                    signal_group(pid, signal);
                }
                return true;
            }
            Request::Stop { grace_ms } => self.stop(Duration::from_millis(grace_ms).min(GRACE_MAX)),
            Request::Status => self.status(&mut beside),
            Request::Subscribe => {
                self.connections[n].subscribed = true;
                Answer::Event(SandboxEvent::Started { pid: self.pid() })
            }
        };
        let beside: Vec<_> = beside.iter().map(AsFd::as_fd).collect();
        ipc::send(self.connections[n].receiver.stream(), &answer, &beside).is_ok()
    }

    fn pid(&self) -> i32 {
        self.sandbox.pid.as_raw_nonzero().get()
    }

    /// Who launches hears of everything from the start, however soon the end comes.
    fn launched(&mut self, n: usize) -> bool {
        let pid = self.pid();
        let connection = &mut self.connections[n];
        connection.subscribed = true;
        let answers = [Answer::Launched { pid }, Answer::Event(SandboxEvent::Started { pid })];
        answers.iter().all(|answer| ipc::send(connection.receiver.stream(), answer, &[]).is_ok())
    }

    /// A sandbox that could not be launched never ran: it goes without last words.
    fn abandon(&mut self, why: String) {
        self.refusal = Some(why);
        self.sandbox.kill();
        if let Some(workload) = self.running.take() {
            for extension in ["sock", "log"] {
                fs::remove_file(self.birth.run_dir.join("shim").join(format!("{}.{extension}", workload.id))).ok();
            }
        }
    }

    fn stop(&mut self, grace: Duration) -> Answer {
        if let Some(workload) = &mut self.running {
            if grace.is_zero() {
                self.sandbox.kill();
            } else {
                self.sandbox.signal(Signal::TERM);
                // A second stop may only shorten the first.
                let at = Instant::now() + grace;
                workload.kill_at = Some(workload.kill_at.map_or(at, |before| before.min(at)));
            }
        }
        Answer::Stopping
    }

    fn status(&self, beside: &mut Vec<OwnedFd>) -> Answer {
        let Some(workload) = &self.running else { return Answer::Refused { why: "it has no workload yet".into() } };
        match self.sandbox.netns.try_clone() {
            Ok(netns) => beside.push(netns),
            Err(e) => return Answer::Refused { why: format!("cannot share the network namespace: {e}") },
        }
        Answer::Status(Box::new(Status {
            id: workload.id.clone(),
            incarnation: workload.plan.incarnation,
            uid_base: self.birth.uid_base,
            pid: self.pid(),
            limits: workload.plan.limits.clone(),
            memory_bytes: self.group.memory_bytes(),
            pids: u32::try_from(self.group.pids()).unwrap_or(u32::MAX),
        }))
    }

    fn exec(&mut self, n: usize, request: &ExecRequest, streams: Vec<OwnedFd>, beside: &mut Vec<OwnedFd>) -> Answer {
        if self.running.is_none() || request.argv.is_empty() || self.connections[n].exec.is_some() {
            return Answer::Refused { why: "nothing to execute, or no place to".into() };
        }
        match self.try_exec(request, streams) {
            Ok((pid, terminal)) => {
                self.connections[n].exec = Some(pid);
                beside.extend(terminal);
                Answer::Exec { pid }
            }
            Err(e) => Answer::Refused { why: e.to_string() },
        }
    }

    fn try_exec(&mut self, request: &ExecRequest, streams: Vec<OwnedFd>) -> io::Result<(i32, Option<OwnedFd>)> {
        let (ours, theirs) = UnixStream::pair()?;
        ours.set_read_timeout(Some(ENTER_MAX))?;
        let pid = sibling(&self.group, |report| {
            // While the file system is still the host's.
            fs::write("/proc/self/oom_score_adj", OOM_SCORE)?;
            sys::enter_namespaces(self.sandbox.pidfd.as_fd())?;
            report(sys::fork_sibling(|| inside::newcomer(&theirs, request, streams, &self.filter))?)
        })?;
        drop(theirs);
        let entered = wait_for_exec(ipc::Receiver::new(ours));
        if entered.is_err() {
            // It may have ended; it is our child and not yet reaped, so the number is still its.
            rustix::process::kill_process(pid, Signal::KILL).ok();
        }
        Ok((pid.as_raw_nonzero().get(), entered?))
    }
}

/// Listens to a newcomer until it has executed its program; its terminal, if it opened one.
fn wait_for_exec(mut link: ipc::Receiver) -> io::Result<Option<OwnedFd>> {
    let mut terminal = None;
    loop {
        match link.recv::<Outward>()? {
            // Closed by exec.
            None => return Ok(terminal),
            Some((Outward::Terminal, fds)) => terminal = fds.into_iter().next(),
            Some((Outward::Fault { why }, _)) => return Err(io::Error::other(why)),
            Some((Outward::Prepared, _)) => return Err(io::ErrorKind::InvalidData.into()),
        }
    }
}
