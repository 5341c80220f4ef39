//! `identity`: a guest that was cloned becomes another one than its twin.
//!
//! Each part is made new beside the old one and takes its place in one step, or stays as it was; one that fails holds up
//! none of the others, and makes the whole an error that tells of each.
//! `reseed` comes before it: what is new here comes from the kernel's random numbers, which its twin has too.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use drover_schemas::guest::{IdentityPart, IdentityRequest, IdentityResult, PartOutcome, PartResult};
use drover_schemas::{ErrorBody, ErrorCode};

use super::whole::{is_there, replace, said, whole};
use super::{PATH, guest_error};

/// How many files of a folder are looked at.
const MAX_FILES: usize = 1000;
/// What is taken for as random as it looks.
const ENTROPY: std::ops::RangeInclusive<usize> = 32..=512;

mod ioctls {
    nix::ioctl_write_ptr!(rndaddentropy, b'R', 0x03, [libc::c_int; 2]);
    nix::ioctl_none!(rndreseedcrng, b'R', 0x07);
}

/// Mixes randomness into the kernel's, counts it, and lets the numbers come from it at once.
///
/// # Errors
/// Too few bytes or too many, or what the kernel said.
pub(crate) fn reseed(entropy: &[u8]) -> Result<(), ErrorBody> {
    if !ENTROPY.contains(&entropy.len()) {
        let text =
            format!("entropy has {} bytes; use {} to {}", entropy.len(), ENTROPY.start(), ENTROPY.end());
        return Err(ErrorBody::new(ErrorCode::InvalidArgument, text));
    }
    let failed = |error: io::Error| guest_error(format!("the kernel takes no randomness: {error}"));
    let device = File::options().write(true).open("/dev/urandom").map_err(failed)?;
    use std::os::fd::AsRawFd as _;
    // Two integers, how many bits and bytes, and the bytes.
    let mut pool = vec![0_u32; 2 + entropy.len().div_ceil(4)];
    pool[0] = u32::try_from(entropy.len() * 8).unwrap_or(0);
    pool[1] = u32::try_from(entropy.len()).unwrap_or(0);
    for (word, bytes) in pool[2..].iter_mut().zip(entropy.chunks(4)) {
        let mut four = [0; 4];
        four[..bytes.len()].copy_from_slice(bytes);
        *word = u32::from_ne_bytes(four);
    }
    // SAFETY: the pool begins with the two integers and holds as many bytes after them as the second says.
    unsafe {
        ioctls::rndaddentropy(device.as_raw_fd(), pool.as_ptr().cast()).map_err(|e| failed(e.into()))?;
        // Before Linux 4.14 there is no such call, and numbers come from it within minutes.
        let _ = ioctls::rndreseedcrng(device.as_raw_fd());
    }
    Ok(())
}

type Done = Result<(PartOutcome, String), String>;

