//! W3C trace context in NATS headers: pure functions, with no global propagator.
//!
//! Header names are lower case: clients compare them case-sensitively.

use async_nats::HeaderMap;
use opentelemetry::Context;
use opentelemetry::propagation::{Extractor, Injector, TextMapPropagator};
use opentelemetry::trace::{SpanContext, SpanId, TraceContextExt as _, TraceFlags, TraceId, TraceState};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

struct Headers<'a>(&'a mut HeaderMap);

impl Injector for Headers<'_> {
    fn set(&mut self, key: &str, value: String) {
        // An empty trace state says nothing and is not a valid header value everywhere.
        if !value.is_empty() {
            self.0.insert(key, value.as_str());
        }
    }
}

struct Source<'a>(&'a HeaderMap);

impl Extractor for Source<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(async_nats::HeaderValue::as_str)
    }

    fn keys(&self) -> Vec<&str> {
        self.0.iter().map(|(name, _)| name.as_ref()).collect()
    }
}

/// The caller's context, to be the parent of the span that serves the request.
pub fn extract_context(headers: &HeaderMap) -> Context {
    TraceContextPropagator::new().extract_with_context(&Context::new(), &Source(headers))
}

/// Writes `context` into headers.
pub fn inject_context(context: &Context, headers: &mut HeaderMap) {
    TraceContextPropagator::new().inject_context(context, &mut Headers(headers));
}

/// The context of the current span; without a tracer, that of `TRACEPARENT` or a new trace, so that
/// hosts can tie their spans together even where the client exports none.
pub fn current_context() -> Context {
    let context = tracing::Span::current().context();
    if context.span().span_context().is_valid() {
        return context;
    }
    let mut headers = HeaderMap::new();
    if let Ok(parent) = std::env::var("TRACEPARENT") {
        headers.insert(drover_schemas::headers::TRACEPARENT, parent.trim());
    }
    let inherited = extract_context(&headers);
    if inherited.span().span_context().is_valid() {
        return inherited;
    }
    let span = SpanContext::new(
        TraceId::from_bytes(rand::random()),
        SpanId::from_bytes(rand::random()),
        TraceFlags::SAMPLED,
        true,
        TraceState::default(),
    );
    Context::new().with_remote_span_context(span)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_context_survives_the_headers() {
        let mut headers = HeaderMap::new();
        let sent = current_context();
        inject_context(&sent, &mut headers);
        let text = headers.get(drover_schemas::headers::TRACEPARENT).unwrap().as_str().to_owned();
        assert!(text.starts_with("00-") && text.ends_with("-01"), "{text}");
        let read = extract_context(&headers);
        assert_eq!(read.span().span_context().trace_id(), sent.span().span_context().trace_id());
    }

    #[test]
    fn nonsense_is_no_context() {
        let mut headers = HeaderMap::new();
        headers.insert(drover_schemas::headers::TRACEPARENT, "not a trace");
        assert!(!extract_context(&headers).span().span_context().is_valid());
    }
}
