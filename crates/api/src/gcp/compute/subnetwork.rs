//! `subnetworks` on the wire.

use control::{
    kind::Record,
    kinds::subnetwork::{purpose_text, role_text},
    world::World,
};
use model::{
    fault::Fault,
    name::Link,
    vpc::{self, FlowLogs, FlowMetadata, ProxyRole, Purpose},
};
use serde_json::{Value, json};

use super::{
    verbs::{Policies, Visit},
    wire::{Around, Fields, Json, Level, Lock, Wire, put_some},
};
use crate::{call::Answer, error, schema};

const PURPOSES: &[(&str, Purpose)] = &[
    ("PRIVATE", Purpose::Private),
    ("PRIVATE_RFC_1918", Purpose::Private),
    ("REGIONAL_MANAGED_PROXY", Purpose::RegionalManagedProxy),
    ("INTERNAL_HTTPS_LOAD_BALANCER", Purpose::RegionalManagedProxy),
    ("PRIVATE_SERVICE_CONNECT", Purpose::PrivateServiceConnect),
];
const ROLES: &[(&str, ProxyRole)] = &[("ACTIVE", ProxyRole::Active), ("BACKUP", ProxyRole::Backup)];
/// `aggregationInterval`, in seconds.
const INTERVALS: &[(&str, u32)] = &[
    ("INTERVAL_5_SEC", 5),
    ("INTERVAL_30_SEC", 30),
    ("INTERVAL_1_MIN", 60),
    ("INTERVAL_5_MIN", 300),
    ("INTERVAL_10_MIN", 600),
    ("INTERVAL_15_MIN", 900),
];
const METADATA: &[(&str, FlowMetadata)] = &[
    ("INCLUDE_ALL_METADATA", FlowMetadata::IncludeAllMetadata),
    ("EXCLUDE_ALL_METADATA", FlowMetadata::ExcludeAllMetadata),
];
/// Source: VPC Flow Logs, defaults.
const SAMPLING_DEFAULT: f64 = 0.5;
const INTERVAL_S_DEFAULT: u32 = 5;

impl Wire for vpc::Subnetwork {
    const SCHEMA: schema::Kind = schema::Kind::Subnetwork;
    const LEVEL: Level = Level::Region;
    const GET: &'static str = "compute.subnetworks.get";
    const LIST: &'static str = "compute.subnetworks.list";
    const LOCK: Lock = Lock::Required;
    const PATCH: Option<&'static str> = Some("patch");

    const POLICIES: Option<Policies> =
        Some(Policies { get: "compute.subnetworks.getIamPolicy", set: "compute.subnetworks.setIamPolicy" });

    fn read(fields: &Fields<'_>) -> Result<Self, Fault> {
        let purpose = fields.word("purpose", PURPOSES)?.unwrap_or(Purpose::Private);
        Ok(vpc::Subnetwork {
            network: fields.required_link("network")?,
            range: fields.cidr("ipCidrRange")?.ok_or_else(|| fields.required("ipCidrRange"))?,
            purpose,
            role: fields.word("role", ROLES)?,
            private_ip_google_access: fields.flag("privateIpGoogleAccess")?.unwrap_or(false),
            flow_logs: read_flow_logs(fields)?,
            description: fields.written("description"),
        })
    }

    fn write(record: &Record<Self>, _: &World, out: &mut Json) {
        let spec = &record.spec;
        put_some(out, "description", spec.description.clone());
        out.insert("network".into(), spec.network.url().into());
        out.insert("ipCidrRange".into(), spec.range.to_string().into());
        out.insert("gatewayAddress".into(), spec.range.gateway().to_string().into());
        out.insert("privateIpGoogleAccess".into(), spec.private_ip_google_access.into());
        out.insert("privateIpv6GoogleAccess".into(), "DISABLE_GOOGLE_ACCESS".into());
        out.insert("purpose".into(), purpose_text(spec.purpose).into());
        put_some(out, "role", spec.role.map(role_text));
        out.insert("stackType".into(), "IPV4_ONLY".into());
        out.insert("state".into(), "READY".into());
        if let Some(logs) = &spec.flow_logs {
            if logs.enable {
                out.insert("enableFlowLogs".into(), true.into());
            }
            out.insert("logConfig".into(), write_flow_logs(logs));
        }
    }

