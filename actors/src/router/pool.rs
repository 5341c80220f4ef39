//! Verbs that any host answers, and `host.info`.

use std::collections::BTreeMap;
use std::sync::PoisonError;

use drover_schemas::body::host::{
    BackupReply, DrainReply, DrainRequest, HostInfo, OrphanRemoveRequest, OrphansReply, VmmInfo,
};
use drover_schemas::state::VmState;

use super::{
    Answer, ErrorBody, ErrorCode, ListRequest, LookupReply, LookupRequest, NameKey, Phase, PoolVerb, Reply,
    Request, Router, Token, ValidateReply, ValidateRequest, body_of, codec, config_text, interrupted,
};
use crate::chain;
use crate::create::Created;
use crate::fleet::presence;
use crate::hypervisor::landlock;
use crate::journal::{Batch, Op, VmRow};
use crate::services::Services;
use crate::spec::origins::values;
use crate::spec::resolve;
use drover_schemas::{RequestId, VmId};

impl Router {
    pub(super) async fn pool(&self, ns: &Token, verb: PoolVerb, request: &Request) -> Answer {
        match verb {
            PoolVerb::Create => match self.creator.create(ns, request).await? {
                Created::Here(reply) => body_of(request, &*reply),
                Created::Relayed(bytes) => Ok(Reply::Body(bytes.into())),
            },
            PoolVerb::List => {
                let body: ListRequest = request.decode()?;
                body_of(request, &self.list(ns, body).await?)
            }
            PoolVerb::Lookup => {
                let body: LookupRequest = request.decode()?;
                body_of(request, &self.lookup(ns, body.name).await?)
            }
            PoolVerb::Validate => {
                let body: ValidateRequest = request.decode()?;
                body_of(request, &self.validate(ns, body)?)
            }
        }
    }

    async fn lookup(&self, ns: &Token, name: Token) -> Result<LookupReply, ErrorBody> {
        let key = NameKey { namespace: ns.clone(), name };
        self.services.assets().await?;
        let found = self.services.claims.lookup(&key).await.map_err(|e| {
            tracing::warn!(error = %chain(&e), "a claim could not be read");
            e.to_body()
        })?;
        let Some((claim, _)) = found else { return Ok(LookupReply::NotFound {}) };
        match (claim.phase, claim.gone) {
            (Phase::Gone, Some(gone)) => {
                let reply = match gone.reply.as_slice() {
                    // It was forgotten with its host.
                    [] => None,
                    bytes => Some(codec::decode(bytes).map_err(|_| {
                        ErrorBody::new(ErrorCode::Internal, "the stored reply cannot be read")
                    })?),
                };
                Ok(LookupReply::Gone {
                    vm_id: claim.vm_id,
                    host: claim.host,
                    deleted_unix_ms: gone.deleted_unix_ms,
                    request_id: gone.request_id,
                    reply: reply.map(Box::new),
                })
            }
            (Phase::Placing, _) => Ok(LookupReply::Placing {
                vm_id: claim.vm_id,
                host: claim.host,
                request_id: claim.request_id,
            }),
            _ => {
                let (online, last_seen_unix_ms) = self.services.inventory.seen(&claim.host);
                Ok(LookupReply::Owned { vm_id: claim.vm_id, host: claim.host, last_seen_unix_ms, online })
            }
        }
    }

    fn validate(&self, ns: &Token, body: ValidateRequest) -> Result<ValidateReply, ErrorBody> {
        let resolved = resolve(ns, &body.spec, &self.services.templates, &self.services.images)?;
        let values = values(&resolved.spec, &resolved.origins);
        let spec = resolved.spec;
        let name = match body.name {
            Some(name) => name,
            None => Token::new("example").map_err(|e| ErrorBody::new(ErrorCode::Internal, e.to_string()))?,
        };
        let example = VmRow {
            vm_id: VmId::from_u128(0),
            namespace: ns.clone(),
            name,
            spec: spec.clone(),
            origins: resolved.origins,
            user_data: None,
            state: VmState::Creating,
            desired: drover_schemas::state::Desired::Running,
            revision: 1,
            incarnation: 1,
            seq: 0,
            owner_epoch: 0,
            created_unix_ms: 0,
            state_since_unix_ms: 0,
            cause: None,
            uid: 0,
            nics: Vec::new(),
            disks: Vec::new(),
            restarts: Vec::new(),
            operation: None,
            create_request: RequestId::from_u128(0),
            owned: false,
            create_sha256: String::new(),
            released: false,
            previous: Vec::new(),
            quarantined: None,
            inside: Default::default(),
        };
        Ok(ValidateReply { spec, vmm_config: config_text(&self.services, &example), values })
    }
}

