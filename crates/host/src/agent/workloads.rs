//! What the agent does about workloads: prepare, wire, launch; end, unwire, and what follows an end.

use std::mem;

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
    sandboxes::{Event, Sandboxes},
};

/// A workload as the agent knows it.
pub(super) struct Workload {
    incarnation: u32,
    /// Unknown of one that was adopted until control tells.
    attach: Option<Attach>,
    phase: Phase,
    /// The last word about it, said again to a control that connects anew.
    last: Option<SandboxEvent>,
}

enum Phase {
    Running,
    Stopping(Then),
    Ended,
}

/// What follows once a workload has ended.
enum Then {
    Gone(Generation),
    Anew(Generation, Box<SandboxPlan>),
}

impl Workload {
    /// One that an earlier host process started.
    pub(super) fn adopted(incarnation: u32) -> Workload {
        Workload { incarnation, attach: None, phase: Phase::Running, last: None }
    }
}

impl<S: Sandboxes> Agent<S> {
    pub(super) fn apply_workload(&mut self, id: WorkloadId, generation: Generation, plan: SandboxPlan) {
        let cell = CellId::Workload(id.clone());
        let Some(workload) = self.workloads.get_mut(&id) else {
            return self.launch(id, generation, plan);
        };
        if workload.incarnation == plan.incarnation {
            workload.attach = Some(plan.attach);
            // One that has ended is not started again by the same incarnation; what was said about its end stands.
            let last = workload.last.clone();
            let incarnation = workload.incarnation;
            if let Some(event) = last {
                self.report(FromHost::Sandbox { workload: id, incarnation, event });
            }
            return self.observed(cell, generation, Ok(()));
        }
        match workload.phase {
            Phase::Ended => self.launch(id, generation, plan),
            Phase::Running => {
                workload.phase = Phase::Stopping(Then::Anew(generation, Box::new(plan)));
                let stopped = self.sandboxes.stop(&id, limits::RUN_STOP_GRACE).map_err(CellError::from);
                self.complain(cell, stopped);
            }
            Phase::Stopping(_) => workload.phase = Phase::Stopping(Then::Anew(generation, Box::new(plan))),
        }
    }

    fn launch(&mut self, id: WorkloadId, generation: Generation, plan: SandboxPlan) {
        let incarnation = plan.incarnation;
        let attach = Some(plan.attach.clone());
        let outcome = self.try_launch(&id, &plan);
        let (phase, last) = match &outcome {
            Ok(()) => (Phase::Running, None),
            Err(error) => {
                let event = SandboxEvent::Failed { why: chain(error) };
                self.report(FromHost::Sandbox { workload: id.clone(), incarnation, event: event.clone() });
                (Phase::Ended, Some(event))
            }
        };
        self.workloads.insert(id.clone(), Workload { incarnation, attach, phase, last });
        self.observed(CellId::Workload(id), generation, outcome);
    }

    fn try_launch(&mut self, id: &WorkloadId, plan: &SandboxPlan) -> Result<(), CellError> {
        let inside = Netns::borrowed(format!("of {id}"), self.sandboxes.prepare(plan.uid_base)?);
        self.hands.wire(id, &plan.attach, inside)?;
        Ok(self.sandboxes.launch(id, plan)?)
    }

    pub(super) fn remove_workload(&mut self, id: WorkloadId, generation: Generation) {
        let cell = CellId::Workload(id.clone());
        let Some(workload) = self.workloads.get_mut(&id) else {
            return self.observed(cell, generation, Ok(()));
        };
        match workload.phase {
            Phase::Ended => {
                self.workloads.remove(&id);
                self.observed(cell, generation, Ok(()));
            }
            Phase::Running => {
                workload.phase = Phase::Stopping(Then::Gone(generation));
                let stopped = self.sandboxes.stop(&id, limits::RUN_STOP_GRACE).map_err(CellError::from);
                self.complain(cell, stopped);
            }
            Phase::Stopping(_) => workload.phase = Phase::Stopping(Then::Gone(generation)),
        }
    }

    pub(super) fn workload_event(&mut self, event: Event) {
        let Event { workload: id, incarnation, event } = event;
        self.report(FromHost::Sandbox { workload: id.clone(), incarnation, event: event.clone() });
        let Some(workload) = self.workloads.get_mut(&id).filter(|w| w.incarnation == incarnation) else { return };
        workload.last = Some(event.clone());
        match event {
            SandboxEvent::Started { .. } => {}
            SandboxEvent::Failed { .. } | SandboxEvent::Exited { .. } => self.ended(id),
        }
    }

    fn ended(&mut self, id: WorkloadId) {
        self.sandboxes.forget(&id);
        let Some(workload) = self.workloads.get_mut(&id) else { return };
        let phase = mem::replace(&mut workload.phase, Phase::Ended);
        let realm = workload.attach.as_ref().map(realm_of);
        let unwired = realm.map_or(Ok(()), |realm| self.hands.unwire(&id, realm)).map_err(CellError::from);
        let cell = CellId::Workload(id.clone());
        match phase {
            Phase::Running | Phase::Ended => self.complain(cell, unwired),
            Phase::Stopping(Then::Gone(generation)) => {
                self.workloads.remove(&id);
                self.observed(cell, generation, unwired);
            }
            Phase::Stopping(Then::Anew(generation, plan)) => self.launch(id, generation, *plan),
        }
    }
}

fn realm_of(attach: &Attach) -> Realm {
    match attach {
        Attach::Vpc { network, .. } => Realm::Vpc(*network),
        Attach::Fabric(_) => Realm::Fabric,
    }
}
