//! Which container instances there should be: Cloud Run's autoscaler and the life of an instance, without any I/O.
//!
//! [`Fleet`] is told what happened ([`Event`]) and answers what to do ([`Action`]); time, randomness and the world come in
//! as arguments. Where an instance sits is stored before it is started, so the fleet finds its instances again after a
//! restart; demand and idleness are heard again from the proxy. Start with [`Fleet::on`], then `tend`.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use model::{
    id::WorkloadId,
    limits::{self, RUN_RESTART_MAX, RUN_RESTART_MIN, RUN_START_MAX, RUN_STARTUP_MAX, RUN_STOP_GRACE},
    planned::{
        edge::{EdgeInstance, InstancePhase, ProbeOutcome},
        host::{FabricPlan, FabricPort, SandboxEvent},
    },
    run::{Probe, Revision, RevisionKey, RevisionState},
    time::Timestamp,
};

use crate::{
    run::plan::{Bounds, bounds},
    world::{Holder, SeatRecord, World},
};

/// Uid ranges of containers: below those of VMs ([`crate::kinds::seat::UID_FIRST`]).
const UID_FIRST: u32 = limits::SANDBOX_UID_FIRST;
/// Link-local addresses of instances: 169.254.64.2 to 169.254.127.254. The metadata server's .169.254 is not in there.
const V4_FIRST: u32 = 0xa9fe_4002;
const V6_PREFIX: u128 = 0xfda3_e722_0ac3_0001_0000_0000_0000_0000;
/// Places in the fabric; each has an address and a range of uids of its own.
const PLACES: u32 = 7_000;
/// Sandboxes kept ready for a cold start.
const PARKED: usize = 2;
/// Share of its concurrency to which an instance is filled before another is started. Source: Cloud Run, 60 %.
const TARGET_PERCENT: u32 = 60;

/// What an operator may set, and tests do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tuning {
    /// An instance without requests is kept this long.
    pub idle_keep: Duration,
}

impl Default for Tuning {
    fn default() -> Tuning {
        Tuning { idle_keep: limits::RUN_IDLE_KEEP }
    }
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    Demand {
        revision: RevisionKey,
        waiting: u32,
        in_flight: u32,
    },
    Probed {
        instance: WorkloadId,
        outcome: ProbeOutcome,
    },
    Idle {
        instance: WorkloadId,
        idle: Duration,
    },
    Drained {
        instance: WorkloadId,
    },
    Sandbox {
        instance: WorkloadId,
        event: SandboxEvent,
    },
    /// Time has passed or the world has changed.
    Look,
}

/// Something to do, in this order.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Store the seat; the plans then start what sits in it.
    Start(SeatRecord, Reason),
    /// The phase in the plans has changed; nothing is to be stored.
    Drain(WorkloadId),
    /// Forget the seat; the plans then stop what sat in it.
    Stop(WorkloadId),
    RevisionReady(RevisionKey),
    RevisionFailed {
        revision: RevisionKey,
        reason: &'static str,
        message: String,
    },
}

/// Why an instance is started; the words of the system log. Source: Cloud Run, `Starting new instance`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    Autoscaling,
    DeploymentRollout,
    MinInstances,
}

