//! VPCs as the agent holds them: what the hands applied, the listeners and flow watches that belong to it.

use std::{collections::BTreeMap, net::SocketAddrV4, time::Duration};

use model::{
    id::{Generation, ListenerId, NetworkId},
    planned::{
        edge, guest,
        guest::Realm,
        host::{CellId, FromHost, Vip, VpcChange, VpcPlan, VpcSettings},
    },
};

use super::{Agent, CellError};
use crate::{net::flow, sandboxes::Sandboxes};

/// What belongs to an applied VPC beside its rules.
pub(super) struct Vpc {
    /// The generation that is here, whole; None when something failed.
    pub(super) holds: Option<Generation>,
    pub(super) listeners: BTreeMap<ListenerId, Vip>,
    pub(super) flows: Option<(u32, flow::Watch)>,
}

impl<S: Sandboxes> Agent<S> {
    pub(super) fn apply_vpc(
        &mut self,
        network: NetworkId,
        generation: Generation,
        plan: &VpcPlan,
    ) -> Result<(), CellError> {
        let held = self.vpcs.get_mut(&network).map(|vpc| {
            vpc.holds = None;
            vpc.listeners.iter().map(|(id, vip)| (*id, vip.clone())).collect()
        });
        let before = VpcPlan { vips: held.unwrap_or_default(), ..VpcPlan::default() };
        let vips = VpcChange::between(&before, plan).vips;
        one_port(&vips)?;
        self.close_listeners(network, &vips);
        self.hands.apply_vpc(network, plan)?;
        if !self.vpcs.contains_key(&network) {
            self.serve_metadata(Realm::Vpc(network))?;
            self.vpcs.insert(network, Vpc { holds: None, listeners: BTreeMap::new(), flows: None });
        }
        self.finish_vpc(network, generation, vips, Some(&plan.settings))
    }

    pub(super) fn change_vpc(
        &mut self,
        network: NetworkId,
        from: Generation,
        generation: Generation,
        change: VpcChange,
    ) {
        let cell = CellId::Vpc(network);
        match self.vpcs.get_mut(&network) {
            // Until the change is in, nothing that builds on it can be.
            Some(vpc) if vpc.holds == Some(from) => vpc.holds = None,
            Some(_) | None => {
                self.report(&FromHost::Lacking { cell });
                return;
            }
        }
        let outcome = self.try_change_vpc(network, generation, change);
        self.observed(cell, generation, outcome);
    }

    fn try_change_vpc(
        &mut self,
        network: NetworkId,
        generation: Generation,
        change: VpcChange,
    ) -> Result<(), CellError> {
        let (vips, settings) = (change.vips.clone(), change.settings.clone());
        one_port(&vips)?;
        self.close_listeners(network, &vips);
        self.hands.change_vpc(network, change)?;
        self.finish_vpc(network, generation, vips, settings.as_ref())
    }

    /// What follows once the router holds the plan.
    fn finish_vpc(
        &mut self,
        network: NetworkId,
        generation: Generation,
        vips: BTreeMap<ListenerId, Option<Vip>>,
        settings: Option<&VpcSettings>,
    ) -> Result<(), CellError> {
        self.open_listeners(network, vips)?;
        if let Some(settings) = settings {
            self.watch_flows(network, settings)?;
        }
        if let Some(vpc) = self.vpcs.get_mut(&network) {
            vpc.holds = Some(generation);
        }
        Ok(())
    }

    /// Before the addresses go: a closed listener refuses, an address without one vanishes.
    fn close_listeners(&mut self, network: NetworkId, vips: &BTreeMap<ListenerId, Option<Vip>>) {
        let Some(vpc) = self.vpcs.get_mut(&network) else { return };
        for id in vips.keys() {
            if vpc.listeners.remove(id).is_some() {
                self.proxy.unset(*id, edge::Sockets::Unlisten(*id));
            }
        }
    }

    fn open_listeners(&mut self, network: NetworkId, vips: BTreeMap<ListenerId, Option<Vip>>) -> Result<(), CellError> {
        let Some(vpc) = self.vpcs.get_mut(&network) else { return Ok(()) };
        for (id, vip) in vips {
            let Some(vip) = vip else { continue };
            let at = SocketAddrV4::new(vip.address, vip.ports.first);
            let socket = self.hands.listen(network, at)?.map_err(|source| CellError::Listen { at, source })?;
            self.proxy.set(id, edge::Sockets::Listen(id), vec![socket]);
            vpc.listeners.insert(id, vip);
        }
        Ok(())
    }

    fn watch_flows(&mut self, network: NetworkId, settings: &VpcSettings) -> Result<(), CellError> {
        let Some(vpc) = self.vpcs.get_mut(&network) else { return Ok(()) };
        let wanted = settings.flow_logs.then(|| settings.flow_interval_s.max(1));
        if vpc.flows.as_ref().map(|(interval, _)| *interval) == wanted {
            return Ok(());
        }
        vpc.flows = None;
        if let Some(interval) = wanted {
            let netns = self.hands.realm(Realm::Vpc(network))?.netns();
            let tuning = flow::Tuning { interval: Duration::from_secs(interval.into()), events_bytes: None };
            vpc.flows = Some((interval, flow::watch(network, netns, tuning, self.flows.clone())?));
        }
        Ok(())
    }

    pub(super) fn remove_vpc(&mut self, network: NetworkId) -> Result<(), CellError> {
        if let Some(vpc) = self.vpcs.remove(&network) {
            vpc.listeners.keys().for_each(|id| self.proxy.unset(*id, edge::Sockets::Unlisten(*id)));
            self.guest.unset(Realm::Vpc(network), guest::Sockets::Withdraw(Realm::Vpc(network)));
        }
        Ok(self.hands.remove_vpc(network)?)
    }
}

/// The proxy listens on one port for each forwarding rule.
fn one_port(vips: &BTreeMap<ListenerId, Option<Vip>>) -> Result<(), CellError> {
    match vips.values().flatten().find(|vip| vip.ports.first != vip.ports.last) {
        Some(vip) => Err(CellError::PortRange(vip.clone())),
        None => Ok(()),
    }
}
