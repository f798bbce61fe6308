//! What the proxy tells control: reports, demand and request records, while control is there and while it is not.
//!
//! Records wait for control up to a limit and the lost ones are counted. Reports are levels, not edges: what control
//! missed is said again when it sends its plan. Start with [`Outbox::next`], which the link's writer calls.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    rc::{Rc, Weak},
    time::{Duration, Instant},
};

use model::{
    limits::{DEMAND_INTERVAL, LOG_QUEUE_MAX, RECORD_BATCH_MAX, RECORD_BATCH_WAIT, REPORT_QUEUE_MAX},
    planned::edge::FromProxy,
};
use serde::{Serialize, Serializer};
use tokio::sync::Notify;

use crate::{exchange::Entry, revision::Revision};

#[derive(Default)]
pub struct Outbox {
    connected: Cell<bool>,
    reports: RefCell<VecDeque<FromProxy>>,
    changed: RefCell<VecDeque<Weak<Revision>>>,
    records: RefCell<VecDeque<Box<Entry>>>,
    lost: Cell<u64>,
    /// When the oldest waiting record came.
    batch_began: Cell<Option<Instant>>,
    wake: Notify,
}

/// One frame to control.
pub enum Frame {
    Message(FromProxy),
    #[expect(clippy::vec_box, reason = "entries are large and pass through two queues")]
    Records(Vec<Box<Entry>>),
}

impl Serialize for Frame {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Frame::Message(message) => message.serialize(serializer),
            // [`FromProxy::Requests`], written without making its records first.
            Frame::Records(records) => serializer.serialize_newtype_variant("FromProxy", 6, "Requests", records),
        }
    }
}

/// What the writer has to do.
pub enum Next {
    Send(Frame),
    Wait(Duration),
    Nothing,
}

impl Outbox {
    /// A control process is there; what was said to the one before is forgotten.
    pub fn connect(&self) {
        self.reports.borrow_mut().clear();
        self.connected.set(true);
        self.wake.notify_one();
    }

    pub fn disconnect(&self) {
        self.connected.set(false);
        self.reports.borrow_mut().clear();
    }

    /// Says something that control waits for.
    pub fn report(&self, message: FromProxy) {
        if self.connected.get() {
            self.reports.borrow_mut().push_back(message);
            self.wake.notify_one();
        }
    }

    /// Says something that will be said again: dropped while control reads too slowly.
    pub fn hint(&self, message: FromProxy) {
        if self.reports.borrow().len() < REPORT_QUEUE_MAX {
            self.report(message);
        }
    }

    /// The numbers of this revision changed.
    pub fn demand(&self, revision: &Rc<Revision>) {
        if !revision.demand_queued.replace(true) {
            self.changed.borrow_mut().push_back(Rc::downgrade(revision));
            self.wake.notify_one();
        }
    }

    pub fn record(&self, record: Box<Entry>) {
        let mut records = self.records.borrow_mut();
        if records.len() >= LOG_QUEUE_MAX {
            self.lost.set(self.lost.get() + 1);
            return;
        }
        records.push_back(record);
        if records.len() == 1 {
            self.batch_began.set(Some(Instant::now()));
            self.wake.notify_one();
        } else if records.len() == RECORD_BATCH_MAX {
            self.wake.notify_one();
        }
    }

    /// Puts back what could not be sent. Reports are said again when control comes back.
    pub fn put_back(&self, frame: Frame) {
        match frame {
            Frame::Records(batch) => {
                let mut records = self.records.borrow_mut();
                for record in batch.into_iter().rev() {
                    records.push_front(record);
                }
                while records.len() > LOG_QUEUE_MAX {
                    records.pop_back();
                    self.lost.set(self.lost.get() + 1);
                }
            }
            Frame::Message(FromProxy::Lost { records }) => self.lost.set(self.lost.get() + records),
            Frame::Message(
                FromProxy::Requests(_)
                | FromProxy::Applied(_)
                | FromProxy::Demand { .. }
                | FromProxy::Probed { .. }
                | FromProxy::Idle { .. }
                | FromProxy::Drained { .. }
                | FromProxy::Broken { .. },
            ) => {}
        }
    }

    pub async fn changed(&self) {
        self.wake.notified().await;
    }

    /// The next message that is due.
    pub fn next(&self, now: Instant) -> Next {
        if let Some(report) = self.reports.borrow_mut().pop_front() {
            return Next::Send(Frame::Message(report));
        }
        let mut wait = None;
        match self.next_demand(now) {
            Next::Send(demand) => return Next::Send(demand),
            Next::Wait(time) => wait = Some(time),
            Next::Nothing => {}
        }
        match self.next_records(now) {
            Next::Send(records) => Next::Send(records),
            Next::Wait(time) => Next::Wait(wait.map_or(time, |w: Duration| w.min(time))),
            Next::Nothing => wait.map_or(Next::Nothing, Next::Wait),
        }
    }

