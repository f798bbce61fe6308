//! The loop that makes the machine what the plans say, and says when it is.
//!
//! It takes no hint but "look again": every turn plans from the whole world, compares with what each process was last
//! told, and sends the differences. An operation is done when every cell and item that its commit changed has been
//! confirmed by whoever holds it. Killing this loop leaves packets and workloads as they are; a new one sends everything
//! again, and the hands keep what already is so.

mod link;
mod mirror;
mod printed;
mod serving;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;

use model::{
    fault::Fault,
    id::{Generation, NetworkId},
    limits::OPERATION_DEADLINE,
    planned::{
        edge::{EdgeItem, EdgeKey, FromProxy, ToProxy},
        guest::{FromGuest, GuestItem, GuestKey, Realm, ToGuest},
        host::{CellId, CellPlan, FromHost, ToHost, VpcChange},
    },
    run::ServiceKey,
    time::Timestamp,
    vpc,
};

pub use self::serving::Serving;
use self::{
    link::{Event, Link},
    mirror::{Delta, Mirror},
};
use crate::{
    kinds::service_attachment,
    ops::{Change, Control},
    plan, run, sweep,
    world::{Holder, World},
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
    cells: Mirror<CellId, CellPlan>,
    generations: BTreeMap<CellId, Generation>,
    observed: BTreeMap<CellId, (Generation, Option<String>)>,
    /// A host that came back is being told everything.
    repeating: bool,
    /// NAT addresses that have been cut off, with the generation that drops their packets.
    cut: Vec<(CellId, Generation, ToProxy)>,
    edge: Mirror<EdgeKey, EdgeItem>,
    keys: Option<EdgeItem>,
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
            generations: BTreeMap::new(),
            observed: BTreeMap::new(),
            repeating: false,
            cut: Vec::new(),
            edge: Mirror::new(),
            keys: None,
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
            if look {
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
                self.observed.clear();
                self.repeating = true;
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
                self.cells.forget_one(&cell);
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
                self.look();
                self.proxy.send(ToProxy::Complete);
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
            if let Err(fault) = sweep::sweep(&self.control) {
                eprintln!("control: cannot forget what is over: {fault}");
            }
        }
        self.serving.tick(&self.control)
    }

    fn end_quarantines(&self, now: Timestamp) {
        let over = |world: &World| world.quarantine.iter().any(|(_, q)| q.is_over(now));
        if !over(&self.control.read()) {
            return;
        }
        let freed = self.control.commit(|world, txn| {
            for ((network, address), q) in &world.quarantine {
                if q.is_over(now) {
                    txn.push(Change::NoQuarantine(*network, *address));
                }
            }
            service_attachment::relieve(world, txn);
            Ok(())
        });
        if let Err(fault) = freed {
            eprintln!("control: cannot end a quarantine: {fault}");
        }
    }

    /// Plans, compares, sends, and notes which operations wait for what was sent.
    fn look(&mut self) {
        let control = self.control.clone();
        // The world first: an operation must not begin to wait before what it changed is in the plans.
        let world = control.read();
        let changes = control.take_touched();
        self.serving.log_ends(&changes);
        let sent_cells = self.send_cells(&world);
        let sent_edge = self.send_edge(&world);
        let sent_guests = self.send_guests(&world);
        let started: Vec<String> = if self.waits.is_empty() && changes.is_empty() {
            running(&world).collect()
        } else {
            let names = changes.iter().filter_map(|c| match c {
                Change::Operation(o) if !o.is_done() => Some(o.name.clone()),
                _ => None,
            });
            names.collect()
        };
        let unsettled = run::unsettled(&world);
        let news = !unsettled.is_empty() && self.settling.last().is_none_or(|(_, last)| *last != unsettled);
        let proxy = (sent_edge || news).then(|| self.mark_proxy());
        if news && let Some(mark) = proxy {
            self.settling.push((mark, unsettled));
        }
        let guest = sent_guests.then(|| self.mark_guest());
        for name in started {
            let since = Instant::now();
            self.waits.entry(name).or_insert_with(|| Waits { cells: sent_cells.clone(), proxy, guest, since });
        }
    }

    fn send_cells(&mut self, world: &World) -> BTreeMap<CellId, Generation> {
        let mut want: BTreeMap<CellId, CellPlan> = BTreeMap::new();
        for network in world.all::<vpc::Network>() {
            let plan = plan::vpc(world, network, &self.settings);
            want.insert(CellId::Vpc(NetworkId(network.id.0)), CellPlan::Vpc(plan));
        }
        for seat in world.seats.values() {
            if let Holder::Vm(_) = seat.holder
                && let Some(plan) = plan::vm(world, seat)
            {
                want.insert(CellId::Workload(seat.workload.clone()), CellPlan::Workload(plan));
            }
        }
        want.extend(self.serving.cells(world));
        if !self.host.is_up() {
            // Sent when it is back; until then whoever asked for these waits.
            return self.cells.pending(&want).map(|cell| (cell.clone(), Generation(world.revision))).collect();
        }
        let cut = self.newly_cut(&want);
        let mut sent = BTreeMap::new();
        for delta in self.cells.update(want) {
            let (cell, message) = match delta {
                Delta::Set(cell, plan, before) => {
                    let from = self.generations.get(&cell).copied().unwrap_or_default();
                    let generation = self.generation(&cell, world);
                    let message = match (&cell, &plan, before) {
                        (CellId::Vpc(network), CellPlan::Vpc(plan), Some(CellPlan::Vpc(before))) => {
                            let change = Box::new(VpcChange::between(&before, plan));
                            ToHost::Change { network: *network, from, generation, change }
                        }
                        _ => ToHost::Apply { cell: cell.clone(), generation, plan: Box::new(plan) },
                    };
                    (cell, message)
                }
                Delta::Unset(cell) => {
                    let generation = self.generation(&cell, world);
                    (cell.clone(), ToHost::Remove { cell, generation })
                }
            };
            sent.insert(cell.clone(), self.generations[&cell]);
            self.host.send(message);
        }
        self.cut.extend(cut.into_iter().map(|(cell, close)| (cell.clone(), self.generations[&cell], close)));
        sent
    }

    /// Tells a host that is back which cells should be gone by now, as far as somebody waits for that: they went while it
    /// was away, or it went before it could say so. It would remove them without a word.
    fn remove_unplanned(&mut self) {
        let control = self.control.clone();
        let world = control.read();
        let waited = self.waits.values().flat_map(|waits| waits.cells.keys());
        let gone: BTreeSet<CellId> = waited.filter(|cell| self.cells.get(cell).is_none()).cloned().collect();
        for cell in gone {
            let generation = self.generation(&cell, &world);
            self.host.send(ToHost::Remove { cell, generation });
        }
    }

    /// Generations follow the store's revision, so that they keep growing over restarts; a plan that changes for another
    /// reason than a commit gets the next number.
    ///
    /// What is only said again keeps its number: a host that came back often must not have seen numbers that the next
    /// control, which counts from the revision, could not reach.
    fn generation(&mut self, cell: &CellId, world: &World) -> Generation {
        let last = self.generations.entry(cell.clone()).or_default();
        let least = if self.repeating { *last } else { last.next() };
        *last = Generation(world.revision).max(least);
        *last
    }

    /// NAT addresses that these plans cut off and the last ones did not; of a cell that has to be told everything, all.
    fn newly_cut(&self, want: &BTreeMap<CellId, CellPlan>) -> Vec<(CellId, ToProxy)> {
        let mut cut = Vec::new();
        for (cell, plan) in want {
            let (CellId::Vpc(network), CellPlan::Vpc(plan)) = (cell, plan) else { continue };
            let before = self.cells.get(cell);
            for peer in &plan.cut {
                if !matches!(before, Some(CellPlan::Vpc(before)) if before.cut.contains(peer)) {
                    cut.push((cell.clone(), ToProxy::CloseClients { network: *network, peer: *peer }));
                }
            }
        }
        cut
    }

    /// Connections of an address that was cut off may still be open at the proxy. It closes them once their packets are
    /// dropped, or the consumer would hear their end.
    fn close_cut_clients(&mut self, cell: &CellId, now_at: Generation) {
        for (_, _, close) in self.cut.extract_if(.., |(of, since, _)| of == cell && *since <= now_at) {
            self.proxy.send(close);
        }
    }

    fn send_edge(&mut self, world: &World) -> bool {
        let mut want = self.serving.edge(world);
        for (id, listener) in plan::listeners(world) {
            want.insert(EdgeKey::Listener(id), EdgeItem::Listener(id, Box::new(listener)));
        }
        for network in world.all::<vpc::Network>() {
            let id = NetworkId(network.id.0);
            want.insert(EdgeKey::Network(id), EdgeItem::Network(id, plan::source_prefix(id)));
        }
        if !self.proxy.is_up() {
            return self.edge.pending(&want).next().is_some();
        }
        let keys = self.serving.keys();
        let mut sent = false;
        if self.keys.as_ref() != Some(&keys) {
            self.proxy.send(ToProxy::Set(keys.clone()));
            self.keys = Some(keys);
            sent = true;
        }
        for delta in self.edge.update(want) {
            self.proxy.send(match delta {
                Delta::Set(_, item, _) => ToProxy::Set(item),
                Delta::Unset(key) => ToProxy::Unset(key),
            });
            sent = true;
        }
        sent
    }

    fn send_guests(&mut self, world: &World) -> bool {
        let mut want = self.serving.guests(world);
        for seat in world.seats.values() {
            if let Some((seat, identity)) = plan::vm_identity(world, seat) {
                want.insert(GuestKey::Workload(seat), GuestItem::Workload(seat, Box::new(identity)));
            }
        }
        for network in world.all::<vpc::Network>() {
            let realm = Realm::Vpc(NetworkId(network.id.0));
            want.insert(GuestKey::Names(realm), GuestItem::Names(realm, plan::names(world, &network.link)));
        }
        if !self.guest.is_up() {
            return self.guests.pending(&want).next().is_some();
        }
        let deltas = self.guests.update(want);
        let sent = !deltas.is_empty();
        for delta in deltas {
            self.guest.send(match delta {
                Delta::Set(_, item, _) => ToGuest::Set(item),
                Delta::Unset(key) => ToGuest::Unset(key),
            });
        }
        sent
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

fn running(world: &World) -> impl Iterator<Item = String> + '_ {
    world.operations.values().filter(|o| !o.is_done()).map(|o| o.name.clone())
}

#[cfg(test)]
mod tests;
