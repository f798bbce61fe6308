//! Where a call ended and why. Pure: what is known and what was seen come in, one cause goes out.
//!
//! What was seen decides; what is known only explains it. Where both disagree the verdict says so.

use control::why::{Backend, Balancer, Case, Held, Target};
use model::{
    name::{Link, Scope},
    planned::edge::{EdgeService, Route},
    run::ServiceKey,
    vpc::{Action, Direction, Firewall, PortRange},
};
use proxy::route;

use super::probe::{Connection, Reply, Seen};

/// A request and what is known of where it goes.
#[derive(Debug, Default)]
pub(super) struct Request {
    pub path: String,
    /// Who calls; None: nobody.
    pub account: Option<String>,
    pub token: Option<String>,
    pub audience: Option<String>,
    /// The load balancer's route for it; None where there is no load balancer.
    pub route: Option<Route>,
    pub target: Option<route::Target>,
    pub backend: Option<Backend>,
}

/// How a call ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Verdict {
    /// For programs; stable.
    pub code: &'static str,
    pub what: String,
    /// The command that mends it.
    pub mend: Option<String>,
}

impl Verdict {
    fn new(code: &'static str, what: impl Into<String>) -> Verdict {
        Verdict { code, what: what.into(), mend: None }
    }

    fn mend(self, command: impl Into<String>) -> Verdict {
        Verdict { mend: Some(command.into()), ..self }
    }

    /// The call came to whoever should answer it.
    pub fn is_reached(&self) -> bool {
        matches!(self.code, "reached" | "answered")
    }
}

pub(super) fn judge(case: &Case, port: u16, seen: &Seen, request: Option<&Request>) -> Verdict {
    if let Some((chain, rule)) = seen.routers.iter().find_map(|(_, passage)| passage.dropped.as_ref()) {
        return dropped(case, port, chain, rule);
    }
    match (seen.connection, &seen.reply, request) {
        (Connection::Made, Some(reply), Some(request)) => replied(request, reply),
        (Connection::Made, _, _) => Verdict::new("reached", "The connection was made."),
        (Connection::Refused, _, _) => not_listening(case, port),
        (Connection::Unreachable | Connection::Silent, _, _) => lost(case, port, seen),
    }
}

// ---- packets ----

/// A rule of the tables dropped it. Chains are called as [`host::net::vpc`] calls them.
fn dropped(case: &Case, port: u16, chain: &str, rule: &str) -> Verdict {
    match (chain, rule) {
        ("egress" | "ingress", rule) => firewall(case, port, chain, rule),
        ("raw", _) => Verdict::new("forged-source", "The packet's source is not the VM's own address."),
        ("regions", _) => Verdict::new(
            "other-region",
            "The address is reached from VMs of its own region only: neither global access was allowed when the load \
             balancer's forwarding rule was made, nor Private Service Connect global access on the endpoint.",
        ),
        ("cap", _) => Verdict::new("too-many-connections", "The VPC has as many connections as it may have."),
        ("from_consumer" | "forward", _) => match serves(case) {
            Some(ports) if port < ports.first || port > ports.last => port_not_served(ports, port),
            _ => Verdict::new("dropped", format!("Rule {rule:?} of chain {chain:?} dropped the packet.")),
        },
        _ => Verdict::new("dropped", format!("Rule {rule:?} of chain {chain:?} dropped the packet.")),
    }
}

fn port_not_served(ports: PortRange, port: u16) -> Verdict {
    Verdict::new("port-not-served", format!("The load balancer serves port {}, not {port}.", ports.first))
}

fn serves(case: &Case) -> Option<PortRange> {
    super::balancer(case).map(|Balancer { ports, .. }| *ports)
}

