//! What a kind of Compute resource must answer, and the one list of kinds.
//!
//! A new kind is: its typed spec in `model`, an `impl Kind` under [`crate::kinds`], a variant in [`Object`], its part of
//! the plan, and its wire form in `api`. The compiler lists the places.

use std::net::Ipv4Addr;

use model::{fault::Fault, id::ResourceId, lb, name::Link, psc, time::Timestamp, vm, vpc};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{ops::Txn, world::World};

/// A stored resource: what the user wants, and what the server added.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record<S> {
    pub id: ResourceId,
    pub link: Link,
    pub created: Timestamp,
    /// Counts changes; the fingerprint shown to users is made of it.
    pub generation: u64,
    pub labels: std::collections::BTreeMap<String, String>,
    pub label_generation: u64,
    pub spec: S,
    /// Legal fields without effect (docs/compat.md), shown back as they came.
    #[serde(default, skip_serializing_if = "serde_json::Map::is_empty")]
    pub inert: serde_json::Map<String, serde_json::Value>,
}

/// A permission to be held, and the resource on which.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Need {
    pub permission: &'static str,
    /// `projects/P/…`; the policy chain starts there.
    pub resource: String,
}

impl Need {
    pub fn on(permission: &'static str, resource: impl ToString) -> Need {
        Need { permission, resource: resource.to_string() }
    }
}

/// A reference from one resource to another: resolved at commit, and in the way of the target's deletion.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    /// The field as the user wrote it, for the error.
    pub field: &'static str,
    pub to: Link,
}

/// A kind's place among all; [`objects!`] gives each its own.
pub trait Stored: Sized {
    fn wrap(record: Record<Self>) -> Object;
    fn peek(object: &Object) -> Option<&Record<Self>>;
}

pub trait Kind: Stored + Clone + PartialEq + Serialize + DeserializeOwned + Send + Sync + 'static {
    /// The collection as it stands in URLs.
    const COLLECTION: &'static str;
    /// `compute#subnetwork`, without the prefix.
    const WIRE_KIND: &'static str;
    /// The word in in-use messages: `target_http_proxy`.
    const WORD: &'static str;

    /// What the caller must hold to create this. The first is the verb's own permission.
    fn needs_to_create(&self, me: &Link) -> Vec<Need>;
    /// The verb's own permission to change it, and further ones.
    fn needs_to_update(&self, me: &Link) -> Vec<Need>;
    fn needs_to_delete(&self, me: &Link) -> Vec<Need>;

    fn references(&self) -> Vec<Reference>;

    /// E-mail addresses of the service accounts that this runs as; its maker must be allowed to act as them.
    fn accounts_used(&self) -> Vec<&str> {
        Vec::new()
    }

    /// Values and immutability, without the world. `old` is set for a change.
    fn check(&self, old: Option<&Self>) -> Result<(), Fault>;

    /// Decides, inside the transaction, whatever depends on other resources: that a range is free, which address an
    /// endpoint gets, which connections an attachment now accepts. May complete `record.spec` and write to other keys.
    fn admit(record: &mut Record<Self>, old: Option<&Record<Self>>, world: &World, txn: &mut Txn) -> Result<(), Fault>;

    /// Undoes what `admit` wrote elsewhere. References in the way were found before.
    fn retire(record: &Record<Self>, world: &World, txn: &mut Txn) -> Result<(), Fault>;

    /// Resources that refer to this one and go with it, so that they are not in the way of its deletion; `retire`
    /// removes them.
    fn companions(_record: &Record<Self>, _world: &World) -> Vec<Link> {
        Vec::new()
    }

    /// Whether this refusal is told by a failed operation rather than by the answer to the request.
    fn is_found_late(_fault: &Fault) -> bool {
        false
    }
}

macro_rules! objects {
    ($($variant:ident($spec:ty)),* $(,)?) => {
        /// Every kind of Compute resource.
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        pub enum Object {
            $($variant(Record<$spec>)),*
        }

        impl Object {
            pub fn link(&self) -> &Link {
                match self { $(Object::$variant(r) => &r.link),* }
            }

            pub fn id(&self) -> ResourceId {
                match self { $(Object::$variant(r) => r.id),* }
            }

            pub fn created(&self) -> Timestamp {
                match self { $(Object::$variant(r) => r.created),* }
            }

            pub fn references(&self) -> Vec<Reference> {
                match self { $(Object::$variant(r) => r.spec.references()),* }
            }

            /// The address of a subnet that this holds, and the subnet.
            pub fn held_address(&self) -> Option<(&Link, Ipv4Addr)> {
                match self {
                    Object::ForwardingRule(r) => Some((&r.spec.subnetwork, r.spec.address)),
                    Object::Instance(r) => Some((&r.spec.subnetwork, r.spec.address)),
                    Object::Address(r) => Some((&r.spec.subnetwork, r.spec.address)),
                    Object::NetworkEndpointGroup(r) => r.spec.psc().map(|psc| (&psc.subnetwork, psc.address)),
                    _ => None,
                }
            }

            /// The word of the kind in in-use messages.
            pub fn word(&self) -> &'static str {
                match self { $(Object::$variant(_) => <$spec as Kind>::WORD),* }
            }
        }

        $(impl Stored for $spec {
            fn wrap(record: Record<Self>) -> Object {
                Object::$variant(record)
            }

            fn peek(object: &Object) -> Option<&Record<Self>> {
                if let Object::$variant(record) = object { Some(record) } else { None }
            }
        })*

        /// The word for what stands in a collection, for messages.
        pub fn word_of(collection: &str) -> &'static str {
            match collection {
                $(<$spec as Kind>::COLLECTION => <$spec as Kind>::WORD,)*
                _ => "target",
            }
        }
    };
}

objects! {
    Network(vpc::Network),
    Subnetwork(vpc::Subnetwork),
    Address(vpc::Address),
    Firewall(vpc::Firewall),
    NetworkEndpointGroup(lb::NetworkEndpointGroup),
    BackendService(lb::BackendService),
    UrlMap(lb::UrlMap),
    TargetHttpProxy(lb::TargetHttpProxy),
    ForwardingRule(lb::ForwardingRule),
    ServiceAttachment(psc::ServiceAttachment),
    Instance(vm::Instance),
}
