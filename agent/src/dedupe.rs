//! The memory of requests: the same id in the same boot runs once, over whichever connection.
//!
//! A repetition while the first runs attaches to it: it gets the same result, though none of its
//! output. What failed before it had an effect is forgotten, so that a retry may run.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use drover_schemas::blob::Blob;
use drover_schemas::guest::{REMEMBERED, REMEMBERED_MS};
use drover_schemas::{ErrorBody, ErrorCode, RequestId};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tokio::sync::watch;

use crate::upgrade::Ended;

/// How a request ended: the verb's result, encoded, or an error.
pub type Outcome = Result<Bytes, ErrorBody>;
type Fingerprint = [u8; 32];

#[derive(Debug)]
struct Entry {
    fingerprint: Fingerprint,
    since: Instant,
    outcome: watch::Receiver<Option<Outcome>>,
}

#[derive(Debug, Default)]
struct State {
    entries: HashMap<RequestId, Entry>,
    order: VecDeque<RequestId>,
}

/// Requests of this boot.
#[derive(Debug, Default)]
pub struct Memory(Mutex<State>);

/// A request as the next agent of a boot is told of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remembered {
    /// Its id.
    pub id: RequestId,
    /// What the id is bound to.
    pub fingerprint: Blob,
    /// How long ago it came, in milliseconds.
    pub age_ms: u64,
    /// How it ended, if it has.
    #[serde(default)]
    pub ended: Option<Ended>,
}

/// Where the outcome of a request will be.
pub type Coming = watch::Receiver<Option<Outcome>>;

/// What to do with a request.
#[derive(Debug)]
pub enum Admission<'a> {
    /// Run it, and tell the ticket how it ended.
    Run(Ticket<'a>),
    /// It runs or ran: this will hold its outcome.
    Attach(watch::Receiver<Option<Outcome>>),
    /// The id belongs to another request, or there is no room to remember it.
    Refuse(ErrorBody),
}

/// The duty to say how a request ended; dropped without a word, the request is forgotten.
#[derive(Debug)]
pub struct Ticket<'a> {
    memory: &'a Memory,
    id: RequestId,
    outcome: watch::Sender<Option<Outcome>>,
    kept: bool,
}

impl Memory {
    fn state(&self) -> MutexGuard<'_, State> {
        // A poisoned lock guards a map that every operation leaves whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Decides about a request with an id.
    pub fn admit(&self, id: RequestId, verb: &str, body: &[u8]) -> Admission<'_> {
        let mut hash = Sha256::new();
        hash.update(verb.as_bytes());
        hash.update([0]);
        hash.update(body);
        let fingerprint: Fingerprint = hash.finalize().into();

        let mut state = self.state();
        state.forget_old();
        if let Some(entry) = state.entries.get(&id) {
            if entry.fingerprint != fingerprint {
                return Admission::Refuse(
                    ErrorBody::new(
                        ErrorCode::Conflict,
                        format!("request id {id} was used for another request; use a new id"),
                    )
                    .with("cause", "request_id_reused"),
                );
            }
            return Admission::Attach(entry.outcome.clone());
        }
        if state.entries.len() >= REMEMBERED && !state.make_room() {
            return Admission::Refuse(ErrorBody::new(
                ErrorCode::ResourceExhausted,
                format!("{REMEMBERED} requests are running; wait until some have ended"),
            ));
        }
        let (outcome, receiver) = watch::channel(None);
        state.entries.insert(id, Entry { fingerprint, since: Instant::now(), outcome: receiver });
        state.order.push_back(id);
        Admission::Run(Ticket { memory: self, id, outcome, kept: false })
    }

    /// All that is remembered, oldest first, and where the outcomes of what runs will be.
    #[must_use]
    pub fn hand_over(&self) -> (Vec<Remembered>, Vec<(RequestId, Coming)>) {
        let (mut all, mut running) = (Vec::new(), Vec::new());
        let state = self.state();
        for id in &state.order {
            let Some(entry) = state.entries.get(id) else { continue };
            let ended = entry.outcome.borrow().clone().map(Ended::from);
            if ended.is_none() {
                running.push((*id, entry.outcome.clone()));
            }
            let fingerprint = Bytes::copy_from_slice(&entry.fingerprint).into();
            let age_ms = u64::try_from(entry.since.elapsed().as_millis()).unwrap_or(u64::MAX);
            all.push(Remembered { id: *id, fingerprint, age_ms, ended });
        }
        (all, running)
    }

    /// Remembers what an agent before this one did; where the outcomes of what it still does are to be put. One that is
    /// dropped without an outcome has none that anybody will know.
    pub fn take_over(&self, requests: Vec<Remembered>) -> HashMap<RequestId, watch::Sender<Option<Outcome>>> {
        let mut running = HashMap::new();
        let mut state = self.state();
        for Remembered { id, fingerprint, age_ms, ended } in requests.into_iter().take(REMEMBERED) {
            let Ok(fingerprint) = Fingerprint::try_from(fingerprint.as_slice()) else { continue };
            let (sender, outcome) = watch::channel(ended.map(Outcome::from));
            if outcome.borrow().is_none() {
                running.insert(id, sender);
            }
            let age = Duration::from_millis(age_ms.min(REMEMBERED_MS));
            let since = Instant::now().checked_sub(age).unwrap_or_else(Instant::now);
            if state.entries.insert(id, Entry { fingerprint, since, outcome }).is_none() {
                state.order.push_back(id);
            }
        }
        running
    }

    /// Whether an id is bound to a request.
    pub(crate) fn knows(&self, id: &RequestId) -> bool {
        self.state().entries.contains_key(id)
    }

    pub(crate) fn forget(&self, id: &RequestId) {
        let mut state = self.state();
        state.entries.remove(id);
        state.order.retain(|other| other != id);
    }
}

