//! Which requests a flow carried. A request has a trace and a flow has none; what both say is the connection, and where an
//! endpoint translates it, what the producer's router said of it.
//!
//! Pure: what comes, from two processes and in any order, comes in as arguments, and so does the time. Start with
//! [`Joined::hold`]. Everything has a bound, and what falls out of one is told without a trace, never dropped.

use std::{
    collections::{HashMap, VecDeque},
    hash::Hash,
    net::{IpAddr, SocketAddr, SocketAddrV4},
};

use model::{
    id::NetworkId,
    limits::{FLOW_TRACE_WAIT, FLOWS_WAITING_MAX, TRACED_CONNECTIONS_MAX, TRACES_KEEP, TRACES_PER_CONNECTION_MAX},
    record::{FlowRecord, Mapped, RequestRecord},
    time::Timestamp,
};

/// A TCP connection as one network sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Connection {
    pub network: NetworkId,
    /// Who opened it.
    pub client: SocketAddrV4,
    pub server: SocketAddrV4,
}

impl Connection {
    /// None for a flow that is no TCP connection.
    pub fn of_flow(flow: &FlowRecord) -> Option<Connection> {
        let ends = [SocketAddrV4::new(flow.src, flow.src_port), SocketAddrV4::new(flow.dst, flow.dst_port)];
        let [client, server] = if flow.forward { ends } else { [ends[1], ends[0]] };
        (flow.protocol == 6).then_some(Connection { network: flow.network, client, server })
    }

    /// Into a load balancer. None for a peer that no VPC has.
    pub fn of_peer(network: NetworkId, peer: SocketAddr, server: SocketAddrV4) -> Option<Connection> {
        let IpAddr::V4(address) = peer.ip() else { return None };
        Some(Connection { network, client: SocketAddrV4::new(address, peer.port()), server })
    }
}

/// 32 hexadecimal digits, as a number.
pub type TraceId = u128;

/// What a request left behind.
#[derive(Clone, Copy, Debug)]
struct Call {
    trace: TraceId,
    arrived: Timestamp,
    ended: Timestamp,
}

/// A request has ended for the proxy a moment before its last bytes leave, and those may be in the next interval.
const LAST_BYTES: std::time::Duration = std::time::Duration::from_millis(10);

impl Call {
    fn is_within(&self, flow: &FlowRecord) -> bool {
        self.arrived <= flow.last && self.ended.plus(LAST_BYTES) >= flow.first
    }
}

/// How a consumer's connection continues in the producer's network.
#[derive(Clone, Copy, Debug)]
struct Translated {
    to: Connection,
    at: Timestamp,
}

/// `T` is what is to be told of a flow: its entries.
#[derive(Debug)]
pub struct Joined<T> {
    /// By the connection as the load balancer sees it.
    calls: Remembered<Connection, VecDeque<Call>>,
    /// By the consumer's connection, and back: a NAT address and port are one connection's at a time.
    translated: Remembered<Connection, Translated>,
    translates: Remembered<Connection, Connection>,
    waiting: VecDeque<Waiting<T>>,
}

#[derive(Debug)]
struct Waiting<T> {
    since: Timestamp,
    connection: Connection,
    flow: FlowRecord,
    told: T,
}

impl<T> Default for Joined<T> {
    fn default() -> Joined<T> {
        Joined {
            calls: Remembered::default(),
            translated: Remembered::default(),
            translates: Remembered::default(),
            waiting: VecDeque::new(),
        }
    }
}

impl<T> Joined<T> {
    /// A request that came over this connection has ended. `now` is of the clock that nobody sets.
    pub fn request(&mut self, connection: Connection, record: &RequestRecord, now: Timestamp) {
        let Ok(trace) = TraceId::from_str_radix(&record.trace, 16) else { return };
        let calls = self.calls.entry(connection, now);
        if calls.len() >= TRACES_PER_CONNECTION_MAX {
            calls.pop_front();
        }
        calls.push_back(Call { trace, arrived: record.arrived, ended: record.end() });
    }

    /// A connection of a VPC of consumers is translated.
    pub fn mapped(&mut self, consumer: NetworkId, mapped: &Mapped, now: Timestamp) {
        let from = Connection { network: consumer, client: mapped.consumer, server: mapped.endpoint };
        let to = Connection { network: mapped.network, client: mapped.nat, server: mapped.target };
        if let Some(before) = self.translates.insert(to, from, now)
            && before != from
        {
            // Its port is another's now.
            self.translated.remove(&before);
        }
        self.translated.insert(from, Translated { to, at: mapped.at }, now);
    }

