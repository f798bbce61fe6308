//! What containers print, from the shims' files to control. One thread reads; a batch of each container is on its way at
//! a time, and the next follows when control has said that it is in the log. So nothing piles up here, and what a dying
//! control did not confirm is read again for the next one.

use std::{
    collections::BTreeMap,
    io::{self, Read, Write},
    os::{fd::OwnedFd, unix::net::UnixStream},
    path::{Path, PathBuf},
    sync::mpsc::{Receiver, Sender, SyncSender, channel},
    thread,
    time::{Duration, Instant},
};

use model::{
    id::WorkloadId,
    limits::{PRINTED_BATCH_BYTES, PRINTED_BATCH_PAUSE},
    planned::host::FromHost,
};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::inotify,
};
use sandbox::printed::{Files, Tail, look};

use super::Heard;

/// A line waits this long for company.
const COMPANY: Duration = Duration::from_millis(5);

/// What the reading thread is told.
enum Word {
    /// Control has everything of this workload before line `next`.
    Logged(WorkloadId, u64),
    /// Control is a new one: what the last one did not confirm is to be said again.
    Anew,
    /// No more lines come of this workload.
    Ended(WorkloadId),
}

/// Talks to the reading thread, which ends with the process.
pub(super) struct Printed {
    words: Sender<Word>,
    bell: UnixStream,
}

impl Printed {
    /// `living` are the workloads that run already; what others left is passed on and removed.
    pub(super) fn start(
        run_dir: &Path,
        living: impl Iterator<Item = WorkloadId>,
        tell: SyncSender<Heard>,
    ) -> io::Result<Printed> {
        let dir = sandbox::printed::dir(run_dir);
        std::fs::create_dir_all(&dir)?;
        let changes = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
        inotify::add_watch(&changes, &dir, inotify::WatchFlags::MODIFY)?;
        let (bell, ear) = UnixStream::pair()?;
        bell.set_nonblocking(true)?;
        ear.set_nonblocking(true)?;
        let (words, inbox) = channel();
        let mut tails = BTreeMap::new();
        for id in look(&dir)?.into_keys() {
            tails.insert(id.clone(), Reading { ended: true, ..Reading::of(Tail::new(&dir, id, false)) });
        }
        for id in living {
            let tail = Tail::new(&dir, id.clone(), false);
            tails.entry(id).or_insert_with(|| Reading::of(tail)).ended = false;
        }
        let reader = Reader { dir, changes, ear, inbox, tell, tails };
        thread::Builder::new().name("printed".to_owned()).spawn(move || reader.run())?;
        Ok(Printed { words, bell })
    }

    pub(super) fn logged(&mut self, id: WorkloadId, next: u64) {
        self.say(Word::Logged(id, next));
    }

    pub(super) fn anew(&mut self) {
        self.say(Word::Anew);
    }

    pub(super) fn ended(&mut self, id: WorkloadId) {
        self.say(Word::Ended(id));
    }

    fn say(&mut self, word: Word) {
        // A thread that is gone reads nothing more; a full socket has rung already.
        if self.words.send(word).is_ok() {
            let _ = self.bell.write_all(&[0]);
        }
    }
}

struct Reading {
    tail: Tail,
    ended: bool,
    /// When its last batch was read.
    last: Option<Instant>,
}

impl Reading {
    fn of(tail: Tail) -> Reading {
        Reading { tail, ended: false, last: None }
    }
}

struct Reader {
    dir: PathBuf,
    changes: OwnedFd,
    ear: UnixStream,
    inbox: Receiver<Word>,
    tell: SyncSender<Heard>,
    tails: BTreeMap<WorkloadId, Reading>,
}

impl Reader {
    fn run(mut self) {
        loop {
            self.take_words();
            match self.read() {
                Ok(more) => self.wait(more),
                Err(error) => {
                    eprintln!("host: cannot read what containers print: {error}");
                    thread::sleep(PRINTED_BATCH_PAUSE * 20);
                }
            }
        }
    }

    /// For a change; not for longer than until the next batch of a busy container may be read.
    fn wait(&mut self, busy: bool) {
        let pause = busy.then(|| Timespec::try_from(PRINTED_BATCH_PAUSE).ok()).flatten();
        let mut fds = [PollFd::new(&self.changes, PollFlags::IN), PollFd::new(&self.ear, PollFlags::IN)];
        // A signal is a reason to look as good as any.
        poll(&mut fds, pause.as_ref()).ok();
        // What comes line by line is read some lines at a time.
        thread::sleep(COMPANY);
        let mut sink = [0; 4_096];
        // What has changed is found by looking.
        while matches!(rustix::io::read(&self.changes, &mut sink[..]), Ok(n) if n > 0) {}
        while matches!(self.ear.read(&mut sink), Ok(n) if n > 0) {}
    }

    fn take_words(&mut self) {
        while let Ok(word) = self.inbox.try_recv() {
            match word {
                Word::Anew => self.tails.values_mut().for_each(|reading| reading.tail.again()),
                Word::Logged(id, next) => {
                    if let Some(reading) = self.tails.get_mut(&id)
                        && let Err(error) = reading.tail.heard(next)
                    {
                        eprintln!("host: cannot remove what {id} printed: {error}");
                    }
                }
                Word::Ended(id) => {
                    let tail = || Reading::of(Tail::new(&self.dir, id.clone(), true));
                    self.tails.entry(id.clone()).or_insert_with(tail).ended = true;
                }
            }
        }
    }

    /// Passes on what there is. True when some of it has to wait for its turn.
    fn read(&mut self) -> io::Result<bool> {
        let files = look(&self.dir)?;
        for id in files.keys() {
            let tail = || Reading::of(Tail::new(&self.dir, id.clone(), true));
            self.tails.entry(id.clone()).or_insert_with(tail);
        }
        let (mut busy, mut over, none) = (false, Vec::new(), Files::new());
        for (id, reading) in &mut self.tails {
            if reading.last.is_some_and(|last| last.elapsed() < PRINTED_BATCH_PAUSE) {
                busy = true;
                continue;
            }
            let files = files.get(id).unwrap_or(&none);
            match reading.tail.next(files, PRINTED_BATCH_BYTES)? {
                Some(batch) => {
                    reading.last = Some(Instant::now());
                    // The agent hears what it can take; a reader that waits for it loses nothing.
                    if self.tell.send(Heard::Printed(FromHost::Printed(batch))).is_err() {
                        return Ok(false);
                    }
                }
                None if reading.ended && reading.tail.is_idle() => {
                    reading.tail.bury(files)?;
                    over.push(id.clone());
                }
                None => {}
            }
        }
        over.iter().for_each(|id| drop(self.tails.remove(id)));
        Ok(busy)
    }
}
