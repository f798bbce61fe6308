//! What is kept for a time and then forgotten: finished operations, and credentials taken back that are dead by now.
//!
//! Start with [`over`], which decides; [`sweep`] commits it.

use model::{
    fault::Fault,
    limits::{OPERATION_KEEP, OPERATIONS_MAX},
    time::Timestamp,
};

use crate::{
    operation::OperationState,
    ops::{Change, Control},
    world::World,
};

/// Changes of one commit; the rest goes with the next.
const AT_ONCE: usize = 200;

/// Forgets what is over. Commits nothing when nothing is.
pub fn sweep(control: &Control) -> Result<(), Fault> {
    if over(&control.read(), control.now()).next().is_none() {
        return Ok(());
    }
    control.commit(|world, txn| {
        over(world, txn.now).take(AT_ONCE).for_each(|change| txn.push(change));
        Ok(())
    })?;
    Ok(())
}

/// What nobody will ask about any more.
fn over(world: &World, now: Timestamp) -> impl Iterator<Item = Change> + '_ {
    let old = move |ended: Timestamp| now.since(ended) > OPERATION_KEEP;
    // Names begin with the time at which the operation was begun: the first are the oldest.
    let surplus = world.operations.len().saturating_sub(OPERATIONS_MAX);
    let operations = world.operations.values().enumerate().filter_map(move |(n, o)| match o.state {
        OperationState::Done { at, .. } if n < surplus || old(at) => Some(Change::NoOperation(o.name.clone())),
        OperationState::Done { .. } | OperationState::Running => None,
    });
    let of_run = world.run_operations.values().filter(move |o| old(o.created));
    let revoked = world.revoked.iter().filter(move |(_, until)| **until <= now);
    operations
        .chain(of_run.map(|o| Change::NoRunOperation(o.id.clone())))
        .chain(revoked.map(|(digest, _)| Change::NoRevoked(digest.clone())))
}

#[cfg(test)]
mod tests {
    use model::{
        id::ResourceId,
        name::{Link, Scope},
    };

    use super::*;
    use crate::operation::Operation;

    fn operation(n: u64, state: OperationState) -> Operation {
        let project = "producer-1".parse().expect("an id");
        let target = Link::new(&project, Scope::Global, "networks", "n");
        Operation {
            name: format!("operation-{n:013}"),
            id: ResourceId(n),
            project,
            scope: Scope::Global,
            verb: "insert".into(),
            target,
            target_id: ResourceId(1),
            user: String::new(),
            inserted: Timestamp(0),
            request_id: None,
            state,
        }
    }

    fn forgotten(world: &World, now: Timestamp) -> Vec<Change> {
        over(world, now).collect()
    }

    #[test]
    fn an_operation_is_forgotten_when_it_has_been_over_for_its_time_and_never_while_it_runs() {
        let mut world = World::default();
        let done = |s| OperationState::Done { at: Timestamp::from_unix_s(s), fault: None };
        for (n, state) in [(1, done(10)), (2, done(20)), (3, OperationState::Running)] {
            let operation = operation(n, state);
            world.operations.insert(operation.name.clone(), operation);
        }
        let kept = Timestamp::from_unix_s(10).plus(OPERATION_KEEP);
        assert_eq!(forgotten(&world, kept), []);
        let over = Timestamp::from_unix_s(11).plus(OPERATION_KEEP);
        assert_eq!(forgotten(&world, over), [Change::NoOperation("operation-0000000000001".into())]);
    }

    #[test]
    fn of_too_many_operations_the_oldest_finished_ones_go() {
        let mut world = World::default();
        let now = Timestamp::from_unix_s(10);
        for n in 0..OPERATIONS_MAX + 3 {
            let n = u64::try_from(n).expect("a count");
            let state = if n == 1 { OperationState::Running } else { OperationState::Done { at: now, fault: None } };
            let operation = operation(n, state);
            world.operations.insert(operation.name.clone(), operation);
        }
        let names = [0, 2].map(|n| Change::NoOperation(format!("operation-{n:013}")));
        assert_eq!(forgotten(&world, now), names);
    }

    #[test]
    fn a_revoked_credential_is_remembered_until_it_would_have_expired() {
        let mut world = World::default();
        world.revoked.insert("aa".into(), Timestamp(5));
        assert_eq!(forgotten(&world, Timestamp(4)), []);
        assert_eq!(forgotten(&world, Timestamp(5)), [Change::NoRevoked("aa".into())]);
    }
}
