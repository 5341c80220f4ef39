//! Requests with `https`, by the policy: each host and address is checked, also of what a server passes them on to.

use std::error::Error;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use drover_schemas::{ErrorBody, ErrorCode};
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue, LOCATION};
use reqwest::{Certificate, Client, Response, StatusCode, Url, redirect};

use super::Job;
use super::policy::{UrlPolicy, UrlRefused};
use crate::chain;

/// Servers that pass on to others, one after another.
const REDIRECTS: usize = 5;
/// How long a server may take to accept a connection.
const CONNECT: Duration = Duration::from_secs(10);
/// How long a server may be silent, in milliseconds.
const SILENCE_MS: u64 = 20_000;

/// Why an attempt did not bring what was asked for.
pub(super) enum Broken {
    /// Another attempt may go on.
    MayPass(ErrorBody),
    /// It is of no use.
    Over(ErrorBody),
}

use Broken::{MayPass, Over};

/// A way out, for requests by the policy.
pub(super) struct Web {
    client: Client,
    pub(super) policy: UrlPolicy,
}

/// What a server is shown, and no other one.
pub(super) struct Login {
    /// Any URL of the server.
    pub(super) server: Url,
    /// The value of `Authorization`.
    pub(super) value: HeaderValue,
}

impl Web {
    pub(super) fn new(job: &Job) -> Result<Self, Box<dyn Error + Send + Sync>> {
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
        Ok(Self { client: builder.build()?, policy: job.policy.clone() })
    }

    /// A URL that may be asked for.
    pub(super) fn url(&self, text: &str) -> Result<Url, ErrorBody> {
        self.policy.url(text).map_err(|e| refused(&e))
    }

    /// The answer of the server that has what is asked for, whatever it is.
    pub(super) async fn get(
        &self,
        mut url: Url,
        headers: &HeaderMap,
        login: Option<&Login>,
    ) -> Result<Response, Broken> {
        for _ in 0..=REDIRECTS {
            let mut request = self.client.get(url.clone()).headers(headers.clone());
            if let Some(login) = login.filter(|login| login.server.origin() == url.origin()) {
                request = request.header(AUTHORIZATION, login.value.clone());
            }
            let response = request.send().await.map_err(|e| broken(&e))?;
            if !response.status().is_redirection() {
                return Ok(response);
            }
            url = target(&url, response.headers()).map_err(Over)?;
            self.policy.check(&url).map_err(|e| Over(refused(&e)))?;
        }
        let text = format!("more than {REDIRECTS} servers passed it on to others");
        Err(Over(ErrorBody::new(ErrorCode::InvalidArgument, text)))
    }
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

/// What an answer without a content means.
pub(super) fn status(status: StatusCode) -> Broken {
    let text = format!("the server answered {status}");
    let pass = status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS;
    match pass {
        true => MayPass(ErrorBody::new(ErrorCode::Unavailable, text)),
        false if status == StatusCode::NOT_FOUND || status == StatusCode::GONE => {
            Over(ErrorBody::new(ErrorCode::NotFound, text))
        }
        false => Over(ErrorBody::new(ErrorCode::InvalidArgument, text)),
    }
}

/// Where a redirect leads.
fn target(from: &Url, headers: &HeaderMap) -> Result<Url, ErrorBody> {
    let to = headers.get(LOCATION).and_then(|to| to.to_str().ok()).and_then(|to| from.join(to).ok());
    to.ok_or_else(|| ErrorBody::new(ErrorCode::InvalidArgument, "the server passed it on to what is no url"))
}

fn refused(error: &UrlRefused) -> ErrorBody {
    ErrorBody::new(ErrorCode::PermissionDenied, error.to_string())
}

/// A connection failed; one to an address that is refused will not do better.
fn broken(error: &reqwest::Error) -> Broken {
    let mut cause = Error::source(error);
    while let Some(inner) = cause {
        if let Some(reason) = inner.downcast_ref::<UrlRefused>() {
            return Over(refused(reason));
        }
        cause = inner.source();
    }
    MayPass(server(error))
}

/// Without the URL, whose query may hold a secret.
pub(super) fn server(error: &reqwest::Error) -> ErrorBody {
    let what = if error.is_timeout() { "the server is silent" } else { "speak to the server" };
    let why = Error::source(error).map_or_else(String::new, |why| format!(": {}", chain(why)));
    let text = format!("{what}{why}");
    let code = if error.is_timeout() { ErrorCode::DeadlineExceeded } else { ErrorCode::Unavailable };
    ErrorBody::new(code, text)
}

/// The daemon does not listen any more.
pub(super) fn gone(error: &io::Error) -> ErrorBody {
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
}
