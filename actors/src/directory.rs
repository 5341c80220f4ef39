//! Names of this host's VMs, shared by the router, which looks them up without a message, and the manager.
//!
//! A VM of the journal stands here from the first moment of the daemon, before it is adopted; until then its
//! slot has no actor and its callers hear `unavailable{phase: adopting}`. Each name has a subscription of its
//! own for as long as it stands here.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};
use std::time::{Duration, Instant};

use drover_schemas::body::spec::AgentSpec;
use drover_schemas::body::status::VmStatus;
use drover_schemas::{ErrorBody, ErrorCode, RequestId, Token, VmId};
use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use tokio::sync::oneshot;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use crate::bus::claims::NameKey;
use crate::bus::connect::caught_up;
use crate::chain;
use crate::guest::GuestIds;
use crate::journal::VmRow;
use crate::router::Router;
use crate::services::Services;
use crate::vm::actor::{VmRef, view};
use crate::vm::message::{View, VmMsg};

/// How long a subscription that ends waits for each message that is on its way.
const DRAIN: Duration = Duration::from_secs(5);

/// How long a create waits until its VM can be asked, and a delete until nobody asks any more.
const HEARD: Duration = Duration::from_secs(2);

/// Where a VM is found.
#[derive(Debug)]
pub struct Slot {
    /// The VM.
    pub vm_id: VmId,
    /// The epoch of its claim.
    pub owner_epoch: u64,
    /// The request that created it.
    pub create_request: RequestId,
    /// The digest of that request's body.
    pub create_sha256: String,
    /// Its claim was seen to be this host's when it was put here.
    pub owned: bool,
    /// What its agent may be asked for.
    pub agent: AgentSpec,
    /// Its actor; none before it is adopted and while a lost one is replaced.
    actor: RwLock<Option<VmRef>>,
    /// Ends whoever writes to its console.
    console: Mutex<Option<CancellationToken>>,
    /// Requests that went to its guest. They outlive an actor that is lost.
    guest_ids: Mutex<GuestIds>,
    /// Ends the VM's subscription.
    gone: CancellationToken,
    /// There is a subscription.
    served: AtomicBool,
    /// There is none any more, and the server knows.
    unheard: CancellationToken,
}

impl Slot {
    /// A slot without an actor.
    #[must_use]
    pub fn of(
        vm_id: VmId,
        owner_epoch: u64,
        create_request: RequestId,
        create_sha256: &str,
        owned: bool,
        agent: AgentSpec,
    ) -> Self {
        Self {
            vm_id,
            owner_epoch,
            create_request,
            create_sha256: create_sha256.to_owned(),
            owned,
            agent,
            actor: RwLock::new(None),
            console: Mutex::default(),
            guest_ids: Mutex::default(),
            gone: CancellationToken::new(),
            served: AtomicBool::new(false),
            unheard: CancellationToken::new(),
        }
    }

    /// Waits until nothing that is asked of a deleted VM reaches this host any more. Who asks after that hears from the
    /// server that nobody is there; before, a request could be on its way to a subscription that has ended.
    pub async fn unheard(&self) {
        if self.served.load(Ordering::Relaxed) && timeout(HEARD, self.unheard.cancelled()).await.is_err() {
            warn!(vm_id = %self.vm_id, "the bus does not know yet that a VM is gone");
        }
    }

    /// The actor, if there is one now.
    #[must_use]
    pub fn actor(&self) -> Option<VmRef> {
        self.actor.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Notes that a request goes to a boot of the guest.
    ///
    /// # Errors
    /// It went to an earlier boot.
    pub fn bind_guest(&self, id: RequestId, boot_id: &str) -> Result<(), ErrorBody> {
        self.guest_ids.lock().unwrap_or_else(PoisonError::into_inner).bind(id, boot_id, Instant::now())
    }

    /// Takes the console for one writer, who ends when the token is cancelled and cancels it at the end.
    ///
    /// # Errors
    /// `busy`: another writes, and is not to be ended.
    pub fn take_console(&self, take: bool) -> Result<CancellationToken, ErrorBody> {
        let mut writer = self.console.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(other) = writer.as_ref().filter(|other| !other.is_cancelled()) {
            if !take {
                let text = "somebody writes to the console already; `logs` with `follow` reads it as well, `take` \
                            ends the other";
                return Err(ErrorBody::new(ErrorCode::Busy, text).with("operation", "console"));
            }
            other.cancel();
        }
        Ok(writer.insert(CancellationToken::new()).clone())
    }

    /// How the VM is by its actor's account, without its spec.
    pub async fn status(&self) -> Option<VmStatus> {
        let (reply, status) = oneshot::channel();
        let _ = self.actor()?.cast(VmMsg::Status(reply));
        status.await.ok()
    }

    /// Everything that its actor knows of the VM.
    pub async fn view(&self) -> Option<Box<View>> {
        view(&self.actor()?).await
    }

    pub(crate) fn set(&self, actor: Option<VmRef>) {
        *self.actor.write().unwrap_or_else(PoisonError::into_inner) = actor;
    }
}

/// Names of this host's VMs, in order.
#[derive(Debug, Default)]
pub struct Directory {
    names: RwLock<BTreeMap<(Token, Token), Arc<Slot>>>,
    router: OnceLock<Router>,
}

impl Directory {
    /// The slot of a name.
    #[must_use]
    pub fn get(&self, namespace: &Token, name: &Token) -> Option<Arc<Slot>> {
        let names = self.names.read().unwrap_or_else(PoisonError::into_inner);
        names.get(&(namespace.clone(), name.clone())).cloned()
    }

