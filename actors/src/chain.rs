//! Printing an error with its sources: `Display` of an error never does.

use std::error::Error;
use std::fmt;

/// `error: source: source of the source`.
pub fn chain(error: &dyn Error) -> Chain<'_> {
    Chain(error)
}

/// See [`chain`].
#[derive(Debug)]
pub struct Chain<'a>(&'a dyn Error);

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut said = self.0.to_string();
        f.write_str(&said)?;
        let mut source = self.0.source();
        while let Some(error) = source {
            let text = error.to_string();
            // Not every library leaves its source out.
            if !said.ends_with(&text) {
                write!(f, ": {text}")?;
            }
            said = text;
            source = error.source();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{text}")]
    struct Link {
        text: &'static str,
        source: Option<Box<Link>>,
    }

    fn linked(texts: &[&'static str]) -> Link {
        let (text, rest) = texts.split_first().unwrap();
        Link { text, source: (!rest.is_empty()).then(|| Box::new(linked(rest))) }
    }

    #[test]
    fn what_an_error_has_said_of_its_source_is_not_said_again() {
        let said = |texts: &[&'static str]| chain(&linked(texts)).to_string();
        assert_eq!(said(&["connect", "refused", "port 1"]), "connect: refused: port 1");
        assert_eq!(said(&["connect", "io: refused", "refused", "port 1"]), "connect: io: refused: port 1");
    }
}
