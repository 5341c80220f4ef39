//! Where hosts come in: they are greeted also before there is an agent to serve them.

use std::sync::Arc;

use tokio::sync::watch;

use crate::conn::{Came, Connections};
use crate::facts::Facts;
use crate::policy::Policy;
use crate::{Agent, conn, log};

use crate::listen::{AcceptError, Listener};

/// What a greeting needs, and the agent once there is one.
#[derive(Debug)]
pub struct Door {
    /// What is known of this guest and boot.
    pub facts: Facts,
    /// What the guest's owner allows.
    pub policy: Arc<Policy>,
    /// The connections that are open.
    pub connections: Arc<Connections>,
    agent: watch::Sender<Option<Arc<Agent>>>,
}

impl Door {
    /// A door without an agent behind it.
    #[must_use]
    pub fn new(facts: Facts) -> Arc<Self> {
        let (policy, connections) = (Arc::default(), Arc::default());
        Arc::new(Self { facts, policy, connections, agent: watch::Sender::new(None) })
    }

    /// From now on the agent serves whoever was greeted.
    pub fn open(&self, agent: Arc<Agent>) {
        self.agent.send_replace(Some(agent));
    }

    /// The agent, as soon as there is one.
    pub async fn agent(&self) -> Arc<Agent> {
        let mut agent = self.agent.subscribe();
        loop {
            if let Some(agent) = agent.borrow_and_update().clone() {
                return agent;
            }
            if agent.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Takes connections until the listener fails for good.
    ///
    /// # Errors
    /// [`AcceptError`] when no further connection can come.
    pub async fn serve(self: &Arc<Self>, listener: Listener) -> Result<(), AcceptError> {
        loop {
            self.connections.until(true).await;
            let socket = tokio::select! {
                socket = listener.accept() => socket?,
                // Those that wait are the next agent's.
                () = self.connections.until(false) => continue,
            };
            let Some(place) = self.connections.take() else {
                log::warn(format_args!("closed a connection: {} are open", conn::MAX_CONNECTIONS));
                continue;
            };
            tokio::spawn(conn::serve(socket, Came { door: Arc::clone(self), place }));
        }
    }
}
