//! The network of a VM, made and removed: a TAP, its place under the bridge, its rules and its address; beside the same
//! by hand with nothing but the kernel's interfaces.
//!
//! It is the daemon's own code, called here: no verb makes a network without a VM. A namespace of its own, which ends
//! with the thread that is in it, keeps the host's network out of it and takes everything away.

use std::io;
use std::time::Duration;

use drover_actors::chain;
use drover_actors::network::lease::PoolError;
use drover_actors::network::nft::Member;
use drover_actors::network::tap::{self, TapError, TapKind};
use drover_actors::network::{
    NetworkConfig, NetworkDef, NetworkError, NetworkHandle, NicLease, Pool, VmNet, names,
};
use drover_schemas::token::TokenError;
use drover_schemas::{InstallationId, Token, VmId};
use ipnet::Ipv4Net;
use nix::sched::{CloneFlags, unshare};
use rtnetlink::{Handle, LinkBridgePort, LinkUnspec};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::program::{self, ProgramError};
use super::report::Row;
use super::sample::{Percentiles, Sample};

/// Who may attach to the TAPs: nobody does.
const UID: u32 = 65_534;

/// Why there is no row.
#[derive(Debug, thiserror::Error)]
enum NetworkRowError {
    /// It takes privileges.
    #[error("make a network namespace; run drover bench as root")]
    Namespace(#[source] nix::Error),
    /// The thread that measures.
    #[error("start a thread")]
    Thread(#[source] io::Error),
    /// It ended.
    #[error("the thread that measures ended")]
    Ended,
    /// The daemon's code.
    #[error("the network")]
    Network(#[from] NetworkError),
    /// The actor did not start.
    #[error("start the network: {0}")]
    Start(String),
    /// There is no address.
    #[error("lease an address")]
    Pool(#[from] PoolError),
    /// A word of this program is no token.
    #[error("a name")]
    Name(#[from] TokenError),
    /// The TAP by hand.
    #[error("a TAP by hand")]
    Tap(#[from] TapError),
    /// No netlink.
    #[error("rtnetlink")]
    Netlink(#[source] io::Error),
    /// An interface by hand.
    #[error("an interface by hand")]
    Link(#[from] rtnetlink::Error),
    /// It has no number.
    #[error("look an interface up by hand")]
    Index(#[source] nix::Error),
    /// The rules by hand.
    #[error("rules by hand")]
    Nft(#[from] ProgramError),
}

/// Networks of VMs, `rounds` times.
pub async fn rows(rounds: usize) -> Vec<Row> {
    let row = |what: &str, sample: &Sample| Row::new(what, "ms", sample.percentiles(1e3));
    let measured = match in_namespace(rounds.max(1)).await {
        Ok(measured) => measured,
        Err(error) => {
            let row = Row::new("a VM's network, made", "ms", Percentiles::default());
            return vec![row.unmeasured(&chain(&error).to_string())];
        }
    };
    let Measured { made, removed, made_by_hand, removed_by_hand } = measured;
    let mut first = row("a VM's network, made", &made).against(
        "the same TAP, port and rules by ioctl, two messages of rtnetlink and one nft",
        Ok(made_by_hand.percentiles(1e3)),
    );
    first.note = Some("with its address; the lease is written with the rest of the create".to_owned());
    let second = row("a VM's network, removed", &removed)
        .against("the same by one nft and a message of rtnetlink", Ok(removed_by_hand.percentiles(1e3)));
    vec![first, second]
}

#[derive(Debug, Default)]
struct Measured {
    made: Sample,
    removed: Sample,
    made_by_hand: Sample,
    removed_by_hand: Sample,
}

/// Measures in a thread whose network is its own, as is that of all threads and programs that it starts.
async fn in_namespace(rounds: usize) -> Result<Measured, NetworkRowError> {
    let (answer, answered) = oneshot::channel();
    let work = move || {
        let measured = unshare(CloneFlags::CLONE_NEWNET).map_err(NetworkRowError::Namespace).and_then(|()| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.map_err(NetworkRowError::Thread)?.block_on(measure(rounds))
        });
        // Whoever gave up does not want it.
        let _ = answer.send(measured);
    };
    std::thread::Builder::new()
        .name("bench-network".to_owned())
        .spawn(work)
        .map_err(NetworkRowError::Thread)?;
    answered.await.map_err(|_| NetworkRowError::Ended)?
}

async fn measure(rounds: usize) -> Result<Measured, NetworkRowError> {
    let network = Token::new("bench")?;
    // For measurements between networks (RFC 2544); here nobody else has it.
    let subnet = Ipv4Net::new_assert([198, 18, 0, 0].into(), 20);
    let installation = InstallationId::generate();
    let def = NetworkDef { subnet, ..NetworkDef::named(network.clone()) };
    let config = NetworkConfig { installation, networks: vec![def], nft: "nft".into() };
    let handle = NetworkHandle::spawn(config, None).await;
    let handle = handle.map_err(|error| NetworkRowError::Start(error.to_string()))?;
    handle.restore(Vec::new()).await?;
    let hand = Hand::new(installation, &network)?;
    let mut pool = Pool::new(subnet)?;
    let started = Instant::now();
    let lease = |pool: &mut Pool| -> Result<VmNet, NetworkRowError> {
        let vm_id = VmId::generate();
        let ipv4 = pool.allocate(None, started.elapsed())?;
        let nic = NicLease::new(installation, vm_id, 0, network.clone(), subnet, ipv4);
        Ok(VmNet {
            vm_id,
            called: None,
            uid: UID,
            nics: vec![nic],
            forwards: vec![Vec::new()],
            egress: vec![None],
            limits: Vec::new(),
            queues: Vec::new(),
        })
    };
    let mut measured = Measured::default();
    // The first of each is not counted: programs are read from the disk.
    for round in 0..=rounds {
        let began = Instant::now();
        let vm = lease(&mut pool)?;
        handle.attach(vm.clone()).await?;
        let made = began.elapsed();
        let began = Instant::now();
        handle.detach(vm.vm_id, vm.nics.clone()).await?;
        vm.nics.iter().for_each(|nic| pool.release(nic.ipv4, started.elapsed(), Duration::ZERO));
        let removed = began.elapsed();

        // Names, addresses and texts are known to whoever does it by hand.
        let vm = lease(&mut pool)?;
        let (add, delete) = (words(&hand.table, "add", &vm), words(&hand.table, "delete", &vm));
        let began = Instant::now();
        hand.make(&vm, &add).await?;
        let made_by_hand = began.elapsed();
        let began = Instant::now();
        hand.remove(&vm, &delete).await?;
        let removed_by_hand = began.elapsed();
        vm.nics.iter().for_each(|nic| pool.release(nic.ipv4, started.elapsed(), Duration::ZERO));

        if round > 0 {
            measured.made.push(made);
            measured.removed.push(removed);
            measured.made_by_hand.push(made_by_hand);
            measured.removed_by_hand.push(removed_by_hand);
        }
    }
    handle.teardown().await?;
    handle.actor().stop(None);
    Ok(measured)
}

/// The same without looking at what is there, and without any way back.
struct Hand {
    handle: Handle,
    installation: InstallationId,
    bridge: u32,
    table: String,
}

impl Hand {
    fn new(installation: InstallationId, network: &Token) -> Result<Self, NetworkRowError> {
        let (connection, handle, _messages) =
            rtnetlink::new_connection().map_err(NetworkRowError::Netlink)?;
        tokio::spawn(connection);
        let bridge = index(&names::bridge(installation, network))?;
        Ok(Self { handle, installation, bridge, table: names::table(installation) })
    }

    async fn make(&self, vm: &VmNet, rules: &str) -> Result<(), NetworkRowError> {
        for nic in &vm.nics {
            tap::ensure(&nic.tap, TapKind::One, vm.uid)?;
            let number = index(&nic.tap)?;
            let link = LinkUnspec::new_with_index(number)
                .alias(names::tap_alias(self.installation, vm.vm_id))
                .link_group(names::group(self.installation))
                .controller(self.bridge)
                .up()
                .build();
            self.handle.link().set(link).execute().await?;
            let port = LinkBridgePort::new(number).isolated(true).build();
            self.handle.link().set_port(port).execute().await?;
        }
        Ok(program::run("nft", ["-f", "-"], Some(rules)).await.map(drop)?)
    }

    async fn remove(&self, vm: &VmNet, rules: &str) -> Result<(), NetworkRowError> {
        program::run("nft", ["-f", "-"], Some(rules)).await?;
        for nic in &vm.nics {
            self.handle.link().del(index(&nic.tap)?).execute().await?;
        }
        Ok(())
    }
}

fn index(name: &str) -> Result<u32, NetworkRowError> {
    nix::net::if_::if_nametoindex(name).map_err(NetworkRowError::Index)
}

/// What `nft` is told of the elements of a VM.
fn words(table: &str, command: &str, vm: &VmNet) -> String {
    let line = |member: &Member| {
        let family = if member.tap().is_some() { "bridge" } else { "inet" };
        let parts: Vec<String> = member.parts.iter().map(|part| quoted(part)).collect();
        let value = member.value.as_ref().map(|value| format!(" : {value}")).unwrap_or_default();
        format!("{command} element {family} {table} {} {{ {}{value} }}\n", member.set, parts.join(" . "))
    };
    vm.members().iter().map(line).collect()
}

/// Names of interfaces are quoted; addresses are not.
fn quoted(part: &str) -> String {
    if part.contains(['.', ':', '/']) { part.to_owned() } else { format!("\"{part}\"") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_by_hand_are_those_of_the_vm() {
        let (installation, vm_id) = (InstallationId::from_u128(1), VmId::from_u128(2));
        let subnet = Ipv4Net::new_assert([198, 18, 0, 0].into(), 20);
        let network = Token::new("bench").unwrap();
        let nic = NicLease::new(installation, vm_id, 0, network, subnet, [198, 18, 0, 2].into());
        let (tap, mac) = (nic.tap.clone(), nic.mac.clone());
        let vm = VmNet {
            vm_id,
            called: None,
            uid: UID,
            nics: vec![nic],
            forwards: vec![Vec::new()],
            egress: vec![None],
            limits: Vec::new(),
            queues: Vec::new(),
        };
        let text = words("drover-x", "add", &vm);
        assert_eq!(text.lines().count(), vm.members().len());
        let source = format!("add element bridge drover-x vm_src {{ \"{tap}\" . {mac} . 198.18.0.2 }}");
        assert!(text.lines().any(|line| line == source), "{text}");
        let routed = "add element inet drover-x egress_refused { 198.18.0.2 }";
        assert!(text.lines().any(|line| line == routed), "{text}");
    }
}
