//! Flows of a VPC as entries of its flow log. Pure, as [`crate::records`] is.
//!
//! Start with [`flow_entry`]. Source: VPC Flow Logs, "Record format".

use std::collections::BTreeMap;

use model::{
    name::{ProjectId, Region, Zone},
    record::{FlowGap, FlowRecord},
    time::Timestamp,
    vpc::{FlowLogs, FlowMetadata},
};
use serde_json::{Map, Value, json};

use crate::{
    entry::{Entry, LogName, Payload, Resource, Severity, insert_id},
    filter::fraction,
};

/// The log of flows.
pub const VPC_FLOWS: &str = "compute.googleapis.com/vpc_flows";

/// Which end of the flow the reporting VM is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reporter {
    Src,
    Dest,
}

/// A VM with the place it is in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VmNames {
    pub project: ProjectId,
    pub zone: Zone,
    pub vm: String,
    pub vpc: VpcNames,
}

/// A network as one subnet of it is seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VpcNames {
    pub project: ProjectId,
    pub network: String,
    pub subnetwork: String,
    pub region: Region,
}

/// One end of a Private Service Connect connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PscNames {
    pub connection_id: u64,
    /// Where the endpoint's address lies, or the attachment's load balancer.
    pub vpc: VpcNames,
}

/// How a flow has to do with Private Service Connect: neither side learns where the other is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Psc {
    /// The far end is an endpoint.
    Consumer(PscNames),
    /// The far end is what came through an attachment.
    Producer(PscNames),
}

/// Who reports a flow, and what is known about its far end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlowNames {
    pub reporter: Reporter,
    /// The reporting VM; none where it is a load balancer.
    pub near: Option<VmNames>,
    /// Where the reporting end is.
    pub vpc: VpcNames,
    /// The id of its subnet.
    pub subnetwork_id: u64,
    /// The VM at the other end, if it is in the same network.
    pub far: Option<VmNames>,
    pub psc: Option<Psc>,
    pub metadata: FlowMetadata,
}

/// Whether this interval of a flow is written. Depends on nothing but its arguments.
///
/// The first interval of a flow always is (unless nothing is): at a rate of 0.5 a user who makes one call would find
/// no trace of it half of the time.
pub fn is_sampled(record: &FlowRecord, settings: &FlowLogs) -> bool {
    if !settings.enable || settings.sampling <= 0.0 {
        return false;
    }
    let identity = format!(
        "{} {} {}:{} {}:{} {}",
        record.network, record.protocol, record.src, record.src_port, record.dst, record.dst_port, record.first.0
    );
    record.opening || fraction(&identity) < settings.sampling
}

/// The flow log's entry of one direction of a flow during one interval.
pub fn flow_entry(record: &FlowRecord, names: &FlowNames, received: Timestamp, chance: u32) -> Entry {
    let mut payload = Map::new();
    let mut put = |key: &str, value: Value| drop(payload.insert(key.to_owned(), value));
    put("connection", connection(record));
    put("reporter", json!(if names.reporter == Reporter::Src { "SRC" } else { "DEST" }));
    put("bytes_sent", json!(record.bytes.to_string()));
    put("packets_sent", json!(record.packets.to_string()));
    put("start_time", json!(nine_digits(record.first)));
    put("end_time", json!(nine_digits(record.last)));
    if names.metadata == FlowMetadata::IncludeAllMetadata {
        let (near, far) = match names.reporter {
            Reporter::Src => ("src", "dest"),
            Reporter::Dest => ("dest", "src"),
        };
        if let Some(vm) = &names.near {
            put(&format!("{near}_instance"), vm.instance());
        }
        put(&format!("{near}_vpc"), names.vpc.to_json());
        if let Some(vm) = &names.far {
            put(&format!("{far}_instance"), vm.instance());
            put(&format!("{far}_vpc"), vm.vpc.to_json());
        }
        if let Some(psc) = &names.psc {
            put("psc", psc.to_json());
        }
    }
    let vpc = &names.vpc;
    let location = names.near.as_ref().map_or_else(|| vpc.region.to_string(), |vm| vm.zone.to_string());
    Entry {
        log_name: LogName::in_project(&vpc.project, VPC_FLOWS),
        resource: Resource::new(
            "gce_subnetwork",
            [
                ("project_id", vpc.project.to_string()),
                ("location", location),
                ("subnetwork_id", names.subnetwork_id.to_string()),
                ("subnetwork_name", vpc.subnetwork.clone()),
            ],
        ),
        timestamp: record.last.into(),
        received: received.into(),
        insert_id: insert_id(record.last, chance),
        severity: Severity::Default,
        labels: BTreeMap::new(),
        http_request: None,
        payload: Some(Payload::Json(payload)),
        trace: String::new(),
        span_id: String::new(),
        trace_sampled: false,
        operation: None,
        source_location: None,
    }
}

