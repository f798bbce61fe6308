//! Organisation policies: what a project or an organisation forbids whatever its IAM policies allow.

use serde::{Deserialize, Serialize};

use crate::time::Timestamp;

/// The one constraint that is obeyed: which consumers may connect to a producer's service attachments.
pub const PSC_CONSUMERS: &str = "compute.restrictPrivateServiceConnectConsumer";

/// A policy for one constraint at one place. Source: Organization Policy API v2, `Policy`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OrgPolicy {
    pub spec: Spec,
    /// Microseconds, so that a policy made anew never wears an old etag.
    pub revision: u64,
    pub updated: Timestamp,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Spec {
    pub rules: Vec<Rule>,
    /// What the policy above says holds as well.
    pub inherit: bool,
    /// Back to the constraint's default, whatever is said above.
    pub reset: bool,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Rule {
    AllowAll,
    DenyAll,
    Values { allowed: Vec<Place>, denied: Vec<Place> },
}

/// A node of the hierarchy as a list constraint names it: `under:organizations/N`, `under:folders/N`,
/// `under:projects/P`, `projects/P` (also with `is:`). P is an id or a number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    pub written: String,
    pub node: Node,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Node {
    Project(String),
    /// Every project below an organisation or a folder, by its full name.
    Below(String),
}

impl Place {
    pub fn parse(written: &str) -> Option<Place> {
        let (under, name) = match written.split_once(':') {
            Some(("under", name)) => (true, name),
            Some(("is", name)) => (false, name),
            Some(_) => return None,
            None => (false, written),
        };
        let (collection, id) = name.split_once('/')?;
        let is_number = !id.is_empty() && id.bytes().all(|c| c.is_ascii_digit());
        let node = match collection {
            "projects" if is_number || id.parse::<crate::name::ProjectId>().is_ok() => Node::Project(id.to_owned()),
            "organizations" | "folders" if under && is_number => Node::Below(name.to_owned()),
            _ => return None,
        };
        Some(Place { written: written.to_owned(), node })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_names_a_project_or_everything_below_a_node() {
        let project = |id: &str| Some(Node::Project(id.to_owned()));
        let below = |name: &str| Some(Node::Below(name.to_owned()));
        for (written, node) in [
            ("under:projects/consumer", project("consumer")),
            ("is:projects/consumer", project("consumer")),
            ("projects/consumer", project("consumer")),
            ("projects/123456789", project("123456789")),
            ("under:organizations/1", below("organizations/1")),
            ("under:folders/2", below("folders/2")),
            ("organizations/1", None),
            ("is:folders/2", None),
            ("in:projects/consumer", None),
            ("under:projects/", None),
            ("under:projects/consumer/global/networks/n", None),
            ("under:organizations/name", None),
            ("consumer", None),
            ("", None),
        ] {
            assert_eq!(Place::parse(written).map(|place| place.node), node, "{written}");
        }
    }
}
