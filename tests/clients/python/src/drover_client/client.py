"""The verbs of drover, by name and type."""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import msgpack  # type: ignore[import-untyped]
import nats
from nats.aio.client import Client as Nats
from nats.aio.subscription import Subscription
from nats.errors import NoRespondersError
from nats.errors import TimeoutError as NatsTimeout

from ._contract import (
    VERBS,
    AttachReply,
    AttachResult,
    ChangeReply,
    ClockReply,
    ErrorBody,
    ExecResult,
    ExplainReply,
    FileResult,
    FreezeResult,
    FrozenResult,
    HealthResult,
    HostInfo,
    IdentityResult,
    InfoResult,
    KeysChangeResult,
    KeysResult,
    LogsReply,
    LookupReply,
    NetworkResult,
    NicLimits,
    OnlineResult,
    ProcessesResult,
    RunInfo,
    StatsReply,
    StoredEvent,
    StreamOpened,
    TemplateListReply,
    TemplateReply,
    TemplateSummary,
    ThawResult,
    TreeResult,
    TrimResult,
    UpgradeResult,
    UserAddResult,
    UserInfo,
    UserRmResult,
    ValidateReply,
    VmSpec,
    VmStatus,
)
from ._reply import nobody_listens, read
from .errors import DroverError, NoOutcome
from .stream import Stream

_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_MSGPACK = "application/msgpack"
# How long one attempt waits for its reply before it is repeated, and the pauses between two.
_ATTEMPT = 10.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 2.0


def new_request_id() -> str:
    """A ULID."""
    value = (int(time.time() * 1000) << 80) | int.from_bytes(os.urandom(10), "big")
    return "".join(_ALPHABET[(value >> shift) & 31] for shift in range(125, -1, -5))


