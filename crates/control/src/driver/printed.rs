//! What containers print, and what the platform says about them, as entries of their services' logs.
//!
//! A line comes with the name of its instance and nothing else, and may come when the instance, its revision and its
//! service are gone: what they were called is remembered for a while.

use std::collections::BTreeMap;

use logs::{
    Entry, Severity,
    lines::{LineNames, line_entry, system_entry},
};
use model::{
    id::WorkloadId,
    limits::PRINTED_NAMES_KEEP,
    planned::{
        edge::ProbeOutcome,
        host::{SandboxEvent, ToHost},
    },
    record,
    run::{Container, Probe, ProbeCheck},
    time::Timestamp,
};

use crate::{
    entries, random,
    world::{Holder, World},
};

#[derive(Default)]
pub(super) struct Printed {
    known: BTreeMap<WorkloadId, Known>,
}

/// An instance that has been heard of.
struct Known {
    names: LineNames,
    /// Of its revision.
    container: Container,
    /// The number of the next line; what came before is in the log.
    next: Option<u64>,
    /// Its end is in the log.
    ended: bool,
    /// When there was last a reason to remember it.
    seen: Timestamp,
}

impl Printed {
    /// The entries of these lines, and what to tell the host once they are in the log.
    pub(super) fn lines(&mut self, world: &World, batch: record::Printed, now: Timestamp) -> (Vec<Entry>, ToHost) {
        let next = batch.next();
        let answer = ToHost::Logged { workload: batch.workload.clone(), next };
        let Some(known) = self.know(world, &batch.workload, now) else {
            // It was gone before this process began.
            eprintln!(
                "control: {} lines of {} are not logged: nobody knows what it was",
                batch.lines.len(),
                batch.workload
            );
            return (Vec::new(), answer);
        };
        // A host that was killed before it could note what was confirmed says it again.
        let said_before = known.next.map_or(0, |expected| expected.saturating_sub(batch.first));
        let first_time = usize::try_from(said_before).unwrap_or(usize::MAX);
        let mut entries = Vec::new();
        if batch.lost > 0 && said_before == 0 {
            let text = format!(
                "{} lines of output before this were lost: they came faster than they could be read.",
                batch.lost
            );
            let at = batch.lines.first().map_or(now, |line| line.at);
            entries.push(system_entry(text, Severity::Warning, &known.names, at, random::number()));
        }
        let numbered = (batch.first..).zip(&batch.lines).skip(first_time);
        entries.extend(numbered.map(|(number, line)| line_entry(line, number, &known.names)));
        known.next = known.next.max(Some(next));
        (entries, answer)
    }

    /// What the platform says about an instance. None: nobody knows it, or it was said before.
    fn system(&mut self, world: &World, id: &WorkloadId, now: Timestamp, what: &What<'_>) -> Option<Entry> {
        let known = self.know(world, id, now)?;
        let ends = matches!(what, What::Ended(_));
        if ends && std::mem::replace(&mut known.ended, true) {
            return None;
        }
        let (text, severity) = what.say(&known.container)?;
        Some(system_entry(text, severity, &known.names, now, random::number()))
    }

    pub(super) fn started(&mut self, world: &World, id: &WorkloadId, reason: &str, now: Timestamp) -> Option<Entry> {
        self.system(world, id, now, &What::Started(reason))
    }

    pub(super) fn probed(
        &mut self,
        world: &World,
        id: &WorkloadId,
        outcome: &ProbeOutcome,
        now: Timestamp,
    ) -> Option<Entry> {
        self.system(world, id, now, &What::Probed(outcome))
    }

    pub(super) fn ended(
        &mut self,
        world: &World,
        id: &WorkloadId,
        event: &SandboxEvent,
        now: Timestamp,
    ) -> Option<Entry> {
        match event {
            SandboxEvent::Started { .. } => None,
            SandboxEvent::Failed { .. } | SandboxEvent::Exited { .. } => {
                self.system(world, id, now, &What::Ended(event))
            }
        }
    }

    /// Remembers an instance that is about to be forgotten by the world.
    pub(super) fn remember(&mut self, world: &World, id: &WorkloadId, now: Timestamp) {
        self.know(world, id, now);
    }

