//! The process that fetches: it has no rights and no files, only the network and three pipes.
//!
//! A transfer that breaks is gone on with where it broke (`Range`), if the server says by an entity tag or a date that
//! the content is still the same.

use std::io::{self, Read as _, Write as _};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use drover_schemas::{ErrorBody, ErrorCode};
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::header::{
    CONTENT_ENCODING, CONTENT_RANGE, ETAG, HeaderMap, IF_RANGE, LAST_MODIFIED, LOCATION, RANGE,
};
use reqwest::{Certificate, Client, Response, StatusCode, Url, redirect};

use super::policy::{UrlPolicy, UrlRefused};
use super::{Begin, Failed, Job};
use crate::chain;

/// What the program is called with to be the worker.
pub const ARGUMENT: &str = "--fetch-image";
/// Servers that pass on to others, one after another.
const REDIRECTS: usize = 5;
/// Attempts in a row that bring nothing.
const ATTEMPTS: u32 = 4;
/// Pause before a further attempt, times their number.
const PAUSE: Duration = Duration::from_millis(500);
/// How long a server may take to accept a connection.
const CONNECT: Duration = Duration::from_secs(10);
/// How long a server may be silent, in milliseconds.
const SILENCE_MS: u64 = 20_000;
/// In each such time a server sends at least [`LEAST`].
const WINDOW: Duration = Duration::from_secs(60);
/// Bytes of a window.
const LEAST: u64 = 256 * 1024;
/// A job is never longer.
const MAX_JOB: u64 = 64 * 1024;

/// Fetches what standard input asks for. The process ends with what it answers.
#[must_use]
pub fn main() -> u8 {
    let failed = match job() {
        Ok(job) => run(&job).err(),
        Err(error) => Some(error),
    };
    let Some(error) = failed else { return 0 };
    let word = serde_json::to_string(&Failed { error }).unwrap_or_default();
    // Nobody may be there to hear it.
    let _ = writeln!(io::stderr(), "{word}");
    1
}

fn job() -> Result<Job, ErrorBody> {
    let mut text = Vec::new();
    let read = io::stdin().take(MAX_JOB).read_to_end(&mut text);
    let job = read.map_err(io::Error::other).and_then(|_| Ok(serde_json::from_slice(&text)?));
    job.map_err(|e| ErrorBody::new(ErrorCode::Internal, format!("the job cannot be read: {e}")))
}

fn run(job: &Job) -> Result<(), ErrorBody> {
    let internal = |what: &str, e: &dyn std::error::Error| {
        ErrorBody::new(ErrorCode::Internal, format!("{what}: {}", chain(e)))
    };
    // A second one is refused, which this process never sees.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|e| internal("start the runtime", &e))?;
    runtime.block_on(async {
        let client = client(job).map_err(|e| internal("prepare", &*e))?;
        Transfer { job, client, offset: 0, size: None, validator: None }.whole().await
    })
}

fn client(job: &Job) -> Result<Client, Box<dyn std::error::Error + Send + Sync>> {
    let mut builder = Client::builder()
        .https_only(true)
        .no_proxy()
        // Each is looked at before it is followed.
        .redirect(redirect::Policy::none())
        .connect_timeout(CONNECT)
        .read_timeout(Duration::from_millis(job.policy.silence_ms.unwrap_or(SILENCE_MS)))
        .dns_resolver(Arc::new(Checked(job.policy.clone())));
    if let Some(pem) = &job.ca_pem {
        builder = builder.tls_certs_merge(Certificate::from_pem_bundle(pem.as_bytes())?);
    }
    Ok(builder.build()?)
}

/// Gives the addresses of a name if each may be connected to: one bad among good ones is a name not to be trusted.
struct Checked(UrlPolicy);

impl Resolve for Checked {
    fn resolve(&self, name: Name) -> Resolving {
        let (name, policy) = (name.as_str().to_owned(), self.0.clone());
        Box::pin(async move {
            let found: Vec<SocketAddr> = tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            found.iter().try_for_each(|found| policy.address(&name, found.ip()))?;
            Ok(Box::new(found.into_iter()) as Addrs)
        })
    }
}

/// Why an attempt did not bring the rest.
enum Broken {
    /// Another attempt may go on.
    MayPass(ErrorBody),
    /// It is of no use.
    Over(ErrorBody),
}

use Broken::{MayPass, Over};

struct Transfer<'a> {
    job: &'a Job,
    client: Client,
    /// Bytes that were written.
    offset: u64,
    size: Option<u64>,
    /// By what the server knows that the content is the same.
    validator: Option<String>,
}

