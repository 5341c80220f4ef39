//! What a VM has, changed: claimed, looked at, and in its spec, before the change is durable.

use drover_schemas::body::spec::{NicSpec, ResolvedDisk};
use drover_schemas::body::status::DiskMade;
use drover_schemas::state::VmState;
use drover_schemas::{ErrorBody, ErrorCode};

use super::VmActorState;
use crate::network::{egress, forward, limit};
use crate::spec::disks::{grown, name};
use crate::spec::invalid;
use crate::vm::disks::{Overlay, free};
use crate::vm::message::SpecChange;

/// What there was before a change.
#[derive(Debug)]
pub(super) enum Before {
    Nics(Vec<NicSpec>),
    Disks(Vec<ResolvedDisk>),
}

impl VmActorState {
    /// Puts what is asked for into the row, which is committed next. Gives what was there before; `None`, and nothing was
    /// done, if it is so already.
    pub(super) fn change_spec(&mut self, change: &SpecChange) -> Result<Option<Before>, ErrorBody> {
        let (nics, disks) = (&self.row.spec.nics, &self.row.spec.disks);
        let (field, verb, before) = match change {
            SpecChange::Forward(request) => {
                ("nics", "forward", self.change_nics(forward::changed(nics, request)?)?)
            }
            SpecChange::Egress(request) => {
                ("nics", "egress", self.change_nics(egress::changed(nics, request)?)?)
            }
            SpecChange::Limit(request) => {
                ("nics", "limit", self.change_nics(limit::changed(nics, request)?)?)
            }
            SpecChange::Grow(request) => ("disks", "grow", self.change_disks(grown(disks, request)?)?),
        };
        if before.is_some() {
            self.row.revision += 1;
            if !self.row.origins.is_empty() {
                self.row.origins.insert(field.to_owned(), verb.to_owned());
            }
        }
        Ok(before)
    }

    fn change_nics(&mut self, nics: Vec<NicSpec>) -> Result<Option<Before>, ErrorBody> {
        if nics == self.row.spec.nics {
            return Ok(None);
        }
        self.services.state.change_nics(&self.row.namespace, self.row.vm_id, &nics)?;
        Ok(Some(Before::Nics(std::mem::replace(&mut self.row.spec.nics, nics))))
    }

    fn change_disks(&mut self, disks: Vec<ResolvedDisk>) -> Result<Option<Before>, ErrorBody> {
        if disks == self.row.spec.disks {
            return Ok(None);
        }
        self.check_overlays(&disks)?;
        let free = free(&self.services.disks)?;
        self.services.state.change_disks(&self.row.namespace, self.row.vm_id, &disks, free)?;
        Ok(Some(Before::Disks(std::mem::replace(&mut self.row.spec.disks, disks))))
    }

    /// A VMM lengthens no disk that lies over another file.
    fn check_overlays(&self, disks: &[ResolvedDisk]) -> Result<(), ErrorBody> {
        let made = self.row.disks.iter().zip(self.row.spec.disks.iter().zip(disks)).enumerate();
        let longer = |was: &ResolvedDisk, is: &ResolvedDisk| is.length() > was.length();
        let mut overlays =
            made.filter(|(_, (made, (was, is)))| **made == DiskMade::Overlay && longer(was, is));
        let Some((index, (_, (_, disk)))) = overlays.next() else { return Ok(()) };
        let (name, state) = (name(index, disk), self.machine.state);
        if !Overlay::can_have(disk.length()) {
            let text = format!("disk {name:?} lies over its image, and such a one has at most 4 TiB");
            return Err(invalid("size_bytes", text));
        }
        if state != VmState::Running {
            return Ok(());
        }
        let text = format!(
            "disk {name:?} lies over its image, and no VMM makes such a one longer; stop the VM for it, or have hosts \
             make copies (disks.overlays: false)"
        );
        Err(ErrorBody::new(ErrorCode::InvalidState, text)
            .with("disk", name)
            .with("state", state)
            .with("allowed", VmState::Stopped))
    }

    /// The change was not durable.
    pub(super) fn spec_as_before(&mut self, before: Before) {
        let (services, vm_id) = (&self.services, self.row.vm_id);
        match before {
            Before::Nics(nics) => {
                services.state.keep_nics(&self.row.namespace, vm_id, &nics);
                self.row.spec.nics = nics;
            }
            Before::Disks(disks) => {
                services.state.keep_disks(vm_id, &disks);
                self.row.spec.disks = disks;
            }
        }
        self.row.revision -= 1;
    }
}
