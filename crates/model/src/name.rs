//! How resources are called, and how a reference in a request becomes one canonical [`Link`].

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

macro_rules! text_newtype {
    ($(#[$doc:meta])* $t:ident) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $t(String);

        impl $t {
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $t {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

text_newtype! {
    /// A project id such as `producer-1`. A path may also name a project by number; the door translates.
    ProjectId
}
text_newtype! {
    /// A region such as `asia-northeast1`.
    Region
}
text_newtype! {
    /// A zone such as `asia-northeast1-b`.
    Zone
}

/// The number of a project: 12 digits, assigned by us, never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ProjectNumber(pub u64);

impl fmt::Display for ProjectNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a valid name")]
pub struct NameError(pub String);

fn dns_label(text: &str, min: usize, max: usize) -> bool {
    let b = text.as_bytes();
    (min..=max).contains(&b.len())
        && b[0].is_ascii_lowercase()
        && b.iter().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || *c == b'-')
        && b[b.len() - 1] != b'-'
}

/// Names of Compute resources: RFC 1035 labels of 1 to 63 characters.
pub fn is_resource_name(text: &str) -> bool {
    dns_label(text, 1, 63)
}

impl FromStr for ProjectId {
    type Err = NameError;
    /// 6 to 30 characters of `[a-z][a-z0-9-]*[a-z0-9]` (Resource Manager, "projectId").
    fn from_str(text: &str) -> Result<Self, NameError> {
        if dns_label(text, 6, 30) { Ok(ProjectId(text.to_owned())) } else { Err(NameError(text.to_owned())) }
    }
}

impl FromStr for Region {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        if dns_label(text, 1, 63) { Ok(Region(text.to_owned())) } else { Err(NameError(text.to_owned())) }
    }
}

impl FromStr for Zone {
    type Err = NameError;
    /// A region's name, a hyphen and one letter.
    fn from_str(text: &str) -> Result<Self, NameError> {
        match text.rsplit_once('-') {
            Some((region, letter))
                if dns_label(region, 1, 61) && letter.len() == 1 && letter.as_bytes()[0].is_ascii_lowercase() =>
            {
                Ok(Zone(text.to_owned()))
            }
            _ => Err(NameError(text.to_owned())),
        }
    }
}

impl Zone {
    pub fn region(&self) -> Region {
        Region(self.0[..self.0.len() - 2].to_owned())
    }
}

/// Where a Compute resource lives inside its project.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Scope {
    Global,
    Region(Region),
    Zone(Zone),
}

impl Scope {
    pub fn region(&self) -> Option<Region> {
        match self {
            Scope::Global => None,
            Scope::Region(r) => Some(r.clone()),
            Scope::Zone(z) => Some(z.region()),
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Scope::Global => f.write_str("global"),
            Scope::Region(r) => write!(f, "regions/{r}"),
            Scope::Zone(z) => write!(f, "zones/{z}"),
        }
    }
}

/// The one form in which tombolo stores and compares references to Compute resources.
///
/// The door accepts a full URL of any host, a path from `projects/`, or a path from `global/`, `regions/` or `zones/`;
/// answers always show [`Link::url`]. Source: Compute v1 references; `gcloud` sends `compute.googleapis.com` links and
/// users assert `www.googleapis.com` ones.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Link {
    pub project: ProjectId,
    pub scope: Scope,
    /// The collection as it stands in URLs: `networks`, `forwardingRules`, …
    pub collection: String,
    pub name: String,
}

/// The prefix of every self link (Compute v1; never `compute.googleapis.com`).
pub const SELF_LINK_ROOT: &str = "https://www.googleapis.com/compute/v1/";

impl Link {
    pub fn new(project: &ProjectId, scope: Scope, collection: &str, name: &str) -> Link {
        Link { project: project.clone(), scope, collection: collection.to_owned(), name: name.to_owned() }
    }

    /// Parses any form a client may send. `home` is the project of the request, used where the text names none.
    /// The name part is not checked against the name rule: a link may also end in a numeric id.
    pub fn parse(text: &str, home: &ProjectId) -> Result<Link, NameError> {
        let bad = || NameError(text.to_owned());
        let path = match text.find("://") {
            Some(_) => text.split_once("/compute/v1/").or_else(|| text.split_once("/compute/beta/")).ok_or_else(bad)?.1,
            None => text.strip_prefix('/').unwrap_or(text),
        };
        let mut parts: Vec<&str> = path.split('/').collect();
        let project = if parts.first() == Some(&"projects") && parts.len() > 2 {
            let p = parts[1].parse().map_err(|_| bad())?;
            parts.drain(..2);
            p
        } else {
            home.clone()
        };
        let (scope, rest) = match parts.as_slice() {
            ["global", rest @ ..] => (Scope::Global, rest),
            ["regions", r, rest @ ..] => (Scope::Region(r.parse().map_err(|_| bad())?), rest),
            ["zones", z, rest @ ..] => (Scope::Zone(z.parse().map_err(|_| bad())?), rest),
            _ => return Err(bad()),
        };
        match rest {
            [collection, name] if !collection.is_empty() && !name.is_empty() => {
                Ok(Link { project, scope, collection: (*collection).to_owned(), name: (*name).to_owned() })
            }
            _ => Err(bad()),
        }
    }

    pub fn url(&self) -> String {
        format!("{SELF_LINK_ROOT}{self}")
    }

    /// The URL of the scope itself, as the `region` and `zone` fields show it.
    pub fn scope_url(&self) -> String {
        format!("{SELF_LINK_ROOT}projects/{}/{}", self.project, self.scope)
    }
}

impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "projects/{}/{}/{}/{}", self.project, self.scope, self.collection, self.name)
    }
}

impl TryFrom<String> for Link {
    type Error = NameError;
    fn try_from(text: String) -> Result<Link, NameError> {
        if !text.starts_with("projects/") {
            return Err(NameError(text));
        }
        Link::parse(&text, &ProjectId(String::new()))
    }
}

impl From<Link> for String {
    fn from(link: Link) -> String {
        link.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_of_a_reference_is_one_link() {
        let home: ProjectId = "consumer-1".parse().unwrap();
        let want = "projects/consumer-1/regions/asia-northeast1/subnetworks/s";
        for spelling in [
            "https://www.googleapis.com/compute/v1/projects/consumer-1/regions/asia-northeast1/subnetworks/s",
            "https://compute.googleapis.com/compute/v1/projects/consumer-1/regions/asia-northeast1/subnetworks/s",
            "http://127.0.0.1:4000/compute/v1/projects/consumer-1/regions/asia-northeast1/subnetworks/s",
            "projects/consumer-1/regions/asia-northeast1/subnetworks/s",
            "regions/asia-northeast1/subnetworks/s",
        ] {
            assert_eq!(Link::parse(spelling, &home).unwrap().to_string(), want, "{spelling}");
        }
    }

    #[test]
    fn what_is_no_reference_is_refused() {
        let home: ProjectId = "consumer-1".parse().unwrap();
        for bad in [
            "",
            "s",
            "regions//subnetworks/s",
            "https://example.com/x",
            "projects/p/global/networks/n",
            "global/networks/",
        ] {
            assert!(Link::parse(bad, &home).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_zone_knows_its_region() {
        assert_eq!("asia-northeast1-b".parse::<Zone>().unwrap().region().as_str(), "asia-northeast1");
        assert!("asia".parse::<Zone>().is_err());
    }
}
