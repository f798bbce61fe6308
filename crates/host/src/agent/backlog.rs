//! Flow records that wait for a control that is away: the newest are kept, and what did not fit is told as gaps. So is
//! what was sent right before control went, for nobody knows whether it was written down. Pure.

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

use model::{id::NetworkId, limits::FLOW_TRACE_WAIT, planned::host::FromHost, record::FlowGap, time::Timestamp};

/// Messages kept.
const KEPT_MAX: usize = 1_024;
/// Control has written down what it was sent within this: it reads at once, keeps a flow for as long as its requests may
/// take to be told, and flushes five times a second.
const IN_FLIGHT: Duration = Duration::from_secs(2).saturating_add(FLOW_TRACE_WAIT);

#[derive(Debug, Default)]
pub(super) struct Backlog {
    kept: VecDeque<FromHost>,
    /// What was sent, and when; the newest last.
    sent: VecDeque<(Instant, FromHost)>,
    /// From when to when records of each network are missing; None stands for all networks.
    missing: BTreeMap<Option<NetworkId>, (Timestamp, Timestamp)>,
}

impl Backlog {
    pub(super) fn keep(&mut self, message: FromHost) {
        if self.kept.len() >= KEPT_MAX
            && let Some(lost) = self.kept.pop_front()
        {
            self.miss(lost);
        }
        self.kept.push_back(message);
    }

    /// It was sent, which does not say that it was heard.
    pub(super) fn sent(&mut self, message: FromHost, now: Instant) {
        while self.sent.front().is_some_and(|(at, _)| now.saturating_duration_since(*at) > IN_FLIGHT) {
            self.sent.pop_front();
        }
        if self.sent.len() < KEPT_MAX {
            self.sent.push_back((now, message));
        }
    }

    /// Control has gone: what was on its way is missing.
    pub(super) fn broke(&mut self, now: Instant) {
        for (at, message) in std::mem::take(&mut self.sent) {
            if now.saturating_duration_since(at) <= IN_FLIGHT {
                self.miss(message);
            }
        }
    }

    fn miss(&mut self, lost: FromHost) {
        match lost {
            FromHost::Flows(records) => {
                records.iter().for_each(|r| self.widen(Some(r.network), r.first, r.last));
            }
            FromHost::Gap(FlowGap { network, from, to }) => self.widen(network, from, to),
            // Nothing else waits here: control hears of it again when it connects or sends its plans.
            FromHost::Mapped(_)
            | FromHost::Hello { .. }
            | FromHost::Observed { .. }
            | FromHost::Lacking { .. }
            | FromHost::Sandbox { .. }
            | FromHost::Printed(_) => {}
        }
    }

    fn widen(&mut self, network: Option<NetworkId>, from: Timestamp, to: Timestamp) {
        let gap = self.missing.entry(network).or_insert((from, to));
        *gap = (gap.0.min(from), gap.1.max(to));
    }

    /// What to say next: the gaps first, for they are the oldest.
    pub(super) fn next(&mut self) -> Option<FromHost> {
        match self.missing.pop_first() {
            Some((network, (from, to))) => Some(FromHost::Gap(FlowGap { network, from, to })),
            None => self.kept.pop_front(),
        }
    }
}

#[cfg(test)]
mod tests {
    use model::record::FlowRecord;

    use super::*;

    fn flows(at: i64) -> FromHost {
        FromHost::Flows(vec![FlowRecord {
            network: NetworkId(1),
            protocol: 6,
            src: [10, 0, 0, 2].into(),
            dst: [10, 0, 0, 3].into(),
            src_port: 40_000,
            dst_port: 80,
            packets: 1,
            bytes: 1,
            first: Timestamp(at),
            last: Timestamp(at + 1),
            opening: true,
            forward: true,
        }])
    }

    #[test]
    fn every_record_that_does_not_fit_is_inside_the_gap_that_is_told() {
        for too_many in [0, 1, 2, 3, 500] {
            let mut backlog = Backlog::default();
            let count = i64::try_from(KEPT_MAX).unwrap() + too_many;
            (0..count).for_each(|at| backlog.keep(flows(at)));
            let told: Vec<_> = std::iter::from_fn(|| backlog.next()).collect();
            let gap = FlowGap { network: Some(NetworkId(1)), from: Timestamp(0), to: Timestamp(too_many) };
            let gap = (too_many > 0).then_some(FromHost::Gap(gap));
            let want: Vec<_> = gap.into_iter().chain((too_many..count).map(flows)).collect();
            assert_eq!(told, want, "{too_many} too many");
        }
    }

    #[test]
    fn what_was_on_its_way_when_control_went_is_inside_the_gap_and_what_was_written_down_is_not() {
        let mut backlog = Backlog::default();
        let start = Instant::now();
        for (at, seconds) in [(1, 0), (10, 4), (20, 5)] {
            backlog.sent(flows(at), start + Duration::from_secs(seconds));
        }
        backlog.broke(start + Duration::from_secs(5));
        backlog.keep(flows(30));
        let told: Vec<_> = std::iter::from_fn(|| backlog.next()).collect();
        let gap = FlowGap { network: Some(NetworkId(1)), from: Timestamp(10), to: Timestamp(21) };
        assert_eq!(told, [FromHost::Gap(gap), flows(30)]);
        backlog.broke(start + Duration::from_secs(5));
        assert_eq!(backlog.next(), None, "it is told once");
    }
}
