//! The life of an agent: from its socket, its own or that of the one before it, to its end.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use drover_schemas::guest::GuestKind;
use tokio::time::{Instant, sleep};

use crate::door::Door;
use crate::emit::own::end::Term;
use crate::emit::own::oom;
use crate::emit::socket::EventSocket;
use crate::emit::{Events, socket_beside};
use crate::facts::Facts;
use crate::front::Front;
use crate::listen::{AcceptError, Address, BindError, Listener};
use crate::power::Power;
use crate::runs::Runs;
use crate::upgrade::{Inherited, Succession, Successor};
use crate::{Agent, log};

/// How long an agent whose front was killed may take to end, and the socket to be free.
const IN_USE: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(50);

/// An agent cannot live on.
#[derive(Debug, thiserror::Error)]
pub enum LifeError {
    /// Nobody can reach it.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// Nobody can reach it any more.
    #[error(transparent)]
    Accept(#[from] AcceptError),
    /// Something of the system cannot be had.
    #[error("cannot {what}")]
    Start {
        /// What was tried.
        what: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It was to take the place of another agent.
    #[error("cannot take the place of the agent before this one")]
    Succeed {
        /// What went wrong.
        #[source]
        source: io::Error,
    },
    /// The process that stands before it was killed.
    #[error("the process that stands before the agent has ended")]
    FrontGone,
}

/// What an agent begins with.
#[derive(Debug)]
pub struct Life {
    /// Where hosts connect.
    pub listen: Address,
    /// Where it keeps what lives as long as a boot.
    pub run_dir: PathBuf,
    /// What is known of the guest.
    pub facts: Facts,
    /// How the guest is ended.
    pub power: Power,
    /// The process before it.
    pub front: Front,
    /// What an agent before it has handed over.
    pub inherited: Option<Inherited>,
}

fn start(what: &'static str) -> impl FnOnce(io::Error) -> LifeError {
    move |source| LifeError::Start { what, source }
}

fn succeed(source: io::Error) -> LifeError {
    LifeError::Succeed { source }
}

async fn bind(address: &Address) -> Result<Listener, BindError> {
    let until = Instant::now() + IN_USE;
    loop {
        match Listener::bind(address) {
            Err(error) if error.source.kind() == io::ErrorKind::AddrInUse && Instant::now() < until => {
                sleep(PAUSE).await;
            }
            bound => return bound,
        }
    }
}

impl Life {
    /// Serves hosts until this agent should end.
    ///
    /// # Errors
    /// [`LifeError`]
    pub async fn live(mut self) -> Result<(), LifeError> {
        let (before, listener, local) = match self.inherited.take() {
            Some(Inherited { words, listener, events }) => {
                let before = Successor::begin(words).await.map_err(succeed)?;
                self.facts.instance.clone_from(&before.instance);
                let local = events.map(EventSocket::inherit).transpose().map_err(succeed)?;
                (Some(before), Listener::inherit(&self.listen, listener)?, local)
            }
            None => {
                let listener = bind(&self.listen).await?;
                let local = EventSocket::bind(&socket_beside(&self.run_dir)).inspect_err(|error| {
                    log::warn(format_args!("programs cannot publish events: {}", log::chain(error)));
                });
                (None, listener, local.ok())
            }
        };
        log::info(format_args!("{} listens on {:?}", self.facts.release.version, self.listen));
        let succession = Succession::new(&listener, &self.front, local.as_ref());
        let succession = succession.map_err(start("keep the way to a next agent"))?;
        let term = Term::watch().map_err(start("watch for SIGTERM"))?;
        let door = Door::new(self.facts.clone());
        let serving = async {
            let agent = self.come(before, &door, local, succession).await?;
            let over = async {
                match &agent.succession {
                    Some(succession) => succession.is_over().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = term.received(&agent.events) => Ok(()),
                () = over => Ok(()),
            }
        };
        tokio::select! {
            ended = serving => ended,
            served = door.serve(listener) => Ok(served?),
            () = self.front.gone() => Err(LifeError::FrontGone),
        }
    }

    /// Takes up what agents of this boot have left, and serves whoever was greeted.
    async fn come(
        &self,
        before: Option<Successor>,
        door: &Door,
        local: Option<EventSocket>,
        succession: Succession,
    ) -> Result<Arc<Agent>, LifeError> {
        let (before, requests) = match before {
            Some(mut before) => {
                let requests = before.wait(self.facts.release.version).await.map_err(succeed)?;
                (Some(before), requests)
            }
            None => (None, Vec::new()),
        };
        // Now no other agent writes what is read here.
        let events = Events::open(&self.run_dir, &self.facts.boot_id);
        // The program that runs, also after another was put in its place.
        let runs = Runs::new(self.run_dir.clone(), "/proc/self/exe".into(), &door.facts.boot_id);
        self.watch(&events, local);
        let agent = Agent::new(door, self.power, runs, events, Some(succession));
        let running = agent.memory.take_over(requests);
        self.front.serve().map_err(start("tell who serves"))?;
        if let Some(before) = before {
            before.serve(Arc::clone(&agent), running).await.map_err(succeed)?;
        }
        door.open(Arc::clone(&agent));
        agent.watch.awake();
        Ok(agent)
    }

    /// Takes events of programs, and of the kernel. Without either the rest of the agent works all the same.
    fn watch(&self, events: &Arc<Events>, local: Option<EventSocket>) {
        if let Some(local) = local {
            tokio::spawn(local.serve(Arc::clone(events)));
        }
        if self.facts.kind != GuestKind::Process {
            let events = Arc::clone(events);
            tokio::spawn(async move {
                let all = events.is_new();
                if let Err(error) = oom::watch(events, all).await {
                    log::warn(format_args!(
                        "kills for memory are not told: the kernel's messages cannot be read: {error}"
                    ));
                }
            });
        }
    }
}
