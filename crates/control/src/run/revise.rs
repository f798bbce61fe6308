//! Making a revision: its name, its image, and room for it among the others.

use model::{
    fault::{Code, Fault},
    limits,
    run::{Revision, RevisionKey, RevisionState},
};

use super::{image, revisions_of, status};
use crate::{
    ops::{Change, Txn},
    random,
    world::{ServiceRecord, World},
};

/// What Cloud Run ends its revision names with. Source: names of real revisions.
const SUFFIX: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";

/// Makes the revision of the record's template.
pub fn revise(world: &World, txn: &mut Txn, record: &mut ServiceRecord, creator: &str) -> Result<(), Fault> {
    record.templates += 1;
    let name = match &record.spec.template.name {
        Some(name) => {
            let key = RevisionKey { service: record.key.clone(), name: name.clone() };
            if world.revisions.contains_key(&key) {
                let text = format!("Revision named '{name}' with different configuration already exists.");
                return Err(Fault::new(Code::AlreadyExists, "alreadyExists", text));
            }
            name.clone()
        }
        None => fresh_name(world, record),
    };
    let state = match image::resolve(world, &record.spec.template.container.image) {
        Some(image) => (image.digest.clone(), RevisionState::Deploying),
        None => {
            let message = format!("Image '{}' not found.", record.spec.template.container.image);
            let reason = "ContainerMissing".to_owned();
            (String::new(), RevisionState::Failed { since: txn.now, reason, message })
        }
    };
    if matches!(state.1, RevisionState::Failed { .. }) {
        record.transitioned = txn.now;
        // Nothing is to be told to anybody before the failure counts.
        record.observed = record.generation + 1;
    }
    let revision = Revision {
        key: RevisionKey { service: record.key.clone(), name: name.clone() },
        uid: random::uuid(),
        created: txn.now,
        number: record.templates,
        creator: creator.to_owned(),
        template: record.spec.template.clone(),
        image_digest: state.0,
        state: state.1,
    };
    txn.push(Change::Revision(Box::new(revision)));
    record.latest_created = Some(name);
    prune(world, txn, record);
    Ok(())
}

fn fresh_name(world: &World, record: &ServiceRecord) -> String {
    loop {
        let name = format!("{}-{:05}-{}", record.key.name, record.templates, random::text(SUFFIX, 3));
        let key = RevisionKey { service: record.key.clone(), name };
        if !world.revisions.contains_key(&key) {
            return key.name;
        }
    }
}

/// Drops the oldest revisions that serve nothing when there are too many.
fn prune(world: &World, txn: &mut Txn, record: &ServiceRecord) {
    let mut old: Vec<&Revision> = revisions_of(world, &record.key).collect();
    let Some(surplus) = (old.len() + 1).checked_sub(limits::RUN_REVISIONS_MAX).filter(|n| *n > 0) else { return };
    old.sort_by_key(|r| r.number);
    let used = status::targets(world, record);
    let unused = |r: &&&Revision| {
        record.latest_ready.as_deref() != Some(&r.key.name) && !used.iter().any(|t| t.revision == r.key)
    };
    for revision in old.iter().filter(unused).take(surplus) {
        txn.push(Change::NoRevision(revision.key.clone()));
    }
}

/// Revisions that traffic names must exist and must not have failed.
pub fn check_traffic_targets(world: &World, txn: &Txn, record: &ServiceRecord) -> Result<(), Fault> {
    for target in &record.spec.traffic {
        let Some(name) = &target.revision else { continue };
        let made_now = record.latest_created.as_ref() == Some(name)
            && txn.changes().iter().any(|c| matches!(c, Change::Revision(r) if r.key.name == *name));
        let key = RevisionKey { service: record.key.clone(), name: name.clone() };
        match world.revisions.get(&key).map(|r| &r.state) {
            Some(RevisionState::Ready { .. } | RevisionState::Deploying) => {}
            Some(RevisionState::Failed { message, .. }) => {
                return Err(Fault::invalid(format!(
                    "Revision '{name}' is not ready and cannot serve traffic. {message}"
                )));
            }
            None if made_now => {}
            None => {
                return Err(Fault::invalid(format!(
                    "spec.traffic.revision_name: Revision named '{name}' does not exist in service '{}'.",
                    record.key.name
                )));
            }
        }
    }
    Ok(())
}
