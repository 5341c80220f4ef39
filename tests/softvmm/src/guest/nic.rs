//! The interfaces of a guest of processes.
//!
//! Pid 1 makes a TAP of its own in the guest's network namespace, where it is `eth0` and so on, and hands its other
//! end out with its first word. The parent carries frames between that end and the host's TAP.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::tap;

/// The largest frame with its header; nothing is offloaded, so none is longer than the MTU.
const FRAME: usize = 10_240;
/// No guest has more interfaces.
const MOST: usize = 16;

/// Makes interface `index` with its MAC; the first has the address of the kernel's `ip=` option.
///
/// # Errors
/// The kernel refuses.
pub fn make(index: usize, mac: &str, mtu: Option<u32>, cmdline: &str) -> io::Result<OwnedFd> {
    let name = format!("eth{index}");
    let file = tap::open()?;
    tap::attach(&file, &name, false)?;
    // Nobody asked for traffic of its own, which a thousand guests would make much of.
    let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6"), "1");
    let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
    let fd = socket.as_raw_fd();
    let octets = mac.split(':').map(|part| u8::from_str_radix(part, 16).map_err(io::Error::other));
    let octets = octets.collect::<io::Result<Vec<u8>>>()?;
    let mut request = tap::request(&name);
    // SAFETY: `sockaddr` is plain data for which all zeroes is a value.
    let mut address: libc::sockaddr = unsafe { std::mem::zeroed() };
    address.sa_family = libc::ARPHRD_ETHER;
    for (to, from) in address.sa_data.iter_mut().zip(octets) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_hwaddr = address;
    // SAFETY: here and below the descriptor is open, and the kernel only reads the request.
    unsafe { ioctl::set_mac(fd, &raw const request) }?;
    if let Some(mtu) = mtu.and_then(|mtu| i32::try_from(mtu).ok()) {
        request.ifr_ifru.ifru_mtu = mtu;
        // SAFETY: as above.
        unsafe { ioctl::set_mtu(fd, &raw const request) }?;
    }
    let given = cmdline.split(' ').find_map(|word| word.strip_prefix("ip=")).filter(|_| index == 0);
    let given: Vec<&str> = given.unwrap_or_default().split(':').collect();
    let part = |at: usize| given.get(at).and_then(|text| text.parse::<Ipv4Addr>().ok());
    if let (Some(own), Some(mask)) = (part(0), part(3)) {
        request.ifr_ifru.ifru_addr = inet(own);
        // SAFETY: as above.
        unsafe { ioctl::set_address(fd, &raw const request) }?;
        request.ifr_ifru.ifru_netmask = inet(mask);
        // SAFETY: as above.
        unsafe { ioctl::set_mask(fd, &raw const request) }?;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as i16;
    // SAFETY: as above.
    unsafe { ioctl::set_flags(fd, &raw const request) }?;
    if let Some(gateway) = part(2) {
        // SAFETY: `rtentry` is plain data for which all zeroes is a value.
        let mut route: libc::rtentry = unsafe { std::mem::zeroed() };
        route.rt_dst = inet(Ipv4Addr::UNSPECIFIED);
        route.rt_genmask = inet(Ipv4Addr::UNSPECIFIED);
        route.rt_gateway = inet(gateway);
        route.rt_flags = (libc::RTF_UP | libc::RTF_GATEWAY) as libc::c_ushort;
        // SAFETY: as above.
        unsafe { ioctl::add_route(fd, &raw const route) }?;
    }
    Ok(file.into())
}

mod ioctl {
    nix::ioctl_write_ptr_bad!(set_mac, libc::SIOCSIFHWADDR, libc::ifreq);
    nix::ioctl_write_ptr_bad!(set_mtu, libc::SIOCSIFMTU, libc::ifreq);
    nix::ioctl_write_ptr_bad!(set_address, libc::SIOCSIFADDR, libc::ifreq);
    nix::ioctl_write_ptr_bad!(set_mask, libc::SIOCSIFNETMASK, libc::ifreq);
    nix::ioctl_write_ptr_bad!(set_flags, libc::SIOCSIFFLAGS, libc::ifreq);
    nix::ioctl_write_ptr_bad!(add_route, libc::SIOCADDRT, libc::rtentry);
}

fn inet(address: Ipv4Addr) -> libc::sockaddr {
    // SAFETY: `sockaddr` is plain data for which all zeroes is a value.
    let mut found: libc::sockaddr = unsafe { std::mem::zeroed() };
    found.sa_family = libc::AF_INET as libc::sa_family_t;
    // As in `sockaddr_in`: a port of two bytes, then the address.
    for (to, from) in found.sa_data.iter_mut().skip(2).zip(address.octets()) {
        *to = from as libc::c_char;
    }
    found
}

/// Says a byte with descriptors.
///
/// # Errors
/// The other end is gone.
pub fn say(control: &File, word: u8, ends: &[OwnedFd]) -> io::Result<()> {
    let fds: Vec<RawFd> = ends.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&fds)];
    let with: &[ControlMessage<'_>] = if fds.is_empty() { &[] } else { &rights };
    sendmsg::<()>(control.as_raw_fd(), &[IoSlice::new(&[word])], with, MsgFlags::empty(), None)?;
    Ok(())
}

