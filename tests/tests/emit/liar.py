"""Takes the agent's place in a guest and lies: events beyond all bounds, on each connection in another way."""

import os
import signal
import socket
import struct
import sys

VSOCK = "/run/vsock-1023.sock"


def pack(value):
    """MessagePack, as much of it as frames have."""
    if isinstance(value, int):
        return b"\xcf" + struct.pack(">Q", value)
    if isinstance(value, bytes):
        return b"\xc6" + struct.pack(">I", len(value)) + value
    if isinstance(value, str):
        text = value.encode()
        return b"\xdb" + struct.pack(">I", len(text)) + text
    if isinstance(value, list):
        return b"\xdc" + struct.pack(">H", len(value)) + b"".join(map(pack, value))
    return b"\xde" + struct.pack(">H", len(value)) + b"".join(pack(k) + pack(v) for k, v in value.items())


def frame(t, **fields):
    body = pack({"t": t, **fields})
    return struct.pack(">I", len(body)) + body


def event(n, body=b"\x80", kind="a", log="lie"):
    return frame("event", log=log, n=n, time_unix_ms=2**64 - 1, uid=0, gid=0, pid=0, kind=kind, body=body)


HELLO = frame(
    "hello", proto=1, version="liar", boot_id="b", instance="i", os="linux", arch="x86_64", kernel="k", hostname="h",
    capabilities=["ping", "events"], guest="process", stream_credit=65536, max_streams=64,
)
# A million of them; what cannot be read, numbers that go backwards and leap, and another log each time; large ones.
MILLION = [event(n) for n in range(1000)] * 1000
CROOKED = [
    frame_
    for n in range(8)
    for frame_ in (event(n, b"\xc1"), event(n, kind="no such type"), event(2**64 - 1 - n), event(0), event(5, log=f"l{n}"))
]
LARGE = [event(1, bytes(100_000))] * 3000


def agents():
    """The real one, which is stopped so that nobody starts another."""
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            if open(f"/proc/{pid}/comm").read() == "drover-agent\n" and b"--listen" in open(f"/proc/{pid}/cmdline", "rb").read():
                yield int(pid)
        except OSError:
            pass


def main():
    for pid in agents():
        os.kill(pid, signal.SIGSTOP)
    os.unlink(VSOCK)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(VSOCK)
    listener.listen()
    print("ready", flush=True)
    for lies in [CROOKED, MILLION, LARGE] + [MILLION] * 1000:
        stream, _ = listener.accept()
        sent = 0
        try:
            stream.sendall(HELLO)
            for lie in lies:
                stream.sendall(lie)
                sent += len(lie)
            # Crooked events are few: whatever the host says to them, it is not heard, and then the link ends.
            stream.settimeout(2)
            while stream.recv(4096):
                pass
        except OSError:
            pass
        print(f"sent {sent} bytes", file=sys.stderr, flush=True)
        stream.close()


main()
