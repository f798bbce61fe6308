//! Refusals: the sentences that every API says the same way, and the JSON each dialect puts them into.
//!
//! Refuses to decide anything: who may do what is decided elsewhere, and arrives here as a [`Fault`]. Start with
//! [`Dialect`] and [`render`].

use http::{HeaderValue, StatusCode, header};
use serde_json::{Map, Value, json};

use model::fault::{Code, Fault};

use crate::{
    host::{ApiHost, Service},
    reply::Reply,
};

/// The shapes of an error body. Source: recorded answers of each API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// `code`, `message`, `errors`; `status` and `details` only beside details. Compute v1.
    Compute,
    /// `code`, `message`, `errors`, `status`. IAM v1, Run v1, DNS v1.
    Legacy,
    /// `code`, `message`, `status`. Everything newer, and Resource Manager.
    Plain,
    /// `error`, `error_description` (RFC 6749, 5.2).
    OAuth,
}

impl Dialect {
    /// `version` is the first segment of the path: Run speaks two dialects on one host.
    pub fn of(host: &ApiHost, version: Option<&str>) -> Dialect {
        match host.service {
            Service::Compute => Dialect::Compute,
            Service::Iam | Service::Dns => Dialect::Legacy,
            Service::Run if version == Some("v2") => Dialect::Plain,
            Service::Run => Dialect::Legacy,
            Service::OAuth | Service::Accounts => Dialect::OAuth,
            Service::IamCredentials
            | Service::ResourceManager
            | Service::ServiceUsage
            | Service::OrgPolicy
            | Service::OsLogin
            | Service::ServiceDirectory
            | Service::Iap
            | Service::Logging => Dialect::Plain,
        }
    }

    /// The HTTP status and canonical word of a fault.
    fn status(self, fault: &Fault) -> (u16, &'static str) {
        match (self, fault.code) {
            // Compute's quotas are a 403, not a 429 that clients would retry.
            (Dialect::Compute, Code::ResourceExhausted) if fault.reason == "quotaExceeded" => {
                (403, "PERMISSION_DENIED")
            }
            // Only Compute has the 412.
            (Dialect::Legacy | Dialect::Plain | Dialect::OAuth, Code::ConditionNotMet) => (400, fault.code.canonical()),
            // gcloud repeats every 5xx of these APIs with a growing delay; "we do not have this" would take a minute.
            (Dialect::Legacy | Dialect::Plain | Dialect::OAuth, Code::Unimplemented) => {
                (400, Code::FailedPrecondition.canonical())
            }
            (Dialect::Compute | Dialect::Legacy | Dialect::Plain | Dialect::OAuth, code) => {
                (code.http(), code.canonical())
            }
        }
    }
}

