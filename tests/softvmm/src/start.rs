//! From a command line to a running VMM, and from its end to an exit.

use std::io;
use std::path::PathBuf;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use crate::args::Args;
use crate::events::Monitor;
use crate::http::server::{self, BindError, Bound};
use crate::misbehave::{self, FaultError, Faults};
use crate::vmm::{End, Vmm};

/// Why the VMM did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartFailure {
    /// The faults are not in the grammar.
    #[error("cannot read the faults")]
    Faults(#[source] FaultError),
    /// The log file could not be made.
    #[error("cannot create log file {path:?}")]
    Log {
        /// Where it was to be.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The event monitor could not be opened.
    #[error("cannot open the event monitor")]
    Events(#[source] io::Error),
    /// The runtime or the signal handlers could not be made.
    #[error("cannot start the runtime")]
    Runtime(#[source] io::Error),
    /// The API socket could not be made.
    #[error("cannot start the API server")]
    Api(#[source] BindError),
}

/// Runs a VMM to its end.
///
/// # Errors
/// It did not start.
pub fn run(args: Args) -> Result<End, StartFailure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(StartFailure::Runtime)?.block_on(start(args))
}

async fn start(args: Args) -> Result<End, StartFailure> {
    let faults = Faults::new(&args.misbehave, args.misbehave_file.clone()).map_err(StartFailure::Faults)?;
    faults.at("start").await;
    if let Some(path) = &args.log_file {
        std::fs::File::create(path).map_err(|source| StartFailure::Log { path: path.clone(), source })?;
    }
    let mut stop = signals()?;
    let mut events =
        Monitor::open(args.event_monitor.as_ref(), faults.clone()).map_err(StartFailure::Events)?;
    events.emit("vmm", "starting");
    let (calls, called) = mpsc::channel(1);
    let bound = args.api_socket.as_ref().map(server::bind).transpose().map_err(StartFailure::Api)?;
    faults.at("api").await;
    let path = bound.as_ref().and_then(Bound::path).map(PathBuf::from);
    let (vmm, noticed) = Vmm::new(args, faults, events);
    let serving = bound.map(|bound| tokio::spawn(bound.serve(calls)));
    let (word, stopped) = mpsc::channel(1);
    tokio::spawn(async move {
        while stop.recv().await.is_some() {
            if word.send(()).await.is_err() {
                return;
            }
        }
    });
    let end = vmm.run(called, noticed, stopped).await;
    // The last answer is on its way through another task: let it get onto the wire.
    for _ in 0..16 {
        tokio::task::yield_now().await;
    }
    if let Some(serving) = serving {
        serving.abort();
    }
    if end == End::Exit(0) {
        Bound::remove(path.as_deref());
    }
    Ok(end)
}

fn signals() -> Result<mpsc::Receiver<()>, StartFailure> {
    let (to, from) = mpsc::channel(1);
    for kind in [SignalKind::terminate(), SignalKind::interrupt()] {
        let mut signals = signal(kind).map_err(StartFailure::Runtime)?;
        let to = to.clone();
        tokio::spawn(async move {
            while signals.recv().await.is_some() {
                let _ = to.send(()).await;
            }
        });
    }
    Ok(from)
}

/// The exit status of an end; does not return if the end is by a signal.
pub fn status(end: End) -> i32 {
    match end {
        End::Exit(code) | End::As(crate::guest::Death::Exit(code)) => code,
        End::As(crate::guest::Death::Signal(signal)) => {
            misbehave::die_by(signal);
            128 + signal
        }
    }
}
