//! The startup probe: is the container's port open, does it answer? Knows one instance and no plan.
//!
//! The sandbox may not exist yet when a probe begins, and the first request waits for its success, so one attempt knocks
//! again and again instead of waiting for TCP to send its SYN again. Start with [`run`].

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{Request, header::HOST};
use http_body_util::Empty;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use model::{
    limits::{PROBE_CONNECT_MAX, PROBE_RETRY_MAX, PROBE_RETRY_MIN, RUN_STARTUP_MAX},
    planned::edge::{EdgeInstance, ProbeOutcome},
    run::{Probe, ProbeCheck},
};
use tokio::{
    net::TcpStream,
    time::{sleep, sleep_until, timeout},
};

use crate::upstream::{Family, dial};

/// Probes until the first success or the last allowed failure. The family is the one that answered.
pub async fn run(probe: &Probe, instance: &EdgeInstance) -> (ProbeOutcome, Option<Family>) {
    let began = Instant::now();
    let seconds = |s: u32| Duration::from_secs(u64::from(s));
    sleep(seconds(probe.initial_delay_s)).await;
    let attempts = probe.failure_threshold.max(1);
    let mut why = String::new();
    for attempt in 1..=attempts {
        let next = tokio::time::Instant::now() + seconds(probe.period_s);
        match timeout(seconds(probe.timeout_s), check(&probe.check, instance)).await {
            Ok(Ok(family)) => {
                let took_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
                return (ProbeOutcome::Ready { over_v6: family == Family::V6, took_ms }, Some(family));
            }
            Ok(Err(fault)) => why = fault,
            Err(_) => why = format!("no answer within {} s", probe.timeout_s),
        }
        if attempt < attempts {
            sleep_until(next).await;
        }
    }
    (ProbeOutcome::Failed { attempts, why }, None)
}

/// How long a container may take at most until the probe succeeds; a second at least.
pub fn longest(probe: &Probe) -> Duration {
    let seconds = u64::from(probe.period_s.max(probe.timeout_s)) * u64::from(probe.failure_threshold.max(1));
    let whole = Duration::from_secs(u64::from(probe.initial_delay_s) + seconds);
    whole.clamp(Duration::from_secs(1), RUN_STARTUP_MAX)
}

async fn check(check: &ProbeCheck, instance: &EdgeInstance) -> Result<Family, String> {
    match check {
        ProbeCheck::Tcp { port } => Ok(knock(instance, *port).await.1),
        ProbeCheck::Http { port, path, headers } => {
            let (stream, family) = knock(instance, *port).await;
            get(stream, path, headers, *port).await.map(|()| family)
        }
    }
}

/// Connects, again and again, over either family; IPv6 is taken where both work, for only it carries the source of a
/// request.
pub async fn knock(instance: &EdgeInstance, port: u16) -> (TcpStream, Family) {
    let v6 = SocketAddr::from((instance.v6, port));
    let v4 = SocketAddr::from((instance.v4, port));
    let mut pause = PROBE_RETRY_MIN;
    loop {
        // While the sandbox is being built a SYN is lost rather than refused: the first tries are short.
        let patience = (pause * 5).min(PROBE_CONNECT_MAX);
        if let Some(stream) = connect(v6, patience).await {
            return (stream, Family::V6);
        }
        if let Some(stream) = connect(v4, patience).await {
            return match connect(v6, PROBE_CONNECT_MAX).await {
                Some(stream) => (stream, Family::V6),
                None => (stream, Family::V4),
            };
        }
        sleep(pause).await;
        pause = (pause * 2).min(PROBE_RETRY_MAX);
    }
}

async fn connect(to: SocketAddr, patience: Duration) -> Option<TcpStream> {
    timeout(patience, dial(to, None)).await.ok()?.ok()
}

/// A GET that must be answered with 200 to 399.
async fn get(stream: TcpStream, path: &str, headers: &[(String, String)], port: u16) -> Result<(), String> {
    let mut request = Request::get(path).header(HOST, format!("localhost:{port}"));
    for (name, value) in headers {
        request = request.header(name, value);
    }
    let request = request.body(Empty::<Bytes>::new()).map_err(|e| e.to_string())?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|e| e.to_string())?;
    let exchange = sender.send_request(request);
    let answer = tokio::select! {
        answer = exchange => answer.map_err(|e| e.to_string())?,
        _ = connection => return Err("the connection ended without an answer".into()),
    };
    match answer.status().as_u16() {
        200..=399 => Ok(()),
        status => Err(format!("answered {status}")),
    }
}