impl Reason {
    pub fn text(self) -> &'static str {
        match self {
            Reason::Autoscaling => {
                "AUTOSCALING - Instance started due to configured scaling factors (e.g. CPU utilization, request \
                 throughput, etc.) or no existing capacity for current traffic."
            }
            Reason::DeploymentRollout => {
                "DEPLOYMENT_ROLLOUT - Instance started due to traffic shifting between revisions due to deployment, \
                 traffic split adjustment, or deployment health check."
            }
            Reason::MinInstances => {
                "MANUAL_OR_CUSTOMER_MIN_INSTANCE - Instance started because of customer-configured min-instances or \
                 manual scaling."
            }
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Starting,
    Serving,
    Draining { since: Timestamp },
}

#[derive(Clone, Debug)]
struct Member {
    revision: RevisionKey,
    phase: Phase,
    since: Timestamp,
    idle: Duration,
}

/// What is known of a revision beside the world.
#[derive(Clone, Debug, Default)]
struct Crew {
    waiting: u32,
    in_flight: u32,
    /// Deaths since an instance last became ready.
    crashes: u32,
    /// No start before this.
    hold_until: Timestamp,
}

/// All container instances of a cloud.
pub struct Fleet {
    tuning: Tuning,
    members: BTreeMap<WorkloadId, Member>,
    crews: BTreeMap<RevisionKey, Crew>,
    /// Places whose last tenant may not be gone yet, and until when they rest.
    resting: BTreeMap<u32, Timestamp>,
    /// Where the search for the next free place begins; places are taken in turn, so that one just left rests.
    cursor: u32,
    /// Revisions whose instances came, went or changed their phase since somebody asked.
    touched: BTreeSet<RevisionKey>,
    /// Random lower-case hexadecimal digits, as many as asked for.
    random: Box<dyn FnMut(usize) -> String + Send>,
}

impl Fleet {
    pub fn new(tuning: Tuning, random: Box<dyn FnMut(usize) -> String + Send>) -> Fleet {
        let (members, crews, resting, touched) = Default::default();
        Fleet { tuning, members, crews, resting, cursor: 0, touched, random }
    }

    /// Revisions whose instances came, went or changed their phase since [`Fleet::take_touched`].
    pub fn touched(&self) -> &BTreeSet<RevisionKey> {
        &self.touched
    }

    pub fn take_touched(&mut self) -> BTreeSet<RevisionKey> {
        std::mem::take(&mut self.touched)
    }

    /// Takes notice of an event and decides. What it answers is to be done at once: the fleet counts on it.
    pub fn on(&mut self, event: Event, world: &World, now: Timestamp) -> Vec<Action> {
        let mut actions = Vec::new();
        self.follow(world, now);
        match event {
            Event::Demand { revision, waiting, in_flight } => {
                if in_flight > 0 {
                    // Who is idle will say so again.
                    let busy = self.members.values_mut().filter(|m| m.revision == revision);
                    busy.for_each(|m| m.idle = Duration::ZERO);
                }
                let crew = self.crews.entry(revision).or_default();
                (crew.waiting, crew.in_flight) = (waiting, in_flight);
            }
            Event::Probed { instance, outcome } => self.probed(&instance, outcome, world, now, &mut actions),
            Event::Idle { instance, idle } => {
                if let Some(member) = self.members.get_mut(&instance) {
                    member.idle = idle;
                }
            }
            Event::Drained { instance } => {
                if let Some(Member { phase: Phase::Draining { .. }, .. }) = self.members.get(&instance) {
                    self.stop(&instance, world, now, &mut actions);
                }
            }
            Event::Sandbox { instance, event } => self.sandbox(&instance, event, world, now, &mut actions),
            Event::Look => {}
        }
        self.tend(world, now, &mut actions);
        actions
    }

    /// Takes in seats it does not know (after a restart) and drops what has none.
    fn follow(&mut self, world: &World, now: Timestamp) {
        self.members.retain(|id, member| {
            let stays = world.seats.contains_key(id);
            if !stays {
                self.touched.insert(member.revision.clone());
            }
            stays
        });
        for seat in world.seats.containers() {
            let Holder::Container { revision, .. } = &seat.holder else { continue };
            self.members.entry(seat.workload.clone()).or_insert_with(|| {
                self.touched.insert(revision.clone());
                Member { revision: revision.clone(), phase: Phase::Starting, since: now, idle: Duration::ZERO }
            });
        }
        self.crews.retain(|key, _| world.revisions.contains_key(key));
        self.resting.retain(|_, until| *until > now);
    }

    fn probed(
        &mut self,
        instance: &WorkloadId,
        outcome: ProbeOutcome,
        world: &World,
        now: Timestamp,
        actions: &mut Vec<Action>,
    ) {
        let Some(member) = self.members.get_mut(instance) else { return };
        let key = member.revision.clone();
        match outcome {
            ProbeOutcome::Ready { .. } => {
                if member.phase == Phase::Starting {
                    member.phase = Phase::Serving;
                    self.touched.insert(key.clone());
                }
                self.crews.entry(key.clone()).or_default().crashes = 0;
                if is_deploying(world, &key) {
                    actions.push(Action::RevisionReady(key));
                }
            }
            ProbeOutcome::Failed { .. } => {
                self.stop(instance, world, now, actions);
                self.died(&key, world, now, actions);
            }
        }
    }

