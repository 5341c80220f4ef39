//! The VMs that a run makes through drover, and their end.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use drover_schemas::body::spec::VmSpec;
use drover_schemas::body::status::VmStatus;
use drover_schemas::body::vm::{ChangeReply, ChangeRequest, CreateRequest, Wait};
use drover_schemas::size::ByteSize;
use drover_schemas::{ErrorBody, ErrorCode, Token};
use futures_util::StreamExt as _;
use tokio::time::Instant;

use crate::client::{CallOptions, Client, ClientError};

const CREATE_DEADLINE: Duration = Duration::from_secs(100);
const DELETE_DEADLINE: Duration = Duration::from_secs(60);
/// How many requests are under way when it does not matter how long they take.
const AT_A_TIME: usize = 16;

/// VMs of one run.
#[derive(Debug)]
pub struct Vms {
    client: Client,
    template: Option<Token>,
    names: Mutex<BTreeSet<Token>>,
}

impl Vms {
    /// None yet.
    pub fn new(client: Client, template: Option<Token>) -> Self {
        Self { client, template, names: Mutex::default() }
    }

    fn names(&self) -> std::sync::MutexGuard<'_, BTreeSet<Token>> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Creates one and waits for its agent; gives it with the time that this took.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub async fn create(&self, memory: Option<ByteSize>) -> Result<(VmStatus, Duration), ClientError> {
        let spec = VmSpec { template: self.template.clone(), memory, ..VmSpec::default() };
        self.create_of(spec, Some(Wait::Agent)).await
    }

    /// Creates one as `spec` says; gives it with the time until the reply.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub async fn create_of(
        &self,
        spec: VmSpec,
        wait: Option<Wait>,
    ) -> Result<(VmStatus, Duration), ClientError> {
        let text = format!("bench-{:08x}", rand::random::<u32>());
        let name = Token::new(&text).map_err(|e| ErrorBody::new(ErrorCode::Internal, e.to_string()))?;
        // Noted before it is asked for: a create that is given up may still come about.
        self.names().insert(name.clone());
        let request = CreateRequest { name, spec, wait };
        let options = CallOptions::change(CREATE_DEADLINE);
        let began = Instant::now();
        let reply = self.client.create(&request, options).await?;
        Ok((reply.vm, began.elapsed()))
    }

    /// Creates many, a few at a time.
    ///
    /// # Errors
    /// The first that failed.
    pub async fn create_many(&self, count: usize, memory: ByteSize) -> Result<Vec<VmStatus>, ClientError> {
        let creates = (0..count).map(|_| self.create(Some(memory)));
        let done: Vec<_> = futures_util::stream::iter(creates).buffer_unordered(AT_A_TIME).collect().await;
        done.into_iter().map(|made| made.map(|(vm, _)| vm)).collect()
    }

    /// Deletes one.
    ///
    /// # Errors
    /// As [`Client::call`]; one that is not there is deleted.
    pub async fn delete(&self, name: &Token) -> Result<(), ClientError> {
        let options = CallOptions::change(DELETE_DEADLINE);
        let deleted: Result<ChangeReply, ClientError> =
            self.client.vm(name, "delete", &ChangeRequest::default(), options).await;
        match deleted {
            Err(ClientError::Refused(body)) if body.code == ErrorCode::NotFound => {}
            Err(error) => return Err(error),
            Ok(_) => {}
        }
        self.names().remove(name);
        Ok(())
    }

    /// Deletes these, a few at a time; what fails is tried again by [`Vms::clean_up`].
    pub async fn delete_many(&self, names: impl IntoIterator<Item = Token>) {
        let delete = |name: Token| async move {
            if let Err(error) = self.delete(&name).await {
                tracing::warn!(vm = %name, error = %drover_actors::chain(&error), "a VM is not deleted");
            }
        };
        futures_util::stream::iter(names.into_iter().map(delete)).for_each_concurrent(AT_A_TIME, |d| d).await;
    }

    /// Deletes all that are left.
    pub async fn clean_up(&self) {
        let names = self.names().clone();
        self.delete_many(names).await;
    }
}
