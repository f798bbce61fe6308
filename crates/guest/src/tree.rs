//! What a workload may read about itself, as a tree. Pure: an identity goes in, values come out.
//!
//! The tree knows no HTTP. Tokens hang in it as places where one may be asked for; they have no value here and so
//! cannot end up in a listing. Source: metadata server, "default metadata values" and "query parameters".

use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hash, Hasher},
};

use model::planned::guest::{Account, Identity, Machine};
use serde_json::{Map, Value};

pub enum Node {
    Dir(Dir),
    Leaf(Leaf),
    Mint(Endpoint),
}

pub struct Dir {
    shape: Shape,
    entries: BTreeMap<String, Node>,
}

/// How a directory looks as JSON.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Shape {
    /// An object whose members are in camel case.
    Camel,
    /// An object whose members are named by somebody else.
    Verbatim,
    /// Entries are numbered from 0.
    Array,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Leaf {
    Text(String),
    /// Shown unquoted in JSON, also beyond 2^53.
    Number(serde_json::Number),
    /// One value per line, or an array in JSON.
    Lines(Vec<String>),
    /// The same, but JSON is its usual form.
    Array(Vec<String>),
}

/// Where a token can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Endpoint {
    AccessToken,
    IdToken,
}

/// The form in which a value is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alt {
    Text,
    Json,
}

/// A value as it goes to the client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    pub body: String,
    pub form: Alt,
}

impl Node {
    /// The whole tree of a workload, from `/`.
    pub fn root(identity: &Identity) -> Node {
        let v1 = match &identity.machine {
            Machine::Vm { .. } => vm(identity),
            Machine::Container { instance_id } => container(identity, instance_id),
        };
        camel([("computeMetadata", camel([("v1", v1)]))])
    }

    pub fn find(&self, path: &[String]) -> Option<&Node> {
        match path {
            [] => Some(self),
            [name, rest @ ..] => match self {
                Node::Dir(dir) => dir.entries.get(name)?.find(rest),
                Node::Leaf(_) | Node::Mint(_) => None,
            },
        }
    }

    /// Changes whenever the value does, or any value below. Sixteen hex digits.
    pub fn etag(&self) -> String {
        let mut hasher = DefaultHasher::new();
        self.json().to_string().hash(&mut hasher);
        format!("{:016x}", hasher.finish())
    }

    /// Everything below, without tokens.
    pub fn recursive(&self, alt: Option<Alt>) -> Shown {
        match (self, alt.unwrap_or(Alt::Json)) {
            (Node::Leaf(leaf), _) => leaf.shown(alt),
            (_, Alt::Json) => Shown { body: self.json().to_string(), form: Alt::Json },
            (_, Alt::Text) => {
                let mut body = String::new();
                self.lines("", &mut body);
                Shown { body, form: Alt::Text }
            }
        }
    }

    fn json(&self) -> Value {
        match self {
            Node::Mint(_) => Value::Null,
            Node::Leaf(leaf) => leaf.json(),
            Node::Dir(Dir { shape: Shape::Array, entries }) => entries.values().map(Node::json).collect(),
            Node::Dir(Dir { shape, entries }) => {
                let member = |(name, node): (&String, &Node)| match node {
                    Node::Mint(_) => None,
                    Node::Dir(_) | Node::Leaf(_) => Some((shape.member(name), node.json())),
                };
                Value::Object(entries.iter().filter_map(member).collect::<Map<_, _>>())
            }
        }
    }

    fn lines(&self, path: &str, out: &mut String) {
        match self {
            Node::Mint(_) => {}
            Node::Leaf(Leaf::Lines(values) | Leaf::Array(values)) => {
                values.iter().for_each(|value| line(out, path, value));
            }
            Node::Leaf(leaf) => line(out, path, &leaf.shown(Some(Alt::Text)).body),
            Node::Dir(dir) => {
                for (name, node) in &dir.entries {
                    let below = if path.is_empty() { name.clone() } else { format!("{path}/{name}") };
                    node.lines(&below, out);
                }
            }
        }
    }
}

fn line(out: &mut String, path: &str, value: &str) {
    out.push_str(path);
    out.push(' ');
    out.push_str(value);
    out.push('\n');
}

impl Dir {
    /// One name per line; directories end in a slash.
    pub fn listing(&self) -> String {
        let entry = |(name, node): (&String, &Node)| match node {
            Node::Dir(_) => format!("{name}/\n"),
            Node::Leaf(_) | Node::Mint(_) => format!("{name}\n"),
        };
        self.entries.iter().map(entry).collect()
    }
}

impl Leaf {
    pub fn shown(&self, alt: Option<Alt>) -> Shown {
        let usual = match self {
            Leaf::Array(_) => Alt::Json,
            Leaf::Text(_) | Leaf::Number(_) | Leaf::Lines(_) => Alt::Text,
        };
        let form = alt.unwrap_or(usual);
        let body = match (form, self) {
            (Alt::Json, _) => self.json().to_string(),
            (Alt::Text, Leaf::Text(text)) => text.clone(),
            (Alt::Text, Leaf::Number(number)) => number.to_string(),
            (Alt::Text, Leaf::Lines(values) | Leaf::Array(values)) => {
                values.iter().map(|value| format!("{value}\n")).collect()
            }
        };
        Shown { body, form }
    }

    fn json(&self) -> Value {
        match self {
            Leaf::Text(text) => text.clone().into(),
            Leaf::Number(number) => number.clone().into(),
            Leaf::Lines(values) | Leaf::Array(values) => values.clone().into(),
        }
    }
}

