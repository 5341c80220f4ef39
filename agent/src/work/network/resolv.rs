//! The servers that names are asked of: `/etc/resolv.conf`, or systemd-resolved where that has taken it.

use std::fs;
use std::io::ErrorKind;
use std::net::IpAddr;
use std::path::Path;
use std::process::{Command, Stdio};

use drover_schemas::ErrorBody;

use super::super::whole::{replace, said, whole};
use super::super::{PATH, guest_error};

const FILE: &str = "/etc/resolv.conf";
/// As many as are shown.
const MAX_SERVERS: usize = 16;

/// Servers as the file names them.
pub(super) fn servers() -> Vec<String> {
    parse(&whole(Path::new(FILE)).unwrap_or_default())
}

fn parse(text: &str) -> Vec<String> {
    let server = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        (words.next() == Some("nameserver"))
            .then(|| words.next().unwrap_or_default().chars().take(64).collect())
    };
    text.lines().filter_map(server).take(MAX_SERVERS).collect()
}

/// The text with other servers; what else it says stays.
fn with(text: &str, servers: &[IpAddr]) -> String {
    let others = text.lines().filter(|line| line.split_ascii_whitespace().next() != Some("nameserver"));
    let servers = servers.iter().map(|server| format!("nameserver {server}\n"));
    others.map(|line| format!("{line}\n")).chain(servers).collect()
}

/// # Errors
/// The file is somebody's whom the agent does not know, or cannot be written.
pub(super) fn set(interface: &str, servers: &[IpAddr]) -> Result<(), ErrorBody> {
    let file = Path::new(FILE);
    if let Ok(target) = fs::read_link(file) {
        if target.components().any(|part| part.as_os_str() == "systemd") {
            return resolvectl(interface, servers);
        }
        let text = format!(
            "{FILE} of the guest is a link to {}, so another program owns it; set dns there",
            target.display()
        );
        return Err(guest_error(text).with("cause", "dns_link"));
    }
    let text = match whole(file) {
        Err(error) if error.kind() == ErrorKind::NotFound => String::new(),
        read => read.map_err(said("read", file)).map_err(guest_error)?,
    };
    let wanted = with(&text, servers);
    if wanted == text {
        return Ok(());
    }
    replace(file, wanted.as_bytes(), 0o644).map_err(said("write", file)).map_err(guest_error)
}

fn resolvectl(interface: &str, servers: &[IpAddr]) -> Result<(), ErrorBody> {
    let mut command = Command::new("resolvectl");
    command.args(["dns", interface]).env_clear().env("PATH", PATH).current_dir("/");
    if servers.is_empty() {
        command.arg("");
    }
    command.args(servers.iter().map(IpAddr::to_string));
    let done = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    match done {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(guest_error(format!("resolvectl of the guest failed ({status})"))),
        Err(error) => {
            Err(guest_error(format!("systemd-resolved has {FILE}, and resolvectl cannot be run: {error}")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_change_and_the_rest_stays() {
        let text = "# mine\nsearch example.org\nnameserver 10.0.0.1\noptions edns0\n nameserver fe80::1\n";
        assert_eq!(parse(text), ["10.0.0.1", "fe80::1"]);
        let servers = [[1, 1, 1, 1].into()];
        let after = with(text, &servers);
        assert_eq!(after, "# mine\nsearch example.org\noptions edns0\nnameserver 1.1.1.1\n");
        assert_eq!(with(&after, &servers), after);
        assert_eq!(with("", &[]), "");
    }
}
