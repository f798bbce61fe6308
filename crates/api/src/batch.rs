//! Many calls in one request: `multipart/mixed` in, `multipart/mixed` out.
//!
//! A part is a whole HTTP request as text. Parts run side by side and fail alone; the outer answer is 200 whatever
//! happens in them. Source: Google API batch requests; `POST /batch/compute/v1`.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};
use tokio::task::JoinSet;

use model::{
    fault::{Code, Fault},
    limits::BATCH_PARTS_MAX,
};

use crate::{
    call::{Answer, Call, CallHeaders, Parts, Router},
    error::{self, Dialect},
    host::{ApiHost, by_path},
    reply::{Format, Reply},
};

/// Serves a batch. Calls inherit the credentials of the batch unless they bring their own.
///
/// # Errors
/// 400 when the body is no batch, or has more than [`BATCH_PARTS_MAX`] parts; a part that is no request fails alone.
pub async fn serve(router: &Arc<Router>, outer: &Call) -> Answer {
    let boundary = outer.headers.content_type.as_deref().and_then(boundary).ok_or_else(not_a_batch)?;
    let parts = split(&outer.body, &boundary).ok_or_else(not_a_batch)?;
    if parts.len() > BATCH_PARTS_MAX {
        let message =
            format!("The batch request contains {} parts; at most {BATCH_PARTS_MAX} are allowed.", parts.len());
        return Err(Fault::new(Code::InvalidArgument, "badRequest", message));
    }
    let mut running = JoinSet::new();
    for (place, part) in parts.into_iter().enumerate() {
        let (id, call) = request(part, outer);
        let router = router.clone();
        running.spawn(async move { (place, part_of_answer(id.as_deref(), answer(&router, call).await)) });
    }
    let mut answers = Vec::with_capacity(running.len());
    while let Some(done) = running.join_next().await {
        answers.push(done.map_err(|_| Fault::internal("Internal error encountered."))?);
    }
    answers.sort_unstable_by_key(|(place, _)| *place);
    Ok(join(answers.into_iter().map(|(_, bytes)| bytes).collect()))
}

fn not_a_batch() -> Fault {
    Fault::new(
        Code::InvalidArgument,
        "badRequest",
        "Failed to parse batch request, error: missing or invalid boundary.",
    )
}

/// The `boundary` of a `multipart/mixed` content type, quoted or not (RFC 2046, 5.1.1).
fn boundary(content_type: &str) -> Option<String> {
    let (kind, parameters) = content_type.split_once(';')?;
    if !kind.trim().eq_ignore_ascii_case("multipart/mixed") {
        return None;
    }
    let at = parameters.to_ascii_lowercase().find("boundary=")? + "boundary=".len();
    let rest = &parameters[at..];
    let text = match rest.strip_prefix('"') {
        Some(quoted) => quoted.split('"').next()?,
        None => rest.split(';').next()?.trim(),
    };
    (1..=70).contains(&text.len()).then(|| text.to_owned())
}

/// The parts between the delimiters. Lines end with CRLF or a bare LF, which is what gcloud writes.
fn split<'a>(body: &'a [u8], boundary: &str) -> Option<Vec<&'a [u8]>> {
    let delimiter = format!("--{boundary}").into_bytes();
    let mut parts = Vec::new();
    let mut start: Option<usize> = None;
    let mut at = 0;
    while at < body.len() {
        let end = body[at..].iter().position(|c| *c == b'\n').map_or(body.len(), |n| at + n + 1);
        let line = body[at..end].trim_ascii_end();
        let tail = line.strip_prefix(delimiter.as_slice());
        if let Some(tail @ (b"" | b"--")) = tail {
            if let Some(start) = start {
                // The line break before a delimiter belongs to the delimiter; a part without lines is empty.
                let part = &body[start.min(at)..at];
                let part = part.strip_suffix(b"\n").unwrap_or(part);
                parts.push(part.strip_suffix(b"\r").unwrap_or(part));
            }
            if tail == b"--" {
                return Some(parts);
            }
            start = Some(end);
        }
        at = end;
    }
    None
}

/// Splits headers from what follows the blank line; without one, nothing follows.
fn headers(text: &[u8]) -> Option<(HeaderMap, &[u8])> {
    let mut map = HeaderMap::new();
    let mut at = 0;
    loop {
        let end = text.get(at..)?.iter().position(|c| *c == b'\n').map_or(text.len(), |n| at + n + 1);
        let line = text[at..end].trim_ascii_end();
        if line.is_empty() {
            return Some((map, &text[end..]));
        }
        let colon = line.iter().position(|c| *c == b':')?;
        let name = HeaderName::from_bytes(&line[..colon]).ok()?;
        map.append(name, HeaderValue::from_bytes(line[colon + 1..].trim_ascii()).ok()?);
        at = end;
    }
}

