//! Carries bytes between clients and the vsock device, which is left alone while QEMU stands still.
//!
//! `vhost-device-vsock` 0.3.0 takes a byte, a hang-up or room for more from its socket as work to do, and its thread ends
//! for good if the guest's queues are not there at that moment, as between QEMU's `stop` and `cont`.

use std::io;
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::{OwnedRwLockWriteGuard, RwLock, RwLockReadGuard};
use tokio::time::{Instant, sleep};

const PIECE: usize = 64 << 10;
/// How long the device may take for what it was sent; what its guest has no room for stays anyway.
const PATIENCE: Duration = Duration::from_millis(500);
const LOOK: Duration = Duration::from_millis(5);

/// Open while the device may be spoken to.
#[derive(Debug, Clone, Default)]
pub struct Gate {
    open: Arc<RwLock<()>>,
    streams: Arc<Mutex<Vec<Weak<UnixStream>>>>,
}

/// The gate is closed for as long as this is kept.
#[derive(Debug)]
pub struct Closed(#[expect(dead_code, reason = "held, not looked at")] OwnedRwLockWriteGuard<()>);

impl Gate {
    /// Waits until it is open, and keeps it open.
    pub async fn pass(&self) -> RwLockReadGuard<'_, ()> {
        self.open.read().await
    }

    /// Closes it, and waits a moment for the device to have taken what it was sent.
    pub async fn close(&self) -> Closed {
        let closed = Arc::clone(&self.open).write_owned().await;
        let due = Instant::now() + PATIENCE;
        while self.unread() && Instant::now() < due {
            sleep(LOOK).await;
        }
        Closed(closed)
    }

    fn unread(&self) -> bool {
        let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        streams.retain(|stream| stream.strong_count() > 0);
        streams.iter().filter_map(Weak::upgrade).any(|stream| waiting(&stream) > 0)
    }

    fn know(&self, stream: &Arc<UnixStream>) {
        let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        streams.retain(|stream| stream.strong_count() > 0);
        streams.push(Arc::downgrade(stream));
    }
}

/// What the other end has not read, as it lies in memory.
fn waiting(stream: &UnixStream) -> libc::c_int {
    let mut count = 0;
    // SAFETY: the descriptor is open, and the kernel writes one number to where it is told.
    let failed = unsafe { libc::ioctl(stream.as_raw_fd(), libc::TIOCOUTQ, &raw mut count) } < 0;
    if failed { 0 } else { count }
}

/// Carries both ways until both have ended, or one is broken.
pub async fn relay(host: UnixStream, device: UnixStream, gate: &Gate) {
    let device = Arc::new(device);
    gate.know(&device);
    let (mut from_host, mut to_host) = host.into_split();
    let inward = async {
        let mut piece = vec![0; PIECE];
        loop {
            let length = from_host.read(&mut piece).await?;
            if length == 0 {
                let _open = gate.pass().await;
                return std::os::unix::net::UnixStream::from(rustix::io::dup(&*device)?)
                    .shutdown(Shutdown::Write);
            }
            let mut rest = &piece[..length];
            while !rest.is_empty() {
                device.writable().await?;
                let _open = gate.pass().await;
                match device.try_write(rest) {
                    Ok(sent) => rest = &rest[sent..],
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => return Err(error),
                }
            }
        }
    };
    let outward = async {
        let mut piece = vec![0; PIECE];
        loop {
            device.readable().await?;
            let read = {
                let _open = gate.pass().await;
                device.try_read(&mut piece)
            };
            match read {
                Ok(0) => return to_host.shutdown().await,
                Ok(length) => to_host.write_all(&piece[..length]).await?,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    };
    let _ = tokio::try_join!(inward, outward);
    let _open = gate.pass().await;
    drop(device);
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;

    /// A client, the device that it is carried to, and what carries.
    fn carried(gate: &Gate) -> (UnixStream, UnixStream, tokio::task::JoinHandle<()>) {
        let ((client, host), (device, there)) = (UnixStream::pair().unwrap(), UnixStream::pair().unwrap());
        let gate = gate.clone();
        (client, there, tokio::spawn(async move { relay(host, device, &gate).await }))
    }

    #[tokio::test]
    async fn nothing_moves_while_the_gate_is_closed_and_all_of_it_after() {
        let gate = Gate::default();
        let (mut client, mut there, carrying) = carried(&gate);
        client.write_all(b"one").await.unwrap();
        let mut said = [0; 3];
        there.read_exact(&mut said).await.unwrap();
        assert_eq!(&said, b"one");

        let closed = gate.close().await;
        client.write_all(b"two").await.unwrap();
        there.write_all(b"out").await.unwrap();
        client.shutdown().await.unwrap();
        timeout(Duration::from_millis(100), there.read(&mut [0; 1])).await.unwrap_err();
        assert!(waiting(&there) > 0, "not read");
        assert!(!carrying.is_finished());
        drop(closed);
        there.read_exact(&mut said).await.unwrap();
        assert_eq!(&said, b"two");
        assert_eq!(there.read(&mut [0]).await.unwrap(), 0, "and its end");
        client.read_exact(&mut said).await.unwrap();
        assert_eq!(&said, b"out");
        drop(there);
        timeout(Duration::from_secs(10), carrying).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn the_gate_waits_for_what_is_on_its_way_but_not_for_ever() {
        let gate = Gate::default();
        let (mut client, mut there, carrying) = carried(&gate);
        client.write_all(b"one").await.unwrap();
        there.readable().await.unwrap();
        drop(timeout(PATIENCE * 10, gate.close()).await.unwrap());
        there.read_exact(&mut [0; 3]).await.unwrap();
        drop((client, there));
        timeout(Duration::from_secs(10), carrying).await.unwrap().unwrap();
    }
}