impl Transfer<'_> {
    /// Attempts until all is there, or several brought nothing.
    async fn whole(mut self) -> Result<(), ErrorBody> {
        let mut in_vain = 0;
        loop {
            let before = self.offset;
            let error = match self.attempt().await {
                Ok(()) => return Ok(()),
                Err(Over(error)) => return Err(error),
                Err(MayPass(error)) => error,
            };
            in_vain = if self.offset > before { 1 } else { in_vain + 1 };
            if in_vain >= ATTEMPTS {
                return Err(error);
            }
            tokio::time::sleep(PAUSE * in_vain).await;
        }
    }

    async fn attempt(&mut self) -> Result<(), Broken> {
        let response = self.ask().await?;
        let mut response = self.begins(response)?;
        let size = self.size.unwrap_or_default();
        let (mut window, mut come) = (Instant::now(), 0);
        while let Some(bytes) = response.chunk().await.map_err(|e| MayPass(server(&e)))? {
            if self.offset + bytes.len() as u64 > size {
                let text = format!("the server sent more than the {size} bytes that it had announced");
                return Err(Over(ErrorBody::new(ErrorCode::InvalidArgument, text)));
            }
            io::stdout().write_all(&bytes).map_err(|e| Over(gone(&e)))?;
            self.offset += bytes.len() as u64;
            come += bytes.len() as u64;
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
        io::stdout().flush().map_err(|e| Over(gone(&e)))
    }

    /// The answer of the server that has the content.
    async fn ask(&self) -> Result<Response, Broken> {
        let mut url = self.job.policy.url(&self.job.url).map_err(|e| Over(refused(&e)))?;
        for _ in 0..=REDIRECTS {
            let mut request = self.client.get(url.clone());
            if let Some(validator) = self.validator.as_ref().filter(|_| self.offset > 0) {
                request =
                    request.header(RANGE, format!("bytes={}-", self.offset)).header(IF_RANGE, validator);
            }
            let response = request.send().await.map_err(|e| broken(&e))?;
            if !response.status().is_redirection() {
                return Ok(response);
            }
            url = target(&url, response.headers()).map_err(Over)?;
            self.job.policy.check(&url).map_err(|e| Over(refused(&e)))?;
        }
        let text = format!("more than {REDIRECTS} servers passed it on to others");
        Err(Over(ErrorBody::new(ErrorCode::InvalidArgument, text)))
    }

    /// Whether the answer begins where the last one ended; tells the length once.
    fn begins(&mut self, response: Response) -> Result<Response, Broken> {
        let status = response.status();
        let from = match status {
            StatusCode::OK => 0,
            StatusCode::PARTIAL_CONTENT => first_of_range(response.headers()).unwrap_or(u64::MAX),
            _ => {
                let text = format!("the server answered {status}");
                let pass = status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS;
                return Err(match pass {
                    true => MayPass(ErrorBody::new(ErrorCode::Unavailable, text)),
                    false if status == StatusCode::NOT_FOUND || status == StatusCode::GONE => {
                        Over(ErrorBody::new(ErrorCode::NotFound, text))
                    }
                    false => Over(ErrorBody::new(ErrorCode::InvalidArgument, text)),
                });
            }
        };
        let encoded = response.headers().get(CONTENT_ENCODING).is_some_and(|coding| coding != "identity");
        let (Some(length), false) = (response.content_length(), encoded) else {
            let text = "the server does not say how long the content is; only files are fetched";
            return Err(Over(ErrorBody::new(ErrorCode::Unsupported, text)));
        };
        match self.size {
            None if from == 0 => {
                if length > self.job.max_bytes {
                    let text = format!(
                        "the image has {length} bytes, and at most {} are fetched",
                        self.job.max_bytes
                    );
                    let error = ErrorBody::new(ErrorCode::ResourceExhausted, text);
                    return Err(Over(error.with("resource", "images.urls.max_size").with("needed", length)));
                }
                self.size = Some(length);
                self.validator = validator(response.headers());
                let line = serde_json::to_string(&Begin { size: length }).unwrap_or_default();
                writeln!(io::stdout(), "{line}").map_err(|e| Over(gone(&e)))?;
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

/// Where a redirect leads.
fn target(from: &Url, headers: &HeaderMap) -> Result<Url, ErrorBody> {
    let to = headers.get(LOCATION).and_then(|to| to.to_str().ok()).and_then(|to| from.join(to).ok());
    to.ok_or_else(|| ErrorBody::new(ErrorCode::InvalidArgument, "the server passed it on to what is no url"))
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

fn refused(error: &UrlRefused) -> ErrorBody {
    ErrorBody::new(ErrorCode::PermissionDenied, error.to_string())
}

/// A connection failed; one to an address that is refused will not do better.
fn broken(error: &reqwest::Error) -> Broken {
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        if let Some(reason) = inner.downcast_ref::<UrlRefused>() {
            return Over(refused(reason));
        }
        cause = inner.source();
    }
    MayPass(server(error))
}

/// Without the URL, whose query may hold a secret.
fn server(error: &reqwest::Error) -> ErrorBody {
    let what = if error.is_timeout() { "the server is silent" } else { "speak to the server" };
    let why = std::error::Error::source(error).map_or_else(String::new, |why| format!(": {}", chain(why)));
    let text = format!("{what}{why}");
    let code = if error.is_timeout() { ErrorCode::DeadlineExceeded } else { ErrorCode::Unavailable };
    ErrorBody::new(code, text)
}

fn gone(error: &io::Error) -> ErrorBody {
    ErrorBody::new(ErrorCode::Internal, format!("nobody takes the bytes: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_name_that_leads_to_the_host_itself_is_not_resolved() {
        let found = Checked(UrlPolicy::default()).resolve("localhost".parse().unwrap()).await;
        let error = found.err().unwrap();
        assert!(matches!(error.downcast_ref(), Some(UrlRefused::Address { .. })), "{error}");
        let private = ["127.0.0.0/8", "::1/128"].map(|range| range.parse().unwrap()).to_vec();
        let allowed = Checked(UrlPolicy { private, ..UrlPolicy::default() });
        assert!(allowed.resolve("localhost".parse().unwrap()).await.is_ok());
    }

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