/// A part's `Content-ID`, and the call in it.
fn request(part: &[u8], outer: &Call) -> (Option<String>, Result<Call, Fault>) {
    let bad = || Fault::new(Code::InvalidArgument, "badRequest", "Failed to parse a part of the batch request.");
    let Some((outside, inner)) = headers(part) else { return (None, Err(bad())) };
    let id = outside.get("content-id").and_then(|v| v.to_str().ok()).map(str::to_owned);
    (id, inner_call(inner, outer).unwrap_or_else(|| Err(bad())))
}

fn inner_call(inner: &[u8], outer: &Call) -> Option<Result<Call, Fault>> {
    let inner = inner.trim_ascii_start();
    let end = inner.iter().position(|c| *c == b'\n').unwrap_or(inner.len());
    let mut words = std::str::from_utf8(&inner[..end]).ok()?.split_whitespace();
    let method = Method::from_bytes(words.next()?.as_bytes()).ok()?;
    let uri: Uri = words.next()?.parse().ok()?;
    let (map, body) = headers(inner.get(end + 1..).unwrap_or_default())?;
    if by_path(uri.path()) != Some(outer.host.service) {
        return Some(Err(error::unknown_method()));
    }
    let parts = Parts {
        host: ApiHost { service: outer.host.service, region: outer.host.region.clone() },
        method,
        headers: CallHeaders::read(&map).or(&outer.headers),
        body: Bytes::copy_from_slice(body.trim_ascii()),
        peer: outer.peer,
        now: outer.now,
    };
    Some(Call::new(parts, &uri))
}

async fn answer(router: &Router, call: Result<Call, Fault>) -> (Reply, Format) {
    let served = async {
        let call = call?;
        let format = Format::parse(&call.query)?;
        Ok::<_, Fault>((router.serve(call).await?, format))
    };
    served.await.unwrap_or_else(|fault| (error::render(Dialect::Compute, &fault), Format::default()))
}

