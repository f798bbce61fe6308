//! One namespace in our hands: its sockets, its links, and what we know it holds. Reads and applies; decides nothing.

use std::{
    ops::RangeInclusive,
    time::{Duration, Instant},
};

use model::planned::host::CellId;

use super::{
    pieces::Part,
    state::{self, Found, Step, Wanted},
};
use crate::{
    names::{IfName, PORT_PREFIX, to_relay},
    netlink::{
        nft::{self, Table, Writer},
        route::{self, End, Hop, Links, Neighbour, Route},
        socket::{Family, NetlinkError, Socket},
        wire::Message,
    },
    netns::{Netns, NetnsError},
};

/// Numbers of our links but those from consumers, which are numbered below ([`super::vpc::INCOMING_INDEX_BASE`]).
const LINK_NUMBERS: RangeInclusive<u32> = 0x0020_0000..=0x7fff_ffff;

#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    #[error(transparent)]
    Netns(#[from] NetnsError),
    #[error("in namespace {namespace}")]
    Netlink { namespace: String, source: NetlinkError },
    #[error("namespace {namespace} has no interface {name}")]
    NoLink { namespace: String, name: IfName },
    #[error("{cell} asks for what this host cannot give: {what}")]
    Unsupported { cell: CellId, what: String },
}

/// How long a new link may take until packets pass it, and how often it is looked at meanwhile.
const LINK_MAX: Duration = Duration::from_millis(500);
const LINK_LOOK: Duration = Duration::from_micros(50);

/// A namespace with sockets inside it.
#[derive(Debug)]
pub struct Space {
    netns: Netns,
    route: Socket,
    /// Opened when first needed: a workload's namespace has no rules of ours.
    netfilter: Option<Socket>,
    links: Links,
    /// What it holds; read from the kernel when first needed, kept in step from then on.
    found: Option<Found>,
}

impl Space {
    pub fn enter(netns: Netns) -> Result<Space, KernelError> {
        let namespace = netns.name().to_owned();
        let wrap = |source| KernelError::Netlink { namespace: namespace.clone(), source };
        let mut route = netns.run(|| Socket::open(Family::Route))?.map_err(wrap)?;
        let links = route::list_links(&mut route).map_err(wrap)?;
        Ok(Space { netns, route, netfilter: None, links, found: None })
    }

    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    pub fn links(&self) -> &Links {
        &self.links
    }

    /// Netlink messages sent into this namespace so far: the cost of changes, independent of the clock.
    pub fn messages_sent(&self) -> u64 {
        self.route.sent() + self.netfilter.as_ref().map_or(0, Socket::sent)
    }

    pub fn netfilter(&mut self) -> Result<&mut Socket, KernelError> {
        if self.netfilter.is_none() {
            let opened = self.netns.run(|| Socket::open(Family::Netfilter))?;
            self.netfilter = Some(opened.map_err(|e| self.wrap(e))?);
        }
        Ok(self.netfilter.as_mut().expect("opened above"))
    }

    fn wrap(&self, source: NetlinkError) -> KernelError {
        KernelError::Netlink { namespace: self.netns.name().to_owned(), source }
    }

    /// Makes the namespace hold what is wanted; answers how many steps that took.
    pub fn converge(&mut self, wanted: &Wanted) -> Result<usize, KernelError> {
        let found = match self.found.take() {
            Some(found) => found,
            None => self.read(wanted)?,
        };
        let steps = state::diff(wanted, &found);
        // If a step fails nobody knows what holds: `found` stays empty and the next try reads the kernel again.
        self.apply(&steps)?;
        let taken = steps.len();
        self.found = Some(state::after(wanted, found));
        Ok(taken)
    }

    /// Changes a part of what the namespace holds; answers how many steps that took. What else it holds is not asked, and
    /// read anew when [`Space::converge`] is called again.
    pub fn change(&mut self, part: &Part) -> Result<usize, KernelError> {
        self.found = None;
        let steps = state::diff(&part.wanted, &part.found);
        self.apply(&steps)?;
        Ok(steps.len())
    }

    /// Reads the kernel: what of `wanted`'s kinds is there now. Routes and neighbours of cables to workloads and
    /// to the relay come and go with those.
    pub fn read(&mut self, wanted: &Wanted) -> Result<Found, KernelError> {
        let mut tables = Vec::new();
        for table in &wanted.tables {
            let read = nft::read_table(self.netfilter()?, writer(table));
            tables.push(read.map_err(|e| self.wrap(e))?);
        }
        let routes = route::list_routes(&mut self.route, &self.links).map_err(|e| self.wrap(e))?;
        let neighbours = route::list_neighbours(&mut self.route, &self.links).map_err(|e| self.wrap(e))?;
        let mark_rules = route::list_mark_rules(&mut self.route).map_err(|e| self.wrap(e))?;
        let comes_and_goes = |name: &IfName| name.as_str().starts_with(PORT_PREFIX) || *name == to_relay();
        let by_such = |hop: &Hop| matches!(hop, Hop::Link(dev) | Hop::Via(_, dev) if comes_and_goes(dev));
        Ok(Found {
            routes: routes.into_iter().filter(|r| !by_such(&r.hop)).collect(),
            neighbours: neighbours.into_iter().filter(|n| !comes_and_goes(&n.at)).collect(),
            mark_rules: mark_rules.into_iter().collect(),
            tables,
        })
    }

