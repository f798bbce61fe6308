//! Which consumer connections of a service attachment are accepted: a pure function of its lists, the connections there
//! are, and the free NAT addresses.
//!
//! Source: Private Service Connect, connection states and `reconcileConnections`. Where public documentation is silent:
//! docs/decisions/2026-11-25-psc-transitions.md.

use std::net::Ipv4Addr;

use model::{
    name::{Link, ProjectId},
    psc::{AcceptEntry, Connection, ConnectionStatus, Consumer, Preference, ServiceAttachment},
};

/// How far a change of the lists reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// Only connections that still wait.
    Waiting,
    /// Also those that were decided before (`reconcileConnections`).
    Decided,
}

/// Whether the producer's organisation policies let the consumer of a connection connect.
pub type Permits<'a> = &'a dyn Fn(&Connection) -> bool;

/// What [`settle`] decided.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Settled {
    /// All connections, in the order given.
    pub connections: Vec<Connection>,
    /// NAT addresses that no connection holds any more.
    pub released: Vec<Ipv4Addr>,
}

/// Decides every connection of an attachment anew.
///
/// `connections` in order of creation, which is the order in which places under a limit are filled. `free` are the NAT
/// addresses that may be handed out, lowest first.
pub fn settle(
    attachment: &ServiceAttachment,
    permits: Permits<'_>,
    reach: Reach,
    connections: Vec<Connection>,
    free: impl IntoIterator<Item = Ipv4Addr>,
) -> Settled {
    let mut out = connections;
    let mut released = Vec::new();
    // Whoever keeps its place is counted before anyone who waits gets one.
    for i in 0..out.len() {
        out[i].status = kept(attachment, permits, reach, &out[i]);
    }
    for i in 0..out.len() {
        if out[i].status == ConnectionStatus::Pending && has_place(attachment, &out, i) {
            out[i].status = ConnectionStatus::Accepted;
        }
    }
    for connection in &mut out {
        if !is_accepted(connection.status) {
            released.append(&mut connection.nats);
        }
    }
    let mut free = free.into_iter().filter(|a| !released.contains(a)).collect::<Vec<_>>().into_iter();
    // Everybody gets a first address before anybody gets a second.
    for many in 1..=attachment.nats_each() {
        for connection in out.iter_mut().filter(|c| is_accepted(c.status) && c.nats.len() < many) {
            connection.nats.extend(free.next());
        }
    }
    for connection in out.iter_mut().filter(|c| is_accepted(c.status)) {
        connection.status = served(attachment, &connection.nats);
    }
    Settled { connections: out, released }
}

/// Decides on a connection that joins others of which none waits: for them nothing changes, so what [`settle`] would say
/// of all is said of one. `taken` tells how many places a consumer has; `free` are the lowest free NAT addresses, no more
/// than one connection gets.
pub fn join(
    attachment: &ServiceAttachment,
    permits: Permits<'_>,
    mut joining: Connection,
    taken: impl Fn(&Consumer) -> u32,
    free: Vec<Ipv4Addr>,
) -> Connection {
    joining.status = kept(attachment, permits, Reach::Waiting, &joining);
    let has_place = match attachment.preference {
        Preference::AcceptAutomatic => true,
        Preference::AcceptManual => entry(attachment, &joining).is_some_and(|e| taken(&e.consumer) < e.limit),
    };
    if joining.status == ConnectionStatus::Pending && has_place {
        joining.status = served(attachment, &free);
        joining.nats = free;
    }
    joining
}

/// The status of a connection that has a place and these addresses.
fn served(attachment: &ServiceAttachment, nats: &[Ipv4Addr]) -> ConnectionStatus {
    match nats.len() < attachment.nats_each() {
        true => ConnectionStatus::NeedsAttention,
        false => ConnectionStatus::Accepted,
    }
}

fn is_accepted(status: ConnectionStatus) -> bool {
    status.has_place()
}

/// The status before places are handed out: accepted ones that stay, Rejected, Closed, and Pending for all that must
/// find a place (also with ACCEPT_AUTOMATIC, where every one does).
fn kept(
    attachment: &ServiceAttachment,
    permits: Permits<'_>,
    reach: Reach,
    connection: &Connection,
) -> ConnectionStatus {
    use ConnectionStatus::{Accepted, Closed, NeedsAttention, Pending, Rejected};
    let rejected = attachment.reject.iter().any(|c| names(c, connection)) || !permits(connection);
    match (connection.status, reach) {
        (Closed, _) => Closed,
        (Accepted | NeedsAttention, Reach::Waiting) => connection.status,
        (Rejected, Reach::Waiting) => Rejected,
        _ if rejected => Rejected,
        // A lowered limit takes nobody's place away.
        (Accepted | NeedsAttention, Reach::Decided) if listed(attachment, connection) => connection.status,
        (Accepted | NeedsAttention | Pending | Rejected, _) => Pending,
    }
}

