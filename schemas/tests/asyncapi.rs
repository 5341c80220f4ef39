//! Keeps `schemas/asyncapi.json` as the tables and the types say it: `UPDATE_GOLDEN=1` writes it anew.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

use std::collections::BTreeSet;

use drover_schemas::audit::AuditEvent;
use drover_schemas::body::events::{EventsLastReply, EventsLastRequest, EventsReadReply, EventsReadRequest};
use drover_schemas::body::{guest, host, image, network, samples, template, vm, volume};
use drover_schemas::contract::ContractReply;
use drover_schemas::event::{HostEvent, RejectedEvent, VmEvent, ce};
use drover_schemas::guest::{
    AttachRequest, AttachResult, FileStat, FreezeRequest, FreezeResult, FrozenResult, HealthResult,
    IdentityRequest, IdentityResult, InfoResult, KeysChangeRequest, KeysChangeResult, KeysRequest,
    KeysResult, KillRequest, LsReply, LsRequest, MkdirRequest, NetworkRequest, NetworkResult, OnlineRequest,
    OnlineResult, PackRequest, ProcessesRequest, ProcessesResult, RmRequest, RunsRequest, RunsResult,
    StatRequest, ThawResult, TreeResult, TrimRequest, TrimResult, UnpackRequest, UpgradeRequest,
    UpgradeResult, UserAddRequest, UserAddResult, UserRmRequest, UserRmResult, UsersRequest, UsersResult,
};
use drover_schemas::stream::{StreamFrame, StreamOpened};
use drover_schemas::verbs::{Class, Plane, VERBS, VerbRow, stream};
use drover_schemas::{ErrorBody, codec, headers};
use schemars::SchemaGenerator;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

/// How the documentation of a reader's catch-all ends. A host says it when it passes on what a newer one said.
const CATCH_ALL: &str = "that this reader does not know.";

