//! Watching a change happen: the VM's events beside the request that causes them.

use std::future::Future;
use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use drover_schemas::Token;
use drover_schemas::body::vm::ChangeReply;
use drover_schemas::event::VmEvent;
use indicatif::{ProgressBar, ProgressStyle};

use super::events::sentence;
use crate::client::{Client, ClientError, EventFeed, Since, Wanted};

/// How long the events of a reply are waited for that has come already.
const CATCH_UP: Duration = Duration::from_secs(1);

/// Runs `call` and shows the events of `name` until it has ended. Where the events cannot be had,
/// the call goes on unseen.
///
/// # Errors
/// Those of `call`.
pub async fn watched<F>(
    client: &Client,
    name: &Token,
    title: &str,
    call: F,
) -> Result<ChangeReply, ClientError>
where
    F: Future<Output = Result<ChangeReply, ClientError>>,
{
    let mut steps = Steps::new(title);
    let mut feed = match EventFeed::open(client, Wanted::of_vm(name.clone()), Since::Now, true).await {
        Ok(feed) => Some(feed),
        Err(error) => {
            tracing::debug!(error = %drover_actors::chain(&error), "events cannot be shown");
            None
        }
    };
    let mut call = std::pin::pin!(call);
    let reply = loop {
        tokio::select! {
            biased;
            event = next(&mut feed), if feed.is_some() => steps.take(event, &mut feed),
            reply = &mut call => break reply,
        }
    };
    if let Ok(reply) = &reply {
        let all = async {
            while feed.is_some() && steps.seq < reply.vm.seq {
                let event = next(&mut feed).await;
                steps.take(event, &mut feed);
            }
        };
        let _ = tokio::time::timeout(CATCH_UP, all).await;
    }
    steps.finish();
    reply
}

async fn next(feed: &mut Option<EventFeed>) -> Option<VmEvent> {
    feed.as_mut()?.next().await.ok().flatten()
}

struct Steps {
    started: Instant,
    spinner: Option<ProgressBar>,
    seq: u64,
}

impl Steps {
    fn new(title: &str) -> Self {
        let spinner = std::io::stderr().is_terminal().then(|| {
            let spinner = ProgressBar::new_spinner().with_message(title.to_owned());
            if let Ok(style) = ProgressStyle::with_template("{spinner} {elapsed:>4} {msg}") {
                spinner.set_style(style);
            }
            spinner.enable_steady_tick(Duration::from_millis(100));
            spinner
        });
        Self { started: Instant::now(), spinner, seq: 0 }
    }

    fn take(&mut self, event: Option<VmEvent>, feed: &mut Option<EventFeed>) {
        let Some(event) = event else {
            *feed = None;
            return;
        };
        self.seq = event.seq;
        let line = format!("{:>8.2}s  {}", self.started.elapsed().as_secs_f64(), sentence(&event));
        match &self.spinner {
            Some(spinner) => spinner.println(line),
            None => eprintln!("{line}"),
        }
    }

    fn finish(&self) {
        if let Some(spinner) = &self.spinner {
            spinner.finish_and_clear();
        }
    }
}
