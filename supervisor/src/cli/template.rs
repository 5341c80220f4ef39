//! `drover template`.

use std::time::Duration;

use drover_schemas::Token;
use drover_schemas::body::guest::Empty;
use drover_schemas::body::template::{
    SpecValue, TemplateGetRequest, TemplateLayer, TemplateListReply, TemplateReply,
};
use drover_schemas::subject::Family;

use super::Global;
use super::exit::CliError;
use super::host::mib;
use super::output::{render, safe, table};

const DEADLINE: Duration = Duration::from_secs(10);

/// Verbs of templates.
#[derive(Debug, clap::Subcommand)]
pub enum TemplateCommand {
    /// List the templates that the namespace may use, on the host that answers first.
    #[command(visible_alias = "list")]
    Ls,
    /// Show a template with what it is built on merged in, and where each value is set.
    Get {
        /// Its name.
        name: Token,
    },
}

pub(super) async fn run(command: &TemplateCommand, global: &Global) -> Result<u8, CliError> {
    let client = global.connect.connect().await?;
    let deadline = global.deadline(DEADLINE);
    match command {
        TemplateCommand::Ls => {
            let reply = client.registry(Family::Template, "list", &Empty {}, deadline).await?;
            global.output.print(&reply, list)?;
        }
        TemplateCommand::Get { name } => {
            let request = TemplateGetRequest { name: name.clone() };
            let reply = client.registry(Family::Template, "get", &request, deadline).await?;
            global.output.print(&reply, |reply: &TemplateReply| values(&reply.values))?;
        }
    }
    Ok(0)
}

fn list(reply: &TemplateListReply) -> String {
    let mut table = table(&["NAME", "OF", "CPUS", "MEMORY", "FILES"]);
    for template in &reply.templates {
        let of = match template.layer {
            TemplateLayer::BuiltIn => "drover",
            TemplateLayer::Host => "host",
            TemplateLayer::Namespace => "namespace",
            TemplateLayer::Unknown => "-",
        };
        let or_none = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
        table.add_row([
            template.name.to_string(),
            of.to_owned(),
            or_none(template.cpus.map(|cpus| cpus.to_string())),
            or_none(template.memory_bytes.map(mib)),
            safe(&template.files.join(" over ")),
        ]);
    }
    render(&mut table)
}

/// The values of a spec, and where each comes from.
pub(super) fn values(values: &[SpecValue]) -> String {
    let mut table = table(&["FIELD", "VALUE", "FROM"]);
    for SpecValue { field, value, origin } in values {
        table.add_row([safe(field), safe(value), safe(origin)]);
    }
    render(&mut table)
}
