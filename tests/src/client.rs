//! Requests as any client writes them: a subject, headers and a body, and what comes back.

use std::time::{Duration, Instant};

use async_nats::{Client, HeaderMap, Message, RequestErrorKind, ServerAddr};
use drover_schemas::body::host::HostInfo;
use drover_schemas::body::status::VmStatus;
use drover_schemas::body::vm::ChangeReply;
use drover_schemas::codec::{self, Format};
use drover_schemas::{ErrorBody, ErrorCode, RequestId, headers};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::wait::{patience_factor, until, until_within};

/// What a request says about its deadline, if the test does not.
const DEADLINE: Duration = Duration::from_secs(40);
/// The longest that a host waits, and its way.
const LONGEST: Duration = Duration::from_secs(95);
/// What a request says that is repeated until there is an outcome.
const ATTEMPT: Duration = Duration::from_secs(3);
/// How long it is repeated: a daemon that is killed every second must get there all the same.
const INSISTENCE: Duration = Duration::from_secs(180);
/// How much later than the deadline a reply may come.
const GRACE: Duration = Duration::from_secs(2);

/// A request that gave no result.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// A coded error.
    #[error("{0}")]
    Coded(ErrorBody),
    /// Nobody listens there.
    #[error("nobody listens")]
    Nobody,
    /// No reply came, or the connection was lost.
    #[error("no reply: {0}")]
    Silence(String),
}

impl Failure {
    /// The same request may succeed later.
    #[must_use]
    pub const fn may_repeat(&self) -> bool {
        match self {
            Self::Coded(error) => error.retryable,
            Self::Nobody | Self::Silence(_) => true,
        }
    }
}

/// A client in the namespace `default`.
#[derive(Debug, Clone)]
pub struct Bus {
    /// The connection.
    pub nats: Client,
}

/// A request under way.
#[derive(Debug)]
pub struct Ask {
    nats: Client,
    subject: String,
    body: Vec<u8>,
    headers: HeaderMap,
    deadline: Duration,
}

impl Bus {
    /// A client that connects in the background, for as long as it takes, to this server and no other.
    ///
    /// # Panics
    /// The address is not one.
    pub async fn connect(url: &str) -> Self {
        Self::connect_to(&[url.to_owned()]).await
    }

    /// As [`Bus::connect`], to any of these servers.
    ///
    /// # Panics
    /// An address is not one.
    pub async fn connect_to(urls: &[String]) -> Self {
        let servers: Result<Vec<ServerAddr>, _> = urls.iter().map(|url| url.parse()).collect();
        let options = async_nats::ConnectOptions::new()
            .retry_on_initial_connect()
            .ignore_discovered_servers()
            // A link may be cut without a word.
            .ping_interval(Duration::from_secs(2))
            .connection_timeout(Duration::from_secs(2))
            .reconnect_delay_callback(|_| Duration::from_millis(50));
        Self { nats: options.connect(servers.expect("literal addresses")).await.expect("options that do") }
    }

    /// A request in MessagePack; `tail` is what follows `drover.v1.cmd.default.`, or a whole subject.
    ///
    /// # Panics
    /// The body cannot be written.
    pub fn ask<Q: Serialize + ?Sized>(&self, tail: &str, body: &Q) -> Ask {
        let body = codec::encode(body).expect("a body");
        self.raw(tail, body).header(headers::CONTENT_TYPE, codec::MSGPACK)
    }

    /// A request of any bytes without headers but the deadline's.
    #[must_use]
    pub fn raw(&self, tail: &str, body: impl Into<Vec<u8>>) -> Ask {
        let subject = match tail.starts_with("drover.") {
            true => tail.to_owned(),
            false => format!("drover.v1.cmd.default.{tail}"),
        };
        let (nats, body, headers) = (self.nats.clone(), body.into(), HeaderMap::new());
        Ask { nats, subject, body, headers, deadline: (DEADLINE * patience_factor()).min(LONGEST) }
    }

    /// Creates a VM with an id of the request.
    ///
    /// # Errors
    /// As the host says.
    pub async fn create(&self, name: &str, rest: Value) -> Result<ChangeReply, Failure> {
        self.create_as(RequestId::generate(), name, rest).await
    }

    /// Creates a VM with this id of the request.
    ///
    /// # Errors
    /// As the host says.
    pub async fn create_as(&self, id: RequestId, name: &str, rest: Value) -> Result<ChangeReply, Failure> {
        self.ask("vm.create", &with_name(name, rest)).id(id).get().await
    }