/// Makes the parts new.
///
/// # Errors
/// A name that is none, and what became of each part if one failed.
pub(crate) fn run(request: &IdentityRequest) -> Result<IdentityResult, ErrorBody> {
    if let Some(name) = &request.hostname {
        let is_label = |label: &str| {
            let plain = |c: char| c.is_ascii_alphanumeric() || c == '-';
            !label.is_empty()
                && label.len() <= 63
                && label.chars().all(plain)
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        // As much as Linux takes.
        if name.len() > 64 || !name.split('.').all(is_label) {
            let text = format!("{name:?} is no host name: use up to 64 letters, digits, '-' and '.'");
            return Err(ErrorBody::new(ErrorCode::InvalidArgument, text).with("field", "hostname"));
        }
    }
    if request.keep.contains(&IdentityPart::Unknown) {
        let text =
            "keep names a part that this agent does not know, so nothing was changed; see the contract";
        return Err(ErrorBody::new(ErrorCode::InvalidArgument, text).with("field", "keep"));
    }
    let root = Path::new("/");
    let steps: [(IdentityPart, &dyn Fn() -> Done); 6] = [
        (IdentityPart::Rng, &|| rng(root)),
        (IdentityPart::MachineId, &|| machine_id(root)),
        (IdentityPart::Hostname, &|| hostname(root, request.hostname.as_deref())),
        (IdentityPart::SshHostKeys, &|| ssh_host_keys(root)),
        (IdentityPart::Dhcp, &|| dhcp(root)),
        (IdentityPart::CloudInit, &|| cloud_init(root)),
    ];
    told(steps.into_iter().map(|(part, step)| {
        let keep = request.keep.contains(&part);
        (part, if keep { Ok((PartOutcome::Kept, String::new())) } else { step() })
    }))
}

/// A guest that is half its twin must not pass for another: one part that failed makes an error, with all that became
/// of the others.
fn told(parts: impl Iterator<Item = (IdentityPart, Done)>) -> Result<IdentityResult, ErrorBody> {
    let parts: Vec<(IdentityPart, Done)> = parts.collect();
    let failed: Vec<&str> =
        parts.iter().filter(|(_, done)| done.is_err()).map(|(part, _)| part.name()).collect();
    if failed.is_empty() {
        let part = |(part, done): (IdentityPart, Done)| {
            let (outcome, detail) = done.ok()?;
            Some(PartResult { part, outcome, detail })
        };
        return Ok(IdentityResult { parts: parts.into_iter().filter_map(part).collect() });
    }
    let text = format!(
        "the guest has a part of its twin's identity still: {}; the details say why, and what became of the others. \
         Mend that and ask again, with what is done in `keep`",
        failed.join(", ")
    );
    Err(parts.iter().fold(guest_error(text).with("cause", "partial"), |error, (part, done)| {
        error.with(
            part.name(),
            match done {
                Ok((outcome, _)) => outcome.name().to_owned(),
                Err(why) => format!("failed: {why}"),
            },
        )
    }))
}

fn random() -> Result<[u8; 16], String> {
    let mut bytes = [0; 16];
    let from = Path::new("/dev/urandom");
    File::open(from).and_then(|mut file| file.read_exact(&mut bytes)).map_err(said("read", from))?;
    Ok(bytes)
}

/// What `reseed` has not done already: the seed for the next boot, which its twin has too.
fn rng(root: &Path) -> Done {
    for seed in ["var/lib/systemd/random-seed", "var/lib/urandom/random-seed", "var/lib/misc/random-seed"] {
        let path = root.join(seed);
        if is_there(&path) {
            let mut seed = Vec::new();
            for _ in 0..32 {
                seed.extend_from_slice(&random()?);
            }
            replace(&path, &seed, 0o600).map_err(said("write", &path))?;
        }
    }
    Ok((PartOutcome::Done, String::new()))
}

fn machine_id(root: &Path) -> Done {
    let mut bytes = random()?;
    // A random UUID, as systemd makes them.
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let id = bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let text = format!("{id}\n");
    // First that of D-Bus, if it is a file of its own: the other one is what counts.
    let bus = root.join("var/lib/dbus/machine-id");
    if fs::symlink_metadata(&bus).is_ok_and(|meta| meta.is_file()) {
        replace(&bus, text.as_bytes(), 0o444).map_err(said("write", &bus))?;
    }
    let path = root.join("etc/machine-id");
    replace(&path, text.as_bytes(), 0o444).map_err(said("write", &path))?;
    Ok((PartOutcome::Done, id))
}

fn hostname(root: &Path, wanted: Option<&str>) -> Done {
    let Some(wanted) = wanted else { return Ok((PartOutcome::Kept, String::new())) };
    let before = nix::unistd::gethostname().map_err(|e| format!("cannot read the name: {e}"))?;
    let path = root.join("etc/hostname");
    replace(&path, format!("{wanted}\n").as_bytes(), 0o644).map_err(said("write", &path))?;
    nix::unistd::sethostname(wanted).map_err(|e| format!("cannot set the name: {e}"))?;
    // The name is what it is by then: a list that cannot be changed is told, and fails nothing.
    let detail = match own_lines(&root.join("etc/hosts"), &before.to_string_lossy(), wanted) {
        Ok(()) => wanted.to_owned(),
        Err(why) => format!("{wanted}; {why}"),
    };
    Ok((PartOutcome::Done, detail))
}

/// The machine's own lines of `/etc/hosts`, if there is one.
fn own_lines(hosts: &Path, before: &str, wanted: &str) -> Result<(), String> {
    let text = match whole(hosts) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        read => read.map_err(said("read", hosts))?,
    };
    let renamed = rename(&text, before, wanted);
    if renamed == text {
        Ok(())
    } else {
        replace(hosts, renamed.as_bytes(), 0o644).map_err(said("write", hosts))
    }
}