    fn follow(&mut self, before: &Self) -> Result<(), Fault> {
        if self.range != before.range {
            let why = "The range can only be changed by expandIpCidrRange.";
            return Err(Fault::invalid_value("ipCidrRange", &self.range.to_string(), why));
        }
        Ok(())
    }

    /// The older flag follows `logConfig.enable`, and the other way round.
    fn align(shown: &mut Json, patch: &Json) {
        let enable = patch.get("logConfig").and_then(|config| config.get("enable")).filter(|v| !v.is_null());
        match (enable, patch.get("enableFlowLogs"), shown.get_mut("logConfig")) {
            (Some(_), None, _) => {
                shown.remove("enableFlowLogs");
            }
            (None, Some(flag), Some(Value::Object(config))) => {
                config.insert("enable".into(), flag.clone());
            }
            (_, _, _) => {}
        }
    }

    fn verb(visit: &Visit<'_>, link: &Link, verb: &str) -> Answer {
        match verb {
            "expandIpCidrRange" => {
                let body = visit.body("SubnetworksExpandIpCidrRangeRequest")?;
                visit.change_by::<Self>(link, verb, "compute.subnetworks.expandIpCidrRange", |world, record| {
                    let around = Around { world, link };
                    let fields = Fields::new(&body, &around);
                    let range = fields.cidr("ipCidrRange")?.ok_or_else(|| fields.required("ipCidrRange"))?;
                    if range == record.spec.range {
                        let why = format!("New IP range must be larger than the existing range {range}.");
                        return Err(fields.fault("ipCidrRange", &range.to_string(), &why));
                    }
                    record.spec.range = range;
                    Ok(())
                })
            }
            "setPrivateIpGoogleAccess" => {
                let body = visit.body("SubnetworksSetPrivateIpGoogleAccessRequest")?;
                let permission = "compute.subnetworks.setPrivateIpGoogleAccess";
                visit.change_by::<Self>(link, verb, permission, |world, record| {
                    let wanted = Fields::new(&body, &Around { world, link }).flag("privateIpGoogleAccess")?;
                    record.spec.private_ip_google_access = wanted.unwrap_or(false);
                    Ok(())
                })
            }
            _ => Err(error::unknown_method()),
        }
    }
}

/// `logConfig`, or the older flag alone. The two must not disagree.
fn read_flow_logs(fields: &Fields<'_>) -> Result<Option<FlowLogs>, Fault> {
    let flag = fields.flag("enableFlowLogs")?;
    let Some(config) = fields.object("logConfig")? else {
        return Ok(flag.map(|enable| FlowLogs {
            enable,
            interval_s: INTERVAL_S_DEFAULT,
            sampling: SAMPLING_DEFAULT,
            metadata: FlowMetadata::IncludeAllMetadata,
        }));
    };
    let enable = config.flag("enable")?;
    if let (Some(flag), Some(enable)) = (flag, enable)
        && flag != enable
    {
        let why = "enableFlowLogs and logConfig.enable must have the same value.";
        return Err(fields.fault("enableFlowLogs", &flag.to_string(), why));
    }
    Ok(Some(FlowLogs {
        enable: enable.or(flag).unwrap_or(false),
        interval_s: config.word("aggregationInterval", INTERVALS)?.unwrap_or(INTERVAL_S_DEFAULT),
        sampling: config.fraction("flowSampling")?.unwrap_or(SAMPLING_DEFAULT),
        metadata: config.word("metadata", METADATA)?.unwrap_or(FlowMetadata::IncludeAllMetadata),
    }))
}

fn write_flow_logs(logs: &FlowLogs) -> Value {
    if !logs.enable {
        return json!({"enable": false});
    }
    let interval = INTERVALS.iter().find(|(_, s)| *s == logs.interval_s).map_or("", |(word, _)| word);
    let metadata = METADATA.iter().find(|(_, m)| *m == logs.metadata).map_or("", |(word, _)| word);
    json!({
        "enable": true,
        "aggregationInterval": interval,
        "flowSampling": logs.sampling,
        "metadata": metadata,
    })
}
