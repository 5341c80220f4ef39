//! Programs of the machine that something is held against.

use std::ffi::OsStr;
use std::io;
use std::process::Stdio;

use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

/// A program that did not do it.
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    /// It is not there, or could not be run to its end.
    #[error("run {program}")]
    Run {
        /// Which.
        program: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It failed.
    #[error("{program} ended with {status}: {said}")]
    Failed {
        /// Which.
        program: &'static str,
        /// How.
        status: std::process::ExitStatus,
        /// The first line that it said.
        said: String,
    },
}

/// Runs a program to its end, with `input` if it reads any; gives what it wrote.
///
/// # Errors
/// [`ProgramError`]
pub async fn run<S: AsRef<OsStr>>(
    program: &'static str,
    args: impl IntoIterator<Item = S>,
    input: Option<&str>,
) -> Result<String, ProgramError> {
    let failed = |source| ProgramError::Run { program, source };
    let mut command = Command::new(program);
    command.args(args).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command.stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() });
    let mut child = command.spawn().map_err(failed)?;
    if let (Some(mut stdin), Some(input)) = (child.stdin.take(), input) {
        // One that fails before it has read everything says why.
        let _ = stdin.write_all(input.as_bytes()).await;
    }
    let output = child.wait_with_output().await.map_err(failed)?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr).lines().next().unwrap_or("nothing").to_owned();
    Err(ProgramError::Failed { program, status: output.status, said })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_program_is_told_and_heard_and_its_failure_is_named() {
        assert_eq!(run("cat", ["-"], Some("text")).await.unwrap(), "text");
        let error = run("cat", ["/nowhere/at/all"], None).await.unwrap_err().to_string();
        assert!(error.starts_with("cat ended with") && error.contains("/nowhere/at/all"), "{error}");
        let error = run("drover-no-such-program", [""; 0], None).await.unwrap_err();
        assert!(matches!(error, ProgramError::Run { .. }), "{error}");
    }
}
