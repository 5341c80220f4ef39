//! The program of the next agent: received beside the one that runs, looked at, and put in its place.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use drover_schemas::guest::{ExecRequest, MAX_PROGRAM, PutRequest, UpgradeRequest};
use drover_schemas::{ErrorBody, ErrorCode};
use rustix::fs::{AtFlags, CWD, StatxAttributes, StatxFlags, statx};
use tokio::time::{Duration, sleep};

use crate::conn::Stream;
use crate::policy::Reach;
use crate::program::{self, ended};
use crate::verbs::{Effect, put};
use crate::{Agent, facts};

/// How long a program may take to say its version.
const SAYS_MS: u64 = 5_000;
/// The most of what it says, in bytes.
const SAYS: usize = 256;
/// How often it is tried to start, while a command that is just being started holds the file open for writing.
const TRIES: u32 = 5;
const MODE: u32 = 0o755;

/// A program under a name of its own, which is removed unless the program is placed.
#[derive(Debug)]
pub(super) struct Program {
    next: PathBuf,
    place: PathBuf,
    is_placed: bool,
}

fn refused(text: String) -> ErrorBody {
    ErrorBody::new(ErrorCode::InvalidArgument, text)
}

/// Whether something is mounted at the name itself. Where the kernel cannot tell, the rename will.
fn is_mount(path: &Path) -> bool {
    let stat = statx(CWD, path, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::empty());
    stat.is_ok_and(|stat| stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
}

fn unplaced(place: &Path, error: &std::io::Error) -> ErrorBody {
    let text = format!("the agent's program {} cannot be replaced: {error}", place.display());
    ErrorBody::new(ErrorCode::GuestError, text).with("cause", "upgrade_failed")
}

impl Program {
    /// Takes the program from the stream and hears which version it says it is.
    ///
    /// # Errors
    /// `invalid_argument` for what is no agent of this machine or not the one that was announced, what can go wrong with
    /// a file, and the end of the stream; nothing is left of it.
    pub(super) async fn receive(
        agent: &Agent,
        stream: &Stream,
        request: &UpgradeRequest,
    ) -> Result<Self, ErrorBody> {
        if request.size_bytes == 0 || request.size_bytes > MAX_PROGRAM {
            return Err(refused(format!("size_bytes is {}; use 1 to {MAX_PROGRAM}", request.size_bytes))
                .with("field", "size_bytes"));
        }
        let place = facts::program().map_err(|e| unplaced(Path::new("/proc/self/exe"), &e))?;
        if is_mount(&place) {
            let text = format!(
                "the agent's program {} is a mount of its own, and cannot be replaced from within the guest: replace \
                 what is mounted there",
                place.display()
            );
            return Err(ErrorBody::new(ErrorCode::Unsupported, text));
        }
        let name = place.file_name().unwrap_or_default().to_string_lossy();
        let next = place.with_file_name(format!(".{name}.next"));
        let program = Self { next, place, is_placed: false };
        let file = PutRequest {
            path: program.next.display().to_string(),
            size: request.size_bytes,
            mode: Some(MODE),
            sha256: Some(request.sha256.clone()),
            ..PutRequest::default()
        };
        // Not dropped in its midst: the file would be placed behind the back of whoever removes it.
        put::run(agent, stream, file, &Reach::default(), &Effect::default()).await?;
        let says = tokio::select! {
            biased;
            ending = stream.ending() => return Err(ending.error()),
            says = program.version() => says?,
        };
        if request.version.as_ref().is_some_and(|wanted| *wanted != says) {
            let wanted = request.version.as_deref().unwrap_or_default();
            return Err(refused(format!("the program says that it is version {says}, not {wanted}"))
                .with("field", "version"));
        }
        Ok(program)
    }

    /// Where it lies for now.
    pub(super) fn path(&self) -> &Path {
        &self.next
    }

    /// What the program says it is, if it runs here at all.
    async fn version(&self) -> Result<String, ErrorBody> {
        let request = ExecRequest {
            argv: vec![self.next.display().to_string(), "--version".into()],
            timeout_ms: Some(SAYS_MS),
            ..ExecRequest::default()
        };
        let mut tries = 0;
        let ran = loop {
            tries += 1;
            match program::run(&request, SAYS).await {
                Ok(ran) => break ran,
                Err(_) if tries < TRIES => sleep(Duration::from_millis(50)).await,
                Err(error) => {
                    return Err(refused(format!(
                        "the program does not run in this guest: {}",
                        error.message
                    )));
                }
            }
        };
        let said = ran.stdout.head();
        match said.trim_end().strip_prefix("drover-agent ") {
            Some(version) if ran.exit.code == Some(0) && !version.is_empty() && !version.contains('\n') => {
                Ok(version.to_owned())
            }
            _ if ran.timed_out => Err(refused(format!(
                "the program is no drover-agent: it did not say its version within {SAYS_MS} ms"
            ))),
            _ => Err(refused(format!(
                "the program is no drover-agent of this machine: asked for its version it {} and said {:?}",
                ended(ran.exit),
                said.chars().take(SAYS / 2).collect::<String>()
            ))),
        }
    }

    /// Puts it where the old one is, for the next start of the agent.
    ///
    /// # Errors
    /// `guest_error`; the new agent serves all the same, until the next start.
    pub(super) fn place(mut self) -> Result<PathBuf, ErrorBody> {
        fs::rename(&self.next, &self.place).map_err(|e| unplaced(&self.place, &e))?;
        self.is_placed = true;
        // The rename itself must survive a crash.
        let folder = self.place.parent().unwrap_or(Path::new("/"));
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(|e| unplaced(&self.place, &e))?;
        Ok(self.place.clone())
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        if !self.is_placed {
            let _ = fs::remove_file(&self.next);
        }
    }
}
