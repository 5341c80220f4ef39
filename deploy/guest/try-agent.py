#!/usr/bin/env python3
"""Speaks to a guest agent by hand, without a daemon. Needs the package `msgpack`.

  try-agent.py v.sock ping
  try-agent.py v.sock info
  try-agent.py v.sock exec -- sh -c 'uname -a; exit 3'
  try-agent.py v.sock put local /tmp/remote
  try-agent.py v.sock get /etc/os-release
  try-agent.py v.sock shutdown

SOCKET is the hypervisor's hybrid vsock socket; with --plain, an agent's own unix socket.
"""

import argparse
import hashlib
import json
import socket
import struct
import sys
import time

import msgpack

PORT = 1023
CREDIT = 1 << 20


class Agent:
    def __init__(self, path, plain, patience):
        deadline = time.monotonic() + patience
        while True:
            try:
                self.sock = self.dial(path, plain)
                break
            except OSError as error:
                if time.monotonic() > deadline:
                    sys.exit(f"no agent behind {path}: {error}")
                time.sleep(0.05)
        self.send({"t": "hello", "proto_min": 1, "proto_max": 1, "version": "try-agent"})
        self.hello = self.recv()
        if self.hello["t"] != "hello":
            sys.exit(f"refused: {self.hello}")

    @staticmethod
    def dial(path, plain):
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(path)
        if not plain:
            sock.sendall(f"CONNECT {PORT}\n".encode())
            line = b""
            while not line.endswith(b"\n"):
                byte = sock.recv(1)
                if not byte or len(line) > 32:
                    sock.close()
                    raise ConnectionError("nobody listens in the guest yet")
                line += byte
            if not line.startswith(b"OK "):
                raise ConnectionError(f"unexpected answer {line!r}")
        return sock

    def send(self, frame):
        body = msgpack.packb(frame)
        self.sock.sendall(struct.pack(">I", len(body)) + body)

    def exactly(self, count):
        parts = bytearray()
        while len(parts) < count:
            part = self.sock.recv(count - len(parts))
            if not part:
                sys.exit("the agent closed the connection")
            parts += part
        return bytes(parts)

    def recv(self):
        (length,) = struct.unpack(">I", self.exactly(4))
        return msgpack.unpackb(self.exactly(length))

    def call(self, verb, body, source=b"", channel="stdin", on_data=lambda ch, data: None, stream=1):
        """One request: sends `source` on `channel`, gives data to `on_data`, returns the result."""
        self.send({"t": "req", "stream": stream, "verb": verb, "credit": CREDIT, "body": msgpack.packb(body)})
        sent, limit, ended = 0, self.hello["stream_credit"], not source
        received = {}
        while True:
            while sent < min(limit, len(source)):
                data = source[sent : min(sent + 65536, limit)]
                ended = sent + len(data) == len(source)
                frame = {"t": "data", "stream": stream, "ch": channel, "off": sent, "data": data, "eof": ended}
                self.send(frame)
                sent += len(data)
            if not source and channel:
                self.send({"t": "data", "stream": stream, "ch": channel, "off": 0, "data": b"", "eof": True})
                channel = ""
            frame = self.recv()
            if frame.get("stream") != stream:
                continue
            if frame["t"] == "data":
                ch = frame["ch"]
                on_data(ch, frame["data"])
                received[ch] = frame["off"] + len(frame["data"])
                self.send({"t": "credit", "stream": stream, "ch": ch, "limit": received[ch] + CREDIT})
            elif frame["t"] == "credit":
                limit = max(limit, frame["limit"])
            elif frame["t"] == "head":
                print("head:", msgpack.unpackb(frame["body"]), file=sys.stderr)
            elif frame["t"] == "res":
                if frame.get("error"):
                    sys.exit(f"{frame['error']['code']}: {frame['error']['message']}")
                return msgpack.unpackb(frame["body"])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("socket")
    parser.add_argument("--plain", action="store_true", help="no CONNECT line")
    parser.add_argument("--wait", type=float, default=0, metavar="S", help="dial for so long while it boots")
    parser.add_argument("verb", choices=["hello", "ping", "info", "health", "exec", "put", "get", "shutdown"])
    parser.add_argument("args", nargs="*")
    options = parser.parse_intermixed_args()
    agent = Agent(options.socket, options.plain, options.wait)
    show = lambda value: print(json.dumps(value, indent=2))
    if options.verb == "hello":
        show(agent.hello)
    elif options.verb == "exec":
        out = {"stdout": sys.stdout.buffer, "stderr": sys.stderr.buffer}

        def on_data(ch, data):
            out[ch].write(data)
            out[ch].flush()

        stdin = b"" if sys.stdin.isatty() else sys.stdin.buffer.read()
        body = {"argv": options.args, "stdin": bool(stdin)}
        result = agent.call("exec", body, stdin, "stdin" if stdin else "", on_data)
        print("result:", result, file=sys.stderr)
        sys.exit(result.get("exit_code", 128 + result.get("signal", 0)))
    elif options.verb == "put":
        data = open(options.args[0], "rb").read()
        digest = hashlib.sha256(data).hexdigest()
        body = {"path": options.args[1], "size": len(data), "sha256": digest, "create_dirs": True}
        result = agent.call("put", body, data, "data")
        assert result["sha256"] == digest, "the guest has other bytes"
        show(result)
    elif options.verb == "get":
        digest = hashlib.sha256()

        def take(_, data):
            digest.update(data)
            sys.stdout.buffer.write(data)

        result = agent.call("get", {"path": options.args[0]}, b"", "", take)
        assert result["sha256"] == digest.hexdigest(), "other bytes arrived than were read"
        print("result:", result, file=sys.stderr)
    elif options.verb == "shutdown":
        show(agent.call("shutdown", {"mode": (options.args or ["poweroff"])[0]}, b"", ""))
    else:
        show(agent.call(options.verb, {}, b"", ""))


if __name__ == "__main__":
    main()
