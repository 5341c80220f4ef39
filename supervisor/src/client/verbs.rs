//! The verbs by name and type.

use std::time::Duration;

use drover_schemas::body::events::{EventsLastReply, EventsLastRequest, EventsReadReply, EventsReadRequest};
use drover_schemas::body::guest::Empty;
use drover_schemas::body::host::{
    BackupReply, DrainReply, DrainRequest, ForgetReply, ForgetRequest, HostEntry, HostInfo, HostsReply,
    HostsRequest, OrphanRemoveRequest, OrphansReply,
};
use drover_schemas::body::image::{
    ImageGcReply, ImageGetReply, ImageGetRequest, ImageImportReply, ImageImportRequest, ImageNameRequest,
    ImageTagReply, ImageTagRequest, ImageVerifyReply, ImagesReply, ImagesRequest,
};
use drover_schemas::body::network::{
    NetworkCreateReply, NetworkCreateRequest, NetworkRemoveRequest, NetworksReply,
};
use drover_schemas::body::status::VmStatus;
use drover_schemas::body::vm::{
    ChangeReply, CreateRequest, ListReply, ListRequest, ValidateReply, ValidateRequest,
};
use drover_schemas::body::volume::{
    VolumeCreateReply, VolumeCreateRequest, VolumeGrowReply, VolumeGrowRequest, VolumeInfo,
    VolumeRemoveRequest, VolumesReply, VolumesRequest,
};
use drover_schemas::contract::ContractReply;
use drover_schemas::subject::{Family, GuestToken, PoolVerb, Subject};
use drover_schemas::{ErrorBody, ErrorCode, Token, VmId};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{CallOptions, Client, ClientError};

impl Client {
    /// The subject of a VM's verb. `verb` is a word of this program, never of a user.
    ///
    /// # Errors
    /// `internal` for a verb that is no token.
    pub fn vm_subject(&self, name: &Token, verb: &str) -> Result<Subject, ClientError> {
        let verb = Token::new(verb).map_err(|e| ErrorBody::new(ErrorCode::Internal, e.to_string()))?;
        Ok(Subject::Vm { ns: self.namespace().clone(), name: name.clone(), verb })
    }

    /// The subject of a guest's verb.
    ///
    /// # Errors
    /// `internal` for a verb that is no token.
    pub fn guest_subject(&self, name: &Token, verb: &str) -> Result<Subject, ClientError> {
        let verb = GuestToken::new(verb)
            .ok_or_else(|| ErrorBody::new(ErrorCode::Internal, format!("{verb:?} is not a guest verb")))?;
        Ok(Subject::Guest { ns: self.namespace().clone(), name: name.clone(), verb })
    }

