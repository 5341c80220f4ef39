//! What is done for a guest for as long as the link to its agent is up: the agent is told what the spec wants watched,
//! and the guest's figures are taken as often as the spec wants.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use drover_schemas::body::guest::Empty;
use drover_schemas::body::samples::{GuestSample, VmSample};
use drover_schemas::body::spec::AgentSpec;
use drover_schemas::guest::{ConfigureRequest, SampleResult, verb};
use drover_schemas::subject::Subject;
use drover_schemas::{Token, VmId};
use tokio::sync::oneshot;
use tokio::time::{MissedTickBehavior, interval, sleep};
use tracing::{debug, warn};

use super::actor::VmRef;
use super::guest_calls::{self, CALL};
use super::marks::Marks;
use super::message::VmMsg;
use super::network;
use crate::guest::Link;
use crate::samples::guest::{figures, have_changed};
use crate::samples::send;
use crate::services::{Shared, now_ms};

/// After how long an agent that could not be told is told again.
const CONFIGURE_AGAIN: Duration = Duration::from_secs(5);

/// Who is tended, and how.
#[derive(Debug)]
pub struct Tend {
    /// The host.
    pub services: Shared,
    /// The VM's actor.
    pub vm: VmRef,
    /// Its namespace.
    pub namespace: Token,
    /// Its name.
    pub name: Token,
    /// Its identity.
    pub vm_id: VmId,
    /// What its spec wants.
    pub spec: AgentSpec,
    /// What its interfaces are to have.
    pub network: Vec<network::Wanted>,
    /// That the agent cannot do what the spec wants was said.
    pub said: AtomicBool,
    /// What is held against its agent.
    pub marks: Marks,
}

/// Figures of a guest are forgotten with the link.
struct Kept<'a>(&'a Tend);

impl Drop for Kept<'_> {
    fn drop(&mut self) {
        self.0.services.guests.forget(self.0.vm_id);
    }
}

impl Tend {
    /// Tends the guest; to be dropped when the link has ended. It never comes back.
    pub async fn run(&self, link: &Link) {
        let sampling = async {
            if let Some(every) = self.spec.metrics_interval_ms {
                self.sample(link, Duration::from_millis(every)).await;
            }
        };
        let network = network::set_up(link, self.vm_id, &self.network, self.spec.allows(verb::NETWORK));
        tokio::join!(self.configure(link), network, sampling);
        std::future::pending().await
    }

    /// The agent may be another one, or the guest have another's memory: it is told each time, also that the spec wants
    /// nothing.
    async fn configure(&self, link: &Link) {
        let request = self.spec.settings();
        self.marks.set_unwatched(None);
        if let Err(error) = link.offers(verb::CONFIGURE) {
            if request != ConfigureRequest::default() {
                self.is_unwatched(error.to_string());
            }
            return;
        }
        loop {
            match guest_calls::alike::<_, Empty>(link, verb::CONFIGURE, None, CALL, &request).await {
                Ok(Empty {}) => return,
                // It may be busy with its boot, or the VM is paused.
                Err(error) if error.retryable && link.is_open() => {
                    debug!(%error, "the agent is told again what to watch");
                    sleep(CONFIGURE_AGAIN).await;
                }
                Err(error) => return self.is_unwatched(error.to_string()),
            }
        }
    }

    /// Kept where the VM's status shows it, and logged once.
    fn is_unwatched(&self, why: String) {
        if !self.said.swap(true, Ordering::Relaxed) {
            warn!(error = why, vm_id = %self.vm_id, "what the spec wants watched is not watched");
        }
        self.marks.set_unwatched(Some(why));
    }

    async fn sample(&self, link: &Link, every: Duration) {
        if let Err(error) = link.offers(verb::SAMPLE) {
            debug!(%error, "no figures of this guest");
            return;
        }
        let _kept = Kept(self);
        let (mut before, mut told) = (None, None);
        let mut ticks = interval(every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let said: Result<SampleResult, _> =
                guest_calls::alike(link, verb::SAMPLE, None, CALL, &Empty {}).await;
            match said {
                Ok(said) => {
                    let counted = (said.cpu_busy_ms, said.cpu_total_ms);
                    let sample = figures(said, before.replace(counted), now_ms());
                    self.services.guests.put(self.vm_id, sample.clone());
                    if told.as_ref().is_none_or(|told| have_changed(told, &sample))
                        && self.tell(&sample).await
                    {
                        told = Some(sample);
                    }
                }
                Err(error) => {
                    debug!(%error, "a guest gave no figures");
                    self.services.guests.forget(self.vm_id);
                    before = None;
                }
            }
        }
    }

    /// Publishes figures by themselves, if anybody could hear them.
    async fn tell(&self, guest: &GuestSample) -> bool {
        if self.services.client.connection_state() != async_nats::connection::State::Connected {
            return false;
        }
        let (reply, status) = oneshot::channel();
        let _ = self.vm.cast(VmMsg::Status(reply));
        let Ok(status) = status.await else { return false };
        let memory_bytes = self.services.memory_of(self.vm_id);
        let (name, vm_id, guest) = (self.name.clone(), self.vm_id, Some(guest.clone()));
        let nics = Vec::new();
        let sample = VmSample { name, vm_id, state: status.state, memory_bytes, guest, nics };
        let subject = Subject::VmMetric { ns: self.namespace.clone(), name: self.name.clone() };
        send(&self.services, &subject, &sample).await;
        true
    }
}
