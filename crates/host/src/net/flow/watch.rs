//! The thread that follows the flows of one router. What it could not hear, for whatever reason, is told as a gap.

use std::{
    io,
    os::fd::AsFd,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::SyncSender,
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use model::{
    id::NetworkId,
    limits::RECORD_BATCH_MAX,
    record::{FlowGap, FlowRecord},
    time::Timestamp,
};

use super::{Ledger, Said, now};
use crate::{
    net::kernel::KernelError,
    netlink::{
        conntrack::{self, Entry, Event, Tuple},
        socket::{Family, NetlinkError, Socket},
    },
    netns::Netns,
};

/// How long the thread waits for events before it looks at its clock and whether it should end.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// After a failure to listen: from this, doubling with each in a row, to that.
const AGAIN_FIRST: Duration = Duration::from_millis(10);
const AGAIN_MOST: Duration = Duration::from_secs(5);

/// How a router's flows are followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tuning {
    /// Between two records of a living flow.
    pub interval: Duration,
    /// Bytes of events that may wait to be read; None leaves room for thousands.
    pub events_bytes: Option<usize>,
}

/// A running flow thread; it ends when dropped.
#[derive(Debug)]
pub struct Watch {
    wishes: Arc<Wishes>,
    thread: Option<JoinHandle<()>>,
}

/// What is asked of a flow thread.
#[derive(Debug, Default)]
struct Wishes {
    stop: AtomicBool,
    again: AtomicBool,
}

impl Watch {
    /// There is somebody who does not know of the connections that live already.
    pub fn tell_again(&self) {
        self.wishes.again.store(true, Ordering::Relaxed);
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.wishes.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A thread that panicked has said so on standard error; there is nothing to clean up after it.
            let _ = thread.join();
        }
    }
}

/// Follows the flows of the router in `netns`. What does not fit into `out` is told as a gap.
pub fn watch(network: NetworkId, netns: &Netns, tuning: Tuning, out: SyncSender<Said>) -> Result<Watch, KernelError> {
    let fd = netns.as_fd().try_clone_to_owned();
    let fd = fd.map_err(|source| crate::netns::NetnsError::Open { name: netns.name().to_owned(), source })?;
    let netns = Netns::borrowed(netns.name().to_owned(), fd);
    let tracking = Kernel { sockets: listen(&netns, tuning)?, netns, tuning };
    let wishes = Arc::<Wishes>::default();
    let mut watcher = Watcher::new(network, tracking, tuning.interval, out, wishes.clone());
    let thread = thread::spawn(move || watcher.run());
    Ok(Watch { wishes, thread: Some(thread) })
}

/// What the thread asks of connection tracking.
trait Tracking {
    /// The next births and deaths; None when there were none within `wait`. ENOBUFS says that some were lost.
    fn events(&mut self, wait: Duration) -> io::Result<Option<Vec<Event>>>;
    fn list(&mut self) -> Result<Vec<Entry>, NetlinkError>;
    fn get(&mut self, flow: &Tuple) -> Result<Option<Entry>, NetlinkError>;
    /// Begins to listen anew.
    fn reopen(&mut self) -> Result<(), KernelError>;
}

/// The kernel's, in one namespace.
struct Kernel {
    netns: Netns,
    tuning: Tuning,
    sockets: Sockets,
}

struct Sockets {
    events: Socket,
    asks: Socket,
}

fn listen(netns: &Netns, tuning: Tuning) -> Result<Sockets, KernelError> {
    let wrap = |source| KernelError::Netlink { namespace: netns.name().to_owned(), source };
    let [events, asks] = netns.run(|| [Socket::open(Family::Netfilter), Socket::open(Family::Netfilter)])?;
    let (events, asks) = (events.map_err(wrap)?, asks.map_err(wrap)?);
    if let Some(bytes) = tuning.events_bytes {
        events.limit_receive(bytes).map_err(wrap)?;
    }
    conntrack::subscribe(&events).map_err(wrap)?;
    Ok(Sockets { events, asks })
}

