//! Work by the name of an image that is done once: who asks for the same while it is under way waits for it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use drover_schemas::{ErrorBody, ErrorCode, Token};
use futures_util::future::{BoxFuture, FutureExt as _, Shared};

use crate::services::broke_off;

/// Work of one kind that is under way or waits.
const WAITING: usize = 64;

type Outcome<R> = Shared<BoxFuture<'static, Result<R, ErrorBody>>>;

/// What is under way.
#[derive(Debug)]
pub(super) struct Once<Q, R: Clone> {
    verb: &'static str,
    running: Mutex<HashMap<Token, (Q, Outcome<R>)>>,
}

impl<Q, R> Once<Q, R>
where
    Q: PartialEq + Send + 'static,
    R: Clone + Send + Sync + 'static,
{
    pub(super) fn new(verb: &'static str) -> Self {
        Self { verb, running: Mutex::default() }
    }

    /// Does the work, or waits for the same.
    ///
    /// # Errors
    /// What the work answers; `busy` while other work of the name is under way, or too much of all.
    pub(super) async fn run(
        self: &Arc<Self>,
        name: Token,
        asked: Q,
        work: impl Future<Output = Result<R, ErrorBody>> + Send + 'static,
    ) -> Result<R, ErrorBody> {
        let outcome = {
            let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
            match running.get(&name) {
                Some((other, outcome)) if *other == asked => outcome.clone(),
                Some(_) => {
                    let text = format!("{} of image {name} is under way already; repeat it later", self.verb);
                    return Err(ErrorBody::new(ErrorCode::Busy, text).with("operation", self.verb));
                }
                None if running.len() >= WAITING => {
                    let text = format!("too many of {} are under way; repeat it later", self.verb);
                    return Err(ErrorBody::new(ErrorCode::Busy, text).with("limit", WAITING));
                }
                None => {
                    // Whoever asked may stop waiting; what was begun is carried out.
                    let ended = Ended(Arc::clone(self), name.clone());
                    let task = tokio::spawn(async move {
                        let _ended = ended;
                        work.await
                    });
                    let outcome = async { task.await.unwrap_or_else(|_| Err(broke_off())) }.boxed().shared();
                    running.insert(name, (asked, outcome.clone()));
                    outcome
                }
            }
        };
        outcome.await
    }
}

/// Takes work out of what is under way, however it ends.
struct Ended<Q, R: Clone>(Arc<Once<Q, R>>, Token);

impl<Q, R: Clone> Drop for Ended<Q, R> {
    fn drop(&mut self) {
        self.0.running.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.1);
    }
}
