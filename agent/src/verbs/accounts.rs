//! `users`, `user_add`, `user_rm`, `keys` and `keys_change`. Each works on a thread of its own, and goes on once it has
//! begun.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use drover_schemas::ErrorBody;
use drover_schemas::guest::{KeysChangeRequest, KeysRequest, Request, UserAddRequest, UserRmRequest, verb};
use serde::Serialize;

use super::{Effect, decode, file, reply};
use crate::dedupe::Outcome;
use crate::policy::Permit;
use crate::work::accounts::System;

pub(super) async fn run(request: &Request, permit: &Permit, effect: &Effect) -> Outcome {
    let body = request.body.as_slice();
    let permit = permit.clone();
    let here = System(Path::new("/"));
    match request.verb.as_str() {
        verb::USERS => {
            let request = decode(body)?;
            reply(&file::blocking(move || here.users(&request)).await?)
        }
        verb::KEYS => {
            let request: KeysRequest = decode(body)?;
            let work = move || {
                permit.concerns(verb::KEYS, here.uid(&request.user)?)?;
                here.keys(&request)
            };
            reply(&file::blocking(work).await?)
        }
        verb::USER_ADD => {
            let request: UserAddRequest = decode(body)?;
            permit.adds(&request)?;
            changing(effect, move |begins| here.add(&request, begins)).await
        }
        verb::USER_RM => {
            let request: UserRmRequest = decode(body)?;
            let work = move |begins: Begins| {
                permit.concerns(verb::USER_RM, here.uid(&request.user)?)?;
                here.remove(&request, begins)
            };
            changing(effect, work).await
        }
        _ => {
            let request: KeysChangeRequest = decode(body)?;
            let work = move |begins: Begins| {
                permit.concerns(verb::KEYS_CHANGE, here.uid(&request.user)?)?;
                here.change_keys(&request, begins)
            };
            changing(effect, work).await
        }
    }
}

/// Is called when the first thing is about to change.
pub(super) type Begins = Box<dyn FnOnce() + Send>;

pub(super) async fn changing<T: Serialize + Send + 'static>(
    effect: &Effect,
    work: impl FnOnce(Begins) -> Result<T, ErrorBody> + Send + 'static,
) -> Outcome {
    let has_begun = Arc::new(AtomicBool::default());
    let mark = Arc::clone(&has_begun);
    let begins: Begins = Box::new(move || mark.store(true, Ordering::Release));
    let done = file::blocking(move || work(begins)).await;
    if has_begun.load(Ordering::Acquire) {
        effect.begins();
    }
    reply(&done?)
}
