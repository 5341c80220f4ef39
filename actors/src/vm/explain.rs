//! Causes as errors and as sentences.

use drover_schemas::body::status::{AgentFault, AgentState, Cause, CauseKind, DiskMade, DiskStatus};
use drover_schemas::body::vm::ExplainReply;
use drover_schemas::size::ByteSize;
use drover_schemas::state::VmState;
use drover_schemas::{ErrorBody, ErrorCode};

use super::disks;
use super::message::View;
use super::row::shown;
use crate::hypervisor::cause::{self, Evidence};
use crate::hypervisor::record::ExitRecord;
use crate::journal::VmRow;
use crate::services::{Services, now_ms};
use crate::spec::origins::values;

/// The error that tells of a cause.
#[must_use]
pub fn error_of(cause: &Cause) -> ErrorBody {
    let code = match cause.kind {
        CauseKind::AgentTimeout | CauseKind::AgentLost | CauseKind::AgentBreach | CauseKind::RebootLoop => {
            ErrorCode::GuestUnreachable
        }
        CauseKind::AgentIncompatible => ErrorCode::Unsupported,
        CauseKind::Superseded | CauseKind::UserDelete | CauseKind::UserStop => ErrorCode::Conflict,
        CauseKind::OutOfMemory | CauseKind::HostResource | CauseKind::DiskRefused | CauseKind::TapRefused => {
            ErrorCode::ResourceExhausted
        }
        _ => ErrorCode::VmmError,
    };
    let mut error = ErrorBody::new(code, cause.message.clone()).retryable(false);
    error.details.clone_from(&cause.evidence);
    error.with("cause", cause_name(cause.kind))
}

/// The name of a cause on the wire.
#[must_use]
pub fn cause_name(kind: CauseKind) -> String {
    match serde_json::to_value(kind) {
        Ok(serde_json::Value::String(text)) => text,
        _ => "unknown".to_owned(),
    }
}

/// Why the VMM ended, with what its files say.
#[must_use]
pub fn cause_of_exit(services: &Services, row: &VmRow, exit: &ExitRecord) -> Cause {
    let dir = services.run_root.vm(row.vm_id);
    let stderr = dir.stderr_tail(cause::TAIL_MAX);
    let console = dir.console_tail(cause::TAIL_MAX);
    let evidence = Evidence {
        stderr_tail: &stderr,
        console_tail: &console,
        oom_kills: exit.oom_kills.or_else(|| services.cgroup(row.vm_id).oom_kills()),
        step: "",
    };
    cause::of_exit(exit, &evidence)
}

/// Why a VM is as it is, in sentences, with the VMM's configuration.
#[must_use]
pub fn explain(services: &Services, view: &View, history: Vec<String>) -> ExplainReply {
    let vm = shown(services, view);
    let mut findings = vec![format!("The VM is {} and shall be {:?}.", vm.state, vm.desired).to_lowercase()];
    if let Some(cause) = &vm.cause {
        findings.push(format!("Cause: {} ({}).", cause.message, cause_name(cause.kind)));
    }
    match (vm.state, vm.agent.state) {
        (VmState::Running, AgentState::Ready) => findings.push("The guest agent answers.".into()),
        (VmState::Running, AgentState::Connecting) => {
            findings.push("The guest agent has not answered yet; see `logs` for the console.".into());
        }
        (VmState::Running, AgentState::Lost) => {
            findings.push("The guest agent does not answer; see `logs` for the console.".into());
        }
        _ => {}
    }
    if let Some(fault) = &vm.agent.fault {
        findings.push(finding(fault, vm.agent.state, now_ms()));
    }
    if let Some(why) = &vm.agent.unwatched {
        findings.push(format!("What the spec wants watched in the guest is not watched: {why}."));
    }
    if let Some(operation) = &vm.operation {
        findings.push(format!("Under way: {operation}."));
    }
    if vm.restarts > 0 {
        findings.push(format!("The restart policy acted {} times lately.", vm.restarts));
    }
    findings.extend(vm.disks.iter().map(disk));
    if view.row.spec.seed.is_some() {
        findings.push("A seed disk (CIDATA) tells cloud-init the VM's name, addresses and keys.".into());
    }
    let dir = services.run_root.vm(view.row.vm_id);
    let vmm_command = dir.launch_record().ok().flatten().map(|r| r.argv).unwrap_or_default();
    let values =
        if view.row.origins.is_empty() { Vec::new() } else { values(&view.row.spec, &view.row.origins) };
    ExplainReply { vmm_config: config_text(services, &view.row), vm, findings, vmm_command, history, values }
}

/// How a disk was made, in a sentence.
fn disk(of: &DiskStatus) -> String {
    let how = match of.made {
        DiskMade::Reflink => "shares blocks with its image until they are written to (reflink)",
        DiskMade::Overlay => "lies over its image and holds what the guest writes (overlay)",
        DiskMade::Copy => "is a whole copy of its image: the file system shares no blocks (copy)",
        DiskMade::Blank => "began blank (blank)",
        DiskMade::Shared => "is the image itself, read-only (shared)",
        DiskMade::Volume => "is a volume of the namespace, which stays when the VM is deleted (volume)",
        DiskMade::Kept | DiskMade::Unknown => "was there when it was needed (kept)",
    };
    format!("Disk {:?} of {} {how}.", of.name, ByteSize(of.size_bytes))
}

/// What an agent did wrong last, in a sentence.
fn finding(fault: &AgentFault, agent: AgentState, now_ms: u64) -> String {
    let AgentFault { code, message, breaches, retry_unix_ms, .. } = fault;
    let mut text = format!("The guest agent did wrong: {message} ({})", code.as_str());
    if *breaches > 1 {
        text.push_str(&format!("; it broke the rules {breaches} times lately"));
    }
    if agent != AgentState::Ready
        && let Some(left) = retry_unix_ms.and_then(|at| at.checked_sub(now_ms))
    {
        text.push_str(&format!("; it is dialled again in {} s", left.div_ceil(1_000)));
    }
    text + "."
}

/// The VMM's configuration of a VM as JSON text. It holds no secret.
#[must_use]
pub fn config_text(services: &Services, row: &VmRow) -> String {
    use crate::hypervisor::config::{BootPaths, VmmInput, cmdline_additions, first_nic, vm_config};
    use crate::network::NicLease;
    let path = |image: &Option<drover_schemas::body::spec::ResolvedImage>| {
        image.as_ref().map(|i| services.images.path(i).unwrap_or_else(|| format!("image:{}", i.name).into()))
    };
    let boot = &row.spec.boot;
    let paths = BootPaths {
        kernel: path(&boot.kernel),
        initramfs: path(&boot.initramfs),
        firmware: path(&boot.firmware),
        disks: disks::described(services, row),
    };
    let first = first_nic(&row.spec, row.nics.first().map(NicLease::guest_nic));
    let config = vm_config(&VmmInput {
        spec: &row.spec,
        paths,
        run_dir: &services.run_root.vm(row.vm_id),
        nics: row.nics.iter().map(NicLease::nic_config).collect(),
        cmdline: cmdline_additions(&row.name, first.as_ref()),
        landlock: services.programs.landlock,
    });
    serde_json::to_string_pretty(&config).unwrap_or_default()
}
