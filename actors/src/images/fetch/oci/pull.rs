//! Asks a registry: for the manifest, with a login or for a token if it wants one, and for the blobs.

use std::io::{self, Read};

use bytes::{Buf as _, Bytes};
use drover_schemas::{ErrorBody, ErrorCode};
use flate2::read::MultiGzDecoder;
use reqwest::header::{ACCEPT, HeaderMap, HeaderValue, WWW_AUTHENTICATE};
use reqwest::{Response, StatusCode, Url};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;

use super::challenge::{self, Challenge, Realm};
use super::layers::{Out, Pick};
use super::manifest::{self, Blob, Layer, Next, architecture};
use super::{Reference, Refused, is_digest};
use crate::images::fetch::login::Credentials;
use crate::images::fetch::transfer::{Ask, Sink, Transfer, patiently, short};
use crate::images::fetch::web::Broken::{self, Over};
use crate::images::fetch::web::{Login, Web, gone, status};
use crate::images::fetch::worker::Pipe;
use crate::images::hex;

/// The longest manifest, in bytes: what registries take.
const MAX_MANIFEST: usize = 4 << 20;
/// The longest answer with a token, in bytes.
const MAX_TOKEN: usize = 64 * 1024;
/// Pieces of a layer that wait to be unpacked.
const WAITING: usize = 8;

/// Pulls an image, to standard output.
pub(in crate::images::fetch) async fn pull(
    web: &Web,
    text: &str,
    credentials: Option<&Credentials>,
    max_bytes: u64,
) -> Result<(), ErrorBody> {
    let reference = Reference::parse(text).map_err(|e| e.to_body())?;
    let server = web.url(&reference.url("manifests", reference.wanted()))?;
    let mut registry = Registry { web, reference: &reference, server, credentials, login: None };
    let (bytes, digest) = registry.manifest(reference.wanted(), None).await?;
    let choose = |bytes: &[u8]| manifest::read(bytes, architecture()).map_err(|e| e.to_body());
    let next = match choose(&bytes)? {
        Next::Manifest(blob) => {
            let (bytes, _) = registry.manifest(&blob.digest, Some(blob.size)).await?;
            choose(&bytes)?
        }
        next => next,
    };
    let mut pipe = Pipe { manifest: Some(digest) };
    match next {
        Next::Manifest(_) => Err(Refused::Kind { found: "an index in an index".to_owned() }.to_body()),
        Next::File(blob) => {
            fits("the image", blob.size, max_bytes)?;
            let mut ask = BlobOf { registry: &mut registry, blob: &blob };
            Transfer::of(&mut ask, &mut pipe, &blob).whole().await?;
            io::Write::flush(&mut pipe).map_err(|e| gone(&e))
        }
        Next::Layers(layers) => {
            let size = layers.iter().fold(0, |all: u64, layer| all.saturating_add(layer.blob.size));
            fits("all layers together", size, max_bytes)?;
            registry.layers(&layers, Pick::new(pipe, max_bytes)).await
        }
    }
}

fn fits(what: &'static str, needed: u64, limit: u64) -> Result<(), ErrorBody> {
    match needed > limit {
        true => Err(Refused::Large { what, needed, limit }.to_body()),
        false => Ok(()),
    }
}

struct Registry<'a> {
    web: &'a Web,
    reference: &'a Reference,
    /// A URL of it.
    server: Url,
    /// Whom we are there; what anybody may pull is asked for otherwise.
    credentials: Option<&'a Credentials>,
    login: Option<Login>,
}