impl State {
    fn forget_old(&mut self) {
        let keep = Duration::from_millis(REMEMBERED_MS);
        while let Some(id) = self.order.front() {
            match self.entries.get(id) {
                Some(entry) if entry.since.elapsed() < keep || entry.outcome.borrow().is_none() => break,
                _ => {
                    self.entries.remove(id);
                    self.order.pop_front();
                }
            }
        }
    }

    /// Forgets the oldest request that has ended.
    fn make_room(&mut self) -> bool {
        let ended = |id: &RequestId| self.entries.get(id).is_none_or(|e| e.outcome.borrow().is_some());
        let Some(at) = self.order.iter().position(ended) else { return false };
        if let Some(id) = self.order.remove(at) {
            self.entries.remove(&id);
        }
        true
    }
}

impl Ticket<'_> {
    /// The request ended; `effect` says whether it may have changed anything.
    pub fn finish(mut self, outcome: &Outcome, effect: bool) {
        self.kept = outcome.is_ok() || effect;
        self.outcome.send_replace(Some(outcome.clone()));
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        if !self.kept {
            self.memory.forget(&self.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use drover_schemas::codec;

    use super::*;

    const ID: RequestId = RequestId::from_u128(1);

    #[test]
    fn a_repetition_gets_the_same_result() {
        let memory = Memory::default();
        let Admission::Run(ticket) = memory.admit(ID, "exec", b"a") else { panic!("fresh") };
        let Admission::Attach(running) = memory.admit(ID, "exec", b"a") else { panic!("attaches") };
        assert!(running.borrow().is_none());
        ticket.finish(&Ok(Bytes::from_static(b"done")), true);
        assert_eq!(*running.borrow(), Some(Ok(Bytes::from_static(b"done"))));
        let Admission::Attach(done) = memory.admit(ID, "exec", b"a") else { panic!("replays") };
        assert_eq!(*done.borrow(), Some(Ok(Bytes::from_static(b"done"))));
    }

    #[test]
    fn another_request_under_the_same_id_is_a_conflict() {
        let memory = Memory::default();
        let Admission::Run(_ticket) = memory.admit(ID, "exec", b"a") else { panic!("fresh") };
        for (verb, body) in [("exec", b"b"), ("put", b"a")] {
            let Admission::Refuse(error) = memory.admit(ID, verb, body) else { panic!("refuses") };
            assert_eq!(error.code, ErrorCode::Conflict);
        }
    }

    #[test]
    fn what_failed_without_an_effect_may_run_again() {
        let memory = Memory::default();
        let Admission::Run(ticket) = memory.admit(ID, "put", b"") else { panic!("fresh") };
        ticket.finish(&Err(ErrorBody::new(ErrorCode::NotFound, "")), false);
        let Admission::Run(ticket) = memory.admit(ID, "put", b"") else { panic!("fresh again") };
        drop(ticket);
        let Admission::Run(ticket) = memory.admit(ID, "put", b"") else { panic!("fresh once more") };
        ticket.finish(&Err(ErrorBody::new(ErrorCode::GuestError, "")), true);
        assert!(matches!(memory.admit(ID, "put", b""), Admission::Attach(_)));
    }

    #[test]
    fn the_next_agent_knows_what_was_done_and_hears_of_what_ends() {
        let (old, new) = (Memory::default(), Memory::default());
        let (done, runs) = (ID, RequestId::from_u128(2));
        let Admission::Run(ticket) = old.admit(done, "exec", b"a") else { panic!("fresh") };
        ticket.finish(&Ok(Bytes::from_static(b"done")), true);
        let Admission::Run(ticket) = old.admit(runs, "put", b"b") else { panic!("fresh") };

        let (all, coming) = old.hand_over();
        let all = all.iter().map(|one| codec::decode(&codec::encode(one).unwrap()).unwrap()).collect();
        let mut running = new.take_over(all);
        assert_eq!(running.keys().collect::<Vec<_>>(), [&runs]);
        assert_eq!(coming.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [runs]);
        let Admission::Attach(known) = new.admit(done, "exec", b"a") else { panic!("replays") };
        assert_eq!(*known.borrow(), Some(Ok(Bytes::from_static(b"done"))));
        assert!(matches!(new.admit(done, "exec", b"b"), Admission::Refuse(_)));
        let Admission::Attach(still) = new.admit(runs, "put", b"b") else { panic!("attaches") };
        assert!(still.borrow().is_none());

        let error = ErrorBody::new(ErrorCode::GuestError, "no room");
        ticket.finish(&Err(error.clone()), true);
        let outcome = coming[0].1.borrow().clone().unwrap();
        running.remove(&runs).unwrap().send_replace(Some(Ended::from(outcome).into()));
        assert_eq!(*still.borrow(), Some(Err(error)));
    }

    #[test]
    fn memory_is_bounded_and_never_forgets_what_runs() {
        let memory = Memory::default();
        let Admission::Run(running) = memory.admit(ID, "exec", b"") else { panic!("fresh") };
        for n in 2..(REMEMBERED as u128 + 500) {
            let Admission::Run(t) = memory.admit(RequestId::from_u128(n), "exec", b"") else {
                panic!("fresh")
            };
            t.finish(&Ok(Bytes::new()), true);
        }
        assert_eq!(memory.state().entries.len(), REMEMBERED);
        assert_eq!(memory.state().order.len(), REMEMBERED);
        assert!(matches!(memory.admit(ID, "exec", b""), Admission::Attach(_)));
        drop(running);
    }
}
