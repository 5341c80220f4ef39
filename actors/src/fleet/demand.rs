//! What a spec asks of a host, as far as a host can tell that may have other templates and images: pure.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use drover_schemas::Token;
use drover_schemas::body::spec::{CoreScheduling, DiskFs, HugePages, NicSpec, Os, PlacementSpec, VmSpec};

use crate::spec::security::over;
use crate::spec::{Templates, boot_parts, template_of};

/// What a host offers that a spec may need, beside what every version offers.
pub mod feature {
    /// Guests of the family Linux.
    pub const LINUX: &str = "os.linux";
    /// Guests of the family Windows.
    pub const WINDOWS: &str = "os.windows";
    /// Guests that boot by firmware.
    pub const FIRMWARE: &str = "boot.firmware";
    /// VMs that get user-data.
    pub const USER_DATA: &str = "user-data";
    /// Ports of the host that lead to guests.
    pub const FORWARDS: &str = "network.forwards";
    /// What a guest may reach is said by its spec.
    pub const EGRESS: &str = "network.egress";
    /// A disk from which cloud-init of the guest learns what it needs.
    pub const SEED: &str = "seed.nocloud";
    /// That disk gives guests the agent.
    pub const SEED_AGENT: &str = "seed.agent";
    /// Disks with a name, a size, or no image.
    pub const DISKS: &str = "disks.sized";
    /// Blank disks that are formatted with ext4.
    pub const EXT4: &str = "disks.ext4";
    /// Disks that are read and written no faster than the spec says.
    pub const DISK_LIMITS: &str = "disks.limits";
    /// How fast a guest may be is said by its spec.
    pub const LIMITS: &str = "network.limits";
    /// Interfaces with several pairs of queues.
    pub const QUEUES: &str = "network.queues";
    /// Interfaces whose address is said by their spec.
    pub const ADDRESSES: &str = "network.addresses";
    /// CPUs that are laid out as a spec says.
    pub const TOPOLOGY: &str = "cpus.topology";
    /// Memory of huge pages of 2 MiB, of which the host has some reserved.
    pub const PAGES_2M: &str = "memory.hugepages.2MiB";
    /// The same of 1 GiB.
    pub const PAGES_1G: &str = "memory.hugepages.1GiB";
    /// What of the processor a guest is given is said by its spec.
    pub const SECURITY: &str = "cpus.security";
    /// Guests that run VMs of their own.
    pub const NESTED: &str = "cpus.nested";
    /// Threads that run on no core at a time with others.
    pub const CORES: &str = "cpus.core-scheduling";
    /// Disks that stay when their VM is deleted.
    pub const VOLUMES: &str = "disks.volumes";
    /// Creates that were placed by another host.
    pub const PLACED: &str = "create.placed";
    /// The real hypervisor.
    pub const REAL: &str = "vmm.real";
    /// The software emulation.
    pub const EMULATED: &str = "vmm.emulated";
    /// What hosts offer that do not know [`PLACED`], though they do not say so.
    pub const UNTOLD: [&str; 4] = [LINUX, WINDOWS, FIRMWARE, USER_DATA];
}

/// What a VM asks of its host. What is not known is left to the host to refuse.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Demand {
    /// The namespace, which may have templates of its own.
    pub namespace: Option<Token>,
    /// The template that it starts from.
    pub template: Option<Token>,
    /// Virtual CPUs.
    pub cpus: Option<u64>,
    /// Memory of the guest, in bytes.
    pub memory_bytes: Option<u64>,
    /// How many interfaces in each network.
    pub networks: BTreeMap<Token, u64>,
    /// Addresses that interfaces have to have, and of which network.
    pub addresses: Vec<(Token, Ipv4Addr)>,
    /// Images by name or digest.
    pub images: Vec<String>,
    /// Volumes of the namespace.
    pub volumes: Vec<Token>,
    /// Of the images, each disk that the VM gets a copy of and that is as long as its image.
    pub copies: Vec<String>,
    /// Bytes of the disks whose length the spec says.
    pub disk_bytes: u64,
    /// Features that the spec needs or asks for.
    pub features: Vec<String>,
    /// Where it may run.
    pub placement: PlacementSpec,
}