    fn sandbox(
        &mut self,
        instance: &WorkloadId,
        event: SandboxEvent,
        world: &World,
        now: Timestamp,
        actions: &mut Vec<Action>,
    ) {
        match event {
            SandboxEvent::Started { .. } => {}
            SandboxEvent::Failed { .. } | SandboxEvent::Exited { .. } => {
                let Some(member) = self.members.get(instance) else { return };
                let (key, draining) = (member.revision.clone(), matches!(member.phase, Phase::Draining { .. }));
                self.stop(instance, world, now, actions);
                // It is gone already: its place need not rest for it.
                if let Some(place) = world.seats.get(instance).and_then(place_of) {
                    self.resting.remove(&place);
                }
                if !draining {
                    self.died(&key, world, now, actions);
                }
            }
        }
    }

    /// An instance ended that should not have: a deployment fails, anything else is tried again, later each time.
    fn died(&mut self, key: &RevisionKey, world: &World, now: Timestamp, actions: &mut Vec<Action>) {
        let Some(revision) = world.revisions.get(key) else { return };
        if revision.state == RevisionState::Deploying {
            let (reason, message) = health_check_failure(&revision.template.container.startup_probe, revision);
            actions.push(Action::RevisionFailed { revision: key.clone(), reason, message });
            return;
        }
        let crew = self.crews.entry(key.clone()).or_default();
        let wait = RUN_RESTART_MIN.saturating_mul(1 << crew.crashes.min(10)).min(RUN_RESTART_MAX);
        crew.crashes = crew.crashes.saturating_add(1);
        crew.hold_until = now.plus(wait);
    }

    fn stop(&mut self, instance: &WorkloadId, world: &World, now: Timestamp, actions: &mut Vec<Action>) {
        self.touched.extend(self.members.remove(instance).map(|member| member.revision));
        if let Some(place) = world.seats.get(instance).and_then(place_of) {
            self.resting.insert(place, now.plus(RUN_STOP_GRACE * 3));
        }
        actions.push(Action::Stop(instance.clone()));
    }

    /// Compares what there is with what there should be, revision by revision.
    fn tend(&mut self, world: &World, now: Timestamp, actions: &mut Vec<Action>) {
        let orphans: Vec<WorkloadId> = self
            .members
            .iter()
            .filter(|(_, m)| !world.revisions.contains_key(&m.revision))
            .map(|(id, _)| id.clone())
            .collect();
        for orphan in orphans {
            self.stop(&orphan, world, now, actions);
        }
        for revision in world.revisions.values() {
            // What the actions so far say of this revision is not in the world yet; the next look sees it.
            let decided = actions.iter().any(|a| match a {
                Action::RevisionReady(key) | Action::RevisionFailed { revision: key, .. } => *key == revision.key,
                Action::Start(..) | Action::Drain(_) | Action::Stop(_) => false,
            });
            if !decided {
                self.tend_revision(revision, world, now, actions);
            }
        }
    }

    fn tend_revision(&mut self, revision: &Revision, world: &World, now: Timestamp, actions: &mut Vec<Action>) {
        self.end_overdue(revision, world, now, actions);
        let bounds = bounds(world, &revision.key);
        let (want, reason) = match revision.state {
            RevisionState::Failed { .. } => (0, Reason::DeploymentRollout),
            RevisionState::Deploying => (1, Reason::DeploymentRollout),
            RevisionState::Ready { .. } => self.wanted(revision, bounds),
        };
        let living = self.living(&revision.key);
        let missing = usize::try_from(want).unwrap_or(usize::MAX).saturating_sub(living.len());
        let held = self.crews.get(&revision.key).is_some_and(|crew| crew.hold_until > now);
        if missing > 0 && !held {
            for _ in 0..missing {
                let Some(seat) = self.seat(&revision.key, world, now) else { return };
                actions.push(Action::Start(seat, reason));
            }
            return;
        }
        match revision.state {
            RevisionState::Failed { .. } => {
                for id in living {
                    self.stop(&id, world, now, actions);
                }
            }
            RevisionState::Deploying => {}
            RevisionState::Ready { .. } => self.shrink(living, want, bounds, now, actions),
        }
    }

