//! What of the plans and of what is reported belongs to no one operation: container instances, tokens for workloads,
//! records for the logs, VMs that ended by themselves.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use logs::{Entry, Journal, flows};
use model::{
    fault::Fault,
    id::WorkloadId,
    limits::{MINTS_MAX, RUN_RESTART_MAX, RUN_RESTART_MIN},
    planned::{
        edge::{EdgeItem, EdgeKey, FromProxy},
        guest::{FromGuest, ToGuest, Want},
        host::{FabricPlan, FromHost, SandboxEvent, ToHost},
    },
    time::Timestamp,
    vm,
};

use super::printed::Printed;
use crate::{
    dirty::Dirty,
    entries,
    instances::{Action, Event, Fleet, Tuning},
    joined::{Joined, TraceId},
    kind::{Kind, Record},
    operation::{Operation, OperationState},
    ops::{Change, Control},
    os_login, random, run,
    tokens::Mint,
    world::{Holder, SeatRecord, World},
};

pub struct Serving {
    fleet: Fleet,
    mint: Arc<Mint>,
    journal: Arc<Journal>,
    /// Asks for ID tokens that came before the first signing key.
    asks: Vec<FromGuest>,
    deaths: BTreeMap<WorkloadId, Death>,
    printed: Printed,
    /// Flows that wait for their traces.
    joined: Joined<Vec<Entry>>,
}

impl Serving {
    pub fn new(tuning: Tuning, mint: Arc<Mint>, journal: Arc<Journal>) -> Serving {
        let fleet = Fleet::new(tuning, Box::new(random::hex));
        Serving {
            fleet,
            mint,
            journal,
            asks: Vec::new(),
            deaths: BTreeMap::new(),
            printed: Printed::default(),
            joined: Joined::default(),
        }
    }

    /// Something beside the world changed on which plans depend.
    pub(super) fn is_dirty(&self) -> bool {
        !self.fleet.touched().is_empty()
    }

    /// What depends on it, since the last call.
    pub(super) fn dirty(&mut self) -> Dirty {
        let touched = self.fleet.take_touched();
        let fabric = !touched.is_empty();
        Dirty { fabric, edge: touched.into_iter().map(EdgeKey::Revision).collect(), ..Dirty::default() }
    }

    pub(super) fn fabric(&self, world: &World) -> FabricPlan {
        let mut fabric = self.fleet.fabric(world);
        for network in world.all::<model::vpc::Network>() {
            let id = model::id::NetworkId(network.id.0);
            fabric.sources.insert(id, crate::plan::source_prefix(id));
        }
        fabric
    }

    /// A service or a revision.
    pub(super) fn edge(&self, world: &World, key: &EdgeKey) -> Option<EdgeItem> {
        match key {
            EdgeKey::Service(key) => {
                let service = run::plan::service(world, world.services.get(key)?)?;
                Some(EdgeItem::Service(key.clone(), Box::new(service)))
            }
            EdgeKey::Revision(key) => {
                let revision = run::plan::revision(world, key, self.fleet.edge_instances(world, key))?;
                Some(EdgeItem::Revision(key.clone(), Box::new(revision)))
            }
            EdgeKey::Network(_) | EdgeKey::Listener(_) => None,
        }
    }

    pub(super) fn keys(&self) -> EdgeItem {
        EdgeItem::Keys(self.mint.public())
    }

    /// True when plans depend on something that changed beside the world.
    pub(super) fn proxy_says(&mut self, control: &Control, message: FromProxy) -> bool {
        let event = match message {
            FromProxy::Applied(_) => return false,
            FromProxy::Requests(records) => {
                let world = control.read();
                let entries: Vec<_> = records.iter().flat_map(|r| entries::request(&world, r)).collect();
                self.journal.append(&entries);
                let now = control.steady();
                for record in &records {
                    if let Some(connection) = entries::carried(&world, record) {
                        self.joined.request(connection, record, now);
                    }
                }
                return false;
            }
            FromProxy::Lost { records } => {
                eprintln!("control: the proxy lost {records} request records: its queue was full");
                return false;
            }
            FromProxy::Broken { instance, revision } => {
                eprintln!("control: {instance} of {revision} broke a connection");
                return false;
            }
            FromProxy::Demand { revision, waiting, in_flight } => Event::Demand { revision, waiting, in_flight },
            FromProxy::Probed { instance, outcome, .. } => {
                let said = self.printed.probed(&control.read(), &instance, &outcome, control.now());
                self.journal.append(said.as_slice());
                Event::Probed { instance, outcome }
            }
            FromProxy::Idle { instance, idle_ms, .. } => Event::Idle { instance, idle: Duration::from_millis(idle_ms) },
            FromProxy::Drained { instance } => Event::Drained { instance },
        };
        self.fleet_says(control, event)
    }

