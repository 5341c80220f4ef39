//! Checks: what is run again and again to see whether a guest does its work. How they are declared, and how they are.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::threshold::ThresholdSpec;
use crate::{ErrorCode, Token};

/// The most checks of a VM's spec, and the most of its guest's files.
pub const MAX_CHECKS: usize = 16;
/// How many characters of a check's last output are kept.
pub const MAX_CHECK_OUTPUT: usize = 1024;
/// The longest time that a setting of this page may say, in milliseconds.
pub const MAX_WATCH_MS: u64 = 24 * 3_600_000;

const MIN_INTERVAL_MS: u64 = 1_000;
const MAX_WORDS: usize = 64;
const MAX_BYTES: usize = 1024;
const MAX_USER: usize = 128;
const MAX_COUNT: u32 = 100;

/// A setting that can never be carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {reason}")]
pub struct SettingError {
    /// The field, below whatever holds the settings.
    pub field: String,
    /// What is wrong with it, and what would do.
    pub reason: String,
}

impl SettingError {
    pub(super) fn new(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { field: field.into(), reason: reason.into() }
    }
}

/// A program that the agent runs again and again: all is well if it exits with 0.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CheckSpec {
    /// Its name.
    pub name: Token,
    /// Program and arguments: 64 words and 1,024 bytes at most. What it leaves running is ended.
    pub argv: Vec<String>,
    /// As whom it runs: `name`, `uid`, `name:group` or `uid:gid` by the guest's own files; as root if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// From the start of one run to the next, in milliseconds, 1,000 at least; a run that takes longer is waited for.
    #[serde(default = "interval")]
    pub interval_ms: u64,
    /// After so many milliseconds a run has failed, and all that it started is killed.
    #[serde(default = "timeout")]
    pub timeout_ms: u64,
    /// For so many milliseconds from the start of the agent failures do not count, until the first success.
    #[serde(default)]
    pub grace_ms: u64,
    /// So many failures in a row make it failing, 1 to 100.
    #[serde(default = "failures")]
    pub failures: u32,
    /// So many successes in a row make it well, 1 to 100.
    #[serde(default = "successes")]
    pub successes: u32,
}

const fn interval() -> u64 {
    30_000
}
const fn timeout() -> u64 {
    5_000
}
const fn failures() -> u32 {
    3
}
const fn successes() -> u32 {
    1
}

impl CheckSpec {
    /// A check with the usual settings.
    #[must_use]
    pub const fn new(name: Token, argv: Vec<String>) -> Self {
        Self {
            name,
            argv,
            user: None,
            interval_ms: interval(),
            timeout_ms: timeout(),
            grace_ms: 0,
            failures: failures(),
            successes: successes(),
        }
    }

    /// Says what of it can never be carried out.
    ///
    /// # Errors
    /// [`SettingError`] with a field of the check.
    pub fn check(&self) -> Result<(), SettingError> {
        let bytes: usize = self.argv.iter().map(String::len).sum();
        if self.argv.len() > MAX_WORDS || bytes > MAX_BYTES {
            let text = format!("{MAX_WORDS} words and {MAX_BYTES} bytes at most; put the rest into a script");
            return Err(SettingError::new("argv", text));
        }
        if self.argv.first().is_none_or(String::is_empty) || self.argv.iter().any(|word| word.contains('\0'))
        {
            return Err(SettingError::new("argv", "name a program, and no word has a NUL byte"));
        }
        if self.user.as_ref().is_some_and(|user| user.is_empty() || user.len() > MAX_USER) {
            return Err(SettingError::new("user", format!("1 to {MAX_USER} bytes, or leave it out")));
        }
        let times = [
            ("interval_ms", self.interval_ms, MIN_INTERVAL_MS),
            ("timeout_ms", self.timeout_ms, 1),
            ("grace_ms", self.grace_ms, 0),
        ];
        for (field, value, least) in times {
            in_range(field, value, least, MAX_WATCH_MS)?;
        }
        for (field, value) in [("failures", self.failures), ("successes", self.successes)] {
            in_range(field, value.into(), 1, MAX_COUNT.into())?;
        }
        Ok(())
    }
}

pub(super) fn in_range(field: &str, value: u64, least: u64, most: u64) -> Result<(), SettingError> {
    if (least..=most).contains(&value) {
        return Ok(());
    }
    Err(SettingError::new(field, format!("{value} is not possible; use {least} to {most}")))
}

/// Says what of checks that are declared together can never be carried out.
///
/// # Errors
/// [`SettingError`] with `checks[N].field`.
pub fn check_all(checks: &[CheckSpec]) -> Result<(), SettingError> {
    if checks.len() > MAX_CHECKS {
        return Err(SettingError::new("checks", format!("{}; {MAX_CHECKS} at most", checks.len())));
    }
    for (at, check) in checks.iter().enumerate() {
        check.check().map_err(|e| SettingError::new(format!("checks[{at}].{}", e.field), e.reason))?;
        if checks[..at].iter().any(|other| other.name == check.name) {
            let text = format!("{} is the name of an earlier one; use another", check.name);
            return Err(SettingError::new(format!("checks[{at}].name"), text));
        }
    }
    Ok(())
}

