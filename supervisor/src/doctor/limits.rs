//! Limits of the kernel that a host with many VMs runs into.

use std::path::{Path, PathBuf};

use super::{Finding, Verdict};

/// A limit, the least that a thousand VMs need, and what runs out first.
struct Limit {
    name: &'static str,
    least: u64,
    why: &'static str,
}

const LIMITS: [Limit; 5] = [
    Limit { name: "net.ipv4.neigh.default.gc_thresh3", least: 8_192, why: "each guest is a neighbour" },
    Limit {
        name: "kernel.pid_max",
        least: 131_072,
        why: "each VM has a thread for each virtual CPU and more",
    },
    Limit { name: "kernel.threads-max", least: 131_072, why: "as above" },
    Limit { name: "fs.file-max", least: 1_048_576, why: "each VM has up to 4,096 descriptors" },
    Limit { name: "fs.aio-max-nr", least: 1_048_576, why: "each queue of each disk takes its share" },
];

/// Descriptors that the daemon itself needs for a thousand VMs.
const FILES: u64 = 16_384;

pub(super) fn look(fix: bool) -> Vec<Finding> {
    let mut findings: Vec<Finding> =
        LIMITS.iter().map(|limit| one(limit, &path(Path::new("/proc/sys"), limit.name), fix)).collect();
    findings.push(files());
    findings
}

fn path(root: &Path, name: &str) -> PathBuf {
    root.join(name.replace('.', "/"))
}

fn one(limit: &Limit, path: &Path, fix: bool) -> Finding {
    let Limit { name, least, why } = *limit;
    let value = std::fs::read_to_string(path).ok().and_then(|text| text.trim().parse::<u64>().ok());
    let Some(value) = value else {
        return Finding::weak(
            name,
            "cannot be read here",
            "a container may hide it; look at it on the machine",
        );
    };
    if value >= least {
        return Finding::good(name, value.to_string());
    }
    let lasting = format!("`echo '{name} = {least}' >> /etc/sysctl.d/90-drover.conf` makes it last");
    let advice = format!("raise it to {least} ({why}): `drover doctor --fix`; {lasting}");
    if !fix {
        return Finding::weak(name, value.to_string(), advice);
    }
    match std::fs::write(path, least.to_string()) {
        Ok(()) => Finding {
            check: name,
            verdict: Verdict::Fixed,
            found: format!("{least}, was {value}"),
            advice: lasting,
        },
        Err(error) => Finding::weak(name, format!("{value}; it could not be set: {error}"), advice),
    }
}

fn files() -> Finding {
    let check = "open files of the daemon";
    match nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE) {
        Ok((_, most)) if most >= FILES => Finding::good(check, most.to_string()),
        Ok((_, most)) => {
            let advice =
                format!("give the service at least {FILES}: LimitNOFILE= in its unit, or `ulimit -n`");
            Finding::weak(check, most.to_string(), advice)
        }
        Err(errno) => Finding::weak(check, format!("not known: {errno}"), ""),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Limit = Limit { name: "a.b", least: 100, why: "of many" };

    #[test]
    fn a_low_limit_is_told_and_is_raised_only_when_asked() {
        let dir = tempfile::tempdir().unwrap();
        let file = path(dir.path(), LIMIT.name);
        std::fs::create_dir(file.parent().unwrap()).unwrap();
        std::fs::write(&file, "7\n").unwrap();
        let told = one(&LIMIT, &file, false);
        assert_eq!((told.verdict, told.found.as_str()), (Verdict::Weak, "7"));
        assert!(told.advice.contains("--fix") && told.advice.contains("of many"), "{told:?}");
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "7\n");
        let fixed = one(&LIMIT, &file, true);
        assert_eq!((fixed.verdict, fixed.found.as_str()), (Verdict::Fixed, "100, was 7"));
        assert_eq!(one(&LIMIT, &file, true).verdict, Verdict::Good);
        let hidden = one(&LIMIT, &dir.path().join("none"), true);
        assert_eq!(hidden.verdict, Verdict::Weak);
    }
}
