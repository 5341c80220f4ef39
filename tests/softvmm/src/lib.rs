//! Cloud Hypervisor's command line and HTTP API over software emulation.
//!
//! drover is given a path to a `cloud-hypervisor` binary and drives it through its API socket, its
//! event monitor and its exit status. This crate is a program that can stand at that path on a
//! machine without hardware virtualisation. It keeps what the supervisor can see (the calls, their
//! codes and error arrays, the events, the sockets, the exits) and replaces what it cannot: the
//! guest runs in QEMU's software emulation, or, for load tests with hundreds of VMs, as processes
//! in their own namespaces.
//!
//! ```text
//!   api socket ──> http ──> api ──> vmm ──> guest ──┬─> qemu     (QEMU + vhost-device-vsock)
//!                                    │              └─> process  (namespaces + hybrid vsock)
//!              event monitor <───────┴─ serial
//! ```
//!
//! Everything runs on one thread. That is not only small: the parent-death signal of a helper fires
//! when the *thread* that started it ends, so helpers must be children of a thread that never does.
//!
//! What real Cloud Hypervisor v53 answers is recorded in `tests/conformance/` and replayed against
//! this program by its tests; where the two differ the real one is right.

pub mod api;
pub mod args;
pub mod config;
pub mod conformance;
pub mod events;
pub mod guest;
pub mod http;
pub mod misbehave;
pub mod refusal;
pub mod relay;
pub mod serial;
pub mod start;
pub mod tap;
pub mod vmm;
pub mod vsock;

/// The release whose behaviour is followed, as `vmm.ping` reports it in `version`.
pub const FOLLOWED_VERSION: &str = "53.0.0";

/// `build_version` of `vmm.ping` and the first line of `--version`: says plainly that this is not
/// the real one, with the same leading characters as the release it follows.
pub const BUILD_VERSION: &str = "v53.0.0-softvmm";
