//! Validated subject tokens: the only way for text from outside to become part of a subject.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The longest token, in bytes.
pub const MAX_TOKEN_LEN: usize = 63;

/// One NATS subject token: `[a-z0-9][a-z0-9-]{0,62}`.
///
/// Namespaces, VM names, host names and template names are tokens, so none of them can add a level
/// to a subject, match a wildcard or break a file name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Token(Box<str>);

/// Why a text is not a token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// The text is empty.
    #[error("a name must not be empty; use 1 to {MAX_TOKEN_LEN} of a-z, 0-9 and '-'")]
    Empty,
    /// The text is longer than [`MAX_TOKEN_LEN`] bytes.
    #[error("a name may have at most {MAX_TOKEN_LEN} characters, this one has {len}")]
    TooLong {
        /// Length of the text in bytes.
        len: usize,
    },
    /// A character is not allowed at its place.
    #[error(
        "{character:?} is not allowed at position {position} of {text:?}; use a-z, 0-9 and '-', and begin with a letter or digit"
    )]
    Character {
        /// The text, cut to [`MAX_TOKEN_LEN`] bytes.
        text: String,
        /// The first character that is not allowed.
        character: char,
        /// Its position, counted from 0.
        position: usize,
    },
}

impl Token {
    /// Checks `text`.
    ///
    /// # Errors
    /// [`TokenError`] names the first thing that is wrong.
    pub fn new(text: &str) -> Result<Self, TokenError> {
        if text.is_empty() {
            return Err(TokenError::Empty);
        }
        if text.len() > MAX_TOKEN_LEN {
            return Err(TokenError::TooLong { len: text.len() });
        }
        let allowed = |position: usize, c: char| {
            c.is_ascii_lowercase() || c.is_ascii_digit() || (c == '-' && position > 0)
        };
        match text.chars().enumerate().find(|(i, c)| !allowed(*i, *c)) {
            Some((position, character)) => {
                Err(TokenError::Character { text: text.to_owned(), character, position })
            }
            None => Ok(Self(text.into())),
        }
    }

    /// The text of the token.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

impl FromStr for Token {
    type Err = TokenError;
    fn from_str(s: &str) -> Result<Self, Self::Err> {
        Self::new(s)
    }
}

impl TryFrom<String> for Token {
    type Error = TokenError;
    fn try_from(s: String) -> Result<Self, Self::Error> {
        Self::new(&s)
    }
}

impl From<Token> for String {
    fn from(t: Token) -> Self {
        t.0.into()
    }
}

impl AsRef<str> for Token {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl schemars::JsonSchema for Token {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Token".into()
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({"type": "string", "pattern": "^[a-z0-9][a-z0-9-]{0,62}$"})
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_the_first_bad_character() {
        let dot = Token::new("web.1").unwrap_err();
        assert_eq!(
            dot.to_string(),
            "'.' is not allowed at position 3 of \"web.1\"; use a-z, 0-9 and '-', and begin with a letter or digit"
        );
        for bad in ["", "-a", "A", "a b", "a*", ">", "ä", "a_b", &"x".repeat(64)] {
            assert!(Token::new(bad).is_err(), "{bad:?}");
        }
        for good in ["a", "0", "web-1", &"x".repeat(63)] {
            assert!(Token::new(good).is_ok(), "{good:?}");
        }
    }

    proptest! {
        #[test]
        fn a_token_is_always_one_subject_level(text in ".{0,80}") {
            if let Ok(token) = Token::new(&text) {
                prop_assert_eq!(token.as_str(), &text);
                prop_assert!(!text.contains(['.', '*', '>', ' ', '/', '\0']));
                prop_assert!(!text.is_empty() && text.len() <= MAX_TOKEN_LEN);
            }
        }
    }
}