    pub(super) fn sandbox_says(
        &mut self,
        control: &Control,
        workload: &WorkloadId,
        incarnation: u32,
        event: SandboxEvent,
    ) -> bool {
        let said = self.printed.ended(&control.read(), workload, &event, control.now());
        self.journal.append(said.as_slice());
        let holder = control.read().seats.get(workload).map(|seat| (seat.incarnation, seat.holder.clone()));
        match holder {
            Some((_, Holder::Container { .. })) => {
                if let SandboxEvent::Failed { why } = &event {
                    eprintln!("control: {workload} could not be started: {why}");
                }
                self.fleet_says(control, Event::Sandbox { instance: workload.clone(), event })
            }
            Some((now, Holder::Vm(_))) if now == incarnation => {
                let began = match &event {
                    SandboxEvent::Started { .. } => true,
                    SandboxEvent::Exited { .. } => false,
                    SandboxEvent::Failed { why } => {
                        eprintln!("control: {workload} could not be started: {why}");
                        vm_not_started(control, workload, incarnation)
                    }
                };
                if !began {
                    let death = self.deaths.entry(workload.clone()).or_default();
                    death.again(incarnation, control.steady());
                    self.raise_vms(control);
                }
                false
            }
            Some((_, Holder::Vm(_))) | None => false,
        }
    }

    /// `later` makes what answers once the entries are on disk.
    pub(super) fn host_says<Then>(&mut self, control: &Control, message: FromHost, later: impl FnOnce(ToHost) -> Then)
    where
        Then: FnOnce() + Send + 'static,
    {
        match message {
            FromHost::Printed(batch) => {
                let (entries, answer) = self.printed.lines(&control.read(), batch, control.now());
                self.journal.append_then(&entries, later(answer));
            }
            FromHost::Flows(records) => {
                let world = control.read();
                let mut entries = Vec::new();
                for record in records {
                    let told = entries::flow(&world, &record, control.now());
                    match entries::carrier(&world, &record).filter(|_| !told.is_empty()) {
                        Some(connection) => {
                            let over = self.joined.hold(connection, record, told, control.steady());
                            entries.extend(over.into_iter().flat_map(with_traces));
                        }
                        None => entries.extend(told),
                    }
                }
                self.journal.append(&entries);
            }
            FromHost::Mapped(mapped) => {
                let world = control.read();
                for mapped in mapped {
                    let connection = world.connections.behind(mapped.network, *mapped.nat.ip());
                    let consumer = connection.map(|c| c.connection.consumer_network_id);
                    consumer.into_iter().for_each(|network| self.joined.mapped(network, &mapped, control.steady()));
                }
            }
            FromHost::Gap(gap) => self.journal.append(&entries::gap(&control.read(), &gap, control.now())),
            FromHost::Hello { .. }
            | FromHost::Observed { .. }
            | FromHost::Lacking { .. }
            | FromHost::Sandbox { .. } => {}
        }
    }

    pub(super) fn guest_asks(&mut self, control: &Control, message: FromGuest) -> Option<ToGuest> {
        match message {
            // Nobody may wait here. The guest does not wait for long either, so nothing lies here for ever.
            FromGuest::Mint { want: Want::IdToken { .. }, .. } if self.mint.try_ring().is_none() => {
                if self.asks.len() < MINTS_MAX {
                    self.asks.push(message);
                }
                None
            }
            FromGuest::Mint { ticket, seat, want } => {
                let outcome = self.mint.for_seat(&control.read(), seat, &want, control.now());
                Some(ToGuest::Minted { ticket, outcome })
            }
            FromGuest::Login { ticket, seat, question } => {
                let answer = os_login::answer(&control.read(), seat, &question, control.now());
                Some(ToGuest::Login { ticket, answer })
            }
            FromGuest::Applied(_) => None,
        }
    }