fn firewall(case: &Case, port: u16, chain: &str, rule: &str) -> Verdict {
    let Case { network, from, to, .. } = case;
    let (direction, peers) = match chain {
        "egress" => ("EGRESS", format!("--destination-ranges={to}/32")),
        _ => ("INGRESS", format!("--source-ranges={from}/32")),
    };
    let create = |priority: &str| {
        format!(
            "gcloud compute firewall-rules create allow-tcp-{port} --project={} --network={} --direction={direction} \
             {peers} --allow=tcp:{port}{priority}",
            network.project, network.name
        )
    };
    if case.firewall.contains_key(rule) {
        let code = if chain == "egress" { "egress-firewall" } else { "ingress-firewall" };
        let what = format!("Firewall rule {rule:?} of {network} denies it.");
        return Verdict::new(code, what).mend(create(" --priority=0"));
    }
    let implied = "No ingress rule allows it, so the implied rule denies it.";
    let would_allow = |rule: &&Firewall| {
        let covers = |p: &model::vpc::ProtocolPorts| {
            let all = p.ports.is_empty() || p.ports.iter().any(|r| (r.first..=r.last).contains(&port));
            p.protocol.is_none_or(|number| number == 6) && all
        };
        rule.direction == Direction::Ingress && rule.action == Action::Allow && rule.protocols.iter().any(covers)
    };
    let allowing = |missing: &dyn Fn(&Firewall) -> bool| {
        let mut rules = case.firewall.iter().filter(|(_, rule)| would_allow(rule) && missing(rule));
        rules.next().map(|(name, rule)| (name.clone(), rule.clone()))
    };
    if let Some((name, _)) = allowing(&|rule| rule.disabled) {
        let what = format!("{implied} Rule {name:?} would allow the port, but it is disabled.");
        let command =
            format!("gcloud compute firewall-rules update {name} --project={} --no-disabled", network.project);
        return Verdict::new("rule-disabled", what).mend(command);
    }
    if let Target::Vm { vm, tags, .. } = &case.target
        && let Some((name, rule)) =
            allowing(&|rule| !rule.target_tags.is_empty() && !rule.target_tags.iter().any(|tag| tags.contains(tag)))
    {
        let wanted = rule.target_tags.join(",");
        let what =
            format!("{implied} Rule {name:?} would allow the port for VMs tagged {wanted:?}, which {vm} is not.");
        return Verdict::new("tag-missing", what)
            .mend(format!("gcloud compute instances add-tags {} --tags={wanted}", named(vm)));
    }
    Verdict::new("implied-deny", implied).mend(create(""))
}

fn not_listening(case: &Case, port: u16) -> Verdict {
    match &case.target {
        Target::Vm { vm, .. } => Verdict::new("not-listening", format!("Nothing listens on port {port} of {vm}."))
            .mend(format!("gcloud compute ssh {} --command='ss -ltn'", named(vm))),
        _ => Verdict::new("not-listening", format!("Nothing listens on port {port}.")),
    }
}

/// Nothing dropped the packet and nothing answered it.
fn lost(case: &Case, port: u16, seen: &Seen) -> Verdict {
    match &case.target {
        Target::Endpoint { rule, attachment, held: Some(held), .. } => endpoint(rule, attachment, held),
        Target::Endpoint { .. } | Target::Balancer(_) => match serves(case) {
            Some(ports) if port < ports.first || port > ports.last => port_not_served(ports, port),
            _ => Verdict::new("silent", "The load balancer does not answer."),
        },
        Target::Vm { vm, on: false, .. } => Verdict::new("vm-off", format!("{vm} is switched off."))
            .mend(format!("gcloud compute instances start {}", named(vm))),
        Target::Vm { vm, .. } if seen.connection == Connection::Unreachable => {
            Verdict::new("vm-not-running", format!("{vm} should run, but has no port in its network."))
                .mend(format!("gcloud compute instances reset {}", named(vm)))
        }
        Target::Vm { vm, .. } => {
            Verdict::new("silent", format!("The packet was handed to {vm}, which does not answer."))
        }
        Target::Group(group) => {
            let what = format!("{group} has this address, which only the load balancer in front of it dials.");
            Verdict::new("address-of-backend", what)
        }
        Target::Reserved(address) => {
            Verdict::new("address-unused", format!("{address} is reserved, and nothing uses it.")).mend(format!(
                "gcloud compute forwarding-rules create … --address={} --project={}",
                address.name, address.project
            ))
        }
        Target::Vacant(subnet) => Verdict::new("address-vacant", format!("Nothing in {subnet} has this address.")),
        Target::Elsewhere(owners) if owners.is_empty() => {
            let what = format!("The address is in no subnet of {}, and there is no way out of a VPC.", case.network);
            Verdict::new("no-route", what)
        }
        Target::Elsewhere(owners) => {
            let owners: Vec<String> = owners.iter().map(ToString::to_string).collect();
            let what =
                format!("The address is in no subnet of {}; something in {} has it.", case.network, owners.join(", "));
            Verdict::new("other-network", what)
        }
    }
}

