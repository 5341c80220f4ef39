//! The configuration of the host that `drover dev` runs: written to `host.yaml` and read back as the
//! daemon would, so that the file shows what is in force.

use std::path::{Path, PathBuf};

use drover_actors::hypervisor::version::check;
use drover_schemas::Token;
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};
use tracing::info;

use super::nats_binary::on_path;
use super::state::StateDir;
use super::{ClientFile, DevArgs, DevError};
use crate::config::HostConfig;

/// Memory of the software emulation beside its guest's, as its profile declares.
const SOFTVMM_OVERHEAD: &str = "400MiB";

/// Writes the configuration and reads it.
pub async fn write(
    args: &DevArgs,
    root: &Token,
    state: &StateDir,
    client: &ClientFile,
) -> Result<HostConfig, DevError> {
    let mut config = match &args.host_config {
        Some(path) => settings(path)?,
        None => Map::new(),
    };
    config.insert("root".into(), json!(root));
    config.insert("state_dir".into(), json!(state.folder("host")?));
    config.insert("run_dir".into(), json!(run_dir(state)));
    config.insert(
        "bus".into(),
        json!({"urls": [client.url], "user": client.user, "password": client.password}),
    );
    if let Some(host) = &args.host {
        config.insert("host".into(), json!(host));
    }
    if let Some(images) = &args.images {
        config.insert("images_dir".into(), json!(absolute(images)?));
    }
    config.entry("images_dir").or_insert_with(|| json!(state.path("images")));
    if let Some(templates) = &args.templates {
        config.insert("templates_dir".into(), json!(absolute(templates)?));
    }
    if args.subnet.is_some() || !config.contains_key("networks") {
        let subnet = args.subnet.as_deref().unwrap_or("10.77.0.0/20");
        config.insert("networks".into(), json!([{"name": "default", "subnet": subnet}]));
    }
    let vmm = match config.entry("vmm").or_insert_with(|| json!({})) {
        Value::Object(vmm) => vmm,
        other => return Err(DevError::NoVmm { reason: format!("`vmm: {other}` is not a map") }),
    };
    if args.vmm.is_some() || !vmm.contains_key("path") {
        let path = vmm_path(args)?;
        // Whether it will do at all is the daemon's to say.
        if check(&path).await.is_ok_and(|v| v.is_softvmm() || v.text.contains("softvmm")) {
            vmm.entry("overhead").or_insert_with(|| json!(SOFTVMM_OVERHEAD));
        }
        vmm.insert("path".into(), json!(path));
    }
    let text = serde_saphyr::to_string(&Value::Object(config)).map_err(|e| DevError::Yaml(e.into()))?;
    let path = state.write_private("host.yaml", &text)?;
    HostConfig::load(Some(&path), std::env::vars()).map_err(DevError::Config)
}

fn settings(path: &Path) -> Result<Map<String, Value>, DevError> {
    let text = std::fs::read_to_string(path).map_err(DevError::file("read", path))?;
    serde_saphyr::from_str(&text).map_err(|e| DevError::Settings { path: path.to_owned(), source: e.into() })
}

fn absolute(path: &Path) -> Result<PathBuf, DevError> {
    std::path::absolute(path).map_err(DevError::file("resolve", path))
}

/// Short, since sockets lie below it, and another for each state folder.
fn run_dir(state: &StateDir) -> PathBuf {
    let digest = Sha256::digest(state.root().as_os_str().as_encoded_bytes());
    let name = drover_actors::images::hex(&digest[..4]);
    if rustix::process::geteuid().is_root() {
        PathBuf::from(format!("/run/drover-{name}"))
    } else {
        state.path("run")
    }
}

/// The hypervisor: what was given, the real one where it can work, else the emulation.
fn vmm_path(args: &DevArgs) -> Result<PathBuf, DevError> {
    if let Some(path) = &args.vmm {
        return absolute(path);
    }
    let why = match crate::doctor::virtualisation() {
        Ok(()) => match on_path("cloud-hypervisor").find(|p| p.is_file()) {
            Some(path) => {
                info!(path = %path.display(), "hypervisor: the real one");
                return Ok(path);
            }
            None => "cloud-hypervisor is not on PATH".to_owned(),
        },
        Err(why) => why,
    };
    let beside = std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.join("softvmm")));
    match beside.into_iter().chain(on_path("softvmm")).find(|p| p.is_file()) {
        Some(path) => {
            info!(path = %path.display(), why, "hypervisor: software emulation");
            Ok(path)
        }
        None => Err(DevError::NoVmm {
            reason: format!("{why}, and softvmm is neither beside drover nor on PATH; give --vmm"),
        }),
    }
}
