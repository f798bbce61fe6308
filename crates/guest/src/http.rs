//! One HTTP connection of one workload: takes requests, has them considered, does what the step says.

use std::{convert::Infallible, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Request, Response, StatusCode, request};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use model::{
    limits::{HEAD_READ_MAX, METADATA_HEAD_BYTES_MAX, METADATA_HEADERS_MAX, METADATA_TOKEN_LEFT_MIN},
    planned::guest::{MintRefusal, Seat, Want},
};
use tokio::{net::TcpStream, time::Instant};

use crate::{
    Guest,
    metadata::{self, Hang, Step},
    mint::NoToken,
    page::{Answer, Flavor, TEXT},
    world::Workload,
};

/// Serves one client until it leaves, is silent for too long, or breaks the protocol.
pub async fn connection(guest: Arc<Guest>, seat: Seat, stream: TcpStream) {
    let service = service_fn(move |request| {
        let guest = guest.clone();
        async move { Ok::<_, Infallible>(respond(&guest, seat, request).await) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_READ_MAX)
        .max_headers(METADATA_HEADERS_MAX)
        .max_buf_size(METADATA_HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), service);
    // A client that breaks off or talks nonsense is its own business.
    let _ = served.await;
}

async fn respond(guest: &Guest, seat: Seat, request: Request<Incoming>) -> Response<Full<Bytes>> {
    // The body, if any, is not read; no method takes one.
    let (head, _) = request.into_parts();
    // Looked up for every request: a connection may outlive the workload that opened it.
    let workload = guest.world.seated(seat).await;
    let identity = workload.as_ref().map(|workload| workload.identity());
    let flavor = Flavor::of(identity.as_deref());
    let answer = match (metadata::consider(&head, identity.as_deref()), workload) {
        (Step::Answer(answer), _) => answer,
        (Step::Hang(hang), Some(workload)) => wait(workload, hang).await,
        (Step::Login(question), Some(_)) => match guest.mints.login(seat, question).await {
            Some(answer) => metadata::logged_in(&answer, head.uri.path()),
            None => Answer::unavailable(),
        },
        (Step::Mint(want), Some(workload)) => token(guest, seat, &workload, want, &head).await,
        // Nobody sits there, so nothing was found to wait for.
        (Step::Hang(_) | Step::Mint(_) | Step::Login(_), None) => Answer::unavailable(),
    };
    answer.into_response(flavor)
}

/// Answers when the value changes, when its time is up, or when too many wait already.
async fn wait(workload: Arc<Workload>, hang: Hang) -> Answer {
    let Ok(_place) = workload.waiters.clone().try_acquire_owned() else { return Answer::unavailable() };
    let mut identities = workload.identity.subscribe();
    // Whoever holds on to the workload would never see it leave.
    drop(workload);
    let until = Instant::now() + hang.at_most;
    loop {
        let now = hang.look(&identities.borrow_and_update());
        let over = Instant::now() >= until;
        match now {
            // The value has gone; the client asks again and learns it from a 404.
            None => return Answer::unavailable(),
            Some((etag, answer)) if etag != hang.etag || over => return answer,
            Some(_) => {}
        }
        if let Ok(Err(_)) = tokio::time::timeout_at(until, identities.changed()).await {
            // The workload has left its seat.
            return Answer::unavailable();
        }
    }
}

async fn token(guest: &Guest, seat: Seat, workload: &Arc<Workload>, want: Want, head: &request::Parts) -> Answer {
    match obtain(guest, seat, workload, &want).await {
        Ok((token, left)) => metadata::minted(&want, &token, left.as_secs()),
        Err(NoToken::Unavailable) => Answer::unavailable(),
        Err(NoToken::Refused(MintRefusal::NoAccount)) => Answer::not_found(head.uri.path()),
        Err(NoToken::Refused(MintRefusal::Unusable)) => {
            let asked = head.uri.path_and_query().map_or("/", |asked| asked.as_str());
            let why = format!("Could not fetch URI {asked}\n");
            Answer::refusal(StatusCode::INTERNAL_SERVER_ERROR, TEXT, why)
        }
    }
}

/// A token that is good for five minutes at least: one that was minted before, or a new one.
async fn obtain(
    guest: &Guest,
    seat: Seat,
    workload: &Arc<Workload>,
    want: &Want,
) -> Result<(String, Duration), NoToken> {
    let now = Instant::now();
    if let Some((token, until)) = workload.kept(want, now + METADATA_TOKEN_LEFT_MIN) {
        return Ok((token, until - now));
    }
    let minted = guest.mints.mint(seat, want.clone()).await?;
    // Control minted for whoever sits there now. If that is somebody else by now, it is not for this client.
    if !guest.world.workload(seat).is_some_and(|now| Arc::ptr_eq(&now, workload)) {
        return Err(NoToken::Unavailable);
    }
    let left = Duration::from_secs(minted.expires_in_s);
    workload.keep(want.clone(), minted.token.clone(), now + left);
    Ok((minted.token, left))
}
