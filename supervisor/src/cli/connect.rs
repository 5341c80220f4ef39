//! From flags and environment to a [`Target`]; without a server, the running `drover dev`.

use std::path::PathBuf;

use drover_actors::bus::permissions::INBOX;
use drover_schemas::Token;

use super::exit::CliError;
use crate::client::{Auth, Client, Target, Tls};
use crate::dev;

/// How to reach the bus; the same for every command.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Connection")]
pub struct ConnectArgs {
    /// NATS server(s), as nats://host:4222; without it the running `drover dev` of this machine.
    #[arg(long, env = "DROVER_NATS_URL", global = true, value_name = "URL")]
    pub server: Option<String>,
    /// NATS credentials file.
    #[arg(long, env = "DROVER_NATS_CREDS", global = true, value_name = "FILE")]
    pub creds: Option<PathBuf>,
    /// File with an nkey seed.
    #[arg(long, env = "DROVER_NATS_NKEY", global = true, value_name = "FILE", conflicts_with = "creds")]
    pub nkey: Option<PathBuf>,
    /// User of the NATS server.
    #[arg(long, env = "DROVER_NATS_USER", global = true, value_name = "USER")]
    pub bus_user: Option<String>,
    /// Password of the NATS server; better given by the environment.
    #[arg(
        long,
        env = "DROVER_NATS_PASSWORD",
        global = true,
        value_name = "PASSWORD",
        hide_env_values = true
    )]
    pub bus_password: Option<String>,
    /// Root certificates to trust.
    #[arg(long, env = "DROVER_TLS_CA", global = true, value_name = "FILE")]
    pub tls_ca: Option<PathBuf>,
    /// Client certificate.
    #[arg(long, env = "DROVER_TLS_CERT", global = true, value_name = "FILE", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,
    /// Key of the client certificate.
    #[arg(long, env = "DROVER_TLS_KEY", global = true, value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
    /// Prefix of inboxes, for users that may subscribe to their own only; with --bus-user it is _INBOX.USER.
    #[arg(long, env = "DROVER_INBOX_PREFIX", global = true, value_name = "PREFIX")]
    pub inbox_prefix: Option<String>,
    /// Namespace.
    #[arg(
        long,
        short,
        env = "DROVER_NAMESPACE",
        global = true,
        default_value = "default",
        value_name = "NS"
    )]
    pub namespace: Token,
    /// First token of every subject.
    #[arg(long, env = "DROVER_ROOT", global = true, default_value = "drover", value_name = "TOKEN")]
    pub root: Token,
}

impl ConnectArgs {
    /// Connects.
    ///
    /// # Errors
    /// No server is known, or it cannot be reached.
    pub async fn connect(&self) -> Result<Client, CliError> {
        Ok(Client::connect(self.target()?).await?)
    }

    fn target(&self) -> Result<Target, CliError> {
        let (server, auth) = match &self.server {
            Some(server) => (server.clone(), self.auth()),
            None => self.running_dev()?,
        };
        Ok(Target {
            server,
            auth,
            tls: Tls { ca: self.tls_ca.clone(), cert: self.tls_cert.clone().zip(self.tls_key.clone()) },
            root: self.root.clone(),
            namespace: self.namespace.clone(),
            inbox_prefix: self.inbox_prefix.clone().or_else(|| self.own_inbox()),
        })
    }

    /// What `drover bus config` lets a user of this name listen to.
    fn own_inbox(&self) -> Option<String> {
        let user = self.bus_user.as_ref().filter(|_| self.creds.is_none() && self.nkey.is_none())?;
        Token::new(user).ok().map(|user| format!("{INBOX}.{user}"))
    }

    fn auth(&self) -> Auth {
        match (&self.creds, &self.nkey, &self.bus_user) {
            (Some(file), _, _) => Auth::Credentials(file.clone()),
            (_, Some(file), _) => Auth::Nkey(file.clone()),
            (_, _, Some(user)) => {
                Auth::Password { user: user.clone(), password: self.bus_password.clone().unwrap_or_default() }
            }
            _ => Auth::None,
        }
    }

    fn running_dev(&self) -> Result<(String, Auth), CliError> {
        let file = dev::ClientFile::find().map_err(CliError::Dev)?;
        let Some(file) = file else {
            return Err(CliError::Usage(
                "no bus is known: give --server or DROVER_NATS_URL, or start `drover dev`".into(),
            ));
        };
        Ok((file.url, Auth::Password { user: file.user, password: file.password }))
    }
}
