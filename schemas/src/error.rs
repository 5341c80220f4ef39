//! Coded errors: what every failed request is answered with.

use serde::{Deserialize, Serialize};

/// What kind of failure it was. Stable; clients match on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// The request itself is wrong; the same request will always fail.
    InvalidArgument,
    /// The thing does not exist.
    NotFound,
    /// A thing of this name exists.
    AlreadyExists,
    /// The request contradicts an earlier one, or was superseded by a later one.
    Conflict,
    /// The VM's state does not allow it; details name the state and the states that would do.
    InvalidState,
    /// Capacity or a quota does not suffice.
    ResourceExhausted,
    /// Another operation is in the way, or the host is at its limit of requests.
    Busy,
    /// Nobody can answer now.
    Unavailable,
    /// The deadline passed; the outcome may still come.
    DeadlineExceeded,
    /// The guest agent does not answer.
    GuestUnreachable,
    /// The guest agent answered with a failure.
    GuestError,
    /// The hypervisor refused or failed.
    VmmError,
    /// The caller may not do this, or the host lacks a right.
    PermissionDenied,
    /// Not offered here.
    Unsupported,
    /// A fault of drover.
    Internal,
    /// A code that this reader does not know.
    #[serde(other)]
    Unknown,
}

impl ErrorCode {
    /// Every code that is sent.
    pub const ALL: [Self; 15] = [
        Self::InvalidArgument,
        Self::NotFound,
        Self::AlreadyExists,
        Self::Conflict,
        Self::InvalidState,
        Self::ResourceExhausted,
        Self::Busy,
        Self::Unavailable,
        Self::DeadlineExceeded,
        Self::GuestUnreachable,
        Self::GuestError,
        Self::VmmError,
        Self::PermissionDenied,
        Self::Unsupported,
        Self::Internal,
    ];

    /// The value of the header `Nats-Service-Error-Code`, HTTP-like.
    #[must_use]
    pub const fn status(self) -> u16 {
        match self {
            Self::InvalidArgument => 400,
            Self::PermissionDenied => 403,
            Self::NotFound => 404,
            Self::AlreadyExists | Self::Conflict | Self::InvalidState => 409,
            Self::ResourceExhausted | Self::Busy => 429,
            Self::Unsupported => 501,
            Self::GuestError | Self::VmmError => 502,
            Self::Unavailable | Self::GuestUnreachable => 503,
            Self::DeadlineExceeded => 504,
            Self::Internal | Self::Unknown => 500,
        }
    }

    /// Whether the same request may succeed later without a change.
    #[must_use]
    pub const fn retryable(self) -> bool {
        matches!(
            self,
            Self::Busy
                | Self::Unavailable
                | Self::DeadlineExceeded
                | Self::GuestUnreachable
                | Self::ResourceExhausted
        )
    }

    /// The code as it stands on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::InvalidArgument => "invalid_argument",
            Self::NotFound => "not_found",
            Self::AlreadyExists => "already_exists",
            Self::Conflict => "conflict",
            Self::InvalidState => "invalid_state",
            Self::ResourceExhausted => "resource_exhausted",
            Self::Busy => "busy",
            Self::Unavailable => "unavailable",
            Self::DeadlineExceeded => "deadline_exceeded",
            Self::GuestUnreachable => "guest_unreachable",
            Self::GuestError => "guest_error",
            Self::VmmError => "vmm_error",
            Self::PermissionDenied => "permission_denied",
            Self::Unsupported => "unsupported",
            Self::Internal => "internal",
            Self::Unknown => "unknown",
        }
    }
}

impl std::fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Facts about an error, by name; values are text so that every reader can show them.
pub type Details = std::collections::BTreeMap<String, String>;

/// The body of every error reply.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema, thiserror::Error)]
#[error("{code}: {message}")]
pub struct ErrorBody {
    /// What kind of failure.
    pub code: ErrorCode,
    /// One or two sentences for a person: what is wrong and what to do.
    pub message: String,
    /// Whether the same request, with the same request id, may succeed later.
    pub retryable: bool,
    /// Names this error in the host's log; empty where it was made by a library.
    #[serde(default)]
    pub error_id: String,
    /// Facts by name (state, operation, cause, limit …).
    #[serde(default, skip_serializing_if = "Details::is_empty")]
    pub details: Details,
}

impl ErrorBody {
    /// An error of `code` with the code's own answer to whether it may be retried.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            retryable: code.retryable(),
            error_id: String::new(),
            details: Details::new(),
        }
    }

    /// Adds a fact.
    #[must_use]
    pub fn with(mut self, key: &str, value: impl std::fmt::Display) -> Self {
        self.details.insert(key.to_owned(), value.to_string());
        self
    }

    /// Sets whether a retry may help, where that differs from the code's usual answer.
    #[must_use]
    pub fn retryable(mut self, retryable: bool) -> Self {
        self.retryable = retryable;
        self
    }

    /// The first line of the message, for the header `Nats-Service-Error`; at most 200 bytes of
    /// printable text.
    #[must_use]
    pub fn header_line(&self) -> String {
        let line = self.message.lines().next().unwrap_or_default();
        line.chars().filter(|c| !c.is_control()).take(200).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_reads_back_from_its_text() {
        for code in ErrorCode::ALL {
            let json = serde_json::to_string(&code).unwrap();
            assert_eq!(json, format!("\"{code}\""));
            assert_eq!(serde_json::from_str::<ErrorCode>(&json).unwrap(), code);
        }
        assert_eq!(serde_json::from_str::<ErrorCode>("\"from_the_future\"").unwrap(), ErrorCode::Unknown);
    }

    #[test]
    fn the_header_line_is_one_printable_line() {
        let error = ErrorBody::new(ErrorCode::Internal, "first\tline\nsecond");
        assert_eq!(error.header_line(), "firstline");
    }
}
