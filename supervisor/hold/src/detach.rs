//! Leaving the daemon: a fork with a session of its own, and a pipe over which it says how the set-up went.

use std::fs::File;
use std::io::{Read, Write};
use std::process::ExitCode;

use rustix::pipe::PipeFlags;

use crate::record::SpawnError;
use crate::step;

/// What the fork answers when the VMM runs.
const READY: &[u8] = b"ready";

/// Which of the two processes this is.
pub enum Side {
    /// The one that the daemon waits for.
    Launcher(Wait),
    /// The one that stays.
    Holder(Report),
}

/// The launcher's end of the pipe.
pub struct Wait(File);

/// The holder's end of the pipe.
pub struct Report(File);

/// Forks. The child has no tie to the daemon but the pipe and its standard input, which holds the lock.
pub fn detach() -> Result<Side, SpawnError> {
    let (read, write) = step("make a pipe", rustix::pipe::pipe_with(PipeFlags::CLOEXEC))?;
    // SAFETY: this process has one thread, so the child may do whatever the parent may.
    let pid = unsafe { libc::fork() };
    match pid {
        -1 => step("fork", Err(std::io::Error::last_os_error())),
        0 => {
            drop(read);
            step("make a session", rustix::process::setsid())?;
            Ok(Side::Holder(Report(write.into())))
        }
        _ => Ok(Side::Launcher(Wait(read.into()))),
    }
}

impl Wait {
    /// Waits for the end of the set-up and passes its outcome on.
    pub fn run(mut self) -> ExitCode {
        let mut said = Vec::new();
        match self.0.read_to_end(&mut said) {
            Ok(_) if said == READY => ExitCode::SUCCESS,
            Ok(0) => complain(&SpawnError {
                step: "wait for the set-up".to_owned(),
                errno: 0,
                text: "the holder ended without a word".to_owned(),
            }),
            Ok(_) => {
                // Nobody reads: the status says it too.
                let _ = std::io::stderr().write_all(&said);
                ExitCode::FAILURE
            }
            Err(error) => complain(&SpawnError {
                step: "wait for the set-up".to_owned(),
                errno: error.raw_os_error().unwrap_or(0),
                text: error.to_string(),
            }),
        }
    }
}

impl Report {
    /// The VMM runs.
    pub fn ready(mut self) {
        // The launcher is gone with its daemon: the VMM runs all the same and will be adopted.
        let _ = self.0.write_all(READY);
    }

    /// A step failed and nothing runs.
    pub fn failed(mut self, error: &SpawnError) -> ExitCode {
        let text = serde_json::to_vec(error).unwrap_or_default();
        let _ = self.0.write_all(&text);
        ExitCode::FAILURE
    }
}

/// Writes the failed step to stderr, as the daemon expects it.
pub fn complain(error: &SpawnError) -> ExitCode {
    let text = serde_json::to_vec(error).unwrap_or_default();
    let _ = std::io::stderr().write_all(&text);
    ExitCode::FAILURE
}
