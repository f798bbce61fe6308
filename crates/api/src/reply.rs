//! What goes back: status, headers, and a JSON value (or bytes) with the system parameters applied.

use bytes::Bytes;
use http::{HeaderName, HeaderValue, StatusCode, header};
use serde_json::Value;

use model::fault::Fault;

use crate::{
    call::{Query, invalid_parameter},
    mask::Mask,
};

pub const JSON_TYPE: &str = "application/json; charset=UTF-8";

#[derive(Clone, Debug, PartialEq)]
pub struct Reply {
    pub status: StatusCode,
    pub headers: Vec<(HeaderName, HeaderValue)>,
    pub content: Content,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Content {
    Empty,
    Json(Value),
    Bytes { content_type: HeaderValue, bytes: Bytes },
}

impl Reply {
    pub fn json(value: Value) -> Reply {
        Reply::with_status(StatusCode::OK, value)
    }

    pub fn with_status(status: StatusCode, value: Value) -> Reply {
        Reply { status, headers: Vec::new(), content: Content::Json(value) }
    }

    /// 204 without a body: the answer to deleting an operation.
    pub fn no_content() -> Reply {
        Reply { status: StatusCode::NO_CONTENT, headers: Vec::new(), content: Content::Empty }
    }

    pub fn bytes(content_type: HeaderValue, bytes: impl Into<Bytes>) -> Reply {
        let content = Content::Bytes { content_type, bytes: bytes.into() };
        Reply { status: StatusCode::OK, headers: Vec::new(), content }
    }

    pub fn header(mut self, name: HeaderName, value: HeaderValue) -> Reply {
        self.headers.push((name, value));
        self
    }

    /// The bytes of the answer, with its headers.
    pub fn render(self, format: &Format) -> (StatusCode, Vec<(HeaderName, HeaderValue)>, Bytes) {
        let (content_type, bytes) = match self.content {
            Content::Empty => return (self.status, self.headers, Bytes::new()),
            Content::Json(value) => (HeaderValue::from_static(JSON_TYPE), format.bytes(value, self.status)),
            Content::Bytes { content_type, bytes } => (content_type, bytes),
        };
        let mut headers = self.headers;
        headers.push((header::CONTENT_TYPE, content_type));
        (self.status, headers, bytes)
    }
}

/// How the caller wants JSON: `alt`, `prettyPrint`, `fields`. Parsed before the call is served, so that a mistake in
/// them changes nothing.
#[derive(Clone, Debug, Default)]
pub struct Format {
    compact: bool,
    mask: Option<Mask>,
}

impl Format {
    /// # Errors
    /// 400 for a form we do not speak (`alt=proto`, `alt=media`) or a field selection that is none.
    pub fn parse(query: &Query) -> Result<Format, Fault> {
        // Enum values go out as names either way: every reader of `enum-encoding=int` takes names too.
        if let Some(alt) = query.get("alt").filter(|alt| alt.split(';').next() != Some("json")) {
            return Err(invalid_parameter(format!("Invalid value '{alt}' for alt: only json is supported.")));
        }
        let mask = query.get("fields").filter(|text| !text.is_empty()).map(Mask::parse).transpose()?;
        Ok(Format { compact: query.flag("prettyPrint")? == Some(false), mask })
    }

    fn bytes(&self, mut value: Value, status: StatusCode) -> Bytes {
        if let (Some(mask), true) = (&self.mask, status.is_success()) {
            mask.apply(&mut value);
        }
        let text = if self.compact { value.to_string() } else { format!("{value:#}\n") };
        text.into()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn body(query: &str, reply: Reply) -> String {
        let format = Format::parse(&Query::parse(query).unwrap()).unwrap();
        String::from_utf8(reply.render(&format).2.to_vec()).unwrap()
    }

    #[test]
    fn json_is_indented_by_two_unless_the_caller_says_no() {
        let reply = || Reply::json(json!({"b": 1, "a": [2]}));
        assert_eq!(body("", reply()), "{\n  \"b\": 1,\n  \"a\": [\n    2\n  ]\n}\n");
        assert_eq!(body("prettyPrint=false", reply()), r#"{"b":1,"a":[2]}"#);
        assert_eq!(body("prettyPrint=false&fields=a", reply()), r#"{"a":[2]}"#);
    }

    #[test]
    fn an_error_is_shown_whole_whatever_fields_were_asked_for() {
        let reply = Reply::with_status(StatusCode::NOT_FOUND, json!({"error": {"code": 404}}));
        assert_eq!(body("prettyPrint=false&fields=name", reply), r#"{"error":{"code":404}}"#);
    }

    #[test]
    fn a_form_we_do_not_speak_is_refused_before_anything_happens() {
        for query in ["alt=proto", "alt=media", "prettyPrint=maybe", "fields=a("] {
            assert!(Format::parse(&Query::parse(query).unwrap()).is_err(), "{query}");
        }
        assert!(Format::parse(&Query::parse("$alt=json;enum-encoding=int").unwrap()).is_ok());
    }
}
