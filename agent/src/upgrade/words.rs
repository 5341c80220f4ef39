//! What an agent and its successor say to each other, over a pair of sockets: a length, then a MessagePack value.
//!
//! Both may be of other versions, so fields that are not known are ignored, and those that may come later have defaults;
//! a word that is not known ends the talk, and with it the upgrade.

use std::io;
use std::time::Duration;

use drover_schemas::blob::Blob;
use drover_schemas::{ErrorBody, RequestId, codec};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::time::timeout;

use crate::dedupe::{Outcome, Remembered};

/// What is spoken here.
pub(super) const TALK: u32 = 1;
/// The longest word, in bytes: all requests of a boot with their results.
const MAX_WORD: usize = 32 * 1024 * 1024;
/// How long the other may take to read, and to say what is due.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// Of the old agent.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Old {
    /// The first word.
    Begin {
        /// [`TALK`]
        talk: u32,
        /// As the host knows the agent: requests that it has carried out are not forgotten.
        instance: String,
    },
    /// It has let go of everything: what it remembers.
    Go { requests: Vec<Remembered> },
    /// One of the requests that ran has ended.
    Ended {
        id: RequestId,
        outcome: Ended,
        /// It had no effect, so it may run again.
        #[serde(default)]
        forget: bool,
    },
}

/// Of its successor.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum New {
    /// It could serve, and greets hosts.
    Ready { version: String },
    /// It serves.
    Serving {},
}

/// How a request ended.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Ended {
    /// The result.
    #[serde(default)]
    pub body: Option<Blob>,
    /// Why there is none.
    #[serde(default)]
    pub error: Option<ErrorBody>,
}

impl From<Outcome> for Ended {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Ok(body) => Self { body: Some(body.into()), error: None },
            Err(error) => Self { body: None, error: Some(error) },
        }
    }
}

impl From<Ended> for Outcome {
    fn from(ended: Ended) -> Self {
        match ended.error {
            Some(error) => Err(error),
            None => Ok(ended.body.unwrap_or_default().0),
        }
    }
}

/// Says a word. It waits for a reader that is slow, for a bounded time.
///
/// # Errors
/// The other has gone or does not read, or the word is too long.
pub(super) async fn say(mut to: impl AsyncWrite + Unpin, word: &(impl Serialize + Sync)) -> io::Result<()> {
    let body = codec::encode(word).map_err(io::Error::other)?;
    let len = u32::try_from(body.len()).ok().filter(|_| body.len() <= MAX_WORD).ok_or_else(|| {
        io::Error::new(io::ErrorKind::InvalidData, "what is handed over is too long for one word")
    })?;
    let mut bytes = len.to_be_bytes().to_vec();
    bytes.extend_from_slice(&body);
    timeout(PATIENCE, to.write_all(&bytes)).await?
}

/// Hears the next word.
///
/// # Errors
/// The other has gone (`UnexpectedEof`), or said what is no word.
pub(super) async fn hear<T: DeserializeOwned>(mut from: impl AsyncRead + Unpin) -> io::Result<T> {
    let len = from.read_u32().await? as usize;
    if len > MAX_WORD {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("a word of {len} bytes is too long")));
    }
    // Memory grows with what comes, not with what is announced.
    let mut body = Vec::new();
    from.take(len as u64).read_to_end(&mut body).await?;
    if body.len() < len {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    codec::decode(&body).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))
}

#[cfg(test)]
mod tests {
    use drover_schemas::ErrorCode;

    use super::*;

    #[tokio::test]
    async fn words_arrive_whole_and_in_order() {
        let (mut one, mut other) = tokio::net::UnixStream::pair().unwrap();
        let id = RequestId::from_u128(7);
        let error = ErrorBody::new(ErrorCode::GuestError, "no room");
        let outcome = Ended::from(Outcome::Err(error.clone()));
        say(&mut one, &Old::Begin { talk: TALK, instance: "i".into() }).await.unwrap();
        say(&mut one, &Old::Ended { id, outcome, forget: true }).await.unwrap();
        drop(one);
        let first = hear(&mut other).await.unwrap();
        assert!(matches!(first, Old::Begin { talk: TALK, instance } if instance == "i"));
        match hear(&mut other).await.unwrap() {
            Old::Ended { id: heard, outcome, forget: true } => {
                assert_eq!((heard, Outcome::from(outcome)), (id, Err(error)));
            }
            word => panic!("{word:?}"),
        }
        let end = hear::<Old>(&mut other).await.unwrap_err();
        assert_eq!(end.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[tokio::test]
    async fn what_is_no_word_is_an_error_and_takes_no_memory() {
        for bytes in [&b"\xff\xff\xff\xff"[..], b"\x00\x00\x00\x02\xc1\xc1", b"\x00\x00\x00\x09\x80", b"\x00"]
        {
            assert!(hear::<New>(bytes).await.is_err(), "{bytes:?}");
        }
    }
}
