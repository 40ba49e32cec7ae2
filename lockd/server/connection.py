"""One client's connection: bytes, their order, and how much of them there may be.

Replies leave in the order of their commands. Commands of one kind overlap, so that a pipeline of
acquires shares one write of the log; a command of another kind waits for all before it, so that a
client reads what it wrote. A blocking WAIT holds up everything behind it.

All that a client can make this node keep is bounded, and going over a bound costs that client its
connection and nobody else anything (SAFETY P6). A grant whose reply certainly never left is given
back (G4): bytes are handed to the transport only while it takes them all at once, so what is still
here when the connection ends has reached nobody. A client that half-closes counts as gone: nobody
might be there for a grant.
"""

import asyncio
import logging
import socket
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

from lockd.protocol import requests, resp, verbs
from lockd.protocol.resp import CommandReader
from lockd.server.auth import User
from lockd.server.service import Service
from lockd.server.turns import Client, CommandTurn, Kind, Unsent

log = logging.getLogger(__name__)

_IN_LOG = (Kind.LOG, Kind.WAIT)


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """What one connection may cost. Durations in seconds."""

    commands_behind_max: int = 1024
    """Commands read but not started; more stop the reading."""
    bytes_behind_max: int = 1024 * 1024
    started_max: int = 1024
    """Commands started but not answered."""
    output_pause_bytes: int = 256 * 1024
    """Output that waits for the client; more stops the starting of commands."""
    output_bytes_max: int = 4 * 1024 * 1024
    """More ends the connection: pushes come whether or not the client reads."""
    stall_s: float = 30.0
    """How long a client may leave its answers unread."""
    partial_s: float = 30.0
    """How long a command may take to arrive."""
    login_s: float = 30.0


