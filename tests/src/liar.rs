//! A liar in the place of the agent of a guest of processes.
//!
//! The guest's init is stopped and its agent killed; what then listens where the agent did, in the guest's own root, is
//! a thread of the test. Nothing between it and the daemon knows the difference.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::net::Shutdown;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use bytes::{BufMut as _, Bytes};
use drover_schemas::VmId;
use drover_schemas::guest::wire::{self, Decoder};
use drover_schemas::guest::{AgentFrame, AgentHello, GuestKind, HostFrame, Request, verb};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Gid, Pid, Uid, setfsgid, setfsuid};

use crate::node::Node;
use crate::wait::until;

/// One connection of the host, as the liar has it.
#[derive(Debug)]
pub struct Call {
    socket: UnixStream,
    decoder: Decoder,
    sent: Arc<AtomicU64>,
}

impl Call {
    /// The host's next frame.
    ///
    /// # Errors
    /// The host has hung up.
    pub fn hear(&mut self) -> io::Result<HostFrame> {
        loop {
            if let Some(frame) = self.decoder.frame().map_err(io::Error::other)? {
                return Ok(frame);
            }
            let mut piece = [0; 4096];
            let read = self.socket.read(&mut piece)?;
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.decoder.room().put_slice(&piece[..read]);
        }
    }

    /// Sends bytes, whatever they are.
    ///
    /// # Errors
    /// The host has hung up.
    pub fn raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.socket.write_all(bytes)?;
        self.sent.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Sends a frame.
    ///
    /// # Errors
    /// The host has hung up.
    pub fn say(&mut self, frame: &AgentFrame) -> io::Result<()> {
        self.raw(&bytes(frame))
    }

    /// Greets as an honest agent does.
    ///
    /// # Errors
    /// The host has hung up.
    pub fn greet(&mut self) -> io::Result<()> {
        self.hear()?;
        self.say(&AgentFrame::Hello(hello()))
    }

    /// Greets, and waits for the first request.
    ///
    /// # Errors
    /// The host has hung up.
    pub fn asked(&mut self) -> io::Result<Request> {
        self.greet()?;
        loop {
            if let HostFrame::Req(request) = self.hear()? {
                return Ok(request);
            }
        }
    }

    /// Says nothing more until the host hangs up.
    ///
    /// # Errors
    /// It has.
    pub fn silence(&mut self) -> io::Result<()> {
        loop {
            self.hear()?;
        }
    }
}

/// A frame as bytes.
///
/// # Panics
/// It is longer than a frame may be.
#[must_use]
pub fn bytes(frame: &AgentFrame) -> Bytes {
    wire::encode(frame).expect("a frame that fits")
}

/// The greeting of an agent that can do what every host asks for.
#[must_use]
pub fn hello() -> AgentHello {
    AgentHello {
        proto: 1,
        version: "0.0.1".into(),
        boot_id: "another-boot".into(),
        instance: "liar".into(),
        os: "linux".into(),
        arch: "x86_64".into(),
        kernel: String::new(),
        hostname: "guest".into(),
        allowed: None,
        capabilities: [verb::PING, verb::EXEC, verb::CONFIGURE].map(str::to_owned).to_vec(),
        guest: GuestKind::Process,
        stream_credit: 1_000,
        max_streams: 64,
    }
}

#[derive(Debug, Default)]
struct Shared {
    ends: AtomicBool,
    dials: AtomicU64,
    sent: Arc<AtomicU64>,
    open: Mutex<Vec<UnixStream>>,
}

/// Whoever is in an agent's place; the agent comes back when it is dropped.
#[derive(Debug)]
pub struct Liar {
    init: Pid,
    path: PathBuf,
    _folder: File,
    shared: Arc<Shared>,
    serves: Option<JoinHandle<()>>,
}