    /// Tells the activity log which operations have ended.
    pub(super) fn log_ends(&self, operations: &[Operation]) {
        self.journal.append(&operations.iter().filter_map(entries::ended).collect::<Vec<_>>());
    }

    /// Answers to what was asked before there was a key to sign with.
    pub(super) fn late_answers(&mut self, control: &Control) -> Vec<ToGuest> {
        let asks = std::mem::take(&mut self.asks);
        asks.into_iter().filter_map(|ask| self.guest_asks(control, ask)).collect()
    }

    pub(super) fn tick(&mut self, control: &Control) -> bool {
        self.raise_vms(control);
        let due = self.joined.due(control.steady());
        self.journal.append(&due.into_iter().flat_map(with_traces).collect::<Vec<_>>());
        self.printed.forget(&control.read(), control.now());
        self.fleet_says(control, Event::Look)
    }

    /// Now and then.
    pub(super) fn sweep(&mut self, control: &Control) {
        self.joined.forget(control.steady());
    }

    /// Starts again the VMs whose time has come.
    fn raise_vms(&mut self, control: &Control) {
        let now = control.steady();
        for (workload, death) in &mut self.deaths {
            if let Some(incarnation) = death.due(now) {
                vm_ended(control, workload, incarnation);
            }
        }
        self.deaths.retain(|_, death| now.since(death.last) < RUN_RESTART_MAX * 2);
    }

    /// Feeds the fleet and does what it decides. What cannot be stored is decided again at the next tick.
    pub(super) fn fleet_says(&mut self, control: &Control, event: Event) -> bool {
        let actions = self.fleet.on(event, &control.read(), control.steady());
        for action in &actions {
            if let Action::Stop(workload) = action {
                // Its last lines come when its seat is gone.
                self.printed.remember(&control.read(), workload, control.now());
            }
            match (act(control, action), action) {
                (Ok(()), Action::Start(seat, reason)) => {
                    let said = self.printed.started(&control.read(), &seat.workload, reason.text(), control.now());
                    self.journal.append(said.as_slice());
                }
                (Ok(()), _) => {}
                (Err(fault), _) => eprintln!("control: cannot carry out {action:?}: {fault}"),
            }
        }
        // A stored change rings by itself; a phase of an instance does not.
        !actions.is_empty()
    }
}

/// A flow's entries with the traces of the requests that it carried.
fn with_traces((mut entries, traces): (Vec<Entry>, Vec<TraceId>)) -> Vec<Entry> {
    let ids: Vec<_> = traces.iter().map(|trace| format!("{trace:032x}")).collect();
    entries.iter_mut().for_each(|entry| flows::put_traces(entry, &ids));
    entries
}

fn act(control: &Control, action: &Action) -> Result<(), Fault> {
    match action {
        Action::Start(seat, _) => commit(control, Change::Seat(Box::new(seat.clone()))),
        Action::Drain(_) => Ok(()),
        Action::Stop(workload) => commit(control, Change::NoSeat(workload.clone())),
        Action::RevisionReady(key) => run::revision_ready(control, key),
        Action::RevisionFailed { revision, reason, message } => {
            run::revision_failed(control, revision, reason, message)
        }
    }
}

fn commit(control: &Control, change: Change) -> Result<(), Fault> {
    control.commit(|_, txn| {
        txn.push(change.clone());
        Ok(())
    })?;
    Ok(())
}

/// How often a VM has ended lately. The first time it is started again at once; after that it waits, longer each time.
#[derive(Debug, Default)]
struct Death {
    times: u32,
    last: Timestamp,
    /// The incarnation to replace, and not before when.
    pending: Option<(u32, Timestamp)>,
}

