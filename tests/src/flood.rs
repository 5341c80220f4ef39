//! A tenant that asks for far more than it may have.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use async_nats::{Client, RequestErrorKind};
use drover_schemas::headers;
use futures_util::StreamExt as _;

/// Requests that wait for their answers at once: more than a namespace may have in flight.
const AT_ONCE: usize = 512;
/// How long an answer is waited for.
const PATIENCE: Duration = Duration::from_secs(20);

/// What a flood was answered.
#[derive(Debug, Clone, Copy, Default)]
pub struct Tally {
    /// Results.
    pub ok: u64,
    /// `busy`.
    pub busy: u64,
    /// Refusals of what is no request: 400, 404 and 501.
    pub refused: u64,
    /// Refusals of what is too large.
    pub too_large: u64,
    /// Other errors.
    pub other: u64,
    /// No answer came.
    pub silent: u64,
    /// How long all of it took.
    pub took: Duration,
}

impl Tally {
    /// Requests that were answered.
    #[must_use]
    pub const fn answered(&self) -> u64 {
        self.ok + self.busy + self.refused + self.too_large + self.other
    }
}

/// A flood under way, from a thread and a connection of its own.
#[derive(Debug)]
pub struct Flood {
    over: Arc<AtomicBool>,
    thread: JoinHandle<Tally>,
}

impl Flood {
    /// Sends `requests` from the namespace `flood`, which has a VM `web`: every kind of request, small and large, and
    /// what is none.
    #[must_use]
    pub fn start(url: &'static str, requests: u64) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let done = Arc::clone(&over);
        let thread = std::thread::spawn(move || {
            // A tenant has a machine of its own: this one shall not take the host's.
            // SAFETY: The call has no memory to do with; 0 is the calling thread.
            let _ = unsafe { nix::libc::setpriority(nix::libc::PRIO_PROCESS, 0, 19) };
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let tally = runtime.expect("a runtime").block_on(flood(url, requests));
            done.store(true, Ordering::Release);
            tally
        });
        Self { over, thread }
    }

    /// All of it is sent and answered, or the thread has ended.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire) || self.thread.is_finished()
    }

    /// What was answered.
    ///
    /// # Panics
    /// The flood did.
    #[must_use]
    pub fn tally(self) -> Tally {
        self.thread.join().expect("the flood ends")
    }
}

/// A subject beside the host's, answered by the least that can answer: what it takes is the bus's and the machine's time.
pub const BARE: &str = "bare";

/// Answers on [`BARE`] from a thread and a connection of its own, until the bus is gone.
pub fn answer_barely(url: &'static str) {
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime").block_on(async {
            let client = async_nats::connect(url).await.expect("the bus");
            let mut asked = client.subscribe(BARE).await.expect("the bus");
            while let Some(message) = asked.next().await {
                let reply = message.reply.expect("a request");
                client.publish(reply, bytes::Bytes::from_static(&[0; 512])).await.expect("the bus");
            }
        });
    });
}

async fn flood(url: &str, requests: u64) -> Tally {
    let client = async_nats::connect(url).await.expect("the bus");
    let large = bytes::Bytes::from(vec![b'x'; 200_000]);
    let began = Instant::now();
    let mut answers = futures_util::stream::iter(0..requests)
        .map(|number| ask(&client, number, &large))
        .buffer_unordered(AT_ONCE);
    let mut tally = Tally::default();
    while let Some(answer) = answers.next().await {
        let count = match answer {
            Answer::Ok => &mut tally.ok,
            Answer::Code("429") => &mut tally.busy,
            Answer::Code("400 too large") => &mut tally.too_large,
            Answer::Code(_) => &mut tally.refused,
            Answer::Other => &mut tally.other,
            Answer::Silent => &mut tally.silent,
        };
        *count += 1;
    }
    tally.took = began.elapsed();
    tally
}

enum Answer {
    Ok,
    Code(&'static str),
    Other,
    Silent,
}

async fn ask(client: &Client, number: u64, large: &bytes::Bytes) -> Answer {
    let (tail, body) = match number % 64 {
        0 => ("vm.web.get", large.clone()),
        1 => ("vm.create", large.clone()),
        2 | 3 => ("vm.create", "{\"name\": 7}".into()),
        4 | 5 => ("vm.web.nonsense", "{}".into()),
        6 | 7 => ("vm.web.get", "\u{1}\u{2}\u{3}".into()),
        8..=15 => ("vm.list", "{}".into()),
        16..=19 => ("vm.web.guest.ping", "{}".into()),
        _ => ("vm.web.get", "{}".into()),
    };
    let request = async_nats::Request::new().payload(body).timeout(Some(PATIENCE));
    match client.send_request(format!("drover.v1.cmd.flood.{tail}"), request).await {
        Ok(message) => match message.headers.as_ref().and_then(|h| h.get(headers::ERROR_CODE)) {
            None => Answer::Ok,
            Some(code) => match code.as_str() {
                "429" => Answer::Code("429"),
                "400" if number % 64 < 2 => Answer::Code("400 too large"),
                "400" => Answer::Code("400"),
                "404" => Answer::Code("404"),
                "501" => Answer::Code("501"),
                _ => Answer::Other,
            },
        },
        Err(error) if error.kind() == RequestErrorKind::TimedOut => Answer::Silent,
        Err(_) => Answer::Other,
    }
}

/// Makes the kernel forget the most memory that a process had; gives what it has now.
///
/// # Panics
/// It does not.
#[must_use]
pub fn reset_peak(pid: u32) -> u64 {
    std::fs::write(format!("/proc/{pid}/clear_refs"), "5").expect("the peak is reset");
    peak(pid)
}

/// The most memory that a process had since then.
///
/// # Panics
/// The kernel does not say.
#[must_use]
pub fn peak(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the process");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a peak");
    let kib: u64 = line.trim().trim_end_matches(" kB").trim().parse().expect("a number");
    kib << 10
}