class Connection(asyncio.Protocol):
    """The transport's side of one client. `on_begin` and `on_end` are called once, in pairs."""

    def __init__(
        self,
        service: Service,
        *,
        number: int,
        user: User | None,
        limits: ConnectionLimits,
        on_begin: Callable[["Connection"], None],
        on_end: Callable[["Connection"], None],
    ) -> None:
        self.client = Client(number=number, user=user, push=self._push, has_room=self._has_room)
        self._service = service
        self._limits = limits
        self._on_begin = on_begin
        self._on_end = on_end
        self._transport: asyncio.Transport | None = None
        self._reader = CommandReader(resp.LIMITS_BEFORE_AUTH if user is None else resp.LIMITS)
        self._behind: deque[CommandTurn] = deque()
        self._bytes_behind = 0
        self._turns: deque[CommandTurn] = deque()
        self._running = 0
        self._running_kind = Kind.LOCAL
        self._holder: CommandTurn | None = None
        """The turn that nothing behind it may overlap with."""
        self._advancing = False
        self._output: list[bytes] = []
        self._output_bytes = 0
        self._unsent: list[Unsent] = []
        """What to do about replies in `_output` if they never leave."""
        self._flush_scheduled = False
        self._writable = True
        self._reading = True
        self._ended = False
        """Nothing more is read or started."""
        now = asyncio.get_running_loop().time()
        self._begun_at = now
        self._partial_since: float | None = None
        self._stalled_since: float | None = None

    def finish(self) -> None:
        """Start nothing more; close when what has been started is answered and written."""
        self._ended = True
        self._behind.clear()
        self._schedule_flush()

    def abort(self, reason: str) -> None:
        """End the connection now."""
        if self._transport is not None:
            log.info("client %d is cut off: %s", self.client.number, reason)
            self._ended = True
            self._transport.abort()

    def check_time(self, now: float) -> None:
        """End the connection if it has kept this node waiting for too long. `now` is the loop's time."""
        limits = self._limits
        if self._stalled_since is not None and now - self._stalled_since > limits.stall_s:
            self.abort("it does not read its answers")
        elif (
            self._partial_since is not None and self._reading and now - self._partial_since > limits.partial_s
        ):
            self.abort("its command did not arrive whole in time")
        elif self.client.user is None and now - self._begun_at > limits.login_s:
            self.abort("it did not authenticate in time")

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's are no subclasses
        # What the transport has not taken at once waits here, where it is known to be unsent (G4).
        # Not 0: asyncio's and uvloop's TLS would then pause and resume by turns.
        self._transport.set_write_buffer_limits(high=1, low=0)
        find_dead_peer(self._transport)
        self._on_begin(self)

    def data_received(self, data: bytes) -> None:
        if self._ended or self._reader.violation is not None:
            return
        try:
            self._read(data)
        except Exception:
            # P6: reading touches nothing that is shared, so a fault of ours in it costs this
            # connection, and not the node.
            log.exception("client %d sent what this node could not read", self.client.number)
            self.abort("its bytes could not be read")
            return
        self._advance()
        self._flush()

    def pause_writing(self) -> None:
        self._writable = False
        self._stalled_since = asyncio.get_running_loop().time()

    def resume_writing(self) -> None:
        self._writable = True
        self._stalled_since = None
        self._flush()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        self._transport = None
        self._ended = True
        self._behind.clear()
        unsent = self._unsent + [turn.unsent for turn in self._turns if turn.unsent is not None]
        # Only for those who may wait in the log: a stranger's hang-up writes nothing into it (P6).
        if self.client.waits or any(turn.reply is None and turn.kind in _IN_LOG for turn in self._turns):
            self._service.gone(self.client)
        self._turns.clear()
        self._output.clear()
        self._unsent.clear()
        for give_back in unsent:
            give_back()
        self._service.ended(self.client)
        self._on_end(self)

    # From bytes to turns.

    def _read(self, data: bytes) -> None:
        now = asyncio.get_running_loop().time()
        for words in self._reader.feed(data):
            request: requests.Request | requests.RequestError
            try:
                request = verbs.parse(words)
            except requests.RequestError as error:
                request = error
            self._take(request)
            self._partial_since = None
        if self._behind:
            self._bytes_behind += len(data)
        if not self._reader.partial:
            self._partial_since = None
        elif self._partial_since is None:
            self._partial_since = now
        if self._reader.violation is not None:
            if self._is_waiting():
                # An error now would stand where the answer of the waiting command is expected.
                self.abort(self._reader.violation)
            self._take(requests.StreamError(self._reader.violation))

    def _take(self, request: requests.Request | requests.RequestError) -> None:
        self._behind.append(CommandTurn(request, self._service.kind_of(request), self.client, self._answered))

    def _is_waiting(self) -> bool:
        return self.client.waits > 0 or (self._holder is not None and self._holder.kind is Kind.WAIT)

    def _advance(self) -> None:
        """Start what may start, in order."""
        if self._advancing:
            return
        self._advancing = True
        while self._behind and not self._ended and self._may_start(self._behind[0]):
            self._start(self._behind.popleft())
        self._advancing = False
        self._balance_reading()

    def _may_start(self, turn: CommandTurn) -> bool:
        if self._holder is not None or len(self._turns) >= self._limits.started_max:
            return False
        if not self._has_room():
            return False
        kind = turn.kind
        return kind is Kind.LOCAL or self._running == 0 or kind.overlaps(self._running_kind)

    def _start(self, turn: CommandTurn) -> None:
        kind = turn.kind
        self._turns.append(turn)
        if kind is not Kind.LOCAL:
            self._running += 1
            self._running_kind = kind
            if kind is Kind.WAIT or kind is Kind.ALONE:
                self._holder = turn
            elif kind is Kind.LAST:
                self.finish()
        self._service.start(turn, self.client)

    def _balance_reading(self) -> None:
        """Read on only while there is room for more, for a hang-up is seen by reading alone."""
        if not self._behind:
            self._bytes_behind = 0
        limits = self._limits
        full = len(self._behind) > limits.commands_behind_max or self._bytes_behind > limits.bytes_behind_max
        if full and self._is_waiting():
            self.abort("it sent too much behind a command that waits")
        elif self._transport is not None and full == self._reading and not self._transport.is_closing():
            self._reading = not full
            self._partial_since = None
            if full:
                self._transport.pause_reading()
            else:
                self._transport.resume_reading()

    def _has_room(self) -> bool:
        return self._output_bytes < self._limits.output_pause_bytes

    # From turns to bytes.

    def _answered(self, turn: CommandTurn) -> None:
        """Write what is next in the order, and start what this answer was holding up."""
        if self._transport is None:
            if turn.unsent is not None:
                turn.unsent()
            return
        if turn.kind is not Kind.LOCAL:
            self._running -= 1
        if turn is self._holder:
            self._holder = None
            if self.client.user is not None:
                self._reader.limits = resp.LIMITS
        while self._turns and (reply := self._turns[0].reply) is not None:
            self._write(reply, self._turns.popleft().unsent)
        if not self._advancing:
            self._advance()
            self._schedule_flush()

    def _push(self, message: bytes, unsent: Unsent | None) -> None:
        """Send an out-of-band message (RESP3)."""
        if self._transport is None:
            if unsent is not None:
                unsent()
            return
        self._write(message, unsent)
        self._schedule_flush()

    def _write(self, reply: bytes, unsent: Unsent | None) -> None:
        self._output.append(reply)
        self._output_bytes += len(reply)
        if unsent is not None:
            self._unsent.append(unsent)
        if self._output_bytes > self._limits.output_bytes_max:
            self.abort("its answers do not fit the output buffer")

    def _schedule_flush(self) -> None:
        # One write for all that is answered in this turn of the loop.
        if not self._flush_scheduled:
            self._flush_scheduled = True
            asyncio.get_running_loop().call_soon(self._scheduled_flush)

    def _scheduled_flush(self) -> None:
        self._flush_scheduled = False
        self._advance()
        self._flush()

    def _flush(self) -> None:
        transport = self._transport
        if transport is None or transport.is_closing() or not self._writable:
            return
        if self._output:
            data = b"".join(self._output)
            self._output.clear()
            self._unsent.clear()
            self._output_bytes = 0
            transport.write(data)
        if self.client.wants_room:
            self._service.room(self.client)
        if self._ended and not self._turns:
            transport.close()
        elif self._behind and self._may_start(self._behind[0]):
            # The output was in the way. Others get their turn of the loop first.
            self._schedule_flush()


def find_dead_peer(transport: asyncio.Transport) -> None:
    """Have the kernel probe an idle peer: one that waits for ever may have lost its power."""
    peer = transport.get_extra_info("socket")
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_KEEPIDLE"):
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30)
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10)
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
