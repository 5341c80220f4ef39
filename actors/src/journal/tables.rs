//! What each operation does to the tables, within one write transaction.

use drover_schemas::VmId;
use redb::{
    Database, Key, ReadTransaction, ReadableTable as _, Table, TableDefinition, Value, WriteTransaction,
};

use super::batch::{EncodedBatch, EncodedOp, EventClass};
use super::error::JournalError;
use super::rows::{LeaseRow, RequestRow, RequestState, UidRow, VmRow, decode_row, encode_row};
use super::store::{
    Bytes, COUNTERS, Changes, IN_FLIGHT, LEASES, META, META_BOOT, META_DRAINING, META_NETWORKS, META_STREAM,
    META_SUBNETS, NAMES, OUTBOX_AGENT, OUTBOX_STATE, POSITIONS, REQUEST_COUNTS, REQUEST_TIMES, REQUESTS,
    UIDS, VMS,
};

type Result<T> = std::result::Result<T, redb::Error>;

/// Every table that operations touch.
pub(super) struct Tables<'t> {
    vms: Table<'t, u128, Bytes>,
    names: Table<'t, (&'static str, &'static str), u128>,
    requests: Table<'t, (&'static str, u128), Bytes>,
    request_times: Table<'t, (&'static str, u64, u128), ()>,
    in_flight: Table<'t, (&'static str, u128), ()>,
    request_counts: Table<'t, &'static str, (u64, u64)>,
    leases: Table<'t, (&'static str, u32), Bytes>,
    uids: Table<'t, u32, Bytes>,
    outbox_state: Table<'t, (u128, u64), Bytes>,
    outbox_agent: Table<'t, (u128, u64), Bytes>,
    positions: Table<'t, u128, (u64, u64)>,
    meta: Table<'t, &'static str, &'static str>,
}

/// Makes every table, so that reads find them.
pub(super) fn create_all(db: &Database) -> Result<()> {
    let mut txn = db.begin_write()?;
    txn.set_quick_repair(true);
    drop(Tables::open(&txn)?);
    txn.open_table(COUNTERS)?;
    txn.commit()?;
    Ok(())
}

/// Copies every table.
pub(super) fn copy_all(from: &ReadTransaction, to: &WriteTransaction) -> Result<()> {
    fn copy<K: Key + 'static, V: Value + 'static>(
        from: &ReadTransaction,
        to: &WriteTransaction,
        definition: TableDefinition<'_, K, V>,
    ) -> Result<()> {
        let source = from.open_table(definition)?;
        let mut target = to.open_table(definition)?;
        for entry in source.iter()? {
            let (key, value) = entry?;
            target.insert(key.value(), value.value())?;
        }
        Ok(())
    }
    copy(from, to, VMS)?;
    copy(from, to, NAMES)?;
    copy(from, to, REQUESTS)?;
    copy(from, to, REQUEST_TIMES)?;
    copy(from, to, IN_FLIGHT)?;
    copy(from, to, REQUEST_COUNTS)?;
    copy(from, to, LEASES)?;
    copy(from, to, UIDS)?;
    copy(from, to, OUTBOX_STATE)?;
    copy(from, to, OUTBOX_AGENT)?;
    copy(from, to, POSITIONS)?;
    copy(from, to, META)?;
    copy(from, to, COUNTERS)
}

impl<'t> Tables<'t> {
    pub(super) fn open(txn: &'t WriteTransaction) -> Result<Self> {
        Ok(Self {
            vms: txn.open_table(VMS)?,
            names: txn.open_table(NAMES)?,
            requests: txn.open_table(REQUESTS)?,
            request_times: txn.open_table(REQUEST_TIMES)?,
            in_flight: txn.open_table(IN_FLIGHT)?,
            request_counts: txn.open_table(REQUEST_COUNTS)?,
            leases: txn.open_table(LEASES)?,
            uids: txn.open_table(UIDS)?,
            outbox_state: txn.open_table(OUTBOX_STATE)?,
            outbox_agent: txn.open_table(OUTBOX_AGENT)?,
            positions: txn.open_table(POSITIONS)?,
            meta: txn.open_table(META)?,
        })
    }

