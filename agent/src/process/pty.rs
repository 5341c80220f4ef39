//! A terminal for a command.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use drover_schemas::guest::TermSize;

use crate::account::Account;

/// Makes a terminal: the agent's end and the command's. The user of the command owns it.
///
/// # Errors
/// The guest has no terminals (`/dev/ptmx`), or none left.
pub(super) fn open(size: TermSize, account: Option<&Account>) -> io::Result<(OwnedFd, OwnedFd)> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let flags = libc::O_NOCTTY | libc::O_CLOEXEC;
    let master: OwnedFd =
        File::options().read(true).write(true).custom_flags(flags).open("/dev/ptmx")?.into();
    let unlock: libc::c_int = 0;
    // SAFETY: the kernel reads one int.
    if unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK, &raw const unlock) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: no pointer; the answer is a new descriptor. No path is looked up, so nobody can put another
    // terminal in its place.
    let slave = unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, libc::O_RDWR | flags) };
    if slave < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it was just made and is ours alone.
    let slave = unsafe { OwnedFd::from_raw_fd(slave) };
    resize(&master, size)?;
    if let Some(account) = account {
        // So that the user's programs may open it by name. An agent without the right leaves it as it is.
        let (uid, gid) = (rustix::fs::Uid::from_raw(account.uid), rustix::fs::Gid::from_raw(account.gid));
        let _ = rustix::fs::fchown(&slave, Some(uid), Some(gid));
        let _ = rustix::fs::fchmod(&slave, rustix::fs::Mode::from_raw_mode(0o620));
    }
    Ok((master, slave))
}

/// Gives a terminal another size; whoever is in its foreground gets SIGWINCH.
pub(super) fn resize(master: &OwnedFd, size: TermSize) -> io::Result<()> {
    let size = libc::winsize { ws_row: size.rows, ws_col: size.cols, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the kernel reads one winsize.
    match unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
