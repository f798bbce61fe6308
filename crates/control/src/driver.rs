//! The loop that makes the machine what the plans say, and says when it is.
//!
//! Every turn plans what the commits since the last one may have changed ([`crate::dirty`]), compares it with what each
//! process was last told, and sends the differences; to a process that came back, everything. An operation is done when
//! every cell and item that its commit changed has been confirmed by whoever holds it. Killing this loop leaves packets
//! and workloads as they are; a new one sends everything again, and the hands keep what already is so.

mod link;
mod look;
mod mirror;
mod printed;
mod serving;

use std::{collections::BTreeMap, path::Path, sync::Arc, time::Duration};

use tokio::time::Instant;

use model::{
    fault::Fault,
    id::{Generation, NetworkId, WorkloadId},
    limits::OPERATION_DEADLINE,
    planned::{
        edge::{EdgeItem, EdgeKey, FromProxy, ToProxy},
        guest::{FromGuest, GuestItem, GuestKey, Seat, ToGuest},
        host::{CellId, CellPlan, FromHost, ToHost, VpcPlan},
    },
    run::ServiceKey,
    time::Timestamp,
};

pub use self::serving::Serving;
use self::{
    link::{Event, Link},
    mirror::Mirror,
};
use crate::{
    dirty::Dirty,
    kinds::service_attachment,
    ops::{Change, Control},
    plan, run, sweep,
};

/// How often time itself is a reason to look again: quarantines end, keys rotate, instances have been idle for long.
const TICK: Duration = Duration::from_millis(500);

/// How often what is over is forgotten.
const SWEEP: Duration = Duration::from_secs(60);

/// What an operation still waits for.
#[derive(Debug)]
struct Waits {
    cells: BTreeMap<CellId, Generation>,
    proxy: Option<u64>,
    guest: Option<u64>,
    /// By the clock that nobody sets: patience is not a date.
    since: Instant,
}

pub struct Driver {
    control: Arc<Control>,
    settings: plan::Settings,
    serving: Serving,
    host: Link<ToHost, FromHost>,
    proxy: Link<ToProxy, FromProxy>,
    guest: Link<ToGuest, FromGuest>,
    /// Cells but those of VPCs.
    cells: Mirror<CellId, CellPlan>,
    vpcs: BTreeMap<NetworkId, VpcPlan>,
    generations: BTreeMap<CellId, Generation>,
    observed: BTreeMap<CellId, (Generation, Option<String>)>,
    /// A host that came back is being told everything.
    repeating: bool,
    /// NAT addresses that have been cut off, with the generation that drops their packets.
    cut: Vec<(CellId, Generation, ToProxy)>,
    edge: Mirror<EdgeKey, EdgeItem>,
    /// Where each workload was last said to sit.
    seated: BTreeMap<WorkloadId, Seat>,
    /// What is to be planned at the next turn beside what commits changed.
    again: Dirty,
    keys: Option<EdgeItem>,
    /// The proxy has heard that it was told everything.
    proxy_complete: bool,
    guests: Mirror<GuestKey, GuestItem>,
    marks: u64,
    proxy_applied: u64,
    guest_applied: u64,
    waits: BTreeMap<String, Waits>,
    /// Services that the proxy knows once it has applied this mark.
    settling: Vec<(u64, Vec<(ServiceKey, u64)>)>,
    /// When [`sweep`] last ran.
    swept: Instant,
}

impl Driver {
    /// Must be called inside a tokio runtime.
    pub fn new(control: Arc<Control>, run_dir: &Path, settings: plan::Settings, serving: Serving) -> Driver {
        Driver {
            control,
            settings,
            serving,
            host: Link::open(run_dir.join("host.sock")),
            proxy: Link::open(run_dir.join("proxy.sock")),
            guest: Link::open(run_dir.join("guest.sock")),
            cells: Mirror::new(),
            vpcs: BTreeMap::new(),
            generations: BTreeMap::new(),
            observed: BTreeMap::new(),
            repeating: false,
            cut: Vec::new(),
            edge: Mirror::new(),
            seated: BTreeMap::new(),
            // The first turn plans everything.
            again: Dirty { everything: true, ..Dirty::default() },
            keys: None,
            proxy_complete: false,
            guests: Mirror::new(),
            marks: 0,
            proxy_applied: 0,
            guest_applied: 0,
            waits: BTreeMap::new(),
            settling: Vec::new(),
            swept: Instant::now(),
        }
    }

