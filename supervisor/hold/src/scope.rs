//! The cgroups within a scope that systemd has made for one VM and left to us: one for the holder, one, with
//! limits, for the VMM. A cgroup with children of its own may hold no process, so we leave the scope's first.

use std::fs;
use std::path::Path;

use crate::record::{SCOPE_HOLDER, SCOPE_VMM, SpawnError};
use crate::step;

/// Makes both, and moves this process, which must be the only one there.
pub fn enter(scope: &Path, limits: &[(String, String)]) -> Result<(), SpawnError> {
    let (holder, vmm) = (scope.join(SCOPE_HOLDER), scope.join(SCOPE_VMM));
    for dir in [&holder, &vmm] {
        step(format!("make the cgroup {}", dir.display()), fs::create_dir(dir))?;
    }
    write(&holder.join("cgroup.procs"), "0")?;
    let control = scope.join("cgroup.subtree_control");
    for controller in ["+cpu", "+io"] {
        // Shares matter under contention only; without them a VM still has its limits.
        let _ = fs::write(&control, controller);
    }
    write(&control, "+memory +pids")?;
    for (file, value) in limits {
        let path = vmm.join(file);
        // A controller that is not there has no files.
        if path.exists() {
            write(&path, value)?;
        }
    }
    Ok(())
}

fn write(path: &Path, value: &str) -> Result<(), SpawnError> {
    step(format!("write {value} to {}", path.display()), fs::write(path, value))
}
