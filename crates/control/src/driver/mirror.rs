//! What another process was last told, so that only differences are sent.

use std::collections::BTreeMap;

pub(super) struct Mirror<K, V> {
    sent: BTreeMap<K, V>,
}

/// One difference.
#[derive(Debug, PartialEq)]
pub(super) enum Delta<K, V> {
    Set(K, V),
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

    pub fn keys(&self) -> impl Iterator<Item = &K> {
        self.sent.keys()
    }

    /// What to send so that the other side holds this; afterwards it counts as sent.
    pub fn update(&mut self, key: K, want: Option<V>) -> Option<Delta<K, V>> {
        if !self.differs(&key, want.as_ref()) {
            return None;
        }
        Some(match want {
            Some(value) => {
                self.sent.insert(key.clone(), value.clone());
                Delta::Set(key, value)
            }
            None => {
                self.sent.remove(&key);
                Delta::Unset(key)
            }
        })
    }

    /// Whether something would have to be said, were there somebody to say it to.
    pub fn differs(&self, key: &K, want: Option<&V>) -> bool {
        self.sent.get(key) != want
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_differences_are_sent_and_everything_again_after_the_other_side_forgot() {
        let mut mirror = Mirror::new();
        assert_eq!(mirror.update("a", Some(1)), Some(Delta::Set("a", 1)));
        assert_eq!(mirror.update("a", Some(1)), None);
        assert!(mirror.differs(&"a", Some(&2)) && mirror.differs(&"a", None), "what goes is news as well");
        assert_eq!(mirror.update("a", Some(2)), Some(Delta::Set("a", 2)));
        assert_eq!(mirror.update("b", None), None, "nobody was told of it");
        assert_eq!(mirror.update("a", None), Some(Delta::Unset("a")));
        assert_eq!(mirror.update("a", Some(2)), Some(Delta::Set("a", 2)));
        mirror.forget();
        assert_eq!(mirror.update("a", Some(2)), Some(Delta::Set("a", 2)));
    }
}