/// The label of a flow that carried several requests: the ids of their traces, oldest first, with commas between them.
pub const TRACES: &str = "tombolo.dev/traces";

/// Names the requests that a flow carried in its entry: the first one as its trace, and several all together in a label. An
/// entry has one trace, and an entry for each would count the flow's bytes as often.
pub fn put_traces(entry: &mut Entry, ids: &[String]) {
    let Some(first) = ids.first() else { return };
    entry.trace = format!("{}/traces/{first}", entry.log_name.parent);
    if ids.len() > 1 {
        entry.labels.insert(TRACES.to_owned(), ids.join(","));
    }
}

fn connection(record: &FlowRecord) -> Value {
    let mut out = json!({"protocol": record.protocol, "src_ip": record.src.to_string()});
    let has_ports = matches!(record.protocol, 6 | 17);
    if has_ports {
        out["src_port"] = json!(record.src_port);
    }
    out["dest_ip"] = json!(record.dst.to_string());
    if has_ports {
        out["dest_port"] = json!(record.dst_port);
    }
    out
}

/// Flow records write their times with nine digits, whatever the clock can tell.
fn nine_digits(at: Timestamp) -> String {
    let text = at.rfc3339_us();
    format!("{}000Z", text.trim_end_matches('Z'))
}

impl VmNames {
    fn instance(&self) -> Value {
        json!({
            "project_id": self.project.as_str(),
            "region": self.zone.region().as_str(),
            "zone": self.zone.as_str(),
            "vm_name": self.vm,
        })
    }
}

impl VpcNames {
    fn to_json(&self) -> Value {
        json!({
            "project_id": self.project.as_str(),
            "vpc_name": self.network,
            "subnetwork_name": self.subnetwork,
            "subnetwork_region": self.region.as_str(),
        })
    }
}

impl Psc {
    fn to_json(&self) -> Value {
        match self {
            Psc::Consumer(PscNames { connection_id, vpc }) => json!({
                "reporter": "CONSUMER",
                "psc_endpoint": {
                    "project_id": vpc.project.as_str(),
                    "region": vpc.region.as_str(),
                    "psc_connection_id": connection_id.to_string(),
                    "target_service_type": "PUBLISHED_SERVICE",
                    "vpc": vpc.to_json(),
                },
            }),
            Psc::Producer(PscNames { connection_id, vpc }) => json!({
                "reporter": "PRODUCER",
                "psc_endpoint": {
                    "psc_connection_id": connection_id.to_string(),
                    "target_service_type": "PUBLISHED_SERVICE",
                },
                "psc_attachment": {
                    "project_id": vpc.project.as_str(),
                    "region": vpc.region.as_str(),
                    "vpc": vpc.to_json(),
                },
            }),
        }
    }
}

/// Says in a project's flow log that flows are missing from it. An entry of our own: the real log has no word for it.
pub fn gap_entry(gap: &FlowGap, project: &ProjectId, at: Timestamp, chance: u32) -> Entry {
    let text = format!(
        "Flow records between {} and {} are incomplete: the kernel dropped events.",
        gap.from.rfc3339_us(),
        gap.to.rfc3339_us()
    );
    Entry {
        log_name: LogName::in_project(project, VPC_FLOWS),
        resource: Resource::new("global", [("project_id", project.to_string())]),
        timestamp: gap.to.into(),
        received: at.into(),
        insert_id: insert_id(at, chance),
        severity: Severity::Warning,
        labels: BTreeMap::new(),
        http_request: None,
        payload: Some(Payload::Text(text)),
        trace: String::new(),
        span_id: String::new(),
        trace_sampled: false,
        operation: None,
        source_location: None,
    }
}

#[cfg(test)]
mod tests {
    use model::id::NetworkId;

