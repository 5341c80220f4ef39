use std::collections::BTreeSet;

use async_nats::jetstream;
use drover_schemas::InstallationId;
use futures_util::future::join_all;

use super::decide::{PreviousVerdict, judge_previous, remembered};
use super::subnets::{SubnetPool, Wanted, overlap};
use super::*;
use crate::bus::assets;
use crate::bus::testing::NatsServer;

const HOUR: u64 = 3_600_000;
const NOW: u64 = 1_000_000 * HOUR;

fn token(text: &str) -> Token {
    Token::new(text).unwrap()
}

fn name(text: &str) -> NameKey {
    NameKey { namespace: token("default"), name: token(text) }
}

fn request(at: u64, n: u128) -> RequestId {
    RequestId::from_u128((u128::from(at) << 80) | n)
}

fn attempt(n: u128, host: &str, now: u64) -> Attempt {
    Attempt {
        vm_id: VmId::from_u128(n),
        request_id: request(now, n),
        body_sha256: "aa".repeat(32),
        host: token(host),
        now_unix_ms: now,
        deadline_unix_ms: now + 10_000,
    }
}

fn gone(now: u64, n: u128) -> Gone {
    Gone { deleted_unix_ms: now, request_id: request(now - 1, n), reply: Blob::from(vec![n as u8]) }
}

fn write(found: Option<&Claim>, attempt: &Attempt) -> Claim {
    match decide_create(found, attempt) {
        Decision::Write(claim) => *claim,
        other => panic!("{other:?}"),
    }
}

