"""The client's end of a stream; see "Streams" in the description of the contract."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any, Generic, TypeVar, cast

import msgpack  # type: ignore[import-untyped]
from nats.aio.client import Client as Nats
from nats.aio.subscription import Subscription
from nats.errors import Error as NatsError

from ._contract import StreamFrame, StreamOpened
from ._reply import nobody_listens, read
from .errors import DroverError, StreamBroken

CHUNK = 64 * 1024
WINDOW = 512 * 1024
ACK_EVERY = 5.0
RESEND_AFTER, LONGEST_RESEND = 2.0, 16.0
KEEP_ALIVE_EVERY = 20.0
ABSENT_KEEP_ALIVE = 1.0
PEER_LOST_AFTER = 60.0

Result = TypeVar("Result")


class _Sender:
    """Keeps what is not acknowledged, and says what to send."""

    def __init__(self, channel: str, window: int):
        self.channel = channel
        self.kept = bytearray()
        self.base = self.next = 0
        self.limit = min(window, WINDOW)
        self.closed = self.closed_sent = self.closed_acked = False
        self.progress = time.monotonic()
        self.patience = RESEND_AFTER
        self.resent_below = 0

    @property
    def end(self) -> int:
        return self.base + len(self.kept)

    @property
    def room(self) -> int:
        return min(WINDOW - len(self.kept), self.limit - self.end)

    def frames(self, now: float) -> list[dict[str, Any]]:
        waiting = self.next > self.base or (self.closed_sent and not self.closed_acked)
        if not waiting:
            self.progress = now
        elif now - self.progress >= self.patience:
            patience = self.patience
            self.resend(now)
            self.patience = min(patience * 2, LONGEST_RESEND)
        made = []
        while self.next < self.end or (self.closed and not self.closed_sent):
            start = self.next - self.base
            data = bytes(self.kept[start : start + CHUNK])
            self.next += len(data)
            last = self.closed and self.next == self.end
            made.append({"ch": self.channel, "off": self.next - len(data), "data": data, **({"eof": True} if last else {})})
            self.closed_sent = self.closed_sent or last
        return made

    def resend(self, now: float) -> None:
        self.resent_below = max(self.resent_below, self.next)
        self.next, self.closed_sent, self.progress = self.base, False, now
        self.patience = RESEND_AFTER

    def acknowledged(self, off: int, window: int, now: float) -> None:
        # The same offset without more room means that something after it was lost, if it is not sent again already.
        again = off == self.base < self.next and off + window <= self.limit and off > self.resent_below
        self.closed_acked = self.closed_acked or off > self.end
        upto = max(self.base, min(off, self.end))
        del self.kept[: upto - self.base]
        if upto > self.base or self.closed_acked:
            self.progress, self.patience = now, RESEND_AFTER
        elif again:
            self.resend(now)
        self.base, self.next = upto, max(self.next, upto)
        self.limit = max(self.limit, off + min(window, WINDOW))


class _Receiver:
    """Puts bytes in order, and says what it has."""

    def __init__(self, channel: str):
        self.channel = channel
        self.got = self.acked = self.taken = 0
        self.ended = self.ended_acked = self.gap = False
        self.last_ack = time.monotonic()
        self.waiting: asyncio.Queue[bytes | None] = asyncio.Queue()

    def data(self, off: int, data: bytes, eof: bool) -> None:
        end = off + len(data)
        if off > self.got or (end <= self.got and not (eof and not self.ended)):
            # Something was lost, or an acknowledgement of ours was.
            self.gap = True
            return
        fresh = data[self.got - off :]
        self.got = max(self.got, end)
        if fresh:
            self.waiting.put_nowait(fresh)
        if eof and not self.ended:
            self.ended = True
            self.waiting.put_nowait(None)

    def frame(self, now: float) -> dict[str, Any] | None:
        due = self.taken - self.acked >= WINDOW // 4 or now - self.last_ack >= ACK_EVERY
        if not (due or self.gap or (self.ended and not self.ended_acked)):
            return None
        self.gap, self.last_ack, self.acked, self.ended_acked = False, now, self.taken, self.ended
        window = max(0, WINDOW - (self.got - self.taken))
        return {"ch": self.channel, "acked_off": self.got + int(self.ended), "window": window}


class Stream(Generic[Result]):
    """An open stream. Use it as an asynchronous context: leaving it early cancels what it does."""

    def __init__(
        self,
        nc: Nats,
        inbox: Subscription,
        opened: StreamOpened,
        client_channels: tuple[str, ...],
        host_channels: tuple[str, ...],
    ):
        self._nc, self._inbox, self._subject = nc, inbox, opened["io_subject"]
        self._senders = {name: _Sender(name, opened["window"]) for name in client_channels}
        self._receivers = {name: _Receiver(name) for name in host_channels}
        self._changed, self._acked = asyncio.Event(), asyncio.Event()
        self._result: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        # A result that nobody asks for is no error of the program.
        self._result.add_done_callback(lambda done: done.cancelled() or done.exception())
        self._task = asyncio.create_task(self._run())

    async def __aenter__(self) -> Stream[Result]:
        return self

    async def __aexit__(self, *_: object) -> None:
        if not self._result.done():
            await self._send({"cancel": True})
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def write(self, channel: str, data: bytes) -> None:
        """Gives bytes to a channel; waits while its window is full."""
        sender = self._senders[channel]
        view = memoryview(data)
        while view:
            while sender.room <= 0:
                if self._result.done():
                    await self._result
                    raise StreamBroken("the stream has ended")
                await self._wait()
            taken = view[: sender.room]
            sender.kept += taken
            view = view[len(taken) :]
            self._notify()

    async def control(self, *, rows_cols: tuple[int, int] | None = None, signal: int | None = None) -> None:
        """Gives the command's terminal a size, or its process group a signal."""
        size = {"size": {"rows": rows_cols[0], "cols": rows_cols[1]}} if rows_cols else {}
        await self.write("ctl", msgpack.packb({**size, **({"signal": signal} if signal else {})}))

    def close(self, channel: str) -> None:
        """Ends a channel."""
        self._senders[channel].closed = True
        self._notify()

    async def read(self, channel: str) -> AsyncIterator[bytes]:
        """The bytes of a channel until its end."""
        receiver = self._receivers[channel]
        while True:
            data = await receiver.waiting.get()
            if data is None:
                if self._result.done():
                    await asyncio.shield(self._result)
                return
            receiver.taken += len(data)
            self._notify()
            yield data

    async def result(self) -> Result:
        """The result of the whole stream, once it has ended."""
        return cast(Result, msgpack.unpackb(await asyncio.shield(self._result)))

    def _notify(self) -> None:
        self._changed.set()

    async def _wait(self) -> None:
        acked = asyncio.create_task(self._acked.wait())
        either: set[asyncio.Future[Any]] = {acked, self._result}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        self._acked.clear()
        acked.cancel()

    async def _send(self, frame: dict[str, Any], with_inbox: bool = False) -> None:
        reply = self._inbox.subject if with_inbox else ""
        try:
            await self._nc.publish(self._subject, msgpack.packb(frame), reply=reply)
        except NatsError:
            # As good as lost on the way: it is sent again.
            pass

    async def _run(self) -> None:
        try:
            await self._pump()
        except (DroverError, StreamBroken) as error:
            self._result.set_exception(error)
        except Exception as error:
            broken = StreamBroken(f"the stream cannot go on: {error}")
            broken.__cause__ = error
            self._result.set_exception(broken)
        finally:
            for receiver in self._receivers.values():
                receiver.waiting.put_nowait(None)

    async def _pump(self) -> None:
        heard = said = time.monotonic()
        reconnects = -1
        incoming: asyncio.Task[Any] | None = None
        changed: asyncio.Task[Any] | None = None
        try:
            while True:
                now = time.monotonic()
                frames = [frame for sender in self._senders.values() for frame in sender.frames(now)]
                frames += [frame for receiver in self._receivers.values() if (frame := receiver.frame(now))]
                # The host must know where we are, and learn it again after a reconnect.
                moved = reconnects != self._nc.stats["reconnects"]
                if moved or now - said >= KEEP_ALIVE_EVERY:
                    await self._send({"keep_alive": True}, with_inbox=True)
                    for sender in self._senders.values() if moved and reconnects >= 0 else ():
                        # What was on its way most likely is lost.
                        sender.resend(now)
                    reconnects, said = self._nc.stats["reconnects"], now
                for frame in frames:
                    await self._send(frame)
                if frames:
                    said = time.monotonic()
                for sender in self._senders.values():
                    # What took long to send was not lost for that.
                    sender.progress = max(sender.progress, said)
                if now - heard >= PEER_LOST_AFTER:
                    raise self._lost()
                incoming = incoming or asyncio.create_task(self._inbox.next_msg(timeout=None))
                changed = changed or asyncio.create_task(self._changed.wait())
                await asyncio.wait({incoming, changed}, timeout=0.5, return_when=asyncio.FIRST_COMPLETED)
                if changed.done():
                    self._changed.clear()
                    changed = None
                if incoming.done():
                    message, incoming = incoming.result(), None
                    if nobody_listens(message):
                        # The host is reconnecting, or gone: it is told again soon where we are.
                        said = min(said, now - KEEP_ALIVE_EVERY + ABSENT_KEEP_ALIVE)
                        continue
                    heard = time.monotonic()
                    told = cast(StreamFrame, read(message))
                    if told.get("end"):
                        # Until it knows that, the host repeats the end.
                        await self._send({"done": True})
                    if self._take(told, heard):
                        return
        finally:
            for task in (incoming, changed):
                if task:
                    task.cancel()

    def _lost(self) -> DroverError:
        details = {
            "acked_off": str(sum(sender.base for sender in self._senders.values())),
            "received_off": str(sum(receiver.got for receiver in self._receivers.values())),
        }
        message = f"the host of the stream was not heard for {PEER_LOST_AFTER:.0f} s"
        return DroverError({"code": "unavailable", "message": message, "retryable": True, "error_id": "", "details": details})

    def _take(self, frame: StreamFrame, now: float) -> bool:
        """One frame of the host; true for the last."""
        end = cast("dict[str, Any] | None", frame.get("end"))
        channel = frame.get("ch")
        if end is not None:
            if "error" in end:
                raise DroverError(end["error"])
            self._result.set_result(end["result"])
            return True
        if channel in self._senders and "acked_off" in frame:
            self._senders[cast(str, channel)].acknowledged(frame["acked_off"] or 0, frame.get("window") or 0, now)
            self._acked.set()
        elif channel in self._receivers and "off" in frame:
            self._receivers[cast(str, channel)].data(frame["off"] or 0, frame.get("data") or b"", bool(frame.get("eof")))
        return False
