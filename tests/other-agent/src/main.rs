//! The guest agent of another version, for tests of what hosts and agents do with one: this one's code, which says and
//! speaks otherwise.
//!
//! Which version it is stands behind the end of the program, where nothing else reads: a test appends a line to a copy.
//!
//! | line | the agent |
//! |---|---|
//! | `as older` | version 0.0.9, before events, checks, users, networks and much else |
//! | `as newer` | version 9.0.0, which speaks a later protocol too and has verbs that nobody knows yet |
//! | `as later` | version 10.0.0, which does not speak this protocol any more |

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::process::ExitCode;

use drover_agent::release::Release;
use drover_agent::start;
use drover_schemas::guest::{EVENTS, PROTO_MAX, PROTO_MIN, verb};

static OLDER: Release = Release {
    version: "0.0.9",
    lacks: &[
        verb::EXEC_SETTINGS,
        verb::CONFIGURE,
        verb::SAMPLE,
        verb::PROCESSES,
        verb::PACK,
        verb::UNPACK,
        verb::NETWORK,
        verb::USERS,
        verb::USER_ADD,
        verb::USER_RM,
        verb::KEYS,
        verb::KEYS_CHANGE,
        EVENTS,
    ],
    ..Release::THIS
};
static NEWER: Release = Release {
    version: "9.0.0",
    proto: PROTO_MIN..=PROTO_MAX + 1,
    more: &["teleport", "exec.everywhere"],
    ..Release::THIS
};
static LATER: Release = Release { version: "10.0.0", proto: PROTO_MAX + 1..=PROTO_MAX + 2, ..Release::THIS };

/// The last line of this program.
fn line() -> io::Result<String> {
    let mut program = File::open("/proc/self/exe")?;
    program.seek(SeekFrom::End(-9))?;
    let mut line = String::new();
    program.read_to_string(&mut line)?;
    Ok(line)
}

fn main() -> ExitCode {
    match line().as_deref() {
        Ok("as older\n") => start::main(&OLDER),
        Ok("as newer\n") => start::main(&NEWER),
        Ok("as later\n") => start::main(&LATER),
        _ => {
            eprintln!("other-agent: the program's last line says no version that there is");
            ExitCode::FAILURE
        }
    }
}