fn listed(attachment: &ServiceAttachment, connection: &Connection) -> bool {
    match attachment.preference {
        Preference::AcceptAutomatic => true,
        Preference::AcceptManual => entry(attachment, connection).is_some(),
    }
}

fn has_place(attachment: &ServiceAttachment, all: &[Connection], i: usize) -> bool {
    match attachment.preference {
        Preference::AcceptAutomatic => true,
        Preference::AcceptManual => match entry(attachment, &all[i]) {
            Some(entry) => {
                let taken = all.iter().filter(|c| is_accepted(c.status) && names(&entry.consumer, c)).count();
                u64::try_from(taken).unwrap_or(u64::MAX) < u64::from(entry.limit)
            }
            None => false,
        },
    }
}

fn entry<'a>(attachment: &'a ServiceAttachment, connection: &Connection) -> Option<&'a AcceptEntry> {
    attachment.accept.iter().find(|e| names(&e.consumer, connection))
}

fn names(consumer: &Consumer, connection: &Connection) -> bool {
    fn same_project(id: &ProjectId, rule: &Link) -> bool {
        rule.project == *id
    }
    match consumer {
        Consumer::Project { id, .. } => same_project(id, &connection.rule),
        Consumer::Network(network) => connection.consumer_network == *network,
    }
}

#[cfg(test)]
mod tests {
    use ConnectionStatus::{Accepted, Closed, NeedsAttention, Pending, Rejected};
    use Preference::{AcceptAutomatic, AcceptManual};
    use model::{
        id::{EndpointId, NetworkId, ResourceId},
        name::Scope,
        time::Timestamp,
    };

    use super::*;

    /// No organisation policy forbids anything.
    fn settle(
        attachment: &ServiceAttachment,
        reach: Reach,
        connections: Vec<Connection>,
        free: impl IntoIterator<Item = Ipv4Addr>,
    ) -> Settled {
        super::settle(attachment, &|_| true, reach, connections, free)
    }

    fn project(id: &str) -> Consumer {
        Consumer::Project { id: id.parse().unwrap(), written: id.to_owned() }
    }

    fn attachment(preference: Preference, accept: &[(&str, u32)], reject: &[&str]) -> ServiceAttachment {
        let link = |collection: &str| Link::new(&"producer".parse().unwrap(), Scope::Global, collection, "x");
        ServiceAttachment {
            target: link("forwardingRules"),
            preference,
            nat_subnets: vec![link("subnetworks")],
            accept: accept.iter().map(|(p, limit)| AcceptEntry { consumer: project(p), limit: *limit }).collect(),
            reject: reject.iter().map(|p| project(p)).collect(),
            reconcile: false,
            nats_per_endpoint: None,
            domain: None,
            description: None,
        }
    }

