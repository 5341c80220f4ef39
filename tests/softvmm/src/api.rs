//! Routes: from a request to a call, and from its outcome to a response.

use serde::Deserialize;
use serde_json::Value;

use crate::config::VmConfig;
use crate::http::parse::{Method, Request};
use crate::http::server::Response;
use crate::refusal::{Cause, Refusal};

/// Body of `vm.resize-disk`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct ResizeDisk {
    /// The disk.
    pub id: String,
    /// Its length from now on; it may be shorter.
    pub desired_size: u64,
}

/// A call of the API.
#[derive(Debug, Clone, PartialEq)]
pub enum Call {
    /// `vmm.ping`
    Ping,
    /// `vm.info`
    Info,
    /// `vm.counters`
    Counters,
    /// `vm.create`
    Create(Box<VmConfig>),
    /// `vm.boot`
    Boot,
    /// `vm.pause`
    Pause,
    /// `vm.resume`
    Resume,
    /// `vm.power-button`
    PowerButton,
    /// `vm.shutdown`
    Shutdown,
    /// `vm.reboot`
    Reboot,
    /// `vm.resize-disk`
    ResizeDisk(ResizeDisk),
    /// `vm.delete`
    Delete,
    /// `vmm.shutdown`
    VmmShutdown,
    /// A route of the real one that is not modelled, with its outer error message.
    Unmodelled(&'static str),
}

impl Call {
    /// Its name in the steps of [`crate::misbehave`].
    pub fn step(&self) -> &'static str {
        match self {
            Self::Ping => "ping",
            Self::Info => "info",
            Self::Counters => "counters",
            Self::Create(_) => "create",
            Self::Boot => "boot",
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::PowerButton => "power-button",
            Self::Shutdown => "shutdown",
            Self::Reboot => "reboot",
            Self::ResizeDisk(_) => "resize-disk",
            Self::Delete => "delete",
            Self::VmmShutdown => "vmm-shutdown",
            Self::Unmodelled(_) => "unmodelled",
        }
    }

    /// The outer message of its refusals.
    pub fn failure(&self) -> &'static str {
        match self {
            Self::Ping => "The VMM could not be pinged",
            Self::Info | Self::Counters => "The VM info is not available",
            Self::Create(_) => "The VM could not be created",
            Self::Boot => "The VM could not boot",
            Self::Pause => "The VM could not be paused",
            Self::Resume => "The VM could not resume",
            Self::PowerButton => "Error triggering power button",
            Self::Shutdown => "The VM could not shutdown",
            Self::Reboot => "The VM could not reboot",
            Self::ResizeDisk(_) => "The disk could not be resized",
            Self::Delete => "The VM could not be deleted",
            Self::VmmShutdown => "The VMM could not shutdown",
            Self::Unmodelled(message) => message,
        }
    }
}

/// What a call that was done answers.
#[derive(Debug, Clone, PartialEq)]
pub enum Done {
    /// 204.
    Empty,
    /// 200 without a body.
    Ok,
    /// 200 with JSON.
    Json(Value),
}

const UNMODELLED: [(&str, &str, Option<&str>); 13] = [
    ("vm.add-device", "The device could not be added to the VM", None),
    ("vm.add-disk", "The disk could not be added to the VM", None),
    ("vm.add-fs", "The fs could not be added to the VM", Some("tag")),
    ("vm.add-net", "The network device could not be added to the VM", None),
    ("vm.add-pmem", "The pmem device could not be added to the VM", Some("file")),
    ("vm.add-vsock", "The vsock device could not be added to the VM", Some("cid")),
    ("vm.remove-device", "The device could not be removed from the VM", Some("id")),
    ("vm.resize", "The VM could not be resized", None),
    ("vm.resize-zone", "The memory zone could not be resized", Some("id")),
    ("vm.restore", "The VM could not be restored", Some("source_url")),
    ("vm.send-migration", "Error dispatching the migration worker", Some("destination_url")),
    ("vm.receive-migration", "Error receiving migration", Some("receiver_url")),
    ("vm.snapshot", "The VM could not be snapshotted", Some("destination_url")),
];

