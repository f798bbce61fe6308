//! What one namespace holds, and the steps from what it holds to what it should. Pure: no sockets here.
//!
//! A step costs what it changes. Chains are small programs that look everything up; when a program changes it is
//! flushed and refilled in the same transaction, so that no packet meets it half full. Tables and ct timeout objects
//! are never deleted.

use std::collections::{BTreeMap, BTreeSet};

use crate::netlink::{
    nft::{Chain, Element, Set, Table, TableFound, Timeouts},
    route::{MarkRule, Neighbour, Route},
};

/// What a namespace should hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    pub routes: BTreeSet<Route>,
    pub neighbours: BTreeSet<Neighbour>,
    pub mark_rules: BTreeSet<MarkRule>,
    pub tables: Vec<Table>,
}

/// What it holds, as far as it is ours to change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    pub routes: BTreeSet<Route>,
    pub neighbours: BTreeSet<Neighbour>,
    pub mark_rules: BTreeSet<MarkRule>,
    /// In the order of [`Wanted::tables`]; None where the table is missing.
    pub tables: Vec<Option<TableFound>>,
}

/// One change. All table changes of a namespace are one transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step<'a> {
    SetRoute(&'a Route),
    DeleteRoute(Route),
    SetNeighbour(&'a Neighbour),
    DeleteNeighbour(Neighbour),
    AddMarkRule(MarkRule),
    NewTable(&'a Table),
    NewTimeouts(&'a Table, Timeouts),
    NewSet(&'a Table, &'a str, &'a Set),
    DeleteSet(&'a Table, String),
    DeleteElements(&'a Table, &'a str, &'a Set, Vec<Element>),
    AddElements(&'a Table, &'a str, &'a Set, Vec<Element>),
    NewChain(&'a Table, &'a str, &'a Chain),
    /// Empty it and fill it with the wanted rules.
    Refill(&'a Table, &'a str, &'a Chain),
    Flush(&'a Table, String),
}

impl Step<'_> {
    /// Takes something away that may have gone by itself.
    pub fn deletes(&self) -> bool {
        matches!(self, Step::DeleteRoute(_) | Step::DeleteNeighbour(_))
    }
}

/// The steps from `found` to `wanted`, in the order in which they must be taken; none when they are equal.
pub fn diff<'a>(wanted: &'a Wanted, found: &Found) -> Vec<Step<'a>> {
    let mut steps = Vec::new();
    for (i, table) in wanted.tables.iter().enumerate() {
        diff_table(table, found.tables.get(i).and_then(Option::as_ref), &mut steps);
    }
    steps.extend(wanted.mark_rules.difference(&found.mark_rules).map(|r| Step::AddMarkRule(*r)));
    let new = wanted.neighbours.iter().filter(|n| !found.neighbours.contains(n));
    steps.extend(new.map(Step::SetNeighbour));
    let new: Vec<_> = wanted.routes.iter().filter(|r| !found.routes.contains(r)).collect();
    // Setting a route replaces the one to the same destination; only the rest needs deleting.
    let replaced: BTreeSet<_> = new.iter().map(|r| (r.table, r.to, r.prefix_bits)).collect();
    let stale = found.routes.difference(&wanted.routes);
    let gone = stale.filter(|r| !replaced.contains(&(r.table, r.to, r.prefix_bits)));
    steps.extend(gone.cloned().map(Step::DeleteRoute));
    steps.extend(new.into_iter().map(Step::SetRoute));
    let there: BTreeSet<_> = wanted.neighbours.iter().map(|n| (&n.at, n.address)).collect();
    let gone = found.neighbours.iter().filter(|n| !there.contains(&(&n.at, n.address)));
    steps.extend(gone.cloned().map(Step::DeleteNeighbour));
    steps
}

fn diff_table<'a>(table: &'a Table, found: Option<&TableFound>, steps: &mut Vec<Step<'a>>) {
    let nothing = TableFound::default();
    if found.is_none() {
        steps.push(Step::NewTable(table));
    }
    let found = found.unwrap_or(&nothing);
    let new_timeouts = table.timeouts.iter().filter(|t| !found.timeouts.contains(&t.name()));
    steps.extend(new_timeouts.map(|t| Step::NewTimeouts(table, *t)));
    for (name, set) in &table.sets {
        diff_set(table, name, set, found.sets.get(name), steps);
    }
    let new_chains = table.chains.iter().filter(|(name, _)| !found.chains.contains_key(*name));
    steps.extend(new_chains.map(|(name, chain)| Step::NewChain(table, name, chain)));
    for (name, chain) in &table.chains {
        let labels = found.chains.get(name).map(Vec::as_slice).unwrap_or_default();
        if !chain.rules.iter().map(|r| r.label()).eq(labels.iter().cloned()) {
            steps.push(Step::Refill(table, name, chain));
        }
    }
    let strange = found.chains.iter().filter(|(name, rules)| !table.chains.contains_key(*name) && !rules.is_empty());
    steps.extend(strange.map(|(name, _)| Step::Flush(table, name.clone())));
    // Last, when no rule refers to them any more.
    let unused = found.sets.keys().filter(|name| !table.sets.contains_key(*name));
    steps.extend(unused.map(|name| Step::DeleteSet(table, name.clone())));
}

fn diff_set<'a>(
    table: &'a Table,
    name: &'a str,
    set: &'a Set,
    found: Option<&BTreeSet<Element>>,
    steps: &mut Vec<Step<'a>>,
) {
    let nothing = BTreeSet::new();
    if found.is_none() {
        steps.push(Step::NewSet(table, name, set));
    }
    let found = found.unwrap_or(&nothing);
    let gone: Vec<_> = found.difference(&set.elements).cloned().collect();
    if !gone.is_empty() {
        steps.push(Step::DeleteElements(table, name, set, gone));
    }
    let new: Vec<_> = set.elements.difference(found).cloned().collect();
    if !new.is_empty() {
        steps.push(Step::AddElements(table, name, set, new));
    }
}

/// What a namespace holds once every step towards `wanted` has been taken.
pub fn after(wanted: &Wanted, before: Found) -> Found {
    let mut found_tables = before.tables.into_iter();
    let tables = wanted.tables.iter().map(|table| Some(table_after(table, found_tables.next().flatten()))).collect();
    let mut mark_rules = before.mark_rules;
    mark_rules.extend(&wanted.mark_rules);
    Found { routes: wanted.routes.clone(), neighbours: wanted.neighbours.clone(), mark_rules, tables }
}

fn table_after(table: &Table, before: Option<TableFound>) -> TableFound {
    let before = before.unwrap_or_default();
    let mut timeouts = before.timeouts;
    timeouts.extend(table.timeouts.iter().map(|t| t.name()));
    let mut chains: BTreeMap<_, _> = before.chains.into_keys().map(|name| (name, Vec::new())).collect();
    chains.extend(table.chains.iter().map(|(n, c)| (n.clone(), c.rules.iter().map(|r| r.label()).collect())));
    let sets = table.sets.iter().map(|(name, set)| (name.clone(), set.elements.clone())).collect();
    TableFound { timeouts, sets, chains }
}

#[cfg(test)]
mod tests {
    use model::{
        id::WorkloadId,
        planned::host::{Port, VpcPlan, VpcSettings},
    };

    use super::*;
    use crate::net::vpc;

    fn wanted(ports: &[&str]) -> Wanted {
        let port = || Port::at("10.0.0.2".parse().unwrap());
        let ports = ports.iter().map(|id| (WorkloadId((*id).to_owned()), port())).collect();
        let settings = VpcSettings { psc_idle_s: 1_200, ..VpcSettings::default() };
        vpc::router(&VpcPlan { settings, ports, ..VpcPlan::default() }, &BTreeMap::new())
    }

    #[test]
    fn nothing_is_left_to_do_after_every_step_was_taken() {
        for (before, now) in [(&[][..], &["a"][..]), (&["a", "b"], &["b"]), (&["a"], &["a"])] {
            let found = after(&wanted(before), Found::default());
            let wanted = wanted(now);
            assert_eq!(diff(&wanted, &after(&wanted, found)), []);
        }
    }

    #[test]
    fn a_vm_that_comes_is_one_element_and_no_chain_is_touched() {
        let found = after(&wanted(&["a"]), Found::default());
        let wanted = wanted(&["a", "b"]);
        let steps = diff(&wanted, &found);
        assert!(matches!(&steps[..], [Step::AddElements(_, "ports", _, new)] if new.len() == 1), "{steps:?}");
    }

    #[test]
    fn a_timeout_object_is_never_taken_away_for_connections_may_live_by_it() {
        let found = after(&wanted(&[]), Found::default());
        let mut changed = wanted(&[]);
        changed.tables[0].timeouts = [Timeouts { established_s: 5, transitory_s: 5 }].into();
        let held = after(&changed, found).tables[0].clone().unwrap_or_default().timeouts;
        assert!(held.contains("psc-1200-30") && held.contains("psc-5-5"), "{held:?}");
    }
}
