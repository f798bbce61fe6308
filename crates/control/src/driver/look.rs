//! One turn: plan what may be different, compare, send, and note which operations wait for what was sent.

use std::collections::{BTreeMap, BTreeSet};

use model::{
    id::{Generation, ListenerId, NetworkId, WorkloadId},
    planned::{
        edge::{EdgeItem, EdgeKey, ToProxy},
        guest::{GuestItem, GuestKey, Named, Realm, ToGuest},
        host::{CellId, CellPlan, ToHost, VpcChange, VpcPlan},
    },
    vpc,
};
use tokio::time::Instant;

use super::{Driver, Waits, mirror::Delta};
use crate::{
    dirty::{Dirty, Members},
    kind::Record,
    plan, run,
    world::World,
};

/// What is to be said about a VPC.
enum Router {
    Same,
    Whole(VpcPlan),
    Change(VpcChange),
    Gone,
}

impl Driver {
    /// Plans, compares, sends, and notes which operations wait for what was sent.
    pub(super) fn look(&mut self) {
        let control = self.control.clone();
        let (world, touched) = control.look();
        self.serving.log_ends(&touched.ended);
        let mut dirty = touched.dirty;
        dirty.merge(std::mem::take(&mut self.again));
        dirty.merge(self.serving.dirty());
        if dirty.everything {
            self.everything(&world, &mut dirty);
        }
        let cells = self.send_cells(&world, &dirty);
        let sent_edge = self.send_edge(&world, dirty.edge);
        let sent_guests = self.send_guests(&world, &dirty.workloads, &dirty.names);
        let resumed = self.waits.is_empty() && touched.started.is_empty();
        let started = if resumed { world.running().cloned().collect() } else { touched.started };
        let unsettled = run::unsettled(&world);
        let news = !unsettled.is_empty() && self.settling.last().is_none_or(|(_, last)| *last != unsettled);
        let proxy = (sent_edge || news).then(|| self.mark_proxy());
        if news && let Some(mark) = proxy {
            self.settling.push((mark, unsettled));
        }
        let guest = sent_guests.then(|| self.mark_guest());
        for name in started {
            let since = Instant::now();
            self.waits.entry(name).or_insert_with(|| Waits { cells: cells.clone(), proxy, guest, since });
        }
    }

    /// All there is, and all that was said and may have to be unsaid.
    fn everything(&self, world: &World, dirty: &mut Dirty) {
        for network in world.all::<vpc::Network>() {
            let id = NetworkId(network.id.0);
            dirty.vpc(id).whole = true;
            dirty.names.extend(plan::named(world, network).map(|named| (id, named)));
            dirty.edge.insert(EdgeKey::Network(id));
        }
        dirty.fabric = true;
        dirty.workloads.extend(world.seats.keys().cloned());
        dirty.edge.extend(world.all::<model::lb::ForwardingRule>().map(|r| EdgeKey::Listener(ListenerId(r.id.0))));
        dirty.edge.extend(world.services.keys().cloned().map(EdgeKey::Service));
        dirty.edge.extend(world.revisions.keys().cloned().map(EdgeKey::Revision));
        for network in self.vpcs.keys() {
            dirty.vpc(*network).whole = true;
        }
        for cell in self.cells.keys() {
            if let CellId::Workload(id) = cell {
                dirty.workloads.insert(id.clone());
            }
        }
        dirty.workloads.extend(self.seated.keys().cloned());
        dirty.edge.extend(self.edge.keys().cloned());
        for key in self.guests.keys() {
            if let GuestKey::Names(Realm::Vpc(network), named) = key {
                dirty.names.insert((*network, named.clone()));
            }
        }
    }

    /// The host does not hold this cell as it was last told: it is told the whole of it.
    pub(super) fn lacking(&mut self, cell: &CellId) {
        match cell {
            CellId::Vpc(network) => {
                self.vpcs.remove(network);
                self.again.vpc(*network).whole = true;
            }
            CellId::Fabric => {
                self.cells.forget_one(cell);
                self.again.fabric = true;
            }
            CellId::Workload(id) => {
                self.cells.forget_one(cell);
                self.again.workloads.insert(id.clone());
            }
        }
    }