    /// Whether the batch contradicts what is stored. Each operation is checked against the rows
    /// before the batch, because a batch that was begun cannot be taken back alone.
    pub(super) fn check(&self, batch: &EncodedBatch) -> Result<std::result::Result<(), JournalError>> {
        for op in &batch.ops {
            let conflict = match op {
                EncodedOp::PutVm { vm_id, namespace, name, named: true, .. } => {
                    let holder = self.names.get((namespace.as_str(), name.as_str()))?.map(|v| v.value());
                    holder.filter(|h| *h != vm_id.as_u128()).map(|holder| JournalError::NameTaken {
                        namespace: namespace.clone(),
                        name: name.clone(),
                        holder: VmId::from_u128(holder),
                    })
                }
                EncodedOp::PutLease { network, ipv4, vm_id, .. } => self
                    .lease(network.as_str(), (*ipv4).into())?
                    .filter(|l| l.vm_id != *vm_id && l.quarantine_until_unix_ms.is_none())
                    .map(|l| JournalError::AddressTaken {
                        network: network.clone(),
                        ipv4: *ipv4,
                        holder: l.vm_id,
                    }),
                EncodedOp::PutUid { uid, vm_id, .. } => self
                    .uid(*uid)?
                    .filter(|u| u.vm_id != *vm_id && u.quarantine_until_unix_ms.is_none())
                    .map(|u| JournalError::UidTaken { uid: *uid, holder: u.vm_id }),
                EncodedOp::PutOutbox { key, seq, .. } => self
                    .seq_is_used(key.as_u128(), *seq)?
                    .then_some(JournalError::SeqTaken { key: *key, seq: *seq }),
                _ => None,
            };
            if let Some(conflict) = conflict {
                return Ok(Err(conflict));
            }
        }
        Ok(Ok(()))
    }