    fn know(&mut self, world: &World, id: &WorkloadId, now: Timestamp) -> Option<&mut Known> {
        if !self.known.contains_key(id) {
            let Holder::Container { revision, .. } = &world.seats.get(id)?.holder else { return None };
            let container = world.revisions.get(revision)?.template.container.clone();
            let names = entries::line_names(world, id)?;
            self.known.insert(id.clone(), Known { names, container, next: None, ended: false, seen: now });
        }
        let known = self.known.get_mut(id)?;
        known.seen = now;
        Some(known)
    }

    /// Forgets the instances of which no more lines will come.
    pub(super) fn forget(&mut self, world: &World, now: Timestamp) {
        self.known.retain(|id, known| world.seats.contains_key(id) || now.since(known.seen) < PRINTED_NAMES_KEEP);
    }
}

enum What<'a> {
    Started(&'a str),
    Probed(&'a ProbeOutcome),
    Ended(&'a SandboxEvent),
}

impl What<'_> {
    /// Source: Cloud Run, `varlog/system`; its troubleshooting page.
    fn say(&self, container: &Container) -> Option<(String, Severity)> {
        Some(match self {
            What::Started(reason) => (format!("Starting new instance. Reason: {reason}"), Severity::Info),
            What::Probed(ProbeOutcome::Ready { .. }) => {
                let (probe, place) = (probe_name(&container.startup_probe), probe_place(container));
                (format!("{probe} probe succeeded after 1 attempt for container {place}."), Severity::Info)
            }
            What::Probed(ProbeOutcome::Failed { attempts, .. }) => {
                let (probe, place) = (probe_name(&container.startup_probe), probe_place(container));
                let times = if *attempts == 1 { "time" } else { "times" };
                let text = format!(
                    "{probe} probe failed {attempts} {times} consecutively for container {place}. The instance was not \
                     started. Connection failed with status {}.",
                    if container.startup_probe.is_default { "DEADLINE_EXCEEDED" } else { "ERROR_CONNECTION_FAILED" }
                );
                (text, Severity::Error)
            }
            What::Ended(SandboxEvent::Started { .. }) => return None,
            What::Ended(SandboxEvent::Failed { why }) => {
                (format!("Application failed to start: {why}"), Severity::Error)
            }
            What::Ended(SandboxEvent::Exited { out_of_memory: true, .. }) => {
                let limit = container.memory_bytes >> 20;
                let text = format!(
                    "Memory limit of {limit} MiB exceeded with {limit} MiB used. Consider increasing the memory limit, see \
                     https://cloud.google.com/run/docs/configuring/memory-limits"
                );
                (text, Severity::Error)
            }
            What::Ended(SandboxEvent::Exited { code: Some(code), .. }) => {
                let severity = if *code == 0 { Severity::Info } else { Severity::Warning };
                (format!("Container called exit({code})."), severity)
            }
            What::Ended(SandboxEvent::Exited { signal, .. }) => {
                let signal = signal.unwrap_or_default();
                // What a program does to itself, as opposed to what is done to it.
                match signal {
                    4 | 5 | 6 | 7 | 8 | 11 | 31 => {
                        (format!("Uncaught signal: {signal}, pid=1, tid=1, fault_addr=0."), Severity::Error)
                    }
                    _ => (format!("Container terminated on signal {signal}."), Severity::Info),
                }
            }
        })
    }
}

fn probe_name(probe: &Probe) -> &'static str {
    match (probe.is_default, &probe.check) {
        (true, _) => "Default STARTUP TCP",
        (false, ProbeCheck::Tcp { .. }) => "STARTUP TCP",
        (false, ProbeCheck::Http { .. }) => "STARTUP HTTP",
    }
}

fn probe_place(container: &Container) -> String {
    let name = &container.name;
    match &container.startup_probe.check {
        ProbeCheck::Tcp { port } => format!("\"{name}\" on port {port}"),
        ProbeCheck::Http { port, path, .. } => format!("\"{name}\" on port {port} path \"{path}\""),
    }
}

#[cfg(test)]
mod tests {
    use model::record::{PrintedLine, Stream};

    use super::*;
    use crate::testing;

    fn world() -> World {
        let mut revision = testing::revision();
        let labels = [("team", "a"), ("client.knative.dev/user-image", "x")];
        revision.template.labels = labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        let mut world = World::default();
        world.seats.put(testing::seat(&revision));
        world.revisions.insert(revision.key.clone(), revision);
        world
    }

    fn id() -> WorkloadId {
        WorkloadId("run-1".into())
    }

