//! The installation's two nftables tables: `bridge` against spoofing, `inet` for NAT and isolation.
//!
//! Chains and sets are static; a VM is an element of each set. The base is laid in one transaction that keeps
//! the elements (chains are flushed and filled, sets only added), so a daemon that starts again does not cut
//! off the VMs that run. No other table is ever read or changed.
//!
//! The documents are the `nftables` crate's types. Its helper runs `nft` without capturing what it says on
//! stderr, which is the only place where a refusal is explained, so `nft` is run here.

use std::borrow::Cow;
use std::io;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use ipnet::Ipv4Net;
use nftables::batch::Batch;
use nftables::expr::{
    CT, Expression, Meta, MetaKey, NamedExpression, Payload, PayloadField, Prefix, SetItem,
};
use nftables::schema::{
    Chain, Element, FlushObject, NfCmd, NfListObject, NfObject, Nftables, Rule, Set, SetType, SetTypeValue,
    Table,
};
use nftables::stmt::{Counter, JumpTarget, Match, Operator, Statement};
use nftables::types::{NfChainPolicy, NfChainType, NfFamily, NfHook};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

/// How long one transaction may take.
const DEADLINE: Duration = Duration::from_secs(20);
/// TAPs of guests.
const SET_IF: &str = "vm_if";
/// TAP and MAC.
const SET_MAC: &str = "vm_mac";
/// TAP, MAC and address.
const SET_SRC: &str = "vm_src";

/// `nft` failed.
#[derive(Debug, thiserror::Error)]
pub enum NftError {
    /// There is no `nft`.
    #[error("cannot run {program:?}: install the package `nftables`")]
    Missing {
        /// What was tried.
        program: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It could not be run to its end.
    #[error("cannot run {program:?}")]
    Run {
        /// What was tried.
        program: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The transaction was refused: nothing of it was done.
    #[error("nft refused to {step}: {said}")]
    Refused {
        /// What was tried.
        step: &'static str,
        /// What it said, cut to 2 KiB.
        said: String,
    },
    /// It did not end.
    #[error("nft did not end within {} s", DEADLINE.as_secs())]
    Silent,
    /// Its document could not be written or read.
    #[error("nft's JSON could not be {step}")]
    Json {
        /// Which way.
        step: &'static str,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
}

/// A network as the base rules see it.
#[derive(Debug, Clone)]
pub struct BaseNet {
    /// Name of the bridge.
    pub bridge: String,
    /// Its subnet.
    pub subnet: Ipv4Net,
    /// Guests cannot reach each other.
    pub isolate: bool,
    /// Where guests may not go.
    pub egress_deny: Vec<Ipv4Net>,
}

/// An interface as the sets know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    /// Name of the TAP.
    pub tap: String,
    /// The guest's MAC.
    pub mac: String,
    /// The guest's address.
    pub ipv4: Ipv4Addr,
}

/// Runs transactions on the installation's tables.
#[derive(Debug, Clone)]
pub struct Nft {
    program: PathBuf,
    table: String,
}

type Expr = Expression<'static>;
type Stmt = Statement<'static>;

fn text(text: &str) -> Expr {
    Expression::String(Cow::Owned(text.to_owned()))
}

fn meta(key: MetaKey) -> Expr {
    Expression::Named(NamedExpression::Meta(Meta { key }))
}

fn field(protocol: &'static str, field: &'static str) -> Expr {
    let field = PayloadField { protocol: protocol.into(), field: field.into() };
    Expression::Named(NamedExpression::Payload(Payload::PayloadField(field)))
}

fn ct(key: &'static str) -> Expr {
    Expression::Named(NamedExpression::CT(CT { key: key.into(), family: None, dir: None }))
}

fn concat(parts: Vec<Expr>) -> Expr {
    Expression::Named(NamedExpression::Concat(parts))
}

fn any_of(items: Vec<Expr>) -> Expr {
    Expression::Named(NamedExpression::Set(items.into_iter().map(SetItem::Element).collect()))
}

fn prefix(net: Ipv4Net) -> Expr {
    let addr = Box::new(text(&net.network().to_string()));
    Expression::Named(NamedExpression::Prefix(Prefix { addr, len: u32::from(net.prefix_len()) }))
}

fn when(left: Expr, op: Operator, right: Expr) -> Stmt {
    Statement::Match(Match { left, right, op })
}

fn eq(left: Expr, right: Expr) -> Stmt {
    when(left, Operator::EQ, right)
}

fn from(bridge: &str) -> Stmt {
    eq(meta(MetaKey::Iifname), text(bridge))
}

fn to(bridge: &str) -> Stmt {
    eq(meta(MetaKey::Oifname), text(bridge))
}

fn established() -> Stmt {
    when(ct("state"), Operator::IN, Expression::List(vec![text("established"), text("related")]))
}

const ACCEPT: Stmt = Statement::Accept(None);
const DROP: Stmt = Statement::Drop(None);

fn counted_drop() -> [Stmt; 2] {
    [Statement::Counter(Counter::Anonymous(None)), DROP]
}

/// A base chain: its name, type, hook and priority.
type BaseChain = (&'static str, NfChainType, NfHook, i32);

/// A document under construction for one table.
struct Doc<'a> {
    batch: Batch<'static>,
    family: NfFamily,
    table: &'a str,
}

impl Doc<'_> {
    fn name(&self) -> Cow<'static, str> {
        Cow::Owned(self.table.to_owned())
    }

