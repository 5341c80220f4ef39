//! `drover bus config`: the configuration of the bus server, made from a small file and the verb table.
//!
//! What each role may send and hear comes from [`drover_schemas::verbs`], what a host needs of JetStream from
//! [`drover_actors::bus::permissions`]; nothing here lists a verb. The same file gives the same text, byte for
//! byte: passwords come in hashed.
//!
//! In mode `single` everybody is a user of one account, kept apart by permissions. In mode `tenants` each
//! namespace is an account of its own, to which the hosts' account lends the namespace's subjects, unchanged:
//! the server then says for whom a request is (`Nats-Request-Info`), replaces the reply subject by one of its
//! own, and nothing of one account is seen by another.

mod accounts;
mod conf;
mod file;
mod password;

pub use file::{BusFile, BusFileError};
pub use password::{COST, HashError, hash};

use conf::Conf;
use drover_schemas::Token;
use file::{Checked, Server};

/// The account of hosts, and in mode `single` of everybody. Namespaces cannot be called so.
pub const HOSTS: &str = "HOSTS";
/// The server's own account.
const SYSTEM: &str = "SYS";

/// The configuration of one server; which, need only be said if there are several.
///
/// # Errors
/// There is no such server, or several and none was named.
pub fn generate(checked: &Checked, server: Option<&Token>) -> Result<String, BusFileError> {
    let server = checked.server(server)?;
    let file = &checked.file;
    let mut top = vec![
        ("server_name", Conf::text(server.name.as_str())),
        ("listen", Conf::text(&server.listen)),
        ("max_payload", Conf::Number(file.max_payload.0)),
        // A host that hangs is out of its queue groups in half a minute.
        ("ping_interval", Conf::text("10s")),
        ("ping_max", Conf::Number(2)),
        ("write_deadline", Conf::text("10s")),
    ];
    if let Some(path) = &file.log_file {
        top.push(("log_file", Conf::path(path)));
        // `drover bus audit` reads the times.
        top.push(("logtime_utc", Conf::Bool(true)));
        top.push(("logfile_size_limit", Conf::Number(64 << 20)));
        top.push(("logfile_max_num", Conf::Number(4)));
    }
    if let Some(tls) = &file.tls {
        top.push(("tls", transport(tls)));
    }
    top.push((
        "jetstream",
        Conf::map([
            ("store_dir", Conf::path(&file.store_dir)),
            // What a host was told is stored shall survive a power cut.
            ("sync_interval", Conf::word("always")),
            ("max_memory_store", Conf::Number(file.max_memory.0)),
            ("max_file_store", Conf::Number(file.max_storage.0)),
        ]),
    ));
    if file.servers.len() > 1 {
        top.push(("cluster", cluster(checked, server)));
    }
    top.push(("system_account", Conf::text(SYSTEM)));
    top.push(("accounts", accounts::all(checked)));
    let head = "# Written by `drover bus config`. Change the file that it was made from and write it anew.\n";
    let audit = match &file.log_file {
        Some(path) => format!(
            "# What this server denies stands in its log and nowhere else: `drover bus audit {}` brings it to the audit.\n",
            path.display()
        ),
        None => "# Without `log_file`, nobody learns what this server denies.\n".to_owned(),
    };
    Ok(format!("{head}{audit}{}", Conf::map(top)))
}

fn transport(tls: &file::TlsFiles) -> Conf {
    let mut entries = vec![("cert_file", Conf::path(&tls.cert)), ("key_file", Conf::path(&tls.key))];
    if let Some(ca) = &tls.ca {
        entries.push(("ca_file", Conf::path(ca)));
        entries.push(("verify", Conf::Bool(true)));
    }
    Conf::map(entries)
}

fn cluster(checked: &Checked, server: &Server) -> Conf {
    let file = &checked.file;
    let address = |server: &Server| server.cluster.clone().unwrap_or_default();
    let others = file.servers.iter().filter(|other| other.name != server.name);
    let routes = others.map(|other| Conf::Text(format!("nats://{}", address(other)))).collect();
    let mut entries = vec![
        ("name", Conf::text(file.cluster_name.as_ref().unwrap_or(&file.root).as_str())),
        ("listen", Conf::Text(address(server))),
        ("routes", Conf::List(routes)),
    ];
    if let Some(tls) = &file.tls {
        entries.push(("tls", transport(tls)));
    }
    Conf::map(entries)
}

#[cfg(test)]
mod tests;