    pub(super) fn apply(&mut self, op: &EncodedOp, request_cap: u64, changes: &mut Changes) -> Result<()> {
        match op {
            EncodedOp::PutVm { vm_id, namespace, name, named, row } => {
                let (vm_id, name) = (vm_id.as_u128(), (namespace.as_str(), name.as_str()));
                self.vms.insert(vm_id, row.as_slice())?;
                if *named {
                    self.names.insert(name, vm_id)?;
                } else {
                    self.free_name(name, vm_id)?;
                }
            }
            EncodedOp::RemoveVm { vm_id } => self.remove_vm(vm_id.as_u128())?,
            EncodedOp::PutRequest { namespace, request_id, bound_unix_ms, done, row } => {
                let request = (namespace.as_str(), request_id.as_u128());
                let new = self.requests.insert(request, row.as_slice())?.is_none();
                if *done {
                    self.in_flight.remove(request)?;
                } else {
                    self.in_flight.insert(request, ())?;
                }
                if new {
                    self.request_times.insert((request.0, *bound_unix_ms, request.1), ())?;
                    self.count_request(request.0, request_cap)?;
                }
            }
            EncodedOp::ForgetRequests { vm_id } => self.forget_requests(*vm_id)?,
            EncodedOp::Prune { requests_before_unix_ms, now_unix_ms } => {
                self.prune_requests(*requests_before_unix_ms)?;
                self.prune_quarantines(*now_unix_ms)?;
            }
            EncodedOp::PutOutbox { class, key, seq, row } => {
                let table = match class {
                    EventClass::State => &mut self.outbox_state,
                    EventClass::Agent => &mut self.outbox_agent,
                };
                table.insert((key.as_u128(), *seq), row.as_slice())?;
                changes.added.rows += 1;
                changes.added.bytes += row_cost(row.len());
                changes.woken.push(key.as_u128());
            }
            EncodedOp::AckOutbox { key, seq, stream_seq } => {
                let key = key.as_u128();
                for table in [&mut self.outbox_state, &mut self.outbox_agent] {
                    // Usually one row: events are acknowledged in order.
                    for row in table.extract_from_if((key, 0)..=(key, *seq), |_, _| true)? {
                        changes.removed.rows += 1;
                        changes.removed.bytes += row_cost(row?.1.value().len());
                    }
                }
                let known = self.positions.get(key)?.map_or(0, |p| p.value().0);
                if *seq >= known {
                    self.positions.insert(key, (*seq, *stream_seq))?;
                }
            }
            EncodedOp::PutLease { network, ipv4, row, .. } => {
                self.leases.insert((network.as_str(), u32::from(*ipv4)), row.as_slice())?;
            }
            EncodedOp::ReleaseLease { network, ipv4, quarantine_until_unix_ms } => {
                let key = (network.as_str(), u32::from(*ipv4));
                let held = self.lease(key.0, key.1)?;
                match (held, quarantine_until_unix_ms) {
                    (Some(mut row), Some(_)) => {
                        row.quarantine_until_unix_ms = *quarantine_until_unix_ms;
                        self.leases.insert(key, encoded(&row)?.as_slice())?;
                    }
                    _ => drop(self.leases.remove(key)?),
                }
            }
            EncodedOp::PutUid { uid, row, .. } => drop(self.uids.insert(*uid, row.as_slice())?),
            EncodedOp::ReleaseUid { uid, quarantine_until_unix_ms } => {
                let held = self.uid(*uid)?;
                match (held, quarantine_until_unix_ms) {
                    (Some(mut row), Some(_)) => {
                        row.quarantine_until_unix_ms = *quarantine_until_unix_ms;
                        self.uids.insert(*uid, encoded(&row)?.as_slice())?;
                    }
                    _ => drop(self.uids.remove(*uid)?),
                }
            }
            EncodedOp::PutStreamIdentity(identity) => {
                self.meta.insert(META_STREAM, identity.as_str())?;
            }
            EncodedOp::PutBoot(boot) => {
                self.meta.insert(META_BOOT, boot.as_str())?;
            }
            EncodedOp::PutSubnets(subnets) => {
                self.meta.insert(META_SUBNETS, subnets.as_str())?;
            }
            EncodedOp::PutNetworks(networks) => {
                self.meta.insert(META_NETWORKS, networks.as_str())?;
            }
            EncodedOp::PutDraining(true) => {
                self.meta.insert(META_DRAINING, "true")?;
            }
            EncodedOp::PutDraining(false) => drop(self.meta.remove(META_DRAINING)?),
        }
        Ok(())
    }

    fn seq_is_used(&self, key: u128, seq: u64) -> Result<bool> {
        Ok(self.positions.get(key)?.is_some_and(|p| p.value().0 >= seq)
            || self.outbox_state.get((key, seq))?.is_some()
            || self.outbox_agent.get((key, seq))?.is_some())
    }

    /// A lease that cannot be read is taken for none, so that it never blocks a release.
    fn lease(&self, network: &str, ipv4: u32) -> Result<Option<LeaseRow>> {
        Ok(self.leases.get((network, ipv4))?.and_then(|row| decode_row(row.value()).ok()))
    }

    fn uid(&self, uid: u32) -> Result<Option<UidRow>> {
        Ok(self.uids.get(uid)?.and_then(|row| decode_row(row.value()).ok()))
    }

    fn free_name(&mut self, name: (&str, &str), vm_id: u128) -> Result<()> {
        let holder = self.names.get(name)?.map(|holder| holder.value());
        if holder == Some(vm_id) {
            self.names.remove(name)?;
        }
        Ok(())
    }

    fn remove_vm(&mut self, vm_id: u128) -> Result<()> {
        let Some(row) = self.vms.remove(vm_id)?.map(|row| row.value().to_vec()) else { return Ok(()) };
        match decode_row::<VmRow>(&row) {
            Ok(row) => self.free_name((row.namespace.as_str(), row.name.as_str()), vm_id)?,
            // The row cannot be read, so its name is found the long way.
            Err(_) => self.names.retain(|_, holder| holder != vm_id)?,
        }
        self.positions.remove(vm_id)?;
        Ok(())
    }

