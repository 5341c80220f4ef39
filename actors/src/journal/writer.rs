//! The only writer of the journal: one thread that commits whatever is queued in one transaction.
//!
//! While a commit waits for the disk the next callers queue up; the thread takes all of them (up to
//! [`MAX_GROUP`]) into the next one, so 64 creates at once cost a few flushes, not 64.
//!
//! Unhappy paths:
//! * The disk is full: the space set aside is released, batches marked essential are tried again,
//!   the others are answered `NoSpace` until the space could be set aside again.
//! * The disk fails: redb is opened again. A counter in the same transaction tells whether the group
//!   was committed all the same; if not, every caller gets the error.
//! * redb panics on a group: as a failing disk.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot, watch};

use super::batch::EncodedBatch;
use super::error::JournalError;
use super::folder::Reserve;
use super::outbox::OutboxLevel;
use super::store::{GroupFailure, Store, panic_message};

/// The most batches of one transaction.
pub(super) const MAX_GROUP: usize = 256;
/// How many batches may wait; more callers wait for room.
pub(super) const QUEUE: usize = 1024;
/// How often space is asked back from a full disk.
const RESERVE_RETRY: Duration = Duration::from_secs(2);

/// How the journal is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JournalHealth {
    /// Everything commits.
    Healthy,
    /// The disk is full: only deletes, ends and acknowledgements commit.
    NoSpace,
    /// The last commit failed; the next one tries again.
    Failing,
}

pub(super) enum Command {
    Commit { batch: EncodedBatch, answer: oneshot::Sender<Result<(), JournalError>> },
    Stop { done: oneshot::Sender<()> },
}

pub(super) struct Writer {
    pub store: Arc<Store>,
    pub outbox: Arc<OutboxLevel>,
    pub reserve: Reserve,
    pub health: watch::Sender<JournalHealth>,
    pub last_reserve_try: Option<Instant>,
}

type Answers = Vec<Result<(), JournalError>>;

impl Writer {
    pub(super) fn run(mut self, mut queue: mpsc::Receiver<Command>) {
        while let Some(first) = queue.blocking_recv() {
            let mut batches = Vec::new();
            let mut callers = Vec::new();
            let mut stop = None;
            let mut next = Some(first);
            while let Some(command) = next {
                match command {
                    Command::Commit { batch, answer } => {
                        batches.push(batch);
                        callers.push(answer);
                    }
                    Command::Stop { done } => {
                        stop = Some(done);
                        break;
                    }
                }
                next = if batches.len() < MAX_GROUP { queue.try_recv().ok() } else { None };
            }
            if !batches.is_empty() {
                for (caller, answer) in callers.into_iter().zip(self.commit(&batches)) {
                    // A caller that gave up has its batch all the same.
                    let _ = caller.send(answer);
                }
            }
            if let Some(done) = stop {
                self.store.close();
                let _ = done.send(());
                return;
            }
        }
        self.store.close();
    }

    fn commit(&mut self, batches: &[EncodedBatch]) -> Answers {
        if *self.health.borrow() == JournalHealth::NoSpace && !self.restore_reserve() {
            return self.commit_essential(batches);
        }
        match self.try_group(batches.iter()) {
            Ok(answers) => {
                self.set_health(JournalHealth::Healthy);
                answers
            }
            Err(GroupFailure::NoSpace) => {
                self.last_reserve_try = Some(Instant::now());
                self.set_health(JournalHealth::NoSpace);
                self.commit_essential(batches)
            }
            Err(GroupFailure::Other(source)) => {
                self.set_health(JournalHealth::Failing);
                batches.iter().map(|_| Err(JournalError::Write { source: Arc::clone(&source) })).collect()
            }
        }
    }

    /// Commits what frees something or records an end; the rest is told that the disk is full.
    fn commit_essential(&mut self, batches: &[EncodedBatch]) -> Answers {
        let mut committed = match self.try_group(batches.iter().filter(|b| b.essential)) {
            Ok(answers) => answers.into_iter(),
            Err(GroupFailure::NoSpace) => Vec::new().into_iter(),
            Err(GroupFailure::Other(source)) => {
                tracing::error!(error = %source, "essential batches could not be committed");
                Vec::new().into_iter()
            }
        };
        let answer = |b: &EncodedBatch| if b.essential { committed.next() } else { None };
        batches.iter().map(answer).map(|a| a.unwrap_or(Err(JournalError::NoSpace))).collect()
    }

    /// One transaction; after a failure the file is opened again, and the failure is taken back if
    /// the group turns out to be committed.
    fn try_group<'b>(
        &mut self,
        batches: impl Iterator<Item = &'b EncodedBatch> + Clone,
    ) -> Result<Answers, GroupFailure> {
        if batches.clone().next().is_none() {
            return Ok(Vec::new());
        }
        if !self.store.is_open() {
            // An earlier attempt to open it again failed.
            self.store.reopen().map_err(|e| GroupFailure::Other(Arc::new(e)))?;
            self.outbox.recount(&self.store);
        }
        let before = self.store.commits();
        let store = Arc::clone(&self.store);
        let result = catch_unwind(AssertUnwindSafe(|| store.commit_group(batches.clone())));
        let failure = match result {
            Ok(Ok((answers, changes))) => {
                self.outbox.committed(changes);
                return Ok(answers);
            }
            Ok(Err(failure)) => failure,
            Err(panic) => {
                let message = panic_message(&*panic);
                GroupFailure::Other(Arc::new(JournalError::Panicked { message }))
            }
        };
        tracing::error!(?failure, "the journal could not commit");
        if matches!(failure, GroupFailure::NoSpace) {
            // First of all: opening the file again writes too.
            self.reserve.release();
        }
        if let Err(error) = self.store.reopen() {
            tracing::error!(error = %error, source = ?std::error::Error::source(&error), "the journal could not be opened again");
            return Err(failure);
        }
        self.outbox.recount(&self.store);
        match (before, self.store.commits()) {
            (Ok(before), Ok(after)) if after > before => Ok(batches.map(|_| Ok(())).collect()),
            _ => Err(failure),
        }
    }

    fn restore_reserve(&mut self) -> bool {
        if self.last_reserve_try.is_some_and(|at| at.elapsed() < RESERVE_RETRY) {
            return false;
        }
        self.last_reserve_try = Some(Instant::now());
        let taken = self.reserve.take();
        if taken.is_ok() {
            self.last_reserve_try = None;
            self.set_health(JournalHealth::Healthy);
        }
        taken.is_ok()
    }

    fn set_health(&self, health: JournalHealth) {
        let changed = self.health.send_if_modified(|old| std::mem::replace(old, health) != health);
        if changed {
            tracing::warn!(?health, "the journal's health changed");
        }
    }
}
