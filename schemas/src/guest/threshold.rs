//! Thresholds: values of a guest that are watched, and what is told when one is beyond its limit for a while.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::check::{MAX_WATCH_MS, SettingError, in_range};
use crate::{ErrorCode, Token};

/// The most thresholds of a VM's spec.
pub const MAX_THRESHOLDS: usize = 16;

const MAX_MOUNT: usize = 1024;
/// How much below its beginning a threshold ends if the spec does not say.
const GAP: u32 = 5;
/// A load of a hundred for each CPU.
const MAX_LOAD: u32 = 10_000;

/// What a threshold is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Measure {
    /// The load average of one minute, in percent of the CPUs that are online: 100 is one that runs or waits for each.
    Load,
    /// Time that the CPUs were busy since the last look, in percent.
    Cpu,
    /// Memory that programs cannot have any more, in percent.
    Memory,
    /// Swap in use, in percent.
    Swap,
    /// Space of a file system that ordinary users cannot have any more, in percent.
    Disk,
    /// A measure that this reader does not know.
    #[serde(other)]
    Unknown,
}

/// A limit that is watched. The agent looks twice in `for_ms`, each second at the most and each ten seconds at the least.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ThresholdSpec {
    /// Its name.
    pub name: Token,
    /// Of what.
    pub of: Measure,
    /// For `disk`: where the file system is mounted; `/` if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mount: Option<String>,
    /// It is exceeded from this value on, in percent.
    pub above: u32,
    /// It is over below this value; 5 less than `above` if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub below: Option<u32>,
    /// How long every look must find it so, in either direction, in milliseconds; 0: one look is enough.
    #[serde(default = "for_ms")]
    pub for_ms: u64,
}

const fn for_ms() -> u64 {
    30_000
}

impl ThresholdSpec {
    /// A threshold with the usual settings.
    #[must_use]
    pub const fn new(name: Token, of: Measure, above: u32) -> Self {
        Self { name, of, mount: None, above, below: None, for_ms: for_ms() }
    }

    /// The value below which it is over.
    #[must_use]
    pub fn ends_below(&self) -> u32 {
        self.below.unwrap_or_else(|| self.above.saturating_sub(GAP).max(1))
    }

    /// Where the file system is mounted.
    #[must_use]
    pub fn mount(&self) -> &str {
        self.mount.as_deref().unwrap_or("/")
    }

    /// Says what of it can never be carried out.
    ///
    /// # Errors
    /// [`SettingError`] with a field of the threshold.
    pub fn check(&self) -> Result<(), SettingError> {
        let most = match self.of {
            Measure::Unknown => return Err(SettingError::new("of", "use load, cpu, memory, swap or disk")),
            Measure::Load => MAX_LOAD,
            _ => 100,
        };
        in_range("above", self.above.into(), 1, most.into())?;
        if let Some(below) = self.below {
            in_range("below", below.into(), 1, self.above.into())?;
        }
        in_range("for_ms", self.for_ms, 0, MAX_WATCH_MS)?;
        match &self.mount {
            Some(_) if self.of != Measure::Disk => {
                Err(SettingError::new("mount", "goes with disk only; leave it out"))
            }
            Some(mount) if !mount.starts_with('/') || mount.len() > MAX_MOUNT || mount.contains('\0') => {
                Err(SettingError::new("mount", format!("use an absolute path of at most {MAX_MOUNT} bytes")))
            }
            _ => Ok(()),
        }
    }
}

