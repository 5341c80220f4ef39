//! One content from a server.
//!
//! A transfer that breaks is gone on with where it broke (`Range`), if the content is known by its digest, or if the
//! server says by an entity tag or a date that it is still the same.

use std::time::{Duration, Instant};

use bytes::Bytes;
use drover_schemas::{ErrorBody, ErrorCode};
use reqwest::header::{
    CONTENT_ENCODING, CONTENT_RANGE, ETAG, HeaderMap, HeaderValue, IF_RANGE, LAST_MODIFIED, RANGE,
};
use reqwest::{Response, StatusCode};
use sha2::{Digest as _, Sha256};

use super::oci::{Blob, Refused};
use super::web::Broken::{self, MayPass, Over};
use super::web::{server, status};
use crate::images::hex;

/// Attempts in a row that bring nothing.
const ATTEMPTS: u32 = 4;
/// Pause before a further attempt, times their number.
const PAUSE: Duration = Duration::from_millis(500);
/// In each such time a server sends at least [`LEAST`].
const WINDOW: Duration = Duration::from_secs(60);
/// Bytes of a window.
const LEAST: u64 = 256 * 1024;

/// How the content is asked for.
pub(super) trait Ask {
    /// Asks once, with these headers too.
    async fn ask(&mut self, headers: &HeaderMap) -> Result<Response, Broken>;
}

/// Where the content goes.
pub(super) trait Sink {
    /// It has so many bytes.
    fn begin(&mut self, size: u64) -> Result<(), ErrorBody>;
    /// The next ones.
    async fn bytes(&mut self, bytes: Bytes) -> Result<(), ErrorBody>;
}

/// Tries until it is done, or nothing came several times. `moved` tells whether something came since it was asked last.
pub(super) async fn patiently<T>(
    mut attempt: impl AsyncFnMut() -> (bool, Result<T, Broken>),
) -> Result<T, ErrorBody> {
    let mut in_vain = 0;
    loop {
        let (moved, result) = attempt().await;
        let error = match result {
            Ok(done) => return Ok(done),
            Err(Over(error)) => return Err(error),
            Err(MayPass(error)) => error,
        };
        in_vain = if moved { 1 } else { in_vain + 1 };
        if in_vain >= ATTEMPTS {
            return Err(error);
        }
        tokio::time::sleep(PAUSE * in_vain).await;
    }
}

