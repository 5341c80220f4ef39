"""A host on a bus of its own, for tests: real nats-server, real daemon, guests of processes.

Everything lives in one network namespace (the test runs itself again under `unshare --net`) and one
folder, and is ended by the ids that were started. Paths come from DROVER_BIN_DIR (drover, drover-hold,
softvmm), DROVER_AGENT (the static agent) and DROVER_IMAGES.
"""

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

import msgpack
import nats

CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
PATIENCE = 30.0


def ulid():
    value = (int(time.time() * 1000) << 80) | int.from_bytes(os.urandom(10), "big")
    return "".join(CROCKFORD[(value >> shift) & 31] for shift in range(125, -1, -5))


def in_own_network():
    """Runs the program again in a network namespace of its own, once."""
    if os.environ.get("DROVER_TEST_NETNS") != "1":
        os.environ["DROVER_TEST_NETNS"] = "1"
        os.execvp("unshare", ["unshare", "--net", "--", sys.executable, *sys.argv])
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)


def wait_for(what, look, patience=PATIENCE):
    """Waits for a level: `look` gives something true, within `patience` seconds."""
    deadline = time.monotonic() + patience
    while True:
        seen = look()
        if seen:
            return seen
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {patience} s, last seen {seen!r}")
        time.sleep(0.02)


def answers(port):
    try:
        socket.create_connection(("127.0.0.1", port), 0.2).close()
        return True
    except OSError:
        return False


def links():
    """The network interfaces of this namespace, which is the test's own."""
    shown = subprocess.run(["ip", "-j", "-d", "link"], capture_output=True, text=True, check=True).stdout
    return json.loads(shown)


class Refused(Exception):
    """A coded error reply."""

    def __init__(self, body):
        super().__init__(f"{body['code']}: {body['message']}")
        self.body = body
        self.code = body["code"]


