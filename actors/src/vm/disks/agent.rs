//! The agent that a seed disk gives to guests: its program, and what installs it.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::Path;

/// What runs at the guest's first boot.
pub(super) const BOOTHOOK: &str = include_str!("../../../../deploy/agent/seed/boothook");
/// The folder of the disk in which the files are.
pub(super) const FOLDER: &str = "agent";
/// The program's name in it.
pub(super) const PROGRAM: &str = "drover-agent";
/// The other files.
pub(super) const FILES: [(&str, &str); 6] = [
    ("install", include_str!("../../../../deploy/agent/seed/install")),
    ("service", include_str!("../../../../deploy/agent/drover-agent.service")),
    ("openrc", include_str!("../../../../deploy/agent/drover-agent.openrc")),
    ("failed.service", include_str!("../../../../deploy/agent/systemd/drover-agent-failed@.service")),
    (
        "failed.conf",
        include_str!("../../../../deploy/agent/systemd/drover-agent-failed@.service.d/10-drover-agent.conf"),
    ),
    ("all.conf", include_str!("../../../../deploy/agent/systemd/service.d/10-drover-agent.conf")),
];
/// A program is smaller; one that its symbols came along with is too.
const MAX_PROGRAM: u64 = 64 << 20;

/// A program that cannot be given to guests.
#[derive(Debug, thiserror::Error)]
pub enum AgentProgramError {
    /// It cannot be read.
    #[error("read it")]
    Read(#[source] io::Error),
    /// It is something else.
    #[error("it is no program of this machine's kind (ELF, 64 bits, little endian)")]
    NoProgram,
    /// It needs libraries.
    #[error(
        "it is linked dynamically, and guests have other libraries; build it with deploy/build-static.sh"
    )]
    Dynamic,
    /// It is something else, or has its symbols.
    #[error("it has {size} bytes, of at most {MAX_PROGRAM}; strip it")]
    TooLarge {
        /// What it has.
        size: u64,
    },
}

/// Whether a program runs in any guest of this machine's kind.
///
/// # Errors
/// [`AgentProgramError`].
pub fn check(path: &Path) -> Result<(), AgentProgramError> {
    open(path).map(drop)
}

/// A program that does, from its beginning on, and its length.
pub(super) fn open(path: &Path) -> Result<(File, u64), AgentProgramError> {
    let mut file = File::open(path).map_err(AgentProgramError::Read)?;
    let size = file.metadata().map_err(AgentProgramError::Read)?.len();
    if size > MAX_PROGRAM {
        return Err(AgentProgramError::TooLarge { size });
    }
    // An ELF header: <https://man7.org/linux/man-pages/man5/elf.5.html>.
    let mut head = [0; 64];
    match file.read_exact(&mut head) {
        Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => {
            return Err(AgentProgramError::Read(error));
        }
        Ok(()) if head.starts_with(b"\x7fELF\x02\x01") => {}
        _ => return Err(AgentProgramError::NoProgram),
    }
    let number = |at: usize| u16::from_le_bytes([head[at], head[at + 1]]);
    let table = head[32..40].iter().rev().fold(0, |all, byte| all << 8 | u64::from(*byte));
    let (each, count) = (number(54), number(56));
    if each < 4 {
        return Err(AgentProgramError::NoProgram);
    }
    let mut headers = vec![0; usize::from(each) * usize::from(count)];
    file.seek(SeekFrom::Start(table))
        .and_then(|_| file.read_exact(&mut headers))
        .map_err(|_| AgentProgramError::NoProgram)?;
    // PT_INTERP: the program that loads libraries.
    if headers.chunks(usize::from(each)).any(|header| header.starts_with(&3_u32.to_le_bytes())) {
        return Err(AgentProgramError::Dynamic);
    }
    file.rewind().map_err(AgentProgramError::Read)?;
    Ok((file, size))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_program_without_libraries_is_given_to_guests() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("program");
        assert!(matches!(check(&path), Err(AgentProgramError::Read(_))));
        let mut program = vec![0; 64 + 2 * 56];
        program[..6].copy_from_slice(b"\x7fELF\x02\x01");
        (program[32], program[54], program[56]) = (64, 56, 2);
        let of = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut bytes = program.clone();
            change(&mut bytes);
            std::fs::write(&path, bytes).unwrap();
            open(&path).map(|(_, size)| size)
        };
        assert_eq!(of(&|_| ()).unwrap(), 176);
        assert!(matches!(of(&|bytes| bytes[64 + 56] = 3), Err(AgentProgramError::Dynamic)));
        for change in [
            (|bytes| bytes.truncate(0)) as fn(&mut Vec<u8>),
            |bytes| bytes.truncate(63),
            |bytes| bytes.truncate(64),
            |bytes| bytes[4] = 1,
            |bytes| bytes[39] = 0xff,
            |bytes| bytes[54] = 0,
        ] {
            assert!(matches!(of(&change), Err(AgentProgramError::NoProgram)));
        }
        assert!(matches!(check(Path::new("/bin/sh")), Err(AgentProgramError::Dynamic)));
    }
}