    fn nat(n: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 0, 3, n)
    }

    fn connection(n: u64, consumer: &str, status: ConnectionStatus, nat: Option<Ipv4Addr>) -> Connection {
        let project: ProjectId = consumer.parse().unwrap();
        Connection {
            endpoint: EndpointId(n),
            rule: Link::new(&project, Scope::Global, "forwardingRules", &format!("e{n}")),
            consumer_network: Link::new(&project, Scope::Global, "networks", "n"),
            consumer_network_id: NetworkId(n),
            connection_id: ResourceId(n),
            status,
            nats: nat.into_iter().collect(),
            created: Timestamp(i64::try_from(n).unwrap()),
        }
    }

    fn nats(settled: &Settled) -> Vec<&[Ipv4Addr]> {
        settled.connections.iter().map(|c| &c.nats[..]).collect()
    }

    fn statuses(settled: &Settled) -> Vec<ConnectionStatus> {
        settled.connections.iter().map(|c| c.status).collect()
    }

    /// One connection, before and after: the rows of the documented state table.
    #[test]
    fn every_row_of_the_state_table() {
        type Row = (&'static str, ServiceAttachment, Reach, ConnectionStatus, ConnectionStatus);
        let on = [("consumer", 10)];
        let rows: Vec<Row> = vec![
            ("new, automatic", attachment(AcceptAutomatic, &[], &[]), Reach::Waiting, Pending, Accepted),
            (
                "new, automatic, rejected",
                attachment(AcceptAutomatic, &[], &["consumer"]),
                Reach::Waiting,
                Pending,
                Rejected,
            ),
            ("new, manual, accepted", attachment(AcceptManual, &on, &[]), Reach::Waiting, Pending, Accepted),
            (
                "new, manual, on no list",
                attachment(AcceptManual, &[("other1", 1)], &[]),
                Reach::Waiting,
                Pending,
                Pending,
            ),
            (
                "new, on both lists: reject wins",
                attachment(AcceptManual, &on, &["consumer"]),
                Reach::Waiting,
                Pending,
                Rejected,
            ),
            (
                "accept entry added, rejected stays",
                attachment(AcceptManual, &on, &[]),
                Reach::Waiting,
                Rejected,
                Rejected,
            ),
            ("accept entry added, reconciled", attachment(AcceptManual, &on, &[]), Reach::Decided, Rejected, Accepted),
            ("accept entry removed, kept", attachment(AcceptManual, &[], &[]), Reach::Waiting, Accepted, Accepted),
            ("accept entry removed, reconciled", attachment(AcceptManual, &[], &[]), Reach::Decided, Accepted, Pending),
            (
                "reject entry added, accepted stays",
                attachment(AcceptManual, &on, &["consumer"]),
                Reach::Waiting,
                Accepted,
                Accepted,
            ),
            (
                "reject entry added, reconciled",
                attachment(AcceptManual, &on, &["consumer"]),
                Reach::Decided,
                Accepted,
                Rejected,
            ),
            ("reject entry removed, stays", attachment(AcceptManual, &[], &[]), Reach::Waiting, Rejected, Rejected),
            (
                "reject entry removed, reconciled, manual",
                attachment(AcceptManual, &[], &[]),
                Reach::Decided,
                Rejected,
                Pending,
            ),
            (
                "reject entry removed, reconciled, automatic",
                attachment(AcceptAutomatic, &[], &[]),
                Reach::Decided,
                Rejected,
                Accepted,
            ),
            ("automatic to manual, kept", attachment(AcceptManual, &[], &[]), Reach::Waiting, Accepted, Accepted),
            ("automatic to manual, reconciled", attachment(AcceptManual, &[], &[]), Reach::Decided, Accepted, Pending),
            ("manual to automatic", attachment(AcceptAutomatic, &[], &[]), Reach::Waiting, Pending, Accepted),
            ("closed is for good", attachment(AcceptAutomatic, &[], &[]), Reach::Decided, Closed, Closed),
        ];
        for (what, attachment, reach, before, after) in rows {
            let held = is_accepted(before).then(|| nat(2));
            let settled = settle(&attachment, reach, vec![connection(1, "consumer", before, held)], [nat(2), nat(3)]);
            assert_eq!(statuses(&settled), [after], "{what}");
            assert_eq!(!settled.connections[0].nats.is_empty(), after == Accepted, "{what}: NAT address");
            assert_eq!(settled.released.len(), usize::from(held.is_some() && after != Accepted), "{what}: released");
        }
    }

    /// A policy is asked when a connection is decided, as a reject list is.
    #[test]
    fn a_policy_rejects_who_is_decided_on_and_leaves_who_was_decided_before() {
        let a = attachment(AcceptAutomatic, &[], &[]);
        for (reach, before, after) in [
            (Reach::Waiting, Pending, Rejected),
            (Reach::Waiting, Accepted, Accepted),
            (Reach::Waiting, NeedsAttention, Accepted),
            (Reach::Waiting, Rejected, Rejected),
            (Reach::Decided, Accepted, Rejected),
            (Reach::Decided, Rejected, Rejected),
            (Reach::Decided, Closed, Closed),
        ] {
            let held = (before == Accepted).then(|| nat(2));
            let one = vec![connection(1, "consumer", before, held)];
            let settled = super::settle(&a, &|_| false, reach, one, [nat(2), nat(3)]);
            assert_eq!(statuses(&settled), [after], "{reach:?} {before:?}");
        }
        let new = connection(1, "consumer", Pending, None);
        assert_eq!(join(&a, &|_| false, new, |_| 0, vec![nat(2)]).status, Rejected);
    }

    #[test]
    fn the_eleventh_endpoint_over_a_limit_of_ten_waits_and_takes_the_first_place_that_falls_free() {
        let a = attachment(AcceptManual, &[("consumer", 10)], &[]);
        let all = (1..=12).map(|n| connection(n, "consumer", Pending, None)).collect();
        let first = settle(&a, Reach::Waiting, all, (2..200).map(nat));
        assert_eq!(statuses(&first)[..10], [Accepted; 10]);
        assert_eq!(statuses(&first)[10..], [Pending; 2]);
        let left = first.connections.into_iter().filter(|c| c.endpoint != EndpointId(4)).collect();
        let second = settle(&a, Reach::Waiting, left, (20..200).map(nat));
        assert_eq!(statuses(&second)[9..], [Accepted, Pending], "first come, first served");
    }

    #[test]
    fn a_lowered_limit_takes_no_place_away_even_when_reconciling() {
        let a = attachment(AcceptManual, &[("consumer", 1)], &[]);
        let all = vec![
            connection(1, "consumer", Accepted, Some(nat(2))),
            connection(2, "consumer", Accepted, Some(nat(3))),
            connection(3, "consumer", Pending, None),
        ];
        assert_eq!(statuses(&settle(&a, Reach::Decided, all, [nat(4)])), [Accepted, Accepted, Pending]);
    }

    #[test]
    fn limits_count_each_consumer_by_itself() {
        let a = attachment(AcceptManual, &[("consumer", 1), ("other1", 1)], &[]);
        let all = vec![connection(1, "consumer", Pending, None), connection(2, "other1", Pending, None)];
        assert_eq!(statuses(&settle(&a, Reach::Waiting, all, [nat(2), nat(3)])), [Accepted, Accepted]);
    }

    #[test]
    fn nat_addresses_go_lowest_first_and_their_end_needs_attention_until_a_subnet_is_added() {
        let a = attachment(AcceptAutomatic, &[], &[]);
        let all = (1..=3).map(|n| connection(n, "consumer", Pending, None)).collect();
        let settled = settle(&a, Reach::Waiting, all, [nat(2), nat(3)]);
        assert_eq!(statuses(&settled), [Accepted, Accepted, NeedsAttention]);
        assert_eq!(nats(&settled), [&[nat(2)][..], &[nat(3)], &[]]);
        let again = settle(&a, Reach::Waiting, settled.connections, [nat(4)]);
        assert_eq!(statuses(&again), [Accepted; 3]);
    }

    #[test]
    fn everybody_gets_a_first_nat_address_before_anybody_gets_a_second() {
        let mut a = attachment(AcceptAutomatic, &[], &[]);
        a.nats_per_endpoint = Some(2);
        let all = vec![connection(1, "consumer", Accepted, Some(nat(9))), connection(2, "consumer", Pending, None)];
        let short = settle(&a, Reach::Waiting, all, [nat(2), nat(3)]);
        assert_eq!(nats(&short), [&[nat(9), nat(3)][..], &[nat(2)]]);
        assert_eq!(statuses(&short), [Accepted, NeedsAttention], "it forwards by the one it has");
        let whole = settle(&a, Reach::Waiting, short.connections, [nat(4)]);
        assert_eq!(nats(&whole), [[nat(9), nat(3)], [nat(2), nat(4)]]);
        assert_eq!(statuses(&whole), [Accepted; 2]);
        a.reject = vec![project("consumer")];
        let gone = settle(&a, Reach::Decided, whole.connections, []);
        assert_eq!(gone.released, [nat(9), nat(3), nat(2), nat(4)]);
    }

    #[test]
    fn whoever_joins_where_nobody_waits_is_decided_on_as_if_all_were() {
        let lists: [(&[(&str, u32)], &[&str]); 5] = [
            (&[], &[]),
            (&[("consumer", 2)], &[]),
            (&[("consumer", 9)], &[]),
            (&[], &["consumer"]),
            (&[("other1", 2)], &[]),
        ];
        for (preference, each) in [(AcceptAutomatic, 1), (AcceptManual, 1), (AcceptAutomatic, 2), (AcceptManual, 2)] {
            for (accept, reject) in lists {
                for there in 0..4_u64 {
                    let mut a = attachment(preference, accept, reject);
                    a.nats_per_endpoint = Some(each);
                    let all = (1..=there).map(|n| connection(n, "consumer", Pending, None)).collect();
                    let settled = settle(&a, Reach::Waiting, all, (2..9).map(nat)).connections;
                    if settled.iter().any(|c| matches!(c.status, Pending | NeedsAttention)) {
                        continue;
                    }
                    for left in 0..=each {
                        let held = |address: &Ipv4Addr| settled.iter().any(|c| c.nats.contains(address));
                        let free: Vec<_> = (2..15).map(nat).filter(|a| !held(a)).take(left.into()).collect();
                        let new = connection(9, "consumer", Pending, None);
                        let mut together = settled.clone();
                        together.push(new.clone());
                        let mut wanted = settled.clone();
                        let taken = |c: &Consumer| {
                            let taken = settled.iter().filter(|x| is_accepted(x.status) && names(c, x)).count();
                            u32::try_from(taken).unwrap()
                        };
                        wanted.push(join(&a, &|_| true, new, taken, free.clone()));
                        assert_eq!(settle(&a, Reach::Waiting, together, free).connections, wanted);
                    }
                }
            }
        }
    }

    #[test]
    fn an_address_that_is_released_is_not_handed_to_the_next_in_the_same_breath() {
        let mut a = attachment(AcceptManual, &[("other1", 1)], &[]);
        a.reconcile = true;
        let all = vec![connection(1, "consumer", Accepted, Some(nat(2))), connection(2, "other1", Pending, None)];
        let settled = settle(&a, Reach::Decided, all, [nat(2), nat(3)]);
        assert_eq!(settled.released, [nat(2)]);
        assert_eq!(settled.connections[1].nats, [nat(3)]);
    }
}
