//! What another process was last told, so that only differences are sent.

use std::collections::BTreeMap;

pub(super) struct Mirror<K, V> {
    sent: BTreeMap<K, V>,
}

/// One difference, in the order in which it should be sent: additions before removals.
#[derive(Debug, PartialEq)]
pub(super) enum Delta<K, V> {
    /// With what was sent before, if anything.
    Set(K, V, Option<V>),
    Unset(K),
}

impl<K: Ord + Clone, V: PartialEq + Clone> Mirror<K, V> {
    pub fn new() -> Mirror<K, V> {
        Mirror { sent: BTreeMap::new() }
    }

    /// The other side forgot everything.
    pub fn forget(&mut self) {
        self.sent.clear();
    }

    /// It forgot this one.
    pub fn forget_one(&mut self, key: &K) {
        self.sent.remove(key);
    }

    pub fn get(&self, key: &K) -> Option<&V> {
        self.sent.get(key)
    }

    /// What to send so that the other side holds exactly `want`; afterwards it counts as sent.
    pub fn update(&mut self, want: BTreeMap<K, V>) -> Vec<Delta<K, V>> {
        let set = want.iter().filter(|(key, value)| self.sent.get(*key) != Some(*value));
        let set = set.map(|(key, value)| Delta::Set(key.clone(), value.clone(), self.sent.get(key).cloned()));
        let unset = self.sent.keys().filter(|key| !want.contains_key(*key)).cloned().map(Delta::Unset);
        let deltas = set.chain(unset).collect();
        self.sent = want;
        deltas
    }

    /// The keys about which something would have to be said, were there somebody to say it to.
    pub fn pending<'a>(&'a self, want: &'a BTreeMap<K, V>) -> impl Iterator<Item = &'a K> {
        let set = want.iter().filter(|(key, value)| self.sent.get(*key) != Some(*value)).map(|(key, _)| key);
        set.chain(self.sent.keys().filter(|key| !want.contains_key(*key)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_differences_are_sent_and_everything_again_after_the_other_side_forgot() {
        let mut mirror = Mirror::new();
        let one = BTreeMap::from([("a", 1), ("b", 2)]);
        assert_eq!(mirror.update(one.clone()), [Delta::Set("a", 1, None), Delta::Set("b", 2, None)]);
        assert_eq!(mirror.update(one.clone()), []);
        assert_eq!(
            mirror.update(BTreeMap::from([("b", 3), ("c", 4)])),
            [Delta::Set("b", 3, Some(2)), Delta::Set("c", 4, None), Delta::Unset("a")]
        );
        let want = BTreeMap::from([("b", 4), ("d", 5)]);
        assert_eq!(mirror.pending(&want).copied().collect::<Vec<_>>(), ["b", "d", "c"], "what goes is news as well");
        mirror.forget();
        assert_eq!(mirror.update(one).len(), 2);
    }
}
