//! Firewall rules.

use model::{
    fault::Fault,
    name::Link,
    vpc::{self, Direction},
};

use crate::{
    kind::{Kind, Need, Record, Reference},
    kinds::place,
    ops::Txn,
    world::World,
};

/// IANA numbers of the protocols that have ports: TCP, UDP, SCTP.
const PROTOCOLS_WITH_PORTS: [u8; 3] = [6, 17, 132];
/// Entries of one list. Source: VPC firewall rules, "Specifications".
const RANGES_MAX: usize = 5_000;
const SOURCE_TAGS_MAX: usize = 30;
const TARGET_TAGS_MAX: usize = 70;

impl Kind for vpc::Firewall {
    const COLLECTION: &'static str = "firewalls";
    const WIRE_KIND: &'static str = "firewall";
    const WORD: &'static str = "firewall";

    fn needs_to_create(&self, me: &Link) -> Vec<Need> {
        needs("compute.firewalls.create", self, me)
    }

    fn needs_to_update(&self, me: &Link) -> Vec<Need> {
        needs("compute.firewalls.update", self, me)
    }

    fn needs_to_delete(&self, me: &Link) -> Vec<Need> {
        needs("compute.firewalls.delete", self, me)
    }

    fn references(&self) -> Vec<Reference> {
        vec![Reference { field: "network", to: self.network.clone() }]
    }

    fn check(&self, old: Option<&Self>) -> Result<(), Fault> {
        if old.is_some_and(|old| old.network != self.network) {
            return Err(place::immutable("network", &self.network.url()));
        }
        if old.is_some_and(|old| old.direction != self.direction) {
            return Err(place::immutable("direction", direction_text(self.direction)));
        }
        check_direction(self)?;
        check_ports(self)?;
        for (field, len, max) in [
            ("sourceRanges", self.source_ranges.len(), RANGES_MAX),
            ("destinationRanges", self.destination_ranges.len(), RANGES_MAX),
            ("sourceTags", self.source_tags.len(), SOURCE_TAGS_MAX),
            ("targetTags", self.target_tags.len(), TARGET_TAGS_MAX),
        ] {
            if len > max {
                let why = format!("At most {max} values may be specified.");
                return Err(Fault::invalid_value(field, &len.to_string(), &why));
            }
        }
        Ok(())
    }

    fn admit(record: &mut Record<Self>, _: Option<&Record<Self>>, _: &World, _: &mut Txn) -> Result<(), Fault> {
        place::same_project("network", &record.link, &record.spec.network)
    }

    fn retire(_: &Record<Self>, _: &World, _: &mut Txn) -> Result<(), Fault> {
        Ok(())
    }
}

/// Every write to a rule is a write to its network's policy.
fn needs(permission: &'static str, rule: &vpc::Firewall, me: &Link) -> Vec<Need> {
    vec![Need::on(permission, me), Need::on("compute.networks.updatePolicy", &rule.network)]
}

fn check_direction(rule: &vpc::Firewall) -> Result<(), Fault> {
    if rule.direction == Direction::Ingress {
        return Ok(());
    }
    let why = "Cannot be specified for an EGRESS rule.";
    if let Some(range) = rule.source_ranges.first() {
        return Err(Fault::invalid_value("sourceRanges", &range.to_string(), why));
    }
    if let Some(tag) = rule.source_tags.first() {
        return Err(Fault::invalid_value("sourceTags", tag, why));
    }
    Ok(())
}

fn check_ports(rule: &vpc::Firewall) -> Result<(), Fault> {
    let list = match rule.action {
        vpc::Action::Allow => "allowed",
        vpc::Action::Deny => "denied",
    };
    if rule.protocols.is_empty() {
        return Err(Fault::invalid_value(list, "", "Exactly one of allowed and denied must be specified."));
    }
    for (i, entry) in rule.protocols.iter().enumerate() {
        let has_ports = entry.protocol.is_some_and(|p| PROTOCOLS_WITH_PORTS.contains(&p));
        if !entry.ports.is_empty() && !has_ports {
            let why = "Ports can only be specified for the protocols TCP, UDP and SCTP.";
            return Err(Fault::invalid_value(&format!("{list}[{i}].ports"), &entry.written, why));
        }
        if let Some(range) = entry.ports.iter().find(|range| range.first > range.last) {
            let value = format!("{}-{}", range.first, range.last);
            let why = "The first port of a range must not be greater than the last.";
            return Err(Fault::invalid_value(&format!("{list}[{i}].ports"), &value, why));
        }
    }
    Ok(())
}

pub fn direction_text(direction: Direction) -> &'static str {
    match direction {
        Direction::Ingress => "INGRESS",
        Direction::Egress => "EGRESS",
    }
}
