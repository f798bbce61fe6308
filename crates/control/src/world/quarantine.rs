//! NAT addresses that rest, and which of them have rested long enough.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    ops::Deref,
};

use model::{id::NetworkId, psc::Quarantined, time::Timestamp};

use super::Runs;

/// By the network they belong to. Read it as a map; write it by [`Quarantine::put`] and [`Quarantine::take`].
#[derive(Clone, Debug, Default)]
pub struct Quarantine {
    all: BTreeMap<(NetworkId, Ipv4Addr), Quarantined>,
    ends: BTreeSet<(Timestamp, NetworkId, Ipv4Addr)>,
    runs: BTreeMap<NetworkId, Runs>,
}

impl Deref for Quarantine {
    type Target = BTreeMap<(NetworkId, Ipv4Addr), Quarantined>;

    fn deref(&self) -> &Self::Target {
        &self.all
    }
}

impl Quarantine {
    /// Those whose rest is over ([`Quarantined::is_over`]): they end soonest, or too late to be true.
    pub fn over(&self, now: Timestamp) -> impl Iterator<Item = (NetworkId, Ipv4Addr)> + '_ {
        let is_over = move |(until, _, address): &&(Timestamp, NetworkId, Ipv4Addr)| {
            Quarantined { address: *address, until: *until }.is_over(now)
        };
        let first = self.ends.iter().take_while(is_over);
        let last = self.ends.iter().rev().take_while(is_over).filter(move |(until, ..)| *until > now);
        first.chain(last).map(|(_, network, address)| (*network, *address))
    }

    /// The lowest address of the network from this one on that does not rest.
    pub fn free_from(&self, network: NetworkId, address: Ipv4Addr) -> Option<Ipv4Addr> {
        self.runs.get(&network).map_or(Some(address), |runs| runs.free_from(address))
    }

    pub(crate) fn put(&mut self, network: NetworkId, q: Quarantined) {
        self.take(network, q.address);
        self.ends.insert((q.until, network, q.address));
        self.runs.entry(network).or_default().insert(q.address);
        self.all.insert((network, q.address), q);
    }

    pub(crate) fn take(&mut self, network: NetworkId, address: Ipv4Addr) {
        if let Some(q) = self.all.remove(&(network, address)) {
            self.ends.remove(&(q.until, network, address));
            if let Some(runs) = self.runs.get_mut(&network) {
                runs.remove(address);
                if runs.is_empty() {
                    self.runs.remove(&network);
                }
            }
        }
    }
}
