//! The door for operators who ask whether the kernel equals the plans. One at a time; control is not needed for it.

use std::{
    io,
    os::unix::{
        fs::PermissionsExt,
        net::{UnixListener, UnixStream},
    },
    path::Path,
    sync::mpsc::{SyncSender, sync_channel},
    thread,
    time::Duration,
};

use model::planned::host::Verified;

use super::{
    Agent, Heard, TAKE_MAX, chain, listen,
    workloads::{Phase, Workload},
};
use crate::{hands::verify::Lies, sandboxes::Sandboxes};

/// The socket's name in the run directory.
const SOCKET: &str = "verify.sock";
/// How long the loop may be busy with plans before it looks.
const ANSWER_MAX: Duration = Duration::from_secs(60);

/// Has the host process of a cloud compare the kernel with the plans. Needs root.
///
/// # Errors
/// When no host process answers there.
pub fn verify(run_dir: &Path) -> io::Result<Verified> {
    let mut stream = UnixStream::connect(run_dir.join(SOCKET))?;
    stream.set_read_timeout(Some(ANSWER_MAX + TAKE_MAX))?;
    ipc::read(&mut stream)?.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

/// Opens the door. Whoever connects is answered.
pub(super) fn open(run_dir: &Path, tell: SyncSender<Heard>) -> io::Result<()> {
    let path = run_dir.join(SOCKET);
    let listener = listen(&path)?;
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600))?;
    thread::spawn(move || answer(&listener, &tell));
    Ok(())
}

fn answer(listener: &UnixListener, tell: &SyncSender<Heard>) {
    for stream in listener.incoming() {
        let Ok(stream) = stream else {
            thread::sleep(Duration::from_millis(100));
            continue;
        };
        let (answer, verified) = sync_channel(1);
        if tell.send(Heard::Verify(answer)).is_err() {
            return;
        }
        if let Ok(verified) = verified.recv_timeout(ANSWER_MAX)
            && stream.set_write_timeout(Some(TAKE_MAX)).is_ok()
        {
            // Whoever asked may have gone.
            let _ = ipc::send(&stream, &verified, &[]);
        }
    }
}

impl<S: Sandboxes> Agent<S> {
    pub(super) fn verify(&self) -> Verified {
        let cabled = self.workloads.iter().filter(|(_, workload)| !matches!(workload.phase, Phase::Ended));
        let cabled = cabled.map(|(id, workload)| (id.clone(), lies(workload))).collect();
        let complete = self.complete;
        match self.hands.verify(&cabled) {
            Ok((namespaces, differences)) => Verified { complete, namespaces, differences, fault: None },
            Err(error) => Verified { complete, namespaces: 0, differences: Vec::new(), fault: Some(chain(&error)) },
        }
    }
}

fn lies(workload: &Workload) -> Lies<'_> {
    match (&workload.phase, &workload.attach) {
        (Phase::Running, Some(attach)) => Lies::So(attach),
        _ => Lies::Perhaps,
    }
}
