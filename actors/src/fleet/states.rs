//! The last known state of every VM of the fleet: the bucket that owners write after each acknowledged event.

use std::sync::Arc;

use async_nats::jetstream::Context;
use drover_schemas::body::status::VmStatus;
use drover_schemas::{Token, VmId, codec};
use futures_util::{StreamExt as _, TryStreamExt as _};
use tokio::sync::Semaphore;

use crate::bus::claims::NameKey;
use crate::bus::claims::kv::{Kv, KvError, Written};

/// Lists of names that are held at once; each may be long.
const LISTS: usize = 4;
/// Rows that are read at once.
const READS: usize = 64;
/// Attempts to remove a row that changes meanwhile.
const RACES: usize = 4;

/// The bucket of states.
#[derive(Debug, Clone)]
pub struct States {
    kv: Kv,
    lists: Arc<Semaphore>,
}

impl States {
    /// Over the bucket of a name.
    #[must_use]
    pub fn new(js: Context, bucket: &str) -> Self {
        Self { kv: Kv::new(js, bucket), lists: Arc::new(Semaphore::new(LISTS)) }
    }

    /// Names of a namespace that have or had a row, in order, from `after` on, at most `limit`.
    ///
    /// # Errors
    /// The bucket does not answer.
    pub async fn names(
        &self,
        namespace: &Token,
        after: Option<&Token>,
        limit: usize,
    ) -> Result<Vec<Token>, KvError> {
        // Never closed.
        let _permit = self.lists.acquire().await;
        let all = format!("{namespace}.*");
        let keys = self.kv.keys(&all, |key| {
            let name = Token::new(key.split_once('.')?.1).ok()?;
            after.is_none_or(|after| name > *after).then_some(name)
        });
        let mut names: Vec<Token> = keys.await?;
        names.sort_unstable();
        names.truncate(limit);
        Ok(names)
    }

    /// The rows of these names, in order; names without one are left out.
    ///
    /// # Errors
    /// The bucket does not answer.
    pub async fn rows(&self, namespace: &Token, names: Vec<Token>) -> Result<Vec<VmStatus>, KvError> {
        let reads = names.into_iter().map(|name| async move {
            let key = NameKey { namespace: namespace.clone(), name }.key();
            let entry = self.kv.get(&key).await?;
            Ok::<_, KvError>(entry.value.and_then(|value| codec::decode::<VmStatus>(&value).ok()))
        });
        let rows = futures_util::stream::iter(reads).buffered(READS);
        rows.try_filter_map(|row| std::future::ready(Ok(row))).try_collect().await
    }

    /// Removes the row of a VM, if it is still that VM's.
    ///
    /// # Errors
    /// The bucket does not answer.
    pub async fn remove(&self, name: &NameKey, vm_id: VmId) -> Result<(), KvError> {
        let key = name.key();
        for _ in 0..RACES {
            let entry = self.kv.get(&key).await?;
            let row = entry.value.and_then(|value| codec::decode::<VmStatus>(&value).ok());
            if row.is_none_or(|row| row.vm_id != vm_id) {
                return Ok(());
            }
            if self.kv.purge(&key, entry.revision).await? != Written::Lost {
                return Ok(());
            }
        }
        Ok(())
    }
}
