//! The new agent: from its first word to the last of the old one.

use std::collections::{HashMap, HashSet};
use std::io;
use std::os::fd::{FromRawFd as _, OwnedFd, RawFd};
use std::sync::Arc;

use drover_schemas::{ErrorBody, ErrorCode, RequestId};
use rustix::io::{FdFlags, fcntl_getfd, fcntl_setfd};
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::time::timeout;

use super::MOVING;
use super::words::{self, New, Old, PATIENCE, TALK};
use crate::Agent;
use crate::dedupe::{Outcome, Remembered};
use crate::log;

/// The descriptors that an agent has handed over.
#[derive(Debug)]
pub struct Inherited {
    /// The way to the old agent.
    pub words: OwnedFd,
    /// The socket that hosts connect to.
    pub listener: OwnedFd,
    /// The socket that programs publish events at, if there is one.
    pub events: Option<OwnedFd>,
}

impl Inherited {
    /// Takes the descriptors over that an option names, that of the process before the agent apart.
    ///
    /// # Errors
    /// What stands there are not descriptors that are open.
    pub fn take(option: &str) -> Result<(OwnedFd, Self), String> {
        let numbers: Vec<RawFd> = option.split(',').filter_map(|word| word.parse().ok()).collect();
        let ([words, listener, front], events) = match numbers[..] {
            [words, listener, front] => ([words, listener, front], None),
            [words, listener, front, events] => ([words, listener, front], Some(events)),
            _ => return Err("--succeed is for agents only".to_owned()),
        };
        let own = |fd: RawFd| {
            // SAFETY: at the start of the program nothing else has these numbers; the call fails for those not open.
            let borrowed = unsafe { std::os::fd::BorrowedFd::borrow_raw(fd.max(0)) };
            if fd <= libc::STDERR_FILENO || fcntl_getfd(borrowed).is_err() {
                return Err(format!("--succeed names {fd}, which is not open"));
            }
            // No command inherits them.
            fcntl_setfd(borrowed, FdFlags::CLOEXEC).map_err(|e| e.to_string())?;
            // SAFETY: it is open, and named once by the agent that made this process.
            Ok(unsafe { OwnedFd::from_raw_fd(fd) })
        };
        if numbers.iter().collect::<HashSet<_>>().len() < numbers.len() {
            return Err("--succeed names a descriptor twice".to_owned());
        }
        let (words, listener, front) = (own(words)?, own(listener)?, own(front)?);
        Ok((front, Self { words, listener, events: events.map(own).transpose()? }))
    }
}

/// An agent that takes the place of another.
#[derive(Debug)]
pub struct Successor {
    words: UnixStream,
    /// As hosts know the agent.
    pub instance: String,
}

fn strange(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

impl Successor {
    /// Hears the first word of the old agent.
    ///
    /// # Errors
    /// The old one has gone, or speaks otherwise.
    pub async fn begin(words: OwnedFd) -> io::Result<Self> {
        let words = std::os::unix::net::UnixStream::from(words);
        words.set_nonblocking(true)?;
        let mut words = UnixStream::from_std(words)?;
        match timeout(PATIENCE, words::hear(&mut words)).await?? {
            Old::Begin { talk: TALK, instance } => Ok(Self { words, instance }),
            Old::Begin { talk, .. } => Err(strange(&format!("the old agent speaks {talk}, this one {TALK}"))),
            _ => Err(strange("the old agent does not begin at the beginning")),
        }
    }

    /// Says that hosts are greeted, and waits until the old agent has let go: what it remembers of requests.
    ///
    /// # Errors
    /// The old one has gone, or given the upgrade up.
    pub async fn wait(&mut self, version: &str) -> io::Result<Vec<Remembered>> {
        let version = version.to_owned();
        words::say(&mut self.words, &New::Ready { version }).await?;
        match timeout(2 * MOVING, words::hear(&mut self.words)).await?? {
            Old::Go { requests } => Ok(requests),
            _ => Err(strange("the old agent does not hand over")),
        }
    }

    /// Says that this agent serves, and goes on to hear how the old one's requests end.
    ///
    /// # Errors
    /// The old one has gone in this moment.
    pub async fn serve(
        mut self,
        agent: Arc<Agent>,
        running: HashMap<RequestId, watch::Sender<Option<Outcome>>>,
    ) -> io::Result<()> {
        words::say(&mut self.words, &New::Serving {}).await?;
        tokio::spawn(hear_ends(self.words, agent, running));
        Ok(())
    }
}

async fn hear_ends(
    mut words: UnixStream,
    agent: Arc<Agent>,
    mut running: HashMap<RequestId, watch::Sender<Option<Outcome>>>,
) {
    loop {
        match words::hear(&mut words).await {
            Ok(Old::Ended { id, outcome, forget }) => {
                if let Some(sender) = running.remove(&id) {
                    sender.send_replace(Some(outcome.into()));
                }
                if forget {
                    agent.memory.forget(&id);
                }
            }
            Ok(_) => {}
            Err(error) => {
                if !running.is_empty() {
                    log::warn(format_args!(
                        "{} requests have an end that nobody knows: {error}",
                        running.len()
                    ));
                }
                break;
            }
        }
    }
    for sender in running.into_values() {
        let text = "the agent that worked on the request was ended before it could say how it went";
        let error = ErrorBody::new(ErrorCode::Unavailable, text).retryable(false);
        sender.send_replace(Some(Err(error)));
    }
}