/// Says what of thresholds that are declared together can never be carried out.
///
/// # Errors
/// [`SettingError`] with `thresholds[N].field`.
pub fn check_thresholds(thresholds: &[ThresholdSpec]) -> Result<(), SettingError> {
    if thresholds.len() > MAX_THRESHOLDS {
        let text = format!("{}; {MAX_THRESHOLDS} at most", thresholds.len());
        return Err(SettingError::new("thresholds", text));
    }
    for (at, threshold) in thresholds.iter().enumerate() {
        let below = |field: &str| format!("thresholds[{at}].{field}");
        threshold.check().map_err(|e| SettingError::new(below(&e.field), e.reason))?;
        if thresholds[..at].iter().any(|other| other.name == threshold.name) {
            let text = format!("{} is the name of an earlier one; use another", threshold.name);
            return Err(SettingError::new(below("name"), text));
        }
    }
    Ok(())
}

/// How a value is, beside its threshold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ThresholdStatus {
    /// Nobody has looked yet.
    #[default]
    Starting,
    /// Within its limit, or not beyond it for long enough.
    Ok,
    /// Beyond its limit.
    Exceeded,
    /// The owner of the guest does not let the host know.
    Refused,
    /// A status that this reader does not know.
    #[serde(other)]
    Unknown,
}

/// A threshold and its last value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ThresholdState {
    /// Its name.
    pub name: String,
    /// Of what.
    pub of: Measure,
    /// For `disk`: where the file system is mounted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mount: Option<String>,
    /// From where on it is exceeded, in percent.
    pub above: u32,
    /// How it is.
    pub status: ThresholdStatus,
    /// Since when, by the guest's clock: milliseconds since the Unix epoch.
    pub since_unix_ms: u64,
    /// It changes so often that changes are not told one by one.
    #[serde(default)]
    pub flapping: bool,
    /// The last value, in percent; absent if there is none, as of a file system that is not mounted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<u32>,
    /// When that was, by the guest's clock; absent before the first look.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_unix_ms: Option<u64>,
    /// Why nobody looks: `permission_denied`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<ErrorCode>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> ThresholdSpec {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn a_threshold_can_be_crossed_both_ways() {
        let full = read(r#"{"name": "full", "of": "disk", "above": 90}"#);
        assert_eq!((full.ends_below(), full.for_ms, full.mount(), full.check()), (85, 30_000, "/", Ok(())));
        assert_eq!(read(r#"{"name": "a", "of": "load", "above": 400}"#).check(), Ok(()));
        let low = read(r#"{"name": "a", "of": "disk", "above": 3, "mount": "/srv"}"#);
        assert_eq!((low.ends_below(), low.mount(), low.check()), (1, "/srv", Ok(())));
        for (bad, field) in [
            (r#""of": "cpu", "above": 101"#, "above"),
            (r#""of": "cpu", "above": 0"#, "above"),
            (r#""of": "load", "above": 10001"#, "above"),
            (r#""of": "cpu", "above": 50, "below": 51"#, "below"),
            (r#""of": "cpu", "above": 50, "below": 0"#, "below"),
            (r#""of": "noise", "above": 50"#, "of"),
            (r#""of": "cpu", "above": 50, "mount": "/""#, "mount"),
            (r#""of": "disk", "above": 50, "mount": "srv""#, "mount"),
            (r#""of": "cpu", "above": 50, "for_ms": 18446744073709551615"#, "for_ms"),
        ] {
            let error = read(&format!(r#"{{"name": "a", {bad}}}"#)).check().unwrap_err();
            assert_eq!(error.field, field, "{bad}");
        }
    }

    #[test]
    fn names_are_given_once_and_there_is_an_end() {
        let one = ThresholdSpec::new(Token::new("a").unwrap(), Measure::Cpu, 90);
        assert_eq!(check_thresholds(&[one.clone(), one.clone()]).unwrap_err().field, "thresholds[1].name");
        let bad = ThresholdSpec { above: 0, ..one.clone() };
        assert_eq!(check_thresholds(&[bad]).unwrap_err().field, "thresholds[0].above");
        assert_eq!(check_thresholds(&vec![one; MAX_THRESHOLDS + 1]).unwrap_err().field, "thresholds");
        assert_eq!(check_thresholds(&[]), Ok(()));
    }
}
