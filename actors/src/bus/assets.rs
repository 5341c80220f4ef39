//! The stream of events and the buckets. A host makes them if they are absent and never changes
//! them: two hosts of different versions would change them back and forth. What differs from what
//! this drover would make is reported; `drover bus upgrade` mends it.

use std::fmt;
use std::time::Duration;

use async_nats::jetstream::context::{Context, GetStreamErrorKind};
use async_nats::jetstream::stream::{self, Compression, DiscardPolicy, RetentionPolicy, StorageType};
use drover_schemas::Token;

use crate::chain;

/// Names and limits of the assets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AssetsConfig {
    /// The first token of every subject; `drover` gives `DROVER_EVENTS`, `DROVER_VMS` and so on.
    pub root: Token,
    /// How long events are kept; zero for ever.
    pub events_max_age: Duration,
    /// How much of them is kept; negative for all.
    pub events_max_bytes: i64,
    /// Copies of each asset in a cluster.
    pub replicas: usize,
    /// The server's default if left out. Exactly-once does not depend on it.
    pub duplicate_window: Option<Duration>,
}

impl AssetsConfig {
    /// Seven days of events, up to 1 GiB, one copy. The server sets `max_bytes` aside, and refuses a
    /// stream that is larger than what it may use.
    #[must_use]
    pub fn new(root: Token) -> Self {
        Self {
            root,
            events_max_age: Duration::from_secs(7 * 24 * 3600),
            events_max_bytes: 1 << 30,
            replicas: 1,
            duplicate_window: None,
        }
    }

    fn name(&self, suffix: &str) -> String {
        format!("{}_{suffix}", self.root.as_str().to_ascii_uppercase().replace('-', "_"))
    }

    /// The stream of events.
    #[must_use]
    pub fn events_stream(&self) -> String {
        self.name("EVENTS")
    }

    /// The bucket of name claims.
    #[must_use]
    pub fn vms_bucket(&self) -> String {
        self.name("VMS")
    }

    /// The bucket of hosts.
    #[must_use]
    pub fn hosts_bucket(&self) -> String {
        self.name("HOSTS")
    }

    /// The bucket of VM states.
    #[must_use]
    pub fn state_bucket(&self) -> String {
        self.name("STATE")
    }

    /// The bucket of names of images that the fleet shares, and that of their contents.
    #[must_use]
    pub fn images_bucket(&self) -> String {
        self.name("IMAGES")
    }

    /// The stream of the contents of shared images.
    #[must_use]
    pub fn images_stream(&self) -> String {
        format!("OBJ_{}", self.images_bucket())
    }

    /// Every asset as this drover makes it.
    #[must_use]
    pub fn streams(&self) -> [stream::Config; 6] {
        [
            self.events(),
            self.bucket(&self.vms_bucket(), "Who owns which VM name"),
            self.bucket(&self.hosts_bucket(), "Hosts with their capacity, while they live"),
            self.bucket(&self.state_bucket(), "The last acknowledged state of each VM"),
            self.bucket(&self.images_bucket(), "What a name of a shared image means"),
            self.objects(),
        ]
    }

    fn events(&self) -> stream::Config {
        stream::Config {
            name: self.events_stream(),
            description: Some("Events of VMs and hosts".to_owned()),
            subjects: vec![format!("{}.v1.evt.>", self.root)],
            retention: RetentionPolicy::Limits,
            discard: DiscardPolicy::Old,
            storage: StorageType::File,
            num_replicas: self.replicas,
            max_age: self.events_max_age,
            max_bytes: self.events_max_bytes,
            max_messages: -1,
            max_messages_per_subject: -1,
            max_consumers: -1,
            max_message_size: -1,
            duplicate_window: self.duplicate_window.unwrap_or_default(),
            allow_direct: true,
            // Never S2: where links were cut and servers killed, two of three of nats-server 2.15.1 could not read a
            // block that they had compressed ("s2: unsupported input"), and no event was stored any more.
            compression: Some(Compression::None),
            ..stream::Config::default()
        }
    }

    /// The object store of shared images, written as the stream that it is. No limit of its own: what the bus may hold
    /// is its server's to say.
    fn objects(&self) -> stream::Config {
        let bucket = self.images_bucket();
        let subjects = vec![format!("$O.{bucket}.C.>"), format!("$O.{bucket}.M.>")];
        self.kept(self.images_stream(), "Contents of shared images", subjects)
    }

    /// A key-value bucket, written as the stream that it is: history 1, and limit markers from the
    /// start, because a per-message TTL needs them and a server once lost them when added later.
    fn bucket(&self, bucket: &str, description: &str) -> stream::Config {
        stream::Config {
            max_messages_per_subject: 1,
            deny_delete: true,
            allow_message_ttl: true,
            subject_delete_marker_ttl: Some(Duration::from_secs(30)),
            ..self.kept(format!("KV_{bucket}"), description, vec![format!("$KV.{bucket}.>")])
        }
    }

    /// What stays until somebody takes it away.
    fn kept(&self, name: String, description: &str, subjects: Vec<String>) -> stream::Config {
        stream::Config {
            name,
            description: Some(description.to_owned()),
            subjects,
            retention: RetentionPolicy::Limits,
            discard: DiscardPolicy::New,
            storage: StorageType::File,
            num_replicas: self.replicas,
            max_messages_per_subject: -1,
            max_messages: -1,
            max_bytes: -1,
            max_consumers: -1,
            max_message_size: -1,
            allow_rollup: true,
            allow_direct: true,
            ..stream::Config::default()
        }
    }