    fn add_table(&mut self) {
        let table = Table { family: self.family, name: self.name(), handle: None };
        self.batch.add(NfListObject::Table(table));
    }

    fn chain(&self, name: &'static str) -> Chain<'static> {
        Chain { family: self.family, table: self.name(), name: name.into(), ..Chain::default() }
    }

    /// Adds a chain, or empties the one that is there.
    fn add_chain(&mut self, name: &'static str, base: Option<BaseChain>) {
        let mut chain = self.chain(name);
        if let Some((_, kind, hook, prio)) = base {
            chain._type = Some(kind);
            chain.hook = Some(hook);
            chain.prio = Some(prio);
            chain.policy = Some(NfChainPolicy::Accept);
        }
        self.batch.add(NfListObject::Chain(chain));
        self.batch.add_cmd(NfCmd::Flush(FlushObject::Chain(self.chain(name))));
    }

    fn add_rule(&mut self, chain: &'static str, statements: Vec<Stmt>) {
        let rule = Rule {
            family: self.family,
            table: self.name(),
            chain: chain.into(),
            expr: Cow::Owned(statements),
            ..Rule::default()
        };
        self.batch.add(NfListObject::Rule(rule));
    }

    fn add_set(&mut self, name: &'static str, types: &[SetType]) {
        let set_type = match types {
            [single] => SetTypeValue::Single(*single),
            many => SetTypeValue::Concatenated(Cow::Owned(many.to_vec())),
        };
        let set =
            Set { family: self.family, table: self.name(), name: name.into(), set_type, ..Set::default() };
        self.batch.add(NfListObject::Set(Box::new(set)));
    }
}

/// The static part: laid anew in one transaction, elements kept.
fn base(table: &str, networks: &[BaseNet]) -> Nftables<'static> {
    let mut doc = Doc { batch: Batch::new(), family: NfFamily::Bridge, table };
    doc.add_table();
    doc.add_set(SET_IF, &[SetType::Ifname]);
    doc.add_set(SET_MAC, &[SetType::Ifname, SetType::EtherAddr]);
    doc.add_set(SET_SRC, &[SetType::Ifname, SetType::EtherAddr, SetType::Ipv4Addr]);
    doc.add_chain("from_vm", None);
    doc.add_chain("pre", Some(("pre", NfChainType::Filter, NfHook::Prerouting, -300)));
    let jump = Statement::Jump(JumpTarget { target: "from_vm".into() });
    doc.add_rule("pre", vec![eq(meta(MetaKey::Iifname), text(&format!("@{SET_IF}"))), jump]);
    anti_spoof(&mut doc);

    doc.family = NfFamily::INet;
    doc.add_table();
    doc.add_chain("postrouting", Some(("postrouting", NfChainType::NAT, NfHook::Postrouting, 100)));
    doc.add_chain("forward", Some(("forward", NfChainType::Filter, NfHook::Forward, 0)));
    doc.add_chain("input", Some(("input", NfChainType::Filter, NfHook::Input, 0)));
    for network in networks {
        routed(&mut doc, network);
    }
    doc.batch.to_nftables()
}

