//! What the end-to-end suites share: a host with its bus in a network namespace of its own.
//!
//! | module | holds |
//! |---|---|
//! | [`world`] | one test's namespace, bus, hosts and guests, and their end |
//! | [`netns`] | a network namespace that goes away again |
//! | [`node`] | one host: its folders, its configuration, its daemon |
//! | [`admin`] | metrics and health |
//! | [`audit`] | who did what, as the stream has it |
//! | [`certificates`] | authorities and what they sign |
//! | [`client`] | requests as any client writes them, and what comes back |
//! | [`clients`] | clients in other languages |
//! | [`cluster`] | three hosts and three servers behind links that can be cut |
//! | [`collector`] | a receiver of traces |
//! | [`contest`] | clients that want the same names, while anything fails, and what they were told |
//! | [`contract`] | the published contract, and what is wrong with a message |
//! | [`digest`] | files of bytes that repeat nowhere, and what they are known by |
//! | [`events`] | the log of events, checked as a log |
//! | [`flood`] | a tenant that asks for far too much |
//! | [`guest`] | a guest with a real kernel |
//! | [`https`] | a server of files that breaks off, is silent and lies |
//! | [`leak`] | what of a VM is still there |
//! | [`liar`] | whoever is in an agent's place |
//! | [`logins`] | the ways in which a server can ask who connects |
//! | [`next`] | a host of the next version |
//! | [`observer`] | all that hosts say and hear, held against the published contract |
//! | [`printed`] | a bus as `drover bus config` writes it, and its users |
//! | [`relay`] | a way to the bus that cuts, loses and rewrites |
//! | [`soak`] | random work, kills, and a model |
//! | [`stream`] | a client's end of a stream, frame by frame |
//! | [`traffic`] | what guests send, where to, and what arrives of it |
//! | [`wait`] | waiting for a level with a deadline |
//! | [`wire`] | messages cut from the protocol of NATS |
//!
//! A test names what it proves, runs its body with [`world::run`], and ends only what it started. Paths
//! come from `DROVER_BIN_DIR`, `DROVER_AGENT` and `DROVER_IMAGES`, which `tests/run.sh` sets; a test that
//! lacks one of them says `SKIP` and passes.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a harness fails its test by a panic that says where"
)]

pub mod admin;
pub mod audit;
pub mod certificates;
pub mod client;
pub mod clients;
pub mod cluster;
pub mod collector;
pub mod contest;
pub mod contract;
pub mod digest;
pub mod events;
pub mod fetched;
pub mod flood;
pub mod guest;
pub mod https;
pub mod leak;
pub mod liar;
pub mod logins;
pub mod netns;
pub mod next;
pub mod node;
pub mod observer;
pub mod printed;
mod programs;
pub mod registry;
pub mod relay;
pub mod soak;
pub mod stream;
pub mod tmux;
pub mod traffic;
pub mod wait;
pub mod wire;
pub mod world;