/// Hears a byte with descriptors.
///
/// # Errors
/// The other end is gone.
pub async fn hear(control: &UnixStream) -> io::Result<(u8, Vec<OwnedFd>)> {
    control.async_io(Interest::READABLE, || receive(control.as_raw_fd())).await
}

fn receive(fd: RawFd) -> io::Result<(u8, Vec<OwnedFd>)> {
    let mut word = [0];
    let mut space = nix::cmsg_space!([RawFd; MOST]);
    let mut parts = [IoSliceMut::new(&mut word)];
    let received = recvmsg::<()>(fd, &mut parts, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)?;
    let mut ends = Vec::new();
    for message in received.cmsgs()? {
        if let ControlMessageOwned::ScmRights(fds) = message {
            // SAFETY: the kernel has just made these descriptors for us alone.
            ends.extend(fds.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }
    if received.bytes == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok((word[0], ends))
}

/// Carries frames between a TAP of the host and the end of a guest's, except while `paused`.
///
/// # Errors
/// The runtime does not take them.
pub fn carry(host: &File, guest: OwnedFd, paused: &watch::Receiver<bool>) -> io::Result<JoinHandle<()>> {
    // SAFETY: each file moves into its registration and is closed after it, so that its number cannot come to mean
    // another file while the runtime watches it.
    let host = Arc::new(unsafe { AsyncFd::register(host.try_clone()?) }?);
    // SAFETY: as above.
    let guest = Arc::new(unsafe { AsyncFd::register(File::from(guest)) }?);
    let (there, back) = (
        one_way(Arc::clone(&host), Arc::clone(&guest), paused.clone()),
        one_way(guest, host, paused.clone()),
    );
    Ok(tokio::spawn(async move {
        // A device that is gone ends both.
        tokio::select! {
            _ = there => {}
            _ = back => {}
        }
    }))
}

async fn one_way(
    from: Arc<AsyncFd<File>>,
    to: Arc<AsyncFd<File>>,
    mut paused: watch::Receiver<bool>,
) -> io::Result<()> {
    let mut frame = vec![0; FRAME];
    loop {
        if paused.wait_for(|paused| !paused).await.is_err() {
            return Ok(());
        }
        let mut ready = from.readable().await?;
        match ready.try_io(|from| from.get_ref().read(&mut frame)) {
            // An interface that is down, or a queue that is full, loses frames, as they do.
            Ok(Ok(n)) => drop(to.get_ref().write(&frame[..n])),
            Ok(Err(error)) => return Err(error),
            Err(_) => {}
        }
    }
}
