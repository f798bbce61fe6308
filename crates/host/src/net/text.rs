//! A plan's rules in the words of `nft`, for people, goldens and explanations. Never parsed back, never on the running
//! path.

use std::{
    fmt::Write,
    net::{Ipv4Addr, Ipv6Addr},
};

use super::state::Wanted;
use crate::netlink::{
    expr::{Comparison, Found, Load, Step, Use, Verdict},
    nft::{Chain, Element, Extent, Field, HookKind, HookPoint, Policy, Set, Table},
};

/// Everything the namespace should hold, one thing a line.
pub fn render(wanted: &Wanted) -> String {
    let mut out = String::new();
    for route in &wanted.routes {
        let _ = writeln!(out, "route {}/{} table {} {:?}", route.to, route.prefix_bits, route.table, route.hop);
    }
    for rule in &wanted.mark_rules {
        let _ = writeln!(out, "rule fwmark {:#x}/{:#x} table {}", rule.mark, rule.mask, rule.table);
    }
    for n in &wanted.neighbours {
        let _ = writeln!(out, "neighbour {} dev {}", n.address, n.at);
    }
    for table in &wanted.tables {
        render_table(table, &mut out);
    }
    out
}

// Writing into a String cannot fail, so the results below are let go.

fn render_table(table: &Table, out: &mut String) {
    let _ = writeln!(out, "table {} {} {{", table.family.text(), table.name);
    for t in &table.timeouts {
        let _ = writeln!(
            out,
            "  ct timeout {} {{ established {} s; transitory {} s }}",
            t.name(),
            t.established_s,
            t.transitory_s
        );
    }
    for (name, set) in &table.sets {
        render_set(name, set, out);
    }
    for (name, chain) in &table.chains {
        render_chain(name, chain, out);
    }
    let _ = writeln!(out, "}}");
}

fn render_set(name: &str, set: &Set, out: &mut String) {
    let key: Vec<_> = set.key.iter().map(|f| f.text()).collect();
    let (kind, value) = set.value.map_or(("set", String::new()), |v| ("map", format!(" : {}", v.text())));
    let elements: Vec<_> = set.elements.iter().map(|e| element(set, e)).collect();
    let _ = writeln!(out, "  {kind} {name} {{ {}{value} }} = {{ {} }}", key.join(" . "), elements.join(", "));
}

fn element(set: &Set, element: &Element) -> String {
    let first = fields(&set.key, &element.key);
    let last = element.last.as_ref().map(|last| fields(&set.key, last));
    let parts = first.iter().enumerate().map(|(i, text)| match last.as_ref().map(|l| &l[i]) {
        Some(end) if set.extent == Extent::Ranges && end != text => format!("{text}-{end}"),
        _ => text.clone(),
    });
    let key = parts.collect::<Vec<_>>().join(" . ");
    match (set.value, &element.value) {
        (Some(field), Some(value)) => format!("{key} : {}", fields(&[field], value).concat()),
        _ => key,
    }
}

fn fields(shape: &[Field], bytes: &[u8]) -> Vec<String> {
    let mut at = 0;
    shape
        .iter()
        .map(|field| {
            let len = field.bytes();
            let text = field_text(*field, bytes.get(at..at + len).unwrap_or_default());
            at += len.next_multiple_of(4);
            text
        })
        .collect()
}

fn field_text(field: Field, bytes: &[u8]) -> String {
    let number = |ne: bool| {
        let ordered: Vec<u8> =
            if ne && cfg!(target_endian = "little") { bytes.iter().rev().copied().collect() } else { bytes.to_vec() };
        ordered.iter().fold(0_u64, |n, b| n << 8 | u64::from(*b))
    };
    match field {
        Field::InterfaceName => name_text(bytes),
        Field::Ipv4 => <[u8; 4]>::try_from(bytes).map(|b| Ipv4Addr::from(b).to_string()).unwrap_or_default(),
        Field::Ipv6 => <[u8; 16]>::try_from(bytes).map(|b| Ipv6Addr::from(b).to_string()).unwrap_or_default(),
        Field::Port => number(false).to_string(),
        Field::Zone => number(true).to_string(),
        Field::Mark => format!("{:#x}", number(true)),
    }
}