impl Tracking for Kernel {
    fn events(&mut self, wait: Duration) -> io::Result<Option<Vec<Event>>> {
        let datagram = self.sockets.events.event(wait)?;
        Ok(datagram.map(|datagram| conntrack::events(&datagram).collect()))
    }

    fn list(&mut self) -> Result<Vec<Entry>, NetlinkError> {
        conntrack::list(&mut self.sockets.asks)
    }

    fn get(&mut self, flow: &Tuple) -> Result<Option<Entry>, NetlinkError> {
        conntrack::get(&mut self.sockets.asks, flow)
    }

    fn reopen(&mut self) -> Result<(), KernelError> {
        self.sockets = listen(&self.netns, self.tuning)?;
        Ok(())
    }
}

struct Watcher<T> {
    ledger: Ledger,
    tracking: T,
    out: SyncSender<Said>,
    interval: Duration,
    /// Since when records are missing.
    lost_since: Option<Timestamp>,
    /// When events were last heard without loss.
    heard: Timestamp,
    /// How long to wait after the next failure.
    again: Duration,
    wishes: Arc<Wishes>,
}

impl<T: Tracking> Watcher<T> {
    fn new(
        network: NetworkId,
        tracking: T,
        interval: Duration,
        out: SyncSender<Said>,
        wishes: Arc<Wishes>,
    ) -> Watcher<T> {
        Watcher {
            ledger: Ledger::new(network),
            tracking,
            out,
            interval,
            lost_since: None,
            heard: now(),
            again: AGAIN_FIRST,
            wishes,
        }
    }

    fn run(&mut self) {
        // Flows that live already: opened while nobody listened.
        self.resync();
        let mut next = Instant::now() + self.interval;
        while !self.wishes.stop.load(Ordering::Relaxed) {
            if self.wishes.again.swap(false, Ordering::Relaxed) {
                self.map(&self.ledger.living());
            }
            let wait = LOOK_EVERY.min(next.saturating_duration_since(Instant::now()));
            self.listen(wait);
            if Instant::now() >= next {
                self.interval_ends();
                next = Instant::now() + self.interval;
            }
        }
    }