/// Another name for this machine in the text of `/etc/hosts`.
fn rename(hosts: &str, before: &str, wanted: &str) -> String {
    let line = |line: &str| {
        if before.is_empty() || !(line.starts_with("127.") || line.starts_with("::1")) {
            return line.to_owned();
        }
        let mut words = line.split_inclusive([' ', '\t']);
        words
            .by_ref()
            .map(|word| {
                let name = word.trim_end();
                if name == before { word.replacen(name, wanted, 1) } else { word.to_owned() }
            })
            .collect()
    };
    hosts.lines().map(|text| line(text) + "\n").collect()
}

/// The names of a folder that a test fits.
fn names(dir: &Path, fits: impl Fn(&str) -> bool) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten().take(MAX_FILES);
    let mut names: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.retain(|name| fits(name));
    names.sort();
    names
}

fn program(name: &str) -> Option<PathBuf> {
    PATH.split(':').map(|dir| Path::new(dir).join(name)).find(|path| path.is_file())
}

/// Runs one that ends soon by itself.
fn quiet(program: &Path, args: &[&str]) -> Result<(), String> {
    let mut command = Command::new(program);
    command.args(args).env_clear().env("PATH", PATH).current_dir("/");
    let done = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    match done {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("{} failed ({status})", program.display())),
        Err(error) => Err(format!("cannot run {}: {error}", program.display())),
    }
}

/// Keys of the kinds that are there: all are made before the first takes its place.
fn ssh_host_keys(root: &Path) -> Done {
    let dir = root.join("etc/ssh");
    let kinds: Vec<String> = names(&dir, |name| name.starts_with("ssh_host_") && name.ends_with("_key"));
    if kinds.is_empty() {
        return Ok((PartOutcome::Absent, String::new()));
    }
    let keygen = program("ssh-keygen").ok_or("there are host keys, but no ssh-keygen to make others")?;
    let new = dir.join(".drover-keys");
    let _ = fs::remove_dir_all(&new);
    fs::DirBuilder::new().create(&new).map_err(said("make", &new))?;
    let made = (|| {
        fs::set_permissions(&new, fs::Permissions::from_mode(0o700)).map_err(said("guard", &new))?;
        for name in &kinds {
            let kind = name.trim_start_matches("ssh_host_").trim_end_matches("_key");
            let file = new.join(name);
            let path = file.to_str().ok_or("the folder's name is not text")?;
            quiet(&keygen, &["-q", "-t", kind, "-N", "", "-C", "", "-f", path])?;
            // On disk before they replace others: a host without keys lets nobody in.
            for name in [name.clone(), format!("{name}.pub")] {
                let path = new.join(name);
                File::open(&path).and_then(|file| file.sync_all()).map_err(said("write", &path))?;
            }
        }
        for name in &kinds {
            for name in [name.clone(), format!("{name}.pub")] {
                let path = dir.join(&name);
                fs::rename(new.join(&name), &path).map_err(said("replace", &path))?;
            }
        }
        File::open(&dir).and_then(|dir| dir.sync_all()).map_err(said("write", &dir))
    })();
    let _ = fs::remove_dir_all(&new);
    made?;
    Ok((PartOutcome::Done, format!("{}; {}", kinds.join(", "), restart_sshd(root))))
}

