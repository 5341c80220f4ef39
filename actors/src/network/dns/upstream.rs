//! Asks somebody outside. Each question has a socket and a number of its own, both chosen at random, and takes nothing
//! but its answer: who cannot see the question cannot answer it.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use super::zone::Outside;

/// How long one server may take.
const EACH: Duration = Duration::from_secs(2);
/// How long all of them may.
const ALL: Duration = Duration::from_secs(6);
/// The longest answer that a datagram brings.
const DATAGRAM: usize = 4096;

/// The answer, as its guest is told; `None` if nobody gave one in time. One server alone is asked twice.
pub async fn ask(outside: &Outside, upstreams: &[SocketAddr], by_stream: bool) -> Option<Vec<u8>> {
    let attempts =
        upstreams.iter().cycle().take(if upstreams.is_empty() { 0 } else { upstreams.len().max(2) });
    let all = async {
        for upstream in attempts {
            let one = async {
                if by_stream { stream(outside, *upstream).await } else { datagram(outside, *upstream).await }
            };
            match timeout(EACH, one).await {
                Ok(Ok(reply)) => return Some(reply),
                Ok(Err(failure)) => {
                    tracing::debug!(%upstream, error = %failure, "a server of names does not answer")
                }
                Err(_) => tracing::debug!(%upstream, "a server of names does not answer in time"),
            }
        }
        None
    };
    timeout(ALL, all).await.ok().flatten()
}

fn no_question() -> io::Error {
    io::Error::other("the question cannot be written")
}

async fn datagram(outside: &Outside, upstream: SocketAddr) -> io::Result<Vec<u8>> {
    let any = match upstream {
        SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    let socket = UdpSocket::bind((any, 0)).await?;
    // From then on the kernel takes datagrams of that server only.
    socket.connect(upstream).await?;
    let id = rand::random();
    socket.send(&outside.question(id).ok_or_else(no_question)?).await?;
    let mut buffer = vec![0; DATAGRAM];
    loop {
        let length = socket.recv(&mut buffer).await?;
        if let Some(reply) = outside.relayed(id, &buffer[..length], false) {
            return Ok(reply);
        }
    }
}

async fn stream(outside: &Outside, upstream: SocketAddr) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(upstream).await?;
    let id = rand::random();
    let question = outside.question(id).ok_or_else(no_question)?;
    let length = u16::try_from(question.len()).map_err(|_| no_question())?;
    stream.write_all(&[&length.to_be_bytes()[..], &question].concat()).await?;
    let mut reply = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut reply).await?;
    outside.relayed(id, &reply, true).ok_or_else(|| io::Error::other("the answer is to another question"))
}
