//! Which instance takes a request: room, queue, demand. Knows no HTTP.
//!
//! The numbers are exact because a [`Slot`] is the only right to use an instance, and dropping it gives the place to
//! whoever has waited longest. Start with [`Revision::slot`].

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    rc::Rc,
    time::{Duration, Instant},
};

use model::{
    id::WorkloadId,
    limits::RUN_QUEUE_MAX,
    planned::edge::{EdgeInstance, EdgeRevision, FromProxy, InstancePhase, ProbeOutcome},
    run::{Probe, RevisionKey},
};
use tokio::{sync::oneshot, task::AbortHandle, time::timeout};

use crate::{
    outbox::Outbox,
    probe,
    upstream::{Family, Pool},
};

/// Why a request gets no instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoSlot {
    #[error("nothing became free in time")]
    TimedOut,
    #[error("too many requests are waiting already")]
    QueueFull,
    #[error("the revision cannot start instances")]
    Failed,
}

/// A revision with its instances and the requests that wait for them.
pub struct Revision {
    pub key: RevisionKey,
    plan: RefCell<Rc<Plan>>,
    instances: RefCell<Vec<Rc<Instance>>>,
    queue: RefCell<VecDeque<oneshot::Sender<Result<Slot, NoSlot>>>>,
    waiting: Cell<u32>,
    in_flight: Cell<u32>,
    outbox: Rc<Outbox>,
    /// The outbox's notes: whether a demand is due and when the last was said.
    pub(crate) demand_queued: Cell<bool>,
    pub(crate) demand_said: Cell<Option<Instant>>,
}

struct Plan {
    concurrency: u32,
    timeout: Duration,
    probe: Probe,
    queue_wait: Duration,
    can_start: bool,
}

/// One instance, its load and its connections.
pub struct Instance {
    pub id: WorkloadId,
    address: RefCell<EdgeInstance>,
    /// Serves: the probe succeeded or control says so.
    ready: Cell<bool>,
    /// Served once and refuses connections now.
    lost: Cell<bool>,
    pub family: Cell<Option<Family>>,
    pub pool: Pool,
    in_flight: Cell<u32>,
    idle_since: Cell<Instant>,
    idle_said: Cell<Option<Instant>>,
    probed: RefCell<Option<ProbeOutcome>>,
    probing: RefCell<Option<AbortHandle>>,
}

/// The right to send one request to an instance.
pub struct Slot {
    revision: Rc<Revision>,
    pub instance: Rc<Instance>,
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.revision.release(&self.instance);
    }
}

struct Waiting<'a>(&'a Rc<Revision>);

impl<'a> Waiting<'a> {
    fn begin(revision: &'a Rc<Revision>) -> Waiting<'a> {
        revision.waiting.set(revision.waiting.get() + 1);
        revision.outbox.demand(revision);
        Waiting(revision)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let left = self.0.waiting.get() - 1;
        self.0.waiting.set(left);
        self.0.outbox.demand(self.0);
        // Those who gave up in the middle of the queue may not pile up behind one who waits long.
        let mut queue = self.0.queue.borrow_mut();
        if queue.len() > 64 && queue.len() / 2 > usize::try_from(left).unwrap_or(usize::MAX) {
            queue.retain(|sender| !sender.is_closed());
        }
    }
}

impl Revision {
    pub fn new(key: RevisionKey, plan: EdgeRevision, outbox: Rc<Outbox>) -> Rc<Revision> {
        let revision = Rc::new(Revision {
            key,
            plan: RefCell::new(Rc::new(Plan::of(&plan))),
            instances: RefCell::default(),
            queue: RefCell::default(),
            waiting: Cell::new(0),
            in_flight: Cell::new(0),
            outbox,
            demand_queued: Cell::new(false),
            demand_said: Cell::new(None),
        });
        revision.set(plan);
        revision
    }

    pub fn waiting(&self) -> u32 {
        self.waiting.get()
    }

    pub fn in_flight(&self) -> u32 {
        self.in_flight.get()
    }

    pub fn timeout(&self) -> Duration {
        self.plan.borrow().timeout
    }

    /// A place at an instance, at once or when one becomes free.
    pub async fn slot(self: &Rc<Self>) -> Result<Slot, NoSlot> {
        self.forget_who_left();
        if self.queue.borrow().is_empty()
            && let Some(slot) = self.take()
        {
            return Ok(slot);
        }
        let plan = self.plan.borrow().clone();
        if !plan.can_start && self.instances.borrow().is_empty() {
            return Err(NoSlot::Failed);
        }
        if usize::try_from(self.waiting.get()).unwrap_or(usize::MAX) >= RUN_QUEUE_MAX {
            return Err(NoSlot::QueueFull);
        }
        let (sender, receiver) = oneshot::channel();
        self.queue.borrow_mut().push_back(sender);
        let _waiting = Waiting::begin(self);
        match timeout(plan.queue_wait, receiver).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(NoSlot::Failed),
            Err(_) => Err(NoSlot::TimedOut),
        }
    }

