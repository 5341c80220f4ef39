//! Logs and traces: text or JSON, on stderr or in a rotated file, and OTLP where it is configured.
//!
//! The message of a log line is constant and lower case; what varies is in its fields. Spans follow
//! a request from the bus to its effect; with an OTLP endpoint they are exported in batches from a
//! thread of the SDK's, and the request of the export runs on our runtime.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use opentelemetry::trace::TracerProvider as _;
use opentelemetry_otlp::{WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};
use opentelemetry_sdk::trace::{SdkTracerProvider, SpanData, SpanExporter};
use serde::Deserialize;
use tokio::runtime::Handle;
use tracing_appender::non_blocking::WorkerGuard;
use tracing_appender::rolling::{InitError, RollingFileAppender, Rotation};
use tracing_subscriber::filter::ParseError;
use tracing_subscriber::fmt::writer::BoxMakeWriter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::{SubscriberInitExt as _, TryInitError};
use tracing_subscriber::{EnvFilter, Layer as _};

/// How long the last spans may take to leave when the program ends.
const FLUSH: Duration = Duration::from_secs(2);
/// Libraries below the exporter must not trace their own export.
const OTLP_FILTER: &str =
    "info,hyper=off,hyper_util=off,h2=off,opentelemetry=off,async_nats=warn,ractor=off,drover::log_only=off";

/// How a log line is written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// When a log file is closed and a new one begun.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogRotation {
    /// Every hour.
    Hourly,
    /// Every day, in UTC.
    #[default]
    Daily,
    /// Never.
    Never,
}

/// A rotated log file.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogFile {
    /// Directory of the files `drover.<time>.log`.
    pub dir: PathBuf,
    /// When a new file begins.
    #[serde(default)]
    pub rotation: LogRotation,
    /// How many files are kept.
    #[serde(default = "default_keep")]
    pub keep: usize,
}

const fn default_keep() -> usize {
    14
}

/// Logs and traces of a process.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogConfig {
    /// How a line is written.
    pub format: LogFormat,
    /// What is logged, as `info` or `info,drover_actors=debug`; `RUST_LOG` goes before it.
    pub filter: Option<String>,
    /// Where; stderr if left out.
    pub file: Option<LogFile>,
    /// Base URL of an OTLP receiver that speaks HTTP, as `http://127.0.0.1:4318`; spans go to its
    /// path `/v1/traces`.
    pub otlp_endpoint: Option<String>,
    /// Attributes of this process in every exported span, beside `service.name` and
    /// `service.version`: `host.name` …
    pub attributes: std::collections::BTreeMap<String, String>,
}

/// Why logs could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The filter is not one.
    #[error("read the log filter {filter:?}")]
    Filter {
        /// The text.
        filter: String,
        /// Why.
        #[source]
        source: ParseError,
    },
    /// The log file.
    #[error("open a log file in {}", dir.display())]
    File {
        /// The directory.
        dir: PathBuf,
        /// Why.
        #[source]
        source: InitError,
    },
    /// The OTLP exporter.
    #[error("set up the export of traces to {endpoint}")]
    Otlp {
        /// The endpoint.
        endpoint: String,
        /// Why.
        #[source]
        source: opentelemetry_otlp::ExporterBuildError,
    },
    /// Logs were set up before.
    #[error("install the log subscriber")]
    Install(#[source] TryInitError),
}

/// Keeps the writers alive; dropping it writes what is buffered.
#[derive(Debug, Default)]
#[must_use = "dropping the guard ends the log"]
pub struct TelemetryGuard {
    file: Option<WorkerGuard>,
    provider: Option<SdkTracerProvider>,
}

impl Drop for TelemetryGuard {
    fn drop(&mut self) {
        if let Some(provider) = self.provider.take()
            && let Err(error) = provider.shutdown_with_timeout(FLUSH)
        {
            tracing::warn!(%error, "the last spans were not exported");
        }
        drop(self.file.take());
    }
}