fn answer(found: &Claim, attempt: &Attempt) -> ClaimOutcome {
    match decide_create(Some(found), attempt) {
        Decision::Answer(answer) => answer,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_name_belongs_to_the_request_that_claimed_it() {
    let first = attempt(1, "h1", NOW);
    let claim = write(None, &first);
    assert_eq!((claim.phase, claim.owner_epoch), (Phase::Placing, 1));
    for phase in [Phase::Placing, Phase::Owned] {
        let claim = Claim { phase, ..claim.clone() };
        // Another VM id and host in the attempt: a retry that landed elsewhere.
        let retry = Attempt { vm_id: VmId::from_u128(9), host: token("h2"), ..first.clone() };
        assert!(matches!(answer(&claim, &retry), ClaimOutcome::SameRequest { stuck: false, .. }));
        let other_body = Attempt { body_sha256: "bb".repeat(32), ..first.clone() };
        assert_eq!(answer(&claim, &other_body), ClaimOutcome::Conflict);
        assert!(matches!(
            answer(&claim, &attempt(2, "h2", NOW + 1)),
            ClaimOutcome::AlreadyExists { stuck: None, .. }
        ));
        // Beyond the deadline only a placing is stuck.
        let late = Attempt { now_unix_ms: NOW + 10_001, ..first.clone() };
        let stuck = phase == Phase::Placing;
        assert!(matches!(answer(&claim, &late), ClaimOutcome::SameRequest { stuck: s, .. } if s == stuck));
    }
}

#[test]
fn a_deleted_name_replays_refuses_and_can_be_had_again() {
    let claim = write(None, &attempt(1, "h1", NOW));
    let end = NOW + HOUR;
    let tombstone = Claim { phase: Phase::Gone, gone: Some(gone(end, 2)), ..claim.clone() };
    // The delete again, the create again, and a new create.
    let delete = Attempt { request_id: request(end - 1, 2), ..attempt(7, "h2", end + 5) };
    assert_eq!(answer(&tombstone, &delete), ClaimOutcome::Replay(Blob::from(vec![2])));
    let create = Attempt { now_unix_ms: end + 5, ..attempt(1, "h1", NOW) };
    let elsewhere = ClaimOutcome::Elsewhere { host: token("h1"), deleted_unix_ms: end };
    assert_eq!(answer(&tombstone, &create), elsewhere, "its host remembers the reply");
    let other = Attempt { request_id: request(end - 2, 77), ..attempt(8, "h2", end + 5) };
    assert_eq!(answer(&tombstone, &other), ClaimOutcome::NameReused { deleted_unix_ms: end });
    let next = write(Some(&tombstone), &attempt(3, "h2", end + 10));
    assert_eq!((next.owner_epoch, next.previous.len(), &next.gone), (2, 1, &None));
    assert_eq!(answer(&next, &Attempt { now_unix_ms: end + 20, ..create }), elsewhere);
    // The owner of the new VM judges ids that it does not know.
    let verdict = |id| judge_previous(&next.previous, id);
    assert_eq!(verdict(request(end - 1, 2)), Some(PreviousVerdict::Replay(Blob::from(vec![2]))));
    let reused = Some(PreviousVerdict::NameReused { deleted_unix_ms: end });
    assert_eq!(verdict(request(end - 1, 99)), reused);
    assert_eq!(verdict(request(end + 20, 99)), None);
    // After 24 hours nothing is left of it.
    assert_eq!(remembered(&tombstone, end + 24 * HOUR), []);
    assert_eq!(write(Some(&tombstone), &attempt(4, "h2", end + 25 * HOUR)).previous, []);
}

#[test]
fn a_claim_given_back_leaves_the_tombstone_that_it_was_written_over() {
    let fresh = write(None, &attempt(1, "h1", NOW));
    assert_eq!(decide::undone(&fresh, NOW), None);
    let end = NOW + HOUR;
    let tombstone = Claim { phase: Phase::Gone, gone: Some(gone(end, 2)), ..fresh };
    let over = write(Some(&tombstone), &attempt(3, "h2", end + HOUR));
    let (back, ttl) = decide::undone(&over, end + HOUR).unwrap();
    assert_eq!((back.vm_id, back.phase, &back.gone), (tombstone.vm_id, Phase::Gone, &tombstone.gone));
    assert_eq!(ttl, Duration::from_secs(23 * 3600));
    assert_eq!(back.owner_epoch, 2, "an epoch is never given twice");
}

#[test]
fn a_forgotten_host_has_nothing_more_of_a_name() {
    let placing = write(None, &attempt(1, "h1", NOW));
    let claim = Claim { phase: Phase::Owned, ..placing };
    let (freed, ttl) = decide::forgotten(&claim, request(NOW + 5, 9), NOW + HOUR).unwrap();
    assert_eq!((freed.phase, freed.owner_epoch, ttl), (Phase::Gone, 2, GONE_KEPT));
    assert_eq!(decide::forgotten(&freed, request(NOW + 5, 9), NOW + HOUR), None, "once is enough");
    // Its create has no reply any more, and another one may have the name.
    let again = Attempt { now_unix_ms: NOW + HOUR, ..attempt(1, "h2", NOW) };
    let reused = ClaimOutcome::NameReused { deleted_unix_ms: NOW + HOUR };
    assert_eq!(answer(&freed, &again), reused);
    let next = write(Some(&freed), &attempt(2, "h2", NOW + 2 * HOUR));
    assert_eq!((next.owner_epoch, next.host), (3, token("h2")));
}

#[test]
fn a_name_remembers_a_bounded_past() {
    let mut claim = write(None, &attempt(1, "h1", NOW));
    for n in 0..40_u64 {
        let now = NOW + n * 10;
        claim = Claim { phase: Phase::Gone, gone: Some(gone(now + 1, n.into())), ..claim };
        claim = write(Some(&claim), &attempt(n.into(), "h1", now + 5));
    }
    assert_eq!(claim.previous.len(), MAX_PREVIOUS);
    assert_eq!(claim.owner_epoch, 41);
}

async fn claims(server: &NatsServer) -> (Claims, Context) {
    let js = jetstream::new(server.bus().await.client);
    let config = AssetsConfig::new(token("drover"));
    assets::ensure(&js, &config).await.unwrap();
    (Claims::new(js.clone(), &config), js)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_creates_at_once_one_gets_the_name() {
    let Some(server) = NatsServer::start("").await else { return };
    let ((a, _), (b, _)) = tokio::join!(claims(&server), claims(&server));
    for round in 0..10_u128 {
        let key = name(&format!("web{round}"));
        let attempts: Vec<Attempt> =
            (1..=8).map(|n| attempt(round * 100 + n, &format!("h{n}"), NOW)).collect();
        let outcomes = join_all(attempts.iter().enumerate().map(|(i, attempt)| {
            let claims = if i % 2 == 0 { &a } else { &b };
            claims.claim_create(&key, attempt)
        }))
        .await;
        let outcomes: Vec<_> = outcomes.into_iter().map(Result::unwrap).collect();
        let won: Vec<_> = outcomes.iter().filter(|o| matches!(o, ClaimOutcome::Claimed { .. })).collect();
        assert_eq!(won.len(), 1, "{outcomes:?}");
        let others = outcomes.iter().filter(|o| matches!(o, ClaimOutcome::AlreadyExists { .. })).count();
        assert_eq!(others, 7, "{outcomes:?}");
        // One request on two hosts: one claims, the other is sent there.
        let key = name(&format!("same{round}"));
        let (one, two) = (attempt(1, "h1", NOW), Attempt { host: token("h2"), ..attempt(1, "h1", NOW) });
        let (one, two) = tokio::join!(a.claim_create(&key, &one), b.claim_create(&key, &two));
        let kinds = [one.unwrap(), two.unwrap()].map(|o| match o {
            ClaimOutcome::Claimed { .. } => "claimed",
            ClaimOutcome::SameRequest { .. } => "same",
            other => panic!("{other:?}"),
        });
        assert!(kinds.contains(&"claimed") && kinds.contains(&"same"), "{kinds:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_goes_through_its_life_and_a_lost_owner_learns_it() {
    let Some(server) = NatsServer::start("").await else { return };
    let (claims, js) = claims(&server).await;
    let key = name("web");
    assert_eq!(claims.lookup(&key).await.unwrap(), None);
    let ClaimOutcome::Claimed { claim: first, revision } =
        claims.claim_create(&key, &attempt(1, "h1", NOW)).await.unwrap()
    else {
        panic!("not claimed")
    };
    // h1 is silent; h2 takes over, and h1 comes too late.
    let late = Attempt { host: token("h2"), now_unix_ms: NOW + 20_000, ..attempt(1, "h1", NOW) };
    let ClaimOutcome::Claimed { claim: second, .. } =
        claims.takeover(&key, &first, revision, &late).await.unwrap()
    else {
        panic!("not taken over")
    };
    assert_eq!(second.owner_epoch, 2);
    assert!(matches!(claims.own(&key, &first).await.unwrap(), OwnOutcome::Lost { claim: Some(_) }));
    let owned = claims.own(&key, &second).await.unwrap();
    assert!(matches!(owned, OwnOutcome::Done { .. }));
    assert_eq!(claims.own(&key, &second).await.unwrap(), owned, "twice is once");
    // Neither undone nor ended by somebody else.
    claims.undo(&key, &second, NOW).await.unwrap();
    assert!(matches!(claims.gone(&key, &first, gone(NOW, 5)).await.unwrap(), OwnOutcome::Lost { .. }));
    let end = gone(NOW + HOUR, 5);
    assert!(matches!(claims.gone(&key, &second, end.clone()).await.unwrap(), OwnOutcome::Done { .. }));
    assert!(matches!(claims.own(&key, &second).await.unwrap(), OwnOutcome::Lost { .. }));
    let stream = js.get_stream("KV_DROVER_VMS").await.unwrap();
    let raw = stream.get_last_raw_message_by_subject("$KV.DROVER_VMS.default.web").await.unwrap();
    assert_eq!(raw.headers.get("Nats-TTL").unwrap().as_str(), "86400s");
    // Again, given back, and again.
    let next = attempt(9, "h1", NOW + 2 * HOUR);
    let ClaimOutcome::Claimed { claim: third, .. } = claims.claim_create(&key, &next).await.unwrap() else {
        panic!("not claimed")
    };
    assert_eq!((third.owner_epoch, third.previous.len()), (3, 1));
    claims.undo(&key, &third, NOW + 2 * HOUR).await.unwrap();
    let (back, _) = claims.lookup(&key).await.unwrap().unwrap();
    assert_eq!((back.phase, back.gone), (Phase::Gone, Some(end)));
    // A fresh name given back leaves nothing, and can be claimed over the marker.
    let fresh = name("fresh");
    for n in 1..3 {
        let ClaimOutcome::Claimed { claim, .. } =
            claims.claim_create(&fresh, &attempt(n, "h1", NOW)).await.unwrap()
        else {
            panic!("not claimed")
        };
        claims.undo(&fresh, &claim, NOW).await.unwrap();
        assert_eq!(claims.lookup(&fresh).await.unwrap(), None);
    }
    let all = claims.lookup_all(vec![key, fresh]).await.unwrap();
    assert_eq!(all.iter().filter(|(_, found)| found.is_some()).count(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_names_of_a_host_are_found_and_freed_among_those_of_others() {
    let Some(server) = NatsServer::start("").await else { return };
    let (claims, _) = claims(&server).await;
    assert_eq!(claims.claims_of(&token("h1")).await.unwrap(), []);
    for n in 1..=60_u128 {
        let host = if n % 3 == 0 { "h1" } else { "h2" };
        let made = claims.claim_create(&name(&format!("web{n}")), &attempt(n, host, NOW)).await.unwrap();
        let ClaimOutcome::Claimed { claim, .. } = made else { panic!("{made:?}") };
        claims.own(&name(&format!("web{n}")), &claim).await.unwrap();
    }
    claims
        .gone(&name("web3"), &claims.lookup(&name("web3")).await.unwrap().unwrap().0, gone(NOW, 5))
        .await
        .unwrap();
    let found = claims.claims_of(&token("h1")).await.unwrap();
    assert_eq!(found.len(), 20, "the tombstone is one of them");
    let mut freed = 0;
    for (key, claim) in &found {
        freed += usize::from(claims.forget(key, claim, request(NOW, 99), NOW).await.unwrap());
        assert!(!claims.forget(key, claim, request(NOW, 99), NOW).await.unwrap(), "twice is once");
        let late = claims.gone(key, claim, gone(NOW, 5)).await.unwrap();
        assert_eq!(matches!(late, OwnOutcome::Lost { .. }), claim.phase == Phase::Owned, "{late:?}");
    }
    assert_eq!(freed, 19);
    assert_eq!(claims.claims_of(&token("h2")).await.unwrap().len(), 40);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_installations_cannot_share_a_host_name() {
    let Some(server) = NatsServer::start("").await else { return };
    let (claims, js) = claims(&server).await;
    let (one, two) = (InstallationId::from_u128(1), InstallationId::from_u128(2));
    let host = token("h1");
    claims.heartbeat(&host, one, Blob::from(b"first".to_vec())).await.unwrap();
    claims.heartbeat(&host, one, Blob::from(b"second".to_vec())).await.unwrap();
    let refused = claims.heartbeat(&host, two, Blob::default()).await;
    assert!(matches!(refused, Err(ClaimError::HostTaken { .. })), "{refused:?}");
    assert_eq!(claims.host(&host).await.unwrap(), Some(Blob::from(b"second".to_vec())));
    // The name stays with the installation when the host is silent, until it is forgotten.
    claims.claim_host(&host, one, NOW).await.unwrap();
    let refused = claims.claim_host(&host, two, NOW).await;
    assert!(matches!(refused, Err(ClaimError::HostTaken { alive: true, .. })), "{refused:?}");
    assert!(claims.leave(&host, two).await.is_err(), "nobody takes another's row away");
    claims.leave(&host, one).await.unwrap();
    assert_eq!(claims.host(&host).await.unwrap(), None);
    let refused = claims.claim_host(&host, two, NOW).await;
    assert!(matches!(refused, Err(ClaimError::HostTaken { alive: false, .. })), "{refused:?}");
    claims.free_host(&host, NOW + 1).await.unwrap();
    claims.claim_host(&host, two, NOW + 2).await.unwrap();
    assert!(claims.claim_host(&host, one, NOW + 3).await.is_err(), "whoever comes back finds another");
    claims.heartbeat(&host, two, Blob::default()).await.unwrap();
    let stream = js.get_stream("KV_DROVER_HOSTS").await.unwrap();
    let raw = stream.get_last_raw_message_by_subject("$KV.DROVER_HOSTS.h1").await.unwrap();
    assert_eq!(raw.headers.get("Nats-TTL").unwrap().as_str(), "90s");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_hosts_at_once_no_two_have_the_same_subnet() {
    let Some(server) = NatsServer::start("").await else { return };
    let ((a, _), (b, _)) = tokio::join!(claims(&server), claims(&server));
    let pool: SubnetPool = serde_json::from_str(r#"{"pool": "10.64.0.0/20", "prefix": 24}"#).unwrap();
    let network = token("default");
    let used = ["10.64.15.0/30".parse().unwrap()];
    let take = async |n: u128, had| {
        let claims = if n.is_multiple_of(2) { &a } else { &b };
        let (host, installation) = (token(&format!("h{n}")), InstallationId::from_u128(n));
        claims.claim_host(&host, installation, NOW).await?;
        claims.claim_subnet(&host, installation, Wanted { network: &network, pool, had, used: &used }).await
    };
    // Fifteen fit. Those that give way to each other try again, as a daemon does that is started again.
    let taken = join_all((1..=15).map(async |n| {
        loop {
            match take(n, None).await {
                Err(ClaimError::Contended { .. } | ClaimError::PoolUsedUp { .. }) => {
                    tokio::task::yield_now().await
                }
                other => break other.unwrap().subnet,
            }
        }
    }))
    .await;
    let all: BTreeSet<_> = taken.iter().collect();
    assert!(all.len() == 15 && !all.iter().any(|subnet| overlap(subnet, &used[0])), "{taken:?}");
    assert!(matches!(take(16, None).await, Err(ClaimError::PoolUsedUp { .. })));
    // Each keeps what it has, whether it remembers or not.
    for (n, subnet) in (1..).zip(&taken) {
        for had in [None, Some(*subnet)] {
            let again = take(n, had).await.unwrap();
            assert_eq!((again.subnet, again.contested), (*subnet, None));
        }
    }
    // A host that was forgotten has nothing, and one that comes back hears who has it now.
    a.free_host(&token("h1"), NOW).await.unwrap();
    assert_eq!(take(16, None).await.unwrap().subnet, taken[0]);
    let back = take(1, Some(taken[0])).await.unwrap();
    assert_eq!((back.subnet, back.contested), (taken[0], Some(token("h16"))));
    // What a host has no more is for others.
    a.keep_subnets(&token("h2"), InstallationId::from_u128(2), &[]).await.unwrap();
    assert_eq!(take(17, None).await.unwrap().subnet, taken[1]);
}
