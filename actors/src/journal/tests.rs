//! What the journal promises, tried on real files.

mod faults;
mod folder;
mod kill;
mod model;
mod requests;

use std::path::Path;

use drover_schemas::blob::Blob;
use drover_schemas::body::spec::ResolvedSpec;
use drover_schemas::state::{Desired, VmState};
use drover_schemas::{RequestId, Token, VmId};

use super::*;

pub(super) fn token(text: &str) -> Token {
    Token::new(text).unwrap()
}

pub(super) fn config(folder: &Path) -> JournalConfig {
    JournalConfig { reserve_bytes: 64 << 10, ..JournalConfig::new(folder) }
}

pub(super) fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

pub(super) fn spec() -> ResolvedSpec {
    serde_json::from_value(serde_json::json!({
        "template": "linux", "os": "linux", "cpus": 1, "memory_bytes": 134_217_728,
        "boot": {"cmdline": ""}, "disks": [], "nics": [],
        "restart": {"policy": "never"}, "agent": {"enabled": true}, "labels": {}
    }))
    .unwrap()
}

pub(crate) fn vm(id: u128, name: &str, seq: u64) -> VmRow {
    VmRow {
        vm_id: VmId::from_u128(id),
        namespace: token("default"),
        name: token(name),
        spec: spec(),
        origins: [("cpus".to_owned(), "request".to_owned())].into(),
        user_data: Some(drover_schemas::secret::Secret::new("hunter2")),
        state: VmState::Running,
        desired: Desired::Running,
        revision: 1,
        incarnation: 1,
        seq,
        owner_epoch: 1,
        created_unix_ms: 1,
        state_since_unix_ms: 2,
        cause: None,
        uid: 100_000,
        nics: Vec::new(),
        disks: Vec::new(),
        restarts: Vec::new(),
        operation: None,
        create_request: RequestId::from_u128(7),
        owned: true,
        create_sha256: String::new(),
        released: false,
        previous: Vec::new(),
        quarantined: None,
        inside: Default::default(),
    }
}

pub(super) fn event(id: u128, seq: u64, body: &[u8]) -> OutboxRow {
    OutboxRow {
        key: VmId::from_u128(id),
        seq,
        subject: "drover.v1.evt.ns.default.vm.a.state".into(),
        filter: "drover.v1.evt.ns.default.vm.a.>".into(),
        headers: vec![("ce-type".into(), "drover.vm.state.v1".into())],
        body: Blob::from(body.to_vec()),
        status: None,
    }
}

pub(super) fn put_event(id: u128, seq: u64) -> Op {
    Op::PutOutbox { class: EventClass::State, row: Box::new(event(id, seq, b"state")) }
}

/// Closes the journal and waits until its lock is free.
pub(super) fn shut(journal: JournalHandle) {
    block_on(journal.close());
    drop(journal);
}

#[test]
fn held_events_are_durable_and_nobody_sees_them() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let journal = open(&config(dir.path())).unwrap();
        let (held, other) = (VmId::from_u128(1), VmId::from_u128(2));
        journal.hold_events(held);
        let batch = Batch::new().with(Op::PutVm(Box::new(vm(1, "a", 1)))).with(put_event(1, 1));
        journal.commit(batch.with(put_event(2, 1))).await.unwrap();
        assert_eq!(journal.outbox_woken().await, [other].into());
        journal.let_events_go(held);
        assert_eq!(journal.outbox_woken().await, [held].into());
        journal.commit(Batch::take_out(&vm(1, "a", 1))).await.unwrap();
        assert_eq!(journal.outbox_page(held, 0, 9).unwrap(), []);
        assert_eq!(journal.position(held).unwrap(), None);
        assert_eq!(journal.load().unwrap().vms, []);
    });
}
