//! What the scenes of several tests begin with: a revision, and a container of it in a seat.

use model::{
    id::WorkloadId,
    run::{Container, Probe, Revision, RevisionKey, RevisionState, RevisionTemplate, Scaling, ServiceKey},
    time::Timestamp,
};

use crate::world::{Holder, SeatRecord};

/// The first revision of service `hello` of project `producer-1`, with everything as it is when nobody says otherwise.
pub fn revision() -> Revision {
    let service = ServiceKey {
        project: "producer-1".parse().expect("an id"),
        region: "asia-northeast1".parse().expect("a region"),
        name: "hello".into(),
    };
    let container = Container {
        name: "hello-1".into(),
        image: "hello".into(),
        command: vec![],
        args: vec![],
        env: vec![],
        working_dir: None,
        port: 8_080,
        cpu_millis: 1_000,
        memory_bytes: 512 << 20,
        limits_written: Default::default(),
        startup_probe: Probe::default_for(8_080),
    };
    let template = RevisionTemplate {
        name: None,
        labels: Default::default(),
        annotations: Default::default(),
        container,
        concurrency: 80,
        timeout_s: 300,
        service_account: String::new(),
        scaling: Scaling::default(),
    };
    Revision {
        key: RevisionKey { service, name: "hello-00001-abc".into() },
        uid: "r".into(),
        created: Timestamp(0),
        number: 1,
        creator: String::new(),
        template,
        image_digest: "sha256:00".into(),
        state: RevisionState::Deploying,
    }
}

/// A container of `revision`: instance `00ab`, reached over 169.254.64.2.
pub fn seat(revision: &Revision) -> SeatRecord {
    let holder = Holder::Container {
        revision: revision.key.clone(),
        v6: "fda3:e722:ac3:1::2".parse().expect("an address"),
        v4: [169, 254, 64, 2].into(),
        instance_id: "00ab".into(),
        created: Timestamp(0),
    };
    SeatRecord { workload: WorkloadId("run-1".into()), uid_base: 0, incarnation: 1, holder }
}
