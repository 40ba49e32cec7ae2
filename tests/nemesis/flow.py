"""One proxied connection: two flows of bytes, one for each direction.

A flow is a queue of what has been read and when it is due. The network's conditions say whether it
moves at all; the end of the connection travels in the queue like bytes do, so a held direction
holds back that news too.
"""

import asyncio
import socket
import struct
from collections import deque
from collections.abc import Callable
from typing import Protocol, cast

import hiredis

from lockd.server import frames

Party = int | str
WhoSpeaks = Callable[[bytes], Party | None]
"""Who has dialled, by the first bytes; None while there are too few."""

QUEUE_BYTES_MAX = 4 * 1024 * 1024
"""What a flow holds before it stops reading: the sender's own buffers fill up then, as on a network."""
_END = b""
_RST_ON_CLOSE = struct.pack("ii", 1, 0)


def node_speaks(first: bytes) -> Party | None:
    """A node's id, by its Hello."""
    if len(first) < frames.HEADER.size:
        return None
    header = frames.decode_header(first[: frames.HEADER.size])
    if len(first) < frames.HEADER.size + header.length:
        return None
    hello = frames.decode_body(header, first[frames.HEADER.size : frames.HEADER.size + header.length])
    assert isinstance(hello, frames.Hello), hello
    return hello.sender


def client_speaks(first: bytes) -> Party | None:
    """A client's name, by its first command: HELLO 3 SETNAME name. "" for one without a name."""
    reader = hiredis.Reader(encoding="utf-8", notEnoughData=None)
    reader.feed(first)
    words = reader.gets()
    if words is None:
        return None
    assert isinstance(words, list), words
    return str(words[words.index("SETNAME") + 1]) if "SETNAME" in words else ""


class Conditions(Protocol):
    """The network, as a link sees it."""

    def is_held(self, flow: "Flow") -> bool: ...

    def is_lost(self, flow: "Flow") -> bool: ...

    def delay_s(self, flow: "Flow") -> float: ...

    def gone(self, link: "Link") -> None: ...


