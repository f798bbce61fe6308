//! What the agent asks of whatever runs workloads, so that it can be tested without running any. The real one is
//! [`Launched`], over the `sandbox` crate.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    os::fd::OwnedFd,
    sync::mpsc,
    time::Duration,
};

use model::{id::WorkloadId, planned::host::SandboxPlan};
use sandbox::{Launcher, Parked, Running};

pub use sandbox::Event;

#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    #[error(transparent)]
    Sandbox(#[from] sandbox::Error),
    #[error("cannot keep a workload's network namespace open")]
    Namespace { source: io::Error },
    #[error("no sandbox was prepared for uids from {uid_base}")]
    Unprepared { uid_base: u32 },
}

/// Starts in two steps: [`Sandboxes::prepare`] gives the network namespace, born together with the sandbox's user
/// namespace, for us to wire; [`Sandboxes::launch`] runs the workload in it. Ends come as events.
pub trait Sandboxes {
    fn prepare(&mut self, uid_base: u32) -> Result<OwnedFd, SandboxError>;
    fn launch(&mut self, id: &WorkloadId, plan: &SandboxPlan) -> Result<(), SandboxError>;
    /// Keeps a prepared sandbox for each of these and no others.
    fn keep_parked(&mut self, uid_bases: &BTreeSet<u32>) -> Result<(), SandboxError>;
    /// What runs already, with its incarnation.
    fn adopt(&mut self) -> Result<Vec<(WorkloadId, u32)>, SandboxError>;
    /// SIGTERM now, SIGKILL after `grace`; nothing happens when it is gone.
    fn stop(&mut self, id: &WorkloadId, grace: Duration) -> Result<(), SandboxError>;
    /// Its end was heard: nothing of it is there any more, and its uids are free.
    fn forget(&mut self, id: &WorkloadId);
    /// What this machine can enforce.
    fn facts(&self) -> Vec<(String, String)>;
}

/// A sandbox kept ready. Making one takes milliseconds, mostly of waiting for the kernel, so a thread of its own does it.
enum Slot {
    Ready(Parked),
    Coming(mpsc::Receiver<Result<Parked, sandbox::Error>>),
}

/// Sandboxes with a shim each.
pub struct Launched {
    launcher: Launcher,
    parked: BTreeMap<u32, Slot>,
    running: BTreeMap<WorkloadId, Running>,
}

impl Launched {
    pub fn new(config: sandbox::Config, events: mpsc::Sender<sandbox::Event>) -> Result<Launched, SandboxError> {
        let launcher = Launcher::new(config, events)?;
        launcher.sweep()?;
        Ok(Launched { launcher, parked: BTreeMap::new(), running: BTreeMap::new() })
    }
}

impl Sandboxes for Launched {
    fn prepare(&mut self, uid_base: u32) -> Result<OwnedFd, SandboxError> {
        let parked = match self.parked.remove(&uid_base) {
            Some(Slot::Ready(parked)) => parked,
            // A maker that died without an answer has made nothing.
            Some(Slot::Coming(made)) => match made.recv() {
                Ok(made) => made?,
                Err(mpsc::RecvError) => self.launcher.park(uid_base)?,
            },
            None => self.launcher.park(uid_base)?,
        };
        let netns = parked.netns().try_clone_to_owned().map_err(|source| SandboxError::Namespace { source })?;
        self.parked.insert(uid_base, Slot::Ready(parked));
        Ok(netns)
    }

    fn launch(&mut self, id: &WorkloadId, plan: &SandboxPlan) -> Result<(), SandboxError> {
        let uid_base = plan.uid_base;
        let Some(Slot::Ready(parked)) = self.parked.remove(&uid_base) else {
            return Err(SandboxError::Unprepared { uid_base });
        };
        self.running.insert(id.clone(), parked.launch(id, plan)?);
        Ok(())
    }

    fn keep_parked(&mut self, uid_bases: &BTreeSet<u32>) -> Result<(), SandboxError> {
        let unwanted: Vec<u32> = self.parked.keys().filter(|u| !uid_bases.contains(u)).copied().collect();
        let unwanted: Vec<Slot> = unwanted.iter().filter_map(|u| self.parked.remove(u)).collect();
        if !unwanted.is_empty() {
            // Unmaking waits for the kernel, too.
            std::thread::spawn(move || drop(unwanted));
        }
        let used: BTreeSet<u32> = self.running.values().map(Running::uid_base).collect();
        for uid_base in uid_bases.difference(&used).copied() {
            if !self.parked.contains_key(&uid_base) {
                let (tell, made) = mpsc::channel();
                let launcher = self.launcher.clone();
                std::thread::spawn(move || tell.send(launcher.park(uid_base)));
                self.parked.insert(uid_base, Slot::Coming(made));
            }
        }
        Ok(())
    }

    fn adopt(&mut self) -> Result<Vec<(WorkloadId, u32)>, SandboxError> {
        let running = self.launcher.adopt()?;
        let ids = running.iter().map(|r| (r.id().clone(), r.incarnation())).collect();
        self.running.extend(running.into_iter().map(|r| (r.id().clone(), r)));
        Ok(ids)
    }

    fn stop(&mut self, id: &WorkloadId, grace: Duration) -> Result<(), SandboxError> {
        match self.running.remove(id) {
            Some(running) => Ok(running.stop(grace)?),
            None => Ok(()),
        }
    }

    fn forget(&mut self, id: &WorkloadId) {
        self.running.remove(id);
    }

    fn facts(&self) -> Vec<(String, String)> {
        self.launcher.facts()
    }
}