impl Death {
    fn again(&mut self, incarnation: u32, now: Timestamp) {
        let wait = match self.times {
            0 => Duration::ZERO,
            n => RUN_RESTART_MIN.saturating_mul(1 << (n - 1).min(10)).min(RUN_RESTART_MAX),
        };
        *self = Death { times: self.times.saturating_add(1), last: now, pending: Some((incarnation, now.plus(wait))) };
    }

    /// The incarnation to replace now; said once.
    fn due(&mut self, now: Timestamp) -> Option<u32> {
        let (incarnation, _) = self.pending.filter(|(_, not_before)| *not_before <= now)?;
        self.pending = None;
        Some(incarnation)
    }
}

/// A VM that the machine could not start is gone if it was being made, and switched off if somebody was starting it;
/// whoever waits for that hears why. False when nobody waits: it had run before.
/// Source: Compute, an insert that fails leaves no instance.
fn vm_not_started(control: &Control, workload: &WorkloadId, incarnation: u32) -> bool {
    let decided = control.commit(|world, txn| {
        let Some(seat) = world.seats.get(workload).filter(|s| s.incarnation == incarnation) else { return Ok(true) };
        let Holder::Vm(link) = &seat.holder else { return Ok(true) };
        let waits = |o: &&Operation| matches!(o.verb.as_str(), "insert" | "start");
        let Some(operation) = world.running_on(link).find(waits) else { return Ok(false) };
        // What failed is the machine's business and stands in its log; users can only try again.
        let fault = Fault::internal("Internal error. Please try again or contact whoever operates this cloud.");
        let state = OperationState::Done { at: txn.now, fault: Some(fault) };
        txn.push(Change::Operation(Box::new(Operation { state, ..operation.clone() })));
        match world.get::<vm::Instance>(link) {
            Some(vm) if operation.verb == "start" => {
                let spec = vm::Instance { wanted: vm::Power::Off, ..vm.spec.clone() };
                txn.put(Record { spec, generation: vm.generation + 1, ..vm.clone() });
            }
            Some(vm) => {
                vm::Instance::retire(vm, world, txn)?;
                txn.push(Change::NoObject(link.clone()));
                txn.push(Change::NoPolicy(link.to_string()));
            }
            None => {}
        }
        Ok(true)
    });
    match decided {
        Ok((waited, _)) => {
            control.finished.notify_waiters();
            waited
        }
        Err(fault) => {
            eprintln!("control: cannot give up {workload}: {fault}");
            true
        }
    }
}

/// A VM whose pid 1 ended is started again, unless its owner said that it is not to be (`automaticRestart`).
pub(super) fn vm_ended(control: &Control, workload: &WorkloadId, incarnation: u32) {
    let decided = control.commit(|world, txn| {
        let Some(seat) = world.seats.get(workload).filter(|s| s.incarnation == incarnation) else { return Ok(()) };
        let Holder::Vm(link) = &seat.holder else { return Ok(()) };
        match world.get::<vm::Instance>(link) {
            Some(vm) if !vm.spec.automatic_restart => {
                let spec = vm::Instance { wanted: vm::Power::Off, ..vm.spec.clone() };
                txn.put(Record { spec, generation: vm.generation + 1, ..vm.clone() });
            }
            Some(_) | None => {
                let seat = SeatRecord { incarnation: seat.incarnation + 1, ..seat.clone() };
                txn.push(Change::Seat(Box::new(seat)));
            }
        }
        Ok(())
    });
    if let Err(fault) = decided {
        eprintln!("control: cannot restart {workload}: {fault}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vm_that_keeps_ending_is_started_again_later_each_time_up_to_a_limit() {
        let mut death = Death::default();
        let mut now = Timestamp::from_unix_s(1_000);
        let mut waits = Vec::new();
        for incarnation in 1..=14 {
            death.again(incarnation, now);
            let mut waited = 0;
            while death.due(now).is_none() {
                now = now.plus(Duration::from_secs(1));
                waited += 1;
            }
            waits.push(waited);
        }
        assert_eq!(waits[..5], [0, 1, 2, 4, 8]);
        assert_eq!(waits[13], RUN_RESTART_MAX.as_secs());
    }
}
