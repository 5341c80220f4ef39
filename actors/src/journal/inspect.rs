//! For operators: the journal as JSON, and a backup of a running one.

use std::path::Path;

use drover_schemas::secret::Secret;
use redb::ReadableTable as _;
use serde_json::{Value, json};

use super::error::{JournalError, OpenError};
use super::read::Unreadable;
use super::rows::{OutboxRow, decode_row};
use super::store::{OUTBOX_AGENT, OUTBOX_STATE};
use super::{JournalHandle, STATE_VERSION};

/// The most events that an export shows.
const EXPORT_EVENTS: usize = 1000;

impl JournalHandle {
    /// The journal as JSON, without secrets and with at most 1,000 waiting events. Blocks.
    ///
    /// # Errors
    /// [`JournalError::Read`] if the file fails.
    pub fn export_json(&self) -> Result<Value, JournalError> {
        let mut snapshot = self.load()?;
        for vm in &mut snapshot.vms {
            vm.user_data = vm.user_data.as_ref().map(|_| Secret::new("***"));
        }
        let mut outbox = Vec::new();
        self.0.store.read("outbox", |txn| {
            for table in [OUTBOX_STATE, OUTBOX_AGENT] {
                for entry in txn.open_table(table)?.iter()?.take(EXPORT_EVENTS - outbox.len()) {
                    if let Ok(row) = decode_row::<OutboxRow>(entry?.1.value()) {
                        outbox.push(json!({"event": row.event_id(), "subject": row.subject}));
                    }
                }
            }
            Ok(())
        })?;
        let (rows, bytes) = self.outbox_used();
        let in_flight: Vec<Value> = snapshot
            .in_flight
            .iter()
            .map(|r| json!({"namespace": r.namespace, "request_id": r.request_id, "request": r.row}))
            .collect();
        let unreadable: Vec<Value> = snapshot
            .unreadable
            .iter()
            .map(|Unreadable { table, key, reason }| json!({"table": table, "key": key, "reason": reason}))
            .collect();
        Ok(json!({
            "state_version": STATE_VERSION,
            "installation": self.installation(),
            "vms": snapshot.vms,
            "leases": snapshot.leases,
            "uids": snapshot.uids,
            "in_flight": in_flight,
            "outbox": {"rows": rows, "bytes": bytes, "events": outbox},
            "unreadable": unreadable,
        }))
    }

    /// Copies the journal, as of one moment, into a new file. Blocks; commits go on meanwhile.
    ///
    /// # Errors
    /// [`OpenError`] if the copy cannot be written; a file that exists is not touched.
    pub fn backup_to(&self, path: &Path) -> Result<(), OpenError> {
        if path.exists() {
            let source = std::io::Error::from(std::io::ErrorKind::AlreadyExists);
            return Err(OpenError::File { operation: "make the backup", path: path.to_owned(), source });
        }
        self.0.store.copy_to(path)
    }
}
