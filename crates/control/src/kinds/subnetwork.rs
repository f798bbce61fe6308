//! Subnets: which ranges may stand beside each other in a network, and the roles of proxy-only subnets.

use model::{
    cidr::Cidr,
    fault::{Code, Fault},
    lb, limits,
    name::Link,
    psc,
    vpc::{self, ProxyRole, Purpose},
};

use crate::{
    kind::{Kind, Need, Record, Reference},
    kinds::{network, place, service_attachment::Round},
    ops::Txn,
    psc::Reach,
    world::World,
};

/// Blocks that no subnet may touch. Source: VPC "Prohibited IPv4 subnet ranges"; the last one is where tunnels of the
/// Identity-Aware Proxy come from, and nobody may look like them.
const FORBIDDEN: [([u8; 4], u8); 8] = [
    ([0, 0, 0, 0], 8),
    ([127, 0, 0, 0], 8),
    ([169, 254, 0, 0], 16),
    ([224, 0, 0, 0], 4),
    ([255, 255, 255, 255], 32),
    ([199, 36, 153, 4], 30),
    ([199, 36, 153, 8], 30),
    ([35, 235, 240, 0], 20),
];

impl Kind for vpc::Subnetwork {
    const COLLECTION: &'static str = "subnetworks";
    const WIRE_KIND: &'static str = "subnetwork";
    const WORD: &'static str = "subnetwork";

    fn needs_to_create(&self, me: &Link) -> Vec<Need> {
        vec![Need::on("compute.subnetworks.create", me), Need::on("compute.networks.updatePolicy", &self.network)]
    }

    fn needs_to_update(&self, me: &Link) -> Vec<Need> {
        vec![Need::on("compute.subnetworks.update", me)]
    }

    fn needs_to_delete(&self, me: &Link) -> Vec<Need> {
        vec![Need::on("compute.subnetworks.delete", me)]
    }

    fn references(&self) -> Vec<Reference> {
        vec![Reference { field: "network", to: self.network.clone() }]
    }

    fn check(&self, old: Option<&Self>) -> Result<(), Fault> {
        check_range(self)?;
        check_purpose(self)?;
        if let Some(logs) = &self.flow_logs
            && !(0.0..=1.0).contains(&logs.sampling)
        {
            let why = "Must be between 0.0 and 1.0.";
            return Err(Fault::invalid_value("logConfig.flowSampling", &logs.sampling.to_string(), why));
        }
        old.map_or(Ok(()), |old| check_change(self, old))
    }

    fn admit(record: &mut Record<Self>, old: Option<&Record<Self>>, world: &World, txn: &mut Txn) -> Result<(), Fault> {
        place::same_project("network", &record.link, &record.spec.network)?;
        if old.is_none_or(|old| old.spec.range != record.spec.range) {
            admit_range(record, world)?;
        }
        if record.spec.purpose == Purpose::RegionalManagedProxy {
            admit_role(record, old, world, txn)?;
        }
        if old.is_some_and(|old| old.spec.range != record.spec.range)
            && let Some(attachment) = nat_user(&record.link, world)
        {
            Round { resized: Some(record), ..Round::new(attachment, Reach::Waiting) }.settle(world, txn);
        }
        Ok(())
    }

    fn retire(record: &Record<Self>, world: &World, _: &mut Txn) -> Result<(), Fault> {
        if record.spec.role != Some(ProxyRole::Active) {
            return Ok(());
        }
        let backup = proxy_subnets(record, world).find(|other| other.spec.role == Some(ProxyRole::Backup));
        if backup.is_some() {
            let why = "Invalid resource usage: Cannot delete ACTIVE subnetwork because a BACKUP subnetwork exists.";
            return Err(Fault::new(Code::InvalidArgument, "invalidUsage", why));
        }
        let rules = world.referrers(&record.spec.network).filter_map(|user| world.get::<lb::ForwardingRule>(user));
        let is_front = |rule: &&Record<lb::ForwardingRule>| {
            rule.link.scope == record.link.scope && matches!(rule.spec.target, lb::Target::HttpProxy { .. })
        };
        match rules.into_iter().find(is_front) {
            Some(rule) => Err(Fault::in_use(Self::WORD, &record.link, &rule.link)),
            None => Ok(()),
        }
    }
}