class Flow:
    """Bytes on their way from `source` to `target`."""

    def __init__(self, conditions: Conditions, *, source: Party, target: Party) -> None:
        self.source = source
        self.target = target
        self.has_hole = False
        """Bytes of it were lost: nothing more may be delivered."""
        self._conditions = conditions
        self._loop = asyncio.get_running_loop()
        self._queue: deque[tuple[float, bytes]] = deque()
        self._queued_bytes = 0
        self._timer: asyncio.TimerHandle | None = None
        self.origin: asyncio.Transport | None = None
        self.destination: asyncio.Transport | None = None

    def take(self, data: bytes) -> None:
        """Read from the origin; _END for its end."""
        if self.has_hole or self._conditions.is_lost(self):
            self.has_hole = True
            return
        self._queue.append((self._loop.time() + self._conditions.delay_s(self), data))
        self._queued_bytes += len(data)
        if self._queued_bytes > QUEUE_BYTES_MAX and self.origin is not None:
            self.origin.pause_reading()
        self.move()

    def end(self) -> None:
        self.origin = None
        self.take(_END)

    def move(self) -> None:
        """Deliver what is due, unless it is held."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._queue and not self._conditions.is_held(self):
            due, data = self._queue[0]
            if due > self._loop.time():
                self._timer = self._loop.call_at(due, self.move)
                return
            if self.destination is None:
                return
            self._queue.popleft()
            self._queued_bytes -= len(data)
            if data == _END:
                self.destination.close()
            elif not self.destination.is_closing():
                self.destination.write(data)
        if self.origin is not None and self._queued_bytes <= QUEUE_BYTES_MAX:
            self.origin.resume_reading()

    def stop(self) -> None:
        self._queue.clear()
        self.origin = self.destination = None
        if self._timer is not None:
            self._timer.cancel()


class Link:
    """One connection from whoever dialled a door to the node behind it."""

    def __init__(self, conditions: Conditions, *, target: Party, upstream_port: int, who: WhoSpeaks) -> None:
        self._conditions = conditions
        self._target = target
        self._upstream_port = upstream_port
        self._who = who
        self._first = b""
        self._flows: tuple[Flow, Flow] | None = None
        """There and back, once it is known who has dialled."""
        self._dialling: asyncio.Task[None] | None = None
        self._is_over = False
        self.dialler = _End(self._on_dialler_data, self._on_dialler_lost)
        self._node = _End(self._on_node_data, self._on_node_lost)

    @property
    def speaker(self) -> Party | None:
        """Who has dialled, once it is known."""
        return None if self._flows is None else self._flows[0].source

    def is_between(self, sources: Callable[[Party], bool], targets: Callable[[Party], bool]) -> bool:
        return self._flows is not None and sources(self._flows[0].source) and targets(self._target)

    def conditions_changed(self) -> None:
        """Move what may move; a stream with a hole can't go on once nothing is lost any more."""
        for flow in self._flows or ():
            if flow.has_hole and not self._conditions.is_lost(flow):
                self.reset()
                return
            flow.move()

    def reset(self) -> None:
        """End both sides with RST, at once."""
        for end in (self.dialler, self._node):
            end.reset()
        self._over()

    # What the sockets tell.

    def _on_dialler_data(self, data: bytes) -> None:
        if self._flows is not None:
            self._flows[0].take(data)
            return
        self._first += data
        try:
            speaker = self._who(self._first)
        except (frames.FrameError, hiredis.ProtocolError, UnicodeDecodeError, AssertionError):
            speaker = "stranger"
        if speaker is not None:
            self._begin(speaker)

    def _begin(self, speaker: Party) -> None:
        there = Flow(self._conditions, source=speaker, target=self._target)
        back = Flow(self._conditions, source=self._target, target=speaker)
        there.origin = back.destination = self.dialler.transport
        self._flows = there, back
        self._dialling = asyncio.get_running_loop().create_task(self._connect())
        there.take(self._first)

    async def _connect(self) -> None:
        assert self._flows is not None
        there, back = self._flows
        try:
            await asyncio.get_running_loop().create_connection(
                lambda: self._node, "127.0.0.1", self._upstream_port
            )
        except OSError:
            self.reset()  # as the host of a process that is not there answers
            return
        if self._is_over:
            self._node.reset()
            return
        there.destination = back.origin = self._node.transport
        there.move()

    def _on_node_data(self, data: bytes) -> None:
        if self._flows is not None:
            self._flows[1].take(data)

    def _on_dialler_lost(self) -> None:
        if self._flows is None:
            self._over()
        else:
            there, back = self._flows
            back.destination = None
            there.end()
            self._over_if_both_ended()

    def _on_node_lost(self) -> None:
        if self._flows is not None:
            there, back = self._flows
            there.destination = None
            back.end()
            self._over_if_both_ended()

    def _over_if_both_ended(self) -> None:
        if self.dialler.transport is None and (self._node.transport is None and self._dialling_is_done()):
            self._over()

    def _dialling_is_done(self) -> bool:
        return self._dialling is None or self._dialling.done()

    def _over(self) -> None:
        self._is_over = True
        for flow in self._flows or ():
            flow.stop()
        self._conditions.gone(self)


class _End(asyncio.Protocol):
    """One of the two sockets of a link. `transport` is None before it is connected and after its end."""

    def __init__(self, on_data: Callable[[bytes], None], on_lost: Callable[[], None]) -> None:
        self._on_data = on_data
        self._on_lost = on_lost
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        end = transport.get_extra_info("socket")
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def data_received(self, data: bytes) -> None:
        self._on_data(data)

    def connection_lost(self, _: Exception | None) -> None:
        if self.transport is not None:
            self.transport = None
            self._on_lost()

    def reset(self) -> None:
        transport, self.transport = self.transport, None
        if transport is not None:
            end = transport.get_extra_info("socket")
            end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RST_ON_CLOSE)
            transport.abort()