/// The schema of each body, by the name that the verb table uses, and of whatever they hold.
fn schemas() -> Map<String, Value> {
    let settings = SchemaSettings::draft07().with(|settings| {
        settings.definitions_path = "/components/schemas".into();
        settings.meta_schema = None;
    });
    let mut generator = SchemaGenerator::new(settings);
    macro_rules! bodies {
        ($($body:ty),* $(,)?) => {{ $( generator.subschema_for::<$body>(); )* }};
    }
    bodies![
        guest::Empty,
        ErrorBody,
        ContractReply,
        vm::CreateRequest,
        vm::ChangeRequest,
        vm::ForwardRequest,
        vm::EgressRequest,
        vm::LimitRequest,
        vm::StatsReply,
        vm::GrowRequest,
        vm::ChangeReply,
        vm::ShutdownRequest,
        vm::StopRequest,
        vm::ListRequest,
        vm::ListReply,
        vm::LookupRequest,
        vm::LookupReply,
        vm::ValidateRequest,
        vm::ValidateReply,
        vm::LogsRequest,
        vm::LogsReply,
        vm::ConsoleRequest,
        vm::ConsoleReply,
        vm::ConsoleResult,
        vm::ExplainReply,
        guest::PingReply,
        guest::ExecRequest,
        guest::ExecReply,
        guest::ExecControl,
        RunsRequest,
        RunsResult,
        AttachRequest,
        guest::AttachReply,
        AttachResult,
        KillRequest,
        guest::PutRequest,
        guest::GetRequest,
        guest::FileResult,
        guest::GuestShutdownRequest,
        StatRequest,
        FileStat,
        LsRequest,
        LsReply,
        RmRequest,
        MkdirRequest,
        PackRequest,
        guest::PackReply,
        UnpackRequest,
        TreeResult,
        UpgradeRequest,
        UpgradeResult,
        InfoResult,
        HealthResult,
        ProcessesRequest,
        ProcessesResult,
        FreezeRequest,
        FreezeResult,
        ThawResult,
        FrozenResult,
        guest::ClockRequest,
        guest::ClockReply,
        OnlineRequest,
        OnlineResult,
        TrimRequest,
        TrimResult,
        IdentityRequest,
        IdentityResult,
        NetworkRequest,
        NetworkResult,
        UsersRequest,
        UsersResult,
        UserAddRequest,
        UserAddResult,
        UserRmRequest,
        UserRmResult,
        KeysRequest,
        KeysResult,
        KeysChangeRequest,
        KeysChangeResult,
        StreamOpened,
        StreamFrame,
        EventsReadRequest,
        EventsReadReply,
        EventsLastRequest,
        EventsLastReply,
        template::TemplateListReply,
        template::TemplateGetRequest,
        template::TemplateReply,
        host::HostInfo,
        host::OrphansReply,
        host::OrphanRemoveRequest,
        host::BackupReply,
        host::DrainRequest,
        host::DrainReply,
        host::HostsRequest,
        host::HostsReply,
        host::ForgetRequest,
        host::ForgetReply,
        host::PlacedRequest,
        host::PlacedReply,
        image::ImageGetRequest,
        image::ImageGetReply,
        image::ImageImportRequest,
        image::ImageImportReply,
        image::ImageTagRequest,
        image::ImageTagReply,
        image::ImageShareRequest,
        image::ImageShareReply,
        image::ImageUnshareRequest,
        image::ImageUnshareReply,
        image::ImagePullRequest,
        image::SharedImagesReply,
        image::ImagesRequest,
        image::ImagesReply,
        image::ImageNameRequest,
        image::ImageVerifyReply,
        image::ImageGcReply,
        network::NetworkCreateRequest,
        network::NetworkCreateReply,
        network::NetworkRemoveRequest,
        network::NetworksReply,
        volume::VolumeCreateRequest,
        volume::VolumeCreateReply,
        volume::VolumeGrowRequest,
        volume::VolumeGrowReply,
        volume::VolumeRemoveRequest,
        volume::VolumesRequest,
        volume::VolumesReply,
        VmEvent,
        HostEvent,
        RejectedEvent,
        AuditEvent,
        samples::VmSample,
        samples::NamespaceSample,
        samples::HostSample,
    ];
    let mut schemas = generator.take_definitions(true);
    for schema in schemas.values_mut() {
        open_enumerations(schema);
    }
    close_requests(&mut schemas);
    schemas
}

/// An enumeration that has a catch-all for its readers gets new values without a new version.
fn open_enumerations(schema: &mut Value) {
    let Some(values) = schema.get_mut("oneOf").and_then(Value::as_array_mut) else { return };
    let is_catch_all =
        |value: &&mut Value| value["description"].as_str().unwrap_or_default().ends_with(CATCH_ALL);
    let Some(catch_all) = values.iter_mut().find(is_catch_all) else { return };
    catch_all["description"] = "A newer value, passed on by a host that is too old to know it.".into();
    schema["x-drover-open"] = true.into();
}

/// What is only ever sent to a host has no fields but those that it knows.
fn close_requests(schemas: &mut Map<String, Value>) {
    let names = |pick: fn(&VerbRow) -> &'static str| VERBS.iter().map(pick).map(str::to_owned);
    let sent_by_hosts =
        ["ErrorBody", "StreamFrame", "VmEvent", "HostEvent", "RejectedEvent", "AuditEvent", "HostSample"];
    let open =
        names(|row| row.reply).chain(sent_by_hosts.map(str::to_owned)).chain(["NamespaceSample".into()]);
    let open = reached(schemas, open);
    for name in reached(schemas, names(|row| row.request)).difference(&open) {
        let schema = &mut schemas[name];
        if schema["type"] == "object" && schema.get("properties").is_some() {
            schema["additionalProperties"] = false.into();
        }
    }
    schemas["Empty"]["additionalProperties"] = false.into();
}

