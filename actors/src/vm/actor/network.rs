//! How the host's network shall treat a VM: ports claimed, rules looked at, and in its spec, before the change is durable.

use drover_schemas::ErrorBody;
use drover_schemas::body::spec::NicSpec;

use super::VmActorState;
use crate::network::{egress, forward, limit};
use crate::vm::message::NetworkChange;

impl VmActorState {
    /// Puts what is asked for into the row, which is committed next. Gives what was there before; `None`, and nothing was
    /// done, if it is so already.
    pub(super) fn change_network(
        &mut self,
        change: &NetworkChange,
    ) -> Result<Option<Vec<NicSpec>>, ErrorBody> {
        let before = &self.row.spec.nics;
        let (verb, nics) = match change {
            NetworkChange::Forward(request) => ("forward", forward::changed(before, request)?),
            NetworkChange::Egress(request) => ("egress", egress::changed(before, request)?),
            NetworkChange::Limit(request) => ("limit", limit::changed(before, request)?),
        };
        if nics == *before {
            return Ok(None);
        }
        self.services.state.change_nics(&self.row.namespace, self.row.vm_id, &nics)?;
        self.row.revision += 1;
        if !self.row.origins.is_empty() {
            self.row.origins.insert("nics".to_owned(), verb.to_owned());
        }
        Ok(Some(std::mem::replace(&mut self.row.spec.nics, nics)))
    }

    /// The change was not durable.
    pub(super) fn network_as_before(&mut self, nics: Vec<NicSpec>) {
        self.services.state.keep_nics(&self.row.namespace, self.row.vm_id, &nics);
        self.row.spec.nics = nics;
        self.row.revision -= 1;
    }
}
