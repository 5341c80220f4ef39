//! W3C trace context: from the headers of a request into the span that serves it, to the tasks that it
//! starts, and on to the guest.
//!
//! | span | is |
//! |---|---|
//! | `request` | a request on the bus, until its reply |
//! | `task` | what an actor does for it: boot, stop, … |
//! | `vmm.call` | a call of the VMM's API |
//! | `guest.call` | a request or a stream over the guest link |
//!
//! An actor outlives its requests, so its own span is for the log only ([`LOG_ONLY`]), and what it starts
//! for a request has that request's context as its parent, not its span: a span ends when it is over.

use async_nats::HeaderMap;
use opentelemetry::Context;
use opentelemetry::propagation::{Extractor, Injector, TextMapPropagator};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

/// Target of spans that give context to log lines and are no part of a trace.
pub const LOG_ONLY: &str = "drover::log_only";

struct Source<'a>(&'a HeaderMap);

impl Extractor for Source<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(async_nats::HeaderValue::as_str)
    }

    fn keys(&self) -> Vec<&str> {
        self.0.iter().map(|(name, _)| name.as_ref()).collect()
    }
}

#[derive(Default)]
struct Parent(Option<String>);

impl Injector for Parent {
    fn set(&mut self, key: &str, value: String) {
        if key == drover_schemas::headers::TRACEPARENT {
            self.0 = Some(value);
        }
    }
}

/// Makes the caller's span the parent of `span`.
pub fn adopt(span: &Span, headers: &HeaderMap) {
    if headers.get(drover_schemas::headers::TRACEPARENT).is_some() {
        let context = TraceContextPropagator::new().extract_with_context(&Context::new(), &Source(headers));
        // Without a tracer the span has no parent to take.
        let _ = span.set_parent(context);
    }
}

/// Makes what [`current`] or [`of`] gave the parent of `span`.
pub fn follow(span: &Span, traceparent: Option<&str>) {
    if let Some(traceparent) = traceparent {
        let mut headers = HeaderMap::new();
        headers.insert(drover_schemas::headers::TRACEPARENT, traceparent);
        adopt(span, &headers);
    }
}

/// The current span as a `traceparent`, if there is a tracer.
#[must_use]
pub fn current() -> Option<String> {
    of(&Span::current())
}

/// A span as a `traceparent`, if there is a tracer.
#[must_use]
pub fn of(span: &Span) -> Option<String> {
    let mut parent = Parent::default();
    TraceContextPropagator::new().inject_context(&span.context(), &mut parent);
    parent.0
}