fn reached(schemas: &Map<String, Value>, from: impl Iterator<Item = String>) -> BTreeSet<String> {
    fn references(value: &Value, found: &mut Vec<String>) {
        match value {
            Value::Object(map) => {
                if let Some(Value::String(target)) = map.get("$ref") {
                    found.push(target.rsplit('/').next().unwrap().to_owned());
                }
                map.values().for_each(|value| references(value, found));
            }
            Value::Array(values) => values.iter().for_each(|value| references(value, found)),
            _ => {}
        }
    }
    let (mut seen, mut todo) = (BTreeSet::new(), from.collect::<Vec<_>>());
    while let Some(name) = todo.pop() {
        references(schemas.get(&name).unwrap_or_else(|| panic!("no schema of {name}")), &mut todo);
        if !seen.insert(name) {
            todo.retain(|name| !seen.contains(name));
        }
    }
    seen
}

fn reference(kind: &str, name: &str) -> Value {
    json!({"$ref": format!("#/components/{kind}/{name}")})
}

fn parameters(address: &str) -> Value {
    let all = [
        ("ns", "The namespace."),
        ("name", "The name of the VM."),
        ("host", "The name of the host."),
        ("server", "The name of the bus server."),
        ("token", "The random part of the `io_subject` of a `StreamOpened`."),
        ("kind", "The kind of the event."),
    ];
    let here = all.into_iter().filter(|(name, _)| address.contains(&format!("{{{name}}}")));
    here.map(|(name, doc)| (name.to_owned(), json!({"description": doc}))).collect::<Map<_, _>>().into()
}

/// The document under way.
struct Document {
    schemas: Map<String, Value>,
    messages: Map<String, Value>,
    channels: Map<String, Value>,
    operations: Map<String, Value>,
}

impl Document {
    /// A message with this body, made once.
    fn message(&mut self, body: &str, headers: Option<&str>) -> Value {
        let schema = self.schemas.get(body).unwrap_or_else(|| panic!("no schema of {body}"));
        let mut message = json!({
            "name": body,
            "contentType": codec::MSGPACK,
            "payload": reference("schemas", body),
        });
        if let Some(Value::String(doc)) = schema.get("description") {
            message["summary"] = doc.lines().next().unwrap_or_default().into();
        }
        if let Some(headers) = headers {
            message["headers"] = reference("schemas", headers);
        }
        self.messages.insert(body.to_owned(), message);
        reference("messages", body)
    }

    fn channel(&mut self, id: &str, address: Value, messages: &[(&str, Value)]) {
        let messages: Map<String, Value> =
            messages.iter().map(|(name, message)| ((*name).to_owned(), message.clone())).collect();
        let mut channel = json!({"address": address, "messages": messages});
        let parameters = parameters(channel["address"].as_str().unwrap_or_default());
        if !parameters.as_object().unwrap().is_empty() {
            channel["parameters"] = parameters;
        }
        self.channels.insert(id.to_owned(), channel);
    }

    fn verb(&mut self, row: &VerbRow) {
        let plane = match row.plane {
            Plane::Pool => "pool",
            Plane::Vm => "vm",
            Plane::VmGuest => "guest",
            Plane::Events => "events",
            Plane::Template => "template",
            Plane::Contract => "contract",
            Plane::Host => "host",
        };
        let id = format!("{plane}.{}", row.verb);
        let replies = format!("{id}.reply");
        let error = self.message("ErrorBody", Some("ErrorHeaders"));
        let request = self.message(row.request, Some("RequestHeaders"));
        let reply = self.message(row.reply, Some("ReplyHeaders"));
        self.channel(&id, address(&row.plane.subject(row.verb)), &[("request", request)]);
        self.channel(&replies, Value::Null, &[("reply", reply), ("error", error)]);
        let within = |channel: &str, message: &str| json!({"$ref": format!("#/channels/{channel}/messages/{message}")});
        let mut operation = json!({
            "action": "receive",
            "channel": {"$ref": format!("#/channels/{id}")},
            "summary": row.doc,
            "messages": [within(&id, "request")],
            "reply": {
                "address": {"location": "$message.header#/reply", "description": "The reply subject of the NATS message."},
                "channel": {"$ref": format!("#/channels/{replies}")},
                "messages": [within(&replies, "reply"), within(&replies, "error")],
            },
            "tags": [{"name": plane}],
            "x-drover-class": row.class.as_str(),
            "x-drover-role": row.role.as_str(),
            "x-drover-request-id": matches!(row.class, Class::Journalled | Class::Guest | Class::Stream),
        });
        if matches!(row.plane, Plane::Pool | Plane::Events | Plane::Template | Plane::Contract) {
            operation["bindings"] = json!({"nats": {"queue": "placers"}});
        }
        if let Some(stream) = stream(row.plane, row.verb) {
            self.message(stream.result, None);
            operation["x-drover-stream"] = json!({
                "client_channels": stream.client,
                "host_channels": stream.host,
                "result": reference("schemas", stream.result),
            });
        }
        self.operations.insert(id, operation);
    }

