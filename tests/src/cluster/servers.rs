//! A cluster of NATS servers with JetStream, whose members can be killed and started again.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::Stdio;

use tempfile::TempDir;
use tokio::process::{Child, Command};

use super::net::{Net, Place};
use crate::netns::nsenter;
use crate::wait::until;

/// See [the module](self).
#[derive(Debug)]
pub struct Servers {
    members: Vec<Member>,
    folder: TempDir,
}

#[derive(Debug)]
struct Member {
    namespace: String,
    process: Option<Child>,
}

impl Servers {
    /// Writes the configuration of `count` servers, and starts none.
    ///
    /// # Panics
    /// A file cannot be written.
    #[must_use]
    pub fn make(net: &Net, count: usize) -> Self {
        let folder = tempfile::Builder::new().prefix("dvn").tempdir().expect("a folder");
        let routes: Vec<String> =
            (0..count).map(|n| format!("nats://{}:6222", Place::Server(n).address())).collect();
        for number in 0..count {
            let (address, name) = (Place::Server(number).address(), name(number));
            // What a partition leaves half open is noticed within seconds. Hosts have their ways to all servers, and are
            // not told of others.
            let config = format!(
                "server_name: {name}\nlisten: \"{address}:4222\"\nping_interval: \"1s\"\nping_max: 2\n\
                 write_deadline: \"2s\"\njetstream {{ store_dir: {:?}, sync_interval: always }}\n\
                 cluster {{ name: tests, listen: \"{address}:6222\", routes: {routes:?}, ping_interval: \"1s\", \
                 no_advertise: true }}\n",
                folder.path().join(&name)
            );
            fs::write(folder.path().join(format!("{name}.conf")), config).expect("write");
        }
        let member =
            |number| Member { namespace: net.namespace(Place::Server(number)).to_owned(), process: None };
        Self { members: (0..count).map(member).collect(), folder }
    }

    /// Where clients find a server.
    #[must_use]
    pub fn url(number: usize) -> String {
        format!("nats://{}:4222", Place::Server(number).address())
    }

    /// Which server has a name such as `s1`.
    #[must_use]
    pub fn number(&self, named: &str) -> Option<usize> {
        (0..self.members.len()).find(|number| name(*number) == named)
    }

    /// Starts a server on what it has stored.
    ///
    /// # Panics
    /// It cannot be started, or runs.
    pub fn start(&mut self, number: usize) {
        let log = File::options().create(true).append(true).open(self.log(number)).expect("a log");
        let member = &mut self.members[number];
        assert!(member.process.is_none(), "{} runs", name(number));
        let words = nsenter(&member.namespace);
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).args(["nats-server", "-c"]);
        command.arg(self.folder.path().join(format!("{}.conf", name(number))));
        let both = log.try_clone().expect("a log");
        command.stdin(Stdio::null()).stdout(both).stderr(log).kill_on_drop(true);
        member.process = Some(command.spawn().expect("start nats-server"));
    }

    /// Whether it was started and not killed since.
    #[must_use]
    pub fn runs(&self, number: usize) -> bool {
        self.members[number].process.is_some()
    }

    /// Kills a server as a crash would.
    ///
    /// # Panics
    /// It does not run, or does not end.
    pub async fn kill(&mut self, number: usize) {
        let mut process = self.members[number].process.take().expect("the server runs");
        process.kill().await.expect("kill");
    }

    /// Waits until every server takes connections from this thread's namespace.
    ///
    /// # Panics
    /// One does not.
    pub async fn listening(&self) {
        for number in 0..self.members.len() {
            let url = Self::url(number);
            let address = url.trim_start_matches("nats://");
            until("nats-server", async || tokio::net::TcpStream::connect(address).await.ok()).await;
        }
    }

    /// Prints the ends of the logs.
    pub(super) fn print_evidence(&self) {
        for number in 0..self.members.len() {
            let told = fs::read(self.log(number)).unwrap_or_default();
            let told = String::from_utf8_lossy(&told).into_owned();
            let lines: Vec<&str> = told.lines().collect();
            println!("{} told:\n{}", name(number), lines[lines.len().saturating_sub(20)..].join("\n"));
        }
    }

    fn log(&self, number: usize) -> PathBuf {
        self.folder.path().join(format!("{}.log", name(number)))
    }
}

fn name(number: usize) -> String {
    format!("s{}", number + 1)
}
