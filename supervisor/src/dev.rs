//! stub
use serde::{Deserialize, Serialize};
/// Args.
#[derive(Debug, clap::Args)]
pub struct DevArgs {}
/// E.
#[derive(Debug, thiserror::Error)]
#[error("dev")]
pub struct DevError;
/// C.
#[derive(Debug, Serialize, Deserialize)]
pub struct ClientFile { pub url: String, pub user: String, pub password: String }
impl ClientFile { pub fn find() -> Result<Option<Self>, DevError> { Ok(None) } }
pub async fn run(_: &DevArgs) -> Result<(), DevError> { Ok(()) }
/// Waits for SIGINT or SIGTERM.
pub async fn signalled() {
    let _ = tokio::signal::ctrl_c().await;
}