fn restart_sshd(root: &Path) -> &'static str {
    if root.join("run/systemd/system").is_dir()
        && let Some(systemctl) = program("systemctl")
    {
        // Debian's name, and that of most others.
        let reload = |unit| quiet(&systemctl, &["try-reload-or-restart", unit]).is_ok();
        if reload("ssh.service") | reload("sshd.service") {
            return "sshd was told";
        }
    }
    for file in ["run/sshd.pid", "var/run/sshd.pid"] {
        let pid =
            whole(&root.join(file)).ok().and_then(|text| text.trim().parse().ok()).filter(|pid| *pid > 1);
        if let Some(pid) = pid
            && nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGHUP)
                .is_ok()
        {
            return "sshd was told";
        }
    }
    "no sshd runs that has to be told"
}

/// Forgets what it was given, and what it was known by where that does not come from the machine's id.
fn dhcp(root: &Path) -> Done {
    let mut gone = 0;
    for (dir, ends) in [
        ("var/lib/dhcp", &[".leases"][..]),
        ("var/lib/dhclient", &[".leases", ".lease"]),
        ("var/lib/NetworkManager", &[".lease"]),
        ("var/lib/dhcpcd", &[".lease", ".lease6", "duid", "secret"]),
        ("var/lib/connman", &[".leases"]),
        ("etc", &["dhcpcd.duid"]),
    ] {
        let dir = root.join(dir);
        for name in names(&dir, |name| ends.iter().any(|end| name.ends_with(end))) {
            let path = dir.join(name);
            fs::remove_file(&path).map_err(said("remove", &path))?;
            gone += 1;
        }
    }
    Ok(match gone {
        0 => (PartOutcome::Absent, String::new()),
        gone => (PartOutcome::Done, format!("{gone} files; asked for anew when the network is set up next")),
    })
}

