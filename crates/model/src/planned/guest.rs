//! Plans for the server at 169.254.169.254: metadata, tokens and DNS. It holds no key; it asks control to mint for the
//! workload that is behind an interface, and can name no other.

use std::{collections::BTreeMap, fmt, net::Ipv4Addr};

use serde::{Deserialize, Serialize};

use crate::{
    directory::{NamespaceName, ServiceName},
    id::NetworkId,
    login::LoginProfile,
    name::Link,
};

/// The router through which a workload asks. Inside it the first firewall rule ties interface and source address
/// together, so router and source address name the workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Realm {
    Vpc(NetworkId),
    Fabric,
}

/// A workload as its neighbours know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Seat {
    pub realm: Realm,
    pub address: Ipv4Addr,
}

impl fmt::Display for Seat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.realm {
            Realm::Vpc(n) => write!(f, "{} in vpc {n}", self.address),
            Realm::Fabric => write!(f, "{} in the fabric", self.address),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum GuestItem {
    Workload(Seat, Box<Identity>),
    Names(Realm, Named, Names),
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum GuestKey {
    Workload(Seat),
    Names(Realm, Named),
}

/// What has names in a realm.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Named {
    Vm(Link),
    /// A namespace of Service Directory: its zone, whether or not there is a name in it.
    Namespace(NamespaceName),
    Service(ServiceName),
}

/// What a resource is called in a realm and where it is. Names are fully qualified, lower case, without the final dot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Names {
    /// The private zone they are in, which answers for all that is below it while anything is said to be in it. None: the
    /// cloud's own names, which are found by address too.
    pub zone: Option<String>,
    pub names: Vec<String>,
    pub addresses: Vec<Ipv4Addr>,
}

/// What a workload may learn about itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Identity {
    pub project_id: String,
    pub project_number: u64,
    pub project_attributes: BTreeMap<String, String>,
    pub region: String,
    pub zone: String,
    /// None: no service account; nothing is minted.
    pub account: Option<Account>,
    pub machine: Machine,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    pub email: String,
    pub scopes: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Machine {
    Vm {
        id: u64,
        name: String,
        hostname: String,
        machine_type: String,
        tags: Vec<String>,
        attributes: BTreeMap<String, String>,
        address: Ipv4Addr,
        gateway: Ipv4Addr,
        netmask: Ipv4Addr,
        mac: String,
        mtu: u16,
        network: String,
        image: String,
    },
    Container {
        /// Long hex string, unique per instance; the log label `instanceId`.
        instance_id: String,
    },
}

/// Control to guest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ToGuest {
    Set(GuestItem),
    Unset(GuestKey),
    Minted { ticket: u64, outcome: Result<Minted, MintRefusal> },
    Login { ticket: u64, answer: LoginAnswer },
    Mark(u64),
    Complete,
}

/// Guest to control.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum FromGuest {
    Mint { ticket: u64, seat: Seat, want: Want },
    Login { ticket: u64, seat: Seat, question: LoginQuestion },
    Applied(u64),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Want {
    /// No scopes means those of the workload.
    AccessToken {
        scopes: Vec<String>,
    },
    IdToken {
        audience: String,
        full: bool,
    },
}

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Minted {
    pub token: String,
    pub expires_in_s: u64,
}

impl fmt::Debug for Minted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Minted {{ expires_in_s: {} }}", self.expires_in_s)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MintRefusal {
    /// The seat is empty or has no account, or none of the scopes that are asked for.
    NoAccount,
    /// The account is disabled or deleted.
    Unusable,
}

/// What the login of a VM asks about those who come through OS Login.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LoginQuestion {
    User {
        username: String,
    },
    /// Whether the owner of a profile may log in, or become root too.
    Admission {
        profile: String,
        admin: bool,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LoginAnswer {
    /// Whoever may not log in is not known.
    User(Option<Box<LoginProfile>>),
    Admission(bool),
}

/// Host to guest: a frame with sockets beside it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Sockets {
    /// Three descriptors made in the realm's router: TCP listener 169.254.169.254:80, UDP and TCP listener on port 53.
    Serve(Realm),
    Withdraw(Realm),
    Complete,
}