/// What the VM's spec wants of its agent, whole: what an earlier one wanted is over. What is as before goes on.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ConfigureRequest {
    /// Its checks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub checks: Vec<CheckSpec>,
    /// Its thresholds.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub thresholds: Vec<ThresholdSpec>,
}

/// How a check is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CheckStatus {
    /// Nothing counts yet.
    #[default]
    Starting,
    /// It succeeded often enough.
    Ok,
    /// It failed often enough.
    Failing,
    /// It is not run: the owner of the guest does not let the host run it.
    Refused,
    /// A status that this reader does not know.
    #[serde(other)]
    Unknown,
}

/// Who declares a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CheckSource {
    /// The VM's spec.
    #[default]
    Spec,
    /// The guest's owner, by a file in `/etc/drover-agent/checks.d`.
    Guest,
    /// A source that this reader does not know.
    #[serde(other)]
    Unknown,
}

/// A check, and how its last run ended.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct CheckState {
    /// Its name; one of the spec and one of the guest may have the same.
    pub name: String,
    /// Who declares it.
    #[serde(default)]
    pub source: CheckSource,
    /// How it is.
    pub status: CheckStatus,
    /// Since when, by the guest's clock: milliseconds since the Unix epoch.
    pub since_unix_ms: u64,
    /// It changes so often that changes are not told one by one.
    #[serde(default)]
    pub flapping: bool,
    /// When the last run ended, by the guest's clock; absent before the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_unix_ms: Option<u64>,
    /// How long it took, in milliseconds.
    #[serde(default)]
    pub last_ms: u64,
    /// How many runs in a row have failed and count.
    #[serde(default)]
    pub failures: u32,
    /// Why the last run failed; absent if it was well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Why it could not be run at all, such as `permission_denied` or `not_found`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<ErrorCode>,
    /// The end of what the last run complained of, or else of what it printed: 1,024 characters at most.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub output: String,
}

/// A file of the guest's owner that declares nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct RefusedFile {
    /// Its path.
    pub file: String,
    /// Why, and what to do.
    pub reason: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> SettingError {
        serde_json::from_str::<CheckSpec>(text).unwrap().check().unwrap_err()
    }

    #[test]
    fn what_is_left_out_has_a_value() {
        let web: CheckSpec = serde_json::from_str(r#"{"name": "web", "argv": ["true"]}"#).unwrap();
        assert_eq!(web, CheckSpec::new(Token::new("web").unwrap(), vec!["true".into()]));
        assert_eq!((web.interval_ms, web.timeout_ms, web.failures, web.successes), (30_000, 5_000, 3, 1));
        assert_eq!(web.check(), Ok(()));
        assert!(serde_json::from_str::<CheckSpec>(r#"{"name": "a b", "argv": ["true"]}"#).is_err());
    }

    #[test]
    fn what_can_never_be_done_is_named() {
        let long = "x".repeat(2_000);
        for (more, field) in [
            (r#""argv": []"#.to_owned(), "argv"),
            (r#""argv": [""]"#.to_owned(), "argv"),
            (r#""argv": ["a\u0000"]"#.to_owned(), "argv"),
            (format!(r#""argv": ["{long}"]"#), "argv"),
            (format!(r#""argv": ["true"], "user": "{long}""#), "user"),
            (r#""argv": ["true"], "interval_ms": 999"#.to_owned(), "interval_ms"),
            (r#""argv": ["true"], "timeout_ms": 0"#.to_owned(), "timeout_ms"),
            (r#""argv": ["true"], "grace_ms": 18446744073709551615"#.to_owned(), "grace_ms"),
            (r#""argv": ["true"], "failures": 0"#.to_owned(), "failures"),
            (r#""argv": ["true"], "successes": 101"#.to_owned(), "successes"),
        ] {
            assert_eq!(refused(&format!(r#"{{"name": "a", {more}}}"#)).field, field, "{more}");
        }
    }

    #[test]
    fn names_are_given_once_and_there_is_an_end() {
        let one = CheckSpec::new(Token::new("a").unwrap(), vec!["true".into()]);
        assert_eq!(check_all(&[one.clone(), one.clone()]).unwrap_err().field, "checks[1].name");
        let bad = CheckSpec { failures: 0, ..one.clone() };
        assert_eq!(check_all(&[bad]).unwrap_err().field, "checks[0].failures");
        assert_eq!(check_all(&vec![one; MAX_CHECKS + 1]).unwrap_err().field, "checks");
        assert_eq!(check_all(&[]), Ok(()));
    }
}