fn cloud_init(root: &Path) -> Done {
    let cloud = root.join("var/lib/cloud");
    if !cloud.is_dir() {
        return Ok((PartOutcome::Absent, String::new()));
    }
    // The link last: with it gone the next boot is a new instance.
    for name in ["data/instance-id", "data/previous-instance-id", "instance"] {
        let path = cloud.join(name);
        if is_there(&path) {
            fs::remove_file(&path).map_err(said("remove", &path))?;
        }
    }
    Ok((PartOutcome::Done, "it sets the guest up at the next boot".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(root: &Path, name: &str, text: &str) {
        let path = root.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    #[test]
    fn each_machine_id_is_another_and_both_places_have_it() {
        let dir = tempfile::tempdir().unwrap();
        put(dir.path(), "etc/machine-id", "00000000000000000000000000000000\n");
        put(dir.path(), "var/lib/dbus/machine-id", "");
        let ids: Vec<String> = (0..2).map(|_| machine_id(dir.path()).unwrap().1).collect();
        assert_ne!(ids[0], ids[1]);
        for name in ["etc/machine-id", "var/lib/dbus/machine-id"] {
            assert_eq!(fs::read_to_string(dir.path().join(name)).unwrap(), format!("{}\n", ids[1]));
        }
        assert_eq!((ids[0].len(), &ids[0][12..13]), (32, "4"));
        // A place where nothing can be written is as it was.
        let nowhere = machine_id(&dir.path().join("nowhere")).unwrap_err();
        assert!(nowhere.starts_with("cannot write"), "{nowhere}");
    }

    #[test]
    fn what_dhcp_and_cloud_init_know_is_forgotten_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(dhcp(dir.path()).unwrap().0, PartOutcome::Absent);
        assert_eq!(cloud_init(dir.path()).unwrap().0, PartOutcome::Absent);
        for name in
            ["var/lib/dhcp/dhclient.eth0.leases", "var/lib/dhcp/note", "var/lib/cloud/data/instance-id"]
        {
            put(dir.path(), name, "x");
        }
        std::os::unix::fs::symlink("instances/i-1", dir.path().join("var/lib/cloud/instance")).unwrap();
        put(dir.path(), "var/lib/cloud/instances/i-1/user-data", "x");
        assert_eq!(dhcp(dir.path()).unwrap().0, PartOutcome::Done);
        assert_eq!(cloud_init(dir.path()).unwrap().0, PartOutcome::Done);
        assert_eq!(names(&dir.path().join("var/lib/dhcp"), |_| true), ["note"]);
        assert_eq!(names(&dir.path().join("var/lib/cloud"), |_| true), ["data", "instances"]);
        assert!(dir.path().join("var/lib/cloud/instances/i-1/user-data").exists());
    }

    #[test]
    fn the_machines_own_lines_of_hosts_get_the_name() {
        let hosts = "127.0.0.1 localhost old\n127.0.1.1\told.lan\told\n10.0.0.9 old\n";
        assert_eq!(
            rename(hosts, "old", "new"),
            "127.0.0.1 localhost new\n127.0.1.1\told.lan\tnew\n10.0.0.9 old\n"
        );
        assert_eq!(rename("127.0.0.1 localhost\n", "", "new"), "127.0.0.1 localhost\n");
    }

    #[test]
    fn a_list_of_hosts_is_changed_as_a_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let hosts = dir.path().join("hosts");
        own_lines(&hosts, "old", "new").unwrap();
        assert!(!is_there(&hosts));
        let others = "0.0.0.0 ads.example\n".repeat(20_000);
        fs::write(&hosts, format!("127.0.1.1 old\n{others}")).unwrap();
        own_lines(&hosts, "old", "new").unwrap();
        assert_eq!(fs::read_to_string(&hosts).unwrap(), format!("127.0.1.1 new\n{others}"));
        let long = format!("127.0.1.1 old\n{}", "#".repeat(8 << 20));
        fs::write(&hosts, &long).unwrap();
        assert!(own_lines(&hosts, "old", "new").unwrap_err().starts_with("cannot read"));
        assert_eq!(fs::read_to_string(&hosts).unwrap(), long);
    }

    #[test]
    fn a_part_that_fails_is_told_with_all_others() {
        let done = || (IdentityPart::MachineId, Ok((PartOutcome::Done, "1".to_owned())));
        let whole = told([done()].into_iter()).unwrap();
        assert_eq!((whole.parts.len(), whole.parts[0].detail.as_str()), (1, "1"));
        let failed = (IdentityPart::SshHostKeys, Err("no ssh-keygen".to_owned()));
        let error = told([done(), failed].into_iter()).unwrap_err();
        assert_eq!(error.code, ErrorCode::GuestError);
        let told = |key: &str| error.details[key].as_str();
        assert_eq!((told("cause"), told("machine_id")), ("partial", "done"));
        assert_eq!(told("ssh_host_keys"), "failed: no ssh-keygen");
        assert!(error.message.contains("identity still: ssh_host_keys;"), "{error:?}");
    }

    #[test]
    fn a_part_that_is_not_known_cannot_be_kept() {
        let request = IdentityRequest { keep: vec![IdentityPart::Unknown], ..Default::default() };
        assert_eq!(run(&request).unwrap_err().code, ErrorCode::InvalidArgument);
    }

    #[test]
    fn a_name_that_is_none_and_too_little_randomness_are_refused() {
        for name in ["", "a b", "-a", "a..b", "a/b", "é", &"a".repeat(65)] {
            let request = IdentityRequest { hostname: Some(name.into()), ..Default::default() };
            assert_eq!(run(&request).unwrap_err().code, ErrorCode::InvalidArgument, "{name:?}");
        }
        for length in [0, 31, 513] {
            assert_eq!(reseed(&vec![1; length]).unwrap_err().code, ErrorCode::InvalidArgument);
        }
    }
}
