//! Traffic of guests: a place outside the host to talk to, what a guest sends, and what arrives of it.

use std::collections::BTreeMap;
use std::fs::File;
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use drover_schemas::RequestId;
use drover_schemas::body::guest::{ExecReply, ExecResult};
use drover_schemas::body::status::{NicStatus, VmStatus};
use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, socket};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::client::Bus;
use crate::netns::{NetNs, current, ip};
use crate::wait::{PATIENCE, patience_factor, until};

/// The host's address on the way outside.
pub const HOST: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// The address of who is outside.
pub const OUTSIDE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);

/// How long somebody who answers may take; who does not is waited for as long.
const MOMENT: Duration = Duration::from_secs(3);

/// Sends frames in rounds, each kind once, the guest's own last. Arguments: MAC, address, gateway, a foreign address.
const SPEAKER: &str = r#"
import socket, struct, sys, time
mac = bytes.fromhex(sys.argv[1].replace(":", ""))
own, gateway, foreign = (socket.inet_aton(a) for a in sys.argv[2:5])
everybody, wrong_mac = b"\xff" * 6, mac[:5] + bytes([mac[5] ^ 1])
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
s.bind(("eth0", 0))

def udp(mac, source, mark, ports=(9, 9), vlan=b""):
    body = struct.pack("!HHHH", *ports, 8 + len(mark), 0) + mark
    head = lambda check: struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(body), 0, 0, 64, 17, check, source, gateway)
    total = sum(struct.unpack("!10H", head(0)))
    head = head(~((total & 0xffff) + (total >> 16)) & 0xffff)
    return everybody + mac + vlan + b"\x08\x00" + head + body

def arp(mac, source, mark):
    return everybody + mac + b"\x08\x06\x00\x01\x08\x00\x06\x04\x00\x02" + mac + source + everybody + gateway + mark

n = 0
while True:
    n += 1
    mark = lambda kind: b"drover %s %d;" % (kind, n)
    for frame in [
        udp(wrong_mac, own, mark(b"mac")),
        udp(mac, foreign, mark(b"address")),
        udp(mac, foreign, mark(b"vlan"), vlan=b"\x81\x00\x00\x07"),
        arp(mac, foreign, mark(b"arp")),
        arp(wrong_mac, own, mark(b"arp-mac")),
        everybody + mac + b"\x86\xdd\x60\x00\x00\x00\x00\x10\x3a\xff" + bytes(32) + b"\x86" + bytes(15) + mark(b"ipv6"),
        udp(mac, own, mark(b"dhcp"), ports=(67, 68)),
        udp(mac, own, mark(b"own")),
    ]:
        try:
            s.send(frame)
        except OSError:
            pass
    time.sleep(0.005)
"#;

/// Connects, and says back what it hears. Arguments: address, port.
const TALKER: &str = r#"
import socket, sys
s = socket.create_connection((sys.argv[1], int(sys.argv[2])))
while data := s.recv(4096):
    s.sendall(data)
"#;

/// Says its name and what it hears to whoever connects or sends a datagram. Arguments: name, port.
const SERVER: &str = r#"
import selectors, socket, sys
name, port = sys.argv[1].encode(), int(sys.argv[2])
tcp = socket.create_server(("0.0.0.0", port))
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.bind(("0.0.0.0", port))
s = selectors.DefaultSelector()
for each in (tcp, udp):
    s.register(each, selectors.EVENT_READ)
while True:
    for key, _ in s.select():
        if key.fileobj is udp:
            said, who = udp.recvfrom(4096)
            udp.sendto(name + said, who)
        elif key.fileobj is tcp:
            line, _ = tcp.accept()
            s.register(line, selectors.EVENT_READ)
            line.sendall(name)
        else:
            try:
                said = key.fileobj.recv(4096)
                key.fileobj.sendall(said)
            except OSError:
                said = b""
            if not said:
                s.unregister(key.fileobj)
                key.fileobj.close()
"#;

/// A namespace that the host reaches by a link, as a network outside.
#[derive(Debug)]
pub struct Outside {
    namespace: NetNs,
}

impl Outside {
    /// Makes one beside the host, which is in the namespace of this thread.
    ///
    /// # Panics
    /// It cannot be made.
    #[must_use]
    pub fn beside_host() -> Self {
        let namespace = NetNs::make();
        let (host, name) = (current().expect("a thread of a world"), namespace.name().to_owned());
        ip(&["-n", &host, "link", "add", "out0", "type", "veth", "peer", "name", "in0", "netns", &name]);
        for (namespace, link, address) in [(&host, "out0", HOST), (&name, "in0", OUTSIDE)] {
            ip(&["-n", namespace, "address", "add", &format!("{address}/24"), "dev", link]);
            ip(&["-n", namespace, "link", "set", link, "up"]);
        }
        Self { namespace }
    }

