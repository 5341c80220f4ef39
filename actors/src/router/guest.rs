//! Verbs of the guest: over the link to its agent, never through the VM's mailbox.

use drover_schemas::body::guest::{AttachReply, ExecResult, PackReply};
use drover_schemas::body::status::AgentFaultCode;
use drover_schemas::guest::{
    self as proto, AttachRequest, FileStat, LsReply, LsRequest, MkdirRequest, RmRequest, StatRequest,
    TreeResult, UnpackRequest, UpgradeRequest, UpgradeResult,
};
use drover_schemas::state::VmState;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{
    Answer, Channel, Duration, Empty, ErrorBody, ErrorCode, ExecReply, ExecRequest, GetRequest,
    GuestShutdownRequest, Instant, PutRequest, Reply, Request, Router, Shape, Token, body_of, codec,
    guest_calls, run_calls, stream,
};
use crate::guest::{Link, on_behalf_of};
use crate::stream::{Far, Finish, WINDOW};

const OF_A_COMMAND: Shape =
    Shape { down: &[Channel::Stdout, Channel::Stderr], up: Some(Channel::Stdin), ctl: true };

impl Router {
    /// What of the guest's verbs a VM's spec refuses is refused here, before anything of the guest is looked at.
    pub(super) async fn guest(&self, ns: &Token, name: &Token, verb: &str, request: &Request) -> Answer {
        if !self.slot(ns, name)?.agent.allows(verb) {
            let text =
                format!("the spec of {name} does not allow {verb:?} in its guest: see spec.agent of the VM");
            let error = ErrorBody::new(ErrorCode::PermissionDenied, text);
            return Err(error.with("policy", "spec.agent").with("verb", verb));
        }
        on_behalf_of(request.caller(), Box::pin(self.ask_guest(ns, name, verb, request))).await
    }

    async fn ask_guest(&self, ns: &Token, name: &Token, verb: &str, request: &Request) -> Answer {
        let left = request.deadline.saturating_duration_since(Instant::now());
        match verb {
            "ping" => {
                let _: Empty = request.decode()?;
                body_of(request, &guest_calls::ping(&self.link(ns, name).await?, left).await?)
            }
            "info" => {
                let _: Empty = request.decode()?;
                body_of(request, &guest_calls::info(&self.link(ns, name).await?, left).await?)
            }
            "health" => {
                let _: Empty = request.decode()?;
                let wanted = &self.slot(ns, name)?.agent;
                body_of(request, &guest_calls::health(&self.link(ns, name).await?, left, wanted).await?)
            }
            "processes" => {
                let body: proto::ProcessesRequest = request.decode()?;
                let link = self.link(ns, name).await?;
                let list: proto::ProcessesResult = guest_calls::alike(&link, verb, None, left, &body).await?;
                body_of(request, &list)
            }
            "shutdown" => {
                let body: GuestShutdownRequest = request.decode()?;
                let link = self.link_for(ns, name, request).await?;
                guest_calls::shutdown(&link, request.request_id, left, &body).await?;
                body_of(request, &Empty {})
            }
            "stat" => self.ask::<StatRequest, FileStat>(ns, name, verb, request).await,
            "ls" => self.ask::<LsRequest, LsReply>(ns, name, verb, request).await,
            "rm" => self.change::<RmRequest, Empty>(ns, name, verb, request).await,
            "mkdir" => self.change::<MkdirRequest, Empty>(ns, name, verb, request).await,
            "freeze" | "thaw" | "frozen" | "clock" | "online" | "trim" | "identity" | "network" => {
                self.work(ns, name, verb, request).await
            }
            "users" | "user_add" | "user_rm" | "keys" | "keys_change" => {
                self.accounts(ns, name, verb, request).await
            }
            "exec" => self.exec(ns, name, request, left).await,
            "runs" => {
                let body = request.decode()?;
                body_of(request, &run_calls::list(&self.link(ns, name).await?, left, &body).await?)
            }
            "attach" => self.attach(ns, name, request, left).await,
            "kill" => {
                let body = request.decode()?;
                let link = self.link_for(ns, name, request).await?;
                run_calls::kill(&link, request.request_id, left, &body).await?;
                body_of(request, &Empty {})
            }
            "put" => self.put(ns, name, request).await,
            "pack" => self.pack(ns, name, request, left).await,
            "unpack" => self.upload::<UnpackRequest, TreeResult>(ns, name, verb, request).await,
            "upgrade" => self.upload::<UpgradeRequest, UpgradeResult>(ns, name, verb, request).await,
            _ => self.get(ns, name, request).await,
        }
    }