    /// Reads all routes and neighbours, those of workloads' cables included.
    pub fn ports(&mut self) -> Result<(Vec<Route>, Vec<Neighbour>), KernelError> {
        let routes = route::list_routes(&mut self.route, &self.links).map_err(|e| self.wrap(e))?;
        let neighbours = route::list_neighbours(&mut self.route, &self.links).map_err(|e| self.wrap(e))?;
        Ok((routes, neighbours))
    }

    /// Forget what is known of routes and neighbours at this link: it went, and the kernel took them along.
    fn forget_link(&mut self, name: &IfName) {
        self.links.remove(name);
        if let Some(found) = &mut self.found {
            found.neighbours.retain(|n| n.at != *name);
            found.routes.retain(|r| !matches!(&r.hop, Hop::Link(dev) | Hop::Via(_, dev) if dev == name));
        }
    }

    fn apply(&mut self, steps: &[Step<'_>]) -> Result<(), KernelError> {
        let tables: Vec<_> = steps.iter().enumerate().flat_map(|(i, step)| table_messages(step, i)).collect();
        if !tables.is_empty() {
            self.netfilter()?.transaction("change the packet rules", tables).map_err(|e| self.wrap(e))?;
        }
        let mut deletes = Vec::new();
        let mut requests = Vec::new();
        for step in steps {
            if let Some(request) = self.route_request(step)? {
                deletes.push(step.deletes());
                requests.push(request);
            }
        }
        let outcomes = self.route.attempts(requests).map_err(|e| self.wrap(e))?;
        for (outcome, deletes) in outcomes.into_iter().zip(deletes) {
            match outcome {
                // Deleting what the kernel took away together with its link.
                Err(e) if deletes && matches!(e.errno(), Some(libc::ESRCH | libc::ENOENT | libc::ENODEV)) => {}
                outcome => outcome.map_err(|e| self.wrap(e))?,
            }
        }
        Ok(())
    }

    fn route_request(&self, step: &Step<'_>) -> Result<Option<(String, Message)>, KernelError> {
        let links = &self.links;
        let (what, message) = match step {
            Step::SetRoute(r) => {
                (format!("route {}/{}", r.to, r.prefix_bits), Some(self.must(r.dev(), route::set_route(r, links))?))
            }
            Step::SetNeighbour(n) => {
                (format!("set neighbour {}", n.address), Some(self.must(Some(&n.at), route::set_neighbour(n, links))?))
            }
            Step::DeleteRoute(r) => (format!("unroute {}/{}", r.to, r.prefix_bits), route::delete_route(r, links)),
            Step::DeleteNeighbour(n) => (format!("drop neighbour {}", n.address), route::delete_neighbour(n, links)),
            Step::AddMarkRule(rule) => ("add a rule by mark".to_owned(), Some(route::add_mark_rule(*rule))),
            _ => return Ok(None),
        };
        Ok(message.map(|message| (what, message)))
    }

    fn must<T>(&self, name: Option<&IfName>, message: Option<T>) -> Result<T, KernelError> {
        message.ok_or_else(|| KernelError::NoLink {
            namespace: self.netns.name().to_owned(),
            name: name.cloned().unwrap_or_else(crate::names::loopback),
        })
    }

    /// Lays a cable from here to `peer`, or within this namespace, and takes both ends up. The ends must not exist.
    ///
    /// Both ends have numbers of our choice, so that nothing need be asked for. Source: drivers/net/veth.c obeys the far
    /// end's when the near end's is given.
    pub fn lay(&mut self, here: &End, there: &End, mut peer: Option<&mut Space>) -> Result<(), KernelError> {
        self.plug(here, there, peer.as_deref_mut())?;
        peer.unwrap_or(self).await_link(&there.name)
    }

    /// [`Space::lay`] for who has more to do before anybody sends: the end that is there is still to be awaited.
    pub fn plug(&mut self, here: &End, there: &End, mut peer: Option<&mut Space>) -> Result<(), KernelError> {
        let what = format!("lay {} to {}", here.name, there.name);
        let near = self.numbered(here)?;
        self.links.insert(near.name.clone(), near.index.unwrap_or_default());
        let far = peer.as_deref().unwrap_or(self).numbered(there);
        // Not there yet: it stays out of the list until it is.
        self.links.remove(&near.name);
        let far = far?;
        let message = route::new_cable(&near, &far, peer.as_ref().map(|p| std::os::fd::AsFd::as_fd(&p.netns)));
        self.route.request(&what, message).map_err(|e| self.wrap(e))?;
        match peer.as_mut() {
            Some(peer) => peer.raise(&far)?,
            None => self.raise(&far)?,
        }
        self.raise(&near)
    }

    fn numbered(&self, end: &End) -> Result<End, KernelError> {
        let index = end.index.or_else(|| self.links.free(LINK_NUMBERS));
        Ok(End { index: Some(self.must(Some(&end.name), index)?), ..end.clone() })
    }

    /// Takes an end up and remembers its number.
    fn raise(&mut self, end: &End) -> Result<(), KernelError> {
        let index = self.must(Some(&end.name), end.index)?;
        self.links.insert(end.name.clone(), index);
        self.take_up(&end.name)
    }

    /// Takes a link up that is there, and keeps it without an address of its own.
    pub fn take_up(&mut self, name: &IfName) -> Result<(), KernelError> {
        let index = self.must(Some(name), self.links.index(name))?;
        let requests = vec![
            (format!("keep {name} bare"), route::no_own_address(index)),
            (format!("take {name} up"), route::up(index)),
        ];
        let mut outcomes = self.route.attempts(requests).map_err(|e| self.wrap(e))?.into_iter();
        match outcomes.next() {
            Some(Err(e)) if e.errno() != Some(libc::EAFNOSUPPORT) => return Err(self.wrap(e)),
            _ => {}
        }
        outcomes.collect::<Result<(), _>>().map_err(|e| self.wrap(e))
    }

    /// Waits until packets pass the end that was up first, for as long as that takes on any sane machine: the kernel drops
    /// what is sent into it before, and a first SYN that is lost costs its sender a second.
    pub fn await_link(&mut self, name: &IfName) -> Result<(), KernelError> {
        let deadline = Instant::now() + LINK_MAX;
        while !route::passes(&mut self.route, name).map_err(|e| self.wrap(e))? && Instant::now() < deadline {
            std::thread::sleep(LINK_LOOK);
        }
        Ok(())
    }

    /// Deletes a link with its other end; nothing happens when there is none.
    pub fn cut(&mut self, name: &IfName) -> Result<(), KernelError> {
        if self.links.index(name).is_none() {
            return Ok(());
        }
        self.forget_link(name);
        match self.route.request(&format!("delete link {name}"), route::delete_link(name)) {
            Err(e) if e.errno() == Some(libc::ENODEV) => Ok(()),
            outcome => outcome.map_err(|e| self.wrap(e)),
        }
    }

    /// The other end of a cable was deleted, and with it this one.
    pub fn lost(&mut self, name: &IfName) {
        self.forget_link(name);
    }

    /// Sends routing requests in order: (what it does, message).
    pub fn requests(&mut self, requests: Vec<(String, Message)>) -> Result<(), KernelError> {
        self.route.requests(requests).map_err(|e| self.wrap(e))
    }
}

fn writer(table: &Table) -> Writer<'static> {
    Writer { family: table.family, table: table.name }
}