    /// `vm.create`.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub async fn create(
        &self,
        request: &CreateRequest,
        options: CallOptions,
    ) -> Result<ChangeReply, ClientError> {
        let subject = Subject::VmPool { ns: self.namespace().clone(), verb: PoolVerb::Create };
        self.call(&subject, request, options).await
    }

    /// `contract.read`: the document as the host that answers first has it.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub async fn contract(&self, deadline: Duration) -> Result<ContractReply, ClientError> {
        self.registry(Family::Contract, "read", &Empty {}, deadline).await
    }

    /// A verb of a namespace that whichever host answers first carries out; it changes nothing.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub async fn registry<Q, R>(
        &self,
        family: Family,
        verb: &str,
        request: &Q,
        deadline: Duration,
    ) -> Result<R, ClientError>
    where
        Q: Serialize + Sync,
        R: DeserializeOwned,
    {
        let verb = Token::new(verb).map_err(|e| ErrorBody::new(ErrorCode::Internal, e.to_string()))?;
        let subject = Subject::Registry { ns: self.namespace().clone(), family, verb };
        self.call(&subject, request, CallOptions::read(deadline)).await
    }

    /// `vm.validate`: what a create would make.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub async fn validate(
        &self,
        request: &ValidateRequest,
        deadline: Duration,
    ) -> Result<ValidateReply, ClientError> {
        let subject = Subject::VmPool { ns: self.namespace().clone(), verb: PoolVerb::Validate };
        self.call(&subject, request, CallOptions::read(deadline)).await
    }

    /// Any verb of one VM.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub async fn vm<Q, R>(
        &self,
        name: &Token,
        verb: &str,
        request: &Q,
        options: CallOptions,
    ) -> Result<R, ClientError>
    where
        Q: Serialize + Sync,
        R: DeserializeOwned,
    {
        self.call(&self.vm_subject(name, verb)?, request, options).await
    }

    /// All VMs of the namespace, page by page.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub async fn list(&self, deadline: Duration) -> Result<Vec<VmStatus>, ClientError> {
        let subject = Subject::VmPool { ns: self.namespace().clone(), verb: PoolVerb::List };
        let mut request = ListRequest { limit: Some(500), cursor: None };
        let mut vms = Vec::new();
        loop {
            let page: ListReply = self.call(&subject, &request, CallOptions::read(deadline)).await?;
            vms.extend(page.vms);
            match page.next_cursor {
                // A cursor that does not move would loop for ever.
                Some(next) if request.cursor.as_ref() != Some(&next) => request.cursor = Some(next),
                _ => return Ok(vms),
            }
        }
    }

    /// `events.read`: one page.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub async fn read_events(
        &self,
        request: &EventsReadRequest,
        deadline: Duration,
    ) -> Result<EventsReadReply, ClientError> {
        self.registry(Family::Events, "read", request, deadline).await
    }

    /// `events.last`: one page.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub async fn last_events(
        &self,
        request: &EventsLastRequest,
        deadline: Duration,
    ) -> Result<EventsLastReply, ClientError> {
        self.registry(Family::Events, "last", request, deadline).await
    }

    /// `host.<host>.info`.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub async fn host_info(&self, host: &Token, deadline: Duration) -> Result<HostInfo, ClientError> {
        self.host(host, "info", &Empty {}, deadline).await
    }

    /// Makes a backup of a host's journal, on the host.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub async fn host_backup(&self, host: &Token, deadline: Duration) -> Result<BackupReply, ClientError> {
        self.host(host, "backup", &Empty {}, deadline).await
    }

    /// Tells a host to take no new VMs, or to take them again.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub async fn host_drain(
        &self,
        host: &Token,
        on: bool,
        deadline: Duration,
    ) -> Result<DrainReply, ClientError> {
        self.host(host, "drain", &DrainRequest { on }, deadline).await
    }

    /// The hosts of the fleet, page by page, as `host` sees them.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub async fn hosts(&self, host: &Token, deadline: Duration) -> Result<Vec<HostEntry>, ClientError> {
        let mut request = HostsRequest::default();
        let mut hosts = Vec::new();
        loop {
            let page: HostsReply = self.host(host, "list", &request, deadline).await?;
            hosts.extend(page.hosts);
            match page.next_cursor {
                // A cursor that does not move would loop for ever.
                Some(next) if request.cursor.as_ref() != Some(&next) => request.cursor = Some(next),
                _ => return Ok(hosts),
            }
        }
    }

    /// Has `by` forget another host.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub async fn host_forget(
        &self,
        by: &Token,
        request: &ForgetRequest,
        deadline: Duration,
    ) -> Result<ForgetReply, ClientError> {
        self.host(by, "forget", request, deadline).await
    }

    /// VMs on a host's machine that the host does not know.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub async fn host_orphans(&self, host: &Token, deadline: Duration) -> Result<OrphansReply, ClientError> {
        self.host(host, "orphans", &Empty {}, deadline).await
    }

    /// Ends a VM that the host does not know and removes everything of it; answers those that are left.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub async fn remove_orphan(
        &self,
        host: &Token,
        vm_id: VmId,
        deadline: Duration,
    ) -> Result<OrphansReply, ClientError> {
        self.host(host, "orphans.remove", &OrphanRemoveRequest { vm_id }, deadline).await
    }

    /// The images of a host, page by page.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub async fn images(&self, host: &Token, deadline: Duration) -> Result<ImagesReply, ClientError> {
        let mut all = ImagesReply::default();
        let mut request = ImagesRequest { limit: Some(500), ..ImagesRequest::default() };
        loop {
            let page: ImagesReply = self.host(host, "image.list", &request, deadline).await?;
            all.images.extend(page.images);
            (all.store_bytes, all.free_bytes) = (page.store_bytes, page.free_bytes);
            match page.next_cursor {
                Some(cursor) if request.cursor.as_ref() != Some(&cursor) => request.cursor = Some(cursor),
                _ => return Ok(all),
            }
        }
    }

    /// An image of a host, by its name or `sha256:` and its digest, with who uses it.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub async fn image(
        &self,
        host: &Token,
        image: &str,
        deadline: Duration,
    ) -> Result<ImageGetReply, ClientError> {
        self.host(host, "image.get", &ImageGetRequest { image: image.to_owned() }, deadline).await
    }

    /// Takes a file of the host into its store.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub async fn image_import(
        &self,
        host: &Token,
        request: &ImageImportRequest,
        deadline: Duration,
    ) -> Result<ImageImportReply, ClientError> {
        self.host(host, "image.import", request, deadline).await
    }

    /// Gives a content of the host's store another name.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub async fn image_tag(
        &self,
        host: &Token,
        request: &ImageTagRequest,
        deadline: Duration,
    ) -> Result<ImageTagReply, ClientError> {
        self.host(host, "image.tag", request, deadline).await
    }

    /// Compares one image, or all that were imported, with their digests.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub async fn image_verify(
        &self,
        host: &Token,
        name: Option<Token>,
        deadline: Duration,
    ) -> Result<ImageVerifyReply, ClientError> {
        self.host(host, "image.verify", &ImageNameRequest { name }, deadline).await
    }

    /// Takes the name of an image away, and its content if nobody needs it.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub async fn image_remove(
        &self,
        host: &Token,
        name: Token,
        deadline: Duration,
    ) -> Result<ImageGcReply, ClientError> {
        self.host(host, "image.remove", &ImageNameRequest { name: Some(name) }, deadline).await
    }

    /// Removes contents that have no name and are used by no VM.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub async fn image_gc(&self, host: &Token, deadline: Duration) -> Result<ImageGcReply, ClientError> {
        self.host(host, "image.gc", &Empty {}, deadline).await
    }

    /// Makes a volume of a namespace.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub async fn volume_create(
        &self,
        host: &Token,
        request: &VolumeCreateRequest,
        deadline: Duration,
    ) -> Result<VolumeCreateReply, ClientError> {
        self.host(host, "volume.create", request, deadline).await
    }

    /// Every volume of a namespace on a host.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub async fn volumes(
        &self,
        host: &Token,
        namespace: &Token,
        deadline: Duration,
    ) -> Result<Vec<VolumeInfo>, ClientError> {
        let mut request = VolumesRequest { namespace: namespace.clone(), limit: None, cursor: None };
        let mut volumes = Vec::new();
        loop {
            let page: VolumesReply = self.host(host, "volume.list", &request, deadline).await?;
            volumes.extend(page.volumes);
            request.cursor = page.next_cursor;
            if request.cursor.is_none() {
                return Ok(volumes);
            }
        }
    }

    /// Makes a volume longer.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub async fn volume_grow(
        &self,
        host: &Token,
        request: &VolumeGrowRequest,
        deadline: Duration,
    ) -> Result<VolumeGrowReply, ClientError> {
        self.host(host, "volume.grow", request, deadline).await
    }

    /// Removes a volume that no VM names.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub async fn volume_remove(
        &self,
        host: &Token,
        request: &VolumeRemoveRequest,
        deadline: Duration,
    ) -> Result<Empty, ClientError> {
        self.host(host, "volume.remove", request, deadline).await
    }

    /// Makes a network of a host.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub async fn network_create(
        &self,
        host: &Token,
        request: &NetworkCreateRequest,
        deadline: Duration,
    ) -> Result<NetworkCreateReply, ClientError> {
        self.host(host, "network.create", request, deadline).await
    }

    /// The networks of a host.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub async fn networks(&self, host: &Token, deadline: Duration) -> Result<NetworksReply, ClientError> {
        self.host(host, "network.list", &Empty {}, deadline).await
    }

    /// Removes a network that no VM has an interface in.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub async fn network_remove(
        &self,
        host: &Token,
        request: &NetworkRemoveRequest,
        deadline: Duration,
    ) -> Result<Empty, ClientError> {
        self.host(host, "network.remove", request, deadline).await
    }

    pub(super) async fn host<Q, R>(
        &self,
        host: &Token,
        verb: &str,
        request: &Q,
        deadline: Duration,
    ) -> Result<R, ClientError>
    where
        Q: Serialize + Sync,
        R: DeserializeOwned,
    {
        let subject = Subject::Host { host: host.clone(), verb: verb.to_owned() };
        self.call(&subject, request, CallOptions::read(deadline)).await
    }
}
