//! A receiver of traces over OTLP, as an operator would have one, that remembers every span.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::routing::post;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span as Raw;
use prost::Message as _;
use tokio::net::TcpListener;

/// A span that was received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    /// Its name.
    pub name: String,
    /// The trace, in hexadecimal.
    pub trace_id: String,
    /// Its id.
    pub id: String,
    /// Id of its parent; empty for the first.
    pub parent: String,
    /// Attributes that are text.
    pub attributes: BTreeMap<String, String>,
    /// Nanoseconds from begin to end.
    pub nanoseconds: u64,
}

/// See the module.
#[derive(Debug, Clone, Default)]
pub struct Collector(Arc<Mutex<Vec<Span>>>);

impl Collector {
    /// Listens on `address` for as long as the runtime lives.
    ///
    /// # Panics
    /// The address is taken.
    pub async fn start(address: &str) -> Self {
        let collector = Self::default();
        let listener = TcpListener::bind(address).await.expect("listen");
        let router = Router::new().route("/v1/traces", post(receive)).with_state(collector.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        collector
    }

    /// What came so far.
    #[must_use]
    pub fn spans(&self) -> Vec<Span> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What came so far of one trace.
    #[must_use]
    pub fn trace(&self, trace_id: &str) -> Vec<Span> {
        self.spans().into_iter().filter(|span| span.trace_id == trace_id).collect()
    }
}

async fn receive(State(collector): State<Collector>, body: Bytes) {
    let request = ExportTraceServiceRequest::decode(body).expect("spans in protobuf");
    let scopes = request.resource_spans.into_iter().flat_map(|resource| resource.scope_spans);
    let spans = scopes.flat_map(|scope| scope.spans).map(read);
    collector.0.lock().unwrap_or_else(PoisonError::into_inner).extend(spans);
}

fn read(raw: Raw) -> Span {
    let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
    let attributes = raw.attributes.into_iter().filter_map(|pair| match pair.value?.value? {
        Value::StringValue(text) => Some((pair.key, text)),
        _ => None,
    });
    Span {
        name: raw.name,
        trace_id: hex(&raw.trace_id),
        id: hex(&raw.span_id),
        parent: hex(&raw.parent_span_id),
        attributes: attributes.collect(),
        nanoseconds: raw.end_time_unix_nano.saturating_sub(raw.start_time_unix_nano),
    }
}
