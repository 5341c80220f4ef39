//! A bus as `drover bus config` writes it, and those who may use it.

use std::fs;
use std::path::PathBuf;

use async_nats::ConnectOptions;
use nkeys::KeyPair;
use serde_json::{Value, json};

use crate::client::Bus;
use crate::world::World;

impl World {
    /// Makes a user for the file that the bus is made of. What it proves itself with is in [`World::seed`].
    ///
    /// # Panics
    /// The system has no random numbers, or its file cannot be written.
    #[must_use]
    pub fn user(&self, name: &str, roles: &[&str]) -> Value {
        let pair = KeyPair::new_user();
        fs::write(self.seed(name), pair.seed().expect("a seed")).expect("write");
        let mut user = json!({"name": name, "nkey": pair.public_key()});
        if !roles.is_empty() {
            user["roles"] = json!(roles);
        }
        user
    }

    /// The file with the seed of a user.
    #[must_use]
    pub fn seed(&self, name: &str) -> PathBuf {
        self.path(&format!("{name}.nk"))
    }

    /// What the command line needs to be this user.
    #[must_use]
    pub fn login(&self, name: &str) -> [String; 4] {
        let seed = self.seed(name).display().to_string();
        ["--nkey".into(), seed, "--inbox-prefix".into(), format!("_INBOX.{name}")]
    }

    /// A client that is this user.
    ///
    /// # Panics
    /// There is no such user, or no way to the bus.
    pub async fn enter(&self, name: &str, url: &str) -> Bus {
        let seed = fs::read_to_string(self.seed(name)).expect("a user of the test");
        let options = ConnectOptions::with_nkey(seed).custom_inbox_prefix(format!("_INBOX.{name}"));
        Bus { nats: options.retry_on_initial_connect().connect(url).await.expect("options that do") }
    }

    /// Has `drover bus config` make the configuration of a server, which may be left out if the file names one only.
    ///
    /// # Panics
    /// It refuses the file.
    pub async fn print_config(&self, file: &Value, server: Option<&str>) -> PathBuf {
        let name = server.unwrap_or("bus");
        let (from, to) = (self.path("bus.yaml"), self.path(&format!("{name}.conf")));
        fs::write(&from, file.to_string()).expect("write");
        let (from, out) = (from.display().to_string(), to.display().to_string());
        let mut args = vec!["bus", "config", &from, "--out", &out];
        args.extend(server.iter().flat_map(|server| ["--for", server]));
        let made = self.drover(&args).await;
        assert!(made.status.success(), "{made:?}");
        to
    }

    /// Makes the stream and the buckets, as an admin.
    ///
    /// # Panics
    /// They cannot be made.
    pub async fn init_bus(&self, admin: &str) {
        let login = self.login(admin);
        let args: Vec<&str> = ["bus", "init"].into_iter().chain(login.iter().map(String::as_str)).collect();
        let made = self.drover(&args).await;
        assert!(made.status.success(), "{made:?}");
    }
}
