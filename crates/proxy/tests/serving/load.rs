//! Load: queue, scale from zero, concurrency, draining, and what control hears of it.

use std::{cell::Cell, rc::Rc, time::Duration};

use http::Response;
use model::{
    id::WorkloadId,
    planned::edge::{EdgeItem, EdgeKey, FromProxy, InstancePhase, ProbeOutcome},
    run::{Probe, ProbeCheck},
};
use tokio::sync::Notify;

use crate::rig::{Client, Container, full, instance, nobody, patiently, public, revision, run, serve_at, shop_1};

/// A container that holds every request until it is told to go on.
struct Gate {
    open: Rc<Notify>,
    running: Rc<Cell<u32>>,
    most: Rc<Cell<u32>>,
    entered: Rc<Notify>,
}

impl Gate {
    async fn container() -> (Gate, std::net::SocketAddr) {
        let gate = Gate { open: Rc::default(), running: Rc::default(), most: Rc::default(), entered: Rc::default() };
        let (open, running, most, entered) =
            (gate.open.clone(), gate.running.clone(), gate.most.clone(), gate.entered.clone());
        let (address, _) = serve_at("[::1]:0", move |_, _| {
            let (open, running, most, entered) = (open.clone(), running.clone(), most.clone(), entered.clone());
            async move {
                let _running = Running::begin(running, &most);
                entered.notify_one();
                open.notified().await;
                Response::new(full("done"))
            }
        })
        .await;
        (gate, address)
    }

