//! Names of NATS headers. Clients compare them case-sensitively.

/// ULID of the request; a retry carries the same.
pub const REQUEST_ID: &str = "Drover-Request-Id";
/// Milliseconds from arrival until the caller stops waiting.
pub const DEADLINE_MS: &str = "Drover-Deadline-Ms";
/// The media type of the body.
pub const CONTENT_TYPE: &str = "Content-Type";
/// The namespace of a request that a placer relays to a host.
pub const NAMESPACE: &str = "Drover-Namespace";
/// The epoch of the claim for which a placer relays a create: the host refuses it under any other.
pub const OWNER_EPOCH: &str = "Drover-Owner-Epoch";
/// W3C trace context.
pub const TRACEPARENT: &str = "traceparent";
/// W3C trace state.
pub const TRACESTATE: &str = "tracestate";
/// HTTP-like number of an error reply.
pub const ERROR_CODE: &str = "Nats-Service-Error-Code";
/// One line about an error reply.
pub const ERROR: &str = "Nats-Service-Error";
/// How far the log of a bus server was read for an event of its audit: a digest of the file's first line, a dot, and
/// bytes.
pub const LOG_POSITION: &str = "Drover-Log-Position";
/// How many denials up to there were neither told nor counted by an event yet.
pub const LOG_UNTOLD: &str = "Drover-Log-Untold";
/// The server's note of who asked, across accounts.
pub const REQUEST_INFO: &str = "Nats-Request-Info";

/// How long a request may take that states no deadline, in milliseconds.
pub const DEFAULT_DEADLINE_MS: u64 = 10_000;
/// The longest deadline; more is cut to it. A `wait` may last 90 s.
pub const MAX_DEADLINE_MS: u64 = 120_000;
