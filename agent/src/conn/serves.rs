//! What a connection is for, apart from its frames: so that these can be tried without the guest that they change.

use std::sync::Arc;

use drover_schemas::guest::{AgentHello, Channel, EventAck, Request};
use tokio::sync::OwnedSemaphorePermit;

use super::{Outbox, Place, Stream};
use crate::dedupe::Outcome;
use crate::door::Door;
use crate::emit::send::Sending;
use crate::release::Release;
use crate::{Agent, memory, verbs};

/// Whoever a host has connected to.
pub trait Greets: Send + Sync {
    /// Who answers its requests.
    type Agent: Serves;

    /// Which agent it is.
    fn release(&self) -> &'static Release;
    /// The greeting, in this version of the protocol, if the host belongs here.
    fn greeting(&self, proto: u32) -> Option<AgentHello>;
    /// The host was greeted, and is reached this way: the agent, as soon as there is one.
    fn agent(&self, outbox: &Arc<Outbox>) -> impl Future<Output = Arc<Self::Agent>> + Send;
    /// The host asks for nothing more on this connection.
    fn moved(&self);
}

/// A host that came through a door.
#[derive(Debug)]
pub struct Came {
    /// Which.
    pub door: Arc<Door>,
    /// Its place among others.
    pub place: Place,
}

impl Greets for Came {
    type Agent = Agent;

    fn release(&self) -> &'static Release {
        self.door.facts.release
    }

    fn greeting(&self, proto: u32) -> Option<AgentHello> {
        let Door { facts, policy, connections, .. } = &*self.door;
        connections.are_taken().then(|| {
            let mut greeting = facts.hello(proto);
            greeting.allowed = policy.allowed(&greeting.capabilities);
            greeting
        })
    }

    async fn agent(&self, outbox: &Arc<Outbox>) -> Arc<Agent> {
        self.place.greeted(outbox);
        self.door.agent().await
    }

    fn moved(&self) {
        self.place.moved();
    }
}

/// Who answers the requests of a connection.
pub trait Serves: Send + Sync + 'static {
    /// Sends events for as long as it lives.
    type Events: Send;

    /// The channel on which a verb takes bytes from the host.
    fn takes(&self, verb: &str) -> Option<Channel>;
    /// A place for one more stream, if there is one.
    fn place(&self) -> Option<OwnedSemaphorePermit>;
    /// Carries out a request.
    fn run(self: &Arc<Self>, stream: &Stream, request: &Request) -> impl Future<Output = Outcome> + Send;
    /// Begins to send events.
    fn events(&self, outbox: &Arc<Outbox>) -> Self::Events;
    /// The host has these events.
    fn acknowledge(&self, ack: &EventAck);
    /// The host has said something.
    fn awake(&self);
    /// The host has had nothing to say for a while.
    fn idle(&self);
}

impl Serves for Agent {
    type Events = Sending;

    fn takes(&self, verb: &str) -> Option<Channel> {
        verbs::takes(verb)
    }

    fn place(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.streams).try_acquire_owned().ok()
    }

    async fn run(self: &Arc<Self>, stream: &Stream, request: &Request) -> Outcome {
        let outcome = verbs::run(self, stream, request).await;
        self.commands.note(request, outcome.as_ref().err());
        outcome
    }

    fn events(&self, outbox: &Arc<Outbox>) -> Sending {
        Sending::start(&self.events, outbox)
    }

    fn acknowledge(&self, ack: &EventAck) {
        self.events.acknowledge(&ack.log, ack.n);
    }

    fn awake(&self) {
        self.watch.awake();
    }

    fn idle(&self) {
        memory::give_back();
    }
}