    /// Answers which generations confirm what was said, and what was said before and is not confirmed yet.
    fn send_cells(&mut self, world: &World, dirty: &Dirty) -> BTreeMap<CellId, Generation> {
        let mut wanted: Vec<(CellId, Option<CellPlan>)> = Vec::new();
        if dirty.fabric {
            wanted.push((CellId::Fabric, Some(CellPlan::Fabric(self.serving.fabric(world)))));
        }
        for id in &dirty.workloads {
            let plan =
                world.seats.get(id).and_then(|seat| plan::vm(world, seat).or_else(|| run::plan::sandbox(world, seat)));
            wanted.push((CellId::Workload(id.clone()), plan.map(CellPlan::Workload)));
        }
        let mut routers = Vec::new();
        for (network, members) in &dirty.vpcs {
            match self.router(world, *network, members) {
                Router::Same => {}
                router => routers.push((*network, router)),
            }
        }
        if !self.host.is_up() {
            // Sent when it is back; until then whoever asked for these waits.
            let different = wanted.into_iter().filter(|(cell, plan)| self.cells.differs(cell, plan.as_ref()));
            let routers = routers.into_iter().map(|(network, _)| CellId::Vpc(network));
            let cells = routers.chain(different.map(|(cell, _)| cell));
            return cells.map(|cell| (cell, Generation(world.revision))).collect();
        }
        let mut messages: Vec<(CellId, ToHost)> = Vec::new();
        let mut removals: Vec<(CellId, ToHost)> = Vec::new();
        for (network, router) in routers {
            let cell = CellId::Vpc(network);
            let from = self.generations.get(&cell).copied().unwrap_or_default();
            let generation = self.generation(&cell, world);
            self.note_cut(network, &router, generation);
            match router {
                Router::Same => {}
                Router::Whole(plan) => {
                    self.vpcs.insert(network, plan.clone());
                    let plan = Box::new(CellPlan::Vpc(plan));
                    messages.push((cell.clone(), ToHost::Apply { cell, generation, plan }));
                }
                Router::Change(change) => {
                    self.vpcs.entry(network).or_default().change(change.clone());
                    let change = Box::new(change);
                    messages.push((cell, ToHost::Change { network, from, generation, change }));
                }
                Router::Gone => {
                    self.vpcs.remove(&network);
                    removals.push((cell.clone(), ToHost::Remove { cell, generation }));
                }
            }
        }
        for (cell, plan) in wanted {
            match self.cells.update(cell, plan) {
                Some(Delta::Set(cell, plan)) => {
                    let generation = self.generation(&cell, world);
                    messages.push((cell.clone(), ToHost::Apply { cell, generation, plan: Box::new(plan) }));
                }
                Some(Delta::Unset(cell)) => {
                    let generation = self.generation(&cell, world);
                    removals.push((cell.clone(), ToHost::Remove { cell, generation }));
                }
                None => {}
            }
        }
        // Additions before removals.
        messages.append(&mut removals);
        let mut sent = self.unconfirmed(dirty);
        for (cell, message) in messages {
            sent.insert(cell.clone(), self.generations[&cell]);
            self.host.send(message);
        }
        sent
    }

    /// A commit may change what an earlier turn has said already: its operation waits for that as well.
    fn unconfirmed(&self, dirty: &Dirty) -> BTreeMap<CellId, Generation> {
        let vpcs = dirty.vpcs.keys().map(|network| CellId::Vpc(*network));
        let workloads = dirty.workloads.iter().map(|id| CellId::Workload(id.clone()));
        let last = |cell: CellId| self.generations.get(&cell).map(|last| (cell.clone(), *last));
        vpcs.chain(workloads).filter_map(last).collect()
    }

    fn router(&self, world: &World, network: NetworkId, members: &Members) -> Router {
        let record: Option<&Record<vpc::Network>> = world.by_id(network.0);
        match (record, self.vpcs.get(&network)) {
            (None, None) => Router::Same,
            (None, Some(_)) => Router::Gone,
            (Some(record), None) => Router::Whole(plan::vpc(world, record, &self.settings)),
            (Some(record), Some(before)) => {
                let change = plan::vpc_change(world, record, &self.settings, members, before);
                if change.is_empty() { Router::Same } else { Router::Change(change) }
            }
        }
    }

    /// Notes the NAT addresses that are cut off from this generation on; of a VPC that is told everything, all.
    fn note_cut(&mut self, network: NetworkId, router: &Router, generation: Generation) {
        let peers: Vec<_> = match router {
            Router::Whole(plan) => plan.cut.iter().copied().collect(),
            Router::Change(change) => change.cut.iter().filter(|(_, cut)| **cut).map(|(address, _)| *address).collect(),
            Router::Same | Router::Gone => Vec::new(),
        };
        let close = |peer| (CellId::Vpc(network), generation, ToProxy::CloseClients { network, peer });
        self.cut.extend(peers.into_iter().map(close));
    }

