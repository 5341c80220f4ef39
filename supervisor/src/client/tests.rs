//! The client against small responders on a real bus.

mod events;
mod streams;

use std::time::Duration;

use async_nats::{HeaderMap, Message};
use drover_schemas::body::guest::Empty;
use drover_schemas::body::status::{AgentState, AgentStatus, VmStatus};
use drover_schemas::body::vm::{ChangeReply, ChangeRequest, LookupReply};
use drover_schemas::codec;
use drover_schemas::state::{Desired, VmState};
use drover_schemas::{ErrorBody, ErrorCode, RequestId, Token, VmId, headers};
use futures_util::StreamExt as _;
use serde::Serialize;
use tokio::task::JoinHandle;

use super::*;
use crate::dev::tests::TestBus;

const SOON: Duration = Duration::from_secs(10);

fn token(text: &str) -> Token {
    Token::new(text).unwrap()
}

async fn connect(bus: &TestBus) -> Client {
    let file = bus.client_file();
    Client::connect(Target {
        server: file.url,
        auth: Auth::Password { user: file.user, password: file.password },
        tls: Tls::default(),
        root: token("drover"),
        namespace: token("default"),
        inbox_prefix: None,
    })
    .await
    .unwrap()
}

/// Answers `subject` by `answer`, which gets the message and how many came before it.
async fn respond<F>(bus: &TestBus, subject: &str, mut answer: F) -> JoinHandle<()>
where
    F: FnMut(&Message, usize) -> Option<(HeaderMap, Vec<u8>)> + Send + 'static,
{
    let host = connect(bus).await;
    let nats = host.nats().clone();
    let mut requests = nats.subscribe(format!("drover.v1.{subject}")).await.unwrap();
    // The server handles a connection's messages in order: its answer means that it has the
    // subscription.
    let _ = nats.request("$JS.API.INFO", "".into()).await.unwrap();
    tokio::spawn(async move {
        let mut count = 0;
        while let Some(message) = requests.next().await {
            if let Some((headers, body)) = answer(&message, count) {
                let inbox = message.reply.clone().unwrap();
                nats.publish_with_headers(inbox, headers, body.into()).await.unwrap();
            }
            count += 1;
        }
    })
}

fn ok<T: Serialize>(value: &T) -> (HeaderMap, Vec<u8>) {
    (HeaderMap::new(), codec::encode(value).unwrap())
}

fn refuse(error: &ErrorBody) -> (HeaderMap, Vec<u8>) {
    let mut map = HeaderMap::new();
    map.insert(headers::ERROR_CODE, error.code.status().to_string().as_str());
    map.insert(headers::ERROR, error.header_line().as_str());
    map.insert(headers::CONTENT_TYPE, codec::MSGPACK);
    (map, codec::encode(error).unwrap())
}

fn status(name: &str) -> VmStatus {
    VmStatus {
        namespace: token("default"),
        name: token(name),
        vm_id: VmId::from_u128(7),
        host: token("h1"),
        state: VmState::Running,
        desired: Desired::Running,
        revision: 1,
        incarnation: 1,
        seq: 3,
        cpus: 1,
        memory_bytes: 268_435_456,
        created_unix_ms: 1,
        state_since_unix_ms: 1,
        operation: None,
        cause: None,
        agent: AgentStatus {
            state: AgentState::Ready,
            version: None,
            boot_id: None,
            last_error: None,
            dropped_events: None,
            fault: None,
            unwatched: None,
        },
        nics: Vec::new(),
        disks: Vec::new(),
        vmm_pid: None,
        restarts: 0,
        spec: None,
    }
}

fn changed(name: &str, request_id: RequestId) -> ChangeReply {
    ChangeReply { vm: status(name), already: false, request_id, replay_until_unix_ms: 9 }
}

fn refused(error: ClientError) -> ErrorBody {
    match error {
        ClientError::Refused(body) => *body,
        other => panic!("not refused: {other:?}"),
    }
}

#[tokio::test]
async fn headers_are_read_before_the_body() {
    let Some(bus) = TestBus::start().await else { return };
    let error = ErrorBody::new(ErrorCode::InvalidState, "not now").with("state", "paused");
    let sent = error.clone();
    let _host = respond(&bus, "cmd.default.vm.web.get", move |_, _| Some(refuse(&sent))).await;
    let client = connect(&bus).await;
    let got = client.vm::<_, VmStatus>(&token("web"), "get", &Empty {}, CallOptions::read(SOON)).await;
    assert_eq!(refused(got.unwrap_err()), error);
}