    /// Carries `body` out there.
    ///
    /// # Panics
    /// `body` does.
    pub fn within<T: Send + 'static>(&self, body: impl FnOnce() -> T + Send + 'static) -> T {
        let file =
            File::open(format!("/run/netns/{}", self.namespace.name())).expect("the namespace is there");
        let thread = std::thread::spawn(move || {
            setns(&file, CloneFlags::CLONE_NEWNET).expect("enter the namespace");
            body()
        });
        thread.join().expect("it does not fail")
    }

    /// Listens there.
    ///
    /// # Panics
    /// It cannot.
    #[must_use]
    pub fn listen(&self) -> TcpListener {
        self.within(|| TcpListener::bind((OUTSIDE, 0)).expect("listen"))
    }

    /// Takes and sends datagrams there; none for long is an error.
    ///
    /// # Panics
    /// It cannot.
    #[must_use]
    pub fn datagrams(&self) -> UdpSocket {
        let socket = self.within(|| UdpSocket::bind((OUTSIDE, 0)).expect("a socket"));
        socket.set_read_timeout(Some(PATIENCE * patience_factor())).expect("a socket");
        socket
    }
}

/// Runs a command in a guest to its end.
///
/// # Panics
/// It is not run.
pub async fn exec(bus: &Bus, vm: &str, argv: &[&str]) -> ExecResult {
    let reply = bus.ask(&format!("vm.{vm}.guest.exec"), &json!({"argv": argv})).get().await;
    match reply.expect("the guest answers") {
        ExecReply::Result(result) => result,
        other => panic!("no result: {other:?}"),
    }
}

/// Creates a VM with one interface, and waits for its agent.
///
/// # Panics
/// It is refused.
pub async fn up_at(bus: &Bus, name: &str, nic: Value) -> VmStatus {
    bus.create(name, json!({"spec": {"nics": [nic]}, "wait": "agent"})).await.expect("it is created").vm
}

/// Whether a guest reaches an address.
pub async fn pings(bus: &Bus, vm: &str, address: &str) -> bool {
    exec(bus, vm, &["ping", "-c", "1", "-W", "2", address]).await.exit_code == Some(0)
}

/// Starts a program of Python in a guest, which goes on by itself.
///
/// # Panics
/// It is not started.
pub async fn start_python(bus: &Bus, vm: &str, program: &str, args: &[&str]) {
    let mut argv = vec!["python3", "-c", program];
    argv.extend(args);
    let body = json!({"argv": argv, "detach": true});
    let ask = bus.ask(&format!("vm.{vm}.guest.exec"), &body).id(RequestId::generate());
    let _: ExecReply = ask.get().await.expect("it starts");
}

/// Lets a guest serve a port of TCP and UDP under a name of one byte, and waits until it does.
pub async fn serve(bus: &Bus, vm: &str, name: char, port: u16) {
    start_python(bus, vm, SERVER, &[&name.to_string(), &port.to_string()]).await;
    let asked = format!("import socket; socket.create_connection((\"127.0.0.1\", {port})).recv(1)");
    until("the guest serves", async || {
        let done = exec(bus, vm, &["python3", "-c", &asked]).await;
        (done.exit_code == Some(0)).then_some(())
    })
    .await;
}

/// Creates a VM with forwards, which serves port 80 under its name of one byte.
///
/// # Panics
/// It is refused.
pub async fn server(bus: &Bus, name: char, forwards: Value) -> VmStatus {
    let spec = json!({"nics": [{"forwards": forwards}]});
    let body = json!({"spec": spec, "wait": "agent"});
    let vm = bus.create(&name.to_string(), body).await.expect("it is created").vm;
    serve(bus, &name.to_string(), name, 80).await;
    vm
}

/// Who answers at an address over TCP, if somebody does within a moment.
#[must_use]
pub fn who_tcp(to: (Ipv4Addr, u16)) -> Option<char> {
    use std::io::Read as _;
    let mut line =
        std::net::TcpStream::connect_timeout(&SocketAddrV4::new(to.0, to.1).into(), MOMENT).ok()?;
    line.set_read_timeout(Some(MOMENT)).expect("a socket");
    let mut name = [0];
    line.read_exact(&mut name).ok()?;
    Some(name[0].into())
}

/// Who answers a datagram, if somebody does within a moment.
#[must_use]
pub fn who_udp(to: (Ipv4Addr, u16)) -> Option<char> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).expect("a socket");
    socket.set_read_timeout(Some(MOMENT)).expect("a socket");
    socket.connect(to).expect("a socket");
    socket.send(b"!").ok()?;
    let mut said = [0; 2];
    socket.recv(&mut said).ok()?;
    Some(said[0].into())
}

/// Lets a guest speak in its own name and in false ones, until it ends.
pub async fn speak(bus: &Bus, vm: &str, nic: &NicStatus, foreign: &str) {
    start_python(bus, vm, SPEAKER, &[&nic.mac, &nic.ipv4, &nic.gateway, foreign]).await;
}

/// A connection that a guest made, and keeps up.
#[derive(Debug)]
pub struct Line(TcpStream);

