//! Making the stream and the buckets, and bringing them up to date: what an operator does with
//! `drover bus init` and `drover bus upgrade`, and no host.
//!
//! What is to be done is decided before anything is done, so a refusal leaves everything as it was.

use std::time::Duration;

use async_nats::jetstream::context::Context;
use async_nats::jetstream::stream;
use drover_schemas::Token;
use drover_schemas::subject::matches;

use super::assets::{AssetsConfig, AssetsError, Difference, compare, find};

/// What an operator wants of the settings that are his to choose; what he does not say stays as it is, or is
/// as a new asset has it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wishes {
    /// How long events are kept; zero for ever.
    pub events_max_age: Option<Duration>,
    /// How much of them is kept; negative for all.
    pub events_max_bytes: Option<i64>,
    /// Copies of each asset in a cluster.
    pub replicas: Option<usize>,
    /// The window for duplicates of the stream of events.
    pub duplicate_window: Option<Duration>,
}

/// What came of one asset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It was absent and is there now.
    Created,
    /// It was as it should be.
    Unchanged,
    /// These settings were changed.
    Changed(Vec<Difference>),
    /// These settings are another; nothing was changed, for nobody asked.
    Differs(Vec<Difference>),
}

/// The assets could not be made or changed.
#[derive(Debug, thiserror::Error)]
pub enum UpgradeError {
    /// One could not be read or made.
    #[error(transparent)]
    Assets(#[from] AssetsError),
    /// A change would lose what is stored; nothing was changed.
    #[error("{asset}: {setting} from {found} to {expected} {loses}; nothing was changed")]
    Loses {
        /// The stream.
        asset: String,
        /// The setting.
        setting: &'static str,
        /// What it is.
        found: String,
        /// What it would be.
        expected: String,
        /// What would be lost.
        loses: &'static str,
    },
    /// The server refused a change.
    #[error("change the stream {stream}")]
    Change {
        /// The stream.
        stream: String,
        /// What the server said.
        #[source]
        source: async_nats::jetstream::context::UpdateStreamError,
    },
}

/// Makes what is absent; with `change`, also brings what is there up to date.
///
/// # Errors
/// [`UpgradeError`]; what would lose data is refused before anything is changed.
pub async fn bring_up(
    js: &Context,
    root: &Token,
    wishes: &Wishes,
    change: bool,
) -> Result<Vec<(String, Outcome)>, UpgradeError> {
    let config = fresh(root, wishes);
    let mut plan = Vec::new();
    for expected in config.streams() {
        let found = find(js, &expected.name).await?;
        if let Some(found) = &found {
            let wanted = wanted(&expected, &found.config, wishes);
            let differences = differences(&wanted, &found.config);
            if change {
                check_losses(&differences, &wanted, found)?;
            }
            plan.push((wanted, Some(differences)));
        } else {
            plan.push((expected, None));
        }
    }
    let mut done = Vec::new();
    for (wanted, differences) in plan {
        let name = wanted.name.clone();
        let outcome = match differences {
            None => {
                let created = js.create_stream(wanted).await;
                created.map_err(|source| AssetsError::Create { stream: name.clone(), source })?;
                Outcome::Created
            }
            Some(differences) if differences.is_empty() => Outcome::Unchanged,
            Some(differences) if !change => Outcome::Differs(differences),
            Some(differences) => {
                let updated = js.update_stream(wanted).await;
                updated.map_err(|source| UpgradeError::Change { stream: name.clone(), source })?;
                Outcome::Changed(differences)
            }
        };
        done.push((name, outcome));
    }
    Ok(done)
}

fn fresh(root: &Token, wishes: &Wishes) -> AssetsConfig {
    let mut config = AssetsConfig::new(root.clone());
    config.events_max_age = wishes.events_max_age.unwrap_or(config.events_max_age);
    config.events_max_bytes = wishes.events_max_bytes.unwrap_or(config.events_max_bytes);
    config.replicas = wishes.replicas.unwrap_or(config.replicas);
    config.duplicate_window = wishes.duplicate_window.or(config.duplicate_window);
    config
}

/// The asset as it should be: everything that correctness needs as a new one has it, what an operator chooses
/// as he wishes or as it is, and whatever drover does not know as it is.
fn wanted(expected: &stream::Config, found: &stream::Config, wishes: &Wishes) -> stream::Config {
    let is_log = expected.max_messages_per_subject < 0;
    let mut wanted = found.clone();
    wanted.description.clone_from(&expected.description);
    wanted.subjects.clone_from(&expected.subjects);
    wanted.retention = expected.retention;
    wanted.discard = expected.discard;
    wanted.storage = expected.storage;
    wanted.max_messages = expected.max_messages;
    wanted.max_messages_per_subject = expected.max_messages_per_subject;
    wanted.allow_direct = expected.allow_direct;
    wanted.compression.clone_from(&expected.compression);
    wanted.allow_message_ttl = expected.allow_message_ttl || found.allow_message_ttl;
    wanted.subject_delete_marker_ttl = expected.subject_delete_marker_ttl;
    if wishes.replicas.is_some() {
        wanted.num_replicas = expected.num_replicas;
    }
    if is_log {
        if wishes.events_max_age.is_some() {
            wanted.max_age = expected.max_age;
        }
        if wishes.events_max_bytes.is_some() {
            wanted.max_bytes = expected.max_bytes;
        }
        if let Some(window) = wishes.duplicate_window {
            wanted.duplicate_window = window;
        }
    } else {
        wanted.max_age = expected.max_age;
        wanted.max_bytes = expected.max_bytes;
    }
    wanted
}

fn differences(wanted: &stream::Config, found: &stream::Config) -> Vec<Difference> {
    let mut differences = Vec::new();
    compare(wanted, found, &mut differences);
    if wanted.duplicate_window != found.duplicate_window {
        differences.push(Difference {
            asset: wanted.name.clone(),
            setting: "duplicate_window",
            found: format!("{:?}", found.duplicate_window),
            expected: format!("{:?}", wanted.duplicate_window),
        });
    }
    differences
}

/// Refuses what the server would do and somebody would miss.
fn check_losses(
    differences: &[Difference],
    wanted: &stream::Config,
    found: &stream::Info,
) -> Result<(), UpgradeError> {
    let state = &found.state;
    if state.messages == 0 {
        return Ok(());
    }
    let now = time::OffsetDateTime::now_utc();
    for difference in differences {
        let loses = match difference.setting {
            "subjects" if !covers(&wanted.subjects, &found.config.subjects) => {
                Some("leaves subjects whose messages are stored; move them by hand")
            }
            "storage" | "retention" => Some("needs another stream; copy what is stored by hand"),
            "max_bytes" if wanted.max_bytes >= 0 && state.bytes > wanted.max_bytes.unsigned_abs() => {
                Some("drops the oldest that is stored; give more")
            }
            "max_age" if !wanted.max_age.is_zero() && state.first_timestamp + wanted.max_age < now => {
                Some("drops the oldest that is stored; give more")
            }
            "max_messages"
                if wanted.max_messages >= 0 && state.messages > wanted.max_messages.unsigned_abs() =>
            {
                Some("drops the oldest that is stored")
            }
            // A bucket of more history loses what nobody reads; a log that was a bucket has lost it already.
            _ => None,
        };
        if let Some(loses) = loses {
            return Err(UpgradeError::Loses {
                asset: difference.asset.clone(),
                setting: difference.setting,
                found: difference.found.clone(),
                expected: difference.expected.clone(),
                loses,
            });
        }
    }
    Ok(())
}

fn covers(wanted: &[String], found: &[String]) -> bool {
    found.iter().all(|subject| wanted.iter().any(|pattern| matches(pattern, subject)))
}

#[cfg(test)]
#[path = "upgrade_tests.rs"]
mod tests;