fn part_of_answer(id: Option<&str>, (reply, format): (Reply, Format)) -> Vec<u8> {
    let (status, headers, body) = reply.render(&format);
    let mut out = b"Content-Type: application/http\r\n".to_vec();
    if let Some(id) = id {
        let inner = id.strip_prefix('<').and_then(|id| id.strip_suffix('>')).unwrap_or(id);
        out.extend_from_slice(format!("Content-ID: <response-{inner}>\r\n").as_bytes());
    }
    // gcloud splits the status line into three words and needs all of them.
    let reason = status.canonical_reason().unwrap_or("Unknown");
    out.extend_from_slice(format!("\r\nHTTP/1.1 {} {reason}\r\n", status.as_u16()).as_bytes());
    for (name, value) in &headers {
        out.extend_from_slice(name.as_str().as_bytes());
        out.extend_from_slice(b": ");
        out.extend_from_slice(value.as_bytes());
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(format!("content-length: {}\r\n\r\n", body.len()).as_bytes());
    out.extend_from_slice(&body);
    out
}

fn join(parts: Vec<Vec<u8>>) -> Reply {
    let occurs = |boundary: &str| parts.iter().any(|p| p.windows(boundary.len()).any(|w| w == boundary.as_bytes()));
    let mut boundary = "batch_tombolo".to_owned();
    while occurs(&boundary) {
        boundary.push('_');
    }
    let mut out = Vec::new();
    for part in &parts {
        out.extend_from_slice(format!("--{boundary}\r\n").as_bytes());
        out.extend_from_slice(part);
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(format!("--{boundary}--\r\n").as_bytes());
    let content_type = HeaderValue::from_str(&format!("multipart/mixed; boundary={boundary}"))
        .expect("a boundary is made of letters and underscores");
    Reply::bytes(content_type, out)
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use model::time::Timestamp;

    use super::*;
    use crate::{host::Service, reply::Content, testing::Echo};

    fn batch(content_type: &str, body: &str) -> (Arc<Router>, Call) {
        let parts = Parts {
            host: ApiHost::of(Service::Compute),
            method: Method::POST,
            headers: CallHeaders {
                authorization: Some("Bearer outer".into()),
                content_type: Some(content_type.into()),
                ..CallHeaders::default()
            },
            body: Bytes::copy_from_slice(body.as_bytes()),
            peer: IpAddr::from([127, 0, 0, 1]),
            now: Timestamp(0),
        };
        let call = Call::new(parts, &Uri::from_static("/batch/compute/v1")).unwrap();
        (Arc::new(Router::new().with(Service::Compute, Arc::new(Echo))), call)
    }

    fn run(content_type: &str, body: &str) -> Result<String, Fault> {
        let (router, call) = batch(content_type, body);
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let reply = runtime.block_on(serve(&router, &call))?;
        let Content::Bytes { content_type, bytes } = reply.content else { panic!("a batch answers bytes") };
        assert_eq!(content_type, "multipart/mixed; boundary=batch_tombolo");
        Ok(String::from_utf8(bytes.to_vec()).unwrap())
    }

    /// As gcloud writes it: a quoted boundary with `=` in it, and bare line feeds.
    const TYPE: &str = "multipart/mixed; boundary=\"===============3604==\"";

    fn part(id: &str, request: &str) -> String {
        format!(
            "--===============3604==\nContent-Type: application/http\nMIME-Version: 1.0\n\
             Content-Transfer-Encoding: binary\nContent-ID: <{id}>\n\n{request}\n"
        )
    }

    const END: &str = "--===============3604==--\n";

    #[test]
    fn each_part_is_answered_under_its_own_id_and_fails_alone() {
        let get = "GET /compute/v1/projects/p/global/networks/a?alt=json&prettyPrint=false HTTP/1.1\naccept: json\nHost: compute.googleapis.com\n";
        let missing = "GET /compute/v1/missing HTTP/1.1\nHost: x\n\n";
        let post = "POST /compute/v1/x?prettyPrint=false HTTP/1.1\ncontent-length: 7\nauthorization: Bearer inner\n\n{\"a\":1}\n";
        let foreign = "GET /v1/projects/p HTTP/1.1\n\n";
        let body =
            [part("u+1", get), part("u+2", missing), part("u+3", post), part("u+4", foreign), part("u+5", "junk")]
                .concat()
                + END;
        let answer = run(TYPE, &body).unwrap();
        let parts: Vec<&str> = answer.split("--batch_tombolo").collect();
        assert_eq!((parts.len(), parts[6]), (7, "--\r\n"));
        for (part, id, status, has) in [
            (parts[1], "u+1", "HTTP/1.1 200 OK\r\n", "\"bearer\":\"outer\""),
            (parts[2], "u+2", "HTTP/1.1 404 Not Found\r\n", "\"reason\": \"notFound\""),
            (parts[3], "u+3", "HTTP/1.1 200 OK\r\n", "\"bearer\":\"inner\",\"body\":\"{\\\"a\\\":1}\""),
            (parts[4], "u+4", "HTTP/1.1 404 Not Found\r\n", "Method not found."),
            (parts[5], "u+5", "HTTP/1.1 400 Bad Request\r\n", "Failed to parse a part"),
        ] {
            assert!(part.starts_with("\r\nContent-Type: application/http\r\n"), "{part}");
            assert!(part.contains(&format!("Content-ID: <response-{id}>\r\n\r\n{status}")), "{part}");
            assert!(part.contains(has), "{part}");
        }
    }

    #[test]
    fn line_ends_may_be_crlf_and_a_boundary_need_not_be_quoted() {
        let body = "preamble\r\n--b\r\nContent-ID: <1>\r\n\r\nGET /compute/v1/x HTTP/1.1\r\nHost: x\r\n\r\n\r\n--b--\r\nepilogue";
        assert!(run("Multipart/Mixed; boundary=b", body).unwrap().contains("HTTP/1.1 200 OK"));
    }

    #[test]
    fn what_is_no_batch_is_refused_as_a_whole() {
        let one = part("1", "GET /compute/v1/x HTTP/1.1\n\n");
        let many = one.repeat(BATCH_PARTS_MAX + 1) + END;
        for (content_type, body) in [
            ("application/json", "{}"),
            ("multipart/mixed", "--b--"),
            ("multipart/mixed; boundary=\"\"", "----"),
            (TYPE, ""),
            (TYPE, one.as_str()),
            (TYPE, many.as_str()),
        ] {
            assert_eq!(run(content_type, body).unwrap_err().code, Code::InvalidArgument, "{content_type}");
        }
        assert_eq!(run(TYPE, END).unwrap(), "--batch_tombolo--\r\n");
    }
}
