//! Verbs whose request and answer agent and client see alike, such as the work that a guest does for its host.

use drover_schemas::blob::Blob;
use drover_schemas::body::guest::{ClockRequest, Empty};
use drover_schemas::guest::{
    FreezeRequest, FreezeResult, FrozenResult, IdentityRequest, IdentityResult, KeysChangeRequest,
    KeysChangeResult, KeysRequest, KeysResult, NetworkRequest, NetworkResult, OnlineRequest, OnlineResult,
    ReseedRequest, ThawResult, TrimRequest, TrimResult, UserAddRequest, UserAddResult, UserRmRequest,
    UserRmResult, UsersRequest, UsersResult, verb,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Answer, Instant, Request, Router, Token, body_of, guest_calls};
use crate::vm::clock;

impl Router {
    pub(super) async fn work(&self, ns: &Token, name: &Token, asked: &str, request: &Request) -> Answer {
        match asked {
            "freeze" => self.change::<FreezeRequest, FreezeResult>(ns, name, asked, request).await,
            "thaw" => self.change::<Empty, ThawResult>(ns, name, asked, request).await,
            "frozen" => self.ask::<Empty, FrozenResult>(ns, name, asked, request).await,
            "online" => self.change::<OnlineRequest, OnlineResult>(ns, name, asked, request).await,
            "trim" => self.change::<TrimRequest, TrimResult>(ns, name, asked, request).await,
            "network" => self.change::<NetworkRequest, NetworkResult>(ns, name, asked, request).await,
            "clock" => {
                let body: ClockRequest = request.decode()?;
                let link = self.link(ns, name).await?;
                let left = request.deadline.saturating_duration_since(Instant::now());
                body_of(request, &clock::clock(&link, left, &body).await?)
            }
            _ => self.identity(ns, name, request).await,
        }
    }

    /// Who may log in to the guest, and how.
    pub(super) async fn accounts(&self, ns: &Token, name: &Token, asked: &str, request: &Request) -> Answer {
        match asked {
            verb::USERS => self.ask::<UsersRequest, UsersResult>(ns, name, asked, request).await,
            verb::KEYS => self.ask::<KeysRequest, KeysResult>(ns, name, asked, request).await,
            verb::USER_ADD => self.change::<UserAddRequest, UserAddResult>(ns, name, asked, request).await,
            verb::USER_RM => self.change::<UserRmRequest, UserRmResult>(ns, name, asked, request).await,
            _ => self.change::<KeysChangeRequest, KeysChangeResult>(ns, name, asked, request).await,
        }
    }

    /// The new identity comes from random numbers, which a clone has in common with its twin until the host sends some.
    async fn identity(&self, ns: &Token, name: &Token, request: &Request) -> Answer {
        let body: IdentityRequest = request.decode()?;
        let link = self.link_for(ns, name, request).await?;
        let left = || request.deadline.saturating_duration_since(Instant::now());
        let entropy = Blob::from(rand::random::<[u8; 64]>().to_vec());
        let seed = ReseedRequest { entropy };
        let Empty {} = guest_calls::alike(&link, verb::RESEED, None, left(), &seed).await?;
        let done: IdentityResult =
            guest_calls::alike(&link, verb::IDENTITY, request.request_id, left(), &body).await?;
        body_of(request, &done)
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