    fn batch(first: u64, lost: u64, texts: &[&str]) -> record::Printed {
        let line = |text: &&str| PrintedLine { at: Timestamp(5), stream: Stream::Stdout, text: (*text).into() };
        record::Printed { workload: id(), first, lost, lines: texts.iter().map(line).collect() }
    }

    fn texts(entries: &[Entry]) -> Vec<String> {
        entries.iter().map(|e| e.to_json()["textPayload"].as_str().unwrap_or_default().to_owned()).collect()
    }

    #[test]
    fn lines_carry_the_names_of_their_instance_also_after_it_has_gone() {
        let mut world = world();
        let mut printed = Printed::default();
        let (entries, answer) = printed.lines(&world, batch(0, 0, &["hello"]), Timestamp(9));
        let entry = entries[0].to_json();
        assert_eq!(entry["logName"], "projects/producer-1/logs/run.googleapis.com%2Fstdout");
        assert_eq!(entry["resource"]["labels"]["revision_name"], "hello-00001-abc");
        assert_eq!(entry["labels"], serde_json::json!({"instanceId": "00ab", "team": "a"}));
        assert_eq!(answer, ToHost::Logged { workload: id(), next: 1 });
        world.seats.take(&id());
        world.revisions.clear();
        printed.forget(&world, Timestamp(10));
        let (entries, _) = printed.lines(&world, batch(1, 0, &["farewell"]), Timestamp(10));
        assert_eq!(texts(&entries), ["farewell"]);
        printed.forget(&world, Timestamp(10).plus(PRINTED_NAMES_KEEP * 2));
        let (entries, answer) = printed.lines(&world, batch(2, 0, &["late"]), Timestamp(11));
        assert!(entries.is_empty(), "nobody knows any more what it was");
        assert_eq!(answer, ToHost::Logged { workload: id(), next: 3 }, "and it is not said again for ever");
    }

    #[test]
    fn a_line_that_is_said_twice_is_logged_once_and_a_lost_one_is_told() {
        let world = world();
        let mut printed = Printed::default();
        printed.lines(&world, batch(0, 0, &["a", "b"]), Timestamp(9));
        let (entries, _) = printed.lines(&world, batch(1, 0, &["b", "c"]), Timestamp(9));
        assert_eq!(texts(&entries), ["c"]);
        let (entries, _) = printed.lines(&world, batch(10, 7, &["k"]), Timestamp(9));
        let lost = "7 lines of output before this were lost: they came faster than they could be read.";
        assert_eq!(texts(&entries), [lost, "k"]);
    }

    #[test]
    fn the_system_log_says_how_an_instance_came_and_went() {
        let world = world();
        let mut printed = Printed::default();
        let now = Timestamp(9);
        let text = |entry: Option<Entry>| {
            let entry = entry.expect("an entry").to_json();
            assert_eq!(entry["logName"], "projects/producer-1/logs/run.googleapis.com%2Fvarlog%2Fsystem");
            let text = entry["textPayload"].as_str().unwrap_or_default().to_owned();
            (text, entry["severity"].as_str().unwrap_or_default().to_owned())
        };
        let said = |text: &str, severity: &str| (text.to_owned(), severity.to_owned());
        let started = printed.started(&world, &id(), "AUTOSCALING - x", now);
        assert_eq!(text(started), said("Starting new instance. Reason: AUTOSCALING - x", "INFO"));
        let ready = printed.probed(&world, &id(), &ProbeOutcome::Ready { over_v6: true, took_ms: 1 }, now);
        let want = "Default STARTUP TCP probe succeeded after 1 attempt for container \"hello-1\" on port 8080.";
        assert_eq!(text(ready), said(want, "INFO"));
        let exited = |code, signal, out_of_memory| {
            let event = SandboxEvent::Exited { code, signal, out_of_memory, output_tail: String::new() };
            let mut printed = Printed::default();
            let first = printed.ended(&world, &id(), &event, now);
            assert!(printed.ended(&world, &id(), &event, now).is_none(), "the end is told once");
            text(first)
        };
        assert_eq!(exited(Some(0), None, false), said("Container called exit(0).", "INFO"));
        assert_eq!(exited(Some(3), None, false), said("Container called exit(3).", "WARNING"));
        assert_eq!(exited(None, Some(6), false).1, "ERROR");
        assert_eq!(exited(None, Some(15), false), said("Container terminated on signal 15.", "INFO"));
        assert!(exited(None, Some(9), true).0.starts_with("Memory limit of 512 MiB exceeded"));
    }
}
