//! What this machine can enforce, for `doctor` and `status`: tried, not guessed, and where something is missing, what to
//! do about it.

use std::{collections::BTreeMap, fs};

use model::{
    id::NetworkId,
    planned::host::{VpcPlan, VpcSettings},
};

use crate::hands::Hands;

/// Tries everything that a VPC and the fabric need, in namespaces that are gone afterwards.
pub fn gather(hands: &mut Hands, sandboxes: Vec<(String, String)>) -> BTreeMap<String, String> {
    let mut facts: BTreeMap<String, String> = sandboxes.into_iter().collect();
    let read = |path: &str| fs::read_to_string(path).map(|s| s.trim().to_owned()).unwrap_or_default();
    facts.insert("kernel".to_owned(), read("/proc/sys/kernel/osrelease"));
    facts.insert("packets".to_owned(), packets(hands));
    let control = read("/proc/sys/net/ipv4/tcp_available_congestion_control");
    let cubic = if control.split_whitespace().any(|c| c == "cubic") {
        "cubic".to_owned()
    } else {
        format!("{control}; expect less throughput: enable CONFIG_TCP_CONG_CUBIC")
    };
    facts.insert("congestion control".to_owned(), cubic);
    facts.insert(
        "tracked connections".to_owned(),
        format!(
            "{} on the whole machine; raise net.netfilter.nf_conntrack_max for more",
            read("/proc/sys/net/netfilter/nf_conntrack_max")
        ),
    );
    let files = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let files = files.map_or_else(
        || "unlimited".to_owned(),
        |n| format!("{n}; each VPC takes about 10: raise LimitNOFILE for more"),
    );
    facts.insert("open files".to_owned(), files);
    facts
}

/// The network of the trial. Control's ids are never 0.
const TRIAL: NetworkId = NetworkId(0);

fn packets(hands: &mut Hands) -> String {
    let settings = VpcSettings { mtu: 1_460, psc_idle_s: 1_200, ..VpcSettings::default() };
    let plan = VpcPlan { settings, ..VpcPlan::default() };
    let tried =
        hands.apply_vpc(TRIAL, &plan).and_then(|()| hands.realm(model::planned::guest::Realm::Fabric).map(|_| ()));
    let removed = hands.remove_vpc(TRIAL);
    match tried.and(removed) {
        Ok(()) => "routers, translation, tracking zones and timeouts work".to_owned(),
        Err(error) => format!(
            "{}; needs root and a kernel with CONFIG_VETH, NF_TABLES, NF_CONNTRACK_ZONES, NF_CT_NETLINK, NETFILTER_EGRESS",
            crate::agent::chain(&error)
        ),
    }
}
