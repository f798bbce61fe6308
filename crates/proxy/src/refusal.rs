//! Answers that the platform gives in place of a container, with the words of the real front end.
//!
//! A [`Refusal`] knows its status, its page and the sentence for the request log; it does not decide when to refuse.

use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue, StatusCode,
    header::{ALLOW, CONTENT_TYPE, WWW_AUTHENTICATE},
};

/// Why the platform answers instead of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Not a request that may be passed on: no Host, two Hosts.
    BadRequest,
    /// TRACE and CONNECT.
    Method,
    /// The listener has no configuration yet, or its backend service has no backends.
    NoBackend,
    /// No such host, service or tag, or the ingress setting forbids the source.
    NotFound,
    Unauthenticated,
    InvalidToken,
    Forbidden,
    BodyTooLarge,
    UpgradeUnsupported,
    NoInstance,
    /// The revision cannot start any instance.
    RevisionFailed,
    /// The container closed the connection or answered garbage.
    Malformed,
    ResponseTooLarge,
    Timeout,
    /// A backend of the balancer gave no answer.
    Reset(Reset),
    /// The client went away before there was an answer: nobody reads this one but the log.
    ClientGone,
}

/// What became of a request to a backend, as Envoy words it. Source: Envoy, `StreamResetReason`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reset {
    /// Nobody makes a connection for us.
    NoSocket,
    ConnectionFailure,
    ConnectionTimeout,
    ConnectionTermination,
    /// More requests than one backend may have.
    Overflow,
    /// What came is no answer.
    ProtocolError,
}

impl Reset {
    fn text(self) -> &'static str {
        match self {
            Reset::NoSocket => "local connection failure",
            Reset::ConnectionFailure => "connection failure",
            Reset::ConnectionTimeout => "connection timeout",
            Reset::ConnectionTermination => "connection termination",
            Reset::Overflow => "overflow",
            Reset::ProtocolError => "protocol error",
        }
    }
}

const DOCS: &str = "https://cloud.google.com/run/docs";

impl Refusal {
    pub fn status(self) -> StatusCode {
        match self {
            Refusal::BadRequest => StatusCode::BAD_REQUEST,
            Refusal::Method => StatusCode::METHOD_NOT_ALLOWED,
            Refusal::NoBackend | Refusal::NotFound => StatusCode::NOT_FOUND,
            Refusal::Unauthenticated | Refusal::Forbidden => StatusCode::FORBIDDEN,
            Refusal::InvalidToken => StatusCode::UNAUTHORIZED,
            Refusal::BodyTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Refusal::UpgradeUnsupported => StatusCode::NOT_IMPLEMENTED,
            Refusal::NoInstance => StatusCode::TOO_MANY_REQUESTS,
            Refusal::RevisionFailed | Refusal::Malformed => StatusCode::SERVICE_UNAVAILABLE,
            Refusal::ResponseTooLarge => StatusCode::INTERNAL_SERVER_ERROR,
            Refusal::Timeout => StatusCode::GATEWAY_TIMEOUT,
            Refusal::Reset(Reset::ProtocolError) => StatusCode::BAD_GATEWAY,
            Refusal::Reset(_) => StatusCode::SERVICE_UNAVAILABLE,
            Refusal::ClientGone => StatusCode::from_u16(499).expect("499 has three digits"),
        }
    }

    /// The sentence in the request log.
    pub fn log_text(self) -> String {
        let see = "Additional troubleshooting documentation can be found at:";
        match self {
            Refusal::BadRequest => "The request was malformed.".into(),
            Refusal::Method => "The request method is not supported.".into(),
            Refusal::NoBackend | Refusal::NotFound => "The requested URL was not found.".into(),
            Refusal::Unauthenticated => format!(
                "The request was not authenticated. Either allow unauthenticated invocations or set the proper \
                 Authorization header. Read more at {DOCS}/securing/authenticating {see} \
                 {DOCS}/troubleshooting#unauthorized-client"
            ),
            Refusal::InvalidToken => format!(
                "The request was not authorized to invoke this service. The access token could not be verified. Read \
                 more at {DOCS}/securing/authenticating {see} {DOCS}/troubleshooting#401"
            ),
            Refusal::Forbidden => format!(
                "The request was not authorized to invoke this service. Read more at {DOCS}/securing/authenticating \
                 {see} {DOCS}/troubleshooting#403"
            ),
            Refusal::BodyTooLarge => "The request body is larger than 32 MiB.".into(),
            Refusal::UpgradeUnsupported => "The request asked for an upgrade that is not supported.".into(),
            Refusal::NoInstance => format!(
                "The request was aborted because there was no available instance. {see} \
                 {DOCS}/troubleshooting#abort-request"
            ),
            Refusal::RevisionFailed => "The request failed because the instance could not start successfully.".into(),
            Refusal::Malformed => format!(
                "The request failed because either the HTTP response was malformed or connection to the instance had \
                 an error. {see} {DOCS}/troubleshooting#malformed-response-or-connection-error"
            ),
            Refusal::ResponseTooLarge => "Response size was too large. Please consider reducing response size.".into(),
            Refusal::Timeout => format!(
                "The request has been terminated because it has reached the maximum request timeout. To change this \
                 limit, see {DOCS}/configuring/request-timeout"
            ),
            Refusal::Reset(reset) => format!("The backend did not answer: {}.", reset.text()),
            Refusal::ClientGone => "The client disconnected before the response was sent.".into(),
        }
    }