fn table_messages(step: &Step<'_>, id: usize) -> Vec<Message> {
    let id = u32::try_from(id).expect("steps are bounded by a frame") + 1;
    match step {
        Step::NewTable(t) => vec![writer(t).new_table()],
        Step::NewTimeouts(t, timeouts) => vec![writer(t).new_timeouts(*timeouts)],
        Step::NewSet(t, name, set) => vec![writer(t).new_set(name, set, id)],
        Step::DeleteSet(t, name) => vec![writer(t).delete_set(name)],
        Step::DeleteElements(t, name, set, gone) => writer(t).delete_elements(name, set, gone),
        Step::AddElements(t, name, set, new) => writer(t).add_elements(name, set, new),
        Step::NewChain(t, name, chain) => vec![writer(t).new_chain(name, chain.hook.as_ref())],
        Step::Refill(t, name, chain) => {
            let w = writer(t);
            let rules = chain.rules.iter().map(|r| w.new_rule(name, r));
            [w.flush_chain(name)].into_iter().chain(rules).collect()
        }
        Step::Flush(t, name) => vec![writer(t).flush_chain(name)],
        Step::SetRoute(_)
        | Step::DeleteRoute(_)
        | Step::SetNeighbour(_)
        | Step::DeleteNeighbour(_)
        | Step::AddMarkRule(_) => Vec::new(),
    }
}
