//! Why a VM ended or did not boot: from what the processes left behind to the contract's typed cause.
//!
//! Pure. The texts matched here are those of Cloud Hypervisor v53; an error that matches none is a
//! `vmm_error` with the VMM's own words as evidence, never a guess.

use drover_schemas::body::status::{Cause, CauseKind};

use super::api::{ApiError, ApiErrorKind};
use super::process::LaunchError;
use super::record::ExitRecord;
use crate::chain::chain;

/// The longest piece of console or stderr in a cause, in bytes.
pub const TAIL_MAX: usize = 4096;

/// What was at hand when the cause was made.
#[derive(Debug, Clone, Copy, Default)]
pub struct Evidence<'a> {
    /// The end of the VMM's stdout and stderr.
    pub stderr_tail: &'a str,
    /// The end of the serial console; empty where policy forbids it.
    pub console_tail: &'a str,
    /// How many processes of the VM the kernel killed for memory.
    pub oom_kills: Option<u64>,
    /// What was being done, as `vm.boot` or `stop`.
    pub step: &'a str,
}

impl Evidence<'_> {
    fn attach(&self, mut cause: Cause) -> Cause {
        for (key, text) in [("stderr_tail", self.stderr_tail), ("console_tail", self.console_tail)] {
            let text = tail(text).trim();
            if !text.is_empty() {
                cause = cause.with(key, text);
            }
        }
        if let Some(kills) = self.oom_kills.filter(|&kills| kills > 0) {
            cause = cause.with("oom_kills", kills);
        }
        if !self.step.is_empty() {
            cause = cause.with("step", self.step);
        }
        cause
    }
}

fn tail(text: &str) -> &str {
    &text[text.ceil_char_boundary(text.len().saturating_sub(TAIL_MAX))..]
}

/// The cause of an end of the VMM that nobody asked for.
#[must_use]
pub fn of_exit(exit: &ExitRecord, evidence: &Evidence<'_>) -> Cause {
    const SIGKILL: i32 = 9;
    let cause = if let Some(error) = &exit.spawn_error {
        Cause::new(CauseKind::VmmSpawn, format!("cannot {}: {}", error.step, error.text))
            .with("errno", error.errno)
    } else if let Some(signal) = exit.signal {
        let killed = signal == SIGKILL && evidence.oom_kills.is_some_and(|kills| kills > 0);
        let (kind, message) = if killed {
            (CauseKind::OutOfMemory, "the kernel killed the VMM at its memory limit".to_owned())
        } else {
            (CauseKind::VmmSignal, format!("signal {} ended the VMM", signal_name(signal)))
        };
        Cause::new(kind, message).with("signal", signal).with("core_dumped", exit.core_dumped)
    } else if let Some(code) = exit.code {
        let from_text = known(evidence.stderr_tail);
        let kind = from_text.filter(|_| code != 0).unwrap_or(CauseKind::VmmExit);
        Cause::new(kind, format!("the VMM exited with status {code}")).with("exit_code", code)
    } else {
        let why = exit.unrecorded.as_deref().unwrap_or("its exit record is incomplete");
        Cause::new(CauseKind::VmmExit, "the VMM is gone and nobody saw how it ended").with("unrecorded", why)
    };
    evidence.attach(cause.with("vmm_pid", exit.vmm_pid))
}

