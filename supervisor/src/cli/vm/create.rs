//! `drover vm create`.

use std::path::PathBuf;
use std::time::Duration;

use drover_schemas::body::spec::VmSpec;
use drover_schemas::body::vm::{CreateRequest, ValidateRequest, Wait};
use drover_schemas::size::ByteSize;
use drover_schemas::{RequestId, Token};

use super::super::Global;
use super::super::exit::CliError;
use super::super::progress::watched;
use super::change::{self, WaitFor};
use super::{set, show};
use crate::client::Client;

const DEADLINE: Duration = Duration::from_secs(30);

/// Arguments of `create`.
#[derive(Debug, clap::Args)]
pub struct CreateArgs {
    /// Name of the new VM.
    name: Token,
    /// Template to start from; `linux-default` if left out.
    #[arg(long, short)]
    template: Option<Token>,
    /// Virtual CPUs.
    #[arg(long, value_name = "N")]
    cpus: Option<u32>,
    /// Memory, as 512MiB.
    #[arg(long, value_name = "SIZE")]
    memory: Option<ByteSize>,
    /// A file with a spec in YAML or JSON; flags go before it.
    #[arg(long, short, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Any value of the spec by its path, as boot.cmdline="quiet" or restart.policy=always.
    #[arg(long = "set", value_name = "PATH=VALUE")]
    set: Vec<String>,
    /// A label.
    #[arg(long = "label", value_name = "KEY=VALUE")]
    labels: Vec<String>,
    /// Wait until the guest runs, or until its agent answers, and show each step.
    #[arg(long, value_enum)]
    wait: Option<WaitFor>,
    /// Create nothing: check the spec and show where each value comes from and what the VMM would be told.
    #[arg(long, conflicts_with_all = ["wait", "request_id"])]
    dry_run: bool,
    /// Name of the request; a repetition under the same name has no second effect.
    #[arg(long, value_name = "ULID")]
    request_id: Option<RequestId>,
}

impl CreateArgs {
    pub(super) const fn name(&self) -> &Token {
        &self.name
    }

    fn spec(&self) -> Result<VmSpec, CliError> {
        let base = match &self.file {
            Some(path) => {
                let text = std::fs::read_to_string(path).map_err(|source| CliError::File {
                    action: "read",
                    path: path.clone(),
                    source,
                })?;
                serde_saphyr::from_str(&text)
                    .map_err(|e| CliError::Usage(format!("{}: {e}", path.display())))?
            }
            None => serde_json::Map::new(),
        };
        let mut spec = set::spec(base, &self.set).map_err(CliError::Usage)?;
        spec.template = self.template.clone().or(spec.template);
        spec.cpus = self.cpus.or(spec.cpus);
        spec.memory = self.memory.or(spec.memory);
        for label in &self.labels {
            let (key, value) = label
                .split_once('=')
                .ok_or_else(|| CliError::Usage(format!("--label {label:?} is not KEY=VALUE")))?;
            spec.labels.insert(key.to_owned(), value.to_owned());
        }
        Ok(spec)
    }
}

pub(super) async fn run(args: &CreateArgs, client: &Client, global: &Global) -> Result<(), CliError> {
    let spec = args.spec()?;
    if args.dry_run {
        let request = ValidateRequest { name: Some(args.name.clone()), spec };
        let reply = client.validate(&request, global.deadline(DEADLINE)).await?;
        return global.output.print(&reply, |reply| show::made_of(&reply.values, &reply.vmm_config));
    }
    let request = CreateRequest { name: args.name.clone(), spec, wait: args.wait.map(Wait::from) };
    let usual = if args.wait.is_some() { change::longest_wait() } else { DEADLINE };
    let options = change::options(args.request_id, global.deadline(usual));
    let call = client.create(&request, options);
    let reply = watched(client, &args.name, &format!("create {}", args.name), call).await?;
    global.output.print(&reply, |reply| show::change("create", reply))
}
