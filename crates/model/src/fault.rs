//! The one error that crosses a door. Exact inside, rendered by each dialect in its own shape.

use serde::{Deserialize, Serialize};

/// Canonical codes (google.rpc.Code), as far as we answer with them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Code {
    InvalidArgument,
    FailedPrecondition,
    OutOfRange,
    Unauthenticated,
    PermissionDenied,
    NotFound,
    AlreadyExists,
    Aborted,
    /// A stale fingerprint; HTTP 412 in the Compute dialect.
    ConditionNotMet,
    ResourceExhausted,
    Unimplemented,
    Unavailable,
    Internal,
}

impl Code {
    pub fn http(self) -> u16 {
        match self {
            Code::InvalidArgument | Code::FailedPrecondition | Code::OutOfRange => 400,
            Code::Unauthenticated => 401,
            Code::PermissionDenied => 403,
            Code::NotFound => 404,
            Code::AlreadyExists | Code::Aborted => 409,
            Code::ConditionNotMet => 412,
            Code::ResourceExhausted => 429,
            Code::Unimplemented => 501,
            Code::Unavailable => 503,
            Code::Internal => 500,
        }
    }

    /// The word in `error.status`.
    pub fn canonical(self) -> &'static str {
        match self {
            Code::InvalidArgument => "INVALID_ARGUMENT",
            Code::FailedPrecondition | Code::ConditionNotMet => "FAILED_PRECONDITION",
            Code::OutOfRange => "OUT_OF_RANGE",
            Code::Unauthenticated => "UNAUTHENTICATED",
            Code::PermissionDenied => "PERMISSION_DENIED",
            Code::NotFound => "NOT_FOUND",
            Code::AlreadyExists => "ALREADY_EXISTS",
            Code::Aborted => "ABORTED",
            Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
            Code::Unimplemented => "UNIMPLEMENTED",
            Code::Unavailable => "UNAVAILABLE",
            Code::Internal => "INTERNAL",
        }
    }

    /// The number in a long-running operation's `error.code`.
    pub fn grpc(self) -> i32 {
        match self {
            Code::InvalidArgument => 3,
            Code::NotFound => 5,
            Code::AlreadyExists => 6,
            Code::PermissionDenied => 7,
            Code::ResourceExhausted => 8,
            Code::FailedPrecondition | Code::ConditionNotMet => 9,
            Code::Aborted => 10,
            Code::OutOfRange => 11,
            Code::Unimplemented => 12,
            Code::Internal => 13,
            Code::Unavailable => 14,
            Code::Unauthenticated => 16,
        }
    }
}

/// Why a request was refused: canonical code, the legacy one-word reason, and the public text.
///
/// `message` is what a user of the real cloud would read. Internal causes never go in here; they are logged where they
/// are handled and become [`Fault::internal`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Fault {
    pub code: Code,
    /// `errors[].reason` of the older APIs: `invalid`, `notFound`, `forbidden`, `resourceInUseByAnotherResource`, …
    pub reason: String,
    pub message: String,
    /// Further detail, as `google.rpc` JSON messages (each with its `@type`).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub details: Vec<serde_json::Value>,
}

impl Fault {
    pub fn new(code: Code, reason: &str, message: impl Into<String>) -> Fault {
        Fault { code, reason: reason.to_owned(), message: message.into(), details: Vec::new() }
    }

    pub fn with_detail(mut self, detail: serde_json::Value) -> Fault {
        self.details.push(detail);
        self
    }

    /// Compute's sentence about one bad field. `why` ends with a full stop, as Google's does.
    pub fn invalid_value(field: &str, value: &str, why: &str) -> Fault {
        Fault::new(
            Code::InvalidArgument,
            "invalid",
            format!("Invalid value for field 'resource.{field}': '{value}'. {why}"),
        )
    }

    pub fn required(field: &str) -> Fault {
        Fault::new(Code::InvalidArgument, "required", format!("Required field 'resource.{field}' not specified"))
    }

    pub fn invalid(message: impl Into<String>) -> Fault {
        Fault::new(Code::InvalidArgument, "invalid", message)
    }

    /// Compute's 404. `path` starts at `projects/`.
    pub fn not_found(path: impl std::fmt::Display) -> Fault {
        Fault::new(Code::NotFound, "notFound", format!("The resource '{path}' was not found"))
    }

    /// Something that is still being made cannot be used. Source: Compute.
    pub fn not_ready(path: impl std::fmt::Display) -> Fault {
        Fault::new(Code::InvalidArgument, "resourceNotReady", format!("The resource '{path}' is not ready"))
    }

    pub fn already_exists(path: impl std::fmt::Display) -> Fault {
        Fault::new(Code::AlreadyExists, "alreadyExists", format!("The resource '{path}' already exists"))
    }

    /// `kind` is the word of Compute's in-use messages: `subnetwork`, `url_map`, …
    pub fn in_use(kind: &str, path: impl std::fmt::Display, user: impl std::fmt::Display) -> Fault {
        Fault::new(
            Code::InvalidArgument,
            "resourceInUseByAnotherResource",
            format!("The {kind} resource '{path}' is already being used by '{user}'"),
        )
    }

    /// Something legal in the real cloud that would change packets, identities or logs and that we do not enforce.
    pub fn not_enforced(field: &str) -> Fault {
        Fault::new(
            Code::Unimplemented,
            "notImplemented",
            format!(
                "Field '{field}' is not supported by tombolo yet, and it would not be honest to accept it. See docs/compat.md."
            ),
        )
    }

    /// The 403 of IAM and most newer APIs: the same whether the permission or the resource is missing.
    pub fn permission_denied(permission: &str, resource: &str) -> Fault {
        Fault::new(
            Code::PermissionDenied,
            "forbidden",
            format!("Permission '{permission}' denied on resource (or it may not exist)."),
        )
        .with_detail(serde_json::json!({
            "@type": "type.googleapis.com/google.rpc.ErrorInfo",
            "reason": "IAM_PERMISSION_DENIED",
            "domain": "iam.googleapis.com",
            "metadata": {"permission": permission, "resource": resource},
        }))
    }

    pub fn internal(public: impl Into<String>) -> Fault {
        Fault::new(Code::Internal, "internalError", public)
    }

    pub fn unavailable(public: impl Into<String>) -> Fault {
        Fault::new(Code::Unavailable, "backendError", public)
    }
}