    /// Whether all but the sharing of images works without an asset.
    fn is_of_images(&self, stream: &str) -> bool {
        [format!("KV_{}", self.images_bucket()), self.images_stream()].iter().any(|name| name == stream)
    }
}

/// How the assets stand.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AssetsReport {
    /// Assets that were absent and were made.
    pub created: Vec<String>,
    /// Assets of shared images that are absent and could not be made, with why; all else works without them.
    pub without: Vec<String>,
    /// What is not as this drover would make it.
    pub differences: Vec<Difference>,
    /// When the stream of events was made: another value means another stream.
    pub stream_identity: String,
    /// Last sequence of the stream of events.
    pub stream_last: u64,
}

/// A setting of an asset that is not as this drover would make it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// Name of the stream.
    pub asset: String,
    /// Name of the setting.
    pub setting: &'static str,
    /// What it is.
    pub found: String,
    /// What it would be.
    pub expected: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: found {}, expected {}", self.asset, self.setting, self.found, self.expected)
    }
}

/// The assets could not be read or made.
#[derive(Debug, thiserror::Error)]
pub enum AssetsError {
    /// The server did not say whether the stream is there.
    #[error("look for the stream {stream}: is JetStream enabled for this account?")]
    Look {
        /// The stream.
        stream: String,
        /// What the server said.
        #[source]
        source: async_nats::jetstream::context::GetStreamError,
    },
    /// The server did not make the stream.
    #[error("make the stream {stream}; who may not make streams needs an operator's `drover bus init`")]
    Create {
        /// The stream.
        stream: String,
        /// What the server said.
        #[source]
        source: async_nats::jetstream::context::CreateStreamError,
    },
}

/// Makes what is absent and compares the rest.
///
/// # Errors
/// [`AssetsError`] names the stream.
pub async fn ensure(js: &Context, config: &AssetsConfig) -> Result<AssetsReport, AssetsError> {
    let mut report = AssetsReport::default();
    for expected in config.streams() {
        let stream = expected.name.clone();
        let info = match find_or_make(js, &expected).await {
            Ok((info, made)) => {
                report.created.extend(made.then(|| stream.clone()));
                info
            }
            // A bus of an earlier version that grants hosts nothing of them.
            Err(error) if config.is_of_images(&stream) => {
                report.without.push(format!("{stream}: {}", chain(&error)));
                continue;
            }
            Err(error) => return Err(error),
        };
        if stream == config.events_stream() {
            report.stream_identity = info.created.unix_timestamp_nanos().to_string();
            report.stream_last = info.state.last_sequence;
        }
        compare(&expected, &info.config, &mut report.differences);
    }
    Ok(report)
}

/// The asset, and whether it was made just now.
async fn find_or_make(js: &Context, expected: &stream::Config) -> Result<(stream::Info, bool), AssetsError> {
    if let Some(found) = find(js, &expected.name).await? {
        return Ok((found, false));
    }
    let made = js.create_stream(expected.clone()).await;
    let made = made.map_err(|source| AssetsError::Create { stream: expected.name.clone(), source })?;
    Ok((made.cached_info().clone(), true))
}

/// What of the assets is absent, and what is not as this drover would make it; makes nothing.
///
/// # Errors
/// [`AssetsError::Look`] names the stream.
pub async fn inspect(
    js: &Context,
    config: &AssetsConfig,
) -> Result<(Vec<String>, Vec<Difference>), AssetsError> {
    let (mut absent, mut differences) = (Vec::new(), Vec::new());
    for expected in config.streams() {
        match find(js, &expected.name).await? {
            Some(found) => compare(&expected, &found.config, &mut differences),
            None => absent.push(expected.name),
        }
    }
    Ok((absent, differences))
}

/// The asset, if it is there.
pub(super) async fn find(js: &Context, stream: &str) -> Result<Option<stream::Info>, AssetsError> {
    match js.get_stream(stream).await {
        Ok(found) => Ok(Some(found.cached_info().clone())),
        Err(error) if is_absent(&error) => Ok(None),
        Err(source) => Err(AssetsError::Look { stream: stream.to_owned(), source }),
    }
}

fn is_absent(error: &async_nats::jetstream::context::GetStreamError) -> bool {
    match error.kind() {
        GetStreamErrorKind::JetStream(e) => {
            e.error_code() == async_nats::jetstream::ErrorCode::STREAM_NOT_FOUND
        }
        _ => false,
    }
}

/// Compares what correctness and retention depend on.
pub(super) fn compare(expected: &stream::Config, found: &stream::Config, differences: &mut Vec<Difference>) {
    let mut check = |setting: &'static str, found: String, expected_value: String| {
        if found != expected_value {
            differences.push(Difference {
                asset: expected.name.clone(),
                setting,
                found,
                expected: expected_value,
            });
        }
    };
    macro_rules! settings {
        ($($field:ident),*) => {
            $(check(stringify!($field), format!("{:?}", found.$field), format!("{:?}", expected.$field));)*
        };
    }
    let compression = |config: &stream::Config| match config.compression {
        Some(Compression::S2) => "s2".to_owned(),
        Some(Compression::None) | None => "none".to_owned(),
    };
    check("compression", compression(found), compression(expected));
    settings!(
        subjects,
        retention,
        discard,
        storage,
        num_replicas,
        max_age,
        max_bytes,
        max_messages,
        max_messages_per_subject,
        allow_direct,
        allow_message_ttl,
        subject_delete_marker_ttl
    );
}
