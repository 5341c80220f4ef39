//! VMs in words and columns.

use drover_schemas::body::spec::{EgressDefault, EgressRule, EgressSpec, ForwardSpec, NicLimits};
use drover_schemas::body::status::{DiskStatus, NicStatus, VmStatus};
use drover_schemas::body::template::SpecValue;
use drover_schemas::body::vm::{ChangeReply, ExplainReply};
use drover_schemas::size::ByteSize;
use drover_schemas::state::VmState;

use super::super::events::agent_word;
use super::super::host::mib;
use super::super::output::{render, table};
use super::super::template::values;
use crate::client::time;

/// The table of `vm ls`.
pub fn list(vms: &[VmStatus]) -> String {
    let mut table = table(&["NAME", "STATE", "AGENT", "ADDRESS", "CPUS", "MEMORY", "AGE", "HOST"]);
    for vm in vms {
        let address = vm.nics.first().map_or("-", |nic| nic.ipv4.as_str());
        table.add_row([
            vm.name.to_string(),
            vm.state.to_string(),
            agent_word(vm.state, vm.agent.state).to_owned(),
            address.to_owned(),
            vm.cpus.to_string(),
            mib(vm.memory_bytes),
            time::age(vm.created_unix_ms),
            vm.host.to_string(),
        ]);
    }
    render(&mut table)
}

/// The page of `vm get`.
pub fn status(vm: &VmStatus) -> String {
    let mut table = table(&[]);
    let mut row = |key: &str, value: String| {
        table.add_row([key.to_owned(), value]);
    };
    row("name", format!("{}/{}", vm.namespace, vm.name));
    row("id", vm.vm_id.to_string());
    row("state", format!("{} for {}", vm.state, time::age(vm.state_since_unix_ms)));
    row("desired", format!("{:?}", vm.desired).to_lowercase());
    if let Some(operation) = &vm.operation {
        row("operation", operation.clone());
    }
    if let Some(cause) = &vm.cause {
        row("cause", cause.message.clone());
        for (key, value) in &cause.evidence {
            row("", format!("{key}: {value}"));
        }
    }
    let version = vm.agent.version.as_deref().unwrap_or_default();
    row("agent", format!("{} {version}", agent_word(vm.state, vm.agent.state)).trim().to_owned());
    if let Some(error) = &vm.agent.last_error {
        row("", format!("last try: {error}"));
    }
    if let Some(fault) = &vm.agent.fault {
        let age = time::age(fault.at_unix_ms);
        row("", format!("fault {age} ago: {} ({})", fault.message, fault.code.as_str()));
    }
    if let Some(why) = &vm.agent.unwatched {
        row("", format!("not watched: {why}"));
    }
    if let Some(dropped) = &vm.agent.dropped_events {
        row("", dropped.to_string());
    }
    for nic in &vm.nics {
        row(
            "address",
            format!("{}/{} on {} ({}, {})", nic.ipv4, nic.prefix_len, nic.network, nic.tap, nic.mac),
        );
        if let (Some(ipv6), Some(length)) = (&nic.ipv6, nic.ipv6_prefix_len) {
            row("", format!("{ipv6}/{length}"));
        }
        nic.forwards.iter().for_each(|port| row("forward", forward(port)));
        nic.limits.iter().for_each(|one| row("limits", limits(one)));
        nic.egress.iter().flat_map(egress).for_each(|line| row("egress", line));
    }
    vm.disks.iter().for_each(|one| row("disk", disk(one)));
    row("size", format!("{} CPU, {}", vm.cpus, mib(vm.memory_bytes)));
    if let Some(spec) = &vm.spec {
        row("template", spec.template.to_string());
        for (key, value) in &spec.labels {
            row("label", format!("{key}={value}"));
        }
    }
    row("host", vm.host.to_string());
    if let Some(pid) = vm.vmm_pid {
        row("vmm pid", pid.to_string());
    }
    row("created", time::rfc3339(vm.created_unix_ms));
    row(
        "counters",
        format!(
            "revision {}, incarnation {}, seq {}, {} restarts",
            vm.revision, vm.incarnation, vm.seq, vm.restarts
        ),
    );
    render(&mut table)
}

/// The disks of a VM.
pub fn disks(vm: &VmStatus) -> String {
    let lines: Vec<String> = vm.disks.iter().map(disk).collect();
    match lines.as_slice() {
        [] => format!("the host has made no disk of {}", vm.name),
        lines => lines.join("\n"),
    }
}

/// As in `data: 1 GiB (blank)`.
fn disk(disk: &DiskStatus) -> String {
    format!("{}: {} ({})", disk.name, ByteSize(disk.size_bytes), disk.made.as_str())
}

/// The ports of the host that lead to a VM.
pub fn forwards(vm: &VmStatus) -> String {
    let lines: Vec<String> = vm.nics.iter().flat_map(|nic| nic.forwards.iter().map(forward)).collect();
    match lines.as_slice() {
        [] => format!("no port of the host leads to {}", vm.name),
        lines => lines.join("\n"),
    }
}

