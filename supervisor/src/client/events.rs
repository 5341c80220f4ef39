//! Events without gap or duplicate: pages of the log first, then the live subscription.
//!
//! The subscription is made before the first page is read, so whatever the pages miss is live. Each
//! VM's events are numbered without gaps; a number that was seen is skipped, a number that is too
//! high sends the feed back to the log, and so does a reconnect.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use async_nats::Subscriber;
use drover_schemas::body::events::{EventsLastRequest, EventsReadRequest};
use drover_schemas::codec;
use drover_schemas::event::{VmEvent, VmEventKind};
use drover_schemas::{RequestId, Token, VmId};
use futures_util::StreamExt as _;
use tokio::sync::watch;
use tracing::{debug, warn};

use super::{Client, ClientError};

const PAGE: u32 = 200;
const PAGE_DEADLINE: Duration = Duration::from_secs(15);

/// Where a feed begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Since {
    /// At the oldest event that is kept.
    Beginning,
    /// At this position of the stream.
    Cursor(u64),
    /// At this time.
    UnixMs(u64),
    /// With the last state of each VM.
    Last,
    /// With what happens from now on.
    Now,
}

/// Which events of a namespace are wanted; all of them by default.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    /// Only of this VM.
    pub vm: Option<Token>,
    /// Only of these kinds, if there are any.
    pub kinds: Vec<VmEventKind>,
    /// Only what this request led to.
    pub request_id: Option<RequestId>,
}

impl Wanted {
    /// Those of one VM.
    #[must_use]
    pub fn of_vm(vm: Token) -> Self {
        Self { vm: Some(vm), ..Self::default() }
    }

    fn takes(&self, event: &VmEvent) -> bool {
        self.vm.as_ref().is_none_or(|vm| *vm == event.name)
            && (self.kinds.is_empty() || self.kinds.contains(&event.kind))
            && self.request_id.is_none_or(|id| event.request_id == Some(id))
    }
}

/// A feed of a namespace's events, or of one VM's.
#[derive(Debug)]
pub struct EventFeed {
    client: Client,
    wanted: Wanted,
    live: Option<Subscriber>,
    connects: watch::Receiver<u64>,
    ready: VecDeque<VmEvent>,
    /// Next request for last states, while those are being read.
    last: Option<EventsLastRequest>,
    /// Next request to the log, while the log is being read.
    page: Option<EventsReadRequest>,
    /// Where to go on in the log after a gap.
    after: Option<u64>,
    last_time_ms: u64,
    seen: HashMap<VmId, u64>,
}

impl EventFeed {
    /// Opens a feed; with `follow` it does not end.
    ///
    /// # Errors
    /// The subscription was refused.
    pub async fn open(
        client: &Client,
        wanted: Wanted,
        since: Since,
        follow: bool,
    ) -> Result<Self, ClientError> {
        let ns = client.namespace();
        let subject = match &wanted.vm {
            Some(name) => client.subjects().vm_events(ns, name),
            None => client.subjects().ns_events(ns),
        };
        let live = if follow {
            let subscribed = client.nats().subscribe(subject.clone()).await;
            Some(subscribed.map_err(|source| ClientError::Subscribe { subject, source })?)
        } else {
            None
        };
        let mut connects = client.connects.clone();
        connects.mark_unchanged();
        let page = match since {
            Since::Beginning => Some((None, None)),
            Since::Cursor(at) => Some((Some(at.saturating_sub(1)), None)),
            Since::UnixMs(at) => Some((None, Some(at))),
            Since::Last | Since::Now => None,
        };
        let last = (since == Since::Last).then(EventsLastRequest::default);
        let mut feed = Self {
            client: client.clone(),
            wanted,
            last,
            live,
            connects,
            ready: VecDeque::new(),
            page: None,
            after: None,
            last_time_ms: super::time::now_unix_ms(),
            seen: HashMap::new(),
        };
        feed.page = page.map(|(after, since_unix_ms)| feed.request(after, since_unix_ms));
        Ok(feed)
    }