/// A guest speaks with its own MAC and address only, and IPv4 only.
fn anti_spoof(doc: &mut Doc<'_>) {
    const CHAIN: &str = "from_vm";
    let iifname = || meta(MetaKey::Iifname);
    let set = |name: &str| text(&format!("@{name}"));
    let ether_type = |name: &str| eq(field("ether", "type"), text(name));
    let [count, drop] = counted_drop();
    let mac = concat(vec![iifname(), field("ether", "saddr")]);
    doc.add_rule(CHAIN, vec![when(mac, Operator::NEQ, set(SET_MAC)), count.clone(), drop.clone()]);
    let sender = concat(vec![iifname(), field("arp", "saddr ether"), field("arp", "saddr ip")]);
    let operation = eq(field("arp", "operation"), any_of(vec![text("request"), text("reply")]));
    doc.add_rule(CHAIN, vec![ether_type("arp"), operation, eq(sender, set(SET_SRC)), ACCEPT]);
    let source = concat(vec![iifname(), field("ether", "saddr"), field("ip", "saddr")]);
    doc.add_rule(CHAIN, vec![ether_type("ip"), eq(source, set(SET_SRC)), ACCEPT]);
    doc.add_rule(CHAIN, vec![count, drop]);
}

/// Guests go out masqueraded; nothing comes in but answers and forwarded ports; the host answers a ping.
fn routed(doc: &mut Doc<'_>, network: &BaseNet) {
    let bridge = network.bridge.as_str();
    let outside = when(meta(MetaKey::Oifname), Operator::NEQ, text(bridge));
    let ours = eq(field("ip", "saddr"), prefix(network.subnet));
    doc.add_rule("postrouting", vec![ours, outside, Statement::Masquerade(None)]);

    let [count, drop] = counted_drop();
    if network.isolate {
        doc.add_rule("forward", vec![from(bridge), to(bridge), count.clone(), drop.clone()]);
    } else {
        doc.add_rule("forward", vec![from(bridge), to(bridge), ACCEPT]);
    }
    for net in &network.egress_deny {
        let there = eq(field("ip", "daddr"), prefix(*net));
        doc.add_rule("forward", vec![from(bridge), there, count.clone(), drop.clone()]);
    }
    doc.add_rule("forward", vec![to(bridge), established(), ACCEPT]);
    doc.add_rule("forward", vec![to(bridge), when(ct("status"), Operator::IN, text("dnat")), ACCEPT]);
    doc.add_rule("forward", vec![to(bridge), count.clone(), drop.clone()]);

    doc.add_rule("input", vec![from(bridge), established(), ACCEPT]);
    let ping = eq(field("icmp", "type"), text("echo-request"));
    doc.add_rule("input", vec![from(bridge), ping, ACCEPT]);
    doc.add_rule("input", vec![from(bridge), count, drop]);
}

/// The elements of ports, by set.
fn elements(table: &str, ports: &[&Port]) -> Vec<NfListObject<'static>> {
    if ports.is_empty() {
        return Vec::new();
    }
    let element = |set: &'static str, make: &dyn Fn(&Port) -> Expr| {
        NfListObject::Element(Element {
            family: NfFamily::Bridge,
            table: Cow::Owned(table.to_owned()),
            name: set.into(),
            elem: ports.iter().map(|port| make(port)).collect::<Vec<_>>().into(),
        })
    };
    vec![
        element(SET_MAC, &|p| concat(vec![text(&p.tap), text(&p.mac)])),
        element(SET_SRC, &|p| concat(vec![text(&p.tap), text(&p.mac), text(&p.ipv4.to_string())])),
        element(SET_IF, &|p| text(&p.tap)),
    ]
}

/// One transaction that makes exactly `add` present and `remove` absent, whatever was there.
fn change(table: &str, add: &[&Port], remove: &[&Port]) -> Nftables<'static> {
    let mut batch = Batch::new();
    // Deleting what is not there would fail the transaction; adding what is there does not.
    let gone = elements(table, remove);
    for element in gone.iter().cloned() {
        batch.add(element);
    }
    for element in gone {
        batch.delete(element);
    }
    for element in elements(table, add) {
        batch.add(element);
    }
    batch.to_nftables()
}

