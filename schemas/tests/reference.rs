//! Keeps `schemas/REFERENCE.md` as the tables say it: `UPDATE_GOLDEN=1` writes it anew.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::fmt::Write as _;

use drover_schemas::ErrorCode;
use drover_schemas::audit::AuditKind;
use drover_schemas::body::status::CauseKind;
use drover_schemas::event::{HostEventKind, VmEventKind};
use drover_schemas::state::{markdown, mermaid};
use drover_schemas::verbs::VERBS;

/// The values of an enum with their documentation, but not the catch-all of readers.
fn values<T: schemars::JsonSchema>() -> Vec<(String, String)> {
    let schema = schemars::schema_for!(T).to_value();
    let text = |value: &serde_json::Value, key: &str| value[key].as_str().unwrap_or_default().to_owned();
    let all = schema["oneOf"].as_array().cloned().unwrap_or_default();
    let known = all.iter().map(|value| (text(value, "const"), text(value, "description")));
    known.filter(|(name, _)| name != "unknown").collect()
}

fn events(out: &mut String) {
    let mut table = |subject: &str, rows: Vec<(String, String)>| {
        assert!(!rows.is_empty(), "no values for {subject}");
        for (name, doc) in rows {
            writeln!(out, "| `{subject}{name}` | {} |", doc.replace('\n', " ")).unwrap();
        }
    };
    table("evt.ns.<ns>.vm.<name>.", values::<VmEventKind>());
    table("evt.host.<host>.", values::<HostEventKind>());
    table(
        "evt.ns.<ns>.request.",
        vec![(
            "rejected".to_owned(),
            "A request that had no reply subject and no effect, with the error that it would have got."
                .to_owned(),
        )],
    );
    let (bus, hosts): (Vec<_>, Vec<_>) =
        values::<AuditKind>().into_iter().partition(|(name, _)| name == AuditKind::Denied.as_str());
    table("evt.audit.host.<host>.", hosts);
    table("evt.audit.bus.<server>.", bus);
}

/// As the contract for programs has them.
fn headers(out: &mut String) {
    let contract = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/asyncapi.json")).unwrap();
    let contract: serde_json::Value = serde_json::from_str(&contract).unwrap();
    out.push_str("\n## Headers\n\n| of | header | |\n|---|---|---|\n");
    for (kind, schema) in [
        ("requests", "RequestHeaders"),
        ("replies", "ReplyHeaders"),
        ("errors", "ErrorHeaders"),
        ("events", "EventHeaders"),
    ] {
        let schema = &contract["components"]["schemas"][schema];
        for (name, header) in schema["properties"].as_object().unwrap() {
            let always = schema["required"].as_array().unwrap().iter().any(|required| required == name);
            let doc = match header["const"].as_str() {
                Some(value) => format!("`{value}`."),
                None if header["format"] == "date-time" => "A time as RFC 3339 has it.".to_owned(),
                None => header["description"].as_str().unwrap().to_owned(),
            };
            let always = if always { " Always there." } else { "" };
            writeln!(out, "| {kind} | `{name}` | {doc}{always} |").unwrap();
        }
    }
}

fn reference() -> String {
    let mut out = String::from(
        "# The bus contract of drover\n\n\
         Made from the tables in `schemas/src`; do not edit. Bodies are MessagePack maps with named fields (or JSON, \
         answered in JSON); their types are documented in `schemas/src/body`.\n\n## Verbs\n\n\
         | subject (after `drover.v1.`) | class | least role | request | reply | |\n|---|---|---|---|---|---|\n",
    );
    for row in VERBS {
        let (subject, class, role) = (row.plane.subject(row.verb), row.class.as_str(), row.role.as_str());
        writeln!(
            out,
            "| `{subject}` | {class} | {role} | `{}` | `{}` | {} |",
            row.request, row.reply, row.doc
        )
        .unwrap();
    }
    headers(&mut out);
    out.push_str("\n## Error codes\n\n| code | `Nats-Service-Error-Code` | retryable |\n|---|---|---|\n");
    for code in ErrorCode::ALL {
        writeln!(out, "| `{code}` | {} | {} |", code.status(), if code.retryable() { "yes" } else { "no" })
            .unwrap();
    }
    out.push_str(
        "\n## Events\n\nCloudEvents 1.0 in binary mode, in the stream `DROVER_EVENTS`; a VM's have a `seq` without gaps. \
         Bodies: `VmEvent`, `HostEvent`, `RejectedEvent` in `schemas/src/event.rs`. The audit (`AuditEvent` in \
         `schemas/src/audit.rs`) is read by admins only.\n\n\
         | subject (after `drover.v1.`) | |\n|---|---|\n",
    );
    events(&mut out);
    out.push_str("\n### Causes\n\nOf states, failed operations and ends, with evidence by name.\n\n| `kind` | |\n|---|---|\n");
    for (kind, doc) in values::<CauseKind>() {
        writeln!(out, "| `{kind}` | {} |", doc.replace('\n', " ")).unwrap();
    }
    write!(
        out,
        "\n## States and inputs\n\n`→` enters a state; `·` changes nothing; \"by policy\" is decided by the restart policy; \
         \"by desired\" starts again what shall run.\n\n{}\n```mermaid\n{}```\n",
        markdown(),
        mermaid()
    )
    .unwrap();
    out
}

#[test]
fn the_reference_page_is_what_the_tables_say() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/REFERENCE.md");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(path, reference()).unwrap();
    }
    let page = std::fs::read_to_string(path).unwrap();
    assert!(
        page == reference(),
        "REFERENCE.md is out of date: run `UPDATE_GOLDEN=1 cargo test -p drover-schemas`"
    );
}
