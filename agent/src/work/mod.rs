//! Work that the guest does for its host, beside commands and files.

pub(crate) mod accounts;
pub(crate) mod clock;
mod disks;
pub mod freeze;
pub mod freezer;
mod hooks;
pub(crate) mod identity;
mod marks;
pub(crate) mod mounts;
pub(crate) mod network;
pub(crate) mod online;
pub(crate) mod trim;
mod whole;

use drover_schemas::guest::GuestKind;
use drover_schemas::{ErrorBody, ErrorCode};

use crate::facts::Facts;

/// Where programs of the guest are looked for.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Work on a kernel that is not the guest's own is refused.
pub(crate) fn own_kernel(facts: &Facts, what: &str) -> Result<(), ErrorBody> {
    match facts.kind {
        GuestKind::Vm => Ok(()),
        _ => Err(ErrorBody::new(
            ErrorCode::Unsupported,
            format!(
                "this guest is made of processes and shares its host's kernel, so it has no {what} of its own"
            ),
        )),
    }
}

fn guest_error(text: String) -> ErrorBody {
    ErrorBody::new(ErrorCode::GuestError, text)
}