pub(super) async fn host_info(router: &Router) -> HostInfo {
    let services = &router.services;
    let mut states: BTreeMap<String, u64> = BTreeMap::new();
    let slots = router.directory.all();
    for status in futures_util::future::join_all(slots.iter().map(|slot| slot.status())).await {
        let name = status.map_or("adopting", |s| s.state.as_str());
        *states.entry(name.to_owned()).or_default() += 1;
    }
    let version = &services.programs.version;
    HostInfo {
        host: services.host.clone(),
        installation: services.installation,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        features: presence::features(services),
        kernel: std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned(),
        started_unix_ms: router.started_unix_ms,
        pid: Some(std::process::id()),
        phase: presence::phase(services, *router.phase.borrow()).to_owned(),
        vmm: VmmInfo {
            path: services.programs.vmm.display().to_string(),
            version: version.text.clone(),
            emulated: version.is_softvmm(),
        },
        capacity: services.state.capacity(),
        states,
        outbox: services.journal.outbox_used().0,
        outbox_percent: services.journal.outbox_percent().into(),
        events: services.seen.log(),
        clock_offset_ms: services.seen.clock_offset_ms(),
        alarms: services.alarms.active(),
        namespaces: router.namespace_uses(),
        labels: services.labels.clone(),
        confinement: confinement(services),
    }
}

/// Backups that are kept.
const BACKUPS: usize = 8;

pub(super) async fn backup(router: &Router) -> Result<BackupReply, ErrorBody> {
    let services = router.services.clone();
    let made = tokio::task::spawn_blocking(move || {
        let dir = &services.backups;
        let failed = |e: std::io::Error| {
            ErrorBody::new(ErrorCode::ResourceExhausted, format!("no backup in {}: {e}", dir.display()))
        };
        std::fs::create_dir_all(dir).map_err(failed)?;
        // The order of names is that of time.
        let path = dir.join(format!("{}.redb", RequestId::generate()));
        let vms = services.state.capacity().vms;
        services.journal.backup_to(&path).map_err(|error| {
            let _ = std::fs::remove_file(&path);
            ErrorBody::new(ErrorCode::ResourceExhausted, chain(&error).to_string())
        })?;
        let size_bytes = std::fs::metadata(&path).map_err(failed)?.len();
        let mut all: Vec<_> = std::fs::read_dir(dir).map_err(failed)?.flatten().map(|e| e.path()).collect();
        all.retain(|path| path.extension().is_some_and(|end| end == "redb"));
        all.sort();
        for old in all.iter().rev().skip(BACKUPS) {
            let _ = std::fs::remove_file(old);
        }
        Ok(BackupReply { path: path.display().to_string(), size_bytes, vms })
    });
    made.await.map_err(|_| interrupted())?
}

pub(super) async fn drain(router: &Router, request: DrainRequest) -> Result<DrainReply, ErrorBody> {
    let services = &router.services;
    let batch = Batch::new().essential().with(Op::PutDraining(request.on));
    services.journal.commit(batch).await.map_err(|e| e.to_body())?;
    services.state.set_draining(request.on);
    tracing::info!(draining = request.on, "an operator asked");
    Ok(DrainReply { accepting: !request.on, vms: services.state.capacity().vms })
}

pub(super) async fn orphans(router: &Router) -> Result<OrphansReply, ErrorBody> {
    let (root, installation) = (router.services.run_root.clone(), router.services.installation);
    let known = router.directory.all().iter().map(|slot| slot.vm_id).collect();
    let found = tokio::task::spawn_blocking(move || crate::orphans::find(&root, installation, &known)).await;
    let mut orphans = found.map_err(|_| interrupted())?;
    let reasons = router.services.not_imported.lock().unwrap_or_else(PoisonError::into_inner);
    for orphan in &mut orphans {
        orphan.reason = reasons.get(&orphan.vm_id).cloned();
    }
    drop(reasons);
    router.services.quarantined.list(&router.services, &mut orphans);
    Ok(OrphansReply { orphans })
}

pub(super) async fn remove_orphan(
    router: &Router,
    request: OrphanRemoveRequest,
) -> Result<OrphansReply, ErrorBody> {
    let found = orphans(router).await?.orphans;
    let orphan = found.iter().find(|orphan| orphan.vm_id == request.vm_id).ok_or_else(|| {
        let text = format!("VM {} is no orphan of this machine; see host.orphans", request.vm_id);
        ErrorBody::new(ErrorCode::NotFound, text)
    })?;
    crate::orphans::remove(&router.services, orphan).await?;
    orphans(router).await
}

/// How VMs are confined and limited here, in words.
fn confinement(services: &Services) -> BTreeMap<String, String> {
    let programs = &services.programs;
    let cgroups = services.cgroups.problem().unwrap_or("memory, CPU and pids are limited for each VM");
    let user = match programs.confine {
        true => "each VMM has a user, a root and devices of its own and no capability",
        false => "switched off (vmm.confine): VMMs run as root and see the whole host",
    };
    let landlock = match (programs.confine, programs.version.is_softvmm()) {
        (true, true) => "off: software emulation starts programs of its own".to_owned(),
        (true, false) => landlock::describe(landlock::abi()),
        (false, _) => "off, with vmm.confine".to_owned(),
    };
    let launcher = programs.launcher.describe();
    [
        ("cgroups", cgroups.to_owned()),
        ("user", user.to_owned()),
        ("landlock", landlock),
        ("launcher", launcher),
    ]
    .map(|(key, words)| (key.to_owned(), words))
    .into()
}