    /// What hosts publish without being asked.
    fn told(&mut self, id: &str, subject: &str, body: &str, headers: Option<&str>, doc: &str) {
        let message = self.message(body, headers);
        self.channel(id, address(subject), &[("message", message)]);
        let operation = json!({
            "action": "send",
            "channel": {"$ref": format!("#/channels/{id}")},
            "summary": doc,
            "messages": [{"$ref": format!("#/channels/{id}/messages/message")}],
        });
        self.operations.insert(id.to_owned(), operation);
    }
}

fn address(subject: &str) -> Value {
    format!("drover.v1.{subject}").replace('<', "{").replace('>', "}").into()
}

fn header_schemas() -> [(&'static str, Value); 4] {
    let text = |doc: &str| json!({"type": "string", "description": doc});
    let object = |fields: &[(&str, Value)], required: &[&str]| {
        let fields: Map<String, Value> = fields.iter().map(|(n, v)| ((*n).to_owned(), v.clone())).collect();
        json!({"type": "object", "properties": fields, "required": required})
    };
    let content = (headers::CONTENT_TYPE, text("`application/msgpack` or `application/json`."));
    [
        (
            "RequestHeaders",
            object(
                &[
                    (headers::REQUEST_ID, text("A ULID; a repeated request carries the same.")),
                    (
                        headers::DEADLINE_MS,
                        json!({
                            "type": "string", "pattern": "^[0-9]+$", "default": headers::DEFAULT_DEADLINE_MS.to_string(),
                            "description": format!(
                                "Milliseconds from arrival until the caller stops waiting; at most {}.",
                                headers::MAX_DEADLINE_MS
                            ),
                        }),
                    ),
                    content.clone(),
                    (headers::TRACEPARENT, text("W3C trace context.")),
                    (headers::TRACESTATE, text("W3C trace state.")),
                    (headers::NAMESPACE, text("Of `host.create` alone: the namespace of the VM.")),
                    (
                        headers::OWNER_EPOCH,
                        text("Of `host.create` alone: the epoch of the claim that the placer made."),
                    ),
                ],
                &[],
            ),
        ),
        ("ReplyHeaders", object(std::slice::from_ref(&content), &[])),
        (
            "ErrorHeaders",
            object(
                &[
                    (headers::ERROR_CODE, text("A number, as HTTP has them.")),
                    (headers::ERROR, text("One line for a person.")),
                    content.clone(),
                ],
                &[headers::ERROR_CODE, headers::ERROR],
            ),
        ),
        (
            "EventHeaders",
            object(
                &[
                    (ce::SPECVERSION, json!({"const": ce::SPEC_VERSION})),
                    (ce::ID, text("Unique; of a VM's event `<vm_id>.<seq>`.")),
                    (
                        ce::SOURCE,
                        text("`drover/<host>`; of what a server of the bus denied, `drover/bus/<server>`."),
                    ),
                    (
                        ce::TYPE,
                        text(
                            "`drover.vm.<kind>.v1`, `drover.host.<kind>.v1`, `drover.request.rejected.v1` or \
                             `drover.audit.<kind>.v1`.",
                        ),
                    ),
                    (ce::TIME, json!({"type": "string", "format": "date-time"})),
                    (ce::SUBJECT, text("`<namespace>/<name>`, the namespace, the host, or the server.")),
                    (ce::DATACONTENTTYPE, json!({"const": codec::MSGPACK})),
                    (headers::CONTENT_TYPE, json!({"const": codec::MSGPACK})),
                    (
                        headers::LOG_POSITION,
                        text("Of `audit.bus` alone: how far the server's log was read for it."),
                    ),
                    (
                        headers::LOG_UNTOLD,
                        text("Of `audit.bus` alone: denials up to there that no event tells of."),
                    ),
                ],
                &[
                    ce::SPECVERSION,
                    ce::ID,
                    ce::SOURCE,
                    ce::TYPE,
                    ce::TIME,
                    ce::DATACONTENTTYPE,
                    headers::CONTENT_TYPE,
                ],
            ),
        ),
    ]
}

fn document() -> Value {
    let mut schemas = schemas();
    for (name, schema) in header_schemas() {
        assert!(schemas.insert(name.to_owned(), schema).is_none(), "{name} stands twice");
    }
    let (messages, channels, operations) = Default::default();
    let mut document = Document { schemas, messages, channels, operations };
    for row in VERBS {
        document.verb(row);
    }
    let frame = document.message("StreamFrame", None);
    document.channel("io", address("io.<ns>.<token>"), &[("frame", frame)]);
    document.operations.insert(
        "io".to_owned(),
        json!({
            "action": "receive",
            "channel": {"$ref": "#/channels/io"},
            "summary": "Frames of a stream from its client; the host's go to the reply subject.",
            "messages": [{"$ref": "#/channels/io/messages/frame"}],
        }),
    );
    let event = Some("EventHeaders");
    document.told("event.vm", "evt.ns.<ns>.vm.<name>.<kind>", "VmEvent", event, "What happened to a VM.");
    let doc = "A request without a reply subject was refused.";
    document.told("event.rejected", "evt.ns.<ns>.request.rejected", "RejectedEvent", event, doc);
    document.told("event.host", "evt.host.<host>.<kind>", "HostEvent", event, "What happened to a host.");
    let doc = "Who did what, and who was refused what, as a host saw it; for admins.";
    document.told("audit.host", "evt.audit.host.<host>.<kind>", "AuditEvent", event, doc);
    let doc = "What a server of the bus kept from whom; for admins.";
    document.told("audit.bus", "evt.audit.bus.<server>.<kind>", "AuditEvent", event, doc);
    let doc = "Samples of a host's VMs in one namespace.";
    document.told("metric.namespace", "metric.ns.<ns>.host.<host>", "NamespaceSample", None, doc);
    let doc = "Figures of a guest that have changed, where its spec asks for them.";
    document.told("metric.vm", "metric.ns.<ns>.vm.<name>", "VmSample", None, doc);
    document.told("metric.host", "metric.host.<host>", "HostSample", None, "Samples of a host.");
    json!({
        "asyncapi": "3.0.0",
        "info": {
            "title": "drover",
            "version": "v1",
            "description": include_str!("asyncapi/contract.md"),
        },
        "defaultContentType": codec::MSGPACK,
        "channels": document.channels,
        "operations": document.operations,
        "components": {"messages": document.messages, "schemas": document.schemas},
    })
}

#[test]
fn the_published_contract_is_what_the_tables_say() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/asyncapi.json");
    let made = serde_json::to_string_pretty(&document()).unwrap() + "\n";
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(path, &made).unwrap();
    }
    assert!(
        std::fs::read_to_string(path).unwrap() == made,
        "asyncapi.json is out of date: run `UPDATE_GOLDEN=1 cargo test -p drover-schemas`"
    );
}

#[test]
fn every_reference_has_its_target() {
    fn check(whole: &Value, value: &Value) {
        match value {
            Value::Object(map) => {
                if let Some(Value::String(target)) = map.get("$ref") {
                    let pointer = target.strip_prefix('#').unwrap();
                    assert!(whole.pointer(pointer).is_some(), "{target} is nowhere");
                }
                map.values().for_each(|value| check(whole, value));
            }
            Value::Array(values) => values.iter().for_each(|value| check(whole, value)),
            _ => {}
        }
    }
    let whole = document();
    check(&whole, &whole);
}