impl Demand {
    /// The demand of a spec over the templates of this host; of an unknown template only what the spec says itself.
    #[must_use]
    pub fn of(namespace: &Token, spec: &VmSpec, templates: &Templates) -> Self {
        let template = template_of(spec).ok();
        let known = template.as_ref().and_then(|name| templates.find(namespace, name));
        let base = known.map(|template| template.spec.clone()).unwrap_or_default();
        let disks = spec.disks.as_ref().or(base.disks.as_ref()).cloned().unwrap_or_default();
        let nics = spec.nics.as_ref().or(base.nics.as_ref()).cloned().unwrap_or_default();
        let mut networks = BTreeMap::new();
        for nic in &nics {
            *networks.entry(nic.network.clone()).or_default() += 1;
        }
        // What is no address is told by who makes the VM.
        let address = |nic: &NicSpec| Some((nic.network.clone(), nic.ipv4.as_ref()?.parse().ok()?));
        let addresses = nics.iter().filter_map(address).collect();
        let boot = boot_parts(spec.boot.as_ref(), base.boot.as_ref());
        let mut images: Vec<String> = disks.iter().filter_map(|disk| disk.image.clone()).collect();
        images.extend([boot.kernel, boot.initramfs, boot.firmware].into_iter().flatten().cloned());
        let placement = spec.placement.clone().or(base.placement).unwrap_or_default();
        let mut features = vec![match spec.os.or(base.os).unwrap_or(Os::Linux) {
            Os::Linux => feature::LINUX.to_owned(),
            Os::Windows => feature::WINDOWS.to_owned(),
        }];
        if boot.firmware.is_some() {
            features.push(feature::FIRMWARE.to_owned());
        }
        let user_data = spec.user_data.is_some() || base.user_data.is_some();
        if spec.user_data.is_some() {
            features.push(feature::USER_DATA.to_owned());
        }
        let seed = spec.seed.as_ref().or(base.seed.as_ref());
        if seed.map_or(user_data, |seed| seed.enabled) {
            features.push(feature::SEED.to_owned());
        }
        if seed.is_some_and(|seed| seed.enabled && seed.agent) {
            features.push(feature::SEED_AGENT.to_owned());
        }
        if nics.iter().any(|nic| !nic.forwards.is_empty()) {
            features.push(feature::FORWARDS.to_owned());
        }
        if nics.iter().any(|nic| nic.egress.is_some()) {
            features.push(feature::EGRESS.to_owned());
        }
        if disks.iter().any(|disk| disk.image.is_none() || disk.size.is_some() || disk.name.is_some()) {
            features.push(feature::DISKS.to_owned());
        }
        let volumes: Vec<Token> = disks.iter().filter_map(|disk| disk.volume.clone()).collect();
        if !volumes.is_empty() {
            features.push(feature::VOLUMES.to_owned());
        }
        if disks.iter().any(|disk| disk.limits.is_some()) {
            features.push(feature::DISK_LIMITS.to_owned());
        }
        if disks.iter().any(|disk| disk.fs == Some(DiskFs::Ext4)) {
            features.push(feature::EXT4.to_owned());
        }
        if spec.cpu_topology.or(base.cpu_topology).is_some() {
            features.push(feature::TOPOLOGY.to_owned());
        }
        let security = over(spec.security.unwrap_or_default(), base.security.unwrap_or_default());
        if spec.security.is_some() || base.security.is_some() {
            features.push(feature::SECURITY.to_owned());
        }
        if security.nested() {
            features.push(feature::NESTED.to_owned());
        }
        if security.core_scheduling() == CoreScheduling::Vcpu {
            features.push(feature::CORES.to_owned());
        }
        match spec.hugepages.or(base.hugepages) {
            Some(HugePages::TwoMib) => features.push(feature::PAGES_2M.to_owned()),
            Some(HugePages::OneGib) => features.push(feature::PAGES_1G.to_owned()),
            Some(HugePages::None) | None => {}
        }
        if nics.iter().any(|nic| nic.limits.is_some()) {
            features.push(feature::LIMITS.to_owned());
        }
        if nics.iter().any(|nic| nic.queues > 1) {
            features.push(feature::QUEUES.to_owned());
        }
        if nics.iter().any(|nic| nic.ipv4.is_some()) {
            features.push(feature::ADDRESSES.to_owned());
        }
        let own = disks.iter().filter(|disk| !disk.readonly);
        features.extend(placement.features.iter().cloned());
        Self {
            namespace: Some(namespace.clone()),
            template,
            cpus: spec.cpus.or(base.cpus).map(u64::from),
            memory_bytes: spec.memory.or(base.memory).map(|memory| memory.0),
            networks,
            addresses,
            images,
            volumes,
            copies: own
                .clone()
                .filter(|disk| disk.size.is_none())
                .filter_map(|disk| disk.image.clone())
                .collect(),
            disk_bytes: own.filter_map(|disk| disk.size).fold(0, |sum, size| sum.saturating_add(size.0)),
            features,
            placement,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEMPLATE: &str = "cpus: 2\nmemory: 256MiB\nboot: {kernel: linux, initramfs: small}\n\
                            nics: [{network: default}]\ndisks: [{image: root}, {image: tools, readonly: true}]\n";

    #[test]
    fn a_demand_is_what_the_spec_and_its_template_say() {
        let templates = Templates::built_in([("linux-default.yaml", TEMPLATE)]).unwrap();
        let namespace = Token::new("acme").unwrap();
        let spec: VmSpec =
            serde_json::from_str(r#"{"cpus": 4, "placement": {"features": ["vmm.real"]}}"#).unwrap();
        let demand = Demand::of(&namespace, &spec, &templates);
        assert_eq!((demand.cpus, demand.memory_bytes), (Some(4), Some(256 << 20)));
        assert_eq!(demand.images, ["root", "tools", "linux", "small"]);
        assert_eq!(demand.copies, ["root"]);
        assert_eq!(demand.networks, [(Token::new("default").unwrap(), 1)].into());
        assert_eq!(demand.features, [feature::LINUX, "vmm.real"]);
        // Another host may know the template.
        let spec: VmSpec = serde_json::from_str(r#"{"template": "theirs", "os": "windows"}"#).unwrap();
        let demand = Demand::of(&namespace, &spec, &templates);
        assert_eq!((demand.cpus, demand.template), (None, Token::new("theirs").ok()));
        assert_eq!(demand.features, [feature::WINDOWS]);
        let spec: VmSpec =
            serde_json::from_str(r#"{"cpu_topology": {"packages": 2}, "hugepages": "1GiB"}"#).unwrap();
        let demand = Demand::of(&namespace, &spec, &templates);
        assert_eq!(demand.features, [feature::LINUX, feature::TOPOLOGY, feature::PAGES_1G]);
        let spec: VmSpec = serde_json::from_str(r#"{"nics": [{"queues": 1}, {"queues": 2}]}"#).unwrap();
        assert_eq!(Demand::of(&namespace, &spec, &templates).features, [feature::LINUX, feature::QUEUES]);
        let spec: VmSpec = serde_json::from_str(
            r#"{"nics": [{"ipv4": "10.1.2.3"}, {"network": "blue", "ipv4": "no"}, {}]}"#,
        )
        .unwrap();
        let demand = Demand::of(&namespace, &spec, &templates);
        assert_eq!(demand.features, [feature::LINUX, feature::ADDRESSES]);
        let address = Ipv4Addr::new(10, 1, 2, 3);
        assert_eq!(demand.addresses, [(Token::new("default").unwrap(), address)]);
        let asked = r#"{"security": {"nested": true, "core_scheduling": "vcpu"}}"#;
        let demand = Demand::of(&namespace, &serde_json::from_str(asked).unwrap(), &templates);
        assert_eq!(demand.features, [feature::LINUX, feature::SECURITY, feature::NESTED, feature::CORES]);
        // What closes something needs a host that knows of it.
        let asked = r#"{"security": {"nested": false, "core_scheduling": "vm"}}"#;
        let demand = Demand::of(&namespace, &serde_json::from_str(asked).unwrap(), &templates);
        assert_eq!(demand.features, [feature::LINUX, feature::SECURITY]);
        let spec: VmSpec = serde_json::from_str(r#"{"seed": {"agent": true}}"#).unwrap();
        let demand = Demand::of(&namespace, &spec, &templates);
        assert_eq!(demand.features, [feature::LINUX, feature::SEED, feature::SEED_AGENT]);
    }
}