impl Nft {
    /// Transactions on `table`, run with `program`.
    #[must_use]
    pub fn new(program: PathBuf, table: String) -> Self {
        Self { program, table }
    }

    /// Name of the tables.
    #[must_use]
    pub fn table(&self) -> &str {
        &self.table
    }

    /// Makes the tables, or brings those that are there into this state; elements stay.
    ///
    /// # Errors
    /// `nft` fails.
    pub async fn ensure_base(&self, networks: &[BaseNet]) -> Result<(), NftError> {
        self.apply("lay the base", &base(&self.table, networks)).await
    }

    /// Adds and removes ports in one transaction; both may be so already.
    ///
    /// # Errors
    /// `nft` fails; nothing was changed.
    pub async fn change(&self, add: &[&Port], remove: &[&Port]) -> Result<(), NftError> {
        if add.is_empty() && remove.is_empty() {
            return Ok(());
        }
        self.apply("change ports", &change(&self.table, add, remove)).await
    }

    /// The TAPs that have elements; empty if there is no table.
    ///
    /// # Errors
    /// `nft` fails.
    pub async fn taps(&self) -> Result<Vec<String>, NftError> {
        let args = ["-j", "list", "set", "bridge", &self.table, SET_IF];
        let said = match self.run("list ports", &args, None).await {
            Err(NftError::Refused { said, .. }) if said.contains("No such file") => return Ok(Vec::new()),
            other => other?,
        };
        let listed: Nftables<'_> =
            serde_json::from_str(&said).map_err(|source| NftError::Json { step: "read", source })?;
        let mut taps = Vec::new();
        for object in listed.objects.iter() {
            if let NfObject::ListObject(NfListObject::Set(set)) = object
                && set.name == SET_IF
            {
                let names = set.elem.iter().flat_map(|elements| elements.iter());
                taps.extend(names.filter_map(|element| match element {
                    Expression::String(name) => Some(name.to_string()),
                    _ => None,
                }));
            }
        }
        Ok(taps)
    }

    /// Removes both tables; they may be gone already.
    ///
    /// # Errors
    /// `nft` fails.
    pub async fn teardown(&self) -> Result<(), NftError> {
        let mut batch = Batch::new();
        for family in [NfFamily::Bridge, NfFamily::INet] {
            let table = Table { family, name: Cow::Owned(self.table.clone()), handle: None };
            // Added first: deleting what is not there would fail the transaction.
            batch.add(NfListObject::Table(table.clone()));
            batch.delete(NfListObject::Table(table));
        }
        self.apply("remove the tables", &batch.to_nftables()).await
    }

    async fn apply(&self, step: &'static str, document: &Nftables<'_>) -> Result<(), NftError> {
        let json =
            serde_json::to_string(document).map_err(|source| NftError::Json { step: "written", source })?;
        self.run(step, &["-j", "-f", "-"], Some(json)).await.map(|_| ())
    }

    async fn run(
        &self,
        step: &'static str,
        args: &[&str],
        input: Option<String>,
    ) -> Result<String, NftError> {
        let failed = |source: io::Error| {
            let program = self.program.clone();
            match source.kind() {
                io::ErrorKind::NotFound => NftError::Missing { program, source },
                _ => NftError::Run { program, source },
            }
        };
        let stdin = if input.is_some() { Stdio::piped() } else { Stdio::null() };
        let mut child = Command::new(&self.program)
            .args(args)
            .stdin(stdin)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(failed)?;
        let stdin = child.stdin.take();
        let work = async {
            let write = async {
                if let (Some(mut stdin), Some(input)) = (stdin, input) {
                    // A refusal may close the pipe early: what it says then counts.
                    let _ = stdin.write_all(input.as_bytes()).await;
                }
            };
            let ((), output) = tokio::join!(write, child.wait_with_output());
            output
        };
        let output =
            tokio::time::timeout(DEADLINE, work).await.map_err(|_| NftError::Silent)?.map_err(failed)?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let mut said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        said.truncate(said.floor_char_boundary(2048));
        if said.is_empty() {
            said = output.status.to_string();
        }
        Err(NftError::Refused { step, said })
    }
}