    /// Creates a VM and waits for its agent; as long as that takes, if the machine is slow.
    ///
    /// # Panics
    /// It did not get there.
    pub async fn up(&self, name: &str) -> VmStatus {
        let (id, rest) = (RequestId::generate(), json!({"wait": "agent"}));
        let reply =
            until_within(DEADLINE, name, async || match self.create_as(id, name, rest.clone()).await {
                Err(Failure::Coded(error)) if error.code == ErrorCode::DeadlineExceeded => None,
                reply => Some(reply),
            });
        reply.await.unwrap_or_else(|e| panic!("create {name}: {e}")).vm
    }

    /// Repeats a request with its id until there is an outcome, as a client that hears nothing does.
    ///
    /// # Errors
    /// As the host says for good.
    ///
    /// # Panics
    /// There is none in time.
    pub async fn insist<R>(&self, tail: &str, body: &Value, id: RequestId) -> Result<R, Failure>
    where
        R: DeserializeOwned,
    {
        let mut told = String::new();
        until_within(INSISTENCE, tail, async || {
            let ask = self.ask(tail, body).id(id).within(ATTEMPT * patience_factor());
            let answer = ask.get().await;
            if let Err(error) = &answer
                && error.may_repeat()
            {
                // Once each: whoever waits for what never comes wants to know why.
                let error = error.to_string();
                if told != error {
                    println!("{tail} {id} is repeated: {error}");
                    told = error;
                }
                return None;
            }
            Some(answer)
        })
        .await
    }

    /// Kills the agent of a guest of processes, whose init starts another, and waits for that.
    pub async fn kill_agent(&self, name: &str) {
        let script = "for p in /proc/[0-9]*; do read name < $p/comm; if [ $name = drover-agent ] && \
                      grep -q listen $p/cmdline; then kill -9 ${p#/proc/}; fi; done";
        let kill = json!({"argv": ["sh", "-c", script]});
        // The answer is lost with the agent.
        let _ = self.ask(&format!("vm.{name}.guest.exec"), &kill).get::<Value>().await;
        until("another agent", async || {
            let ping = self.ask(&format!("vm.{name}.guest.ping"), &json!({})).within(Duration::from_secs(5));
            ping.get::<Value>().await.ok()
        })
        .await;
    }

    /// Repeats a delete with its id until it is done.
    ///
    /// # Panics
    /// It is refused, or not done in time.
    pub async fn insist_on_delete(&self, name: &str) {
        let id = RequestId::generate();
        until_within(INSISTENCE, &format!("delete {name}"), async || {
            let ask =
                self.ask(&format!("vm.{name}.delete"), &json!({})).id(id).within(ATTEMPT * patience_factor());
            match ask.get::<ChangeReply>().await {
                Ok(_) => Some(()),
                // The owner has gone with the VM: what became of it is in the bucket.
                Err(Failure::Nobody) => {
                    let ask =
                        self.ask("vm.lookup", &json!({"name": name})).within(ATTEMPT * patience_factor());
                    let found = ask.get::<Value>().await.ok()?;
                    (found["found"] == "gone" && found["request_id"] == id.to_string()).then_some(())
                }
                Err(error) => {
                    assert!(error.may_repeat(), "delete {name}: {error}");
                    None
                }
            }
        })
        .await;
    }

    /// A verb that changes a VM, without a body.
    ///
    /// # Errors
    /// As the host says.
    pub async fn change(&self, name: &str, verb: &str) -> Result<ChangeReply, Failure> {
        self.change_with(name, verb, json!({})).await
    }

    /// A verb that changes a VM.
    ///
    /// # Errors
    /// As the host says.
    pub async fn change_with(&self, name: &str, verb: &str, body: Value) -> Result<ChangeReply, Failure> {
        self.ask(&format!("vm.{name}.{verb}"), &body).id(RequestId::generate()).get().await
    }

    /// How a VM is.
    ///
    /// # Errors
    /// As the host says.
    pub async fn status(&self, name: &str) -> Result<VmStatus, Failure> {
        self.look(&format!("vm.{name}.get"), &json!({})).await
    }