    async fn until_running(&self, count: u32) {
        patiently("requests in the container", async {
            while self.running.get() != count {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }
}

struct Running(Rc<Cell<u32>>);

impl Running {
    fn begin(count: Rc<Cell<u32>>, most: &Cell<u32>) -> Running {
        count.set(count.get() + 1);
        most.set(most.get().max(count.get()));
        Running(count)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

fn demand(waiting: u32, in_flight: u32) -> impl Fn(&FromProxy) -> Option<()> {
    move |m| match m {
        FromProxy::Demand { waiting: w, in_flight: f, .. } => ((*w, *f) == (waiting, in_flight)).then_some(()),
        _ => None,
    }
}

#[test]
fn a_request_to_a_service_at_zero_waits_for_its_first_instance() {
    for address in ["[::1]:0", "127.0.0.1:0"] {
        run(async |rig| {
            let container = Container::at(address).await;
            let listener = rig.shop(&[]).await;
            let waiting = tokio::task::spawn_local(async move { Client::connect(listener).await.get("/").await });
            rig.control.hears("demand", demand(1, 0)).await;
            let mut plan = revision(&[]);
            plan.probe = Probe::default_for(container.address.port());
            plan.instances.insert(WorkloadId("i-1".into()), instance(container.address, InstancePhase::Starting));
            rig.control.set(EdgeItem::Revision(shop_1(), Box::new(plan))).await;
            let over_v6 = rig.control.hears("Probed", |m| match m {
                FromProxy::Probed { outcome: ProbeOutcome::Ready { over_v6, .. }, .. } => Some(*over_v6),
                _ => None,
            });
            assert_eq!(over_v6.await, container.address.is_ipv6());
            assert_eq!(waiting.await.unwrap().status, 200);
            rig.control.hears("demand", demand(0, 0)).await;
        });
    }
}

#[test]
fn an_http_probe_wants_an_answer_below_400_and_says_what_it_got() {
    for (status, want) in [(204, None), (302, None), (404, Some("answered 404")), (500, Some("answered 500"))] {
        run(async |rig| {
            let (container, _) = serve_at("[::1]:0", move |request, _| async move {
                assert_eq!((request.uri().path(), &request.headers()["x-probe"]), ("/up", &"1".parse().unwrap()));
                Response::builder().status(status).body(full("")).unwrap()
            })
            .await;
            let mut plan = revision(&[]);
            let check = ProbeCheck::Http {
                port: container.port(),
                path: "/up".into(),
                headers: vec![("x-probe".into(), "1".into())],
            };
            plan.probe = Probe {
                check,
                initial_delay_s: 0,
                timeout_s: 10,
                period_s: 0,
                failure_threshold: 2,
                is_default: false,
            };
            plan.instances.insert(WorkloadId("i-1".into()), instance(container, InstancePhase::Starting));
            rig.shop_with(public(), plan).await;
            let outcome = rig.control.hears("Probed", |m| match m {
                FromProxy::Probed { outcome, .. } => Some(outcome.clone()),
                _ => None,
            });
            match (outcome.await, want) {
                (ProbeOutcome::Ready { .. }, None) => {}
                (ProbeOutcome::Failed { attempts: 2, why }, Some(want)) => assert_eq!(why, want),
                (outcome, want) => panic!("{outcome:?}, wanted {want:?}"),
            }
        });
    }
}

#[test]
fn an_instance_never_has_more_requests_than_its_concurrency_and_the_queue_is_served_in_order() {
    run(async |rig| {
        let (gate, container) = Gate::container().await;
        let mut plan = revision(&[("i-1", container)]);
        plan.concurrency = 2;
        let listener = rig.shop_with(public(), plan).await;
        let finished = Rc::new(Cell::new(0));
        for _ in 0..7 {
            let finished = finished.clone();
            tokio::task::spawn_local(async move {
                assert_eq!(Client::connect(listener).await.get("/").await.status, 200);
                finished.set(finished.get() + 1);
            });
        }
        rig.control.hears("demand", demand(5, 2)).await;
        patiently("all answers", async {
            while finished.get() < 7 {
                gate.open.notify_one();
                tokio::task::yield_now().await;
            }
        })
        .await;
        assert_eq!(gate.most.get(), 2);
        rig.control.hears("demand", demand(0, 0)).await;
        assert_eq!(rig.control.records(7).await.len(), 7);
    });
}

#[test]
fn a_client_that_vanishes_gives_its_place_to_the_next_and_is_logged_as_499() {
    run(async |rig| {
        let (gate, container) = Gate::container().await;
        let mut plan = revision(&[("i-1", container)]);
        plan.concurrency = 1;
        let listener = rig.shop_with(public(), plan).await;
        let ask = |path: &'static str| async move { Client::connect(listener).await.get(path).await.status };
        let vanishing = tokio::task::spawn_local(ask("/vanishing"));
        gate.until_running(1).await;
        let vanishing_in_queue = tokio::task::spawn_local(ask("/queued"));
        rig.control.hears("demand", demand(1, 1)).await;
        let patient = tokio::task::spawn_local(ask("/patient"));
        rig.control.hears("demand", demand(2, 1)).await;

        // The one in the queue goes first, so the place can only go to the third.
        vanishing_in_queue.abort();
        drop_connection(vanishing_in_queue).await;
        rig.control.hears("demand", demand(1, 1)).await;
        rig.control.forget();
        vanishing.abort();
        drop_connection(vanishing).await;
        rig.control.hears("demand", demand(0, 1)).await;
        gate.until_running(1).await;
        gate.open.notify_one();
        assert_eq!(patient.await.unwrap(), 200);
        rig.control.hears("demand", demand(0, 0)).await;
        let statuses: Vec<(String, u16)> = rig
            .control
            .records(1)
            .await
            .iter()
            .map(|r| (r.url.rsplit('/').next().unwrap().to_owned(), r.status))
            .collect();
        assert!(statuses.contains(&("vanishing".into(), 499)), "{statuses:?}");
    });
}

async fn drop_connection<T>(task: tokio::task::JoinHandle<T>) {
    assert!(task.await.is_err_and(|e| e.is_cancelled()));
}

#[test]
fn without_room_in_time_the_answer_is_429() {
    run(async |rig| {
        let mut plan = revision(&[]);
        plan.queue_wait_ms = 50;
        let listener = rig.shop_with(public(), plan).await;
        let answer = Client::connect(listener).await.get("/").await;
        assert_eq!((answer.status, answer.body.as_str()), (429, "Rate exceeded."));
        let record = rig.control.records(1).await.remove(0);
        assert_eq!((record.status, record.instance, record.revision), (429, None, Some(shop_1())));
        assert!(record.refusal.unwrap().contains("no available instance"));
    });
}

#[test]
fn a_failed_revision_answers_503_at_once_also_to_those_who_wait() {
    run(async |rig| {
        let listener = rig.shop(&[]).await;
        let waiting = tokio::task::spawn_local(async move { Client::connect(listener).await.get("/").await });
        rig.control.hears("demand", demand(1, 0)).await;
        let mut failed = revision(&[]);
        failed.instances_max = 0;
        rig.control.set(EdgeItem::Revision(shop_1(), Box::new(failed))).await;
        assert_eq!(waiting.await.unwrap().status, 503);
        assert_eq!(Client::connect(listener).await.get("/").await.status, 503);
        rig.control.unset(EdgeKey::Revision(shop_1())).await;
        rig.control.mark().await;
        assert_eq!(Client::connect(listener).await.get("/").await.status, 503);
    });
}

#[test]
fn a_draining_instance_ends_what_it_has_and_gets_nothing_new() {
    run(async |rig| {
        let (gate, old) = Gate::container().await;
        let new = Container::hello().await;
        let listener = rig.shop(&[("old", old)]).await;
        let running = tokio::task::spawn_local(async move { Client::connect(listener).await.get("/").await });
        gate.until_running(1).await;
        let mut plan = revision(&[("new", new.address)]);
        plan.instances.insert(WorkloadId("old".into()), instance(old, InstancePhase::Draining));
        rig.control.set(EdgeItem::Revision(shop_1(), Box::new(plan))).await;
        rig.control.mark().await;
        for _ in 0..3 {
            assert_eq!(Client::connect(listener).await.get("/").await.body, "hello");
        }
        let drained = |m: &FromProxy| matches!(m, FromProxy::Drained { instance } if instance.0 == "old").then_some(());
        assert!(rig.control.heard(drained).is_empty());
        gate.open.notify_one();
        assert_eq!(running.await.unwrap().body, "done");
        rig.control.hears("Drained", drained).await;
    });
}

#[test]
fn connections_to_an_instance_are_reused_and_a_stale_one_is_replaced_unseen() {
    run(async |rig| {
        let container = Container::hello().await;
        let listener = rig.shop(&[("i-1", container.address)]).await;
        let mut client = Client::connect(listener).await;
        for _ in 0..20 {
            assert_eq!(client.get("/").await.status, 200);
        }
        assert_eq!(container.connections.get(), 1);
    });
    run(async |rig| {
        // Closes each connection after one answer without saying so.
        let container = crate::rig::raw_container(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
        let listener = rig.shop(&[("i-1", container)]).await;
        let mut client = Client::connect(listener).await;
        for _ in 0..20 {
            assert_eq!(client.get("/").await.body, "ok");
        }
    });
}

#[test]
fn an_instance_that_refuses_connections_costs_one_try_and_no_answer() {
    run(async |rig| {
        let dead = nobody();
        let alive = Container::hello().await;
        let listener = rig.shop(&[("a-dead", dead), ("b-alive", alive.address)]).await;
        let answer = Client::connect(listener).await.get("/").await;
        assert_eq!((answer.status, answer.body.as_str()), (200, "hello"));
        let broken =
            |m: &FromProxy| matches!(m, FromProxy::Broken { instance, .. } if instance.0 == "a-dead").then_some(());
        rig.control.hears("Broken", broken).await;
    });
}

#[test]
fn an_instance_that_comes_back_serves_who_waited_for_it() {
    run(async |rig| {
        let address = nobody();
        let listener = rig.shop(&[("i-1", address)]).await;
        let waiting = tokio::task::spawn_local(async move { Client::connect(listener).await.get("/").await });
        rig.control.hears("Broken", |m| matches!(m, FromProxy::Broken { .. }).then_some(())).await;
        rig.control.hears("demand", demand(1, 0)).await;
        // Control repeats its plan; that alone does not bring the instance back.
        rig.control.set(EdgeItem::Revision(shop_1(), Box::new(revision(&[("i-1", address)])))).await;
        rig.control.mark().await;
        assert!(!waiting.is_finished());
        let _container = Container::at(&address.to_string()).await;
        assert_eq!(waiting.await.unwrap().status, 200);
    });
}

#[test]
fn an_instance_that_takes_no_connection_for_as_long_as_its_start_may_last_has_failed() {
    run(async |rig| {
        let dead = nobody();
        let mut plan = revision(&[("i-1", dead)]);
        plan.probe = Probe { timeout_s: 1, period_s: 1, ..Probe::default_for(dead.port()) };
        let listener = rig.shop_with(public(), plan).await;
        let waiting = tokio::task::spawn_local(async move { Client::connect(listener).await.get("/").await });
        let failed = |m: &FromProxy| match m {
            FromProxy::Probed { instance, outcome: ProbeOutcome::Failed { why, .. }, .. } if instance.0 == "i-1" => {
                Some(why.clone())
            }
            _ => None,
        };
        assert_eq!(rig.control.hears("Probed", failed).await, "no connection was taken for 1 s");
        // Control puts another one in its place, which serves who waited.
        let alive = Container::hello().await;
        rig.control.set(EdgeItem::Revision(shop_1(), Box::new(revision(&[("i-2", alive.address)])))).await;
        assert_eq!(waiting.await.unwrap().status, 200);
    });
}

#[test]
fn an_idle_instance_is_reported_with_its_idle_time() {
    run(async |rig| {
        let container = Container::hello().await;
        let listener = rig.shop(&[("i-1", container.address)]).await;
        Client::connect(listener).await.get("/").await;
        let idle_ms = rig.control.hears("Idle", |m| match m {
            FromProxy::Idle { idle_ms, .. } => Some(*idle_ms),
            _ => None,
        });
        assert!(idle_ms.await >= 1_000);
    });
}

#[test]
fn the_proxy_serves_on_without_control_and_keeps_the_records_for_the_next() {
    run(async |mut rig| {
        let container = Container::hello().await;
        let listener = rig.shop(&[("i-1", container.address)]).await;
        rig.lose_control();
        let mut client = Client::connect(listener).await;
        for _ in 0..5 {
            assert_eq!(client.get("/").await.status, 200);
        }
        rig.new_control().await;
        assert_eq!(rig.control.records(5).await.len(), 5);
        // What the new control does not name is gone once it is complete, and not before.
        rig.control.mark().await;
        assert_eq!(client.get("/").await.status, 200);
        rig.control.send(&model::planned::edge::ToProxy::Complete).await;
        rig.control.mark().await;
        assert_eq!(client.get("/").await.body, "fault filter abort");
    });
}

#[test]
fn a_probe_that_succeeded_is_said_again_to_a_new_control() {
    run(async |mut rig| {
        let container = Container::hello().await;
        let mut plan = revision(&[]);
        plan.probe = Probe::default_for(container.address.port());
        plan.instances.insert(WorkloadId("i-1".into()), instance(container.address, InstancePhase::Starting));
        rig.shop_with(public(), plan.clone()).await;
        let ready =
            |m: &FromProxy| matches!(m, FromProxy::Probed { outcome: ProbeOutcome::Ready { .. }, .. }).then_some(());
        rig.control.hears("Probed", ready).await;
        rig.new_control().await;
        rig.control.set(EdgeItem::Revision(shop_1(), Box::new(plan))).await;
        rig.control.hears("Probed", ready).await;
    });
}

#[test]
fn after_a_start_requests_wait_until_control_has_said_everything() {
    run(async |rig| {
        let container = Container::hello().await;
        let listener = rig.listen().await;
        let mut client = Client::connect(listener).await;
        let answer = client.get("/");
        tokio::pin!(answer);
        let early = tokio::time::timeout(Duration::from_millis(200), &mut answer).await;
        assert!(early.is_err(), "nothing is said before it is known: {early:?}");
        rig.tell_everything(public(), revision(&[("i-1", container.address)])).await;
        assert_eq!(answer.await.status, 200);
    });
}
