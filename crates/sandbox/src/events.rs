//! One thread that listens to all shims of a launcher and passes their events on.

use std::{
    fs, io,
    io::Read,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::UnixStream,
    },
    path::PathBuf,
    process::Child,
    sync::{Arc, Mutex, mpsc},
    thread,
};

use model::{id::WorkloadId, planned::host::SandboxEvent};
use rustix::event::{PollFd, PollFlags, poll};

use crate::{
    launcher::{Event, Running, read_epitaph, reap},
    wire::{Answer, Epitaph},
};

/// Hands connections to the thread. The thread ends when the last clone is dropped.
#[derive(Clone)]
pub(crate) struct Watcher {
    inbox: mpsc::Sender<Message>,
    bell: Arc<Mutex<UnixStream>>,
}

enum Message {
    Watch(Watch),
    Epitaph(Epitaph),
}

/// A subscribed connection to one shim.
pub(crate) struct Watch {
    id: WorkloadId,
    incarnation: u32,
    receiver: ipc::Receiver,
    /// The shim, when it is a child of this process and so must be reaped by it.
    child: Option<Child>,
}

impl Watch {
    pub(crate) fn new(sandbox: &Running, receiver: ipc::Receiver, child: Option<Child>) -> Watch {
        Watch { id: sandbox.id.clone(), incarnation: sandbox.incarnation, receiver, child }
    }
}

impl Watcher {
    pub(crate) fn start(dir: PathBuf, events: mpsc::Sender<Event>) -> io::Result<Watcher> {
        let (bell, ear) = UnixStream::pair()?;
        bell.set_nonblocking(true)?;
        ear.set_nonblocking(true)?;
        let (inbox, messages) = mpsc::channel();
        let ears = Ears { dir, events, messages, ear, watches: Vec::new() };
        thread::Builder::new().name("sandbox-events".into()).stack_size(256 << 10).spawn(move || ears.run())?;
        Ok(Watcher { inbox, bell: Arc::new(Mutex::new(bell)) })
    }

    pub(crate) fn watch(&self, watch: Watch) {
        self.tell(Message::Watch(watch));
    }

    pub(crate) fn report_epitaph(&self, epitaph: Epitaph) {
        self.tell(Message::Epitaph(epitaph));
    }

    fn tell(&self, message: Message) {
        // The thread ends only when this handle is gone, or by a panic of its own; then nobody is left to tell.
        if self.inbox.send(message).is_ok() {
            let mut bell = self.bell.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            // A full socket has rung already.
            io::Write::write(&mut *bell, &[0]).ok();
        }
    }
}

struct Ears {
    dir: PathBuf,
    events: mpsc::Sender<Event>,
    messages: mpsc::Receiver<Message>,
    ear: UnixStream,
    watches: Vec<Watch>,
}

impl Ears {
    fn run(mut self) {
        loop {
            let ready = self.wait();
            // From the back, so that removing one does not move those still to be looked at.
            for index in (0..self.watches.len()).rev() {
                if ready.get(index + 1).is_some_and(|r| *r) && !self.hear(index) {
                    let gone = self.watches.swap_remove(index);
                    self.bury(gone);
                }
            }
            if ready.first().is_some_and(|r| *r) && !self.take_messages() {
                return;
            }
        }
    }

    /// Which of the bell and then the watches have something to say.
    fn wait(&self) -> Vec<bool> {
        let streams = self.watches.iter().map(|w| w.receiver.stream().as_fd());
        let all: Vec<BorrowedFd<'_>> = std::iter::once(self.ear.as_fd()).chain(streams).collect();
        let mut fds: Vec<_> = all.iter().map(|fd| PollFd::new(fd, PollFlags::IN)).collect();
        match poll(&mut fds, None) {
            Ok(_) => fds.iter().map(|fd| !fd.revents().is_empty()).collect(),
            Err(_) => Vec::new(),
        }
    }

    /// False when every [`Watcher`] is gone.
    fn take_messages(&mut self) -> bool {
        let mut rings = [0; 64];
        let closed = matches!((&self.ear).read(&mut rings), Ok(0));
        while let Ok(message) = self.messages.try_recv() {
            match message {
                // Who adopts twice hears once.
                Message::Watch(watch) if self.knows(&watch) => {}
                Message::Watch(watch) => self.watches.push(watch),
                Message::Epitaph(epitaph) => self.tell(epitaph.id, epitaph.incarnation, epitaph.event),
            }
        }
        !closed
    }

    fn knows(&self, watch: &Watch) -> bool {
        self.watches.iter().any(|w| w.id == watch.id && w.incarnation == watch.incarnation)
    }

    /// False when the connection is over. A shim writes whole frames, so a readable connection does not block for long.
    fn hear(&mut self, index: usize) -> bool {
        let watch = &mut self.watches[index];
        match watch.receiver.recv::<Answer>() {
            Ok(Some((Answer::Event(event), _))) => {
                let (id, incarnation) = (watch.id.clone(), watch.incarnation);
                self.tell(id, incarnation, event);
                true
            }
            Ok(Some(_)) => true,
            Ok(None) | Err(_) => false,
        }
    }

    fn tell(&self, workload: WorkloadId, incarnation: u32, event: SandboxEvent) {
        let ended = matches!(event, SandboxEvent::Exited { .. } | SandboxEvent::Failed { .. });
        let path = self.dir.join(format!("{workload}.end"));
        // A receiver that is gone leaves the file for the next launcher.
        if self.events.send(Event { workload, incarnation, event }).is_ok() && ended {
            fs::remove_file(path).ok();
        }
    }

    /// The connection to a shim ended. When the shim was killed, nothing was said about the sandbox: say it.
    fn bury(&self, watch: Watch) {
        if let Some(child) = watch.child {
            // It has closed its connection because it exits.
            reap(child);
        }
        let path = self.dir.join(format!("{}.end", watch.id));
        match read_epitaph(&path) {
            Some(epitaph) => self.tell(epitaph.id, epitaph.incarnation, epitaph.event),
            None if self.dir.join(format!("{}.sock", watch.id)).exists() => self.tell(
                watch.id,
                watch.incarnation,
                SandboxEvent::Exited { code: None, signal: Some(9), out_of_memory: false, output_tail: String::new() },
            ),
            None => {}
        }
    }
}