    /// Slots of a namespace by name, from `after` on.
    #[must_use]
    pub fn page(&self, namespace: &Token, after: Option<&Token>, limit: usize) -> Vec<(Token, Arc<Slot>)> {
        let names = self.names.read().unwrap_or_else(PoisonError::into_inner);
        let from = match after {
            Some(after) => Bound::Excluded((namespace.clone(), after.clone())),
            None => names
                .keys()
                .find(|(ns, _)| ns >= namespace)
                .map_or(Bound::Unbounded, |first| Bound::Included(first.clone())),
        };
        names
            .range((from, Bound::Unbounded))
            .take_while(|((ns, _), _)| ns == namespace)
            .take(limit)
            .map(|((_, name), slot)| (name.clone(), Arc::clone(slot)))
            .collect()
    }

    /// Every slot.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<Slot>> {
        self.names.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// Makes the slot of a VM, or finds it. A VM that is deleted but for its name does not take the name
    /// from one that has it already.
    pub fn insert(&self, row: &VmRow) -> Arc<Slot> {
        let mut names = self.names.write().unwrap_or_else(PoisonError::into_inner);
        let fresh = || {
            let VmRow { vm_id, owner_epoch, create_request, create_sha256, .. } = row;
            Arc::new(Slot::of(
                *vm_id,
                *owner_epoch,
                *create_request,
                create_sha256,
                row.owned && !row.released,
                row.spec.agent.clone(),
            ))
        };
        let slot = names.entry((row.namespace.clone(), row.name.clone())).or_insert_with(fresh);
        if slot.vm_id != row.vm_id && row.released {
            return fresh();
        }
        if slot.vm_id != row.vm_id {
            slot.gone.cancel();
            *slot = fresh();
        }
        Arc::clone(slot)
    }

    /// Makes the slot of a VM and subscribes for it: from here on requests for the VM are heard, whoever learns of it
    /// and however.
    pub async fn list(&self, services: &Services, row: &VmRow) {
        self.insert(row);
        self.serve(services, &row.namespace, &row.name).await;
        let bus = services.lanes.of(&row.namespace).await;
        // The first VM of a namespace may have a connection that is only being made.
        let heard = async { (bus.connected().await, bus.client.flush().await) };
        if timeout(HEARD, heard).await.is_err() {
            warn!(vm_id = %row.vm_id, "the bus does not hear yet what is asked of a VM");
        }
    }

    /// Names the router; once.
    pub fn set_router(&self, router: Router) {
        let _ = self.router.set(router);
    }

    /// Every name.
    #[must_use]
    pub fn names(&self) -> Vec<(Token, Token)> {
        self.names.read().unwrap_or_else(PoisonError::into_inner).keys().cloned().collect()
    }

    /// Subscribes for a VM of the directory, for as long as it stands there. The server knows of it before
    /// anything that is published afterwards on the connection of its namespace.
    pub fn serve<'a>(
        &'a self,
        services: &'a Services,
        namespace: &'a Token,
        name: &'a Token,
    ) -> BoxFuture<'a, ()> {
        // Boxed: the router leads to creates, and a create leads here.
        Box::pin(async move {
            let (Some(router), Some(slot)) = (self.router.get().cloned(), self.get(namespace, name)) else {
                return;
            };
            if slot.served.swap(true, Ordering::Relaxed) {
                return;
            }
            let client = services.lanes.of(namespace).await.client;
            match client.subscribe(services.subjects.vm_wildcard(namespace, name)).await {
                Ok(subscriber) => {
                    tokio::spawn(read(router, client, subscriber, slot));
                }
                Err(failure) => {
                    slot.served.store(false, Ordering::Relaxed);
                    error!(error = %chain(&failure), %namespace, %name, "a VM's subject could not be subscribed");
                }
            }
        })
    }

    /// Every name with its slot.
    #[must_use]
    pub fn named(&self) -> Vec<(NameKey, Arc<Slot>)> {
        let names = self.names.read().unwrap_or_else(PoisonError::into_inner);
        let named = names.iter().map(|((namespace, name), slot)| {
            (NameKey { namespace: namespace.clone(), name: name.clone() }, Arc::clone(slot))
        });
        named.collect()
    }

    pub(crate) fn remove(&self, row: &VmRow) {
        self.forget(&NameKey { namespace: row.namespace.clone(), name: row.name.clone() }, row.vm_id);
    }

    /// Takes a VM out, and ends its subscription.
    pub(crate) fn forget(&self, name: &NameKey, vm_id: VmId) {
        let mut names = self.names.write().unwrap_or_else(PoisonError::into_inner);
        let key = (name.namespace.clone(), name.name.clone());
        if names.get(&key).is_some_and(|slot| slot.vm_id == vm_id)
            && let Some(slot) = names.remove(&key)
        {
            slot.gone.cancel();
        }
    }
}

async fn read(
    router: Router,
    client: async_nats::Client,
    mut subscriber: async_nats::Subscriber,
    slot: Arc<Slot>,
) {
    loop {
        tokio::select! {
            message = subscriber.next() => match message {
                Some(message) => router.accept(&client, message).await,
                None => return,
            },
            () = slot.gone.cancelled() => break,
        }
    }
    // What is on its way already is answered too: an unsubscription alone would lose it.
    if subscriber.drain().await.is_ok() {
        while let Ok(Some(message)) = timeout(DRAIN, subscriber.next()).await {
            router.accept(&client, message).await;
        }
    }
    let _ = timeout(HEARD, caught_up(&client)).await;
    slot.unheard.cancel();
}
