//! One of several clients that want the same names.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use drover_schemas::body::guest::ExecReply;
use drover_schemas::body::vm::{ChangeReply, LookupReply};
use drover_schemas::state::VmState;
use drover_schemas::{RequestId, VmId};
use futures_util::future::join_all;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::history::{Outcome, Record};
use super::places;
use crate::client::{Bus, Failure};
use crate::soak::{Model, Op};
use crate::wait::{pass, patience_factor};

/// Where commands leave their line.
pub(super) const LINES: &str = "/tmp/contest";
/// Names the boot of a guest.
pub(super) const BOOT: &str = "/tmp/contest-boot";
/// How long one server may take before another is asked.
const ATTEMPT: Duration = Duration::from_secs(3);
/// Pause before another is asked.
const PAUSE: Duration = Duration::from_millis(50);
/// How long a request is repeated.
const INSISTENCE: Duration = Duration::from_secs(240);

/// What is believed of each name, by all clients together; it only helps to choose what may work.
pub(super) type Beliefs = Rc<RefCell<BTreeMap<String, Model>>>;

/// A request, to be sent as often as it takes.
#[derive(Debug, Clone)]
pub(super) struct Asked {
    pub id: RequestId,
    pub name: String,
    pub op: Op,
}

/// See [the module](self).
#[derive(Debug)]
pub(super) struct Client {
    buses: Vec<Bus>,
    random: StdRng,
    beliefs: Beliefs,
    began: Instant,
    pub records: Vec<Record>,
}

impl Client {
    pub(super) fn new(buses: &[Bus], seed: u64, beliefs: &Beliefs, began: Instant) -> Self {
        Self {
            buses: buses.to_vec(),
            random: StdRng::seed_from_u64(seed),
            beliefs: Rc::clone(beliefs),
            began,
            records: Vec::new(),
        }
    }

    /// Asks one thing of one name until there is an outcome, and often once more.
    pub(super) async fn step(&mut self) {
        let (name, believed) = self.choose_name();
        let op = self.choose_op(&believed);
        let asked = Asked { id: RequestId::generate(), name: name.clone(), op };
        let sent = self.began.elapsed();
        // Copies over several servers at once, as of a client that is impatient.
        let copies = if self.random.random_bool(0.25) { self.random.random_range(2..=3) } else { 1 };
        let servers: Vec<usize> =
            (0..copies).map(|_| self.random.random_range(0..self.buses.len())).collect();
        let buses = &self.buses;
        let asking = servers.into_iter().map(|server| settle(buses, &asked, server));
        let first: Vec<Outcome> = join_all(asking).await;
        let answered = self.began.elapsed();
        let best = first.iter().find(|outcome| matches!(outcome, Outcome::Done(_) | Outcome::Ran { .. }));
        self.believe(&asked, believed, best.unwrap_or(&first[0])).await;
        let mut later = Vec::new();
        if self.random.random_bool(0.3) {
            let server = self.random.random_range(0..self.buses.len());
            later.push(settle(&self.buses, &asked, server).await);
        }
        self.records.push(Record { id: asked.id, name, op, sent, answered, first, later });
    }

    /// Asks again for what was answered, now that nothing is cut.
    pub(super) async fn repeat(&mut self) {
        for record in &mut self.records {
            let asked = Asked { id: record.id, name: record.name.clone(), op: record.op };
            if record.reply().is_some() {
                let server = self.random.random_range(0..self.buses.len());
                record.later.push(settle(&self.buses, &asked, server).await);
            }
        }
    }

    fn choose_name(&mut self) -> (String, Model) {
        let beliefs = self.beliefs.borrow();
        let at = self.random.random_range(0..beliefs.len());
        let (name, model) = beliefs.iter().nth(at).expect("there are names");
        (name.clone(), *model)
    }

    fn choose_op(&mut self, believed: &Model) -> Op {
        const ANY: [Op; 6] = [Op::Create, Op::Create, Op::Start, Op::Stop, Op::Pause, Op::Delete];
        loop {
            let op = match self.random.random_bool(0.2) {
                true => ANY[self.random.random_range(0..ANY.len())],
                false => believed.choose(&mut self.random),
            };
            // A reboot that hits a daemon's end may be told twice, once by the guest and once by the request.
            if op != Op::Reboot {
                return op;
            }
        }
    }

    async fn believe(&self, asked: &Asked, before: Model, outcome: &Outcome) {
        let now = match outcome {
            Outcome::Done(reply) => before.after(asked.op, reply.vm.vm_id),
            Outcome::Ran { .. } => before,
            Outcome::Refused(_) | Outcome::Gone => match self.buses[0].status(&asked.name).await {
                Ok(vm) => Model::of(vm.vm_id, vm.state),
                Err(Failure::Nobody) => Model::default(),
                Err(_) => before,
            },
        };
        self.beliefs.borrow_mut().insert(asked.name.clone(), now);
    }
}

