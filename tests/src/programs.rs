//! The programs and files that a test runs, from the environment.

use std::path::PathBuf;

use crate::world::Options;

/// What a world is made with.
#[derive(Debug, Clone)]
pub(crate) struct Programs {
    pub bins: PathBuf,
    pub agent: PathBuf,
    pub images: PathBuf,
    /// A real hypervisor instead of `softvmm`; its guests are always kernels.
    pub vmm: Option<PathBuf>,
}

impl Programs {
    /// Finds them, or says what is missing for a test with these options.
    pub fn find(options: &Options) -> Result<Self, String> {
        if !nix::unistd::geteuid().is_root() {
            return Err("needs root for namespaces and TAPs".into());
        }
        let path = |name: &str| match std::env::var_os(name).map(PathBuf::from) {
            Some(path) if path.exists() => Ok(path),
            Some(path) => Err(format!("{name} is {}, which is not there", path.display())),
            None => Err(format!("{name} is not set; tests/run.sh sets it")),
        };
        let programs = Self {
            bins: path("DROVER_BIN_DIR")?,
            agent: path("DROVER_AGENT")?,
            images: path("DROVER_IMAGES")?,
            vmm: std::env::var_os("DROVER_VMM").map(PathBuf::from),
        };
        if programs.vmm.is_some() && options.misbehaves {
            return Err("needs softvmm, which misbehaves when it is told to".into());
        }
        let qemu: &[&str] = match options.guest {
            "qemu" if programs.vmm.is_none() => &["qemu-system-x86_64", "vhost-device-vsock"],
            _ => &[],
        };
        let paths: Vec<PathBuf> =
            std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()).collect();
        for program in ["nats-server", "ip", "nft"].iter().chain(qemu) {
            if !paths.iter().any(|dir| dir.join(program).is_file()) {
                return Err(format!("{program} is not in PATH"));
            }
        }
        Ok(programs)
    }
}
