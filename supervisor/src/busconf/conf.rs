//! Text in the form of the NATS server's configuration.

use std::fmt;
use std::path::Path;

/// One value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Conf {
    /// In quotes, so that nothing in it is a variable or a comment.
    Text(String),
    /// A word of the server's own.
    Word(&'static str),
    Number(u64),
    Bool(bool),
    List(Vec<Conf>),
    Map(Vec<(String, Conf)>),
}

impl Conf {
    pub(super) fn text(text: &str) -> Self {
        Self::Text(text.to_owned())
    }

    pub(super) const fn word(word: &'static str) -> Self {
        Self::Word(word)
    }

    pub(super) fn path(path: &Path) -> Self {
        Self::Text(path.to_string_lossy().into_owned())
    }

    pub(super) fn map<K: Into<String>>(entries: impl IntoIterator<Item = (K, Self)>) -> Self {
        Self::Map(entries.into_iter().map(|(key, value)| (key.into(), value)).collect())
    }

    pub(super) fn texts<T: Into<String>>(texts: impl IntoIterator<Item = T>) -> Self {
        Self::List(texts.into_iter().map(|text| Self::Text(text.into())).collect())
    }

    fn write(&self, f: &mut fmt::Formatter<'_>, depth: usize) -> fmt::Result {
        let pad = |f: &mut fmt::Formatter<'_>, depth: usize| write!(f, "{:1$}", "", depth * 2);
        match self {
            // A string of JSON is one of the server's configuration as well.
            Self::Text(text) => write!(f, "{}", serde_json::Value::from(text.as_str())),
            Self::Word(word) => f.write_str(word),
            Self::Number(number) => write!(f, "{number}"),
            Self::Bool(value) => write!(f, "{value}"),
            Self::List(values) if values.is_empty() => f.write_str("[]"),
            Self::List(values) => {
                f.write_str("[\n")?;
                for value in values {
                    pad(f, depth + 1)?;
                    value.write(f, depth + 1)?;
                    f.write_str("\n")?;
                }
                pad(f, depth)?;
                f.write_str("]")
            }
            Self::Map(entries) => {
                f.write_str("{\n")?;
                self.entries(entries, f, depth + 1)?;
                pad(f, depth)?;
                f.write_str("}")
            }
        }
    }

    fn entries(&self, entries: &[(String, Self)], f: &mut fmt::Formatter<'_>, depth: usize) -> fmt::Result {
        for (key, value) in entries {
            let plain = key.starts_with(|c: char| c.is_ascii_alphabetic())
                && key.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
            write!(f, "{:1$}", "", depth * 2)?;
            match plain {
                true => write!(f, "{key}: ")?,
                false => write!(f, "{}: ", serde_json::Value::from(key.as_str()))?,
            }
            value.write(f, depth)?;
            f.write_str("\n")?;
        }
        Ok(())
    }
}

impl fmt::Display for Conf {
    /// The entries of a map stand at the top; anything else as it is within one.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Map(entries) => self.entries(entries, f, 0),
            other => other.write(f, 0),
        }
    }
}