    /// The link to the agent, or why there is none.
    pub(super) async fn link(&self, ns: &Token, name: &Token) -> Result<Link, ErrorBody> {
        let view = self.view(ns, name).await?;
        let state = view.machine.state;
        // Nobody knows what of a request was done before the pause, so it is never said that nothing was.
        if state == VmState::Paused {
            let text = "a VM that is paused does nothing and answers nothing; resume it first";
            return Err(ErrorBody::new(ErrorCode::GuestUnreachable, text).with("state", state));
        }
        view.link.ok_or_else(|| {
            let fault = view.live.marks.fault().filter(|_| view.run.is_some());
            if let Some(fault) = fault.filter(|fault| fault.code != AgentFaultCode::Silent) {
                let code = match fault.code {
                    AgentFaultCode::Incompatible => ErrorCode::Unsupported,
                    _ => ErrorCode::GuestUnreachable,
                };
                let text = format!("{}; see explain for what to do about its agent", fault.message);
                return ErrorBody::new(code, text).with("state", state).with("fault", fault.code.as_str());
            }
            let message = if view.run.is_some() {
                "the guest agent does not answer; the guest may still be booting, see logs and explain"
                    .to_owned()
            } else {
                format!("a VM that is {state} has no guest to ask; start it first")
            };
            let code = if view.run.is_some() { ErrorCode::GuestUnreachable } else { ErrorCode::InvalidState };
            ErrorBody::new(code, message).with("state", state)
        })
    }

    /// The link for a request that must not be carried out twice by one agent: another forgets ids.
    pub(super) async fn link_for(
        &self,
        ns: &Token,
        name: &Token,
        request: &Request,
    ) -> Result<Link, ErrorBody> {
        let link = self.link(ns, name).await?;
        if let Some(id) = request.request_id {
            let hello = link.hello();
            match hello.instance.as_str() {
                "" => self.slot(ns, name)?.bind_guest(id, &hello.boot_id)?,
                instance => {
                    self.slot(ns, name)?.bind_guest(id, &format!("{} {instance}", hello.boot_id))?;
                }
            }
        }
        Ok(link)
    }

    /// The link for a request that must not be carried out twice in one boot of the guest.
    async fn link_of_boot(&self, ns: &Token, name: &Token, request: &Request) -> Result<Link, ErrorBody> {
        let link = self.link(ns, name).await?;
        if let Some(id) = request.request_id {
            self.slot(ns, name)?.bind_guest(id, &link.hello().boot_id)?;
        }
        Ok(link)
    }

    async fn exec(&self, ns: &Token, name: &Token, request: &Request, left: Duration) -> Answer {
        let body: ExecRequest = request.decode()?;
        run_calls::check(&body)?;
        let link = match body.detach {
            // The guest knows its runs by their ids for a whole boot.
            true => self.link_of_boot(ns, name, request).await?,
            false => self.link_for(ns, name, request).await?,
        };
        run_calls::is_known(&link, &body)?;
        if body.detach {
            let run = run_calls::detach(&link, request.request_id, left, &body).await?;
            return body_of(request, &ExecReply::Run(run));
        }
        if !body.stream {
            let wanted = Duration::from_millis(body.timeout_ms.unwrap_or(0));
            if wanted > left {
                let message = format!(
                    "timeout_ms is {} but the request's deadline is in {} ms; raise Drover-Deadline-Ms or use a stream",
                    wanted.as_millis(),
                    left.as_millis()
                );
                return Err(ErrorBody::new(ErrorCode::InvalidArgument, message).with("field", "timeout_ms"));
            }
            return body_of(request, &guest_calls::exec_collected(&link, request.request_id, &body).await?);
        }
        let open = guest_calls::exec_open(&body, request.request_id, WINDOW, true)?;
        let far = async { Ok((Far::Guest(link.open(open)?), ())) };
        let finish: Finish = Box::new(|bytes| {
            let result: ExecResult = guest_calls::exec_result(guest_calls::decode_guest(bytes)?);
            encoded(&result)
        });
        self.stream(ns, request, OF_A_COMMAND, far, finish, |opened, ()| {
            codec::encode_as(request.format, &ExecReply::Stream(opened))
        })
        .await
    }

    async fn attach(&self, ns: &Token, name: &Token, request: &Request, left: Duration) -> Answer {
        let body: AttachRequest = request.decode()?;
        let link = self.link(ns, name).await?;
        let open = run_calls::attach_open(&body, WINDOW)?;
        let far = async {
            let guest = link.open(open)?;
            let head = run_calls::head(&guest, left).await?;
            Ok((Far::Guest(guest), head))
        };
        let finish: Finish =
            Box::new(|bytes| encoded(&guest_calls::decode_guest::<proto::AttachResult>(bytes)?));
        self.stream(ns, request, OF_A_COMMAND, far, finish, |stream, head| {
            let proto::AttachHead { run, stdout, stderr } = head;
            codec::encode_as(request.format, &AttachReply { run, stdout, stderr, stream })
        })
        .await
    }