/// How fast a VM may be.
fn limited(vm: &VmStatus) -> String {
    let of_nic = |nic: &NicStatus| {
        let said = nic.limits.as_ref().map_or_else(|| "no limit".to_owned(), limits);
        format!("{} on {}: {said}", nic.ipv4, nic.network)
    };
    let lines: Vec<String> = vm.nics.iter().map(of_nic).collect();
    lines.join("\n")
}

/// As in `sends 10000000 bit/s, receives as fast as it can`.
fn limits(limits: &NicLimits) -> String {
    let rate = |bits: Option<u64>| {
        bits.map_or_else(|| "as fast as it can".to_owned(), |bits| format!("{bits} bit/s"))
    };
    let (send, receive) = (rate(limits.send_bits_per_second), rate(limits.receive_bits_per_second));
    format!("sends {send}, receives {receive}")
}

/// What a VM may reach.
pub fn egresses(vm: &VmStatus) -> String {
    let of_nic = |nic: &NicStatus| match &nic.egress {
        Some(said) => format!("{} on {}: {}", nic.ipv4, nic.network, egress(said).join("; ")),
        None => format!("{} on {}: what its network lets through", nic.ipv4, nic.network),
    };
    let lines: Vec<String> = vm.nics.iter().map(of_nic).collect();
    match lines.as_slice() {
        [] => format!("{} has no network interface", vm.name),
        lines => lines.join("\n"),
    }
}

/// As in `deny all udp`, `allow 192.0.2.2 tcp 443, 8000-8099`, `deny all else`.
fn egress(egress: &EgressSpec) -> Vec<String> {
    let rule = |verdict: &str, rule: &EgressRule| {
        let mut text = format!("{verdict} {}", rule.to);
        if let Some(protocol) = rule.protocol {
            text.push_str(&format!(" {}", protocol.as_str()));
        }
        if !rule.ports.is_empty() {
            text.push_str(&format!(" {}", rule.ports.join(", ")));
        }
        text
    };
    let denied = egress.deny.iter().map(|one| rule("deny", one));
    let allowed = egress.allow.iter().map(|one| rule("allow", one));
    let default = match egress.default {
        EgressDefault::Allow => "allow all else",
        EgressDefault::Deny => "deny all else",
    };
    denied.chain(allowed).chain([default.to_owned()]).collect()
}

/// One line about a change.
pub fn change(verb: &str, reply: &ChangeReply) -> String {
    let vm = &reply.vm;
    if verb == "forward" {
        return forwards(vm);
    }
    if verb == "egress" {
        return egresses(vm);
    }
    if verb == "limit" {
        return limited(vm);
    }
    if reply.already {
        return format!("{} is {} already", vm.name, vm.state);
    }
    match (verb, vm.state) {
        ("delete", _) => format!("{} is gone", vm.name),
        (_, VmState::Running) => {
            let address = vm.nics.first().map(|nic| format!(" at {}", nic.ipv4)).unwrap_or_default();
            let agent = agent_word(vm.state, vm.agent.state);
            format!("{} is running{address} (agent {agent})", vm.name)
        }
        (_, state) => match &vm.cause {
            Some(cause) if state == VmState::Failed => {
                format!("{} is {state}: {}", vm.name, cause.message)
            }
            _ => format!("{} is {state}", vm.name),
        },
    }
}

/// The page of `vm explain`.
pub fn explanation(explained: &ExplainReply) -> String {
    let mut text = format!("{} is {}\n", explained.vm.name, explained.vm.state);
    for finding in &explained.findings {
        text.push_str(&format!("  - {finding}\n"));
    }
    if !explained.history.is_empty() {
        text.push_str("\nhistory\n");
        explained.history.iter().for_each(|line| text.push_str(&format!("  {line}\n")));
    }
    if !explained.vmm_command.is_empty() {
        text.push_str(&format!("\ncommand\n  {}\n", explained.vmm_command.join(" ")));
    }
    text.push_str(&made_of(&explained.values, &explained.vmm_config));
    text
}

/// The values of a spec, and the VMM's configuration that they make.
pub fn made_of(spec: &[SpecValue], vmm_config: &str) -> String {
    let spec = if spec.is_empty() { String::new() } else { format!("\nspec\n{}\n", values(spec)) };
    format!("{spec}\nconfiguration\n{vmm_config}\n")
}

/// As in `tcp *:20022 to port 22, from 198.51.100.0/24`.
fn forward(forward: &ForwardSpec) -> String {
    let address = forward.host_address.as_deref().unwrap_or("*");
    let protocol = forward.protocol.as_str();
    let text = format!("{protocol} {address}:{} to port {}", forward.host_port, forward.guest_port);
    if forward.sources.is_empty() { text } else { format!("{text}, from {}", forward.sources.join(", ")) }
}
