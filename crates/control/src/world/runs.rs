//! Addresses in use, as runs without a gap: the lowest free one is found without looking at those below it.

use std::{collections::BTreeMap, net::Ipv4Addr};

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Runs {
    /// First to last; no two touch.
    runs: BTreeMap<u32, u32>,
}

impl Runs {
    pub fn insert(&mut self, address: Ipv4Addr) {
        let address = u32::from(address);
        let below = self.runs.range(..=address).next_back().map(|(first, last)| (*first, *last));
        if below.is_some_and(|(_, last)| last >= address) {
            return;
        }
        let first = below.filter(|(_, last)| last.checked_add(1) == Some(address)).map_or(address, |(first, _)| first);
        let last = address.checked_add(1).and_then(|next| self.runs.remove(&next)).unwrap_or(address);
        self.runs.insert(first, last);
    }

    pub fn remove(&mut self, address: Ipv4Addr) {
        let address = u32::from(address);
        let run = self.runs.range(..=address).next_back().map(|(first, last)| (*first, *last));
        let Some((first, last)) = run.filter(|(_, last)| *last >= address) else { return };
        self.runs.remove(&first);
        if first < address {
            self.runs.insert(first, address - 1);
        }
        if address < last {
            self.runs.insert(address + 1, last);
        }
    }

    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// The lowest address from this one on that is not in use.
    pub fn free_from(&self, address: Ipv4Addr) -> Option<Ipv4Addr> {
        let address = u32::from(address);
        match self.runs.range(..=address).next_back().filter(|(_, last)| **last >= address) {
            Some((_, last)) => last.checked_add(1).map(Ipv4Addr::from),
            None => Some(address.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_lowest_free_address_is_that_of_a_plain_set_whatever_came_and_went() {
        let (mut runs, mut plain) = (Runs::default(), BTreeSet::new());
        let mut number = 0x7071_u32;
        for _ in 0..2_000 {
            number = number.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let address = Ipv4Addr::from(0x0a00_0000 + (number >> 16) % 40);
            if number & 1 == 0 {
                runs.insert(address);
                plain.insert(address);
            } else {
                runs.remove(address);
                plain.remove(&address);
            }
            let free = (0..).map(|n| Ipv4Addr::from(0x0a00_0000 + n)).find(|a| !plain.contains(a));
            assert_eq!(runs.free_from(Ipv4Addr::from(0x0a00_0000)), free);
        }
    }

    #[test]
    fn the_last_address_of_all_has_none_above() {
        let mut runs = Runs::default();
        runs.insert(Ipv4Addr::BROADCAST);
        assert_eq!(runs.free_from(Ipv4Addr::BROADCAST), None);
        runs.remove(Ipv4Addr::BROADCAST);
        assert_eq!(runs, Runs::default());
    }
}
