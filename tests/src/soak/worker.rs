//! A client with names of its own.

use std::collections::{BTreeMap, HashMap};

use drover_schemas::body::guest::{ExecReply, ExecResult};
use drover_schemas::body::status::VmStatus;
use drover_schemas::body::vm::{ChangeReply, ListReply};
use drover_schemas::state::VmState;
use drover_schemas::{ErrorCode, RequestId, VmId};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::{Model, Op, Plan};
use crate::client::{Bus, Failure};

/// Where commands leave their line.
const LINES: &str = "/tmp/soak";

/// See [`super`].
#[derive(Debug)]
pub(super) struct Worker {
    bus: Bus,
    random: StdRng,
    pub models: BTreeMap<String, Model>,
    /// Every VM that was ever made, as it was then.
    pub made: Vec<VmStatus>,
    pub operations: usize,
    /// Lines that a guest must have, since its last boot.
    lines: HashMap<VmId, Vec<String>>,
}

impl Worker {
    pub(super) fn new(bus: Bus, plan: &Plan, number: usize) -> Self {
        let names = (0..plan.names).map(|n| (format!("w{number}-{n}"), Model::default()));
        Self {
            bus,
            random: StdRng::seed_from_u64(plan.seed.wrapping_add(number as u64)),
            models: names.collect(),
            made: Vec::new(),
            operations: 0,
            lines: HashMap::new(),
        }
    }

    /// Does one thing to one name, to its outcome.
    pub(super) async fn step(&mut self) {
        let at = self.random.random_range(0..self.models.len());
        let Some((name, model)) = self.models.iter().nth(at).map(|(n, m)| (n.clone(), *m)) else { return };
        let op = model.choose(&mut self.random);
        let id = RequestId::generate();
        let after = match op {
            Op::Create => {
                let body = json!({"name": name, "wait": "agent"});
                let reply: ChangeReply = self.insist("vm.create", &body, id).await;
                let vm_id = reply.vm.vm_id;
                assert!(self.made.iter().all(|vm| vm.vm_id != vm_id), "{name}: {vm_id} was there before");
                self.made.push(reply.vm);
                model.after(op, vm_id)
            }
            Op::Exec => {
                self.exec(&name, &model, id).await;
                model
            }
            Op::Delete => {
                self.bus.insist_on_delete(&name).await;
                Model::default()
            }
            _ => self.change(&name, op, &model, id).await,
        };
        if let (Op::Stop | Op::Shutdown | Op::Reboot | Op::Delete, Some(vm_id)) = (op, model.vm_id()) {
            self.lines.remove(&vm_id);
        }
        self.operations += 1;
        self.models.insert(name, after);
    }

    async fn change(&self, name: &str, op: Op, model: &Model, id: RequestId) -> Model {
        let body = match op {
            Op::Stop => json!({"force": true}),
            Op::Start => json!({"wait": "agent"}),
            _ => json!({}),
        };
        let tail = format!("vm.{name}.{}", op.verb());
        let reply: ChangeReply = self.insist(&tail, &body, id).await;
        assert_eq!(Some(reply.vm.vm_id), model.vm_id(), "{tail} met another VM");
        let after = model.after(op, reply.vm.vm_id);
        assert_eq!(Some(reply.vm.state), after.state(), "{tail} of {model:?}");
        if op == Op::Reboot {
            let tail = format!("vm.{name}.guest.ping");
            let _: Value = self.insist(&tail, &json!({}), RequestId::generate()).await;
        }
        after
    }

    async fn exec(&mut self, name: &str, model: &Model, id: RequestId) {
        let Some(vm_id) = model.vm_id() else { return };
        let command = format!("echo {id} >> {LINES}");
        let body = json!({"argv": ["sh", "-c", command]});
        let tail = format!("vm.{name}.guest.exec");
        let result = match self.bus.insist(&tail, &body, id).await {
            Ok(ExecReply::Result(result)) => result,
            Ok(_) => panic!("{name}: neither a stream nor a run was asked for"),
            // The agent ends what belongs to a daemon that died, and says so: it ran once or not at all.
            Err(Failure::Coded(error)) if error.code == ErrorCode::Unavailable => return,
            Err(error) => panic!("{tail} {id}: {error:?}"),
        };
        assert_eq!(result.exit_code, Some(0), "{name}: {result:?}");
        self.lines.entry(vm_id).or_default().push(id.to_string());
    }

    /// The guests that run have each line that was answered, and none twice.
    pub(super) async fn check_guests(&self) {
        for (name, model) in self.models.iter().filter(|(_, m)| m.state() == Some(VmState::Running)) {
            let wanted = model.vm_id().and_then(|id| self.lines.get(&id)).cloned().unwrap_or_default();
            let body = json!({"argv": ["sh", "-c", format!("cat {LINES} 2> /dev/null; true")]});
            let id = RequestId::generate();
            let reply: ExecReply = self.insist(&format!("vm.{name}.guest.exec"), &body, id).await;
            let ExecReply::Result(ExecResult { stdout, .. }) = reply else { panic!("{name}: a stream") };
            let text = String::from_utf8_lossy(&stdout.unwrap_or_default().0).into_owned();
            let mut lines: Vec<&str> = text.lines().collect();
            lines.sort_unstable();
            let all = lines.len();
            lines.dedup();
            assert_eq!(all, lines.len(), "{name}: a command ran twice");
            for line in wanted {
                assert!(
                    lines.contains(&line.as_str()),
                    "{name}: command {line} was answered and did not run"
                );
            }
        }
    }

    async fn insist<R: DeserializeOwned>(&self, tail: &str, body: &Value, id: RequestId) -> R {
        self.bus.insist(tail, body, id).await.unwrap_or_else(|error| panic!("{tail} {id} {body}: {error:?}"))
    }
}

/// Every VM of the namespace, page by page.
pub(crate) async fn list(bus: &Bus) -> Vec<VmStatus> {
    let mut vms = Vec::new();
    let mut cursor = Value::Null;
    loop {
        let body = if cursor.is_null() { json!({}) } else { json!({"cursor": cursor}) };
        let page: ListReply = bus
            .insist("vm.list", &body, RequestId::generate())
            .await
            .unwrap_or_else(|error| panic!("vm.list: {error}"));
        vms.extend(page.vms);
        match page.next_cursor {
            Some(next) => cursor = json!(next),
            None => return vms,
        }
    }
}