/// A fault as an answer.
pub fn render(dialect: Dialect, fault: &Fault) -> Reply {
    let (http, status) = dialect.status(fault);
    let body = match dialect {
        Dialect::OAuth => json!({"error": fault.reason, "error_description": fault.message}),
        Dialect::Compute => envelope(http, fault, Errors::Shown, (!fault.details.is_empty()).then_some(status)),
        Dialect::Legacy => envelope(http, fault, Errors::Shown, Some(status)),
        Dialect::Plain => envelope(http, fault, Errors::Hidden, Some(status)),
    };
    let status = StatusCode::from_u16(http).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let reply = Reply::with_status(status, body);
    match challenge(dialect, fault) {
        Some(value) => reply.header(header::WWW_AUTHENTICATE, value),
        None => reply,
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Errors {
    Shown,
    Hidden,
}

fn envelope(http: u16, fault: &Fault, errors: Errors, status: Option<&str>) -> Value {
    let mut error = Map::new();
    error.insert("code".into(), http.into());
    error.insert("message".into(), fault.message.as_str().into());
    if errors == Errors::Shown {
        error.insert("errors".into(), json!([legacy_error(fault)]));
    }
    if let Some(status) = status {
        error.insert("status".into(), status.into());
    }
    if !fault.details.is_empty() {
        error.insert("details".into(), fault.details.clone().into());
    }
    json!({"error": error})
}

/// `errors[0]`. Missing and bad credentials have a short text of their own there, and a place.
fn legacy_error(fault: &Fault) -> Value {
    let message = match (fault.code, fault.reason.as_str()) {
        (Code::Unauthenticated, "required") => "Login Required.",
        (Code::Unauthenticated, _) => "Invalid Credentials",
        _ => &fault.message,
    };
    let mut error = json!({"message": message, "domain": "global", "reason": fault.reason});
    if fault.code == Code::Unauthenticated {
        error["location"] = "Authorization".into();
        error["locationType"] = "header".into();
    }
    error
}

/// The `WWW-Authenticate` of a refused credential.
fn challenge(dialect: Dialect, fault: &Fault) -> Option<HeaderValue> {
    const REALM: &str = "Bearer realm=\"https://accounts.google.com/\"";
    let error_info = fault.details.iter().find(|d| d["@type"] == ERROR_INFO);
    let text = match (dialect, fault.code) {
        (Dialect::OAuth, _) => return None,
        (_, Code::Unauthenticated) if fault.reason == "required" => REALM.to_owned(),
        (_, Code::Unauthenticated) => format!("{REALM}, error=\"invalid_token\""),
        (_, Code::PermissionDenied) => {
            let info = error_info.filter(|i| i["reason"] == "ACCESS_TOKEN_SCOPE_INSUFFICIENT")?;
            let scopes = info["metadata"]["scopes"].as_str().unwrap_or("");
            format!("{REALM}, error=\"insufficient_scope\", scope=\"{scopes}\"")
        }
        _ => return None,
    };
    HeaderValue::from_str(&text).ok()
}

// ---- google.rpc details ----

const ERROR_INFO: &str = "type.googleapis.com/google.rpc.ErrorInfo";

/// A `google.rpc.ErrorInfo`.
pub fn error_info(reason: &str, domain: &str, metadata: Value) -> Value {
    json!({"@type": ERROR_INFO, "reason": reason, "domain": domain, "metadata": metadata})
}

/// A `google.rpc.BadRequest` over (field, description) pairs.
pub fn bad_request(violations: &[(String, String)]) -> Value {
    let violations: Vec<Value> =
        violations.iter().map(|(field, why)| json!({"field": field, "description": why})).collect();
    json!({"@type": "type.googleapis.com/google.rpc.BadRequest", "fieldViolations": violations})
}

// ---- who is calling ----

/// Why a credential was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Credential {
    Missing,
    /// Not a token of ours, or revoked.
    Unknown,
    Expired,
    /// An ID token, or another thing that is no access token.
    WrongType,
    /// Its account is disabled or deleted.
    AccountState,
}

/// 401. `method` is the full gRPC name of the method, as Google reports it.
pub fn unauthenticated(why: Credential, service: Service, method: &str) -> Fault {
    const EXPECTED: &str = "Expected OAuth 2 access token, login cookie or other valid authentication credential. \
                            See https://developers.google.com/identity/sign-in/web/devconsole-project.";
    let (reason, lead, info) = match why {
        Credential::Missing => {
            ("required", "Request is missing required authentication credential.", "CREDENTIALS_MISSING")
        }
        Credential::Expired => ("authError", INVALID_CREDENTIAL, "ACCESS_TOKEN_EXPIRED"),
        Credential::Unknown | Credential::WrongType => {
            ("authError", INVALID_CREDENTIAL, "ACCESS_TOKEN_TYPE_UNSUPPORTED")
        }
        Credential::AccountState => ("authError", INVALID_CREDENTIAL, "ACCOUNT_STATE_INVALID"),
    };
    Fault::new(Code::Unauthenticated, reason, format!("{lead} {EXPECTED}")).with_detail(error_info(
        info,
        "googleapis.com",
        json!({"service": service.host(), "method": method}),
    ))
}

const INVALID_CREDENTIAL: &str = "Request had invalid authentication credentials.";

/// 403: the token is good, its scopes are not. `scopes` are those that would do.
pub fn insufficient_scopes(service: Service, method: &str, scopes: &[&str]) -> Fault {
    let metadata = json!({"service": service.host(), "method": method, "scopes": scopes.join(" ")});
    Fault::new(Code::PermissionDenied, "insufficientPermissions", "Request had insufficient authentication scopes.")
        .with_detail(error_info("ACCESS_TOKEN_SCOPE_INSUFFICIENT", "googleapis.com", metadata))
}

/// 403: the API is not enabled on the project. gcloud recognises the sentence and offers to enable it.
pub fn api_disabled(service: Service, project: impl std::fmt::Display) -> Fault {
    let (host, title) = (service.host(), service.title());
    let url = format!("https://console.developers.google.com/apis/api/{host}/overview?project={project}");
    let message = format!(
        "{title} has not been used in project {project} before or it is disabled. Enable it by visiting {url} then \
         retry. If you enabled this API recently, wait a few minutes for the action to propagate to our systems and \
         retry."
    );
    let metadata = json!({
        "service": host,
        "serviceTitle": title,
        "consumer": format!("projects/{project}"),
        "containerInfo": project.to_string(),
        "activationUrl": url,
    });
    let help = json!({
        "@type": "type.googleapis.com/google.rpc.Help",
        "links": [{"description": "Google developers console API activation", "url": url}],
    });
    Fault::new(Code::PermissionDenied, "accessNotConfigured", message)
        .with_detail(error_info("SERVICE_DISABLED", "googleapis.com", metadata))
        .with_detail(help)
}

/// Groups of APIs that word a missing permission alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    Compute,
    Run,
    /// IAM, IAM credentials, Service Usage and most newer APIs.
    Iam,
    ResourceManager,
    OrgPolicy,
    Logging,
    Dns,
}

