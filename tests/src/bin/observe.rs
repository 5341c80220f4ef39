//! An observer for suites in other languages: `observe URL` says where a host should connect in place of `URL`, and holds
//! what it says and hears against the published contract until its standard input ends. It fails if anything deviated.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "this is what it is for")]

use std::io::Read as _;
use std::process::ExitCode;

use drover_tests::observer::Observer;

fn main() -> ExitCode {
    let Some(url) = std::env::args().nth(1) else {
        eprintln!("usage: observe nats://HOST:PORT");
        return ExitCode::from(2);
    };
    let observer = Observer::default();
    println!("{}", observer.way("h1", None, &url));
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
    match observer.end(&[]) {
        Ok(()) => ExitCode::SUCCESS,
        Err(problems) => {
            eprintln!("{problems}");
            ExitCode::FAILURE
        }
    }
}