impl Registry<'_> {
    /// Asks for something of the repository; logs in first, or asks for a token, if that is wanted.
    async fn get(&mut self, folder: &str, name: &str, headers: &HeaderMap) -> Result<Response, Broken> {
        let url = self.web.url(&self.reference.url(folder, name)).map_err(Over)?;
        let response = self.web.get(url.clone(), headers, self.login.as_ref()).await?;
        // Whoever it was passed on to gets no token.
        let asks = response.url().origin() == self.server.origin();
        if response.status() != StatusCode::UNAUTHORIZED || !asks {
            return Ok(response);
        }
        // There was none, or its time is over.
        let (login, is_token) = self.log_in(response.headers()).await?;
        self.login = Some(login);
        let response = self.web.get(url, headers, self.login.as_ref()).await?;
        let refused = match (response.status(), self.credentials) {
            (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, None) => Refused::Login,
            // Who gives tokens has taken the login.
            (StatusCode::UNAUTHORIZED, Some(_)) if !is_token => self.wrong_login(&self.server),
            (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, Some(_)) => Refused::NotAllowed {
                registry: self.reference.registry.clone(),
                repository: self.reference.repository.clone(),
            },
            _ => return Ok(response),
        };
        Err(Over(refused.to_body()))
    }

    fn wrong_login(&self, server: &Url) -> Refused {
        let host = server.host_str().unwrap_or_default();
        let server = server.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
        Refused::WrongLogin { registry: self.reference.registry.clone(), server }
    }

    /// What the registry wants to be shown, and whether that is a token.
    async fn log_in(&self, headers: &HeaderMap) -> Result<(Login, bool), Broken> {
        let challenges = headers.get_all(WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok());
        let chosen = challenge::choose(challenges, self.credentials.is_some());
        match (chosen.map_err(|refused| Over(refused.to_body()))?, self.credentials) {
            (Challenge::Bearer(realm), _) => Ok((self.token(&realm).await?, true)),
            (Challenge::Basic, Some(credentials)) => Ok((self.basic(credentials, &self.server)?, false)),
            (Challenge::Basic, None) => Err(Over(Refused::Login.to_body())),
        }
    }

    /// User and password, for one server alone.
    fn basic(&self, credentials: &Credentials, server: &Url) -> Result<Login, Broken> {
        // Whatever the operator wrote is visible by then; the error must not show it.
        let mut value = HeaderValue::try_from(credentials.basic().reveal())
            .map_err(|_| Over(self.wrong_login(server).to_body()))?;
        value.set_sensitive(true);
        Ok(Login { server: server.clone(), value })
    }

    /// Gets a token: that of the login, or the one that anybody gets. The server of tokens is told what is pulled, and
    /// nothing else.
    async fn token(&self, challenge: &Realm) -> Result<Login, Broken> {
        let over = |refused: Refused| Over(refused.to_body());
        let mut url = self.web.url(&challenge.realm).map_err(Over)?;
        {
            let mut query = url.query_pairs_mut();
            if let Some(service) = &challenge.service {
                query.append_pair("service", service);
            }
            query.append_pair("scope", &format!("repository:{}:pull", self.reference.repository));
        }
        let login = self.credentials.map(|credentials| self.basic(credentials, &url)).transpose()?;
        let response = self.web.get(url.clone(), &HeaderMap::new(), login.as_ref()).await?;
        match (response.status(), login) {
            (StatusCode::OK, _) => {}
            (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, None) => return Err(over(Refused::Login)),
            (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, Some(_)) => {
                return Err(over(self.wrong_login(&url)));
            }
            (other, _) => return Err(status(other)),
        }
        let no = |reason| over(Refused::Challenge { reason });
        let bytes = short(response, MAX_TOKEN).await?.ok_or_else(|| no("the token is too long"))?;
        let given = serde_json::from_slice::<Given>(&bytes).ok();
        let token = given.and_then(|given| given.token.or(given.access_token));
        let token = token.ok_or_else(|| no("it gave no token"))?;
        let value = HeaderValue::try_from(format!("Bearer {token}"));
        let mut value = value.map_err(|_| no("the token cannot be shown in a header"))?;
        value.set_sensitive(true);
        Ok(Login { server: self.server.clone(), value })
    }

    /// A manifest by tag or digest, with its digest.
    async fn manifest(&mut self, wanted: &str, size: Option<u64>) -> Result<(Vec<u8>, String), ErrorBody> {
        let headers = HeaderMap::from_iter([(ACCEPT, HeaderValue::from_static(manifest::ACCEPT))]);
        let bytes = patiently(async || {
            let read = async {
                let response = self.get("manifests", wanted, &headers).await?;
                match response.status() {
                    StatusCode::OK => short(response, MAX_MANIFEST).await,
                    other => Err(status(other)),
                }
            };
            (false, read.await)
        });
        let bytes = bytes.await?.ok_or_else(|| {
            let reason = format!("it is longer than {MAX_MANIFEST} bytes");
            Refused::Manifest { reason }.to_body()
        })?;
        let digest = format!("sha256:{}", hex(&Sha256::digest(&bytes)));
        let what = "the manifest";
        if is_digest(wanted) && wanted != digest {
            return Err(Refused::Digest { what, expected: wanted.to_owned(), found: digest }.to_body());
        }
        match size.filter(|size| *size != bytes.len() as u64) {
            Some(expected) => Err(Refused::Length { what, expected, found: bytes.len() as u64 }.to_body()),
            None => Ok((bytes, digest)),
        }
    }

    /// The file in the layers: each is unpacked as it comes, in a thread that stops where it is refused.
    async fn layers<O: Out + Send + 'static>(
        &mut self,
        layers: &[Layer],
        mut pick: Pick<O>,
    ) -> Result<(), ErrorBody> {
        for Layer { blob, gzip } in layers {
            let (sender, receiver) = mpsc::channel(WAITING);
            let (feed, gzip) = (Feed { receiver, now: Bytes::new() }, *gzip);
            let unpacking = tokio::task::spawn_blocking(move || {
                let read = match gzip {
                    true => pick.layer(MultiGzDecoder::new(feed)),
                    false => pick.layer(feed),
                };
                (pick, read)
            });
            let mut sink = Unpacked { sender, refused: false };
            let mut ask = BlobOf { registry: self, blob };
            let came = Transfer::of(&mut ask, &mut sink, blob).whole().await;
            let refused = sink.refused;
            drop(sink);
            let unpacked = unpacking.await.map_err(|e| {
                ErrorBody::new(ErrorCode::Internal, format!("the unpacking of a layer broke off: {e}"))
            });
            let (back, read) = unpacked?;
            pick = back;
            // A layer that did not come whole cannot be read to its end either: the cause is what broke it.
            if !refused {
                came?;
            }
            read.map_err(|e| e.to_body())?;
        }
        pick.end().map_err(|e| e.to_body())
    }
}