/// A whole name, or a prefix with a star.
fn name_text(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let name = text.trim_end_matches('\0');
    if bytes.len() < 16 { format!("{name}*") } else { name.to_owned() }
}

fn render_chain(name: &str, chain: &Chain, out: &mut String) {
    let hook = chain.hook.as_ref().map_or_else(String::new, |hook| {
        let kind = match hook.kind {
            HookKind::Filter => "filter",
            HookKind::Nat => "nat",
        };
        let at = match hook.at {
            HookPoint::Prerouting => "prerouting".to_owned(),
            HookPoint::Input => "input".to_owned(),
            HookPoint::Forward => "forward".to_owned(),
            HookPoint::Output => "output".to_owned(),
            HookPoint::Postrouting => "postrouting".to_owned(),
            HookPoint::Egress(device) => format!("egress of {device}"),
        };
        let policy = match hook.policy {
            Policy::Accept => "accept",
            Policy::Drop => "drop",
        };
        format!(" ({kind} {at} {}, policy {policy})", hook.priority)
    });
    let _ = writeln!(out, "  chain {name}{hook} {{");
    for rule in &chain.rules {
        let steps: Vec<_> = rule.steps.iter().map(step).filter(|s| !s.is_empty()).collect();
        let _ = writeln!(out, "    {}  # {}", steps.join(" "), rule.comment);
    }
    let _ = writeln!(out, "  }}");
}

fn step(step: &Step) -> String {
    let loads = |loads: &[Load]| loads.iter().map(|l| l.text()).collect::<Vec<_>>().join(" . ");
    match step {
        Step::Compare(load, comparison, value) => {
            format!("{} {}{}", load.text(), sign(*comparison), value_text(*load, value))
        }
        Step::Masked(load, mask, comparison, value) => {
            format!("{} & {} {}{}", load.text(), value_text(*load, mask), sign(*comparison), value_text(*load, value))
        }
        Step::Member(l, Found::In, set) => format!("{} @{set}", loads(l)),
        Step::Member(l, Found::NotIn, set) => format!("{} != @{set}", loads(l)),
        Step::Mapped(l, map, purpose) => {
            let what = match purpose {
                Use::Mark => "meta mark set".to_owned(),
                Use::OriginalZone => "ct original zone set".to_owned(),
                Use::Destination => "dnat to".to_owned(),
                Use::Source { first_port, last_port } => format!("snat (ports {first_port}-{last_port}) to"),
            };
            format!("{what} {} map @{map}", loads(l))
        }
        Step::ConnectionsOver(n) => format!("ct count over {n}"),
        Step::Timeout(name) => format!("ct timeout set {name}"),
        Step::NoTrack => "notrack".to_owned(),
        Step::Trace => "meta nftrace set 1".to_owned(),
        Step::ForwardByMark(bits) => format!("fwd to meta mark & {bits:#x}"),
        Step::Verdict(verdict) => match verdict {
            Verdict::Accept => "accept".to_owned(),
            Verdict::Drop => "drop".to_owned(),
            Verdict::Return => "return".to_owned(),
            Verdict::Jump(chain) => format!("jump {chain}"),
            Verdict::Goto(chain) => format!("goto {chain}"),
        },
    }
}

fn sign(comparison: Comparison) -> &'static str {
    match comparison {
        Comparison::Equal => "",
        Comparison::NotEqual => "!= ",
        Comparison::AtLeast => ">= ",
        Comparison::AtMost => "<= ",
    }
}

fn value_text(load: Load, value: &[u8]) -> String {
    match load {
        Load::InputName | Load::OutputName => name_text(value),
        Load::SourceIp | Load::DestinationIp | Load::CtOriginalDestination => field_text(Field::Ipv4, value),
        Load::SourceIp6 | Load::DestinationIp6 => field_text(Field::Ipv6, value),
        Load::SourcePort
        | Load::DestinationPort
        | Load::L4Proto
        | Load::NfProto
        | Load::CtDirection
        | Load::TcpFlags => field_text(Field::Port, value),
        Load::CtOriginalZone => field_text(Field::Zone, value),
        Load::Mark | Load::CtState => field_text(Field::Mark, value),
    }
}