class Host:
    """One host with its bus."""

    def __init__(self, port, guest="process", duplicate_window_ms=None):
        self.port = port
        self.folder = tempfile.mkdtemp(prefix="dv", dir=os.environ.get("TMPDIR", "/tmp"))
        self.guest = guest
        self.bins = os.environ["DROVER_BIN_DIR"]
        self.nats = None
        self.daemon = None
        self.logs = []
        # Holds all that the host says and hears against the published contract.
        self.observer = subprocess.Popen(
            [f"{self.bins}/observe", f"nats://127.0.0.1:{port}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.misbehave = os.path.join(self.folder, "misbehave")
        with open(self.misbehave, "w", encoding="utf-8"):
            pass
        config = {
            "host": "h1",
            "state_dir": f"{self.folder}/state",
            "run_dir": f"{self.folder}/run",
            "users_dir": f"{self.folder}/users",
            "images_dir": os.environ["DROVER_IMAGES"],
            "bus": {"urls": [self.observer.stdout.readline().strip()]},
            "networks": [{"name": "default", "subnet": "10.78.0.0/20"}],
            "vmm": {"path": f"{self.bins}/softvmm", "overhead": "64MiB"},
            "capacity": {"cpu_ratio": 100.0},
            "events": {} if duplicate_window_ms is None else {"duplicate_window_ms": duplicate_window_ms},
        }
        self.config = os.path.join(self.folder, "host.yaml")
        with open(self.config, "w", encoding="utf-8") as file:
            json.dump(config, file)

    def start_nats(self):
        path = os.path.join(self.folder, "nats.conf")
        with open(path, "w", encoding="utf-8") as file:
            file.write(
                f"listen: 127.0.0.1:{self.port}\n"
                f'jetstream {{ store_dir: "{self.folder}/js", sync_interval: always }}\n'
            )
        log = open(os.path.join(self.folder, "nats.log"), "ab")
        self.logs.append(log)
        self.nats = subprocess.Popen(["nats-server", "-c", path], stdout=log, stderr=log)
        wait_for("nats-server", lambda: answers(self.port))

    def stop_nats(self):
        self.nats.terminate()
        self.nats.wait()

    def environment(self):
        return dict(
            os.environ,
            SOFTVMM_GUEST=self.guest,
            SOFTVMM_AGENT=os.environ["DROVER_AGENT"],
            SOFTVMM_MISBEHAVE_FILE=self.misbehave,
        )

    def start(self):
        log = open(os.path.join(self.folder, "host.log"), "ab")
        self.logs.append(log)
        command = [f"{self.bins}/drover", "host", "run", "--config", self.config]
        self.daemon = subprocess.Popen(command, env=self.environment(), stdout=log, stderr=log)

    def kill(self):
        self.daemon.send_signal(signal.SIGKILL)
        self.daemon.wait()

    def freeze(self):
        """Stops the daemon where it is, until `thaw`."""
        self.daemon.send_signal(signal.SIGSTOP)

    def thaw(self):
        self.daemon.send_signal(signal.SIGCONT)

    def told(self):
        with open(os.path.join(self.folder, "host.log"), encoding="utf-8", errors="replace") as file:
            return file.read()

    def processes(self):
        """Processes that carry the mark of a VM of this host: pid and command."""
        found = []
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open(f"/proc/{pid}/cmdline", "rb") as file:
                    command = file.read().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if f"{self.folder}/run/" in command:
                found.append((int(pid), command))
        return found

    def vmm(self, vm_id):
        own = f"{self.folder}/run/{vm_id.lower()}"
        return [pid for pid, command in self.processes() if command.split()[0].endswith("/softvmm") and own in command]

    def left(self, vm_id):
        """What of a VM is still there."""
        taps = [link["ifname"] for link in links() if vm_id in link.get("ifalias", "")]
        rules = subprocess.run(["nft", "list", "ruleset"], capture_output=True, text=True, check=True).stdout
        elements = [line.strip() for line in rules.splitlines() if any(tap in line for tap in taps)]
        files = [
            path
            for path in (f"{self.folder}/run/{vm_id.lower()}", f"{self.folder}/state/disks/{vm_id.lower()}")
            if os.path.exists(path)
        ]
        processes = [c for _, c in self.processes() if vm_id.lower() in c]
        return {"taps": taps, "elements": elements, "files": files, "processes": processes}

    def remove_cgroups(self):
        """Those of this host's installation; a process that has ended leaves its cgroup a moment later."""
        try:
            with open(f"{self.folder}/state/installation", encoding="ascii") as file:
                name = f"drover-{file.read().strip().lower()}"
        except FileNotFoundError:
            return True
        left = False
        for top, folders, _ in os.walk("/sys/fs/cgroup", topdown=False):
            for folder in folders:
                path = os.path.join(top, folder)
                if name in path.split("/"):
                    try:
                        os.rmdir(path)
                    except OSError:
                        left = True
        return not left

    def end(self):
        """Takes everything away; fails if a message was not as the contract says."""
        for process in (self.daemon, self.nats):
            if process and process.poll() is None:
                process.kill()
                process.wait()
        for pid, _ in self.processes():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        wait_for("the end of all processes", lambda: not self.processes())
        wait_for("the end of all cgroups", self.remove_cgroups)
        for link in links():
            if link["ifname"].startswith("dr"):
                subprocess.run(["ip", "link", "del", link["ifname"]], check=False)
        subprocess.run(["nft", "flush", "ruleset"], check=True)
        for file in self.logs:
            file.close()
        shutil.rmtree(self.folder, ignore_errors=True)
        _, deviations = self.observer.communicate()
        assert self.observer.returncode == 0, deviations


class Bus:
    """A client that is not made of Rust."""

    def __init__(self, port, namespace="default"):
        self.url = f"nats://127.0.0.1:{port}"
        self.namespace = namespace

    async def __aenter__(self):
        self.nc = await nats.connect(self.url, max_reconnect_attempts=-1, reconnect_time_wait=0.1)
        return self

    async def __aexit__(self, *_):
        await self.nc.close()

    async def ask(self, tail, body=None, request_id=None, timeout=20.0, raw=None, headers=None):
        """One request; the decoded reply, or `Refused`."""
        head = dict(headers or {})
        if raw is None:
            raw = msgpack.packb(body or {})
            head.setdefault("Content-Type", "application/msgpack")
        if request_id:
            head["Drover-Request-Id"] = request_id
        head.setdefault("Drover-Deadline-Ms", str(int(timeout * 1000)))
        subject = tail if tail.startswith("drover.") else f"drover.v1.cmd.{self.namespace}.{tail}"
        reply = await self.nc.request(subject, raw, timeout + 1, headers=head)
        decode = json.loads if reply.data[:1] == b"{" else msgpack.unpackb
        if reply.headers and "Nats-Service-Error-Code" in reply.headers:
            raise Refused(decode(reply.data))
        return decode(reply.data)

    async def ready(self, patience=PATIENCE):
        """Waits until a host answers."""
        deadline = time.monotonic() + patience
        while True:
            try:
                info = await self.ask("drover.v1.host.h1.info", timeout=1)
                if info["phase"] == "ready":
                    return info
            except (nats.errors.Error, Refused):
                pass
            if time.monotonic() > deadline:
                raise AssertionError("the host did not get ready")
            await asyncio.sleep(0.05)

    async def until(self, what, look, patience=PATIENCE):
        """As `wait_for`; `look` is awaited."""
        deadline = time.monotonic() + patience
        while True:
            seen = await look()
            if seen:
                return seen
            if time.monotonic() > deadline:
                raise AssertionError(f"{what}: not within {patience} s")
            await asyncio.sleep(0.05)

    async def create(self, name, request_id=None, **body):
        return await self.ask("vm.create", {"name": name, **body}, request_id or ulid(), timeout=60)

    async def stored(self):
        """Every event of VMs in the stream, in order: (headers, body)."""
        events = []
        js = self.nc.jetstream()
        try:
            last = (await js.stream_info("DROVER_EVENTS")).state.last_seq
        except nats.js.errors.NotFoundError:
            return events
        for seq in range(1, last + 1):
            message = await js.get_msg("DROVER_EVENTS", seq)
            if ".vm." in message.subject:
                events.append((message.headers, msgpack.unpackb(message.data)))
        return events

    async def check_log(self, case):
        """Each VM's events: gapless from 1, joined by their states, each id once."""
        logs = {}
        for headers, event in await self.stored():
            case.assertEqual(headers["ce-id"], f"{event['vm_id']}.{event['seq']}")
            logs.setdefault(event["vm_id"], []).append(event)
        for events in logs.values():
            case.assertEqual([e["seq"] for e in events], list(range(1, len(events) + 1)))
            for before, after in zip(events, events[1:]):
                case.assertEqual(after["previous"], before["state"])
        return logs