fn check_range(spec: &vpc::Subnetwork) -> Result<(), Fault> {
    let text = spec.range.to_string();
    let (min, max) = (
        limits::SUBNET_PREFIX_BITS_MIN,
        match spec.purpose {
            Purpose::RegionalManagedProxy => limits::PROXY_SUBNET_PREFIX_BITS_MAX,
            Purpose::Private | Purpose::PrivateServiceConnect => limits::SUBNET_PREFIX_BITS_MAX,
        },
    );
    if !(min..=max).contains(&spec.range.prefix_bits()) {
        let why = format!("The prefix length must be between /{min} and /{max}.");
        return Err(Fault::invalid_value("ipCidrRange", &text, &why));
    }
    let blocks = FORBIDDEN.iter().map(|(base, bits)| Cidr::containing((*base).into(), *bits));
    match blocks.into_iter().find(|block| block.overlaps(spec.range)) {
        Some(block) => {
            let why = format!("Invalid IPCidrRange: {text} conflicts with reserved IP range '{block}'.");
            Err(Fault::invalid_value("ipCidrRange", &text, &why))
        }
        None => Ok(()),
    }
}

fn check_purpose(spec: &vpc::Subnetwork) -> Result<(), Fault> {
    let is_proxy = spec.purpose == Purpose::RegionalManagedProxy;
    match spec.role {
        None if is_proxy => {
            return Err(Fault::invalid_value("role", "", "Role must be set for subnetworks with this purpose."));
        }
        Some(role) if !is_proxy => {
            let why = "Role can only be set for proxy-only subnetworks.";
            return Err(Fault::invalid_value("role", role_text(role), why));
        }
        None | Some(_) => {}
    }
    if is_proxy && spec.flow_logs.as_ref().is_some_and(|logs| logs.enable) {
        let why = "Flow logs are not supported for proxy-only subnetworks.";
        return Err(Fault::invalid_value("logConfig.enable", "true", why));
    }
    if spec.purpose != Purpose::Private && spec.private_ip_google_access {
        let why = "Private Google Access is only supported for subnetworks with purpose PRIVATE.";
        return Err(Fault::invalid_value("privateIpGoogleAccess", "true", why));
    }
    Ok(())
}

fn check_change(new: &vpc::Subnetwork, old: &vpc::Subnetwork) -> Result<(), Fault> {
    if new.network != old.network {
        return Err(place::immutable("network", &new.network.url()));
    }
    if new.purpose != old.purpose {
        return Err(place::immutable("purpose", purpose_text(new.purpose)));
    }
    if new.range != old.range && (new.purpose == Purpose::RegionalManagedProxy || !new.range.covers(old.range)) {
        let why = match new.purpose {
            Purpose::RegionalManagedProxy => "The range of a proxy-only subnetwork cannot be expanded.".to_owned(),
            Purpose::Private | Purpose::PrivateServiceConnect => {
                format!("New IP range must be a superset of the existing range {}.", old.range)
            }
        };
        return Err(Fault::invalid_value("ipCidrRange", &new.range.to_string(), &why));
    }
    if old.role == Some(ProxyRole::Active) && new.role == Some(ProxyRole::Backup) {
        let why = "An ACTIVE subnetwork becomes BACKUP when the BACKUP subnetwork is made ACTIVE.";
        return Err(Fault::invalid_value("role", "BACKUP", why));
    }
    Ok(())
}