    /// Asks for something that may be asked for again, and does so where nothing is heard: what is sent in the moment
    /// in which a daemon dies goes to nobody, and no word comes back.
    ///
    /// # Errors
    /// As the host says.
    pub async fn look<R: DeserializeOwned>(&self, tail: &str, body: &Value) -> Result<R, Failure> {
        let attempt = ATTEMPT * patience_factor();
        let deadline = Instant::now() + DEADLINE * patience_factor();
        loop {
            match self.ask(tail, body).within(attempt).get().await {
                Err(Failure::Silence(_)) if Instant::now() < deadline => {}
                said => return said,
            }
        }
    }

    /// How the first host is.
    ///
    /// # Errors
    /// As the host says.
    pub async fn host(&self) -> Result<HostInfo, Failure> {
        self.host_info("h1").await
    }

    /// How a host is.
    ///
    /// # Errors
    /// As the host says.
    pub async fn host_info(&self, host: &str) -> Result<HostInfo, Failure> {
        let subject = format!("drover.v1.host.{host}.info");
        self.ask(&subject, &json!({})).within(Duration::from_secs(2)).get().await
    }

    /// Waits until a VM is as `look` wants it.
    ///
    /// # Panics
    /// It does not get there.
    pub async fn until(&self, name: &str, what: &str, look: impl Fn(&VmStatus) -> bool) -> VmStatus {
        let what = format!("{name}: {what}");
        until(&what, async || self.status(name).await.ok().filter(&look)).await
    }

    /// Waits until the agent of a VM answers.
    ///
    /// # Panics
    /// It does not.
    pub async fn until_ping(&self, name: &str) {
        let tail = format!("vm.{name}.guest.ping");
        until(&tail, async || self.ask(&tail, &json!({})).get::<Value>().await.ok()).await;
    }
}

fn with_name(name: &str, mut rest: Value) -> Value {
    rest["name"] = name.into();
    rest
}

impl Ask {
    /// Gives the request an id.
    #[must_use]
    pub fn id(self, id: RequestId) -> Self {
        self.header(headers::REQUEST_ID, &id.to_string())
    }

    /// Adds a header.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.insert(name, value);
        self
    }

    /// Sets the deadline.
    #[must_use]
    pub const fn within(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Sends the request, without headers if it has none, and gives the reply as it is.
    ///
    /// # Errors
    /// [`Failure::Nobody`] or [`Failure::Silence`].
    pub async fn message(mut self) -> Result<Message, Failure> {
        if !self.headers.is_empty() {
            let deadline = self.deadline.as_millis().to_string();
            self.headers.insert(headers::DEADLINE_MS, deadline.as_str());
        }
        let mut request = async_nats::Request::new().payload(self.body.into());
        if !self.headers.is_empty() {
            request = request.headers(self.headers);
        }
        let request = request.timeout(Some(self.deadline + GRACE));
        self.nats.send_request(self.subject, request).await.map_err(|error| match error.kind() {
            RequestErrorKind::NoResponders => Failure::Nobody,
            _ => Failure::Silence(error.to_string()),
        })
    }

    /// Sends the request and reads the reply.
    ///
    /// # Errors
    /// [`Failure`].
    ///
    /// # Panics
    /// The reply is not what the contract says.
    pub async fn get<R: DeserializeOwned>(self) -> Result<R, Failure> {
        let message = self.message().await?;
        let headers = message.headers.unwrap_or_default();
        let content_type = headers.get(headers::CONTENT_TYPE).map(async_nats::HeaderValue::as_str);
        let format = Format::detect(content_type, &message.payload).expect("a known media type");
        match headers.get(headers::ERROR_CODE) {
            None => Ok(codec::decode_as(format, &message.payload).expect("a reply of this verb")),
            Some(_) => Err(Failure::Coded(codec::decode_as(format, &message.payload).expect("an error"))),
        }
    }

    /// Sends a request that must fail with `code`, and gives the error.
    ///
    /// # Panics
    /// It does anything else.
    pub async fn refused(self, code: ErrorCode) -> ErrorBody {
        let subject = self.subject.clone();
        refused(&subject, code, self.get::<Value>().await)
    }
}

/// The error of a request that must fail with `code`.
///
/// # Panics
/// It did anything else.
#[track_caller]
pub fn refused<T: std::fmt::Debug>(what: &str, code: ErrorCode, result: Result<T, Failure>) -> ErrorBody {
    match result {
        Err(Failure::Coded(error)) if error.code == code => {
            assert!(!error.message.is_empty() && !error.error_id.is_empty(), "{what}: {error:?}");
            error
        }
        other => panic!("{what}: wanted {code}, got {other:?}"),
    }
}