/// A 403. `resource` is written as the family writes it, for instance `projects/p/global/networks/n` for Compute and
/// `namespaces/p/services/s` for Run v1.
///
/// A caller without the permission gets this whether or not the resource exists.
pub fn denied(family: Family, permission: &str, resource: &str) -> Fault {
    let refuse = |message: String| Fault::new(Code::PermissionDenied, "forbidden", message);
    let info = || {
        let metadata = json!({"permission": permission, "resource": resource});
        error_info("IAM_PERMISSION_DENIED", "iam.googleapis.com", metadata)
    };
    match family {
        Family::Compute => refuse(format!("Required '{permission}' permission for '{resource}'")),
        Family::Run => {
            refuse(format!("Permission '{permission}' denied on resource '{resource}' (or resource may not exist)."))
        }
        Family::Iam | Family::Logging => {
            refuse(format!("Permission '{permission}' denied on resource (or it may not exist).")).with_detail(info())
        }
        Family::OrgPolicy => {
            refuse(format!("Permission '{permission}' denied on resource '{resource}' (or it may not exist)."))
                .with_detail(info())
        }
        Family::ResourceManager => refuse("The caller does not have permission".into()),
        Family::Dns => refuse("Forbidden".into()),
    }
}

// ---- requests that are none ----

/// 404 for a path or method that no API has.
pub fn unknown_method() -> Fault {
    Fault::new(Code::NotFound, "notFound", "Method not found.")
}

/// 400 `parseError`.
pub fn malformed_json(why: &serde_json::Error) -> Fault {
    let what = match why.classify() {
        serde_json::error::Category::Eof => "Unexpected end of string.",
        serde_json::error::Category::Syntax | serde_json::error::Category::Data | serde_json::error::Category::Io => {
            "Unable to parse the text as JSON."
        }
    };
    let message = format!("Invalid JSON payload received. {what} Line {}, column {}.", why.line(), why.column());
    Fault::new(Code::InvalidArgument, "parseError", message)
}