class Client:
    """A client in one namespace. Use it as an asynchronous context."""

    def __init__(
        self,
        servers: str | list[str] = "nats://127.0.0.1:4222",
        *,
        namespace: str = "default",
        root: str = "drover",
        deadline: float = 30.0,
        **options: Any,
    ):
        """`deadline` is in seconds, for calls that give none; `options` are those of `nats.connect`."""
        self.namespace, self.root, self.deadline = namespace, root, deadline
        self._servers = servers
        self._options = {"max_reconnect_attempts": -1, "reconnect_time_wait": 0.2, **options}
        self.nats: Nats

    async def __aenter__(self) -> Client:
        self.nats = await nats.connect(self._servers, **self._options)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.nats.close()

    def subject(self, verb: str, *, name: str = "", host: str = "") -> str:
        """Where a verb of the contract is asked for."""
        address = VERBS[verb].address.format(ns=self.namespace, name=name, host=host)
        return f"{self.root}.v1.{address}"

    async def call(
        self,
        verb: str,
        body: Any = None,
        *,
        name: str = "",
        host: str = "",
        request_id: str | None = None,
        deadline: float | None = None,
    ) -> Any:
        """Any verb that opens no stream, repeated with one id until there is an outcome."""
        subject = self.subject(verb, name=name, host=host)
        if VERBS[verb].has_id:
            request_id = request_id or new_request_id()
        until = time.monotonic() + (deadline or self.deadline)
        payload, pause, why = msgpack.packb(body or {}), _FIRST_PAUSE, "the deadline passed"
        while (left := until - time.monotonic()) > 0:
            try:
                # The request's own time is all that is left: what is asked again joins it.
                headers = _headers(request_id, left)
                return read(await self.nats.request(subject, payload, min(left, _ATTEMPT), headers=headers))
            except DroverError as error:
                if not error.retryable:
                    raise
                why = str(error)
            except NoRespondersError:
                why = "nobody listens"
                if name and (found := await self._became(name, request_id, left)):
                    return found
            except NatsTimeout:
                why = "no reply came"
            await asyncio.sleep(min(pause, max(0.0, until - time.monotonic())))
            pause = min(pause * 2, _LONGEST_PAUSE)
        raise NoOutcome(subject, request_id, why)

    async def _became(self, name: str, request_id: str | None, left: float) -> Any:
        """What became of a VM whose owner does not listen: the reply of this very delete, or an error."""
        try:
            reply = await self.nats.request(
                self.subject("pool.lookup"),
                msgpack.packb({"name": name}),
                min(left, _ATTEMPT),
                headers=_headers(None, min(left, _ATTEMPT)),
            )
            found = read(reply)
        except (NoRespondersError, NatsTimeout):
            return None
        if found["found"] == "gone" and found["request_id"] == request_id:
            return found["reply"]
        if found["found"] in ("gone", "not_found"):
            text = f"there is no VM {name!r} in namespace {self.namespace!r}"
            raise DroverError(cast(ErrorBody, {"code": "not_found", "message": text, "retryable": False, "error_id": ""}))
        return None

    @asynccontextmanager
    async def open(
        self, verb: str, body: Any, *, name: str, deadline: float | None = None
    ) -> AsyncIterator[tuple[Any, Stream[Any]]]:
        """A verb that opens a stream: its reply, and the stream."""
        shape = VERBS[verb].stream
        assert shape is not None, f"{verb} opens no stream"
        inbox = await self.nats.subscribe(self.nats.new_inbox())
        try:
            reply = await self._first_reply(verb, body, name, inbox, deadline or self.deadline)
            opened: StreamOpened = reply.get("stream") or reply
            stream: Stream[Any] = Stream(self.nats, inbox, opened, *shape)
            async with stream:
                yield reply, stream
        finally:
            await inbox.unsubscribe()

    async def _first_reply(self, verb: str, body: Any, name: str, inbox: Subscription, deadline: float) -> Any:
        request_id = new_request_id() if VERBS[verb].has_id else None
        until = time.monotonic() + deadline
        subject, payload = self.subject(verb, name=name), msgpack.packb(body)
        pause, why = _FIRST_PAUSE, "the deadline passed"
        while (left := until - time.monotonic()) > 0:
            await self.nats.publish(subject, payload, reply=inbox.subject, headers=_headers(request_id, left))
            try:
                message = await inbox.next_msg(timeout=min(left, _ATTEMPT))
                if not nobody_listens(message):
                    return read(message)
                why = "nobody listens"
                await self._became(name, None, left)
            except DroverError as error:
                if not error.retryable:
                    raise
                why = str(error)
            except NatsTimeout:
                why = "no reply came"
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)
        raise NoOutcome(subject, request_id, why)

    # --- VMs ---

    async def create(
        self, name: str, spec: VmSpec | None = None, *, wait: str | None = None, request_id: str | None = None
    ) -> VmStatus:
        """Creates a VM and starts it; `wait` is `running` or `agent`."""
        body: dict[str, Any] = {"name": name, "spec": spec or {}, **({"wait": wait} if wait else {})}
        reply = await self.call("pool.create", body, request_id=request_id, deadline=90.0 if wait else None)
        return cast(ChangeReply, reply)["vm"]

    async def change(self, verb: str, name: str, *, request_id: str | None = None, **body: Any) -> VmStatus:
        """`start`, `shutdown`, `stop`, `reboot`, `pause`, `resume`, `forward`, `egress`, `limit`, `grow` or `delete`,
        with the fields of its request."""
        reply = await self.call(f"vm.{verb}", body, name=name, request_id=request_id, deadline=90.0)
        return cast(ChangeReply, reply)["vm"]

    async def delete(self, name: str, *, request_id: str | None = None) -> VmStatus:
        """Stops the VM at once and removes everything of it."""
        return await self.change("delete", name, request_id=request_id)

    async def get(self, name: str) -> VmStatus:
        """How the VM is."""
        return cast(VmStatus, await self.call("vm.get", name=name))

    async def vms(self) -> AsyncIterator[VmStatus]:
        """The VMs of the namespace, by name."""
        cursor: dict[str, Any] = {}
        while True:
            page = await self.call("pool.list", cursor)
            for vm in page["vms"]:
                yield vm
            if not page.get("next_cursor"):
                return
            cursor = {"cursor": page["next_cursor"]}

    async def lookup(self, name: str) -> LookupReply:
        """What became of a name."""
        return cast(LookupReply, await self.call("pool.lookup", {"name": name}))

    async def templates(self) -> list[TemplateSummary]:
        """The templates that the namespace may use, on the host that answers first."""
        return cast(TemplateListReply, await self.call("template.list"))["templates"]

    async def template(self, name: str) -> TemplateReply:
        """A template with what it is built on merged in, and where each value is set."""
        return cast(TemplateReply, await self.call("template.get", {"name": name}))

    async def validate(self, spec: VmSpec) -> ValidateReply:
        """Checks a spec without effect."""
        return cast(ValidateReply, await self.call("pool.validate", {"spec": spec}))

    async def explain(self, name: str) -> ExplainReply:
        """Why the VM is as it is."""
        return cast(ExplainReply, await self.call("vm.explain", name=name))

    async def logs(self, name: str, **body: Any) -> LogsReply:
        """The end of a log."""
        return cast(LogsReply, await self.call("vm.logs", body, name=name))

    async def stats(self, name: str) -> StatsReply:
        """What the VM sent and received, as its host and its guest count it."""
        return cast(StatsReply, await self.call("vm.stats", name=name))

    async def limit(
        self, name: str, limits: NicLimits, *, nic: int = 0, request_id: str | None = None, **body: Any
    ) -> VmStatus:
        """How fast the guest may send and receive from now on; a direction that is left out has no limit."""
        return await self.change("limit", name, nic=nic, limits=limits, request_id=request_id, **body)

    async def host(self, host: str) -> HostInfo:
        """What a host has and what it has promised."""
        return cast(HostInfo, await self.call("host.info", host=host))

    async def events(
        self,
        *,
        vm: str | None = None,
        kinds: list[str] | None = None,
        after: int | None = None,
        follow: bool = False,
    ) -> AsyncIterator[StoredEvent]:
        """The namespace's events from a position on; with `follow` for ever."""
        while True:
            wanted = (("vm", vm), ("kinds", kinds), ("after", after))
            body = {key: value for key, value in wanted if value is not None}
            page = await self.call("events.read", body)
            for event in page["events"]:
                yield event
            after = page.get("next_cursor") or after
            if page["end"]:
                if not follow:
                    return
                await asyncio.sleep(0.5)

    # --- guests ---

    async def exec(self, name: str, argv: list[str], *, request_id: str | None = None, **body: Any) -> ExecResult:
        """Runs a program and collects its output, up to 128 KiB of each kind."""
        body = {"argv": argv, **body}
        deadline = body.get("timeout_ms", 30_000) / 1000 + 5
        reply = await self.call("guest.exec", body, name=name, request_id=request_id, deadline=deadline)
        return cast(ExecResult, reply["result"])

    @asynccontextmanager
    async def exec_stream(self, name: str, argv: list[str], **body: Any) -> AsyncIterator[Stream[ExecResult]]:
        """Runs a program whose channels are `stdin`, `stdout` and `stderr`."""
        async with self.open("guest.exec", {"argv": argv, "stream": True, **body}, name=name) as (_, stream):
            yield stream

    async def detach(self, name: str, argv: list[str], *, request_id: str | None = None, **body: Any) -> RunInfo:
        """Starts a program that goes on by itself; `run` of the answer is its name."""
        body = {"argv": argv, "detach": True, **body}
        return cast(RunInfo, (await self.call("guest.exec", body, name=name, request_id=request_id))["run"])

    async def runs(self, name: str) -> list[RunInfo]:
        """The programs that were detached in this boot of the guest, oldest first."""
        return cast("list[RunInfo]", (await self.call("guest.runs", {}, name=name))["runs"])

    @asynccontextmanager
    async def attach(self, name: str, run: str, **body: Any) -> AsyncIterator[tuple[AttachReply, Stream[AttachResult]]]:
        """Reads the output of a detached program, from `stdout_off` and `stderr_off` on; leaving ends the reading only."""
        async with self.open("guest.attach", {"run": run, **body}, name=name) as (reply, stream):
            yield cast(AttachReply, reply), stream

    async def kill(self, name: str, run: str, signal: int = 15) -> None:
        """Sends a signal to a detached program; 9 ends all that it started."""
        await self.call("guest.kill", {"run": run, "signal": signal}, name=name)

    async def info(self, name: str) -> InfoResult:
        """What the guest is."""
        return cast(InfoResult, await self.call("guest.info", name=name))

    async def health(self, name: str) -> HealthResult:
        """How the guest is, with its failed services."""
        return cast(HealthResult, await self.call("guest.health", name=name))

    async def processes(self, name: str, **body: Any) -> ProcessesResult:
        """What runs in the guest, with `sample_ms`, `args`, `sort` and `limit`."""
        return cast(ProcessesResult, await self.call("guest.processes", body, name=name))

    async def put(self, name: str, path: str, data: bytes, **body: Any) -> FileResult:
        """Writes a file in the guest."""
        body = {"path": path, "size_bytes": len(data), **body}
        async with self.open("guest.put", body, name=name) as (_, stream):
            await stream.write("data", data)
            stream.close("data")
            return cast(FileResult, await stream.result())

    async def fetch(self, name: str, path: str) -> tuple[bytes, FileResult]:
        """Reads a file of the guest."""
        async with self.open("guest.get", {"path": path}, name=name) as (_, stream):
            data = b"".join([chunk async for chunk in stream.read("data")])
            return data, cast(FileResult, await stream.result())

    async def unpack(self, name: str, path: str, folder: bytes, size: int, **body: Any) -> TreeResult:
        """Writes a folder in the guest, from a tar archive whose files have `size` bytes in all."""
        body = {"path": path, "size_bytes": size, **body}
        async with self.open("guest.unpack", body, name=name) as (_, stream):
            await stream.write("data", folder)
            stream.close("data")
            return cast(TreeResult, await stream.result())

    async def pack(self, name: str, path: str) -> tuple[bytes, TreeResult]:
        """Reads a folder of the guest, as a tar archive."""
        async with self.open("guest.pack", {"path": path}, name=name) as (_, stream):
            folder = b"".join([chunk async for chunk in stream.read("data")])
            return folder, cast(TreeResult, await stream.result())

    async def freeze(self, name: str, **body: Any) -> FreezeResult:
        """Lets file systems stand still, for `timeout_ms` at most; only those of `mounts` if given."""
        return cast(FreezeResult, await self.call("guest.freeze", body, name=name, deadline=60.0))

    async def thaw(self, name: str) -> ThawResult:
        """Lets them go on; an error if they did so before."""
        return cast(ThawResult, await self.call("guest.thaw", {}, name=name, deadline=60.0))

    async def frozen(self, name: str) -> FrozenResult:
        """Which file systems stand still."""
        return cast(FrozenResult, await self.call("guest.frozen", {}, name=name))

    async def clock(self, name: str, **body: Any) -> ClockReply:
        """How far the guest's clock is off; with `set` it is set by the host's."""
        return cast(ClockReply, await self.call("guest.clock", body, name=name, deadline=60.0))

    async def online(self, name: str) -> OnlineResult:
        """Brings CPUs and memory online that were added."""
        return cast(OnlineResult, await self.call("guest.online", {}, name=name, deadline=60.0))

    async def trim(self, name: str, **body: Any) -> TrimResult:
        """Gives unused blocks back to the disks; only those of `mounts` if given."""
        return cast(TrimResult, await self.call("guest.trim", body, name=name, deadline=300.0))

    async def identity(self, name: str, **body: Any) -> IdentityResult:
        """Makes a clone another guest than its twin, with `hostname` as its name, but for the parts of `keep`."""
        return cast(IdentityResult, await self.call("guest.identity", body, name=name, deadline=60.0))

    async def upgrade(self, name: str, program: bytes, **body: Any) -> UpgradeResult:
        """Puts another agent in the place of the guest's, if it is of `version` where that is given; what runs goes on."""
        body = {"size_bytes": len(program), "sha256": hashlib.sha256(program).hexdigest(), **body}
        async with self.open("guest.upgrade", body, name=name, deadline=60.0) as (_, stream):
            await stream.write("data", program)
            stream.close("data")
            return cast(UpgradeResult, await stream.result())

    async def network(self, name: str, mac: str, **body: Any) -> NetworkResult:
        """How an interface of the guest is set up; what `body` gives (`addresses`, `gateway` and so on) is set."""
        return cast(NetworkResult, await self.call("guest.network", {"mac": mac, **body}, name=name))

    async def users(self, name: str, *, all: bool = False) -> list[UserInfo]:
        """Root and the guest's users that are people; with `all` those of its system too."""
        users: list[UserInfo] = []
        while True:
            body: dict[str, Any] = {"all": all, **({"after": users[-1]["name"]} if users else {})}
            page = await self.call("guest.users", body, name=name)
            users += page["users"]
            if not page.get("more") or not page["users"]:
                return users

    async def add_user(self, name: str, user: str, **body: Any) -> UserAddResult:
        """Makes a user, or brings the one of that name to what is asked."""
        return cast(UserAddResult, await self.call("guest.user_add", {"user": user, **body}, name=name))

    async def remove_user(self, name: str, user: str, **body: Any) -> UserRmResult:
        """Removes a user; its folder too with `remove_home`."""
        return cast(UserRmResult, await self.call("guest.user_rm", {"user": user, **body}, name=name))

    async def keys(self, name: str, user: str) -> KeysResult:
        """The SSH keys that log in as a user."""
        return cast(KeysResult, await self.call("guest.keys", {"user": user}, name=name))

    async def change_keys(self, name: str, user: str, **body: Any) -> KeysChangeResult:
        """Adds keys (`add`) and removes others (`remove`), or lets those of `add` be all (`replace`)."""
        return cast(KeysChangeResult, await self.call("guest.keys_change", {"user": user, **body}, name=name))

    @asynccontextmanager
    async def console(self, name: str, **body: Any) -> AsyncIterator[Stream[Any]]:
        """The serial console, with the channels `stdin` and `stdout`."""
        async with self.open("vm.console", body, name=name) as (_, stream):
            yield stream


def _headers(request_id: str | None, left: float) -> dict[str, str]:
    headers = {"Content-Type": _MSGPACK, "Drover-Deadline-Ms": str(max(1, int(left * 1000)))}
    return {**headers, "Drover-Request-Id": request_id} if request_id else headers