/// Repeats a request, each time over another server, until there is an outcome.
///
/// # Panics
/// There is none in time.
pub(super) async fn settle(buses: &[Bus], asked: &Asked, first: usize) -> Outcome {
    let deadline = Instant::now() + INSISTENCE * patience_factor();
    for bus in buses.iter().cycle().skip(first) {
        let failure = match attempt(bus, asked).await {
            Ok(outcome) => return outcome,
            Err(failure) => failure,
        };
        if let Some(outcome) = given_up(bus, asked, &failure).await {
            return outcome;
        }
        assert!(Instant::now() < deadline, "{asked:?} is not answered, at last: {failure}");
        pass(PAUSE).await;
    }
    unreachable!("the servers go round and round")
}

/// The outcome, if a failure is one.
async fn given_up(bus: &Bus, asked: &Asked, failure: &Failure) -> Option<Outcome> {
    match failure {
        Failure::Nobody if asked.op != Op::Create => gone(bus, asked).await,
        Failure::Coded(error) if !error.retryable => Some(Outcome::Refused(error.clone())),
        // A guest that is paused answers when somebody resumes it, which may be never.
        Failure::Coded(error) if asked.op == Op::Exec && is_paused(bus, &asked.name).await => {
            Some(Outcome::Refused(error.clone()))
        }
        _ => None,
    }
}

async fn is_paused(bus: &Bus, name: &str) -> bool {
    bus.status(name).await.is_ok_and(|vm| vm.state == VmState::Paused)
}

async fn attempt(bus: &Bus, asked: &Asked) -> Result<Outcome, Failure> {
    let Asked { id, name, op } = asked;
    let (tail, body) = match op {
        Op::Create => {
            let spec = json!({"placement": {"labels": places::asked(name)}});
            ("vm.create".to_owned(), json!({"name": name, "wait": "agent", "spec": spec}))
        }
        Op::Start => (format!("vm.{name}.start"), json!({"wait": "agent"})),
        Op::Stop => (format!("vm.{name}.stop"), json!({"force": true})),
        Op::Exec => (format!("vm.{name}.guest.exec"), command(*id)),
        _ => (format!("vm.{name}.{}", op.verb()), json!({})),
    };
    let ask = bus.ask(&tail, &body).id(*id).within(ATTEMPT * patience_factor());
    if *op != Op::Exec {
        return Ok(Outcome::Done(Box::new(ask.get::<ChangeReply>().await?)));
    }
    let ExecReply::Result(result) = ask.get::<ExecReply>().await? else {
        panic!("{tail}: a stream that nobody asked for");
    };
    assert_eq!(result.exit_code, Some(0), "{tail} {id}: {result:?}");
    let text = result.stdout.map(|bytes| String::from_utf8_lossy(&bytes.0).trim().to_owned());
    Ok(Outcome::Ran { boot: text.filter(|_| !result.truncated) })
}

/// A command that leaves a line with its id, and says which boot of the guest it is.
fn command(id: RequestId) -> Value {
    let mark = format!("cat /proc/sys/kernel/random/uuid > {BOOT}.$$; ln {BOOT}.$$ {BOOT} 2> /dev/null");
    let text = format!("[ -s {BOOT} ] || {{ {mark}; rm {BOOT}.$$; }}; echo {id} >> {LINES}; cat {BOOT}");
    json!({"argv": ["sh", "-c", text]})
}

/// What became of a VM that nobody answers for; `None` if somebody has it, or nobody can say.
async fn gone(bus: &Bus, asked: &Asked) -> Option<Outcome> {
    let ask = bus.ask("vm.lookup", &json!({"name": asked.name})).within(ATTEMPT * patience_factor());
    match ask.get::<LookupReply>().await.ok()? {
        LookupReply::Gone { request_id, reply: Some(reply), .. } if request_id == asked.id => {
            Some(Outcome::Done(reply))
        }
        LookupReply::Gone { .. } | LookupReply::NotFound {} => Some(Outcome::Gone),
        LookupReply::Placing { .. } | LookupReply::Owned { .. } => None,
    }
}

/// The boot of a running guest and the lines that commands left, as its owner tells.
pub(super) async fn lines(bus: &Bus, name: &str, vm_id: VmId) -> (String, Vec<String>) {
    let text = format!("cat {BOOT} 2> /dev/null || echo none; cat {LINES} 2> /dev/null; true");
    let tail = format!("vm.{name}.guest.exec");
    let reply = bus.insist(&tail, &json!({"argv": ["sh", "-c", text]}), RequestId::generate()).await;
    let ExecReply::Result(result) = reply.unwrap_or_else(|e| panic!("{name} {vm_id}: {e}")) else {
        panic!("{tail}: a stream that nobody asked for");
    };
    let text = String::from_utf8_lossy(&result.stdout.unwrap_or_default().0).into_owned();
    let mut lines = text.lines().map(str::to_owned);
    (lines.next().unwrap_or_default(), lines.collect())
}