    /// Lets go of instances beyond `want`: those idle for long enough, and all where nobody is served any more.
    fn shrink(
        &mut self,
        living: Vec<WorkloadId>,
        want: u32,
        bounds: Bounds,
        now: Timestamp,
        actions: &mut Vec<Action>,
    ) {
        let surplus = living.len().saturating_sub(usize::try_from(want).unwrap_or(usize::MAX));
        let mut leaving: Vec<(Duration, WorkloadId)> = living
            .into_iter()
            .filter_map(|id| self.members.get(&id).map(|m| (m.idle, id)))
            .filter(|(idle, _)| !bounds.serving || *idle >= self.tuning.idle_keep)
            .collect();
        leaving.sort_by(|a, b| b.cmp(a));
        for (_, id) in leaving.into_iter().take(surplus) {
            if let Some(member) = self.members.get_mut(&id) {
                member.phase = Phase::Draining { since: now };
                self.touched.insert(member.revision.clone());
                actions.push(Action::Drain(id));
            }
        }
    }

    /// How many instances a ready revision needs now.
    fn wanted(&self, revision: &Revision, bounds: Bounds) -> (u32, Reason) {
        let crew = self.crews.get(&revision.key);
        let load = crew.map_or(0, |c| c.waiting.saturating_add(c.in_flight));
        let fill = (revision.template.concurrency * TARGET_PERCENT / 100).max(1);
        let by_load = load.div_ceil(fill).min(bounds.max);
        if by_load > bounds.min { (by_load, Reason::Autoscaling) } else { (bounds.min, Reason::MinInstances) }
    }

    /// Deployments that nobody ever answered about, and drains that never end.
    fn end_overdue(&mut self, revision: &Revision, world: &World, now: Timestamp, actions: &mut Vec<Action>) {
        let patience = Duration::from_secs(u64::from(revision.template.timeout_s)) + RUN_STOP_GRACE;
        let overdue = |m: &Member| match m.phase {
            Phase::Starting => now.since(m.since) > RUN_STARTUP_MAX + RUN_START_MAX,
            Phase::Draining { since } => now.since(since) > patience,
            Phase::Serving => false,
        };
        let late: Vec<(WorkloadId, Phase)> = self
            .members
            .iter()
            .filter(|(_, m)| m.revision == revision.key && overdue(m))
            .map(|(id, m)| (id.clone(), m.phase))
            .collect();
        for (id, phase) in late {
            self.stop(&id, world, now, actions);
            if phase == Phase::Starting {
                if revision.state == RevisionState::Deploying {
                    let message = "Resource readiness deadline exceeded.".to_owned();
                    let revision = revision.key.clone();
                    actions.push(Action::RevisionFailed { revision, reason: "ProgressDeadlineExceeded", message });
                    return;
                }
                self.died(&revision.key, world, now, actions);
            }
        }
    }

    /// Instances that start or serve.
    fn living(&self, key: &RevisionKey) -> Vec<WorkloadId> {
        let alive = |m: &Member| m.revision == *key && !matches!(m.phase, Phase::Draining { .. });
        self.members.iter().filter(|(_, m)| alive(m)).map(|(id, _)| id.clone()).collect()
    }

    /// A seat for a new instance, and the instance as a member. None: the machine has no place left.
    fn seat(&mut self, revision: &RevisionKey, world: &World, now: Timestamp) -> Option<SeatRecord> {
        let place = *self.free_places(world, 1).first()?;
        self.cursor = (place + 1) % PLACES;
        // Counts as taken until the world shows the seat.
        self.resting.insert(place, now.plus(RUN_STOP_GRACE * 3));
        let workload = WorkloadId(format!("run-{}", (self.random)(12)));
        let member = Member { revision: revision.clone(), phase: Phase::Starting, since: now, idle: Duration::ZERO };
        self.members.insert(workload.clone(), member);
        self.touched.insert(revision.clone());
        Some(SeatRecord {
            workload,
            uid_base: UID_FIRST + place * limits::SANDBOX_UIDS,
            incarnation: 1,
            holder: Holder::Container {
                revision: revision.clone(),
                v6: Ipv6Addr::from(V6_PREFIX | u128::from(place + 2)),
                v4: Ipv4Addr::from(V4_FIRST + place),
                // Source: Cloud Run's instance ids are long; the log label repeats them.
                instance_id: (self.random)(158),
                created: now,
            },
        })
    }

