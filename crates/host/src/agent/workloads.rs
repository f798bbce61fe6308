//! What the agent does about workloads: prepare, wire, launch; end, unwire, and what follows an end.

use std::{mem, os::fd::OwnedFd};

use model::{
    id::{Generation, WorkloadId},
    limits,
    planned::{
        guest::Realm,
        host::{Attach, CellId, FromHost, SandboxEvent, SandboxPlan},
    },
};

use super::{Agent, CellError, chain};
use crate::{
    netns::Netns,
    sandboxes::{Event, SandboxError, Sandboxes},
};

/// A workload as the agent knows it.
pub(super) struct Workload {
    incarnation: u32,
    /// Unknown of one that was adopted until control tells.
    pub(super) attach: Option<Attach>,
    pub(super) phase: Phase,
    /// The last word about it, said again to a control that connects anew.
    last: Option<SandboxEvent>,
}

pub(super) enum Phase {
    /// Being prepared and launched; and what is to follow should it be unwanted by then.
    Starting {
        generation: Generation,
        plan: Box<SandboxPlan>,
        then: Option<Then>,
    },
    Running,
    Stopping(Then),
    Ended,
}

/// What follows once a workload has ended.
pub(super) enum Then {
    Gone(Generation),
    Anew(Generation, Box<SandboxPlan>),
}

impl Workload {
    /// One that an earlier host process started.
    pub(super) fn adopted(incarnation: u32) -> Workload {
        Workload { incarnation, attach: None, phase: Phase::Running, last: None }
    }

    pub(super) fn is_running(&self) -> bool {
        matches!(self.phase, Phase::Running)
    }

    pub(super) fn attach(&self) -> Option<&Attach> {
        self.attach.as_ref()
    }
}

impl<S: Sandboxes> Agent<S> {
    pub(super) fn apply_workload(&mut self, id: WorkloadId, generation: Generation, plan: SandboxPlan) {
        let cell = CellId::Workload(id.clone());
        let Some(workload) = self.workloads.get_mut(&id) else {
            return self.start_workload(id, generation, plan);
        };
        if workload.incarnation == plan.incarnation {
            if let Phase::Starting { generation: awaited, then, .. } = &mut workload.phase {
                (*awaited, *then) = (generation, None);
                return;
            }
            workload.attach = Some(plan.attach);
            // One that has ended is not started again by the same incarnation; what was said about its end stands.
            let last = workload.last.clone();
            let incarnation = workload.incarnation;
            if let Some(event) = last {
                self.report(&FromHost::Sandbox { workload: id, incarnation, event });
            }
            return self.observed(cell, generation, Ok(()));
        }
        let anew = Then::Anew(generation, Box::new(plan));
        self.end_and_then(id, anew);
    }

    /// Ends what there is of the workload, now or as soon as that can be done; then does what follows.
    fn end_and_then(&mut self, id: WorkloadId, next: Then) {
        let Some(workload) = self.workloads.get_mut(&id) else { return };
        match &mut workload.phase {
            Phase::Ended => self.follow(id, next, Ok(())),
            Phase::Starting { then, .. } => *then = Some(next),
            Phase::Stopping(then) => *then = next,
            Phase::Running => {
                workload.phase = Phase::Stopping(next);
                let stopped = self.sandboxes.stop(&id, limits::RUN_STOP_GRACE).map_err(CellError::from);
                self.complain(CellId::Workload(id), stopped);
            }
        }
    }

    /// Nothing of the workload is there any more.
    fn follow(&mut self, id: WorkloadId, next: Then, outcome: Result<(), CellError>) {
        match next {
            Then::Gone(generation) => {
                self.workloads.remove(&id);
                self.observed(CellId::Workload(id), generation, outcome);
            }
            Then::Anew(generation, plan) => self.start_workload(id, generation, *plan),
        }
    }

    fn start_workload(&mut self, id: WorkloadId, generation: Generation, plan: SandboxPlan) {
        self.sandboxes.prepare(&id, &plan);
        let (incarnation, attach) = (plan.incarnation, Some(plan.attach.clone()));
        let phase = Phase::Starting { generation, plan: Box::new(plan), then: None };
        self.workloads.insert(id, Workload { incarnation, attach, phase, last: None });
    }

    /// The workload, if this incarnation of it is being started.
    fn starting(&mut self, id: &WorkloadId, incarnation: u32) -> Option<&mut Workload> {
        let starting = |w: &&mut Workload| w.incarnation == incarnation && matches!(w.phase, Phase::Starting { .. });
        self.workloads.get_mut(id).filter(starting)
    }