    use super::*;

    fn at(text: &str) -> Timestamp {
        Timestamp::parse_rfc3339(text).expect("a time")
    }

    fn flow(forward: bool) -> FlowRecord {
        let (near, far) = (([10, 1, 0, 2].into(), 51_234), ([10, 1, 0, 5].into(), 80));
        let (src, dst) = if forward { (near, far) } else { (far, near) };
        FlowRecord {
            network: NetworkId(7),
            protocol: 6,
            src: src.0,
            dst: dst.0,
            src_port: src.1,
            dst_port: dst.1,
            packets: 6,
            bytes: 1_187,
            first: at("2026-05-07T01:40:02.118734Z"),
            last: at("2026-05-07T01:40:02.161034Z"),
            opening: true,
            forward,
        }
    }

    fn names(reporter: Reporter, metadata: FlowMetadata) -> FlowNames {
        let project: ProjectId = "consumer-1".parse().expect("an id");
        let zone: Zone = "asia-northeast1-a".parse().expect("a zone");
        let vpc = VpcNames {
            project: project.clone(),
            network: "consumer-vpc".to_owned(),
            subnetwork: "consumer-subnet".to_owned(),
            region: zone.region(),
        };
        FlowNames {
            reporter,
            near: Some(VmNames { project, zone, vm: "test-vm".to_owned(), vpc: vpc.clone() }),
            vpc: vpc.clone(),
            subnetwork_id: 42,
            far: None,
            psc: Some(Psc::Consumer(PscNames { connection_id: 181_490_208_401_850_373, vpc })),
            metadata,
        }
    }

    #[test]
    fn a_flow_to_an_endpoint_is_reported_by_its_vm() {
        let entry = flow_entry(
            &flow(true),
            &names(Reporter::Src, FlowMetadata::IncludeAllMetadata),
            at("2026-05-07T01:40:07Z"),
            1,
        );
        let entry = entry.to_json();
        let vpc = json!({
            "project_id": "consumer-1", "vpc_name": "consumer-vpc", "subnetwork_name": "consumer-subnet",
            "subnetwork_region": "asia-northeast1"
        });
        let want = json!({
            "connection": {"protocol": 6, "src_ip": "10.1.0.2", "src_port": 51234, "dest_ip": "10.1.0.5", "dest_port": 80},
            "reporter": "SRC", "bytes_sent": "1187", "packets_sent": "6",
            "start_time": "2026-05-07T01:40:02.118734000Z", "end_time": "2026-05-07T01:40:02.161034000Z",
            "src_instance": {
                "project_id": "consumer-1", "region": "asia-northeast1", "zone": "asia-northeast1-a", "vm_name": "test-vm"
            },
            "src_vpc": vpc,
            "psc": {"reporter": "CONSUMER", "psc_endpoint": {
                "project_id": "consumer-1", "region": "asia-northeast1", "psc_connection_id": "181490208401850373",
                "target_service_type": "PUBLISHED_SERVICE", "vpc": vpc
            }}
        });
        assert_eq!(entry["jsonPayload"], want);
        assert_eq!(entry.get("severity"), None);
        assert_eq!(
            entry["resource"],
            json!({"type": "gce_subnetwork", "labels": {
                "project_id": "consumer-1", "location": "asia-northeast1-a", "subnetwork_id": "42",
                "subnetwork_name": "consumer-subnet"
            }})
        );
    }

    #[test]
    fn the_reply_has_the_vm_at_its_other_end() {
        let entry = flow_entry(
            &flow(false),
            &names(Reporter::Dest, FlowMetadata::IncludeAllMetadata),
            at("2026-05-07T01:40:07Z"),
            1,
        );
        let payload = &entry.to_json()["jsonPayload"];
        assert_eq!(payload["reporter"], "DEST");
        assert_eq!(payload["dest_instance"]["vm_name"], "test-vm");
        assert_eq!(payload.get("src_instance"), None);
    }

    #[test]
    fn without_metadata_a_record_has_its_base_fields_only() {
        let entry = flow_entry(
            &flow(true),
            &names(Reporter::Src, FlowMetadata::ExcludeAllMetadata),
            at("2026-05-07T01:40:07Z"),
            1,
        );
        let Some(Payload::Json(payload)) = entry.payload else { panic!("a flow has a JSON payload") };
        let keys: Vec<&str> = payload.keys().map(String::as_str).collect();
        assert_eq!(keys, ["connection", "reporter", "bytes_sent", "packets_sent", "start_time", "end_time"]);
    }

