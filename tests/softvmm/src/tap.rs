//! TAP devices: attached by name, so that carrier, ownership and errors are real.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;

use serde_json::{Value, json};

use crate::config::NetConfig;
use crate::refusal::Cause;

const NAME_LIMIT: usize = 15;

nix::ioctl_readwrite_bad!(
    /// Attaches a descriptor of `/dev/net/tun` to a device.
    tun_set_iff,
    libc::TUNSETIFF,
    libc::ifreq
);

nix::ioctl_readwrite_bad!(
    /// Asks how long the packets of an interface may be.
    get_mtu,
    libc::SIOCGIFMTU,
    libc::ifreq
);

/// An attached TAP. Dropping it takes the carrier away; the device stays if it is persistent.
#[derive(Debug)]
pub struct Tap {
    name: String,
    file: File,
}

impl Tap {
    /// Attaches to the device of a configuration; without a name the system chooses one.
    ///
    /// # Errors
    /// The chain of the real one: too long a name, no such device and no right to make it, busy.
    pub fn attach(config: &NetConfig) -> Result<Self, Cause> {
        let failed = |why: &dyn std::fmt::Display| {
            let outer =
                ["Error from device manager", "Cannot create virtio-net device", "Failed to open taps"];
            Cause::new(outer).because("Open tap device failed").because(why)
        };
        let name = config.tap.clone().unwrap_or_else(|| "vmtap%d".into());
        if name.len() > NAME_LIMIT {
            let limit = format!("Interface name too long (max length is {NAME_LIMIT}): {name}");
            return Err(failed(&limit));
        }
        check_kind(&name, config.queue_pairs() > 1).map_err(|e| {
            let outer =
                ["Error from device manager", "Cannot create virtio-net device", "Failed to open taps"];
            Cause::new(outer).because(e)
        })?;
        let file = open().map_err(|e| failed(&"Couldn't open /dev/net/tun").because(e))?;
        let name = attach(&file, &name, config.queue_pairs() > 1)
            .map_err(|e| failed(&"Unable to configure tap interface").because(e))?;
        Ok(Self { name, file })
    }

    /// Its end.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Frames and bytes, seen from the guest: what the host sends to the device the guest receives.
    pub fn counters(&self) -> Value {
        counters(&self.name)
    }
}

/// Whether a TAP that is there is for as many queues as the configuration has.
fn check_kind(name: &str, several: bool) -> Result<(), &'static str> {
    let flags = std::fs::read_to_string(format!("/sys/class/net/{name}/tun_flags")).ok();
    let flags = flags.and_then(|text| i32::from_str_radix(text.trim().trim_start_matches("0x"), 16).ok());
    match flags.map(|flags| flags & libc::IFF_MULTI_QUEUE != 0) {
        Some(true) if !several => Err("Error related to the multiqueue support (no support device side)"),
        Some(false) if several => Err("Error related to the multiqueue support (no support TAP side)"),
        _ => Ok(()),
    }
}

/// The counters of a TAP by its name; zero for what cannot be read.
pub fn counters(name: &str) -> Value {
    let read = |what: &str| -> u64 {
        let path = format!("/sys/class/net/{name}/statistics/{what}");
        std::fs::read_to_string(path).ok().and_then(|s| s.trim().parse().ok()).unwrap_or(0)
    };
    json!({
        "rx_bytes": read("tx_bytes"), "rx_frames": read("tx_packets"),
        "tx_bytes": read("rx_bytes"), "tx_frames": read("rx_packets"),
    })
}

/// The longest packet that passes a TAP, which a guest is told; nothing if it cannot be asked.
#[must_use]
pub fn mtu(name: &str) -> Option<u32> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").ok()?;
    let mut request = request(name);
    // SAFETY: the socket is open, and the argument is the address of an `ifreq` that lives across the call.
    unsafe { get_mtu(socket.as_raw_fd(), &raw mut request) }.ok()?;
    // SAFETY: the kernel has written this part of the union.
    u32::try_from(unsafe { request.ifr_ifru.ifru_mtu }).ok()
}

/// Opens the device that TAPs are made with.
pub(crate) fn open() -> io::Result<File> {
    let flags = libc::O_NONBLOCK | libc::O_CLOEXEC;
    OpenOptions::new().read(true).write(true).custom_flags(flags).open("/dev/net/tun")
}

/// A request about the interface of that name.
pub(crate) fn request(name: &str) -> libc::ifreq {
    // SAFETY: `ifreq` is plain data for which all zeroes is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request
}

/// Attaches a descriptor of the device to a TAP, which is made if it is not there; gives its name.
pub(crate) fn attach(file: &File, name: &str, multi_queue: bool) -> io::Result<String> {
    let mut request = request(name);
    let multi = if multi_queue { libc::IFF_MULTI_QUEUE } else { 0 };
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | multi) as i16;
    // SAFETY: the descriptor is open, and the argument is the address of an `ifreq` that lives
    // across the call; the kernel writes the name of the device into it and nothing beyond.
    unsafe { tun_set_iff(file.as_raw_fd(), &raw mut request) }.map_err(io::Error::from)?;
    let bytes: Vec<u8> = request.ifr_name.iter().take_while(|c| **c != 0).map(|c| *c as u8).collect();
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