/// Installs logs and traces for the whole process. Must be called on the runtime that serves the
/// export.
///
/// # Errors
/// The first part that could not be set up; nothing is installed then.
pub fn init(config: &LogConfig) -> Result<TelemetryGuard, TelemetryError> {
    let filter = filter(config)?;
    let (writer, file): (BoxMakeWriter, _) = match &config.file {
        Some(file) => {
            let (writer, guard) = tracing_appender::non_blocking(open(file)?);
            (BoxMakeWriter::new(writer), Some(guard))
        }
        None => (BoxMakeWriter::new(std::io::stderr), None),
    };
    let colour = config.file.is_none() && std::io::IsTerminal::is_terminal(&std::io::stderr());
    let layer = tracing_subscriber::fmt::layer().with_writer(writer).with_ansi(colour);
    let lines = match config.format {
        LogFormat::Text => layer.boxed(),
        LogFormat::Json => layer.json().flatten_event(true).with_current_span(true).boxed(),
    };
    let provider = config.otlp_endpoint.as_deref().map(|endpoint| provider(endpoint, config)).transpose()?;
    let traces = provider.as_ref().map(|provider| {
        tracing_opentelemetry::layer()
            .with_tracer(provider.tracer("drover"))
            .with_filter(EnvFilter::new(OTLP_FILTER))
    });
    tracing_subscriber::registry()
        .with(lines.with_filter(filter))
        .with(traces)
        .try_init()
        .map_err(TelemetryError::Install)?;
    Ok(TelemetryGuard { file, provider })
}

fn filter(config: &LogConfig) -> Result<EnvFilter, TelemetryError> {
    let text = match std::env::var(EnvFilter::DEFAULT_ENV) {
        Ok(text) if !text.trim().is_empty() => text,
        _ => config.filter.clone().unwrap_or_else(|| "info".to_owned()),
    };
    EnvFilter::try_new(&text).map_err(|source| TelemetryError::Filter { filter: text, source })
}

fn open(file: &LogFile) -> Result<RollingFileAppender, TelemetryError> {
    let rotation = match file.rotation {
        LogRotation::Hourly => Rotation::HOURLY,
        LogRotation::Daily => Rotation::DAILY,
        LogRotation::Never => Rotation::NEVER,
    };
    RollingFileAppender::builder()
        .rotation(rotation)
        .filename_prefix("drover")
        .filename_suffix("log")
        .max_log_files(file.keep.max(1))
        .build(&file.dir)
        .map_err(|source| TelemetryError::File { dir: file.dir.clone(), source })
}

fn provider(endpoint: &str, config: &LogConfig) -> Result<SdkTracerProvider, TelemetryError> {
    let exporter = opentelemetry_otlp::SpanExporter::builder()
        .with_http()
        .with_endpoint(format!("{}/v1/traces", endpoint.trim_end_matches('/')))
        .with_headers(std::collections::HashMap::new())
        .build()
        .map_err(|source| TelemetryError::Otlp { endpoint: endpoint.to_owned(), source })?;
    let attributes = config
        .attributes
        .iter()
        .map(|(key, value)| opentelemetry::KeyValue::new(key.clone(), value.clone()))
        .chain([opentelemetry::KeyValue::new("service.version", env!("CARGO_PKG_VERSION"))]);
    Ok(SdkTracerProvider::builder()
        .with_batch_exporter(OnRuntime { inner: Arc::new(exporter), runtime: Handle::current() })
        .with_resource(Resource::builder().with_service_name("drover").with_attributes(attributes).build())
        .build())
}

/// The SDK exports from a plain thread, and the HTTP client needs tokio's reactor.
#[derive(Debug)]
struct OnRuntime {
    inner: Arc<opentelemetry_otlp::SpanExporter>,
    runtime: Handle,
}

impl SpanExporter for OnRuntime {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let inner = Arc::clone(&self.inner);
        let export = self.runtime.spawn(async move { inner.export(batch).await });
        export.await.unwrap_or_else(|error| Err(OTelSdkError::InternalFailure(error.to_string())))
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.inner.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        // The only other owner is an export, and none runs before the resource is set.
        if let Some(inner) = Arc::get_mut(&mut self.inner) {
            inner.set_resource(resource);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_filter_of_the_configuration_is_checked() {
        let config = LogConfig { filter: Some("info,=x=".to_owned()), ..LogConfig::default() };
        if std::env::var_os(EnvFilter::DEFAULT_ENV).is_none() {
            assert!(matches!(filter(&config), Err(TelemetryError::Filter { .. })));
        }
        assert!(filter(&LogConfig::default()).is_ok());
    }

    #[test]
    fn log_files_go_where_they_shall() {
        let dir = tempfile::tempdir().unwrap();
        let file = LogFile { dir: dir.path().join("logs"), rotation: LogRotation::Never, keep: 2 };
        drop(open(&file).unwrap());
        assert!(file.dir.join("drover.log").exists());
    }
}