/// What servers of tokens answer.
#[derive(Deserialize)]
struct Given {
    token: Option<String>,
    access_token: Option<String>,
}

/// A blob of the repository.
struct BlobOf<'r, 'a> {
    registry: &'r mut Registry<'a>,
    blob: &'r Blob,
}

impl Ask for BlobOf<'_, '_> {
    async fn ask(&mut self, headers: &HeaderMap) -> Result<Response, Broken> {
        self.registry.get("blobs", &self.blob.digest, headers).await
    }
}

impl Out for Pipe {
    fn begin(&mut self, size: u64) -> io::Result<()> {
        Self::begin(self, size)
    }
}

/// Where the bytes of a layer go.
struct Unpacked {
    sender: mpsc::Sender<Bytes>,
    /// Nobody reads on.
    refused: bool,
}

impl Sink for Unpacked {
    fn begin(&mut self, _size: u64) -> Result<(), ErrorBody> {
        Ok(())
    }

    async fn bytes(&mut self, bytes: Bytes) -> Result<(), ErrorBody> {
        self.sender.send(bytes).await.map_err(|e| {
            self.refused = true;
            gone(&io::Error::other(e))
        })
    }
}

/// The bytes of a layer, for who unpacks it.
struct Feed {
    receiver: mpsc::Receiver<Bytes>,
    now: Bytes,
}

impl Read for Feed {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.now.is_empty() {
            match self.receiver.blocking_recv() {
                Some(bytes) => self.now = bytes,
                None => return Ok(0),
            }
        }
        let read = self.now.len().min(into.len());
        self.now.copy_to_slice(&mut into[..read]);
        Ok(read)
    }
}