    /// Keeps what is to be told of a flow until its requests are known. Returns what has to be told now because there is no
    /// room.
    pub fn hold(
        &mut self,
        connection: Connection,
        flow: FlowRecord,
        told: T,
        now: Timestamp,
    ) -> Option<(T, Vec<TraceId>)> {
        let over = if self.waiting.len() >= FLOWS_WAITING_MAX { self.waiting.pop_front() } else { None };
        self.waiting.push_back(Waiting { since: now, connection, flow, told });
        over.map(|w| self.join(w, now))
    }

    /// What has waited for long enough, each with the traces of its requests, oldest first.
    pub fn due(&mut self, now: Timestamp) -> Vec<(T, Vec<TraceId>)> {
        let mut due = Vec::new();
        while let Some(first) = self.waiting.front()
            && now.since(first.since) >= FLOW_TRACE_WAIT
            && let Some(first) = self.waiting.pop_front()
        {
            due.push(self.join(first, now));
        }
        if self.waiting.is_empty() {
            self.waiting.shrink_to(0);
        }
        due
    }

    fn join(&mut self, waiting: Waiting<T>, now: Timestamp) -> (T, Vec<TraceId>) {
        let Waiting { connection, flow, told, .. } = waiting;
        let at_balancer = match self.translated.get(&connection, now).copied() {
            // The consumer's router sees a connection first: this one is of an earlier connection with its ports.
            Some(translated) if flow.opening && translated.at < flow.first => {
                self.translated.remove(&connection);
                None
            }
            Some(translated) => {
                // Both are remembered for as long as either.
                self.translates.get(&translated.to, now);
                Some(translated.to)
            }
            None => Some(connection),
        };
        let calls = at_balancer.and_then(|connection| self.calls.get(&connection, now));
        let mut traces: Vec<TraceId> = Vec::new();
        for call in calls.into_iter().flatten().filter(|call| call.is_within(&flow)) {
            if !traces.contains(&call.trace) {
                traces.push(call.trace);
            }
        }
        (told, traces)
    }

    /// Forgets what has not been heard of for long.
    pub fn forget(&mut self, now: Timestamp) {
        self.calls.forget(now);
        self.translated.forget(now);
        self.translates.forget(now);
    }
}

/// A map of at most [`TRACED_CONNECTIONS_MAX`], of which what came first goes first.
#[derive(Debug)]
struct Remembered<K, V> {
    all: HashMap<K, (Timestamp, V)>,
    /// Every key that came, once; some may have been removed since.
    order: VecDeque<K>,
}

impl<K, V> Default for Remembered<K, V> {
    fn default() -> Remembered<K, V> {
        Remembered { all: HashMap::new(), order: VecDeque::new() }
    }
}

impl<K: Copy + Eq + Hash, V> Remembered<K, V> {
    fn make_room(&mut self, key: K) {
        while self.order.len() >= TRACED_CONNECTIONS_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.all.remove(&oldest);
        }
        self.order.push_back(key);
    }

    fn insert(&mut self, key: K, value: V, now: Timestamp) -> Option<V> {
        if !self.all.contains_key(&key) {
            self.make_room(key);
        }
        self.all.insert(key, (now, value)).map(|(_, before)| before)
    }

    fn entry(&mut self, key: K, now: Timestamp) -> &mut V
    where
        V: Default,
    {
        if !self.all.contains_key(&key) {
            self.make_room(key);
        }
        let (heard, value) = self.all.entry(key).or_default();
        *heard = now;
        value
    }

    fn get(&mut self, key: &K, now: Timestamp) -> Option<&V> {
        let (heard, value) = self.all.get_mut(key)?;
        *heard = now;
        Some(value)
    }

    fn remove(&mut self, key: &K) {
        self.all.remove(key);
    }

    fn forget(&mut self, now: Timestamp) {
        self.all.retain(|_, (heard, _)| now.since(*heard) < TRACES_KEEP);
        self.order.retain(|key| self.all.contains_key(key));
        if self.all.is_empty() {
            *self = Remembered::default();
        }
    }
}

#[cfg(test)]
mod tests;
