//! The answers of the metadata server as bytes on the wire: headers, redirects and error pages.

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::Full;
use model::planned::guest::{Identity, Machine};

use crate::tree::Alt;

/// Which of Google's two metadata servers is speaking. They differ in a few headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flavor {
    Vm,
    Serverless,
}

impl Flavor {
    /// A stranger sees the server for VMs.
    pub fn of(identity: Option<&Identity>) -> Flavor {
        match identity.map(|identity| &identity.machine) {
            Some(Machine::Container { .. }) => Flavor::Serverless,
            Some(Machine::Vm { .. }) | None => Flavor::Vm,
        }
    }

    fn server(self) -> HeaderValue {
        HeaderValue::from_static(match self {
            Flavor::Vm => "Metadata Server for VM",
            Flavor::Serverless => "Metadata Server for Serverless",
        })
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub status: StatusCode,
    pub content_type: &'static str,
    pub etag: Option<String>,
    pub location: Option<HeaderValue>,
    pub body: String,
}

pub const TEXT: &str = "application/text";
pub const JSON: &str = "application/json";
pub const HTML: &str = "text/html";
const HTML_UTF8: &str = "text/html; charset=UTF-8";

impl Answer {
    pub fn ok(content_type: &'static str, body: String) -> Answer {
        Answer { status: StatusCode::OK, content_type, etag: None, location: None, body }
    }

    pub fn shown(shown: crate::tree::Shown, etag: String) -> Answer {
        let content_type = match shown.form {
            Alt::Text => TEXT,
            Alt::Json => JSON,
        };
        Answer { etag: Some(etag), ..Answer::ok(content_type, shown.body) }
    }

    /// A plain sentence instead of a page.
    pub fn refusal(status: StatusCode, content_type: &'static str, body: impl Into<String>) -> Answer {
        Answer { status, ..Answer::ok(content_type, body.into()) }
    }

    /// To the same place with a slash at its end. `path` and `query` are as the client wrote them.
    pub fn redirect(host: Option<&HeaderValue>, path: &str, query: Option<&str>) -> Answer {
        let host = host.and_then(|host| host.to_str().ok()).unwrap_or("metadata.google.internal");
        let query = query.map(|query| format!("?{query}")).unwrap_or_default();
        let location = HeaderValue::try_from(format!("http://{host}{path}/{query}")).ok();
        Answer { status: StatusCode::MOVED_PERMANENTLY, location, ..Answer::ok(HTML_UTF8, format!("{path}/\n")) }
    }

    /// Google's error page. `why` is HTML.
    fn page(status: StatusCode, why: &str) -> Answer {
        let (code, reason) = (status.as_u16(), status.canonical_reason().unwrap_or("Error"));
        let body = format!(
            "<!DOCTYPE html>\n<html lang=en>\n<meta charset=utf-8>\n<title>Error {code} ({reason})!!1</title>\n\
             <p><b>{code}.</b> <ins>That’s an error.</ins>\n<p>{why}  <ins>That’s all we know.</ins>\n"
        );
        Answer { status, ..Answer::ok(HTML_UTF8, body) }
    }

    pub fn forbidden(path: &str, hint: &str) -> Answer {
        let why = format!(
            "Your client does not have permission to get URL <code>{}</code> from this server. {hint}",
            escaped(path)
        );
        Answer::page(StatusCode::FORBIDDEN, &why)
    }

    pub fn not_found(path: &str) -> Answer {
        let why = format!("The requested URL <code>{}</code> was not found on this server.", escaped(path));
        Answer::page(StatusCode::NOT_FOUND, &why)
    }

    pub fn bad_request() -> Answer {
        Answer::page(StatusCode::BAD_REQUEST, "Your client has issued a malformed or illegal request.")
    }

    pub fn bad_method(path: &str) -> Answer {
        let why = format!("The request method is inappropriate for the URL <code>{}</code>.", escaped(path));
        Answer::page(StatusCode::METHOD_NOT_ALLOWED, &why)
    }

    /// Clients try again.
    pub fn unavailable() -> Answer {
        Answer::page(StatusCode::SERVICE_UNAVAILABLE, "The server is temporarily unable to answer. Please try again.")
    }

    pub fn into_response(self, flavor: Flavor) -> Response<Full<Bytes>> {
        let mut response = Response::new(Full::new(Bytes::from(self.body)));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert("metadata-flavor", HeaderValue::from_static("Google"));
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(self.content_type));
        headers.insert(header::SERVER, flavor.server());
        if flavor == Flavor::Vm {
            if let Some(etag) = self.etag.and_then(|etag| HeaderValue::try_from(etag).ok()) {
                headers.insert(header::ETAG, etag);
            }
            headers.insert(header::X_XSS_PROTECTION, HeaderValue::from_static("0"));
            headers.insert(header::X_FRAME_OPTIONS, HeaderValue::from_static("SAMEORIGIN"));
        }
        if let Some(location) = self.location {
            headers.insert(header::LOCATION, location);
        }
        response
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
