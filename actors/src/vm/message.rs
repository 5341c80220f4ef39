//! What an actor of a VM is told.

use std::sync::Arc;

use drover_schemas::body::status::{Cause, VmStatus};
use drover_schemas::body::vm::{ChangeReply, EgressRequest, ForwardRequest, GrowRequest, LimitRequest, Wait};
use drover_schemas::state::Verb;
use drover_schemas::{ErrorBody, RequestId, VmId};
use tokio::sync::oneshot;

use super::actor::TakenSender;
use super::machine::{Effect, Input, Machine};
use super::row::Live;
use super::tasks::{Run, TaskEnd};
use crate::guest::{EventBatch, Link};
use crate::hypervisor::record::ExitRecord;
use crate::ingress::permits::Permit;
use crate::journal::VmRow;

/// Where the outcome of a change goes. Dropping it tells the waiter that the actor is gone.
pub type ChangeSender = oneshot::Sender<Result<ChangeReply, ErrorBody>>;

/// What the VM shall have.
#[derive(Debug)]
pub enum SpecChange {
    /// Other ports of the host lead to it.
    Forward(ForwardRequest),
    /// It may reach something else.
    Egress(EgressRequest),
    /// It may be faster or slower.
    Limit(LimitRequest),
    /// One of its disks is longer.
    Grow(GrowRequest),
}

/// A verb that changes the VM, decoded.
#[derive(Debug)]
pub struct Change {
    /// Which.
    pub verb: Verb,
    /// Its name on the bus.
    pub name: &'static str,
    /// Refuse unless the VM has this id.
    pub if_vm_id: Option<VmId>,
    /// Refuse unless the spec has this revision.
    pub if_revision: Option<u64>,
    /// When the reply is due.
    pub wait: Option<Wait>,
    /// `timeout_ms` or `grace_ms`.
    pub time_ms: u64,
    /// What of the spec it asks to change.
    pub spec: Option<SpecChange>,
    /// Id of the request.
    pub request_id: RequestId,
    /// Digest of the body.
    pub digest: String,
    /// The request's `traceparent`.
    pub trace: Option<String>,
    /// Gets the outcome.
    pub reply: ChangeSender,
    /// Returned when the request is over.
    pub permit: Permit,
}

/// What others may know of a VM.
#[derive(Debug, Clone)]
pub struct View {
    /// The row.
    pub row: VmRow,
    /// The machine.
    pub machine: Machine,
    /// What is not in the row.
    pub live: Live,
    /// Its VMM.
    pub run: Option<Run>,
    /// The link to its agent, while it is up.
    pub link: Option<Link>,
}

/// A message to the actor of a VM.
#[derive(Debug)]
pub enum VmMsg {
    /// A verb.
    Change(Box<Change>),
    /// Wait for the outcome of a request that was accepted before.
    Attach {
        /// The request.
        request_id: RequestId,
        /// Gets the outcome.
        reply: ChangeSender,
    },
    /// How it is; the status without its spec.
    Status(oneshot::Sender<VmStatus>),
    /// Everything that is known.
    View(oneshot::Sender<Box<View>>),
    /// Carry out what was made durable when the VM was created or adopted.
    Begin {
        /// The machine as it was made durable, with its task; none where the row says it all.
        machine: Option<Box<Machine>>,
        /// The machine's effects.
        effects: Vec<Effect>,
        /// The request's `traceparent`.
        trace: Option<String>,
    },
    /// The daemon started: this is what was found.
    Adopt {
        /// The VMM, if one lives.
        run: Option<Run>,
        /// What it means.
        input: Input,
    },
    /// A task ended.
    TaskDone {
        /// Which.
        generation: u64,
        /// How.
        end: TaskEnd,
    },
    /// The VMM ended.
    Exited {
        /// Which process.
        incarnation: u64,
        /// How.
        exit: ExitRecord,
    },
    /// The VMM wrote events, or it is time to look.
    Look,
    /// What the VMM says of the guest.
    Observed {
        /// Which process.
        incarnation: u64,
        /// What it means, in order.
        inputs: Vec<Input>,
    },
    /// The agent answered its greeting.
    LinkUp {
        /// Which attempt.
        generation: u64,
        /// The link.
        link: Link,
    },
    /// The link ended, or did not come up in time.
    LinkDown {
        /// Which attempt.
        generation: u64,
        /// Why.
        cause: Cause,
    },
    /// The daemon ends and was told to stop its VMs.
    HostStopping {
        /// How long the guest may take to go by itself.
        grace_ms: u64,
    },
    /// A timer ended.
    BackoffElapsed {
        /// Which.
        generation: u64,
    },
    /// The guest's programs, or its agent, say something.
    Inside {
        /// What.
        batch: Arc<EventBatch>,
        /// Gets the outcome.
        reply: TakenSender,
    },
    /// It is time to tell how many events were dropped.
    TellDropped,
    /// An input whose commit failed is tried again.
    Retry(Input),
    /// The name is free and the last event is stored.
    Finalised,
}
