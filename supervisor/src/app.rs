//! Stub of the daemon's composition.

use std::path::Path;

/// The daemon is not part of this build.
#[derive(Debug, thiserror::Error)]
#[error("this build has no daemon")]
pub struct AppError;

/// Runs a host until it is told to end.
///
/// # Errors
/// Always, in this build.
pub async fn run(_config: Option<&Path>) -> Result<(), AppError> {
    Err(AppError)
}