    /// The next free places in turn.
    fn free_places(&self, world: &World, count: usize) -> Vec<u32> {
        let taken: BTreeSet<u32> = world.seats.containers().filter_map(place_of).collect();
        let free = |place: &u32| !taken.contains(place) && !self.resting.contains_key(place);
        (0..PLACES).map(|n| (self.cursor + n) % PLACES).filter(free).take(count).collect()
    }

    /// The fabric with the instances there are and the sandboxes kept ready for the next ones.
    pub fn fabric(&self, world: &World) -> FabricPlan {
        let port = |seat: &SeatRecord| match &seat.holder {
            Holder::Container { v6, v4, .. } => Some((seat.workload.clone(), FabricPort { v6: *v6, v4: *v4 })),
            Holder::Vm(_) => None,
        };
        let parked = self.free_places(world, PARKED).into_iter().map(|p| UID_FIRST + p * limits::SANDBOX_UIDS);
        FabricPlan {
            ports: world.seats.containers().filter_map(port).collect(),
            sources: BTreeMap::new(),
            parked: parked.collect(),
        }
    }

    /// The instances of a revision as the proxy should see them.
    pub fn edge_instances(&self, world: &World, key: &RevisionKey) -> BTreeMap<WorkloadId, EdgeInstance> {
        let Some(revision) = world.revisions.get(key) else { return BTreeMap::new() };
        let port = revision.template.container.port;
        let seen = |seat: &SeatRecord| match &seat.holder {
            Holder::Container { v6, v4, .. } => {
                let phase = match self.members.get(&seat.workload).map(|m| m.phase) {
                    Some(Phase::Serving) => InstancePhase::Serving,
                    Some(Phase::Draining { .. }) => InstancePhase::Draining,
                    Some(Phase::Starting) | None => InstancePhase::Starting,
                };
                Some((seat.workload.clone(), EdgeInstance { v6: *v6, v4: *v4, port, phase }))
            }
            Holder::Vm(_) => None,
        };
        world.seats.of_revision(key).filter_map(seen).collect()
    }
}

fn is_deploying(world: &World, key: &RevisionKey) -> bool {
    world.revisions.get(key).is_some_and(|r| r.state == RevisionState::Deploying)
}

fn place_of(seat: &SeatRecord) -> Option<u32> {
    match &seat.holder {
        Holder::Container { .. } => Some(seat.uid_base.checked_sub(UID_FIRST)? / limits::SANDBOX_UIDS),
        Holder::Vm(_) => None,
    }
}

/// Source: Cloud Run, message of a revision that never listened; "defined provided" is how it reads there.
fn health_check_failure(probe: &Probe, revision: &Revision) -> (&'static str, String) {
    let port = revision.template.container.port;
    let logs = format!(
        "https://console.cloud.google.com/logs/viewer?project={}&resource=cloud_run_revision/service_name/{}/revision_name/{}",
        revision.key.service.project, revision.key.service.name, revision.key.name
    );
    let tail = format!(
        "Logs for this revision might contain more information.\n\nLogs URL: {logs} \nFor more troubleshooting guidance, \
         see https://cloud.google.com/run/docs/troubleshooting#container-failed-to-start"
    );
    let head = if probe.is_default {
        format!(
            "The user-provided container failed to start and listen on the port defined provided by the PORT={port} \
             environment variable within the allocated timeout. This can happen when the container port is misconfigured \
             or if the timeout is too short. The health check timeout can be extended."
        )
    } else {
        "The user-provided container failed the configured startup probe checks.".to_owned()
    };
    ("HealthCheckContainerError", format!("{head} {tail}"))
}

#[cfg(test)]
mod tests;