    /// The least loaded instance with room.
    fn take(self: &Rc<Self>) -> Option<Slot> {
        let room = self.plan.borrow().concurrency;
        let instances = self.instances.borrow();
        let open = instances.iter().filter(|i| i.is_open() && i.in_flight.get() < room);
        let instance = open.min_by_key(|i| i.in_flight.get())?.clone();
        drop(instances);
        instance.in_flight.set(instance.in_flight.get() + 1);
        self.in_flight.set(self.in_flight.get() + 1);
        self.outbox.demand(self);
        Some(Slot { revision: self.clone(), instance })
    }

    fn release(self: &Rc<Self>, instance: &Rc<Instance>) {
        instance.in_flight.set(instance.in_flight.get() - 1);
        self.in_flight.set(self.in_flight.get() - 1);
        self.outbox.demand(self);
        if instance.in_flight.get() == 0 {
            instance.idle_since.set(Instant::now());
            instance.idle_said.set(None);
            self.say_if_drained(instance);
        }
        self.dispatch();
    }

    fn forget_who_left(&self) {
        let mut queue = self.queue.borrow_mut();
        while queue.front().is_some_and(oneshot::Sender::is_closed) {
            queue.pop_front();
        }
    }

    /// Gives free places to those who wait, in their order.
    fn dispatch(self: &Rc<Self>) {
        loop {
            self.forget_who_left();
            if self.queue.borrow().is_empty() {
                return;
            }
            let Some(slot) = self.take() else { return };
            let next = self.queue.borrow_mut().pop_front();
            // Whoever left since the last look drops the slot, which dispatches again.
            if let Some(sender) = next {
                let _ = sender.send(Ok(slot));
            }
        }
    }

    /// Replaces the plan. Levels are said again: control may be a new process.
    pub fn set(self: &Rc<Self>, plan: EdgeRevision) {
        *self.plan.borrow_mut() = Rc::new(Plan::of(&plan));
        let known = std::mem::take(&mut *self.instances.borrow_mut());
        let mut now = Vec::with_capacity(plan.instances.len());
        for (id, address) in plan.instances {
            let instance = match known.iter().find(|i| i.id == id) {
                Some(instance) => instance.clone(),
                None => Rc::new(Instance::new(id, address.clone())),
            };
            *instance.address.borrow_mut() = address;
            now.push(instance);
        }
        for gone in known.iter().filter(|i| !now.iter().any(|n| n.id == i.id)) {
            gone.retire();
        }
        *self.instances.borrow_mut() = now.clone();
        for instance in &now {
            self.follow(instance);
        }
        self.dispatch();
        self.outbox.demand(self);
        self.fail_who_waits_in_vain();
    }

    /// Lets go of everything; requests that run keep their instance until they end.
    pub fn retire(self: &Rc<Self>) {
        for instance in self.instances.borrow_mut().drain(..) {
            instance.retire();
        }
        for sender in self.queue.borrow_mut().drain(..) {
            let _ = sender.send(Err(NoSlot::Failed));
        }
    }

    fn fail_who_waits_in_vain(&self) {
        if self.plan.borrow().can_start || !self.instances.borrow().is_empty() {
            return;
        }
        for sender in self.queue.borrow_mut().drain(..) {
            let _ = sender.send(Err(NoSlot::Failed));
        }
    }

    fn follow(self: &Rc<Self>, instance: &Rc<Instance>) {
        let phase = instance.address.borrow().phase;
        match phase {
            InstancePhase::Starting => {
                let said = instance.probed.borrow().clone();
                match said {
                    Some(outcome) => self.say_probed(instance, outcome),
                    None => self.start_probe(instance),
                }
            }
            InstancePhase::Serving => {
                if !instance.lost.get() {
                    instance.ready.set(true);
                    instance.stop_probe();
                }
            }
            InstancePhase::Draining => {
                instance.stop_probe();
                self.say_if_drained(instance);
            }
        }
    }

    fn start_probe(self: &Rc<Self>, instance: &Rc<Instance>) {
        if instance.probing.borrow().is_some() {
            return;
        }
        let (revision, probed) = (Rc::downgrade(self), instance.clone());
        let (address, plan) = (instance.address.borrow().clone(), self.plan.borrow().clone());
        let task = tokio::task::spawn_local(async move {
            let (outcome, family) = probe::run(&plan.probe, &address).await;
            probed.family.set(family);
            probed.ready.set(family.is_some());
            *probed.probed.borrow_mut() = Some(outcome.clone());
            *probed.probing.borrow_mut() = None;
            if let Some(revision) = revision.upgrade() {
                revision.say_probed(&probed, outcome);
                revision.dispatch();
            }
        });
        *instance.probing.borrow_mut() = Some(task.abort_handle());
    }

