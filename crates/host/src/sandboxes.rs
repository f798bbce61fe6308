//! What the agent asks of whatever runs workloads, so that it can be tested without running any. The real one is
//! [`Launched`], over the `sandbox` crate.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    os::fd::OwnedFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc},
    time::Duration,
};

use model::{id::WorkloadId, planned::host::SandboxPlan};
use sandbox::{Launcher, Parked, Running};

pub use sandbox::Event;

/// Sandboxes that are made or launched at once: each may take as long as a shim may take to answer.
const LAUNCHES_MAX: usize = 4;

#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    #[error(transparent)]
    Sandbox(#[from] sandbox::Error),
    #[error("cannot keep a workload's network namespace open")]
    Namespace { source: io::Error },
    #[error("no sandbox was prepared for uids from {uid_base}")]
    Unprepared { uid_base: u32 },
}

/// What is heard of sandboxes: answers to what was begun, and what happens to those that run.
#[derive(Debug)]
pub enum Heard {
    /// The network namespace of a sandbox that was prepared for the workload.
    Prepared {
        workload: WorkloadId,
        incarnation: u32,
        outcome: Result<OwnedFd, SandboxError>,
    },
    /// The workload's program has been executed, or never will be. Its end may be heard before.
    Launched {
        workload: WorkloadId,
        incarnation: u32,
        outcome: Result<(), SandboxError>,
    },
    Event(Event),
}

/// Starts in two steps: [`Sandboxes::prepare`] gives the network namespace, born together with the sandbox's user
/// namespace, for us to wire; [`Sandboxes::launch`] runs the workload in it. Both only begin and are answered later:
/// an image or a mount that hangs holds up nobody else.
pub trait Sandboxes {
    /// Answered by [`Heard::Prepared`].
    fn prepare(&mut self, id: &WorkloadId, plan: &SandboxPlan);
    /// Answered by [`Heard::Launched`].
    fn launch(&mut self, id: &WorkloadId, plan: &SandboxPlan);
    /// Unmakes what was prepared and will not be launched.
    fn discard(&mut self, plan: &SandboxPlan);
    /// Keeps a prepared sandbox for each of these and no others.
    fn keep_parked(&mut self, uid_bases: &BTreeSet<u32>) -> Result<(), SandboxError>;
    /// What runs already, with its incarnation.
    fn adopt(&mut self) -> Result<Vec<(WorkloadId, u32)>, SandboxError>;
    /// SIGTERM now, SIGKILL after `grace`; nothing happens when it is gone.
    fn stop(&mut self, id: &WorkloadId, grace: Duration) -> Result<(), SandboxError>;
    /// The end of this incarnation was heard: nothing of it is there any more, and its uids are free.
    fn forget(&mut self, id: &WorkloadId, incarnation: u32);
    /// What this machine can enforce.
    fn facts(&self) -> Vec<(String, String)>;
}

/// A sandbox kept ready. Making one takes milliseconds, mostly of waiting for the kernel, so a thread of its own does it.
enum Slot {
    Ready(Parked),
    Coming(mpsc::Receiver<Result<Parked, sandbox::Error>>),
    /// Being unmade; its uids are free when the other end is gone.
    Leaving(mpsc::Receiver<()>),
}

impl Slot {
    /// The sandbox, for as long as it takes.
    fn wait(self, launcher: &Launcher, uid_base: u32) -> Result<Parked, sandbox::Error> {
        match self {
            Slot::Ready(parked) => Ok(parked),
            // A maker that died without an answer has made nothing.
            Slot::Coming(made) => made.recv().unwrap_or_else(|mpsc::RecvError| launcher.park(uid_base)),
            Slot::Leaving(left) => {
                let mpsc::RecvError = left.recv().expect_err("nothing is ever sent");
                launcher.park(uid_base)
            }
        }
    }

    /// Unmakes it, elsewhere: that waits for the kernel, too.
    fn leave(self) -> Slot {
        match self {
            Slot::Leaving(left) => Slot::Leaving(left),
            slot => {
                let (leaving, left) = mpsc::channel();
                std::thread::spawn(move || {
                    match slot {
                        Slot::Coming(made) => drop(made.recv()),
                        slot => drop(slot),
                    }
                    drop(leaving);
                });
                Slot::Leaving(left)
            }
        }
    }

    fn has_left(&self) -> bool {
        matches!(self, Slot::Leaving(left) if left.try_recv() == Err(mpsc::TryRecvError::Disconnected))
    }
}

type Work = Box<dyn FnOnce() + Send>;

/// Sandboxes with a shim each.
pub struct Launched {
    launcher: Launcher,
    parked: BTreeMap<u32, Slot>,
    /// Made for a workload that is about to be launched.
    prepared: Arc<Mutex<BTreeMap<u32, Parked>>>,
    running: Arc<Mutex<BTreeMap<WorkloadId, Running>>>,
    work: mpsc::Sender<Work>,
    heard: mpsc::Sender<Heard>,
}

impl Launched {
    pub fn new(config: sandbox::Config, heard: mpsc::Sender<Heard>) -> Result<Launched, SandboxError> {
        let (events, happened) = mpsc::channel();
        let launcher = Launcher::new(config, events)?;
        launcher.sweep()?;
        let told = heard.clone();
        std::thread::spawn(move || happened.iter().try_for_each(|event| told.send(Heard::Event(event))));
        let (parked, prepared, running) = (BTreeMap::new(), Arc::default(), Arc::default());
        Ok(Launched { launcher, parked, prepared, running, work: workers(), heard })
    }

