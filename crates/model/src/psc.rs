//! Private Service Connect: what a producer publishes, and the state of each consumer's connection to it.

use std::net::Ipv4Addr;

use serde::{Deserialize, Deserializer, Serialize};

use crate::{
    id::{EndpointId, NetworkId, ResourceId},
    limits::PSC_NAT_QUARANTINE,
    name::{Link, ProjectId},
    time::Timestamp,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Preference {
    AcceptAutomatic,
    AcceptManual,
}

/// Whom an accept or reject entry means. All entries of an attachment's two lists are of one form.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Consumer {
    /// By id; a number in the request is translated at the door, and shown back as it was written.
    Project { id: ProjectId, written: String },
    /// By name, so that a network re-created under its name still matches.
    Network(Link),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AcceptEntry {
    pub consumer: Consumer,
    /// Endpoints (not connections) of this consumer that may be ACCEPTED at once.
    pub limit: u32,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ServiceAttachment {
    pub target: Link,
    /// The rule was given by the deprecated `producerForwardingRule` too; both are shown back.
    pub preference: Preference,
    pub nat_subnets: Vec<Link>,
    pub accept: Vec<AcceptEntry>,
    pub reject: Vec<Consumer>,
    /// List changes also reach connections that were decided before. Default false.
    pub reconcile: bool,
    /// NAT addresses that each connection gets, if that was written: 1 or 2, only ever raised.
    #[serde(default)]
    pub nats_per_endpoint: Option<u8>,
    /// `domainNames[0]`, with the final dot: endpoints are called by names below it.
    #[serde(default)]
    pub domain: Option<String>,
    pub description: Option<String>,
}

impl ServiceAttachment {
    /// How many NAT addresses each connection gets.
    pub fn nats_each(&self) -> usize {
        self.nats_per_endpoint.unwrap_or(1).into()
    }
}

/// Source: `pscConnectionStatus` and `connectedEndpoints[].status`, which are always the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ConnectionStatus {
    Accepted,
    Pending,
    Rejected,
    NeedsAttention,
    Closed,
}

impl ConnectionStatus {
    /// Whether packets pass. NEEDS_ATTENTION forwards by the NAT addresses that it has, if any.
    pub fn forwards(self, nats: &[Ipv4Addr]) -> bool {
        match self {
            ConnectionStatus::Accepted | ConnectionStatus::NeedsAttention => !nats.is_empty(),
            ConnectionStatus::Pending | ConnectionStatus::Rejected | ConnectionStatus::Closed => false,
        }
    }

    /// Whether it counts against the limit of its consumer.
    pub fn has_place(self) -> bool {
        matches!(self, ConnectionStatus::Accepted | ConnectionStatus::NeedsAttention)
    }

    pub fn as_str(self) -> &'static str {
        match self {
            ConnectionStatus::Accepted => "ACCEPTED",
            ConnectionStatus::Pending => "PENDING",
            ConnectionStatus::Rejected => "REJECTED",
            ConnectionStatus::NeedsAttention => "NEEDS_ATTENTION",
            ConnectionStatus::Closed => "CLOSED",
        }
    }
}

/// The connection of one consumer endpoint, be it a forwarding rule or a network endpoint group; stored with the attachment it targets (and alone once that is CLOSED).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Connection {
    pub endpoint: EndpointId,
    /// The consumer's forwarding rule or network endpoint group, by name.
    pub rule: Link,
    pub consumer_network: Link,
    pub consumer_network_id: NetworkId,
    /// `pscConnectionId`, shown to both sides.
    pub connection_id: ResourceId,
    pub status: ConnectionStatus,
    /// Its NAT addresses: fewer than the attachment promises while there are no more.
    #[serde(alias = "nat", deserialize_with = "one_or_several")]
    pub nats: Vec<Ipv4Addr>,
    pub created: Timestamp,
}

/// Stores hold `nat`, one address or null, from when a connection had no more than one.
fn one_or_several<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<Ipv4Addr>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Nats {
        Several(Vec<Ipv4Addr>),
        One(Option<Ipv4Addr>),
    }
    Ok(match Nats::deserialize(from)? {
        Nats::Several(all) => all,
        Nats::One(one) => one.into_iter().collect(),
    })
}

/// A NAT address that was released and may not be used again yet.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Quarantined {
    pub address: Ipv4Addr,
    pub until: Timestamp,
}

impl Quarantined {
    /// Also when its end is further away than any rest: it was written by a clock that has been set back since.
    pub fn is_over(&self, now: Timestamp) -> bool {
        self.until <= now || self.until > now.plus(PSC_NAT_QUARANTINE)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::name::Scope;

    #[test]
    fn a_connection_that_was_stored_with_one_nat_address_or_none_is_read() {
        let link = |collection| Link::new(&"consumer".parse().unwrap(), Scope::Global, collection, "x");
        let connection = Connection {
            endpoint: EndpointId(1),
            rule: link("forwardingRules"),
            consumer_network: link("networks"),
            consumer_network_id: NetworkId(2),
            connection_id: ResourceId(3),
            status: ConnectionStatus::Accepted,
            nats: vec![[10, 0, 3, 2].into(), [10, 0, 3, 3].into()],
            created: Timestamp(4),
        };
        let now = serde_json::to_value(&connection).unwrap();
        assert_eq!(serde_json::from_value::<Connection>(now.clone()).unwrap(), connection);
        for (nat, nats) in [(json!("10.0.3.2"), vec![[10, 0, 3, 2].into()]), (json!(null), vec![])] {
            let mut stored = now.clone();
            stored.as_object_mut().unwrap().remove("nats");
            stored["nat"] = nat;
            assert_eq!(
                serde_json::from_value::<Connection>(stored).unwrap(),
                Connection { nats, ..connection.clone() }
            );
        }
    }
}