/// RFC 6749, 5.2: `error` is a word such as `invalid_grant`; `invalid_client` is a 401, the others are 400.
pub fn oauth(error: &str, description: impl Into<String>) -> Fault {
    let code = if error == "invalid_client" { Code::Unauthenticated } else { Code::InvalidArgument };
    Fault::new(code, error, description)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reply::Content;

    fn shown(dialect: Dialect, fault: &Fault) -> (u16, Value, Option<String>) {
        let reply = render(dialect, fault);
        let Content::Json(body) = reply.content else { panic!("an error is JSON") };
        let challenge = reply.headers.first().map(|(_, v)| v.to_str().unwrap().to_owned());
        (reply.status.as_u16(), body, challenge)
    }

    #[test]
    fn each_dialect_puts_the_same_fault_into_its_own_shape() {
        let fault = Fault::not_found("projects/p/global/networks/n");
        let text = "The resource 'projects/p/global/networks/n' was not found";
        let errors = json!([{"message": text, "domain": "global", "reason": "notFound"}]);
        for (dialect, want) in [
            (Dialect::Compute, json!({"error": {"code": 404, "message": text, "errors": errors}})),
            (
                Dialect::Legacy,
                json!({"error": {"code": 404, "message": text, "errors": errors, "status": "NOT_FOUND"}}),
            ),
            (Dialect::Plain, json!({"error": {"code": 404, "message": text, "status": "NOT_FOUND"}})),
            (Dialect::OAuth, json!({"error": "notFound", "error_description": text})),
        ] {
            assert_eq!(shown(dialect, &fault), (404, want, None), "{dialect:?}");
        }
    }

    #[test]
    fn fields_stand_in_googles_order() {
        let (_, body, _) = shown(Dialect::Compute, &unauthenticated(Credential::Missing, Service::Compute, "m"));
        let keys: Vec<&String> = body["error"].as_object().unwrap().keys().collect();
        assert_eq!(keys, ["code", "message", "errors", "status", "details"]);
    }

    #[test]
    fn the_http_status_follows_code_and_dialect() {
        let fault = |code, reason| Fault::new(code, reason, "m");
        for (dialect, fault, http) in [
            (Dialect::Compute, fault(Code::ConditionNotMet, "conditionNotMet"), 412),
            (Dialect::Plain, fault(Code::ConditionNotMet, "conditionNotMet"), 400),
            (Dialect::Plain, fault(Code::Aborted, "aborted"), 409),
            (Dialect::Compute, fault(Code::ResourceExhausted, "quotaExceeded"), 403),
            (Dialect::Plain, fault(Code::ResourceExhausted, "rateLimitExceeded"), 429),
            (Dialect::Compute, Fault::not_enforced("x"), 501),
            (Dialect::Plain, Fault::not_enforced("x"), 400),
            (Dialect::OAuth, oauth("invalid_grant", "Bad Request"), 400),
            (Dialect::OAuth, oauth("invalid_client", "Unauthorized"), 401),
        ] {
            assert_eq!(shown(dialect, &fault).0, http, "{dialect:?} {fault:?}");
        }
    }

    #[test]
    fn a_refused_credential_says_what_was_wrong_with_it() {
        const REALM: &str = "Bearer realm=\"https://accounts.google.com/\"";
        for (why, header, reason, message) in [
            (Credential::Missing, REALM.to_owned(), "CREDENTIALS_MISSING", "Request is missing required"),
            (
                Credential::Expired,
                format!("{REALM}, error=\"invalid_token\""),
                "ACCESS_TOKEN_EXPIRED",
                "Request had invalid",
            ),
            (
                Credential::WrongType,
                format!("{REALM}, error=\"invalid_token\""),
                "ACCESS_TOKEN_TYPE_UNSUPPORTED",
                "Request had invalid",
            ),
            (
                Credential::AccountState,
                format!("{REALM}, error=\"invalid_token\""),
                "ACCOUNT_STATE_INVALID",
                "Request had invalid",
            ),
        ] {
            let (http, body, challenge) =
                shown(Dialect::Plain, &unauthenticated(why, Service::Logging, "google.logging.v2.X.Y"));
            assert_eq!((http, challenge), (401, Some(header)));
            assert_eq!(body["error"]["status"], "UNAUTHENTICATED");
            assert!(body["error"]["message"].as_str().unwrap().starts_with(message));
            assert_eq!(
                body["error"]["details"][0],
                json!({
                    "@type": "type.googleapis.com/google.rpc.ErrorInfo",
                    "reason": reason,
                    "domain": "googleapis.com",
                    "metadata": {"service": "logging.googleapis.com", "method": "google.logging.v2.X.Y"},
                })
            );
        }
        let (_, body, _) = shown(Dialect::Compute, &unauthenticated(Credential::Missing, Service::Compute, "m"));
        assert_eq!(
            body["error"]["errors"][0],
            json!({"message": "Login Required.", "domain": "global", "reason": "required",
                   "location": "Authorization", "locationType": "header"})
        );
        let narrow = insufficient_scopes(Service::Compute, "m", &["a", "b"]);
        let (http, _, challenge) = shown(Dialect::Compute, &narrow);
        assert_eq!(http, 403);
        assert_eq!(challenge.unwrap(), format!("{REALM}, error=\"insufficient_scope\", scope=\"a b\""));
    }

    #[test]
    fn a_disabled_api_is_told_in_the_sentence_gcloud_looks_for() {
        let (http, body, _) = shown(Dialect::Plain, &api_disabled(Service::Run, 123));
        assert_eq!(http, 403);
        assert_eq!(
            body["error"]["message"],
            "Cloud Run Admin API has not been used in project 123 before or it is disabled. Enable it by visiting \
             https://console.developers.google.com/apis/api/run.googleapis.com/overview?project=123 then retry. If you \
             enabled this API recently, wait a few minutes for the action to propagate to our systems and retry."
        );
        assert_eq!(body["error"]["details"][0]["reason"], "SERVICE_DISABLED");
        assert_eq!(body["error"]["details"][0]["metadata"]["consumer"], "projects/123");
        assert_eq!(body["error"]["details"][1]["@type"], "type.googleapis.com/google.rpc.Help");
    }

    #[test]
    fn every_family_words_a_missing_permission_in_its_own_way() {
        for (family, want) in [
            (Family::Compute, "Required 'a.b.get' permission for 'R'"),
            (Family::Run, "Permission 'a.b.get' denied on resource 'R' (or resource may not exist)."),
            (Family::Iam, "Permission 'a.b.get' denied on resource (or it may not exist)."),
            (Family::Logging, "Permission 'a.b.get' denied on resource (or it may not exist)."),
            (Family::OrgPolicy, "Permission 'a.b.get' denied on resource 'R' (or it may not exist)."),
            (Family::ResourceManager, "The caller does not have permission"),
            (Family::Dns, "Forbidden"),
        ] {
            let fault = denied(family, "a.b.get", "R");
            assert_eq!((fault.code, fault.reason.as_str()), (Code::PermissionDenied, "forbidden"));
            assert_eq!(fault.message, want);
        }
        assert_eq!(denied(Family::Iam, "p", "r").details[0]["metadata"]["permission"], "p");
    }

    #[test]
    fn run_speaks_two_dialects_on_one_host() {
        let host = ApiHost::of(Service::Run);
        assert_eq!(Dialect::of(&host, Some("v2")), Dialect::Plain);
        assert_eq!(Dialect::of(&host, Some("apis")), Dialect::Legacy);
        assert_eq!(Dialect::of(&host, Some("v1")), Dialect::Legacy);
    }
}
