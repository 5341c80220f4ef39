//! Verbs whose request and answer agent and client see alike, such as the work that a guest does for its host.

use drover_schemas::body::guest::Empty;
use drover_schemas::guest::{FreezeRequest, FreezeResult, FrozenResult, ThawResult};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Answer, Instant, Request, Router, Token, body_of, guest_calls};

impl Router {
    pub(super) async fn work(&self, ns: &Token, name: &Token, verb: &str, request: &Request) -> Answer {
        match verb {
            "freeze" => self.change::<FreezeRequest, FreezeResult>(ns, name, verb, request).await,
            "thaw" => self.change::<Empty, ThawResult>(ns, name, verb, request).await,
            _ => self.ask::<Empty, FrozenResult>(ns, name, verb, request).await,
        }
    }

    /// A verb that changes nothing.
    pub(super) async fn ask<Q, A>(&self, ns: &Token, name: &Token, verb: &str, request: &Request) -> Answer
    where
        Q: Serialize + DeserializeOwned + Sync,
        A: Serialize + DeserializeOwned,
    {
        let body: Q = request.decode()?;
        let link = self.link(ns, name).await?;
        let left = request.deadline.saturating_duration_since(Instant::now());
        let answer: A = guest_calls::alike(&link, verb, None, left, &body).await?;
        body_of(request, &answer)
    }

    /// A verb that changes the guest, which its agent carries out once.
    pub(super) async fn change<Q, A>(&self, ns: &Token, name: &Token, verb: &str, request: &Request) -> Answer
    where
        Q: Serialize + DeserializeOwned + Sync,
        A: Serialize + DeserializeOwned,
    {
        let body: Q = request.decode()?;
        let link = self.link_for(ns, name, request).await?;
        let left = request.deadline.saturating_duration_since(Instant::now());
        let answer: A = guest_calls::alike(&link, verb, request.request_id, left, &body).await?;
        body_of(request, &answer)
    }
}
