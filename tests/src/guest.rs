//! A guest with a real kernel, in software emulation.

use std::time::Duration;

use drover_schemas::blob::Blob;
use drover_schemas::body::guest::{ExecReply, ExecResult};
use drover_schemas::body::status::{AgentState, VmStatus};
use serde_json::{Value, json};

use crate::client::Bus;
use crate::wait::until_within;

/// For a boot in software emulation, with others beside it on a small machine.
const BOOT: Duration = Duration::from_secs(300);

/// Creates a VM of the small image with a real kernel, and waits for its agent.
///
/// # Panics
/// It does not come up.
pub async fn boot(bus: &Bus, name: &str, mut spec: Value) -> VmStatus {
    spec["template"] = json!("linux-microvm");
    spec["agent"] = json!({"enabled": true, "ready_timeout_ms": 300_000});
    bus.create(name, json!({"spec": spec})).await.unwrap();
    agent(bus, name).await
}

/// Waits for the agent of a VM with a real kernel.
///
/// # Panics
/// It does not come up.
pub async fn agent(bus: &Bus, name: &str) -> VmStatus {
    agent_within(BOOT, bus, name).await
}

/// The same for one that boots in another time.
///
/// # Panics
/// It does not come up.
pub async fn agent_within(limit: Duration, bus: &Bus, name: &str) -> VmStatus {
    // Longer than a request may wait.
    until_within(limit, &format!("the agent of {name}"), async || {
        bus.status(name).await.ok().filter(|vm| vm.agent.state == AgentState::Ready)
    })
    .await
}

/// Runs a script in the guest and gives what it says.
///
/// # Panics
/// The script fails.
pub async fn sh(bus: &Bus, name: &str, script: &str) -> String {
    let body = json!({"argv": ["sh", "-c", script]});
    let result: ExecResult = match bus.ask(&format!("vm.{name}.guest.exec"), &body).get().await.unwrap() {
        ExecReply::Result(result) => result,
        _ => panic!("nobody asked for a stream"),
    };
    let text =
        |bytes: Option<Blob>| String::from_utf8_lossy(bytes.unwrap_or_default().as_slice()).trim().to_owned();
    assert_eq!(result.exit_code, Some(0), "{script}: {} {}", text(result.stdout), text(result.stderr));
    text(result.stdout)
}
