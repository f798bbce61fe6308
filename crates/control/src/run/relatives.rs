//! What comes of a service and can be asked for by itself: revisions and operations.

use std::time::Duration;

use model::{
    fault::{Code, Fault},
    limits,
    name::Region,
    run::{Revision, RevisionKey, ServiceKey},
};

use super::{Client, Mode, Outcome, RunOperation, View, absent, outcome, status};
use crate::{ops::Change, world::World};

impl Client<'_> {
    pub fn revision(&self, key: &RevisionKey) -> Result<Revision, Fault> {
        let world = self.control.read();
        self.reach_revision(&world, key, "run.revisions.get").cloned()
    }

    fn reach_revision<'w>(
        &self,
        world: &'w World,
        key: &RevisionKey,
        permission: &'static str,
    ) -> Result<&'w Revision, Fault> {
        let resource = match self.view {
            View::V1 => format!("namespaces/{}/revisions/{}", key.service.project, key.name),
            View::V2 => key.to_string(),
        };
        // A revision has no policy of its own: its service's speaks for it.
        self.open(world, &key.service, permission, &resource)?;
        world.revisions.get(key).ok_or_else(|| absent("REVISION", &key.name, &key.service))
    }

    /// The key of a revision that v1 names without its service.
    pub fn revision_key(&self, project: &str, region: &Region, name: &str) -> Result<RevisionKey, Fault> {
        let world = self.control.read();
        let project = self.enter(&world, project, "run.revisions.get", &format!("/revisions/{name}"))?;
        let named = |r: &&Revision| {
            r.key.name == name && r.key.service.project == project.id && r.key.service.region == *region
        };
        let found = world.revisions.values().find(named).map(|r| r.key.clone());
        found.ok_or_else(|| {
            let service = ServiceKey { project: project.id.clone(), region: region.clone(), name: String::new() };
            absent("REVISION", name, &service)
        })
    }

    /// Revisions of a project and region, newest first; of one service when one is named.
    pub fn revisions(&self, project: &str, region: &Region, service: Option<&str>) -> Result<Vec<Revision>, Fault> {
        let world = self.control.read();
        let project = self.enter(&world, project, "run.revisions.list", "/revisions")?;
        let wanted = |r: &&Revision| {
            let key = &r.key.service;
            key.project == project.id && key.region == *region && service.is_none_or(|s| key.name == s)
        };
        let mut found: Vec<Revision> = world.revisions.values().filter(wanted).cloned().collect();
        found.sort_by(|a, b| b.created.cmp(&a.created).then_with(|| b.number.cmp(&a.number)));
        Ok(found)
    }

    /// Deletes a revision that nothing needs any more.
    pub fn delete_revision(&self, key: &RevisionKey, mode: Mode) -> Result<Revision, Fault> {
        self.write(mode, |world, txn| {
            let revision = self.reach_revision(world, key, "run.revisions.delete")?;
            if let Some(service) = world.services.get(&key.service) {
                let refuse = |why: &str| {
                    let text = format!("Revision '{}' cannot be deleted because it is {why}.", key.name);
                    Err(Fault::new(Code::FailedPrecondition, "failedPrecondition", text))
                };
                if service.latest_created.as_deref() == Some(&key.name) {
                    return refuse("the latest created revision of its service");
                }
                if status::targets(world, service).iter().any(|t| t.revision == *key) {
                    return refuse("receiving traffic or has a traffic tag");
                }
            }
            txn.push(Change::NoRevision(key.clone()));
            Ok(revision.clone())
        })
    }

    /// An operation of this project and region.
    pub fn operation(&self, project: &str, region: &Region, id: &str) -> Result<RunOperation, Fault> {
        let world = self.control.read();
        let what = format!("/locations/{region}/operations/{id}");
        let project = self.enter(&world, project, "run.operations.get", &what)?;
        let here = |o: &&RunOperation| o.service.project == project.id && o.service.region == *region;
        world.run_operations.get(id).filter(here).cloned().ok_or_else(|| {
            Fault::new(
                Code::NotFound,
                "notFound",
                format!("Operation '{id}' in region '{region}' in project '{}' does not exist.", project.id),
            )
        })
    }

    /// The operations of a project and region, newest first.
    pub fn operations(&self, project: &str, region: &Region) -> Result<Vec<RunOperation>, Fault> {
        let world = self.control.read();
        let project = self.enter(&world, project, "run.operations.list", &format!("/locations/{region}/operations"))?;
        let here = |o: &&RunOperation| o.service.project == project.id && o.service.region == *region;
        let mut found: Vec<RunOperation> = world.run_operations.values().filter(here).cloned().collect();
        found.sort_by_key(|o| std::cmp::Reverse(o.created));
        Ok(found)
    }

    /// Forgets an operation; what it began goes on.
    pub fn delete_operation(&self, project: &str, region: &Region, id: &str) -> Result<(), Fault> {
        let operation = self.operation(project, region, id)?;
        self.control.commit(|world, txn| {
            let what = format!("/locations/{region}/operations/{id}");
            self.enter(world, project, "run.operations.delete", &what)?;
            txn.push(Change::NoRunOperation(operation.id.clone()));
            Ok(())
        })?;
        Ok(())
    }

    /// Waits until the operation is done, at most `timeout`. Returns how it stands then.
    pub async fn wait(&self, operation: &RunOperation, timeout: Duration) -> Outcome {
        let deadline = tokio::time::Instant::now() + timeout.min(limits::OPERATION_WAIT_MAX);
        loop {
            let rung = self.control.finished.notified();
            tokio::pin!(rung);
            // From here on no ring is missed: first listen, then look.
            rung.as_mut().enable();
            let outcome = outcome(&self.control.read(), operation);
            if !matches!(outcome, Outcome::Running(_)) {
                return outcome;
            }
            if tokio::time::timeout_at(deadline, rung).await.is_err() {
                return outcome;
            }
        }
    }
}