    fn next_demand(&self, now: Instant) -> Next {
        let mut changed = self.changed.borrow_mut();
        let mut wait: Option<Duration> = None;
        for _ in 0..changed.len() {
            let Some(revision) = changed.pop_front().and_then(|weak| weak.upgrade()) else { continue };
            let age = revision.demand_said.get().map_or(DEMAND_INTERVAL, |said| now.saturating_duration_since(said));
            if age >= DEMAND_INTERVAL {
                revision.demand_queued.set(false);
                revision.demand_said.set(Some(now));
                let (waiting, in_flight) = (revision.waiting(), revision.in_flight());
                let demand = FromProxy::Demand { revision: revision.key.clone(), waiting, in_flight };
                return Next::Send(Frame::Message(demand));
            }
            let left = DEMAND_INTERVAL - age;
            wait = Some(wait.map_or(left, |w| w.min(left)));
            changed.push_back(Rc::downgrade(&revision));
        }
        wait.map_or(Next::Nothing, Next::Wait)
    }

    fn next_records(&self, now: Instant) -> Next {
        let lost = self.lost.take();
        if lost > 0 {
            return Next::Send(Frame::Message(FromProxy::Lost { records: lost }));
        }
        let mut records = self.records.borrow_mut();
        if records.is_empty() {
            return Next::Nothing;
        }
        let age = self.batch_began.get().map_or(RECORD_BATCH_WAIT, |began| now.saturating_duration_since(began));
        if records.len() < RECORD_BATCH_MAX && age < RECORD_BATCH_WAIT {
            return Next::Wait(RECORD_BATCH_WAIT - age);
        }
        let count = records.len().min(RECORD_BATCH_MAX);
        Next::Send(Frame::Records(records.drain(..count).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exchange::tests::refused;

    fn urls(frame: &Frame) -> Vec<String> {
        match serde_json::from_value(serde_json::to_value(frame).unwrap()).unwrap() {
            FromProxy::Requests(records) => records.into_iter().map(|record| record.url).collect(),
            other => panic!("{other:?}"),
        }
    }

    fn send(outbox: &Outbox) -> Option<Frame> {
        let much_later = Instant::now() + Duration::from_secs(60);
        match outbox.next(much_later) {
            Next::Send(frame) => Some(frame),
            Next::Wait(_) | Next::Nothing => None,
        }
    }

    #[test]
    fn records_wait_for_control_up_to_the_limit_and_the_lost_ones_are_counted() {
        let outbox = Rc::new(Outbox::default());
        for _ in 0..LOG_QUEUE_MAX + 5 {
            refused(&outbox, "/");
        }
        outbox.connect();
        assert!(matches!(send(&outbox), Some(Frame::Message(FromProxy::Lost { records: 5 }))));
        let mut came = 0;
        while let Some(Frame::Records(batch)) = send(&outbox) {
            assert!(batch.len() <= RECORD_BATCH_MAX);
            came += batch.len();
        }
        assert_eq!(came, LOG_QUEUE_MAX);
    }

    #[test]
    fn a_batch_that_was_not_sent_goes_first_the_next_time() {
        let outbox = Rc::new(Outbox::default());
        for path in ["/1", "/2"] {
            refused(&outbox, path);
        }
        let batch = send(&outbox).unwrap();
        refused(&outbox, "/3");
        outbox.put_back(batch);
        assert_eq!(urls(&send(&outbox).unwrap()), ["http://h/1", "http://h/2", "http://h/3"]);
        assert!(send(&outbox).is_none());
    }

    #[test]
    fn a_record_waits_a_moment_for_company_and_no_longer() {
        let outbox = Rc::new(Outbox::default());
        refused(&outbox, "/1");
        let now = Instant::now();
        assert!(matches!(outbox.next(now), Next::Wait(time) if time <= RECORD_BATCH_WAIT));
        assert!(matches!(outbox.next(now + RECORD_BATCH_WAIT), Next::Send(Frame::Records(_))));
        for _ in 0..RECORD_BATCH_MAX {
            refused(&outbox, "/");
        }
        assert!(matches!(outbox.next(Instant::now()), Next::Send(Frame::Records(_))), "a full batch does not wait");
    }

    #[test]
    fn reports_for_a_control_that_is_gone_are_not_kept() {
        let outbox = Outbox::default();
        outbox.report(FromProxy::Applied(1));
        outbox.connect();
        assert!(send(&outbox).is_none());
        outbox.report(FromProxy::Applied(2));
        assert!(matches!(send(&outbox), Some(Frame::Message(FromProxy::Applied(2)))));
    }
}
