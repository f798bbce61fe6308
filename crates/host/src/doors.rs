//! Listening sockets for the unprivileged: made inside the right namespace here, kept here, and handed with SCM_RIGHTS
//! to the proxy and the guest server whenever they are there. A restarted receiver gets the same sockets again.

use std::{
    collections::BTreeMap,
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::PathBuf,
    sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    thread,
    time::Duration,
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::Serialize;

/// How often an absent receiver is looked for, and a present one for whether it is still there.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// A receiver that does not take a frame within this is treated as gone.
const TAKE_MAX: Duration = Duration::from_secs(5);
/// Changes that may wait for the door's thread.
const QUEUE_MAX: usize = 1_024;

/// The way to one receiver. Keys say what replaces what; messages are what the receiver is told.
#[derive(Debug)]
pub struct Door<K, M> {
    commands: SyncSender<Command<K, M>>,
}

#[derive(Debug)]
enum Command<K, M> {
    Set(K, M, Vec<OwnedFd>),
    Unset(K, M),
    Complete(M),
}

impl<K: Ord + Send + 'static, M: Serialize + Clone + Send + 'static> Door<K, M> {
    /// Starts looking for a receiver at the Unix socket.
    pub fn to(path: PathBuf) -> Door<K, M> {
        let (commands, inbox) = sync_channel(QUEUE_MAX);
        thread::spawn(move || Keeper { path, items: BTreeMap::new(), complete: None, stream: None }.run(&inbox));
        Door { commands }
    }

    /// Hands the sockets over now and to every later receiver.
    pub fn set(&self, key: K, message: M, sockets: Vec<OwnedFd>) {
        self.tell(Command::Set(key, message, sockets));
    }

    /// Closes our copies and says so.
    pub fn unset(&self, key: K, message: M) {
        self.tell(Command::Unset(key, message));
    }

    /// From now on what was set is all there is; receivers hear it after everything else. Not said before the plan is
    /// known, or a restarted host would take living listeners from the proxy.
    pub fn complete(&self, message: M) {
        self.tell(Command::Complete(message));
    }

    fn tell(&self, command: Command<K, M>) {
        self.commands.send(command).expect("the keeper ends only when this sender is gone");
    }
}

struct Keeper<K, M> {
    path: PathBuf,
    items: BTreeMap<K, (M, Vec<OwnedFd>)>,
    complete: Option<M>,
    stream: Option<UnixStream>,
}

impl<K: Ord, M: Serialize + Clone> Keeper<K, M> {
    fn run(mut self, inbox: &Receiver<Command<K, M>>) {
        loop {
            match inbox.recv_timeout(LOOK_EVERY) {
                Ok(command) => self.obey(command),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            if self.stream.as_ref().is_some_and(ended) {
                self.stream = None;
            }
            if self.stream.is_none() {
                self.connect();
            }
        }
    }

    fn obey(&mut self, command: Command<K, M>) {
        match command {
            Command::Set(key, message, sockets) => {
                self.say(&message, &sockets);
                self.items.insert(key, (message, sockets));
            }
            Command::Unset(key, message) => {
                self.items.remove(&key);
                self.say(&message, &[]);
            }
            Command::Complete(message) => {
                self.say(&message, &[]);
                self.complete = Some(message);
            }
        }
    }

    /// A receiver that cannot be told is dropped and told everything when it is back.
    fn say(&mut self, message: &M, sockets: &[OwnedFd]) {
        if let Some(stream) = &self.stream
            && send(stream, message, sockets).is_err()
        {
            self.stream = None;
        }
    }

    fn connect(&mut self) {
        // Nobody there yet, or not any more: looked for again soon.
        let Ok(stream) = UnixStream::connect(&self.path) else { return };
        if self.tell_all(&stream).is_ok() {
            self.stream = Some(stream);
        }
    }

    fn tell_all(&self, stream: &UnixStream) -> io::Result<()> {
        stream.set_write_timeout(Some(TAKE_MAX))?;
        self.items.values().try_for_each(|(message, sockets)| send(stream, message, sockets))?;
        self.complete.iter().try_for_each(|message| send(stream, message, &[]))
    }
}

fn send<M: Serialize>(stream: &UnixStream, message: &M, sockets: &[OwnedFd]) -> io::Result<()> {
    ipc::send(stream, message, &sockets.iter().map(AsFd::as_fd).collect::<Vec<_>>())
}

/// Receivers say nothing, so a readable connection is one that has ended.
fn ended(stream: &UnixStream) -> bool {
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    !matches!(poll(&mut [PollFd::new(stream, PollFlags::IN)], Some(&now)), Ok(0))
}
