//! Other ports of the host for a VM: claimed, and in its spec, before the change is durable.

use drover_schemas::ErrorBody;
use drover_schemas::body::spec::NicSpec;
use drover_schemas::body::vm::ForwardRequest;

use super::VmActorState;
use crate::network::forward::changed;

impl VmActorState {
    /// Claims what is asked for and puts it into the row, which is committed next. Gives what was there before; `None`,
    /// and nothing was done, if it is so already.
    pub(super) fn forward(&mut self, request: &ForwardRequest) -> Result<Option<Vec<NicSpec>>, ErrorBody> {
        let nics = changed(&self.row.spec.nics, request)?;
        if nics == self.row.spec.nics {
            return Ok(None);
        }
        self.services.state.change_forwards(&self.row.namespace, self.row.vm_id, &nics)?;
        self.row.revision += 1;
        if !self.row.origins.is_empty() {
            self.row.origins.insert("nics".to_owned(), "forward".to_owned());
        }
        Ok(Some(std::mem::replace(&mut self.row.spec.nics, nics)))
    }

    /// The change was not durable.
    pub(super) fn forward_as_before(&mut self, nics: Vec<NicSpec>) {
        self.services.state.keep_forwards(&self.row.namespace, self.row.vm_id, &nics);
        self.row.spec.nics = nics;
        self.row.revision -= 1;
    }
}