    fn begin(&self, work: impl FnOnce() + Send + 'static) {
        self.work.send(Box::new(work)).expect("the workers end only when this sender is gone");
    }
}

/// Threads that do one piece of work after another. What waits for them is bounded by the plans: two pieces a workload.
fn workers() -> mpsc::Sender<Work> {
    let (work, waiting) = mpsc::channel::<Work>();
    let waiting = Arc::new(Mutex::new(waiting));
    for _ in 0..LAUNCHES_MAX {
        let waiting = waiting.clone();
        std::thread::spawn(move || {
            loop {
                let next = lock(&waiting).recv();
                let Ok(next) = next else { return };
                next();
            }
        });
    }
    work
}

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Sandboxes for Launched {
    fn prepare(&mut self, id: &WorkloadId, plan: &SandboxPlan) {
        let (workload, incarnation, uid_base) = (id.clone(), plan.incarnation, plan.uid_base);
        let (launcher, prepared, heard) = (self.launcher.clone(), self.prepared.clone(), self.heard.clone());
        // Taken here: the next word about what to park may come before a worker is free.
        let slot = lock(&self.prepared).remove(&uid_base).map(Slot::Ready).or_else(|| self.parked.remove(&uid_base));
        self.begin(move || {
            let made = slot.map_or_else(|| launcher.park(uid_base), |slot| slot.wait(&launcher, uid_base));
            let outcome = made.map_err(SandboxError::from).and_then(|made| {
                let netns = made.netns().try_clone_to_owned();
                lock(&prepared).insert(uid_base, made);
                netns.map_err(|source| SandboxError::Namespace { source })
            });
            // Nobody hears it only when the process ends.
            drop(heard.send(Heard::Prepared { workload, incarnation, outcome }));
        });
    }

    fn launch(&mut self, id: &WorkloadId, plan: &SandboxPlan) {
        let (workload, plan) = (id.clone(), plan.clone());
        let (prepared, running, heard) = (self.prepared.clone(), self.running.clone(), self.heard.clone());
        self.begin(move || {
            let (uid_base, incarnation) = (plan.uid_base, plan.incarnation);
            let made = lock(&prepared).remove(&uid_base).ok_or(SandboxError::Unprepared { uid_base });
            let outcome = made.and_then(|made| Ok(made.launch(&workload, &plan)?));
            let outcome = outcome.map(|runs| drop(lock(&running).insert(workload.clone(), runs)));
            drop(heard.send(Heard::Launched { workload, incarnation, outcome }));
        });
    }

    fn discard(&mut self, plan: &SandboxPlan) {
        if let Some(unwanted) = lock(&self.prepared).remove(&plan.uid_base) {
            self.parked.insert(plan.uid_base, Slot::Ready(unwanted).leave());
        }
    }

    fn keep_parked(&mut self, uid_bases: &BTreeSet<u32>) -> Result<(), SandboxError> {
        let parked = std::mem::take(&mut self.parked).into_iter().filter(|(_, slot)| !slot.has_left());
        let keep = |(uid_base, slot): (u32, Slot)| {
            let slot = if uid_bases.contains(&uid_base) { slot } else { slot.leave() };
            (uid_base, slot)
        };
        self.parked = parked.map(keep).collect();
        let mut used: BTreeSet<u32> = lock(&self.running).values().map(Running::uid_base).collect();
        used.extend(lock(&self.prepared).keys());
        for uid_base in uid_bases.difference(&used).copied() {
            if matches!(self.parked.get(&uid_base), Some(Slot::Ready(_) | Slot::Coming(_))) {
                continue;
            }
            let before = self.parked.remove(&uid_base);
            let (tell, made) = mpsc::channel();
            let launcher = self.launcher.clone();
            std::thread::spawn(move || {
                let made = before.map_or_else(|| launcher.park(uid_base), |slot| slot.wait(&launcher, uid_base));
                // Whoever wanted it may have ended.
                drop(tell.send(made));
            });
            self.parked.insert(uid_base, Slot::Coming(made));
        }
        Ok(())
    }

    fn adopt(&mut self) -> Result<Vec<(WorkloadId, u32)>, SandboxError> {
        let running = self.launcher.adopt()?;
        let ids = running.iter().map(|r| (r.id().clone(), r.incarnation())).collect();
        lock(&self.running).extend(running.into_iter().map(|r| (r.id().clone(), r)));
        Ok(ids)
    }

    fn stop(&mut self, id: &WorkloadId, grace: Duration) -> Result<(), SandboxError> {
        let running = lock(&self.running).remove(id);
        Ok(running.map_or(Ok(()), |running| running.stop(grace))?)
    }

    fn forget(&mut self, id: &WorkloadId, incarnation: u32) {
        let mut running = lock(&self.running);
        if running.get(id).is_some_and(|r| r.incarnation() == incarnation) {
            running.remove(id);
        }
    }

    fn facts(&self) -> Vec<(String, String)> {
        self.launcher.facts()
    }
}