fn endpoint(rule: &Link, attachment: &Link, held: &Held) -> Verdict {
    let update = |what: &str| format!("gcloud compute service-attachments update {} {what}", named(attachment));
    match held {
        Held::NotListed { project, network, by_network } => {
            let entry = if *by_network { network.to_string() } else { project.to_string() };
            let what = format!("The connection is PENDING: {entry} is on no accept list of {attachment}.");
            Verdict::new("endpoint-not-listed", what).mend(update(&format!("--consumer-accept-list={entry}=10")))
        }
        Held::AtLimit { project, limit } => {
            let what =
                format!("The connection is PENDING: {project} has as many endpoints as {attachment} accepts, {limit}.");
            let entry = format!("--consumer-accept-list={project}={}", limit.saturating_add(1));
            Verdict::new("endpoint-at-limit", what).mend(update(&entry))
        }
        Held::Rejected { project } => {
            let what = format!("The connection is REJECTED: {project} is on the reject list of {attachment}.");
            Verdict::new("endpoint-rejected", what).mend(update(&format!(
                "--consumer-reject-list= --consumer-accept-list={project}=10 --reconcile-connections"
            )))
        }
        Held::Forbidden { project, producer } => {
            let what = format!(
                "The connection is REJECTED: an organisation policy on {producer}, or above it, does not let {project} connect."
            );
            let see = "gcloud org-policies describe compute.restrictPrivateServiceConnectConsumer --effective";
            Verdict::new("endpoint-forbidden-by-policy", what).mend(format!("{see} --project={producer}"))
        }
        Held::StaysRejected => {
            let what = "The connection is REJECTED: a list or an organisation policy forbade it, and nobody has \
                        reconsidered since.";
            Verdict::new("endpoint-stays-rejected", what).mend(update("--reconcile-connections"))
        }
        Held::Closed => {
            let what = format!("The connection is CLOSED: {attachment} was deleted. It does not open again.");
            Verdict::new("endpoint-closed", what)
                .mend(format!("gcloud compute forwarding-rules delete {} # and create it anew", named(rule)))
        }
        Held::NoNatAddress { subnets } => {
            let subnets: Vec<String> = subnets.iter().map(ToString::to_string).collect();
            let what = format!("NEEDS_ATTENTION: the NAT subnets have no free address: {}.", subnets.join(", "));
            Verdict::new("nat-addresses-exhausted", what).mend(update("--nat-subnets=…,ANOTHER_SUBNET"))
        }
        Held::NoTarget => Verdict::new("endpoint-without-target", format!("What {attachment} publishes is gone.")),
    }
}

// ---- requests ----

fn replied(request: &Request, reply: &Reply) -> Verdict {
    let Some(status) = reply.status else {
        return Verdict::new("no-answer", "The connection was made, but no HTTP answer came.");
    };
    if reply.is_success() {
        return Verdict::new("reached", format!("The service answered {status}."));
    }
    refused(request, status)
        .unwrap_or_else(|| Verdict::new("answered", format!("The call arrived; the service itself answered {status}.")))
}

