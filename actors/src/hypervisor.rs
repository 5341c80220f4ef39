//! Everything that touches a VMM: its configuration, process, API, events and end.
//!
//! A library on tokio without actors; the VM actor calls it from tracked tasks. The order of a start is
//! [`run_dir`] → [`cgroup`] → [`process::launch`] (holder and VMM, until the API answers) →
//! [`api::ApiClient::create`] with [`config::vm_config`] → `boot`; the order of an end is
//! [`stop::stop_ladder`] → [`process::VmmProcess::wait_exit`] → [`cause`].
//!
//! The VMM is not trusted: replies, events and files are bounded, and peers are checked by pid. What it says
//! in an event is a hint; `vm.info` counts.

pub mod api;
pub mod cause;
pub mod cgroup;
pub mod config;
pub mod confine;
pub mod cores;
pub mod events;
pub mod landlock;
pub mod launcher;
pub mod notify;
pub mod pidfd;
pub mod process;
pub mod record;
pub mod ring;
pub mod run_dir;
pub mod socket;
pub mod stop;
pub mod version;
