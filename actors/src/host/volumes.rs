//! Which volumes there are, and who uses them: one VM that may write, or any number that only read.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use drover_schemas::body::spec::ResolvedDisk;
use drover_schemas::{ErrorBody, ErrorCode, Token, VmId};

use super::HostState;
use crate::spec::invalid;

/// The volumes of a host, by namespace and name.
#[derive(Debug, Default)]
pub struct Volumes(Mutex<BTreeMap<(Token, Token), Volume>>);

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Volume {
    size_bytes: u64,
    state: State,
    /// VMs of any state that name it, and whether they only read it.
    users: BTreeMap<VmId, bool>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum State {
    /// A VM names it, and its file is not there.
    #[default]
    Missing,
    /// It is being made.
    Making,
    /// It is there.
    Ready,
    /// It is there, and being made longer.
    Growing,
    /// It is being removed.
    Removing,
}

impl State {
    const fn is_there(self) -> bool {
        matches!(self, Self::Ready | Self::Growing)
    }
}

impl Volumes {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<(Token, Token), Volume>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a volume whose file was found.
    pub fn found(&self, namespace: Token, name: Token, size_bytes: u64) {
        let mut volumes = self.lock();
        let volume = volumes.entry((namespace, name)).or_default();
        (volume.size_bytes, volume.state) = (size_bytes, State::Ready);
    }

    /// Notes what a VM of the journal names, whether it is there or not.
    pub fn restore(&self, namespace: &Token, vm_id: VmId, disks: &[ResolvedDisk]) {
        let mut volumes = self.lock();
        for (name, readonly) in named(disks) {
            let volume = volumes.entry((namespace.clone(), name.clone())).or_default();
            volume.users.insert(vm_id, readonly);
        }
    }

    /// Gives a VM the volumes that its disks name.
    ///
    /// # Errors
    /// `not_found`, `busy` or `conflict` with the one that cannot be had; nothing is changed then.
    pub(super) fn claim(
        &self,
        namespace: &Token,
        vm_id: VmId,
        disks: &[ResolvedDisk],
    ) -> Result<(), ErrorBody> {
        let mut volumes = self.lock();
        for (name, readonly) in named(disks) {
            let key = (namespace.clone(), name.clone());
            let volume = volumes.get(&key).ok_or_else(|| unknown(namespace, name))?;
            let refuse = |code, text: String| Err(ErrorBody::new(code, text).with("volume", name));
            match volume.state {
                State::Ready => {}
                State::Missing => {
                    return refuse(
                        ErrorCode::NotFound,
                        format!("the file of volume {:?} is gone from this host", name.as_str()),
                    );
                }
                State::Making | State::Growing | State::Removing => return Err(unsettled(name)),
            }
            let mut others = volume.users.iter().filter(|(user, _)| **user != vm_id);
            if let Some((user, reads)) = others.find(|(_, reads)| !(readonly && **reads)) {
                let how = if *reads { "reads" } else { "writes" };
                let text = format!(
                    "VM {user} {how} volume {:?}: one VM may write it, or many that only read it (readonly: true); \
                     delete that VM, or use another volume",
                    name.as_str()
                );
                return refuse(ErrorCode::Conflict, text).map_err(|error| error.with("used_by", user));
            }
        }
        for (name, readonly) in named(disks) {
            if let Some(volume) = volumes.get_mut(&(namespace.clone(), name.clone())) {
                volume.users.insert(vm_id, readonly);
            }
        }
        Ok(())
    }

    /// Takes a VM's volumes back; they stay.
    pub(super) fn release(&self, vm_id: VmId) {
        let mut volumes = self.lock();
        for volume in volumes.values_mut() {
            volume.users.remove(&vm_id);
        }
        volumes.retain(|_, volume| volume.state != State::Missing || !volume.users.is_empty());
    }

    /// The length of a volume that is there.
    #[must_use]
    pub fn size(&self, namespace: &Token, name: &Token) -> Option<u64> {
        let volumes = self.lock();
        let volume = volumes.get(&(namespace.clone(), name.clone()));
        volume.filter(|volume| volume.state.is_there()).map(|volume| volume.size_bytes)
    }

    /// The names of those that are there.
    #[must_use]
    pub fn names(&self) -> BTreeMap<Token, Vec<Token>> {
        let mut names: BTreeMap<Token, Vec<Token>> = BTreeMap::new();
        let volumes = self.lock();
        for (namespace, name) in volumes.iter().filter(|(_, v)| v.state.is_there()).map(|(key, _)| key) {
            names.entry(namespace.clone()).or_default().push(name.clone());
        }
        names
    }

    /// Bytes of a namespace's volumes, or of all.
    pub(super) fn bytes(&self, of: Option<&Token>) -> u64 {
        let volumes = self.lock();
        let wanted = volumes.iter().filter(|((namespace, _), _)| of.is_none_or(|of| of == namespace));
        wanted.map(|(_, volume)| volume.size_bytes).fold(0, u64::saturating_add)
    }

    /// Begins to remove a volume; [`HostState::settle_volume`] ends it.
    ///
    /// # Errors
    /// `not_found`, `busy`, or `conflict` for one that a VM names.
    pub fn remove(&self, namespace: &Token, name: &Token) -> Result<(), ErrorBody> {
        let mut volumes = self.lock();
        let volume = volumes
            .get_mut(&(namespace.clone(), name.clone()))
            .filter(|volume| volume.state != State::Missing)
            .ok_or_else(|| unknown(namespace, name))?;
        if volume.state != State::Ready {
            return Err(unsettled(name));
        }
        if let Some(user) = volume.users.keys().next() {
            let count = volume.users.len();
            let text = format!(
                "{count} VMs name volume {:?}, {user} among them; delete them first (`drover volume ls` names them)",
                name.as_str()
            );
            let error = ErrorBody::new(ErrorCode::Conflict, text).with("volume", name);
            return Err(error.with("used_by", user));
        }
        volume.state = State::Removing;
        Ok(())
    }

    fn settle(&self, namespace: &Token, name: &Token, is_there: bool) {
        let key = (namespace.clone(), name.clone());
        let mut volumes = self.lock();
        if !is_there {
            volumes.remove(&key);
        } else if let Some(volume) = volumes.get_mut(&key) {
            volume.state = State::Ready;
        }
    }
}

impl HostState {
    /// The volumes of the host.
    #[must_use]
    pub const fn volumes(&self) -> &Volumes {
        &self.volumes
    }

    /// Promises room for a volume that is about to be made; [`Self::settle_volume`] ends it. `false` if it is there, as
    /// long as it shall be.
    ///
    /// # Errors
    /// `resource_exhausted`, `already_exists` with another length, `busy`, or `conflict` where VMs name one whose file is
    /// gone.
    pub fn make_volume(
        &self,
        namespace: &Token,
        name: &Token,
        size_bytes: u64,
        free: u64,
    ) -> Result<bool, ErrorBody> {
        let inner = self.lock();
        let known = self.volumes.lock().get(&(namespace.clone(), name.clone())).cloned();
        let refuse = |code, text: String| Err(ErrorBody::new(code, text).with("volume", name));
        match known.as_ref().map(|volume| (volume.state, volume.size_bytes)) {
            None => {}
            Some((State::Ready, size)) if size == size_bytes => return Ok(false),
            Some((State::Ready, size)) => {
                let text = format!("volume {:?} is there already, with {size} bytes", name.as_str());
                return refuse(ErrorCode::AlreadyExists, text);
            }
            Some((State::Missing, _)) => {
                let text = format!(
                    "VMs name volume {:?}, whose file is gone: put it back, or delete them",
                    name.as_str()
                );
                return refuse(ErrorCode::Conflict, text);
            }
            Some((State::Making | State::Growing | State::Removing, _)) => return Err(unsettled(name)),
        }
        self.check_disk(&inner, namespace, size_bytes, Some(free))?;
        let volume = Volume { size_bytes, state: State::Making, users: BTreeMap::new() };
        self.volumes.lock().insert((namespace.clone(), name.clone()), volume);
        drop(inner);
        self.changed();
        Ok(true)
    }

    /// Promises room for a volume that is about to become longer; [`Self::settle_growth`] ends it, until when nobody else
    /// changes or takes it. Gives the length that it has.
    ///
    /// # Errors
    /// `resource_exhausted`, `not_found`, `busy`, or `invalid_argument` for one that would become shorter.
    pub fn grow_volume(
        &self,
        namespace: &Token,
        name: &Token,
        size_bytes: u64,
        free: u64,
    ) -> Result<u64, ErrorBody> {
        let inner = self.lock();
        let key = (namespace.clone(), name.clone());
        let known = self.volumes.lock().get(&key).map(|volume| (volume.state, volume.size_bytes));
        let size = match known {
            None | Some((State::Missing, _)) => return Err(unknown(namespace, name)),
            Some((State::Ready, size)) => size,
            Some(_) => return Err(unsettled(name)),
        };
        let Some(more) = size_bytes.checked_sub(size) else {
            let text =
                format!("the volume has {size} bytes and never becomes shorter: its end may be in use");
            return Err(invalid("size_bytes", text).with("size_bytes", size));
        };
        self.check_disk(&inner, namespace, more, Some(free))?;
        match self.volumes.lock().get_mut(&key).filter(|volume| volume.state == State::Ready) {
            Some(volume) => (volume.state, volume.size_bytes) = (State::Growing, size_bytes),
            None => return Err(unsettled(name)),
        }
        drop(inner);
        self.changed();
        Ok(size)
    }

    /// A volume has become longer, or not: so long is it now.
    pub fn settle_growth(&self, namespace: &Token, name: &Token, size_bytes: u64) {
        self.volumes.found(namespace.clone(), name.clone(), size_bytes);
        self.changed();
    }

    /// A volume was made or removed, or not: it is there now or it is not.
    pub fn settle_volume(&self, namespace: &Token, name: &Token, is_there: bool) {
        self.volumes.settle(namespace, name, is_there);
        self.changed();
    }
}

fn named(disks: &[ResolvedDisk]) -> impl Iterator<Item = (&Token, bool)> {
    disks.iter().filter_map(|disk| Some((disk.volume.as_ref()?, disk.readonly)))
}

fn unknown(namespace: &Token, name: &Token) -> ErrorBody {
    let text = format!(
        "namespace {namespace} has no volume {:?} on this host; `drover volume create` makes one",
        name.as_str()
    );
    ErrorBody::new(ErrorCode::NotFound, text).with("volume", name)
}

fn unsettled(name: &Token) -> ErrorBody {
    let text = format!("volume {:?} is being made, made longer or removed; repeat", name.as_str());
    ErrorBody::new(ErrorCode::Busy, text).with("volume", name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(text: &str) -> Token {
        Token::new(text).unwrap()
    }

    fn disk(name: &str, readonly: bool) -> [ResolvedDisk; 1] {
        [ResolvedDisk { volume: Some(token(name)), readonly, ..ResolvedDisk::default() }]
    }

    #[test]
    fn one_vm_writes_or_many_read_and_another_namespace_has_none_of_it() {
        let (volumes, ns, vm) = (Volumes::default(), token("a"), VmId::from_u128);
        volumes.found(ns.clone(), token("data"), 7);
        let claim = |ns: &Token, id, readonly| {
            volumes.claim(ns, vm(id), &disk("data", readonly)).map_err(|error| error.code)
        };
        assert_eq!(claim(&token("b"), 1, true), Err(ErrorCode::NotFound));
        claim(&ns, 1, false).unwrap();
        claim(&ns, 1, false).unwrap();
        assert_eq!(
            (claim(&ns, 2, false), claim(&ns, 2, true)),
            (Err(ErrorCode::Conflict), Err(ErrorCode::Conflict))
        );
        assert_eq!(volumes.remove(&ns, &token("data")).unwrap_err().code, ErrorCode::Conflict);
        volumes.release(vm(1));
        claim(&ns, 2, true).unwrap();
        claim(&ns, 3, true).unwrap();
        assert_eq!(claim(&ns, 4, false), Err(ErrorCode::Conflict));
        volumes.release(vm(2));
        volumes.release(vm(3));
        assert_eq!((volumes.size(&ns, &token("data")), volumes.bytes(Some(&ns))), (Some(7), 7));
        volumes.remove(&ns, &token("data")).unwrap();
        assert_eq!(claim(&ns, 5, true), Err(ErrorCode::Busy));
        assert_eq!(volumes.remove(&ns, &token("data")).unwrap_err().code, ErrorCode::Busy);
        volumes.settle(&ns, &token("data"), false);
        assert_eq!((claim(&ns, 5, true), volumes.bytes(None)), (Err(ErrorCode::NotFound), 0));
    }

    #[test]
    fn one_that_becomes_longer_is_there_and_taken_by_nobody() {
        let (volumes, ns, name, vm) = (Volumes::default(), token("a"), token("data"), VmId::from_u128);
        volumes.found(ns.clone(), name.clone(), 7);
        volumes.lock().get_mut(&(ns.clone(), name.clone())).unwrap().state = State::Growing;
        assert_eq!((volumes.size(&ns, &name), volumes.names()[&ns].len()), (Some(7), 1));
        assert_eq!(volumes.claim(&ns, vm(1), &disk("data", true)).unwrap_err().code, ErrorCode::Busy);
        assert_eq!(volumes.remove(&ns, &name).unwrap_err().code, ErrorCode::Busy);
        volumes.found(ns.clone(), name.clone(), 9);
        volumes.claim(&ns, vm(1), &disk("data", true)).unwrap();
        assert_eq!(volumes.bytes(Some(&ns)), 9);
    }

    #[test]
    fn what_vms_of_the_journal_name_is_theirs_though_its_file_is_gone() {
        let (volumes, ns, name, vm) = (Volumes::default(), token("a"), token("data"), VmId::from_u128);
        volumes.restore(&ns, vm(1), &disk("data", false));
        assert_eq!(volumes.claim(&ns, vm(2), &disk("data", false)).unwrap_err().code, ErrorCode::NotFound);
        assert_eq!((volumes.size(&ns, &name), volumes.names().len()), (None, 0));
        // Put back.
        volumes.found(ns.clone(), name.clone(), 9);
        assert_eq!(volumes.claim(&ns, vm(2), &disk("data", false)).unwrap_err().code, ErrorCode::Conflict);
        assert_eq!(volumes.names()[&ns], [name]);
    }
}