/// Why the platform answered in place of a container; None where nothing speaks for that.
fn refused(request: &Request, status: u16) -> Option<Verdict> {
    if status == 404 {
        match (&request.route, &request.target) {
            (Some(Route::NoBackend), _) => {
                let what = "The URL map leads to a backend service without a backend.";
                return Some(Verdict::new("no-backend", what).mend("gcloud compute backend-services add-backend …"));
            }
            (Some(Route::Mask { mask, .. }), None) => {
                return Some(Verdict::new(
                    "mask-mismatch",
                    format!("The URL does not fit the mask {mask:?} of the NEG."),
                ));
            }
            _ => {}
        }
    }
    if let (Some(Route::Endpoint { .. }), 502..=504) = (&request.route, status) {
        let what = "The Private Service Connect backend of the load balancer does not answer, or answers so itself.";
        let look = "gcloud compute network-endpoint-groups describe …   # pscData.pscConnectionStatus";
        return Some(Verdict::new("backend-does-not-answer", what).mend(look));
    }
    let backend = request.backend.as_ref()?;
    let key = &backend.service;
    let Some(service) = &backend.planned else {
        return (status == 404).then(|| {
            Verdict::new("no-such-service", format!("There is no service {key}."))
                .mend(format!("gcloud run deploy {}", run(key)))
        });
    };
    match status {
        401 | 403 if service.invokers.everyone => None,
        401 | 403 => invoker(request, backend, service, status),
        // No revision has ever been ready, so there is nothing to route to.
        404 if service.traffic.is_empty() && backend.unready.is_some() => unready(backend),
        404 => not_found(request, key, service),
        429 => Some(
            Verdict::new("no-instance", "No instance had room in time.")
                .mend(format!("gcloud run services update {} --max-instances=…", run(key))),
        ),
        503 => unready(backend).or_else(|| {
            let what = "The container closed the connection or does not speak HTTP.";
            Some(Verdict::new("container-breaks", what).mend(format!("gcloud run services logs read {}", run(key))))
        }),
        504 => Some(
            Verdict::new("timeout", "The container did not answer within the service's timeout.")
                .mend(format!("gcloud run services update {} --timeout=…", run(key))),
        ),
        _ => None,
    }
}

fn unready(backend: &Backend) -> Option<Verdict> {
    let (reason, message) = backend.unready.as_ref()?;
    let what = format!("The newest revision is not ready ({reason}): {message}");
    let logs = format!("gcloud run services logs read {}", run(&backend.service));
    Some(Verdict::new("container-does-not-start", what).mend(logs))
}

fn not_found(request: &Request, key: &ServiceKey, service: &EdgeService) -> Option<Verdict> {
    if let Some(tag) = request.target.as_ref().and_then(|target| target.tag.as_ref())
        && !service.traffic.iter().any(|t| t.tag.as_ref() == Some(tag))
    {
        let what = format!("No revision of {key} is tagged {tag:?}.");
        return Some(
            Verdict::new("no-such-tag", what)
                .mend(format!("gcloud run services update-traffic {} --set-tags=…", run(key))),
        );
    }
    // From inside a VPC every setting but this one lets a load balancer through.
    (service.ingress == model::run::Ingress::None).then(|| {
        Verdict::new("ingress-setting", format!("The ingress setting of {key} lets nobody in."))
            .mend(format!("gcloud run services update {} --ingress=internal-and-cloud-load-balancing", run(key)))
    })
}

fn invoker(request: &Request, backend: &Backend, service: &EdgeService, status: u16) -> Option<Verdict> {
    let key = &backend.service;
    let Some(account) = request.account.as_ref().filter(|_| request.token.is_some()) else {
        let audience = backend.url.as_deref().unwrap_or("the service's audience");
        let what = format!("The call carries no ID token, and {key} asks for one with the audience {audience}.");
        return Some(Verdict::new("no-token", what).mend(format!(
            "curl -H \"Authorization: Bearer $(curl -sH Metadata-Flavor:Google \
             'http://metadata.google.internal/computeMetadata/v1/instance/service-accounts/default/identity?audience={audience}')\" …"
        )));
    };
    let audience = request.audience.clone().unwrap_or_default();
    if status == 401 {
        let known = service.audiences.contains(&audience);
        let expected = backend.url.as_deref().unwrap_or_default();
        return Some(match known {
            false => {
                Verdict::new("wrong-audience", format!("The token is for {audience:?}; {key} expects {expected:?}."))
            }
            true => Verdict::new("token-refused", "The token was refused, though its audience is right."),
        });
    }
    (!backend.admits).then(|| {
        let what = format!("{account} does not hold run.routes.invoke on {key}.");
        Verdict::new("role-missing", what).mend(format!(
            "gcloud run services add-iam-policy-binding {} --member=serviceAccount:{account} --role=roles/run.invoker",
            run(key)
        ))
    })
}

// ---- commands ----

/// The resource as gcloud wants it on its command line.
fn named(link: &Link) -> String {
    let scope = match &link.scope {
        Scope::Global => String::new(),
        Scope::Region(region) => format!(" --region={region}"),
        Scope::Zone(zone) => format!(" --zone={zone}"),
    };
    format!("{} --project={}{scope}", link.name, link.project)
}

fn run(key: &ServiceKey) -> String {
    format!("{} --project={} --region={}", key.name, key.project, key.region)
}
