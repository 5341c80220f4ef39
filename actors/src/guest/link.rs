//! The handle on a link, and how a link begins.

use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use drover_schemas::RequestId;
use drover_schemas::guest::wire::{self, Decoder};
use drover_schemas::guest::{
    AgentFrame, AgentHello, EVENTS, HostFrame, HostHello, PORT, PROTO_MAX, PROTO_MIN, Request,
};
use tokio::io::AsyncWriteExt as _;
use tokio::net::UnixStream;
use tokio::sync::{Mutex, MutexGuard};
use tokio::time::{Instant, timeout_at};
use tracing::info_span;

use super::dial::{dial, io_error};
use super::error::{CallError, GREETING, LinkError};
use super::stream::{GuestStream, StreamEvent};
use super::table::{Shared, State};
use super::task::{self, Heartbeat};

/// How long beyond its deadline a call waits for the agent to say so itself.
const SLACK: Duration = Duration::from_millis(250);

/// What the daemon says of itself, and how patient it is.
#[derive(Debug, Clone)]
pub struct HelloInfo {
    /// The daemon's version.
    pub version: String,
    /// Optional parts that it understands.
    pub features: Vec<String>,
    /// After how much silence the agent is asked whether it lives.
    pub heartbeat: Duration,
    /// How long it has to answer.
    pub patience: Duration,
}

impl Default for HelloInfo {
    fn default() -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            features: vec![EVENTS.to_owned()],
            heartbeat: Duration::from_secs(30),
            patience: Duration::from_secs(10),
        }
    }
}

/// A request that opens a stream.
#[derive(Debug, Clone, Default)]
pub struct Open {
    /// What to do: see [`drover_schemas::guest::verb`].
    pub verb: String,
    /// Makes it happen once.
    pub request_id: Option<RequestId>,
    /// How long the agent may take in all.
    pub deadline: Option<Duration>,
    /// The first limit of each channel from the guest, in bytes.
    pub credit: u64,
    /// The verb's request, encoded; it is not looked at.
    pub body: Bytes,
}

/// The longest text of a greeting: it is kept for as long as the link.
const MAX_TEXT: usize = 256;
/// The most verbs and optional parts of a greeting.
const MAX_OFFERS: usize = 256;

fn is_moderate(hello: &AgentHello) -> bool {
    let AgentHello { version, boot_id, instance, os, arch, kernel, hostname, .. } = hello;
    let offers =
        |offers: &[String]| offers.len() <= MAX_OFFERS && offers.iter().all(|offer| offer.len() <= MAX_TEXT);
    [version, boot_id, instance, os, arch, kernel, hostname].iter().all(|text| text.len() <= MAX_TEXT)
        && offers(&hello.capabilities)
        && hello.allowed.as_deref().is_none_or(offers)
}

#[derive(Debug)]
struct Handle {
    shared: Arc<Shared>,
    hello: Arc<AgentHello>,
    clock: Mutex<()>,
    /// The link to the agent that has taken the place of this one's.
    next: OnceLock<Link>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.close(LinkError::GivenUp);
    }
}

tokio::task_local! {
    /// Who asks for what is asked of guests.
    static CALLER: String;
}

/// Does `work`, whose requests to guests are `caller`'s: the agent's log names it.
pub async fn on_behalf_of<F: Future>(caller: String, work: F) -> F::Output {
    CALLER.scope(caller, work).await
}

/// A connection to the agent of one guest; cheap to clone.
#[derive(Debug, Clone)]
pub struct Link(Arc<Handle>);

impl Link {
    /// Dials the agent through the hypervisor's hybrid socket and greets it.
    ///
    /// # Errors
    /// [`LinkError`]; [`LinkError::may_pass`] tells whether the guest may just not be ready yet.
    pub async fn connect(
        vsock_socket: &Path,
        info: &HelloInfo,
        deadline: Duration,
    ) -> Result<(Self, Arc<AgentHello>), LinkError> {
        let until = Instant::now() + deadline;
        let late = |step| LinkError::Deadline { step, after_ms: deadline.as_millis() as u64 };
        let socket = timeout_at(until, dial(vsock_socket, PORT))
            .await
            .map_err(|_| late("the connection to the guest"))??;
        timeout_at(until, Self::greet(socket, info)).await.map_err(|_| late(GREETING))?
    }

    async fn greet(mut socket: UnixStream, info: &HelloInfo) -> Result<(Self, Arc<AgentHello>), LinkError> {
        let hello = HostFrame::Hello(HostHello {
            proto_min: PROTO_MIN,
            proto_max: PROTO_MAX,
            version: info.version.clone(),
            features: info.features.clone(),
        });
        let bytes = wire::encode(&hello).map_err(|_| LinkError::TooLong)?;
        socket.write_all(&bytes).await.map_err(io_error)?;
        let mut decoder = Decoder::default();
        let hello = loop {
            let frame = decoder.frame().map_err(|source| LinkError::Wire { source: Arc::new(source) })?;
            match frame {
                Some(AgentFrame::Hello(hello)) => break hello,
                Some(AgentFrame::Bye(bye)) => {
                    return Err(bye.error.map_or(LinkError::Closed, |error| LinkError::Bye { error }));
                }
                Some(_) => return Err(LinkError::Unexpected { frame: "frame before its hello" }),
                None => {}
            }
            socket.readable().await.map_err(io_error)?;
            match socket.try_read_buf(decoder.room()) {
                Ok(0) => return Err(LinkError::Closed),
                Ok(_) => {}
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(e) => return Err(io_error(e)),
            }
        };
        if hello.proto < PROTO_MIN || hello.proto > PROTO_MAX {
            return Err(LinkError::Unexpected { frame: "hello with a version that was not offered" });
        }
        if !is_moderate(&hello) {
            return Err(LinkError::Unexpected { frame: "greeting that is too long" });
        }
        let hello = Arc::new(hello);
        let shared = Arc::new(Shared::default());
        let heartbeat = Heartbeat { every: info.heartbeat, patience: info.patience };
        tokio::spawn(task::run(socket, decoder, Arc::clone(&shared), heartbeat));
        Ok((
            Self(Arc::new(Handle {
                shared,
                hello: Arc::clone(&hello),
                clock: Mutex::default(),
                next: OnceLock::new(),
            })),
            hello,
        ))
    }