    /// The body. `path` is quoted in some pages, escaped and without its query.
    pub fn body(self, path: &str) -> Bytes {
        match self {
            Refusal::BadRequest => "Bad Request".into(),
            Refusal::Method => "Method Not Allowed".into(),
            Refusal::NoBackend => "fault filter abort".into(),
            Refusal::NotFound => {
                page("404 Page not found", "Error: Page not found", "The requested URL was not found on this server.")
            }
            Refusal::Unauthenticated | Refusal::Forbidden => page(
                "403 Forbidden",
                "Error: Forbidden",
                &format!(
                    "Your client does not have permission to get URL <code>{}</code> from this server.",
                    escape(path)
                ),
            ),
            Refusal::InvalidToken => page(
                "401 Unauthorized",
                "Error: Unauthorized",
                &format!("Your client does not have permission to the requested URL <code>{}</code>.", escape(path)),
            ),
            Refusal::BodyTooLarge => page(
                "413 Request Entity Too Large",
                "Error: Request Entity Too Large",
                "Your client issued a request that was too large.",
            ),
            Refusal::UpgradeUnsupported => "WebSocket upgrades are not supported".into(),
            Refusal::NoInstance => "Rate exceeded.".into(),
            Refusal::RevisionFailed | Refusal::Malformed => "Service Unavailable".into(),
            Refusal::ResponseTooLarge => page(
                "500 Server Error",
                "Error: Server Error",
                "The server encountered an error and could not complete your request.<p>Please try again in 30 \
                 seconds.",
            ),
            Refusal::Timeout => "upstream request timeout".into(),
            Refusal::Reset(reset) => {
                let text = "upstream connect error or disconnect/reset before headers. reset reason: ";
                format!("{text}{}", reset.text()).into()
            }
            Refusal::ClientGone => Bytes::new(),
        }
    }

    /// Headers of the answer, but for those that every answer has.
    pub fn headers(self, headers: &mut HeaderMap) {
        let html = match self {
            Refusal::NotFound
            | Refusal::Unauthenticated
            | Refusal::Forbidden
            | Refusal::InvalidToken
            | Refusal::BodyTooLarge
            | Refusal::ResponseTooLarge => true,
            Refusal::BadRequest
            | Refusal::Method
            | Refusal::NoBackend
            | Refusal::UpgradeUnsupported
            | Refusal::NoInstance
            | Refusal::RevisionFailed
            | Refusal::Malformed
            | Refusal::Timeout
            | Refusal::Reset(_)
            | Refusal::ClientGone => false,
        };
        let kind = if html { "text/html; charset=UTF-8" } else { "text/plain" };
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
        if self == Refusal::InvalidToken {
            let challenge = "Bearer error=\"invalid_token\" \
                             error_description=\"The access token could not be verified\"";
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
        }
        if self == Refusal::Method {
            let methods = "GET, HEAD, POST, PUT, DELETE, OPTIONS, PATCH";
            headers.insert(ALLOW, HeaderValue::from_static(methods));
        }
    }
}

fn page(title: &str, heading: &str, text: &str) -> Bytes {
    format!(
        "\n<html><head>\n<meta http-equiv=\"content-type\" content=\"text/html;charset=utf-8\">\n\
         <title>{title}</title>\n</head>\n<body text=#000000 bgcolor=#ffffff>\n<h1>{heading}</h1>\n<h2>{text}</h2>\n\
         <h2></h2>\n</body></html>\n"
    )
    .into()
}

fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_answers_have_the_length_that_clients_know() {
        for (refusal, bytes) in
            [(Refusal::NoBackend, 18), (Refusal::NoInstance, 14), (Refusal::Malformed, 19), (Refusal::Timeout, 24)]
        {
            assert_eq!(refusal.body("/").len(), bytes, "{refusal:?}");
        }
    }

    #[test]
    fn a_path_cannot_put_markup_into_a_page() {
        let body = Refusal::Unauthenticated.body("/<script>\"'&");
        let text = std::str::from_utf8(&body).unwrap();
        assert!(text.contains("<code>/&lt;script&gt;&quot;&#39;&amp;</code>"), "{text}");
    }
}
