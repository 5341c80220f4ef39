use std::path::Path;

use drover_schemas::body::spec::{
    AgentSpec, NicSpec, PlacementSpec, ResolvedBoot, ResolvedDisk, ResolvedImage, ResolvedSpec, RestartSpec,
};
use drover_schemas::body::spec::{DiskLimits, ImageKind, SecuritySpec};
use drover_schemas::id::VmId;

use super::*;
use crate::hypervisor::run_dir::RunRoot;

fn image(name: &str, kind: ImageKind) -> ResolvedImage {
    ResolvedImage::raw(name.to_owned(), "0".repeat(64), kind, 1)
}

fn spec(os: Os) -> ResolvedSpec {
    ResolvedSpec {
        template: Token::new("linux-default").unwrap(),
        os,
        cpus: 2,
        memory_bytes: 512 << 20,
        cpu_topology: None,
        hugepages: None,
        security: None,
        boot: ResolvedBoot {
            kernel: Some(image("debian", ImageKind::Kernel)),
            initramfs: None,
            firmware: None,
            cmdline: "console=ttyS0 ".to_owned(),
        },
        disks: vec![ResolvedDisk { image: Some(image("root", ImageKind::Disk)), ..ResolvedDisk::default() }],
        nics: vec![NicSpec {
            network: Token::new("default").unwrap(),
            forwards: Vec::new(),
            egress: None,
            limits: None,
            setup: Default::default(),
            ipv4: None,
            queues: 1,
        }],
        seed: None,
        restart: RestartSpec::default(),
        agent: AgentSpec::default(),
        labels: Default::default(),
        placement: PlacementSpec::default(),
    }
}

fn run_dir() -> RunDir {
    RunRoot::new(Path::new("/run/drover")).unwrap().vm(VmId::from_u128(1))
}

/// Compares with a file of `golden/vmm`; `UPDATE_GOLDEN=1` writes it.
fn golden(name: &str, config: &VmConfig) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/vmm").join(name);
    let text = format!("{}\n", serde_json::to_string_pretty(config).unwrap());
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, &text).unwrap();
    }
    assert_eq!(text, std::fs::read_to_string(&path).unwrap_or_default(), "{name}: run with UPDATE_GOLDEN=1");
}

fn lease() -> GuestNic {
    GuestNic { ipv4: Ipv4Addr::new(10, 77, 0, 9), prefix_len: 20, gateway: Ipv4Addr::new(10, 77, 0, 1) }
}

#[test]
fn a_linux_guest_boots_a_kernel_with_its_address_and_name() {
    let hostname = Token::new("web").unwrap();
    let mut spec = spec(Os::Linux);
    spec.nics[0].queues = 2;
    let config = vm_config(&VmmInput {
        spec: &spec,
        paths: BootPaths {
            kernel: Some("/var/lib/drover/images/k".into()),
            initramfs: Some("/var/lib/drover/images/i".into()),
            firmware: None,
            disks: vec![
                DiskPath {
                    path: "/var/lib/drover/vms/1/disk0".into(),
                    readonly: false,
                    image_type: ImageType::Raw,
                    backing: None,
                    name: "disk0".into(),
                    discard: true,
                    limits: None,
                },
                DiskPath {
                    path: "/var/lib/drover/vms/1/disk1".into(),
                    readonly: false,
                    image_type: ImageType::Qcow2,
                    backing: Some("/var/lib/drover/store/sha256/d".into()),
                    name: "home".into(),
                    discard: false,
                    limits: None,
                },
                DiskPath {
                    path: "/var/lib/drover/images/d".into(),
                    readonly: true,
                    image_type: ImageType::Qcow2,
                    backing: None,
                    name: "tools".into(),
                    discard: true,
                    limits: Some(DiskLimits {
                        bytes_per_second: Some(ByteSize::mib(8)),
                        ops_per_second: Some(100),
                        burst_bytes: Some(ByteSize::mib(64)),
                        burst_ops: None,
                    }),
                },
            ],
        },
        run_dir: &run_dir(),
        nics: vec![NicConfig {
            tap: "dr0123456789ab".to_owned(),
            mac: "52:54:00:00:00:01".to_owned(),
            kind: Some(crate::network::names::tap_kind("dr0123456789ab")),
        }],
        cmdline: cmdline_additions(&hostname, Some(&FirstNic::Set(lease()))),
        landlock: true,
    });
    golden("linux.json", &config);
}

#[test]
fn a_guest_may_have_neither_disk_nor_interface() {
    let mut spec = spec(Os::Linux);
    spec.boot.cmdline = String::new();
    // Nor need it be as its VMM would lay it out.
    spec.cpu_topology = Some(CpuTopology { packages: 2, ..CpuTopology::default() });
    spec.hugepages = Some(HugePages::TwoMib);
    let core_scheduling = Some(CoreScheduling::Vcpu);
    spec.security = Some(SecuritySpec { nested: Some(true), core_scheduling });
    let config = vm_config(&VmmInput {
        spec: &spec,
        paths: BootPaths { kernel: Some("/k".into()), ..BootPaths::default() },
        run_dir: &run_dir(),
        nics: vec![],
        cmdline: String::new(),
        landlock: false,
    });
    golden("minimal.json", &config);
}

#[test]
fn a_windows_guest_boots_firmware_with_enlightenments_and_no_command_line() {
    let config = vm_config(&VmmInput {
        spec: &spec(Os::Windows),
        paths: BootPaths { firmware: Some("/fw/CLOUDHV.fd".into()), ..BootPaths::default() },
        run_dir: &run_dir(),
        nics: vec![],
        cmdline: "drover.hostname=w".to_owned(),
        landlock: false,
    });
    golden("windows.json", &config);
}

#[test]
fn the_address_is_written_as_the_kernel_reads_it() {
    let hostname = Token::new("web").unwrap();
    assert_eq!(
        cmdline_additions(&hostname, Some(&FirstNic::Set(lease()))),
        "drover.hostname=web ip=10.77.0.9::10.77.0.1:255.255.240.0:web:eth0:off"
    );
    assert_eq!(cmdline_additions(&hostname, None), "drover.hostname=web");
    let asks = cmdline_additions(&hostname, Some(&FirstNic::Asks));
    assert_eq!(asks, "drover.hostname=web ip=::::web:eth0:dhcp");
}

#[test]
fn every_prefix_length_has_a_netmask() {
    for (length, mask) in [
        (0, "0.0.0.0"),
        (1, "128.0.0.0"),
        (20, "255.255.240.0"),
        (32, "255.255.255.255"),
        (99, "255.255.255.255"),
    ] {
        assert_eq!(netmask(length).to_string(), mask);
    }
}
