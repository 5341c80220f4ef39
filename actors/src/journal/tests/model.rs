//! Random batches against maps in memory, with the file closed and opened in between.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

#[derive(Debug, Clone)]
enum Step {
    PutVm { id: u128, name: u8, seq: u64 },
    RemoveVm { id: u128 },
    Event { id: u128, seq: u64, agent: bool },
    Ack { id: u128, seq: u64 },
}

#[derive(Debug, Clone, Default, PartialEq)]
struct Model {
    vms: BTreeMap<u128, VmRow>,
    outbox: BTreeMap<(u128, u64), OutboxRow>,
    positions: BTreeMap<u128, u64>,
}

impl Model {
    fn allows(&self, step: &Step) -> bool {
        match step {
            Step::PutVm { id, name, .. } => {
                self.vms.iter().all(|(other, row)| other == id || row.name != token(&format!("vm{name}")))
            }
            Step::Event { id, seq, .. } => {
                !self.outbox.contains_key(&(*id, *seq)) && self.positions.get(id).is_none_or(|p| p < seq)
            }
            _ => true,
        }
    }

    fn apply(&mut self, step: &Step) {
        match step {
            Step::PutVm { id, name, seq } => {
                self.vms.insert(*id, vm(*id, &format!("vm{name}"), *seq));
            }
            Step::RemoveVm { id } => {
                if self.vms.remove(id).is_some() {
                    self.positions.remove(id);
                }
            }
            Step::Event { id, seq, .. } => {
                self.outbox.insert((*id, *seq), event(*id, *seq, b"state"));
            }
            Step::Ack { id, seq } => {
                self.outbox.retain(|(k, s), _| k != id || s > seq);
                let position = self.positions.entry(*id).or_insert(*seq);
                *position = (*position).max(*seq);
            }
        }
    }
}

fn op(step: &Step) -> Op {
    match *step {
        // A VM keeps its name for life, so a row of another name is another VM's: removed first.
        Step::PutVm { id, name, seq } => Op::PutVm(Box::new(vm(id, &format!("vm{name}"), seq))),
        Step::RemoveVm { id } => Op::RemoveVm { vm_id: VmId::from_u128(id) },
        Step::Event { id, seq, agent } => Op::PutOutbox {
            class: if agent { EventClass::Agent } else { EventClass::State },
            row: Box::new(event(id, seq, b"state")),
        },
        Step::Ack { id, seq } => Op::AckOutbox { key: VmId::from_u128(id), seq, stream_seq: seq * 10 },
    }
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (1..5_u128, 1..50_u64).prop_map(|(id, seq)| Step::PutVm { id, name: (id % 3) as u8, seq }),
        (1..5_u128).prop_map(|id| Step::RemoveVm { id }),
        (1..5_u128, 1..9_u64, any::<bool>()).prop_map(|(id, seq, agent)| Step::Event { id, seq, agent }),
        (1..5_u128, 1..9_u64).prop_map(|(id, seq)| Step::Ack { id, seq }),
    ]
}

fn assert_same(journal: &JournalHandle, model: &Model) {
    let snapshot = journal.load().unwrap();
    assert_eq!(snapshot.vms, model.vms.values().cloned().collect::<Vec<_>>());
    assert_eq!(journal.outbox_used().0, model.outbox.len() as u64);
    for id in 1..5 {
        let key = VmId::from_u128(id);
        let page = journal.outbox_page(key, 0, 100).unwrap();
        let expected: Vec<_> =
            model.outbox.range((id, 0)..=(id, u64::MAX)).map(|(_, row)| row.clone()).collect();
        assert_eq!(page, expected);
        let position = journal.position(key).unwrap().map(|p| p.seq);
        assert_eq!(position, model.positions.get(&id).copied());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
    #[test]
    fn the_journal_is_what_was_acknowledged(
        rounds in prop::collection::vec(prop::collection::vec(prop::collection::vec(step(), 1..4), 1..6), 1..4)
    ) {
        let dir = tempfile::tempdir().unwrap();
        let mut model = Model::default();
        for batches in rounds {
            let journal = open(&config(dir.path())).unwrap();
            assert_same(&journal, &model);
            for steps in batches {
                // Checked against the rows before the batch; the second of two that collide in one
                // batch is the caller's mistake and not made here.
                let mut seen = std::collections::BTreeSet::new();
                let steps: Vec<Step> = steps
                    .into_iter()
                    .filter(|s| match s {
                        Step::PutVm { name, .. } => seen.insert((*name as u64, 0)),
                        Step::Event { id, seq, .. } => seen.insert((*id as u64 + 100, *seq)),
                        _ => true,
                    })
                    .collect();
                let allowed = steps.iter().all(|s| model.allows(s));
                let result = block_on(journal.commit(steps.iter().map(op).collect()));
                prop_assert_eq!(result.is_ok(), allowed, "{:?} {:?}", steps, result);
                if allowed {
                    steps.iter().for_each(|s| model.apply(s));
                }
            }
            shut(journal);
        }
        let journal = open(&config(dir.path())).unwrap();
        assert_same(&journal, &model);
    }
}
