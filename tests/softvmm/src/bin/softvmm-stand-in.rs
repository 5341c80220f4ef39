//! A stand-in for the agent and, as pid 1 of an initramfs, for a whole guest; for this crate's own
//! tests.
//!
//! Listens where the agent would and does what one line tells it: `poweroff`, `reboot` and `panic`
//! end the guest in their ways, `crash` ends the stand-in, `env`, `pids`, `disk` and `net` say what it
//! sees, anything else comes back.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::process::ExitCode;

use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, VsockAddr, accept, bind, listen, socket};
use nix::unistd::Pid;

const PORT: u32 = 1023;

fn main() -> ExitCode {
    if Pid::this() == Pid::from_raw(1) {
        println!("stand-in: {:?}", boot());
        return ExitCode::FAILURE;
    }
    let address = std::env::args().nth(2).unwrap_or_default();
    let Some(path) = address.strip_prefix("unix:") else { return ExitCode::FAILURE };
    let Ok(listener) = UnixListener::bind(path) else { return ExitCode::FAILURE };
    for stream in listener.incoming().flatten() {
        let stream = File::from(OwnedFd::from(stream));
        std::thread::spawn(move || serve(stream));
    }
    ExitCode::SUCCESS
}

/// Brings a machine up that has nothing but this program and its modules.
fn boot() -> Result<(), Box<dyn std::error::Error>> {
    for (kind, target) in [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev")] {
        std::fs::create_dir_all(target)?;
        mount(Some(kind), target, Some(kind), MsFlags::empty(), None::<&str>)?;
    }
    let mut modules: Vec<_> = std::fs::read_dir("/modules")?.flatten().map(|e| e.path()).collect();
    modules.sort();
    for module in modules {
        let file = File::open(&module)?;
        let parameters = c"";
        // SAFETY: the descriptor is open and the parameters are a NUL-terminated string.
        let done = unsafe { libc::syscall(libc::SYS_finit_module, file.as_raw_fd(), parameters.as_ptr(), 0) };
        if done != 0 {
            println!("stand-in: {}: {}", module.display(), std::io::Error::last_os_error());
        }
    }
    let listener = socket(AddressFamily::Vsock, SockType::Stream, SockFlag::empty(), None)?;
    bind(listener.as_raw_fd(), &VsockAddr::new(libc::VMADDR_CID_ANY, PORT))?;
    listen(&listener, Backlog::new(8)?)?;
    println!("stand-in: ready");
    loop {
        let fd = accept(listener.as_raw_fd())?;
        // SAFETY: the descriptor was just made by `accept` and is ours alone.
        let stream = File::from(unsafe { OwnedFd::from_raw_fd(fd) });
        std::thread::spawn(move || serve(stream));
    }
}

fn end(mode: RebootMode, signal: Signal) -> String {
    if std::env::var_os("DROVER_AGENT_GUEST").is_some() {
        return format!("{:?}", kill(Pid::from_raw(1), signal));
    }
    format!("{:?}", reboot(mode))
}

fn serve(mut stream: File) -> std::io::Result<()> {
    let lines = BufReader::new(stream.try_clone()?).lines();
    for line in lines {
        let line = line?;
        let answer = match line.as_str() {
            "poweroff" => end(RebootMode::RB_POWER_OFF, Signal::SIGTERM),
            "reboot" => end(RebootMode::RB_AUTOBOOT, Signal::SIGINT),
            "panic" => format!("{:?}", std::fs::write("/proc/sysrq-trigger", "c")),
            "crash" => std::process::abort(),
            "env" => std::env::vars().map(|(k, v)| format!("{k}={v} ")).collect(),
            "boot-id" => std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned(),
            "pids" => {
                let entries = std::fs::read_dir("/proc")?.flatten().map(|e| e.file_name());
                let pids = entries.filter_map(|name| name.to_string_lossy().parse::<u32>().ok());
                pids.map(|pid| format!("{pid} ")).collect()
            }
            "disk" => {
                let mut start = [0; 16];
                File::open("/dev/vda")?.read_exact(&mut start)?;
                String::from_utf8_lossy(&start).into_owned()
            }
            "net" => std::fs::read_to_string("/sys/class/net/eth0/address")?.trim().to_owned(),
            other => other.to_owned(),
        };
        stream.write_all(format!("{answer}\n").as_bytes())?;
    }
    Ok(())
}