impl Line {
    /// Lets a guest connect to somebody who listens.
    ///
    /// # Panics
    /// It does not.
    pub async fn open(bus: &Bus, vm: &str, listener: TcpListener) -> Self {
        let address = listener.local_addr().expect("an address");
        start_python(bus, vm, TALKER, &[&address.ip().to_string(), &address.port().to_string()]).await;
        listener.set_nonblocking(true).expect("a socket");
        let listener = tokio::net::TcpListener::from_std(listener).expect("a socket");
        let (stream, _) = timeout(PATIENCE * patience_factor(), listener.accept())
            .await
            .expect("in time")
            .expect("a guest");
        Self(stream)
    }

    /// Says something and waits for it to come back.
    ///
    /// # Panics
    /// The connection broke.
    pub async fn is_alive(&mut self) {
        let said = rand::random::<[u8; 8]>();
        let exchange = async {
            self.0.write_all(&said).await.expect("the connection lives");
            let mut heard = [0; 8];
            self.0.read_exact(&mut heard).await.expect("the connection lives");
            assert_eq!(heard, said);
        };
        timeout(PATIENCE * patience_factor(), exchange).await.expect("an answer in time");
    }
}

impl Line {
    /// Says something that does not come back within a moment.
    ///
    /// # Panics
    /// It does.
    pub async fn is_cut(mut self) {
        let exchange = async {
            self.0.write_all(b"!").await?;
            self.0.read_exact(&mut [0]).await
        };
        if let Ok(Ok(_)) = timeout(MOMENT, exchange).await {
            panic!("the connection lives");
        }
    }
}

/// What reaches the host's bridge of a guest that [`speak`]s.
#[derive(Debug)]
pub struct Ear(OwnedFd);

impl Ear {
    /// Listens at a bridge, in the namespace of this thread.
    ///
    /// # Panics
    /// There is none.
    #[must_use]
    pub fn at(bridge: &str) -> Self {
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let socket =
            socket(AddressFamily::Packet, SockType::Raw, flags, SockProtocol::EthAll).expect("a socket");
        let index = nix::net::if_::if_nametoindex(bridge).expect("the bridge is there");
        // SAFETY: `sockaddr_ll` is plain data for which all zeroes is a value.
        let mut address: nix::libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = nix::libc::AF_PACKET as u16;
        address.sll_protocol = (nix::libc::ETH_P_ALL as u16).to_be();
        address.sll_ifindex = index.cast_signed();
        // SAFETY: the socket is open, and the kernel only reads the address, whose length is given.
        let bound = unsafe {
            nix::libc::bind(
                socket.as_raw_fd(),
                (&raw const address).cast(),
                size_of::<nix::libc::sockaddr_ll>() as u32,
            )
        };
        assert_eq!(bound, 0, "bind to the bridge");
        let ear = Self(socket);
        // What it heard of other interfaces before.
        while ear.next().is_some() {}
        ear
    }

    /// The next frame of a guest: its kind and round.
    fn next(&self) -> Option<(String, u64)> {
        let mut frame = [0; 2048];
        loop {
            let length = match recv(self.0.as_raw_fd(), &mut frame, MsgFlags::empty()) {
                Ok(length) => length,
                Err(Errno::EAGAIN) => return None,
                // An interface went down, which is told once.
                Err(Errno::ENETDOWN) => continue,
                Err(error) => panic!("the ear: {error}"),
            };
            let text = String::from_utf8_lossy(&frame[..length]);
            let mark = text.split_once("drover ").and_then(|(_, rest)| rest.split_once(';'));
            let parts = mark.and_then(|(mark, _)| mark.split_once(' '));
            if let Some((kind, round)) = parts
                && let Ok(round) = round.parse()
            {
                return Some((kind.to_owned(), round));
            }
        }
    }

    /// Listens to what is sent from now on, for 20 rounds of the guest's own frames: how many came of each kind.
    ///
    /// # Panics
    /// The guest is not heard.
    pub async fn kinds(&self) -> BTreeMap<String, u64> {
        let mut round = 0;
        while let Some((_, next)) = self.next() {
            round = round.max(next);
        }
        // What was under way just now may be of the round after.
        let mut from = (round > 0).then_some(round + 2);
        let mut kinds = BTreeMap::new();
        until("the guest is heard in its own name", async || {
            while let Some((kind, round)) = self.next() {
                let first = *from.get_or_insert(round + 1);
                if round >= first {
                    *kinds.entry(kind).or_insert(0) += 1;
                }
            }
            kinds.get("own").is_some_and(|own| *own >= 20).then_some(())
        })
        .await;
        kinds
    }

    /// Panics unless the guest is heard in its own name, and in no other.
    ///
    /// # Panics
    /// As said.
    pub async fn hears_own_only(&self) {
        let kinds = self.kinds().await;
        assert_eq!(kinds.keys().collect::<Vec<_>>(), ["own"], "{kinds:?}");
    }
}
