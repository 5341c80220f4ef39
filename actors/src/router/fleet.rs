//! What concerns more than one host: the list of VMs, the list of hosts, and the end of a host.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use drover_schemas::body::host::{ForgetReply, ForgetRequest, HostsReply, HostsRequest};
use drover_schemas::body::status::VmStatus;
use drover_schemas::body::vm::{HostNotSeen, ListReply, ListRequest};
use drover_schemas::{ErrorBody, ErrorCode, RequestId, Token, codec};
use tracing::warn;

use super::Router;
use crate::chain;
use crate::directory::Slot;
use crate::fleet::forget::forget;
use crate::host_log::HostNote;
use crate::page::cut;
use crate::services::now_ms;

/// Items of one page if the caller does not say.
const PAGE: u32 = 100;
/// VMs of one page at the most.
const PAGE_MAX: u32 = 500;
/// Hosts of one page at the most.
const HOSTS_MAX: u32 = 200;
/// A page of VMs stays below this many bytes, so that the reply fits.
const PAGE_BYTES: usize = 256 * 1024;

impl Router {
    /// A page of the namespace's VMs, over the whole fleet: this host's own as they are, the others as the bucket of
    /// states has them.
    pub(super) async fn list(&self, ns: &Token, body: ListRequest) -> Result<ListReply, ErrorBody> {
        let limit = body.limit.unwrap_or(PAGE).clamp(1, PAGE_MAX) as usize;
        let mut after = body
            .cursor
            .map(|c| Token::new(&c))
            .transpose()
            .map_err(|e| ErrorBody::new(ErrorCode::InvalidArgument, format!("cursor: {e}")))?;
        self.services.assets().await?;
        let mut reply = ListReply { vms: Vec::new(), hosts_not_seen: Vec::new(), next_cursor: None };
        let mut bytes = 0;
        // Names without a VM are passed over, so one pass may not fill the page.
        loop {
            let (names, rows, own) = self.look_at(ns, after.as_ref(), limit).await?;
            let more = names.len() > limit;
            for name in names.into_iter().take(limit) {
                if let Some(vm) = self.state_of(&name, &rows, &own).await {
                    bytes += codec::encode(&vm).map_or(0, |encoded| encoded.len());
                    reply.vms.push(vm);
                }
                let full = reply.vms.len() >= limit || bytes >= PAGE_BYTES;
                after = Some(name);
                if full {
                    break;
                }
            }
            let full = reply.vms.len() >= limit || bytes >= PAGE_BYTES;
            if full || !more {
                reply.next_cursor = match &after {
                    Some(last) if full && self.is_more(ns, last).await? => Some(last.to_string()),
                    _ => None,
                };
                break;
            }
        }
        let hosts: BTreeSet<&Token> = reply.vms.iter().map(|vm| &vm.host).collect();
        let silent = hosts.into_iter().filter(|host| **host != self.services.host).filter_map(|host| {
            let (online, last_seen_unix_ms) = self.services.inventory.seen(host);
            (!online).then(|| HostNotSeen { host: host.clone(), last_seen_unix_ms })
        });
        reply.hosts_not_seen = silent.collect();
        Ok(reply)
    }

    /// Up to one more than `limit` names, with the rows and the slots of the first `limit`.
    async fn look_at(
        &self,
        ns: &Token,
        after: Option<&Token>,
        limit: usize,
    ) -> Result<(BTreeSet<Token>, BTreeMap<Token, VmStatus>, BTreeMap<Token, Arc<Slot>>), ErrorBody> {
        let own: BTreeMap<Token, Arc<Slot>> = self.directory.page(ns, after, limit + 1).into_iter().collect();
        let states = &self.services.states;
        let stored = states.names(ns, after, limit + 1).await.map_err(|e| unreadable(&e))?;
        let names: BTreeSet<Token> = stored.iter().chain(own.keys()).cloned().collect();
        let names: BTreeSet<Token> = names.into_iter().take(limit + 1).collect();
        let others = names.iter().take(limit).filter(|name| !own.contains_key(*name)).cloned().collect();
        let rows = states.rows(ns, others).await.map_err(|e| unreadable(&e))?;
        Ok((names, rows.into_iter().map(|row| (row.name.clone(), row)).collect(), own))
    }

    async fn state_of(
        &self,
        name: &Token,
        rows: &BTreeMap<Token, VmStatus>,
        own: &BTreeMap<Token, Arc<Slot>>,
    ) -> Option<VmStatus> {
        match own.get(name) {
            Some(slot) => slot.status().await,
            // A row of this host that it does not have any more is about to go.
            None => rows.get(name).filter(|row| row.host != self.services.host).cloned(),
        }
    }

    async fn is_more(&self, ns: &Token, after: &Token) -> Result<bool, ErrorBody> {
        let stored = self.services.states.names(ns, Some(after), 1).await.map_err(|e| unreadable(&e))?;
        Ok(!stored.is_empty() || !self.directory.page(ns, Some(after), 1).is_empty())
    }
}

fn unreadable(error: &crate::bus::claims::KvError) -> ErrorBody {
    warn!(error = %chain(error), "the states of the fleet cannot be read");
    ErrorBody::new(ErrorCode::Unavailable, "the states of the fleet cannot be read now; repeat the request")
        .with("cause", "states")
}

/// A page of the hosts of the fleet.
pub(super) fn hosts(router: &Router, body: &HostsRequest) -> HostsReply {
    let limit = body.limit.unwrap_or(PAGE).clamp(1, HOSTS_MAX) as usize;
    let mut hosts = router.services.inventory.page(body.cursor.as_ref(), limit + 1);
    let next_cursor = cut(&mut hosts, limit, |last| last.host.clone());
    HostsReply { hosts, next_cursor }
}

/// Forgets another host.
pub(super) async fn forget_host(
    router: &Router,
    body: ForgetRequest,
    request_id: Option<RequestId>,
) -> Result<ForgetReply, ErrorBody> {
    let services = &router.services;
    if body.host == services.host {
        let text = "a host does not forget itself: ask another one, or delete its VMs";
        return Err(ErrorBody::new(ErrorCode::InvalidArgument, text).with("field", "host"));
    }
    services.assets().await?;
    let request_id = request_id.unwrap_or_else(RequestId::generate);
    let ForgetRequest { host, force } = body;
    let reply = forget(&services.claims, &services.states, &host, force, request_id, now_ms()).await?;
    warn!(%host, freed = reply.freed, "an operator had a host forgotten");
    let note =
        HostNote::alarm("host_forgotten", "an operator had a host forgotten; the names of its VMs are free");
    services
        .log
        .note(note.with("forgotten", &host).with("freed", reply.freed).with("request_id", request_id));
    Ok(reply)
}
