//! `trim`: the disks learn which blocks of the file systems are unused.

use std::io;
use std::sync::Mutex;

use drover_schemas::guest::{MAX_FROZEN, SkippedMount, TrimRequest, TrimResult, TrimmedMount};
use drover_schemas::{ErrorBody, ErrorCode};

use super::disks;

/// One at a time: a large disk takes minutes, and nothing is gained by a second one.
static ONE: Mutex<()> = Mutex::new(());

/// Trims one after the other.
///
/// # Errors
/// `busy` while another works, and what is wrong with the places that were named.
pub(crate) fn run(request: &TrimRequest) -> Result<TrimResult, ErrorBody> {
    let Ok(_one) = ONE.try_lock() else {
        return Err(ErrorBody::new(ErrorCode::Busy, "the guest trims its disks already; wait for it to end"));
    };
    let chosen = disks::choose(request.mounts.as_deref())?;
    let mut result = TrimResult { trimmed: Vec::new(), skipped: chosen.skipped };
    for target in &chosen.targets {
        let mount = target.first().shown();
        let trimmed = disks::hold(target).and_then(|(fd, _)| {
            disks::trim(&fd).map_err(|errno| match errno {
                nix::errno::Errno::EOPNOTSUPP | nix::errno::Errno::ENOTTY => {
                    "neither it nor its disk knows of unused blocks".to_owned()
                }
                errno => format!("it cannot be trimmed: {}", io::Error::from(errno)),
            })
        });
        match trimmed {
            Ok(trimmed_bytes) => result.trimmed.push(TrimmedMount { mount, trimmed_bytes }),
            Err(reason) => result.skipped.push(SkippedMount { mount, reason }),
        }
    }
    result.skipped.truncate(MAX_FROZEN);
    Ok(result)
}