    fn say_probed(&self, instance: &Instance, outcome: ProbeOutcome) {
        let (instance, revision) = (instance.id.clone(), self.key.clone());
        self.outbox.report(FromProxy::Probed { instance, revision, outcome });
    }

    fn say_if_drained(&self, instance: &Instance) {
        if instance.address.borrow().phase == InstancePhase::Draining && instance.in_flight.get() == 0 {
            instance.pool.close();
            self.outbox.report(FromProxy::Drained { instance: instance.id.clone() });
        }
    }

    /// The instance broke a promise of HTTP: its kept connections go too.
    pub fn say_broken(&self, instance: &Instance) {
        instance.pool.close();
        let (instance, revision) = (instance.id.clone(), self.key.clone());
        self.outbox.hint(FromProxy::Broken { instance, revision });
    }

    /// The instance refuses connections: nothing more is sent to it until it takes one again. Being idle it would
    /// otherwise be everyone's first choice. One that takes none for as long as its start may have taken has failed, and
    /// control, which is told so, replaces it.
    pub fn lose(self: &Rc<Self>, instance: &Rc<Instance>) {
        self.say_broken(instance);
        if instance.lost.replace(true) {
            return;
        }
        instance.ready.set(false);
        let (revision, again) = (Rc::downgrade(self), instance.clone());
        let patience = probe::longest(&self.plan.borrow().probe);
        let task = tokio::task::spawn_local(async move {
            let address = again.address();
            let family = loop {
                match timeout(patience, probe::knock(&address, address.port)).await {
                    Ok((_, family)) => break family,
                    Err(_) => {
                        let Some(revision) = revision.upgrade() else { return };
                        let why = format!("no connection was taken for {} s", patience.as_secs());
                        revision.say_probed(&again, ProbeOutcome::Failed { attempts: 1, why });
                    }
                }
            };
            again.family.set(Some(family));
            again.lost.set(false);
            again.ready.set(true);
            if let Some(revision) = revision.upgrade() {
                revision.dispatch();
            }
        });
        if let Some(old) = instance.probing.borrow_mut().replace(task.abort_handle()) {
            old.abort();
        }
    }

    /// Once a second: who is idle, and which kept connections are too old.
    pub fn tick(&self, now: Instant) {
        for instance in self.instances.borrow().iter() {
            instance.pool.tick(now);
            if !instance.is_open() || instance.in_flight.get() > 0 {
                continue;
            }
            let since_said = instance.idle_said.get().unwrap_or(instance.idle_since.get());
            if now.saturating_duration_since(since_said) >= Duration::from_secs(1) {
                instance.idle_said.set(Some(now));
                let idle = now.saturating_duration_since(instance.idle_since.get());
                let idle_ms = u64::try_from(idle.as_millis()).unwrap_or(u64::MAX);
                let (instance, revision) = (instance.id.clone(), self.key.clone());
                self.outbox.hint(FromProxy::Idle { instance, revision, idle_ms });
            }
        }
    }
}

impl Plan {
    fn of(plan: &EdgeRevision) -> Plan {
        Plan {
            concurrency: plan.concurrency,
            timeout: Duration::from_millis(plan.timeout_ms),
            probe: plan.probe.clone(),
            queue_wait: Duration::from_millis(plan.queue_wait_ms),
            can_start: plan.instances_max > 0,
        }
    }
}

impl Instance {
    fn new(id: WorkloadId, address: EdgeInstance) -> Instance {
        Instance {
            id,
            address: RefCell::new(address),
            ready: Cell::new(false),
            lost: Cell::new(false),
            family: Cell::new(None),
            pool: Pool::default(),
            in_flight: Cell::new(0),
            idle_since: Cell::new(Instant::now()),
            idle_said: Cell::new(None),
            probed: RefCell::new(None),
            probing: RefCell::new(None),
        }
    }

    pub fn address(&self) -> EdgeInstance {
        self.address.borrow().clone()
    }

    fn is_open(&self) -> bool {
        self.ready.get() && self.address.borrow().phase != InstancePhase::Draining
    }

    fn stop_probe(&self) {
        if let Some(task) = self.probing.borrow_mut().take() {
            task.abort();
        }
    }

    fn retire(&self) {
        self.stop_probe();
        self.ready.set(false);
        self.pool.close();
    }
}