    pub(super) fn shared(&self) -> &Shared {
        &self.0.shared
    }

    pub(super) fn share(&self) -> Arc<Shared> {
        Arc::clone(&self.0.shared)
    }

    /// The agent's greeting.
    #[must_use]
    pub fn hello(&self) -> &AgentHello {
        &self.0.hello
    }

    /// The turn of one who sets the clock: two that measured before either has moved it would move it twice as far.
    pub(crate) async fn clock_turn(&self) -> MutexGuard<'_, ()> {
        self.0.clock.lock().await
    }

    /// Whether requests can still be made.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.shared().state().closed.is_none()
    }

    /// Gives the link up: its streams end, and so does the work of them in the guest.
    pub fn close(&self) {
        self.shared().close(LinkError::GivenUp);
    }

    /// Waits for the end of the link and answers why. Holding the future does not keep the link.
    pub fn closed(&self) -> impl Future<Output = LinkError> + Send + use<> {
        self.when(|state| state.closed.clone())
    }

    /// Waits until another agent takes the place of this one; holding the future does not keep the link. What is open
    /// here goes on.
    pub fn moving(&self) -> impl Future<Output = ()> + Send + use<> {
        self.when(|state| state.moving.then_some(()))
    }

    /// Waits until there is what `look` looks for.
    fn when<T>(&self, look: fn(&State) -> Option<T>) -> impl Future<Output = T> + Send + use<T> {
        let shared = self.share();
        async move {
            loop {
                let changed = shared.changed.notified();
                if let Some(found) = look(&shared.state()) {
                    return found;
                }
                changed.await;
            }
        }
    }

    /// No other agent took its place.
    pub fn stay(&self) {
        self.shared().state().moving = false;
    }

    /// From now on requests of this link go over the next one, and the agent is told that none follows here.
    pub fn move_to(&self, next: &Self) {
        if self.0.next.set(next.clone()).is_ok() {
            self.shared().state().moved();
            self.shared().wake.notify_one();
        }
    }

    /// Whether the agent has a verb, or an optional part of one.
    ///
    /// # Errors
    /// [`LinkError::Lacks`]
    pub fn offers(&self, what: &str) -> Result<(), LinkError> {
        if self.hello().capabilities.iter().any(|offered| offered == what) {
            return Ok(());
        }
        let version = self.hello().version.chars().take(32).collect();
        Err(LinkError::Lacks { verb: what.to_owned(), version })
    }

    /// Opens a stream.
    ///
    /// # Errors
    /// [`LinkError::Lacks`] when the agent is too old, [`LinkError::Full`], [`LinkError::TooLong`], or why the link has
    /// ended.
    pub fn open(&self, open: Open) -> Result<GuestStream, LinkError> {
        if let Some(next) = self.0.next.get() {
            return next.open(open);
        }
        self.offers(&open.verb)?;
        let span = info_span!("guest.call", verb = open.verb);
        let request = Request {
            stream: 0,
            verb: open.verb,
            request_id: open.request_id,
            deadline_ms: open.deadline.map(|d| d.as_millis() as u64),
            traceparent: crate::trace::of(&span),
            caller: CALLER.try_with(Clone::clone).ok(),
            credit: open.credit,
            body: open.body.into(),
        };
        let (id, changed) = self.shared().state().open(request, self.hello().stream_credit)?;
        self.shared().wake.notify_one();
        Ok(GuestStream::new(self.clone(), id, changed, span))
    }

    /// One request, one answer. No credit is given, so a command that writes output needs
    /// `max_output_bytes: 0`, or [`Self::open`].
    ///
    /// # Errors
    /// [`CallError::Guest`] is the agent's answer. [`LinkError::Deadline`] leaves the outcome
    /// unknown: repeat with the same request id.
    pub async fn call(
        &self,
        verb: &str,
        request_id: Option<RequestId>,
        deadline: Duration,
        body: Bytes,
    ) -> Result<Bytes, CallError> {
        let open =
            Open { verb: verb.to_owned(), request_id, deadline: Some(deadline), body, ..Open::default() };
        let stream = self.open(open).map_err(CallError::Link)?;
        let answer = async {
            while let Some(event) = stream.recv().await {
                if let StreamEvent::End(end) = event {
                    return end.map_err(|error| match self.shared().state().closed.clone() {
                        Some(reason) if error == reason.clone().into() => CallError::Link(reason),
                        _ => CallError::Guest(error),
                    });
                }
            }
            Err(CallError::Link(LinkError::StreamEnded))
        };
        // The agent knows the deadline too and answers it better; this is for one that does not.
        tokio::time::timeout(deadline + SLACK, answer).await.unwrap_or_else(|_| {
            let after_ms = deadline.as_millis() as u64;
            Err(CallError::Link(LinkError::Deadline { step: "the guest's answer", after_ms }))
        })
    }
}
