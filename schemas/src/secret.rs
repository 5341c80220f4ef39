//! Values that must never reach an event, a log or `explain`.

use serde::{Deserialize, Serialize};

/// A text that prints as `***`. It is written out only by [`Secret::reveal`], and by serde for the
/// wire and the journal (whose file is 0600); events and explanations are built from types that
/// have no `Secret` in them.
#[derive(Clone, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// Wraps a text.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself; call it only where the guest or the hypervisor needs it.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_secret_does_not_print() {
        assert_eq!(format!("{:?}", super::Secret::new("hunter2")), "***");
    }
}