/// The range is free in its network.
fn admit_range(record: &Record<vpc::Subnetwork>, world: &World) -> Result<(), Fault> {
    let range = record.spec.range;
    let siblings = world.referrers(&record.spec.network).filter_map(|link| world.get::<vpc::Subnetwork>(link));
    for other in siblings {
        if other.link != record.link && other.spec.range.overlaps(range) {
            let region = other.link.scope.region().map(|r| r.to_string()).unwrap_or_default();
            return Err(conflict(range, &format!("existing subnetwork '{}' in region '{region}'", other.link.name)));
        }
    }
    let is_auto = world.get::<vpc::Network>(&record.spec.network).is_some_and(|n| n.spec.auto_create_subnetworks);
    let is_auto_subnet = record.link.name == record.spec.network.name;
    if is_auto && !is_auto_subnet && network::auto_block().overlaps(range) {
        return Err(conflict(range, &format!("reserved IP range '{}'", network::auto_block())));
    }
    Ok(())
}

fn conflict(range: Cidr, with: &str) -> Fault {
    let why = format!("Invalid IPCidrRange: {range} conflicts with {with}.");
    Fault::new(Code::InvalidArgument, "invalidUsage", why)
}

/// At most one ACTIVE and one BACKUP per network and region; making the BACKUP active swaps the two.
fn admit_role(
    record: &Record<vpc::Subnetwork>,
    old: Option<&Record<vpc::Subnetwork>>,
    world: &World,
    txn: &mut Txn,
) -> Result<(), Fault> {
    let Some(role) = record.spec.role else { return Ok(()) };
    let rival = proxy_subnets(record, world).find(|other| other.spec.role == Some(role));
    let Some(rival) = rival else { return Ok(()) };
    let becomes_active = role == ProxyRole::Active && old.is_some();
    if becomes_active {
        let mut demoted = rival.clone();
        demoted.spec.role = Some(ProxyRole::Backup);
        demoted.generation += 1;
        txn.put(demoted);
        return Ok(());
    }
    let why = format!(
        "Invalid resource usage: '{} proxy-only subnetwork {} already exists in network {} and region {}'.",
        role_text(role),
        rival.link.name,
        record.spec.network.name,
        record.link.scope.region().map(|r| r.to_string()).unwrap_or_default(),
    );
    Err(Fault::new(Code::InvalidArgument, "invalidUsage", why))
}

/// The other proxy-only subnets of the same network and region.
fn proxy_subnets<'w>(
    record: &'w Record<vpc::Subnetwork>,
    world: &'w World,
) -> impl Iterator<Item = &'w Record<vpc::Subnetwork>> {
    let siblings = world.referrers(&record.spec.network).filter_map(|link| world.get::<vpc::Subnetwork>(link));
    siblings.filter(move |other| {
        other.link != record.link
            && other.link.scope == record.link.scope
            && other.spec.purpose == Purpose::RegionalManagedProxy
    })
}

/// The ACTIVE proxy-only subnet of a network in the region of `of`.
pub fn active_proxy_subnet<'w>(network: &Link, of: &Link, world: &'w World) -> Option<&'w Record<vpc::Subnetwork>> {
    let region = of.scope.region();
    let subnets = world.referrers(network).filter_map(|link| world.get::<vpc::Subnetwork>(link));
    subnets.into_iter().find(|s| s.link.scope.region() == region && s.spec.role == Some(ProxyRole::Active))
}

/// The one attachment that translates into this subnet.
pub(crate) fn nat_user<'w>(subnet: &Link, world: &'w World) -> Option<&'w Record<psc::ServiceAttachment>> {
    world.referrers(subnet).find_map(|user| world.get::<psc::ServiceAttachment>(user))
}

pub fn purpose_text(purpose: Purpose) -> &'static str {
    match purpose {
        Purpose::Private => "PRIVATE",
        Purpose::RegionalManagedProxy => "REGIONAL_MANAGED_PROXY",
        Purpose::PrivateServiceConnect => "PRIVATE_SERVICE_CONNECT",
    }
}

pub fn role_text(role: ProxyRole) -> &'static str {
    match role {
        ProxyRole::Active => "ACTIVE",
        ProxyRole::Backup => "BACKUP",
    }
}
