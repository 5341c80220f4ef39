//! Events from inside the guest, on their way from the link to the journal: what a VM's actor does about them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use drover_schemas::event::{AgentEvent, DroppedEvents, VmEventKind};
use drover_schemas::guest::EventAck;
use tokio::sync::oneshot;
use tracing::{debug, warn};

use super::{VmActorState, VmRef};
use crate::chain;
use crate::guest::{EventBatch, EventReader};
use crate::journal::{Batch, EventClass, Op as Write, VmRow};
use crate::services::now_ms;
use crate::vm::inside::{self, Allowance, EventLimits, TELL_EVERY};
use crate::vm::message::VmMsg;
use crate::vm::prepare::append;
use crate::vm::row::EventDraft;

/// The first pause before events are offered to a journal again that has no room for them.
const PAUSE: Duration = Duration::from_millis(250);
/// The longest.
const MAX_PAUSE: Duration = Duration::from_secs(10);
/// Pause after a batch of which something was too much: a guest that floods makes few commits.
const FLOOD_PAUSE: Duration = Duration::from_millis(250);

/// What became of a batch.
#[derive(Debug)]
pub struct Taken {
    /// What the agent is told.
    pub ack: Option<EventAck>,
    /// Something was dropped.
    pub dropped: bool,
}

/// Where the outcome of a batch goes; `None`: nothing of it is durable, try again.
pub type TakenSender = oneshot::Sender<Option<Taken>>;

/// Carries the events of a link to the VM's actor, one batch at a time, and answers them, until the link ends.
pub(in crate::vm) async fn carry(vm: &VmRef, reader: &EventReader) {
    while let Some(batch) = reader.next().await {
        let batch = Arc::new(batch);
        let mut pause = PAUSE;
        loop {
            let (reply, taken) = oneshot::channel();
            if vm.cast(VmMsg::Inside { batch: Arc::clone(&batch), reply }).is_err() {
                return;
            }
            match taken.await {
                Ok(Some(taken)) => {
                    if let Some(ack) = taken.ack {
                        reader.acknowledge(ack);
                    }
                    if taken.dropped {
                        tokio::time::sleep(FLOOD_PAUSE).await;
                    }
                    break;
                }
                // Over another link they come again.
                _ if !reader.is_open() => return,
                _ => {
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(MAX_PAUSE);
                }
            }
        }
    }
}

impl VmActorState {
    fn event_limits(&self) -> EventLimits {
        self.services.limits.agent_events.of(&self.row.spec.agent.events)
    }

    /// Takes a batch: its events, what is known of them and what was dropped are durable together, or nothing is.
    pub(super) async fn on_inside(&mut self, myself: &VmRef, batch: &EventBatch) -> Option<Taken> {
        if self.gone.is_some() || self.row.released {
            // Its last event was told.
            return Some(Taken { ack: None, dropped: true });
        }
        let (limits, now) = (self.event_limits(), Instant::now());
        let mut left = self.allowance.unwrap_or_else(|| Allowance::full(limits, now));
        let mut row = self.row.clone();
        let published = inside::take(&mut row.inside, &mut left, limits, batch, now);
        let dropped = row.inside.dropped != self.row.inside.dropped;
        let mut drafts = published.into_iter().map(Said::Event).collect::<Vec<_>>();
        if let Err(error) = self.tell(&mut row, &mut drafts).await {
            debug!(error = %chain(&error), "the journal takes no events of the guest now");
            return None;
        }
        self.allowance = Some(left);
        self.tell_dropped_later(myself);
        Some(Taken { ack: inside::ack(&self.row.inside), dropped })
    }

    /// Sees to it that what was dropped is told, once for all that is dropped until then.
    pub(super) fn tell_dropped_later(&mut self, myself: &VmRef) {
        if !self.telling && self.row.inside.untold.count > 0 {
            self.telling = true;
            myself.send_after(TELL_EVERY, || VmMsg::TellDropped);
        }
    }

    pub(super) async fn on_tell_dropped(&mut self, myself: &VmRef) {
        self.telling = false;
        let untold = self.row.inside.untold;
        if untold.count == 0 || self.gone.is_some() || self.row.released {
            return;
        }
        let mut row = self.row.clone();
        row.inside.untold = DroppedEvents::default();
        if let Err(error) = self.tell(&mut row, &mut vec![Said::Dropped(untold)]).await {
            debug!(error = %chain(&error), "that events were dropped is told later");
        } else {
            warn!("{untold}");
        }
        self.tell_dropped_later(myself);
    }

    /// Commits `row` with these events, and takes it over.
    async fn tell(
        &mut self,
        row: &mut VmRow,
        said: &mut Vec<Said>,
    ) -> Result<(), crate::journal::JournalError> {
        let (services, now) = (&self.services, now_ms());
        let mut batch = Batch::new();
        for said in said.drain(..) {
            let draft = said.draft(row);
            append(services, &mut batch, row, EventClass::Agent, &draft, |_| None, now);
        }
        if *row != self.row {
            batch.push(Write::PutVm(Box::new(row.clone())));
        }
        services.journal.commit(batch).await?;
        self.row = row.clone();
        Ok(())
    }
}

/// What is told.
enum Said {
    Event(AgentEvent),
    Dropped(DroppedEvents),
}

impl Said {
    /// The state stays as it is.
    fn draft(self, row: &VmRow) -> EventDraft {
        let (kind, agent_event, dropped) = match self {
            Self::Event(event) => (VmEventKind::Agent, Some(event), None),
            Self::Dropped(dropped) => (VmEventKind::AgentDropped, None, Some(dropped)),
        };
        EventDraft { agent_event, dropped, ..EventDraft::new(kind, Some(row.state), row.state) }
    }
}
