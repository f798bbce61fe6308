//! The account of a call, for people and for programs.

use std::io::{self, Write};

use control::why::{Case, Target};
use host::{capture::Headers, trace::Passage};
use serde_json::{Value, json};

use super::{
    To,
    probe::{Connection, Seen},
    verdict::{Request, Verdict},
};

/// As much of an answer's body as fits a terminal.
const BODY_CHARS: usize = 200;

pub(super) fn text(case: &Case, to: &To, seen: &Seen, request: Option<&Request>, verdict: &Verdict) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{} → {}:{}   {}", case.vm.name, case.to, to.port, what(&case.target))?;
    let mut number = 0;
    let mut line = |place: &str, text: String| -> io::Result<()> {
        number += 1;
        writeln!(out, "{number:>3}  {place:<24} {text}")
    };
    line(&case.vm.name, format!("{} → {}:{}", seen.source, case.to, to.port))?;
    for (network, passage) in &seen.routers {
        line(&format!("vpc-{network}"), passed(passage))?;
    }
    line("connection", format!("{} after {:.1} ms", ended(seen.connection), seen.took.as_secs_f64() * 1_000.0))?;
    if let (Some(reply), Some(request)) = (&seen.reply, request) {
        let caller = request.account.as_deref().filter(|_| request.token.is_some()).unwrap_or("nobody");
        if let Some(target) = &request.target {
            line("load balancer", format!("GET {} goes to {}", request.path, target.service))?;
        }
        let audience = request.audience.as_ref().filter(|_| request.token.is_some());
        let audience = audience.map(|audience| format!(" for {audience}")).unwrap_or_default();
        line("caller", format!("{caller}{audience}"))?;
        let status = reply.status.map_or("no answer".to_owned(), |status| status.to_string());
        let body: String =
            reply.body.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(BODY_CHARS).collect();
        line("answer", format!("{status}  {body}"))?;
    }
    let sign = if verdict.is_reached() { '✓' } else { '✗' };
    writeln!(out, "{sign} {}: {}", verdict.code, verdict.what)?;
    if let Some(mend) = &verdict.mend {
        writeln!(out, "  mend it: {mend}")?;
    }
    Ok(())
}

pub(super) fn json(case: &Case, to: &To, seen: &Seen, verdict: &Verdict) -> io::Result<()> {
    let address = |h: &Headers| json!({"src": h.src, "srcPort": h.src_port, "dst": h.dst, "dstPort": h.dst_port});
    let hop = |network: &model::id::NetworkId, p: &Passage| {
        json!({
            "namespace": format!("vpc-{network}"),
            "in": p.input.as_ref().map(ToString::to_string),
            "out": p.output.as_ref().map(ToString::to_string),
            "before": address(&p.came),
            "after": address(&p.left),
            "rules": p.met.iter().map(|(chain, rule)| json!({"chain": chain, "rule": rule})).collect::<Vec<_>>(),
            "droppedBy": p.dropped.as_ref().map(|(chain, rule)| json!({"chain": chain, "rule": rule})),
        })
    };
    let account: Value = json!({
        "from": case.vm.to_string(),
        "to": {"address": case.to, "port": to.port},
        "hops": seen.routers.iter().map(|(network, passage)| hop(network, passage)).collect::<Vec<_>>(),
        "connection": ended(seen.connection),
        "status": seen.reply.as_ref().and_then(|reply| reply.status),
        "verdict": verdict.code,
        "reached": verdict.is_reached(),
        "what": verdict.what,
        "mend": verdict.mend,
    });
    writeln!(io::stdout().lock(), "{account}")
}

fn what(target: &Target) -> String {
    match target {
        Target::Vm { vm, .. } => format!("the VM {vm}"),
        Target::Balancer(balancer) => format!("the load balancer {}", balancer.rule),
        Target::Endpoint { rule, attachment, .. } => format!("the endpoint {rule} of {attachment}"),
        Target::Group(group) => format!("the network endpoint group {group}"),
        Target::Reserved(address) => format!("the reserved address {address}"),
        Target::Vacant(subnet) => format!("nobody's address in {subnet}"),
        Target::Elsewhere(_) => "no address of this network".to_owned(),
    }
}

fn ended(connection: Connection) -> &'static str {
    match connection {
        Connection::Made => "made",
        Connection::Refused => "refused",
        Connection::Unreachable => "unreachable",
        Connection::Silent => "silence",
    }
}

/// In and out of a router, what was translated, and the rule that decided.
fn passed(passage: &Passage) -> String {
    let Passage { came, left, .. } = passage;
    let translated = |name, before: std::net::IpAddr, after: std::net::IpAddr| {
        if before == after { String::new() } else { format!("  {name} {before} ⇒ {after}") }
    };
    let nat = translated("destination", came.dst, left.dst) + &translated("source", came.src, left.src);
    let by = match (&passage.dropped, passage.met.last()) {
        (Some((chain, rule)), _) => format!("  dropped by {rule:?} ({chain})"),
        (None, _) if passage.output.is_none() => "  no way on".to_owned(),
        (None, Some((chain, rule))) => format!("  passed by {rule:?} ({chain})"),
        (None, None) => String::new(),
    };
    let name = |name: &Option<host::names::IfName>| name.as_ref().map_or("–".to_owned(), ToString::to_string);
    format!("{} → {}{nat}{by}", name(&passage.input), name(&passage.output))
}