    fn listen(&mut self, wait: Duration) {
        match self.tracking.events(wait) {
            Ok(Some(events)) => self.hear(events),
            Ok(None) => {
                self.heard = now();
                self.again = AGAIN_FIRST;
            }
            Err(e) if e.raw_os_error() == Some(libc::ENOBUFS) => {
                self.lost_since.get_or_insert(self.heard);
                self.resync();
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => self.recover(&e),
        }
    }

    /// Listening failed: nothing is heard until it is begun anew.
    fn recover(&mut self, error: &io::Error) {
        self.lost_since.get_or_insert(self.heard);
        eprintln!("host: cannot hear the flows of network {}: {error}; trying again", self.ledger.network);
        let until = Instant::now() + self.again;
        self.again = (self.again * 2).min(AGAIN_MOST);
        while Instant::now() < until && !self.wishes.stop.load(Ordering::Relaxed) {
            thread::sleep(LOOK_EVERY.min(until.saturating_duration_since(Instant::now())));
        }
        // Where that fails so does the next look, which comes back here.
        if self.tracking.reopen().is_ok() {
            self.resync();
        }
    }

    fn hear(&mut self, events: Vec<Event>) {
        let at = now();
        let mut records = Vec::new();
        let mut born = Vec::new();
        for event in events {
            match event {
                Event::Born(entry) => match self.ledger.born(&entry, at) {
                    true => born.push((entry.id, entry.original)),
                    false => drop(self.lost_since.get_or_insert(at)),
                },
                Event::Died(entry) => records.extend(self.ledger.died(&entry, at)),
            }
        }
        self.map(&born);
        self.say(records);
    }

    fn interval_ends(&mut self) {
        let mut records = Vec::new();
        for key in self.ledger.living() {
            match self.tracking.get(&key.1) {
                Ok(Some(entry)) if entry.id == key.0 => records.extend(self.ledger.counted(&entry, now())),
                // Gone, with its last words still to be heard; or its tuple is another's by now.
                Ok(_) => {}
                Err(_) => {
                    self.lost_since.get_or_insert(now());
                }
            }
        }
        self.say(records);
        self.tell_gap();
    }

    /// Compares with what the kernel holds: flows we missed are followed from here on, those that are gone are let go.
    fn resync(&mut self) {
        let Ok(entries) = self.tracking.list() else { return };
        let at = now();
        for key in self.ledger.living() {
            if !entries.iter().any(|e| (e.id, e.original) == key) {
                self.ledger.forget(&key);
            }
        }
        for entry in &entries {
            self.ledger.met(entry, at);
        }
        self.map(&self.ledger.living());
    }

    /// Says how these are translated. What does not fit is not said: its flows are told without a trace.
    fn map(&self, flows: &[(u32, Tuple)]) {
        let mapped: Vec<_> = flows.iter().filter_map(|key| self.ledger.mapped(key)).collect();
        for batch in mapped.chunks(RECORD_BATCH_MAX) {
            // The channel's other end is gone when the process ends.
            let _ = self.out.try_send(Said::Mapped(batch.to_vec()));
        }
    }

    fn say(&mut self, records: Vec<FlowRecord>) {
        if !records.is_empty() && self.out.try_send(Said::Flows(records)).is_err() {
            self.lost_since.get_or_insert(self.heard);
        }
    }

    fn tell_gap(&mut self) {
        let Some(from) = self.lost_since else { return };
        let gap = FlowGap { network: Some(self.ledger.network), from, to: now() };
        if self.out.try_send(Said::Gap(gap)).is_ok() {
            self.lost_since = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::sync_channel;

    use super::*;
    use crate::netlink::conntrack::Counters;

    fn entry(packets: u64) -> Entry {
        let [src, dst] = ["10.1.0.2", "10.1.0.5"].map(|a| a.parse().unwrap());
        let original = Tuple { src, dst, protocol: 6, src_port: 40_000, dst_port: 80, zone: 0 };
        let reply = Tuple { src: dst, dst: src, src_port: 80, dst_port: 40_000, ..original };
        let counters = Some([Counters { packets, bytes: packets * 60 }; 2]);
        Entry { original, reply, id: 7, status: 0, timeout_s: None, counters, started_ns: None }
    }

    /// Fails to be heard until it has been opened anew this often.
    struct Failing {
        opened: u32,
        until: u32,
    }

    impl Tracking for Failing {
        fn events(&mut self, _: Duration) -> io::Result<Option<Vec<Event>>> {
            match self.opened < self.until {
                true => Err(io::ErrorKind::OutOfMemory.into()),
                false => Ok(Some(vec![Event::Died(entry(9))])),
            }
        }

        fn list(&mut self) -> Result<Vec<Entry>, NetlinkError> {
            Ok(vec![entry(4)])
        }

        fn get(&mut self, _: &Tuple) -> Result<Option<Entry>, NetlinkError> {
            Ok(None)
        }

        fn reopen(&mut self) -> Result<(), KernelError> {
            self.opened += 1;
            Ok(())
        }
    }

    #[test]
    fn a_watcher_that_cannot_hear_begins_anew_and_tells_the_gap() {
        let (out, said) = sync_channel(8);
        let tracking = Failing { opened: 0, until: 3 };
        let mut watcher = Watcher::new(NetworkId(1), tracking, Duration::ZERO, out, Arc::default());
        let began = watcher.heard;
        for _ in 0..4 {
            watcher.listen(Duration::ZERO);
        }
        watcher.interval_ends();
        assert_eq!(watcher.tracking.opened, 3);
        let Said::Flows(records) = said.try_recv().unwrap() else { panic!("the flow that was met again ended") };
        assert_eq!(records.iter().map(|r| r.packets).collect::<Vec<_>>(), [5, 5], "what was counted since then");
        let Said::Gap(gap) = said.try_recv().unwrap() else { panic!("what was not heard is told") };
        assert_eq!((gap.network, gap.from), (Some(NetworkId(1)), began));
    }
}