    pub(super) fn prepared(&mut self, id: WorkloadId, incarnation: u32, outcome: Result<OwnedFd, SandboxError>) {
        let Some(Workload { phase: Phase::Starting { plan, then, .. }, .. }) = self.starting(&id, incarnation) else {
            return;
        };
        let plan = plan.clone();
        if let Some(next) = then.take() {
            return self.unwanted(id, &plan, next);
        }
        let wired = outcome.map_err(CellError::from).and_then(|netns| {
            let inside = Netns::borrowed(format!("of {id}"), netns);
            Ok(self.hands.wire(&id, &plan.attach, inside)?)
        });
        match wired {
            Ok(()) => self.sandboxes.launch(&id, &plan),
            Err(error) => {
                self.sandboxes.discard(&plan);
                self.started(id, Err(error));
            }
        }
    }

    /// It was prepared in vain: something else is wanted by now, which may have use for it.
    fn unwanted(&mut self, id: WorkloadId, plan: &SandboxPlan, next: Then) {
        if !matches!(&next, Then::Anew(_, anew) if anew.uid_base == plan.uid_base) {
            self.sandboxes.discard(plan);
        }
        self.follow(id, next, Ok(()));
    }

    pub(super) fn launched(&mut self, id: WorkloadId, incarnation: u32, outcome: Result<(), SandboxError>) {
        match self.starting(&id, incarnation) {
            Some(_) => self.started(id, outcome.map_err(CellError::from)),
            // Its end was heard before.
            None => self.sandboxes.forget(&id, incarnation),
        }
    }

    /// The start is over: it runs, or it never will.
    fn started(&mut self, id: WorkloadId, outcome: Result<(), CellError>) {
        let Some(workload) = self.workloads.get_mut(&id) else { return };
        let runs = outcome.is_ok();
        let phase = if runs { Phase::Running } else { Phase::Ended };
        let before = mem::replace(&mut workload.phase, phase);
        let Phase::Starting { generation, then, .. } = before else { return };
        if let Err(error) = &outcome {
            let (incarnation, event) = (workload.incarnation, SandboxEvent::Failed { why: chain(error) });
            workload.last = Some(event.clone());
            self.report(&FromHost::Sandbox { workload: id.clone(), incarnation, event });
        }
        self.observed(CellId::Workload(id.clone()), generation, outcome);
        if let Some(next) = then {
            self.end_and_then(id, next);
        }
    }

    pub(super) fn remove_workload(&mut self, id: WorkloadId, generation: Generation) {
        if !self.workloads.contains_key(&id) {
            return self.observed(CellId::Workload(id), generation, Ok(()));
        }
        self.end_and_then(id, Then::Gone(generation));
    }

    pub(super) fn workload_event(&mut self, event: Event) {
        let Event { workload: id, incarnation, event } = event;
        self.report(&FromHost::Sandbox { workload: id.clone(), incarnation, event: event.clone() });
        let Some(workload) = self.workloads.get_mut(&id).filter(|w| w.incarnation == incarnation) else { return };
        workload.last = Some(event.clone());
        match event {
            SandboxEvent::Started { .. } => {}
            SandboxEvent::Failed { .. } | SandboxEvent::Exited { .. } => self.ended(id),
        }
    }

    fn ended(&mut self, id: WorkloadId) {
        self.printed.ended(id.clone());
        let Some(workload) = self.workloads.get_mut(&id) else { return };
        let phase = mem::replace(&mut workload.phase, Phase::Ended);
        let (incarnation, realm) = (workload.incarnation, workload.attach.as_ref().map(realm_of));
        self.sandboxes.forget(&id, incarnation);
        let unwired = realm.map_or(Ok(()), |realm| self.hands.unwire(&id, realm)).map_err(CellError::from);
        match phase {
            Phase::Running | Phase::Ended => self.complain(CellId::Workload(id), unwired),
            Phase::Stopping(next) => self.follow(id, next, unwired),
            // It ended before we heard that it had started.
            Phase::Starting { generation, then, .. } => {
                self.observed(CellId::Workload(id.clone()), generation, unwired);
                if let Some(next) = then {
                    self.end_and_then(id, next);
                }
            }
        }
    }
}

fn realm_of(attach: &Attach) -> Realm {
    match attach {
        Attach::Vpc { network, .. } => Realm::Vpc(*network),
        Attach::Fabric(_) => Realm::Fabric,
    }
}