/// Finds the call of a request.
///
/// # Errors
/// There is no such route, or the request is not one for it.
pub fn route(request: &Request) -> Result<Call, Refusal> {
    let name = request.path.strip_prefix("/api/v1/").ok_or_else(Refusal::not_found)?;
    let get = |call: Call| match request.method {
        Method::Get => Ok(call),
        _ => Err(Refusal::bad_request()),
    };
    let put = |call: Call| match (request.method, &request.body) {
        (Method::Put, None) => Ok(call),
        _ => Err(Refusal::bad_request()),
    };
    match name {
        "vmm.ping" => get(Call::Ping),
        "vm.info" => get(Call::Info),
        "vm.counters" => get(Call::Counters),
        "vm.create" => create(request),
        "vm.resize-disk" => resize_disk(request),
        "vm.boot" => put(Call::Boot),
        "vm.pause" => put(Call::Pause),
        "vm.resume" => put(Call::Resume),
        "vm.power-button" => put(Call::PowerButton),
        "vm.shutdown" => put(Call::Shutdown),
        "vm.reboot" => put(Call::Reboot),
        "vm.delete" => put(Call::Delete),
        "vm.nmi" => put(Call::Unmodelled("Error triggering NMI")),
        // A body is no mistake here, unlike everywhere else.
        "vmm.shutdown" if request.method == Method::Put => Ok(Call::VmmShutdown),
        "vmm.shutdown" => Err(Refusal::bad_request()),
        _ => unmodelled(name, request),
    }
}

fn create(request: &Request) -> Result<Call, Refusal> {
    match (request.method, &request.body) {
        (Method::Put, Some(body)) => {
            let config = serde_json::from_slice(body).map_err(|e| Refusal::json(&e))?;
            Ok(Call::Create(Box::new(config)))
        }
        (Method::Put, None) => Err(Refusal { status: 400, chain: Vec::new() }),
        _ => Err(Refusal::bad_request()),
    }
}

fn resize_disk(request: &Request) -> Result<Call, Refusal> {
    let (Method::Put, Some(body)) = (request.method, &request.body) else {
        return Err(Refusal::bad_request());
    };
    serde_json::from_slice(body).map(Call::ResizeDisk).map_err(|e| Refusal::json(&e))
}

fn unmodelled(name: &str, request: &Request) -> Result<Call, Refusal> {
    let Some((_, message, needs)) = UNMODELLED.iter().find(|(route, ..)| *route == name) else {
        return Err(Refusal::not_found());
    };
    let (Method::Put, Some(body)) = (request.method, &request.body) else {
        return Err(Refusal::bad_request());
    };
    let value: Value = serde_json::from_slice(body).map_err(|e| Refusal::json(&e))?;
    if let Some(field) = needs.filter(|field| value.get(field).is_none()) {
        let at = format!("missing field `{field}` at line 1 column {}", body.len());
        let chain = vec!["Failed to deserialize JSON".to_owned(), at];
        return Err(Refusal { status: 400, chain });
    }
    Ok(Call::Unmodelled(message))
}

/// The response of an outcome.
pub fn respond(outcome: Result<Done, Refusal>) -> Response {
    match outcome {
        Ok(Done::Empty) => Response::Status(204, Vec::new()),
        Ok(Done::Ok) => Response::Status(200, Vec::new()),
        Ok(Done::Json(value)) => Response::Status(200, value.to_string().into_bytes()),
        Err(refusal) if refusal.chain.is_empty() => Response::Status(refusal.status, Vec::new()),
        Err(refusal) => Response::Status(refusal.status, Value::from(refusal.chain).to_string().into_bytes()),
    }
}

/// The refusal of a call that failed for a cause below the API.
pub fn refuse(call: &Call, cause: Cause) -> Refusal {
    Refusal::api(call.failure(), cause)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(method: Method, path: &str, body: Option<&str>) -> Result<Call, Refusal> {
        let path = format!("/api/v1/{path}");
        route(&Request { method, path, body: body.map(|b| b.as_bytes().to_vec()) })
    }

    #[test]
    fn a_body_where_none_belongs_is_refused_except_by_vmm_shutdown() {
        assert_eq!(ask(Method::Put, "vm.boot", Some("{}")), Err(Refusal::bad_request()));
        assert_eq!(ask(Method::Put, "vmm.shutdown", Some("{}")), Ok(Call::VmmShutdown));
    }

    #[test]
    fn the_wrong_method_is_a_bad_request_and_not_a_405() {
        assert_eq!(ask(Method::Get, "vm.boot", None), Err(Refusal::bad_request()));
        assert_eq!(ask(Method::Put, "vm.info", None), Err(Refusal::bad_request()));
        assert_eq!(ask(Method::Patch, "vmm.ping", None), Err(Refusal::bad_request()));
    }

    #[test]
    fn a_create_without_a_body_gets_an_empty_400() {
        let refusal = ask(Method::Put, "vm.create", None).expect_err("refused");
        assert_eq!(respond(Err(refusal)), Response::Status(400, Vec::new()));
    }
}
