//! `firewalls` on the wire.

use control::{kind::Record, kinds::firewall::direction_text, world::World};
use model::{
    cidr::Cidr,
    fault::Fault,
    name::{Link, Scope, is_resource_name},
    vpc::{Action, Direction, Firewall, PortRange, ProtocolPorts},
};
use serde_json::{Map, Value, json};

use super::wire::{Fields, Json, Level, Wire, put_some};
use crate::schema;

const DIRECTIONS: &[(&str, Direction)] = &[("INGRESS", Direction::Ingress), ("EGRESS", Direction::Egress)];
/// Source: firewalls `priority`.
const PRIORITY_DEFAULT: u16 = 1_000;
/// IANA numbers of the protocols that have a word here.
const PROTOCOLS: &[(&str, u8)] =
    &[("icmp", 1), ("ipip", 94), ("tcp", 6), ("udp", 17), ("esp", 50), ("ah", 51), ("sctp", 132)];

impl Wire for Firewall {
    const SCHEMA: schema::Kind = schema::Kind::Firewall;
    const LEVEL: Level = Level::Global;
    const GET: &'static str = "compute.firewalls.get";
    const LIST: &'static str = "compute.firewalls.list";
    const PATCH: Option<&'static str> = Some("compute.firewalls.patch");
    const UPDATE: Option<&'static str> = Some("update");

    fn read(fields: &Fields<'_>) -> Result<Self, Fault> {
        let home = &fields.around.link.project;
        let default_network = || Link::new(home, Scope::Global, "networks", "default");
        let (action, protocols) = read_action(fields)?;
        let direction = fields.word("direction", DIRECTIONS)?.unwrap_or(Direction::Ingress);
        let mut rule = Firewall {
            network: fields.link("network")?.unwrap_or_else(default_network),
            direction,
            priority: fields.number("priority")?.unwrap_or(PRIORITY_DEFAULT),
            action,
            protocols,
            source_ranges: fields.cidrs("sourceRanges")?,
            source_tags: tags(fields, "sourceTags")?,
            destination_ranges: fields.cidrs("destinationRanges")?,
            target_tags: tags(fields, "targetTags")?,
            disabled: fields.flag("disabled")?.unwrap_or(false),
            description: fields.written("description"),
        };
        // What is not said means everybody, and is shown so. Source: firewalls `sourceRanges`.
        match direction {
            Direction::Ingress if rule.source_ranges.is_empty() && rule.source_tags.is_empty() => {
                rule.source_ranges.push(Cidr::ALL);
            }
            Direction::Egress if rule.destination_ranges.is_empty() => rule.destination_ranges.push(Cidr::ALL),
            Direction::Ingress | Direction::Egress => {}
        }
        Ok(rule)
    }

    fn write(record: &Record<Self>, _: &World, out: &mut Json) {
        let spec = &record.spec;
        put_some(out, "description", spec.description.clone());
        out.insert("network".into(), spec.network.url().into());
        out.insert("direction".into(), direction_text(spec.direction).into());
        out.insert("priority".into(), spec.priority.into());
        let list = match spec.action {
            Action::Allow => "allowed",
            Action::Deny => "denied",
        };
        out.insert(list.into(), spec.protocols.iter().map(write_protocol).collect());
        for (name, values) in [
            ("sourceRanges", texts(&spec.source_ranges)),
            ("sourceTags", texts(&spec.source_tags)),
            ("destinationRanges", texts(&spec.destination_ranges)),
            ("targetTags", texts(&spec.target_tags)),
        ] {
            if !values.is_empty() {
                out.insert(name.into(), values.into());
            }
        }
        out.insert("disabled".into(), spec.disabled.into());
        out.insert("logConfig".into(), json!({"enable": false}));
    }
}

fn texts(values: &[impl ToString]) -> Vec<Value> {
    values.iter().map(|value| value.to_string().into()).collect()
}

fn tags(fields: &Fields<'_>, name: &str) -> Result<Vec<String>, Fault> {
    let check = |(i, tag): (usize, &&str)| {
        if is_resource_name(tag) {
            return Ok((*tag).to_owned());
        }
        let why = "Must be a match of regex '(?:[a-z](?:[-a-z0-9]{0,61}[a-z0-9])?)'";
        Err(fields.fault(&format!("{name}[{i}]"), tag, why))
    };
    fields.texts(name)?.iter().enumerate().map(check).collect()
}

fn read_action(fields: &Fields<'_>) -> Result<(Action, Vec<ProtocolPorts>), Fault> {
    let read = |name| fields.objects(name)?.iter().map(read_protocol).collect::<Result<Vec<_>, Fault>>();
    let (allowed, denied) = (read("allowed")?, read("denied")?);
    match (allowed.is_empty(), denied.is_empty()) {
        (false, true) => Ok((Action::Allow, allowed)),
        (true, false) => Ok((Action::Deny, denied)),
        (true, true) | (false, false) => {
            Err(fields.fault("allowed", "", "Exactly one of allowed and denied must be specified."))
        }
    }
}

fn read_protocol(fields: &Fields<'_>) -> Result<ProtocolPorts, Fault> {
    let written = fields.text("IPProtocol")?.ok_or_else(|| fields.required("IPProtocol"))?;
    let word = written.to_ascii_lowercase();
    let named = PROTOCOLS.iter().find(|(name, _)| *name == word).map(|(_, number)| *number);
    let protocol = if word == "all" { None } else { named.or_else(|| word.parse().ok()) };
    if protocol.is_none() && word != "all" {
        let why = "Must be a protocol name (tcp, udp, icmp, esp, ah, ipip, sctp), a protocol number or all.";
        return Err(fields.fault("IPProtocol", written, why));
    }
    let ports = fields.texts("ports")?;
    let ports = ports.iter().enumerate().map(|(i, text)| {
        let why = "Must be a port or a range of ports, such as 22 or 8000-8010.";
        parse_ports(text).ok_or_else(|| fields.fault(&format!("ports[{i}]"), text, why))
    });
    Ok(ProtocolPorts { protocol, written: word, ports: ports.collect::<Result<_, _>>()? })
}

/// `22` or `8000-8010`.
pub(super) fn parse_ports(text: &str) -> Option<PortRange> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let port = |text: &str| text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok()).flatten();
    Some(PortRange { first: port(first)?, last: port(last)? })
}

fn write_protocol(entry: &ProtocolPorts) -> Value {
    let mut out = Map::new();
    out.insert("IPProtocol".into(), entry.written.clone().into());
    let text = |range: &PortRange| {
        if range.first == range.last { range.first.to_string() } else { format!("{}-{}", range.first, range.last) }
    };
    if !entry.ports.is_empty() {
        out.insert("ports".into(), entry.ports.iter().map(text).collect());
    }
    Value::Object(out)
}