/// The body of an answer that is short.
pub(super) async fn short(mut response: Response, max: usize) -> Result<Option<Vec<u8>>, Broken> {
    let read = async {
        let mut bytes = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|e| MayPass(server(&e)))? {
            if bytes.len() + chunk.len() > max {
                return Ok(None);
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(Some(bytes))
    };
    tokio::time::timeout(WINDOW, read).await.unwrap_or_else(|_| {
        let text = format!("the server did not send {max} bytes in {} s", WINDOW.as_secs());
        Err(Over(ErrorBody::new(ErrorCode::DeadlineExceeded, text)))
    })
}

/// A transfer.
pub(super) struct Transfer<'a, A, S> {
    ask: &'a mut A,
    sink: &'a mut S,
    max_bytes: u64,
    /// What comes, by its digest, and the digest of what came.
    known: Option<(&'a Blob, Sha256)>,
    /// Bytes that were handed on.
    offset: u64,
    size: Option<u64>,
    /// By what the server knows that the content is the same.
    validator: Option<String>,
}

impl<'a, A: Ask, S: Sink> Transfer<'a, A, S> {
    /// Of at most so many bytes.
    pub(super) const fn new(ask: &'a mut A, sink: &'a mut S, max_bytes: u64) -> Self {
        Self { ask, sink, max_bytes, known: None, offset: 0, size: None, validator: None }
    }

    /// Of a content that is known by its digest and has its length.
    pub(super) fn of(ask: &'a mut A, sink: &'a mut S, blob: &'a Blob) -> Self {
        Self { known: Some((blob, Sha256::new())), ..Self::new(ask, sink, blob.size) }
    }

    /// Attempts until all is there, or several brought nothing.
    pub(super) async fn whole(mut self) -> Result<(), ErrorBody> {
        patiently(async || {
            let before = self.offset;
            let result = self.attempt().await;
            (self.offset > before, result)
        })
        .await?;
        let Some((blob, came)) = self.known else { return Ok(()) };
        let found = format!("sha256:{}", hex(&came.finalize()));
        match found == blob.digest {
            true => Ok(()),
            false => Err(Refused::Digest { what: "a blob", expected: blob.digest.clone(), found }.to_body()),
        }
    }

    async fn attempt(&mut self) -> Result<(), Broken> {
        let response = self.ask.ask(&self.headers()).await?;
        let mut response = self.begins(response)?;
        let size = self.size.unwrap_or_default();
        let (mut window, mut come) = (Instant::now(), 0);
        while let Some(bytes) = response.chunk().await.map_err(|e| MayPass(server(&e)))? {
            let length = bytes.len() as u64;
            if self.offset + length > size {
                let text = format!("the server sent more than the {size} bytes that it had announced");
                return Err(Over(ErrorBody::new(ErrorCode::InvalidArgument, text)));
            }
            if let Some((_, came)) = &mut self.known {
                came.update(&bytes);
            }
            self.sink.bytes(bytes).await.map_err(Over)?;
            self.offset += length;
            come += length;
            if window.elapsed() >= WINDOW {
                if come < LEAST {
                    let text = format!("the server sent {come} bytes in {} s", WINDOW.as_secs());
                    return Err(Over(ErrorBody::new(ErrorCode::DeadlineExceeded, text)));
                }
                (window, come) = (Instant::now(), 0);
            }
        }
        if self.offset < size {
            let text = format!("the server sent {} of {size} bytes", self.offset);
            return Err(MayPass(ErrorBody::new(ErrorCode::Unavailable, text)));
        }
        Ok(())
    }

    /// What asks for the rest only.
    fn headers(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        let validator = self.validator.as_ref().and_then(|tag| HeaderValue::from_str(tag).ok());
        let range = HeaderValue::from_str(&format!("bytes={}-", self.offset));
        if let (Ok(range), true, true) = (range, self.offset > 0, self.known.is_some() || validator.is_some())
        {
            headers.insert(RANGE, range);
            // What is known by its digest needs nobody's word.
            if let Some(validator) = validator.filter(|_| self.known.is_none()) {
                headers.insert(IF_RANGE, validator);
            }
        }
        headers
    }

    /// Whether the answer begins where the last one ended; tells the length once.
    fn begins(&mut self, response: Response) -> Result<Response, Broken> {
        let from = match response.status() {
            StatusCode::OK => 0,
            StatusCode::PARTIAL_CONTENT => first_of_range(response.headers()).unwrap_or(u64::MAX),
            other => return Err(status(other)),
        };
        let encoded = response.headers().get(CONTENT_ENCODING).is_some_and(|coding| coding != "identity");
        let rest = self.known.as_ref().and_then(|(blob, _)| blob.size.checked_sub(from));
        let (Some(length), false) = (response.content_length().or(rest), encoded) else {
            let text = "the server does not say how long the content is; only files are fetched";
            return Err(Over(ErrorBody::new(ErrorCode::Unsupported, text)));
        };
        match self.size {
            None if from == 0 => {
                if let Some((blob, _)) = self.known.as_ref().filter(|(blob, _)| blob.size != length) {
                    let refused = Refused::Length { what: "a blob", expected: blob.size, found: length };
                    return Err(Over(refused.to_body()));
                }
                if length > self.max_bytes {
                    let (what, limit) = ("the image", self.max_bytes);
                    return Err(Over(Refused::Large { what, needed: length, limit }.to_body()));
                }
                self.size = Some(length);
                self.validator = validator(response.headers());
                self.sink.begin(length).map_err(Over)?;
                Ok(response)
            }
            Some(size) if from == self.offset && from.checked_add(length) == Some(size) => Ok(response),
            _ => {
                let text =
                    "the transfer broke, and the server cannot go on with the same content; import it again";
                Err(Over(ErrorBody::new(ErrorCode::Unavailable, text)))
            }
        }
    }
}

/// A strong entity tag, or the date of the content.
fn validator(headers: &HeaderMap) -> Option<String> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok()).map(ToOwned::to_owned);
    text(ETAG).filter(|tag| !tag.starts_with("W/")).or_else(|| text(LAST_MODIFIED))
}

/// The first byte of `Content-Range: bytes 5-9/10`.
fn first_of_range(headers: &HeaderMap) -> Option<u64> {
    let text = headers.get(CONTENT_RANGE)?.to_str().ok()?;
    text.strip_prefix("bytes ")?.split('-').next()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_server_says_of_ranges_is_read() {
        let with = |name, value: &str| HeaderMap::from_iter([(name, value.parse().unwrap())]);
        assert_eq!(first_of_range(&with(CONTENT_RANGE, "bytes 5-9/10")), Some(5));
        for none in ["bytes */10", "5-9/10", "bytes", "bytes -", "bytes 99999999999999999999-/1"] {
            assert_eq!(first_of_range(&with(CONTENT_RANGE, none)), None, "{none}");
        }
        assert_eq!(validator(&with(ETAG, "\"a\"")).as_deref(), Some("\"a\""));
        assert_eq!(validator(&with(ETAG, "W/\"a\"")), None);
    }
}