    /// Runs until the process ends.
    pub async fn run(mut self) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let control = self.control.clone();
            let mut look = tokio::select! {
                () = control.changed.notified() => true,
                Some(event) = self.host.events.recv() => self.host_event(event),
                Some(event) = self.proxy.events.recv() => self.proxy_event(event),
                Some(event) = self.guest.events.recv() => self.guest_event(event),
                _ = tick.tick() => self.tick(),
            };
            // What has arrived meanwhile is one reason to look, not many.
            while let Ok(event) = self.host.events.try_recv() {
                look |= self.host_event(event);
            }
            while let Ok(event) = self.proxy.events.try_recv() {
                look |= self.proxy_event(event);
            }
            if look || self.serving.is_dirty() {
                self.look();
            }
            for answer in self.serving.late_answers(&control) {
                self.guest.send(answer);
            }
            self.finish();
        }
    }

    fn host_event(&mut self, event: Event<FromHost>) -> bool {
        self.host.note(&event);
        match event {
            Event::Up => {
                self.cells.forget();
                self.vpcs.clear();
                self.observed.clear();
                self.repeating = true;
                self.again.everything = true;
                self.look();
                self.remove_unplanned();
                self.repeating = false;
                self.host.send(ToHost::Complete);
                false
            }
            Event::Down => false,
            Event::Message(FromHost::Observed { cell, generation, fault }) => {
                if let Some(fault) = &fault {
                    eprintln!("control: {cell}: {fault}");
                }
                self.close_cut_clients(&cell, generation);
                self.observed.insert(cell, (generation, fault));
                false
            }
            Event::Message(FromHost::Lacking { cell }) => {
                self.lacking(&cell);
                true
            }
            Event::Message(FromHost::Sandbox { workload, incarnation, event }) => {
                self.serving.sandbox_says(&self.control, &workload, incarnation, event)
            }
            Event::Message(message) => {
                self.serving.host_says(&self.control, message, |answer| self.host.later(answer));
                false
            }
        }
    }

    fn proxy_event(&mut self, event: Event<FromProxy>) -> bool {
        self.proxy.note(&event);
        match event {
            Event::Up => {
                self.edge.forget();
                self.keys = None;
                self.again.everything = true;
                self.proxy_complete = false;
                self.look();
                self.mark_proxy();
                false
            }
            Event::Down => false,
            Event::Message(FromProxy::Applied(mark)) => {
                self.proxy_applied = self.proxy_applied.max(mark);
                false
            }
            Event::Message(message) => self.serving.proxy_says(&self.control, message),
        }
    }

    fn guest_event(&mut self, event: Event<FromGuest>) -> bool {
        self.guest.note(&event);
        match event {
            Event::Up => {
                self.guests.forget();
                self.seated.clear();
                self.again.everything = true;
                self.look();
                self.guest.send(ToGuest::Complete);
                self.mark_guest();
            }
            Event::Down => {}
            Event::Message(FromGuest::Applied(mark)) => self.guest_applied = self.guest_applied.max(mark),
            Event::Message(message) => {
                if let Some(answer) = self.serving.guest_asks(&self.control, message) {
                    self.guest.send(answer);
                }
            }
        }
        false
    }

    fn tick(&mut self) -> bool {
        let now = self.control.steady();
        self.end_quarantines(now);
        if self.swept.elapsed() > SWEEP {
            self.swept = Instant::now();
            self.serving.sweep(&self.control);
            if let Err(fault) = sweep::sweep(&self.control) {
                eprintln!("control: cannot forget what is over: {fault}");
            }
        }
        self.serving.tick(&self.control)
    }

    fn end_quarantines(&self, now: Timestamp) {
        if self.control.read().quarantine.over(now).next().is_none() {
            return;
        }
        let freed = self.control.commit(|world, txn| {
            for (network, address) in world.quarantine.over(now) {
                txn.push(Change::NoQuarantine(network, address));
            }
            service_attachment::relieve(world, txn);
            Ok(())
        });
        if let Err(fault) = freed {
            eprintln!("control: cannot end a quarantine: {fault}");
        }
    }

    /// Connections of an address that was cut off may still be open at the proxy. It closes them once their packets are
    /// dropped, or the consumer would hear their end.
    fn close_cut_clients(&mut self, cell: &CellId, now_at: Generation) {
        for (_, _, close) in self.cut.extract_if(.., |(of, since, _)| of == cell && *since <= now_at) {
            self.proxy.send(close);
        }
    }

    fn mark_proxy(&mut self) -> u64 {
        self.marks += 1;
        self.proxy.send(ToProxy::Mark(self.marks));
        self.marks
    }

    fn mark_guest(&mut self) -> u64 {
        self.marks += 1;
        self.guest.send(ToGuest::Mark(self.marks));
        self.marks
    }

    /// Ends the operations whose last confirmation has come, failed, or stayed away too long.
    fn finish(&mut self) {
        let applied = self.proxy_applied;
        for (_, services) in self.settling.extract_if(.., |(mark, _)| *mark <= applied) {
            if let Err(fault) = run::settle(&self.control, &services) {
                eprintln!("control: cannot settle services: {fault}");
            }
        }
        if self.waits.is_empty() {
            return;
        }
        let mut outcomes: Vec<(String, Option<Fault>)> = Vec::new();
        for (name, waits) in &self.waits {
            if let Some(outcome) = self.outcome(waits) {
                outcomes.push((name.clone(), outcome));
            }
        }
        if outcomes.is_empty() {
            return;
        }
        match self.control.finish(&outcomes) {
            Ok(()) => {
                for (name, _) in &outcomes {
                    self.waits.remove(name);
                }
            }
            // They stay open and are tried again at the next turn.
            Err(fault) => eprintln!("control: cannot finish operations: {fault}"),
        }
    }

    fn outcome(&self, waits: &Waits) -> Option<Option<Fault>> {
        let mut fault = None;
        let mut open =
            waits.proxy.is_some_and(|m| m > self.proxy_applied) || waits.guest.is_some_and(|m| m > self.guest_applied);
        for (cell, generation) in &waits.cells {
            match self.observed.get(cell) {
                Some((seen, why)) if seen >= generation => {
                    if let Some(why) = why {
                        fault = Some(Fault::internal(format!("The machine could not be changed: {cell}: {why}")));
                    }
                }
                _ => open = true,
            }
        }
        if !open {
            return Some(fault);
        }
        let late = waits.since.elapsed() > OPERATION_DEADLINE;
        late.then(|| Some(fault.unwrap_or_else(|| Fault::internal("The machine did not confirm the change in time."))))
    }
}

#[cfg(test)]
mod tests;
