//! Identities: ULIDs with a type each, so that a VM id cannot be passed as a request id.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use ulid::Ulid;

/// A text is not a ULID.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a ULID: use 26 characters of Crockford base 32")]
pub struct IdError {
    /// The text, cut to 64 bytes.
    pub text: String,
}

macro_rules! ulid_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Ulid);

        impl $name {
            /// A new id from the wall clock and 80 random bits.
            #[must_use]
            pub fn generate() -> Self {
                Self(Ulid::new())
            }

            /// An id from its number.
            #[must_use]
            pub const fn from_u128(value: u128) -> Self {
                Self(Ulid(value))
            }

            /// The number of the id.
            #[must_use]
            pub const fn as_u128(self) -> u128 {
                self.0.0
            }

            /// When the id was made, by its maker's clock: milliseconds since the Unix epoch.
            #[must_use]
            pub const fn unix_ms(self) -> u64 {
                self.0.timestamp_ms()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }

        impl FromStr for $name {
            type Err = IdError;
            fn from_str(s: &str) -> Result<Self, IdError> {
                Ulid::from_string(s)
                    .map(Self)
                    .map_err(|_| IdError { text: s.chars().take(64).collect() })
            }
        }

        impl TryFrom<String> for $name {
            type Error = IdError;
            fn try_from(s: String) -> Result<Self, IdError> {
                s.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.to_string()
            }
        }

        impl schemars::JsonSchema for $name {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($name).into()
            }
            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                schemars::json_schema!({"type": "string", "pattern": "^[0-7][0-9A-HJKMNP-TV-Z]{25}$"})
            }
        }
    };
}

ulid_id! {
    /// One VM for as long as it exists; a VM created later under the same name has another.
    VmId
}
ulid_id! {
    /// One request of one client; a retry carries the same.
    RequestId
}
ulid_id! {
    /// One installation of drover, made with its journal; part of every mark on the host.
    InstallationId
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_text_on_the_wire() {
        let id = VmId::from_u128(1);
        assert_eq!(id.to_string(), "00000000000000000000000001");
        assert_eq!("00000000000000000000000001".parse::<VmId>(), Ok(id));
        assert_eq!(serde_json::to_string(&id).unwrap(), "\"00000000000000000000000001\"");
        assert!("not an id".parse::<VmId>().is_err());
    }
}