    /// Reads the log. A feed that follows needs all events of a VM to see a gap, and picks by itself.
    fn request(&self, after: Option<u64>, since_unix_ms: Option<u64>) -> EventsReadRequest {
        let Wanted { vm, kinds, request_id } = self.wanted.clone();
        let (kinds, request_id) = match self.live {
            Some(_) => (Vec::new(), None),
            None => (kinds, request_id),
        };
        EventsReadRequest { vm, kinds, request_id, after, since_unix_ms, limit: Some(PAGE) }
    }

    /// The next event; `None` when the log is at its end and the feed does not follow.
    ///
    /// # Errors
    /// The log could not be read, or the connection was closed.
    pub async fn next(&mut self) -> Result<Option<VmEvent>, ClientError> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Ok(Some(event));
            }
            if let Some(request) = self.last.take() {
                self.read_last(request).await?;
                continue;
            }
            if let Some(request) = self.page.take() {
                self.read_page(request).await?;
                continue;
            }
            let Some(live) = &mut self.live else { return Ok(None) };
            tokio::select! {
                message = live.next() => {
                    let message = message.ok_or(ClientError::Closed)?;
                    match codec::decode::<VmEvent>(&message.payload) {
                        Ok(event) => self.take_live(event),
                        // Other families (rejected requests) share the subject tree.
                        Err(error) => debug!(subject = %message.subject, error = %error, "not a VM event"),
                    }
                }
                Ok(()) = self.connects.changed() => self.reread(),
            }
        }
    }

    /// The last state of each VM; then the log goes on behind the first page.
    async fn read_last(&mut self, request: EventsLastRequest) -> Result<(), ClientError> {
        let page = self.client.last_events(&request, PAGE_DEADLINE).await?;
        for stored in page.events {
            if self.note(&stored.event) && self.wanted.takes(&stored.event) {
                self.ready.push_back(stored.event);
            }
        }
        match page.next_cursor {
            Some(cursor) => self.last = Some(EventsLastRequest { cursor: Some(cursor), ..request }),
            None => self.page = Some(self.request(Some(page.after), None)),
        }
        Ok(())
    }

    async fn read_page(&mut self, request: EventsReadRequest) -> Result<(), ClientError> {
        let page = self.client.read_events(&request, PAGE_DEADLINE).await?;
        for stored in page.events {
            self.after = Some(stored.cursor);
            if self.note(&stored.event) && self.wanted.takes(&stored.event) {
                self.ready.push_back(stored.event);
            }
        }
        if page.trimmed {
            warn!(after = request.after, "events were missed: they are not kept any more");
        }
        let moved = request.after != Some(page.next_cursor);
        // 0 stands for an empty page from a time on, not for the beginning of the log.
        if page.next_cursor > 0 {
            self.after = self.after.max(Some(page.next_cursor));
        }
        if !page.end && moved {
            self.page =
                Some(EventsReadRequest { after: Some(page.next_cursor), since_unix_ms: None, ..request });
        }
        Ok(())
    }

    fn take_live(&mut self, event: VmEvent) {
        let last = self.seen.get(&event.vm_id).copied();
        if last.is_some_and(|last| event.seq > last + 1) {
            warn!(vm = %event.name, seq = event.seq, last, "live events were lost; reading the log");
            self.reread();
        } else if self.note(&event) && self.wanted.takes(&event) {
            self.ready.push_back(event);
        }
    }

    /// Goes back to the log where it was left; what was seen is skipped.
    fn reread(&mut self) {
        let since_unix_ms = self.after.is_none().then_some(self.last_time_ms.saturating_sub(1));
        self.page = Some(self.request(self.after, since_unix_ms));
    }

    /// Whether the event is new.
    fn note(&mut self, event: &VmEvent) -> bool {
        let last = self.seen.entry(event.vm_id).or_insert(0);
        let new = event.seq > *last;
        *last = event.seq.max(*last);
        self.last_time_ms = self.last_time_ms.max(event.time_unix_ms);
        new
    }
}