    async fn put(&self, ns: &Token, name: &Token, request: &Request) -> Answer {
        let body: PutRequest = request.decode()?;
        let link = self.link_for(ns, name, request).await?;
        let open = guest_calls::put_open(&body, request.request_id)?;
        let far = async { Ok((Far::Guest(link.open(open)?), ())) };
        let finish: Finish = Box::new(move |bytes| encoded(&guest_calls::put_result(bytes, &body)?));
        let shape = Shape { down: &[], up: Some(Channel::Data), ctl: false };
        self.stream(ns, request, shape, far, finish, |opened, ()| codec::encode_as(request.format, &opened))
            .await
    }

    async fn get(&self, ns: &Token, name: &Token, request: &Request) -> Answer {
        let body: GetRequest = request.decode()?;
        let link = self.link(ns, name).await?;
        let open = guest_calls::get_open(&body, WINDOW)?;
        let far = async { Ok((Far::Guest(link.open(open)?), ())) };
        let finish: Finish = Box::new(|bytes| encoded(&guest_calls::get_result(bytes)?));
        let shape = Shape { down: &[Channel::Data], up: None, ctl: false };
        self.stream(ns, request, shape, far, finish, |opened, ()| codec::encode_as(request.format, &opened))
            .await
    }

    async fn pack(&self, ns: &Token, name: &Token, request: &Request, left: Duration) -> Answer {
        let body: proto::PackRequest = request.decode()?;
        let link = self.link(ns, name).await?;
        let open = guest_calls::open(proto::verb::PACK, None, WINDOW, &body)?;
        let far = async {
            let guest = link.open(open)?;
            let head: proto::PackHead = run_calls::head(&guest, left).await?;
            Ok((Far::Guest(guest), head))
        };
        let finish: Finish =
            Box::new(|bytes| encoded(&guest_calls::decode_guest::<proto::TreeResult>(bytes)?));
        let shape = Shape { down: &[Channel::Data], up: None, ctl: false };
        self.stream(ns, request, shape, far, finish, |stream, folder| {
            codec::encode_as(request.format, &PackReply { folder, stream })
        })
        .await
    }

    /// A verb that takes bytes, and whose request and result the agent and the client see alike.
    async fn upload<Q, R>(&self, ns: &Token, name: &Token, verb: &str, request: &Request) -> Answer
    where
        Q: Serialize + DeserializeOwned + Sync,
        R: Serialize + DeserializeOwned,
    {
        let body: Q = request.decode()?;
        let link = self.link_for(ns, name, request).await?;
        let open = guest_calls::open(verb, request.request_id, 0, &body)?;
        let far = async { Ok((Far::Guest(link.open(open)?), ())) };
        let finish: Finish = Box::new(|bytes| encoded(&guest_calls::decode_guest::<R>(bytes)?));
        let shape = Shape { down: &[], up: Some(Channel::Data), ctl: false };
        self.stream(ns, request, shape, far, finish, |opened, ()| codec::encode_as(request.format, &opened))
            .await
    }

    /// Opens a stream. `far` makes its other end, and what the reply says of it, once its place and its memory are
    /// set aside: a stream that is refused has no effect.
    pub(super) async fn stream<T>(
        &self,
        ns: &Token,
        request: &Request,
        shape: Shape,
        far: impl Future<Output = Result<(Far, T), ErrorBody>>,
        finish: Finish,
        reply: impl FnOnce(drover_schemas::stream::StreamOpened, T) -> Result<Vec<u8>, codec::EncodeError>,
    ) -> Answer {
        let permit = self.permits.stream(ns)?;
        let opening =
            stream::open(&self.services, ns, permit, request.responder.reply_subject(), shape).await?;
        let (far, said) = far.await?;
        let body = reply(opening.opened.clone(), said).map_err(|e| {
            ErrorBody::new(ErrorCode::Internal, format!("the reply could not be encoded: {e}"))
        })?;
        let services = self.services.clone();
        let over = opening.reply_over.clone();
        let pump = async move { stream::run(&services, opening, far, finish).await };
        Ok(Reply::Stream(body, over, Box::pin(pump)))
    }
}

fn encoded<T: Serialize>(value: &T) -> Result<bytes::Bytes, ErrorBody> {
    codec::encode(value)
        .map(bytes::Bytes::from)
        .map_err(|e| ErrorBody::new(ErrorCode::Internal, format!("the result could not be encoded: {e}")))
}
