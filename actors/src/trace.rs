//! W3C trace context: from the headers of a request into the span that serves it, and on to the guest.

use async_nats::HeaderMap;
use opentelemetry::Context;
use opentelemetry::propagation::{Extractor, Injector, TextMapPropagator};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

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

/// The current span as a `traceparent`, if there is a tracer.
#[must_use]
pub fn current() -> Option<String> {
    let mut parent = Parent::default();
    TraceContextPropagator::new().inject_context(&Span::current().context(), &mut parent);
    parent.0
}