    /// Counts a new request and, above the cap, forgets the oldest finished one of the namespace.
    /// Its id's time becomes the floor: ids up to there are refused, never run again.
    fn count_request(&mut self, namespace: &str, cap: u64) -> Result<()> {
        let (count, floor) = self.request_counts.get(namespace)?.map_or((0, 0), |v| v.value());
        let (mut count, mut floor) = (count + 1, floor);
        if count > cap {
            let mut oldest = None;
            for entry in self.request_times.range((namespace, 0, 0)..=(namespace, u64::MAX, u128::MAX))? {
                let (_, at, id) = entry?.0.value();
                if self.in_flight.get((namespace, id))?.is_none() {
                    oldest = Some((at, id));
                    break;
                }
            }
            if let Some((at, id)) = oldest {
                self.requests.remove((namespace, id))?;
                self.request_times.remove((namespace, at, id))?;
                count -= 1;
                floor = floor.max((id >> 80) as u64);
            }
        }
        self.request_counts.insert(namespace, (count, floor))?;
        Ok(())
    }

    fn forget_requests(&mut self, vm_id: VmId) -> Result<()> {
        let mut of_vm = Vec::new();
        for entry in self.in_flight.iter()? {
            let key = entry?.0;
            let Some(row) = self.requests.get(key.value())? else { continue };
            // One that cannot be read is shown as such, and not taken for this VM's.
            let Ok(row) = decode_row::<RequestRow>(row.value()) else { continue };
            if matches!(row.state, RequestState::InFlight { vm_id: of, .. } if of == vm_id) {
                let (namespace, id) = key.value();
                of_vm.push((namespace.to_owned(), id, row.bound_unix_ms));
            }
        }
        for (namespace, id, at) in of_vm {
            let request = (namespace.as_str(), id);
            self.requests.remove(request)?;
            self.in_flight.remove(request)?;
            self.request_times.remove((request.0, at, id))?;
            // The floor stays: ids up to there are refused.
            let (count, floor) = self.request_counts.get(request.0)?.map_or((0, 0), |v| v.value());
            self.request_counts.insert(request.0, (count.saturating_sub(1), floor))?;
        }
        Ok(())
    }

    fn prune_requests(&mut self, before: u64) -> Result<()> {
        let mut old = Vec::new();
        let mut namespaces = Vec::new();
        for entry in self.request_counts.iter()? {
            namespaces.push(entry?.0.value().to_owned());
        }
        for namespace in namespaces {
            let ns = namespace.as_str();
            old.clear();
            for entry in self.request_times.range((ns, 0, 0)..(ns, before, 0))? {
                let (_, at, id) = entry?.0.value();
                if self.in_flight.get((ns, id))?.is_none() {
                    old.push((at, id));
                }
            }
            for (at, id) in &old {
                self.requests.remove((ns, *id))?;
                self.request_times.remove((ns, *at, *id))?;
            }
            let (count, floor) = self.request_counts.get(ns)?.map_or((0, 0), |v| v.value());
            match count.saturating_sub(old.len() as u64) {
                0 => drop(self.request_counts.remove(ns)?),
                left => drop(self.request_counts.insert(ns, (left, floor))?),
            }
        }
        Ok(())
    }

    fn prune_quarantines(&mut self, now: u64) -> Result<()> {
        let over = |until: Option<u64>| until.is_some_and(|until| until <= now);
        self.leases.retain(|_, row| {
            !decode_row::<LeaseRow>(row).is_ok_and(|row| over(row.quarantine_until_unix_ms))
        })?;
        self.uids.retain(|_, row| {
            !decode_row::<UidRow>(row).is_ok_and(|row| over(row.quarantine_until_unix_ms))
        })?;
        Ok(())
    }
}

/// What a row of the outbox costs on disk, roughly: its bytes, its key and its share of a page.
pub(super) fn row_cost(len: usize) -> u64 {
    len as u64 + 64
}

fn encoded<T: serde::Serialize>(row: &T) -> Result<Vec<u8>> {
    encode_row(row).map_err(|e| redb::Error::Io(std::io::Error::other(e)))
}