    /// Tells a host that is back which cells should be gone by now, as far as somebody waits for that: they went while it
    /// was away, or it went before it could say so. It would remove them without a word.
    pub(super) fn remove_unplanned(&mut self) {
        let control = self.control.clone();
        let world = control.read();
        let is_planned = |cell: &CellId| match cell {
            CellId::Vpc(network) => self.vpcs.contains_key(network),
            CellId::Fabric | CellId::Workload(_) => self.cells.get(cell).is_some(),
        };
        let waited = self.waits.values().flat_map(|waits| waits.cells.keys());
        let gone: BTreeSet<CellId> = waited.filter(|cell| !is_planned(cell)).cloned().collect();
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

    fn send_edge(&mut self, world: &World, keys: BTreeSet<EdgeKey>) -> bool {
        let mut wanted: Vec<(EdgeKey, Option<EdgeItem>)> = Vec::new();
        for key in keys {
            let item = self.edge_item(world, &key);
            wanted.push((key, item));
        }
        if !self.proxy.is_up() {
            return wanted.iter().any(|(key, item)| self.edge.differs(key, item.as_ref()));
        }
        let keys = self.serving.keys();
        let has_keys = matches!(&keys, EdgeItem::Keys(keys) if !keys.is_empty());
        let mut sent = false;
        if self.keys.as_ref() != Some(&keys) {
            self.proxy.send(ToProxy::Set(keys.clone()));
            self.keys = Some(keys);
            sent = true;
        }
        // Additions before removals.
        wanted.sort_by_key(|(_, item)| item.is_none());
        for (key, item) in wanted {
            let Some(delta) = self.edge.update(key, item) else { continue };
            self.proxy.send(match delta {
                Delta::Set(_, item) => ToProxy::Set(item),
                Delta::Unset(key) => ToProxy::Unset(key),
            });
            sent = true;
        }
        // A new cloud is still making its first key: until then the proxy must call no token unknown.
        if has_keys && !std::mem::replace(&mut self.proxy_complete, true) {
            self.proxy.send(ToProxy::Complete);
        }
        sent
    }

    fn edge_item(&self, world: &World, key: &EdgeKey) -> Option<EdgeItem> {
        match key {
            EdgeKey::Network(id) => {
                world.by_id::<vpc::Network>(id.0).map(|_| EdgeItem::Network(*id, plan::source_prefix(*id)))
            }
            EdgeKey::Listener(id) => plan::listener(world, *id).map(|l| EdgeItem::Listener(*id, Box::new(l))),
            EdgeKey::Service(_) | EdgeKey::Revision(_) => self.serving.edge(world, key),
        }
    }

    fn send_guests(
        &mut self,
        world: &World,
        workloads: &BTreeSet<WorkloadId>,
        names: &BTreeSet<(NetworkId, Named)>,
    ) -> bool {
        let mut wanted: BTreeMap<GuestKey, Option<GuestItem>> = BTreeMap::new();
        let mut seated = Vec::new();
        for id in workloads {
            let seat = world.seats.get(id);
            let item = seat.and_then(|s| plan::vm_identity(world, s).or_else(|| run::plan::identity(world, s)));
            // Who sat there goes, unless it is taken again, by whoever comes later in the list or came before.
            if let Some(left) = self.seated.get(id).filter(|left| item.as_ref().is_none_or(|(seat, _)| seat != *left)) {
                wanted.entry(GuestKey::Workload(*left)).or_insert(None);
            }
            seated.push((id.clone(), item.as_ref().map(|(seat, _)| *seat)));
            if let Some((seat, identity)) = item {
                wanted.insert(GuestKey::Workload(seat), Some(GuestItem::Workload(seat, Box::new(identity))));
            }
        }
        for (network, named) in names {
            let realm = Realm::Vpc(*network);
            let item = plan::names(world, *network, named).map(|names| GuestItem::Names(realm, named.clone(), names));
            wanted.insert(GuestKey::Names(realm, named.clone()), item);
        }
        if !self.guest.is_up() {
            return wanted.iter().any(|(key, item)| self.guests.differs(key, item.as_ref()));
        }
        for (id, seat) in seated {
            match seat {
                Some(seat) => self.seated.insert(id, seat),
                None => self.seated.remove(&id),
            };
        }
        let mut sent = false;
        let mut wanted: Vec<_> = wanted.into_iter().collect();
        // Additions before removals.
        wanted.sort_by_key(|(_, item)| item.is_none());
        for (key, item) in wanted {
            let Some(delta) = self.guests.update(key, item) else { continue };
            self.guest.send(match delta {
                Delta::Set(_, item) => ToGuest::Set(item),
                Delta::Unset(key) => ToGuest::Unset(key),
            });
            sent = true;
        }
        sent
    }
}
