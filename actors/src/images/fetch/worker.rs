//! The process that fetches: it has no rights and no files, only the network and three pipes.

use std::io::{self, Read as _, Write as _};

use bytes::Bytes;
use drover_schemas::{ErrorBody, ErrorCode};
use reqwest::Response;
use reqwest::header::HeaderMap;

use super::oci::pull::pull;
use super::transfer::{Ask, Sink, Transfer};
use super::web::{Broken, Web, gone};
use super::{Begin, Failed, Job, What};
use crate::chain;

/// What the program is called with to be the worker.
pub const ARGUMENT: &str = "--fetch-image";
/// A job is never longer.
const MAX_JOB: u64 = 64 * 1024;

/// Fetches what standard input asks for. The process ends with what it answers.
#[must_use]
pub fn main() -> u8 {
    // Others run as nobody too, and are not to look into its memory.
    let _ = nix::sys::prctl::set_dumpable(false);
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
        let web = Web::new(job).map_err(|e| internal("prepare", &*e))?;
        match &job.what {
            What::Url(url) => {
                let (mut page, mut pipe) = (Page { web: &web, url }, Pipe { manifest: None });
                Transfer::new(&mut page, &mut pipe, job.max_bytes).whole().await?;
                pipe.flush().map_err(|e| gone(&e))
            }
            What::Oci(reference) => pull(&web, reference, job.login.as_ref(), job.max_bytes).await,
        }
    })
}

/// What a URL leads to.
struct Page<'a> {
    web: &'a Web,
    url: &'a str,
}

impl Ask for Page<'_> {
    async fn ask(&mut self, headers: &HeaderMap) -> Result<Response, Broken> {
        let url = self.web.url(self.url).map_err(Broken::Over)?;
        self.web.get(url, headers, None).await
    }
}

/// Standard output, where the daemon reads.
#[derive(Debug)]
pub(super) struct Pipe {
    /// What the daemon is told of where the bytes come from.
    pub(super) manifest: Option<String>,
}

impl Pipe {
    /// Tells how many bytes follow.
    pub(super) fn begin(&self, size: u64) -> io::Result<()> {
        let line = serde_json::to_string(&Begin { size, manifest: self.manifest.clone() })?;
        writeln!(io::stdout(), "{line}")
    }
}

impl io::Write for Pipe {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        io::stdout().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stdout().flush()
    }
}

impl Sink for Pipe {
    fn begin(&mut self, size: u64) -> Result<(), ErrorBody> {
        Self::begin(self, size).map_err(|e| gone(&e))
    }

    async fn bytes(&mut self, bytes: Bytes) -> Result<(), ErrorBody> {
        self.write_all(&bytes).map_err(|e| gone(&e))
    }
}