#[tokio::test]
async fn a_retry_carries_the_same_request_id_and_less_time() {
    let Some(bus) = TestBus::start().await else { return };
    let (seen, mut requests) = tokio::sync::mpsc::unbounded_channel();
    let _host = respond(&bus, "cmd.default.vm.web.start", move |message, count| {
        let map = message.headers.clone().unwrap();
        let get = |name: &str| map.get(name).unwrap().as_str().to_owned();
        let id: RequestId = get(headers::REQUEST_ID).parse().unwrap();
        assert!(get(headers::TRACEPARENT).starts_with("00-"));
        assert_eq!(get(headers::CONTENT_TYPE), codec::MSGPACK);
        seen.send((id, get(headers::DEADLINE_MS).parse::<u64>().unwrap())).unwrap();
        let starting = ErrorBody::new(ErrorCode::Unavailable, "adopting").with("phase", "adopting");
        Some(if count < 2 { refuse(&starting) } else { ok(&changed("web", id)) })
    })
    .await;
    let client = connect(&bus).await;
    let options = CallOptions::change(SOON);
    let reply: ChangeReply =
        client.vm(&token("web"), "start", &ChangeRequest::default(), options).await.unwrap();
    assert_eq!(Some(reply.request_id), options.request_id);
    let mut last = u64::MAX;
    for _ in 0..3 {
        let (id, left) = requests.recv().await.unwrap();
        assert_eq!(Some(id), options.request_id);
        assert!(left < last, "{left} ms after {last} ms");
        last = left;
    }
}

#[tokio::test]
async fn a_name_that_nobody_owns_is_not_found_at_once() {
    let Some(bus) = TestBus::start().await else { return };
    let _host = respond(&bus, "cmd.default.vm.lookup", |_, _| Some(ok(&LookupReply::NotFound {}))).await;
    let client = connect(&bus).await;
    let got = client.vm::<_, VmStatus>(&token("web"), "get", &Empty {}, CallOptions::read(SOON)).await;
    assert_eq!(refused(got.unwrap_err()).code, ErrorCode::NotFound);
}

#[tokio::test]
async fn an_owner_that_is_offline_is_named() {
    let Some(bus) = TestBus::start().await else { return };
    let _host = respond(&bus, "cmd.default.vm.lookup", |_, _| {
        Some(ok(&LookupReply::Owned {
            vm_id: VmId::from_u128(7),
            host: token("h7"),
            last_seen_unix_ms: Some(1_000),
            online: false,
        }))
    })
    .await;
    let client = connect(&bus).await;
    let options = CallOptions::read(SOON);
    let got = client.vm::<_, VmStatus>(&token("web"), "get", &Empty {}, options).await;
    let error = refused(got.unwrap_err());
    assert_eq!(error.code, ErrorCode::Unavailable);
    assert!(error.message.contains("h7") && error.message.contains("1970"), "{error}");
}

#[tokio::test]
async fn a_retried_delete_gets_the_stored_reply_and_another_one_not_found() {
    let Some(bus) = TestBus::start().await else { return };
    let id = RequestId::generate();
    let _host = respond(&bus, "cmd.default.vm.lookup", move |_, _| {
        Some(ok(&LookupReply::Gone {
            vm_id: VmId::from_u128(7),
            host: token("h1"),
            deleted_unix_ms: 5,
            request_id: id,
            reply: Some(Box::new(changed("web", id))),
        }))
    })
    .await;
    let client = connect(&bus).await;
    let delete = async |options| {
        client.vm::<_, ChangeReply>(&token("web"), "delete", &ChangeRequest::default(), options).await
    };
    let same = delete(CallOptions { request_id: Some(id), deadline: SOON }).await.unwrap();
    assert_eq!(same, changed("web", id));
    let other = refused(delete(CallOptions::change(SOON)).await.unwrap_err());
    assert_eq!(other.code, ErrorCode::NotFound);
    assert_eq!(other.details["request_id"], id.to_string());
}

#[tokio::test]
async fn silence_ends_with_the_deadline_and_names_the_request() {
    let Some(bus) = TestBus::start().await else { return };
    let _host = respond(&bus, "cmd.default.vm.web.start", |_, _| None).await;
    let client = connect(&bus).await;
    let options = CallOptions::change(Duration::from_millis(200));
    let got = client.vm::<_, ChangeReply>(&token("web"), "start", &ChangeRequest::default(), options).await;
    let error = refused(got.unwrap_err());
    assert_eq!(error.code, ErrorCode::DeadlineExceeded);
    assert_eq!(error.details["request_id"], options.request_id.unwrap().to_string());
}
