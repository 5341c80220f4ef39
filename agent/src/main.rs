//! `drover-agent`: the guest's end of the link to its host.

use std::process::ExitCode;

use drover_agent::release::Release;

fn main() -> ExitCode {
    drover_agent::start::main(&Release::THIS)
}