/// The cause of a start that failed before the API answered.
#[must_use]
pub fn of_launch(error: &LaunchError, evidence: &Evidence<'_>) -> Cause {
    match error {
        LaunchError::Died { exit, stderr_tail } => {
            let mut cause = of_exit(exit, &Evidence { stderr_tail, ..*evidence });
            cause.message = format!("{} before its API answered", cause.message);
            cause
        }
        LaunchError::NotReady { stderr_tail, .. } => Evidence { stderr_tail, ..*evidence }
            .attach(Cause::new(CauseKind::VmmTimeout, chain(error).to_string())),
        LaunchError::RunDir(_) | LaunchError::AlreadyHeld { .. } | LaunchError::Watch { .. } => {
            evidence.attach(Cause::new(CauseKind::HostResource, chain(error).to_string()))
        }
        LaunchError::Holder { .. } | LaunchError::HolderFailed { .. } => {
            evidence.attach(Cause::new(CauseKind::VmmSpawn, chain(error).to_string()))
        }
        LaunchError::SetUp(step) => evidence.attach(
            Cause::new(CauseKind::VmmSpawn, error.to_string())
                .with("errno", step.errno)
                .with("spawn_step", &step.step),
        ),
    }
}

/// The cause of a call that failed.
#[must_use]
pub fn of_api(error: &ApiError, evidence: &Evidence<'_>) -> Cause {
    let (kind, message) = match &error.kind {
        ApiErrorKind::Timeout { .. } => (CauseKind::VmmTimeout, chain(error).to_string()),
        ApiErrorKind::Status { errors, .. } => {
            let kind = known(&errors.join("\n")).unwrap_or(CauseKind::VmmError);
            (kind, format!("{} was refused: {}", error.call, telling(errors)))
        }
        _ => (CauseKind::VmmError, chain(error).to_string()),
    };
    let mut cause = Cause::new(kind, message).with("call", error.call);
    if !error.vmm_errors().is_empty() {
        cause = cause.with("vmm_error", tail(&error.vmm_errors().join(": ")));
    }
    evidence.attach(cause)
}

/// The cause of a boot that failed. With firmware the VMM has the same words for a bad image as with a kernel.
#[must_use]
pub fn of_boot(error: &ApiError, firmware: bool, evidence: &Evidence<'_>) -> Cause {
    let mut cause = of_api(error, evidence);
    if firmware && cause.kind == CauseKind::KernelFormat {
        cause.kind = CauseKind::FirmwareFormat;
    }
    cause
}

/// The telling words of an error chain: all but the two outermost, which every refusal begins with.
fn telling(errors: &[String]) -> String {
    match errors {
        [] => "without a reason".to_owned(),
        [_, _, inner @ ..] if !inner.is_empty() => inner.join(": "),
        all => all.join(": "),
    }
}

/// What the VMM's words are about, where they tell.
fn known(text: &str) -> Option<CauseKind> {
    /// Any of these means the kind. In order: the first that matches counts.
    const TEXTS: [(CauseKind, &[&str]); 5] = [
        (
            CauseKind::FirmwareFormat,
            &["Firmware too big", "Cannot load the UEFI binary", "Error manipulating firmware file"],
        ),
        (
            CauseKind::KernelFormat,
            &[
                "Cannot load the kernel into memory",
                "Kernel lacks PVH header",
                "Cannot open kernel file",
                "Cannot load the initramfs",
                "Cannot open initramfs file",
                "Error spawning kernel loading thread",
            ],
        ),
        (
            CauseKind::DiskRefused,
            &[
                "Cannot open disk path",
                "Error locking disk images",
                "Cannot lock images of all block devices",
                "Disk image type does not match",
                "Cannot create virtio-blk device",
            ],
        ),
        (
            CauseKind::TapRefused,
            &[
                "Cannot open tap interface",
                "Cannot create virtio-net device",
                "Failed to open taps",
                "tap device",
            ],
        ),
        (CauseKind::OutOfMemory, &["Cannot allocate memory", "Out of memory"]),
    ];
    TEXTS.iter().find(|(_, texts)| texts.iter().any(|words| text.contains(words))).map(|(kind, _)| *kind)
}

fn signal_name(signal: i32) -> String {
    match nix::sys::signal::Signal::try_from(signal) {
        Ok(known) => known.as_str().to_owned(),
        Err(_) => signal.to_string(),
    }
}

#[cfg(test)]
#[path = "cause_tests.rs"]
mod tests;
