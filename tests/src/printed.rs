//! A bus as `drover bus config` writes it, and those who may use it.

use std::fs;
use std::path::PathBuf;
use std::process::Stdio;

use async_nats::ConnectOptions;
use nkeys::KeyPair;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::process::{Child, Command};

use crate::client::Bus;
use crate::node::spawn;
use crate::wait::until;
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

    /// Makes a user with a password, which is given back too.
    ///
    /// # Panics
    /// `drover bus password` cannot hash it.
    pub async fn user_with_password(&self, name: &str, roles: &[&str]) -> (Value, String) {
        let password = format!("{:032x}", rand::random::<u128>());
        let mut command = Command::new(self.bin("drover"));
        command.args(["bus", "password", "--cost", "4"]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut hashing = command.kill_on_drop(true).spawn().expect("start");
        let mut stdin = hashing.stdin.take().expect("a pipe");
        stdin.write_all(password.as_bytes()).await.expect("a password");
        drop(stdin);
        let hashed = hashing.wait_with_output().await.expect("run");
        assert!(hashed.status.success(), "{hashed:?}");
        let file = self.path(&format!("{name}.hash"));
        fs::write(&file, hashed.stdout).expect("write");
        (json!({"name": name, "roles": roles, "password_file": file}), password)
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
        Bus { nats: self.login_options(name).connect(url).await.expect("options that do") }
    }

    /// How a client is this user.
    ///
    /// # Panics
    /// There is no such user.
    #[must_use]
    pub fn login_options(&self, name: &str) -> ConnectOptions {
        let seed = fs::read_to_string(self.seed(name)).expect("a user of the test");
        let options = ConnectOptions::with_nkey(seed).custom_inbox_prefix(format!("_INBOX.{name}"));
        options.retry_on_initial_connect()
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

/// Several servers of one bus, each with the configuration that was printed for it.
#[derive(Debug)]
pub struct Servers {
    members: Vec<Member>,
}

#[derive(Debug)]
struct Member {
    address: String,
    config: PathBuf,
    process: Option<Child>,
}

impl Servers {
    /// The servers that `file` names, none of which is started; each stores in a folder of its own.
    ///
    /// # Panics
    /// `drover bus config` refuses the file.
    pub async fn print(world: &World, file: &Value) -> Self {
        let mut members = Vec::new();
        for server in file["servers"].as_array().expect("servers") {
            let text = |key: &str| server[key].as_str().expect("a text").to_owned();
            let name = text("name");
            let mut file = file.clone();
            file["store_dir"] = json!(world.path(&format!("js-{name}")));
            let config = world.print_config(&file, Some(&name)).await;
            members.push(Member { address: text("listen"), config, process: None });
        }
        Self { members }
    }

    /// Starts one, and waits until it takes connections.
    ///
    /// # Panics
    /// It does not.
    pub async fn start(&mut self, number: usize) {
        let member = &mut self.members[number];
        let mut command = Command::new("nats-server");
        command.arg("-c").arg(&member.config);
        member.process = Some(spawn(&mut command, &member.config.with_extension("log")));
        until("nats-server", async || tokio::net::TcpStream::connect(&member.address).await.ok()).await;
    }

    /// Kills one as a crash would.
    ///
    /// # Panics
    /// It does not run, or does not end.
    pub async fn kill(&mut self, number: usize) {
        self.members[number].process.take().expect("it runs").kill().await.expect("kill");
    }
}