impl Liar {
    /// Takes the place of the agent of a VM: each connection of the host is given to `lie`.
    ///
    /// # Panics
    /// There is no such guest.
    pub async fn replace(
        host: &Node,
        vm_id: VmId,
        lie: impl Fn(&mut Call) -> io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        let (init, agent) = (guest_init(host, vm_id), agent_of(host, vm_id).expect("the agent runs"));
        // Or it would start another.
        kill(init, Signal::SIGSTOP).expect("the guest's init runs");
        until("the init stands still", async || (state(init) == Some('T')).then_some(())).await;
        kill(agent, Signal::SIGKILL).expect("the agent runs");
        until("the agent has ended", async || state(agent).is_none_or(|state| state == 'Z').then_some(()))
            .await;
        let folder = File::open(format!("/proc/{init}/root/run")).expect("the guest's folder of ports");
        let path = PathBuf::from(format!("/proc/self/fd/{}/vsock-1023.sock", folder.as_raw_fd()));
        let listener = bind(init, path.clone());
        let shared = Arc::new(Shared::default());
        let (serving, lie) = (Arc::clone(&shared), Arc::new(lie));
        let serves = std::thread::spawn(move || {
            for socket in listener.incoming() {
                if serving.ends.load(Ordering::Acquire) {
                    return;
                }
                let Ok(socket) = socket else { continue };
                serving.dials.fetch_add(1, Ordering::Relaxed);
                let mut open = serving.open.lock().unwrap_or_else(PoisonError::into_inner);
                open.extend(socket.try_clone().ok());
                drop(open);
                let (lie, sent) = (Arc::clone(&lie), Arc::clone(&serving.sent));
                let mut call = Call { socket, decoder: Decoder::default(), sent };
                std::thread::spawn(move || {
                    // The end of the connection is what a lie ends in.
                    let _ = lie(&mut call);
                    let _ = call.socket.shutdown(Shutdown::Both);
                });
            }
        });
        Self { init, path, _folder: folder, shared, serves: Some(serves) }
    }

    /// How often the host has come.
    #[must_use]
    pub fn dials(&self) -> u64 {
        self.shared.dials.load(Ordering::Relaxed)
    }

    /// Frames that were sent in all.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.shared.sent.load(Ordering::Relaxed)
    }
}

impl Drop for Liar {
    fn drop(&mut self) {
        self.shared.ends.store(true, Ordering::Release);
        // Wakes who waits for the next one; there is none once the guest has gone.
        let is_woken = UnixStream::connect(&self.path).is_ok();
        for socket in self.shared.open.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            let _ = socket.shutdown(Shutdown::Both);
        }
        if let Some(serves) = self.serves.take().filter(|_| is_woken) {
            let _ = serves.join();
        }
        // The init takes the socket away before it starts the agent.
        let _ = kill(self.init, Signal::SIGCONT);
    }
}

/// Listens in the guest's root as a process of the guest: nobody else's files may be there.
fn bind(init: Pid, path: PathBuf) -> UnixListener {
    let owner = fs::metadata(format!("/proc/{init}")).expect("the guest's init runs");
    let work = move || {
        // They are this thread's alone, and it ends.
        setfsgid(Gid::from_raw(owner.gid()));
        setfsuid(Uid::from_raw(owner.uid()));
        let _ = fs::remove_file(&path);
        UnixListener::bind(&path)
    };
    std::thread::spawn(work).join().expect("no panic").expect("a socket in the guest's folder of ports")
}

/// The letter of a process's state, and its parent.
fn stat(pid: i32) -> Option<(char, i32)> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut rest = text.rsplit_once(") ")?.1.split(' ');
    Some((rest.next()?.chars().next()?, rest.next()?.parse().ok()?))
}

/// The letter of a process's state.
#[must_use]
pub fn state(pid: Pid) -> Option<char> {
    stat(pid.as_raw()).map(|(state, _)| state)
}

fn children(parent: i32, name: &str) -> Vec<i32> {
    let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let named =
        |pid: &i32| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim_end() == name);
    pids.filter(|pid| stat(*pid).is_some_and(|(_, of)| of == parent)).filter(named).collect()
}

/// The first process of a guest of processes.
///
/// # Panics
/// It does not run.
#[must_use]
pub fn guest_init(host: &Node, vm_id: VmId) -> Pid {
    let vmm = host.vmms(vm_id)[0];
    Pid::from_raw(*children(vmm, "softvmm-init").first().expect("the guest's init runs"))
}

/// The agent of a guest of processes, while it runs.
#[must_use]
pub fn agent_of(host: &Node, vm_id: VmId) -> Option<Pid> {
    let fronts = children(guest_init(host, vm_id).as_raw(), "drover-front");
    let mut all = fronts.into_iter().flat_map(|front| children(front, "drover-agent"));
    let is_agent = |pid: &i32| {
        let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&command).contains("--listen")
    };
    all.find(is_agent).map(Pid::from_raw)
}
