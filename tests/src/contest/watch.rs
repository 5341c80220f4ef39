//! Looks at the VMMs of every host all the time: there must never be two of one VM or of one name.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use drover_schemas::VmId;
use drover_schemas::event::VmEvent;
use tokio::task::JoinHandle;

use crate::leak;
use crate::node::Node;
use crate::wait::pass;

/// Pause between two looks.
const PAUSE: Duration = Duration::from_millis(400);

/// VMMs by process id that were all there at one moment.
pub type Look = BTreeMap<i32, VmId>;

/// See [the module](self).
#[derive(Debug)]
pub(super) struct Watch(JoinHandle<Vec<Look>>);

impl Watch {
    /// Looks until `over`.
    pub(super) fn start(hosts: &[Node], over: &Rc<Cell<bool>>) -> Self {
        let runs: Vec<PathBuf> = hosts.iter().map(|host| host.run_dir().to_owned()).collect();
        let over = Rc::clone(over);
        Self(tokio::task::spawn_local(async move {
            let (mut looks, mut before) = (Vec::new(), Look::new());
            while !over.get() {
                let runs = runs.clone();
                let seen = tokio::task::spawn_blocking(move || {
                    runs.iter().flat_map(|run| leak::vmms(run)).collect::<Look>()
                });
                let seen = seen.await.expect("a look");
                // Processes come and go during a look; what is in two looks in turn was there between them.
                looks.push(
                    seen.iter()
                        .filter(|(pid, vm)| before.get(pid) == Some(vm))
                        .map(|(p, v)| (*p, *v))
                        .collect(),
                );
                before = seen;
                pass(PAUSE).await;
            }
            looks
        }))
    }

    pub(super) async fn end(self) -> Vec<Look> {
        self.0.await.expect("the watch")
    }
}

/// What is wrong with what was seen.
pub(super) fn judge(looks: &[Look], events: &[VmEvent]) -> Vec<String> {
    let names: BTreeMap<VmId, &str> = events.iter().map(|event| (event.vm_id, event.name.as_str())).collect();
    let mut problems = BTreeSet::new();
    for look in looks {
        let mut seen: BTreeMap<&str, (i32, VmId)> = BTreeMap::new();
        for (pid, vm_id) in look {
            let Some(name) = names.get(vm_id) else {
                problems.insert(format!("a VMM of {vm_id}, which no event tells of"));
                continue;
            };
            if let Some(other) = seen.insert(name, (*pid, *vm_id)) {
                problems.insert(format!("two VMMs at once for {name}: {other:?} and {:?}", (pid, vm_id)));
            }
        }
    }
    problems.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_of_one_vm_and_vms_without_events_are_found() {
        let one = VmId::from_u128(1);
        let found = judge(&[Look::from([(7, one)]), Look::new()], &[]);
        assert_eq!(found, ["a VMM of 00000000000000000000000001, which no event tells of"]);
    }
}
