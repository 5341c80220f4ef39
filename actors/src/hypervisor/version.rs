//! Which VMM there is: asked once at start, and refused with advice when it will not do.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;

/// The oldest major version of Cloud Hypervisor that drover drives.
pub const OLDEST: u32 = 50;
const DEADLINE: Duration = Duration::from_secs(5);

/// Why a VMM will not do.
#[derive(Debug, thiserror::Error)]
pub enum VersionError {
    /// There is no such program.
    #[error(
        "no VMM found: looked at {}; install cloud-hypervisor v{OLDEST} or newer, or name one with `vmm.path`",
        looked.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
    )]
    Missing {
        /// The paths that were tried.
        looked: Vec<PathBuf>,
    },
    /// It cannot be executed.
    #[error("cannot run {path:?}; is it an executable for this machine?")]
    Run {
        /// The program.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It did not answer.
    #[error("{path:?} --version did not end within {} s", DEADLINE.as_secs())]
    Silent {
        /// The program.
        path: PathBuf,
    },
    /// What it said is not a version.
    #[error("{path:?} --version said {said:?}, which is no version of cloud-hypervisor")]
    NotUnderstood {
        /// The program.
        path: PathBuf,
        /// Its first line.
        said: String,
    },
    /// It is too old.
    #[error("{path:?} is {version}; drover needs v{OLDEST} or newer")]
    TooOld {
        /// The program.
        path: PathBuf,
        /// What it is.
        version: VmmVersion,
    },
}

/// Program and version of a VMM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmmVersion {
    /// Name of the program: `cloud-hypervisor` or `softvmm`.
    pub program: String,
    /// First number of the version of Cloud Hypervisor that it is or stands for.
    pub major: u32,
    /// The version as it writes it.
    pub text: String,
}

impl VmmVersion {
    /// The stand-in that emulates in software.
    #[must_use]
    pub fn is_softvmm(&self) -> bool {
        self.program == "softvmm" || self.text.ends_with("-softvmm")
    }
}

impl fmt::Display for VmmVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.program, self.text)
    }
}

/// The first of `names` that exists: as a path, or in the directories of `search_path` (as in `PATH`).
///
/// # Errors
/// [`VersionError::Missing`] with every place that was tried.
pub fn find(names: &[PathBuf], search_path: &str) -> Result<PathBuf, VersionError> {
    let mut looked = Vec::new();
    for name in names {
        if name.components().count() > 1 {
            looked.push(name.clone());
        } else {
            looked.extend(
                search_path.split(':').filter(|dir| !dir.is_empty()).map(|dir| Path::new(dir).join(name)),
            );
        }
    }
    match looked.iter().find(|path| path.is_file()) {
        Some(found) => Ok(found.clone()),
        None => Err(VersionError::Missing { looked }),
    }
}

/// Asks `path` for its version and checks that drover can drive it.
///
/// # Errors
/// It cannot be run, does not answer, or is too old.
pub async fn check(path: &Path) -> Result<VmmVersion, VersionError> {
    if !path.is_file() {
        return Err(VersionError::Missing { looked: vec![path.to_owned()] });
    }
    let mut command = Command::new(path);
    command.arg("--version").stdin(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    let output = match tokio::time::timeout(DEADLINE, command.output()).await {
        Err(_) => return Err(VersionError::Silent { path: path.to_owned() }),
        Ok(Err(source)) => return Err(VersionError::Run { path: path.to_owned(), source }),
        Ok(Ok(output)) => output,
    };
    let said = String::from_utf8_lossy(&output.stdout[..output.stdout.len().min(1024)]).into_owned();
    let Some(version) = parse(&said) else {
        let said = said.lines().next().unwrap_or_default().to_owned();
        return Err(VersionError::NotUnderstood { path: path.to_owned(), said });
    };
    if version.major < OLDEST {
        return Err(VersionError::TooOld { path: path.to_owned(), version });
    }
    Ok(version)
}

/// `cloud-hypervisor v53.0.0`, `cloud-hypervisor v54.0-12-gabc-dirty`, `softvmm v53.0.0 …`.
fn parse(said: &str) -> Option<VmmVersion> {
    let mut words = said.lines().next()?.split_ascii_whitespace();
    let (program, text) = (words.next()?, words.next()?);
    if !matches!(program, "cloud-hypervisor" | "softvmm") {
        return None;
    }
    let major = text.trim_start_matches('v').split(['.', '-']).next()?.parse().ok()?;
    Some(VmmVersion { program: program.to_owned(), major, text: text.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_the_programs_write_them() {
        let real = parse("cloud-hypervisor v53.0.0\nMigration Protocol Versions: 0\n").unwrap();
        assert_eq!((real.major, real.text.as_str(), real.is_softvmm()), (53, "v53.0.0", false));
        assert_eq!(parse("cloud-hypervisor v54.0-12-gae44c29-dirty").unwrap().major, 54);
        assert!(parse("softvmm v53.0.0 (software emulation)").unwrap().is_softvmm());
        assert!(parse("cloud-hypervisor v53.0.0-softvmm").unwrap().is_softvmm());
        assert_eq!(parse("QEMU emulator version 7.2"), None);
        assert_eq!(parse(""), None);
    }

    #[tokio::test]
    async fn a_missing_vmm_is_refused_with_every_place_that_was_tried() {
        let error = find(&["/nonexistent/ch".into(), "no-such-vmm".into()], "/bin:/usr/bin").unwrap_err();
        let text = error.to_string();
        for part in ["/nonexistent/ch", "/bin/no-such-vmm", "/usr/bin/no-such-vmm", "install"] {
            assert!(text.contains(part), "{text}");
        }
        assert!(matches!(check(Path::new("/nonexistent/ch")).await, Err(VersionError::Missing { .. })));
    }

    #[tokio::test]
    async fn an_old_vmm_is_refused_by_name_and_version() {
        use std::os::unix::fs::PermissionsExt;
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("vmm");
        std::fs::write(&path, "#!/bin/sh\necho cloud-hypervisor v40.0\n").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        let error = check(&path).await.unwrap_err();
        assert!(error.to_string().contains("cloud-hypervisor v40.0; drover needs v50"), "{error}");
    }
}