    #[test]
    fn a_protocol_without_ports_shows_none() {
        let ping = FlowRecord { protocol: 1, src_port: 0, dst_port: 0, ..flow(true) };
        let value = connection(&ping);
        assert_eq!(value, json!({"protocol": 1, "src_ip": "10.1.0.2", "dest_ip": "10.1.0.5"}));
    }

    #[test]
    fn sampling_keeps_every_opening_and_its_share_of_the_rest() {
        let settings =
            |sampling| FlowLogs { enable: true, interval_s: 5, sampling, metadata: FlowMetadata::ExcludeAllMetadata };
        let later = |n: u16| FlowRecord { opening: false, src_port: n, ..flow(true) };
        let kept = |sampling| (0..4_000).filter(|n| is_sampled(&later(*n), &settings(sampling))).count();
        assert_eq!(kept(1.0), 4_000);
        assert_eq!(kept(0.0), 0);
        let half = kept(0.5);
        assert!((1_850..2_150).contains(&half), "{half}");
        assert_eq!(half, kept(0.5), "the same records, the same choice");
        assert!(is_sampled(&flow(true), &settings(0.001)));
        assert!(!is_sampled(&flow(true), &settings(0.0)));
        assert!(!is_sampled(&flow(true), &FlowLogs { enable: false, ..settings(1.0) }));
    }

    #[test]
    fn a_connection_through_an_attachment_is_reported_by_the_load_balancer_and_names_nothing_of_the_consumer() {
        let vpc = VpcNames {
            project: "producer-1".parse().expect("an id"),
            network: "producer-vpc".to_owned(),
            subnetwork: "producer-subnet".to_owned(),
            region: "asia-northeast1".parse().expect("a region"),
        };
        let names = FlowNames {
            reporter: Reporter::Dest,
            near: None,
            vpc: vpc.clone(),
            subnetwork_id: 43,
            far: None,
            psc: Some(Psc::Producer(PscNames { connection_id: 181_490_208_401_850_373, vpc })),
            metadata: FlowMetadata::IncludeAllMetadata,
        };
        let entry = flow_entry(&flow(true), &names, at("2026-05-07T01:40:09.001Z"), 7).to_json();
        let vpc = json!({
            "project_id": "producer-1", "vpc_name": "producer-vpc", "subnetwork_name": "producer-subnet",
            "subnetwork_region": "asia-northeast1"
        });
        let payload = &entry["jsonPayload"];
        assert_eq!((&payload["reporter"], &payload["dest_vpc"]), (&json!("DEST"), &vpc));
        assert_eq!(
            payload["psc"],
            json!({
                "reporter": "PRODUCER",
                "psc_endpoint": {
                    "psc_connection_id": "181490208401850373", "target_service_type": "PUBLISHED_SERVICE"
                },
                "psc_attachment": {"project_id": "producer-1", "region": "asia-northeast1", "vpc": vpc}
            })
        );
        assert_eq!(
            entry["resource"]["labels"],
            json!({
                "project_id": "producer-1", "location": "asia-northeast1", "subnetwork_id": "43",
                "subnetwork_name": "producer-subnet"
            })
        );
    }

    #[test]
    fn a_flow_names_the_trace_of_its_request_and_of_several_all_in_a_label() {
        let entry = |ids: &[&str]| {
            let names = names(Reporter::Src, FlowMetadata::IncludeAllMetadata);
            let mut entry = flow_entry(&flow(true), &names, at("2026-05-07T01:40:09.001Z"), 7);
            put_traces(&mut entry, &ids.iter().map(|id| (*id).to_owned()).collect::<Vec<_>>());
            let json = entry.to_json();
            (json["trace"].clone(), json["labels"][TRACES].clone())
        };
        assert_eq!(entry(&[]), (Value::Null, Value::Null));
        assert_eq!(entry(&["0a"]), (json!("projects/consumer-1/traces/0a"), Value::Null));
        assert_eq!(entry(&["0a", "0b"]), (json!("projects/consumer-1/traces/0a"), json!("0a,0b")));
    }
}