impl Shape {
    fn member(self, name: &str) -> String {
        match self {
            Shape::Verbatim | Shape::Array => name.to_owned(),
            Shape::Camel => {
                let mut words = name.split('-');
                let first = words.next().unwrap_or_default().to_owned();
                words.fold(first, |so_far, word| {
                    let (head, tail) = word.split_at(word.chars().next().map_or(0, char::len_utf8));
                    so_far + &head.to_ascii_uppercase() + tail
                })
            }
        }
    }
}

fn dir<const N: usize>(shape: Shape, entries: [(&str, Node); N]) -> Node {
    let entries = entries.into_iter().map(|(name, node)| (name.to_owned(), node)).collect();
    Node::Dir(Dir { shape, entries })
}

fn camel<const N: usize>(entries: [(&str, Node); N]) -> Node {
    dir(Shape::Camel, entries)
}

fn array(entries: Vec<Node>) -> Node {
    let entries = entries.into_iter().enumerate().map(|(i, node)| (i.to_string(), node)).collect();
    Node::Dir(Dir { shape: Shape::Array, entries })
}

fn text(value: impl ToString) -> Node {
    Node::Leaf(Leaf::Text(value.to_string()))
}

fn number(value: impl Into<serde_json::Number>) -> Node {
    Node::Leaf(Leaf::Number(value.into()))
}

fn attributes(of: &BTreeMap<String, String>) -> Node {
    let entries = of.iter().map(|(key, value)| (key.clone(), text(value))).collect();
    Node::Dir(Dir { shape: Shape::Verbatim, entries })
}

fn service_accounts(account: Option<&Account>) -> Node {
    let one = |account: &Account| {
        camel([
            ("aliases", Node::Leaf(Leaf::Lines(vec!["default".to_owned()]))),
            ("email", text(&account.email)),
            ("identity", Node::Mint(Endpoint::IdToken)),
            ("scopes", Node::Leaf(Leaf::Lines(account.scopes.clone()))),
            ("token", Node::Mint(Endpoint::AccessToken)),
        ])
    };
    let names = |account: &Account| [(account.email.clone(), one(account)), ("default".to_owned(), one(account))];
    let entries = account.map(names).into_iter().flatten().collect();
    Node::Dir(Dir { shape: Shape::Verbatim, entries })
}

fn universe() -> Node {
    camel([("universe-domain", text("googleapis.com"))])
}

fn vm(identity: &Identity) -> Node {
    let project = camel([
        ("attributes", attributes(&identity.project_attributes)),
        ("numeric-project-id", number(identity.project_number)),
        ("project-id", text(&identity.project_id)),
    ]);
    camel([("instance", vm_instance(identity)), ("project", project), ("universe", universe())])
}

fn vm_instance(identity: &Identity) -> Node {
    let Machine::Vm { id, name, hostname, machine_type, tags, attributes: own, image, .. } = &identity.machine else {
        return camel([]);
    };
    let scheduling = camel([
        ("automatic-restart", text("TRUE")),
        ("on-host-maintenance", text("MIGRATE")),
        ("preemptible", text("FALSE")),
    ]);
    camel([
        ("attributes", attributes(own)),
        ("hostname", text(hostname)),
        ("id", number(*id)),
        ("image", text(image)),
        ("machine-type", text(within(identity, "machineTypes", machine_type))),
        ("maintenance-event", text("NONE")),
        ("name", text(name)),
        ("network-interfaces", array(vec![interface(identity)])),
        ("preempted", text("FALSE")),
        ("region", text(within(identity, "regions", &identity.region))),
        ("remaining-cpu-time", number(-1)),
        ("scheduling", scheduling),
        ("service-accounts", service_accounts(identity.account.as_ref())),
        ("tags", Node::Leaf(Leaf::Array(tags.clone()))),
        ("virtual-clock", camel([("drift-token", text("0"))])),
        ("zone", text(within(identity, "zones", &identity.zone))),
    ])
}

fn interface(identity: &Identity) -> Node {
    let Machine::Vm { address, gateway, netmask, mac, mtu, network, .. } = &identity.machine else {
        return camel([]);
    };
    camel([
        ("access-configs", array(vec![])),
        ("dns-servers", Node::Leaf(Leaf::Lines(vec![crate::ADDRESS.to_string()]))),
        ("forwarded-ips", array(vec![])),
        ("gateway", text(gateway)),
        ("ip", text(address)),
        ("ip-aliases", array(vec![])),
        ("mac", text(mac)),
        ("mtu", number(*mtu)),
        ("network", text(within(identity, "networks", network))),
        ("subnetmask", text(netmask)),
        ("target-instance-ips", array(vec![])),
    ])
}

/// `projects/123/zones/z`, unless it is a path already.
fn within(identity: &Identity, collection: &str, name: &str) -> String {
    match name.contains('/') {
        true => name.to_owned(),
        false => format!("projects/{}/{collection}/{name}", identity.project_number),
    }
}

fn container(identity: &Identity, instance_id: &str) -> Node {
    let instance = camel([
        ("id", text(instance_id)),
        ("region", text(within(identity, "regions", &identity.region))),
        ("service-accounts", service_accounts(identity.account.as_ref())),
        // Source: Cloud Run; a placeholder, not a zone that exists.
        ("zone", text(within(identity, "zones", &format!("{}-1", identity.region)))),
    ]);
    let project =
        camel([("numeric-project-id", number(identity.project_number)), ("project-id", text(&identity.project_id))]);
    camel([("instance", instance), ("project", project), ("universe", universe())])
}
