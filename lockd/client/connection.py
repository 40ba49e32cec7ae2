"""One connection to one node: words out, replies in their order, pushes beside them.

It speaks RESP3 and is made anew after every failure; nothing here is tried twice. A node that
leaves a command unanswered for longer than `answer_timeout` is as good as gone, and the connection
is given up: all commands of this client are answered promptly, waits by a push.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, cast

import hiredis

from lockd.client.options import ClientOptions, Endpoint
from lockd.client.queries import OURS, Greeting, Words, error_of, reading
from lockd.errors import LockdError

Reply = Any
"""What hiredis reads: str, int, dict, list, None, or a LockdError for an error reply."""
OnReply = Callable[[Reply], None]
OnPush = Callable[[str, Any], None]

REPLY_BYTES_MAX = 64 * 1024 * 1024
_NOTHING = object()


def pack(words: Words) -> bytes:
    """A command's bytes. Raises ValueError for a text that is no UTF-8.

    It is done before a reply is expected: a place in the queue for a command that never left would
    give every later command its neighbour's reply, and so one lock's grant to another (SAFETY G3).
    """
    command: bytes = hiredis.pack_command(words)  # type: ignore[arg-type] # its stub has a tuple of one
    return command


class Connection(asyncio.Protocol):
    """See the module's text. `closed` is done once it is over; then no callback runs any more."""

    def __init__(self, *, answer_timeout: float, on_push: OnPush) -> None:
        self._loop = asyncio.get_running_loop()
        self.closed: asyncio.Future[str] = self._loop.create_future()
        self._answer_timeout = answer_timeout
        self._on_push = on_push
        # All that nodes say is UTF-8, but for the bytes of a backup: those can be had back.
        self._reader = hiredis.Reader(encoding="utf-8", errors="surrogateescape", notEnoughData=_NOTHING)
        self._bytes_unread = 0
        self._transport: asyncio.Transport | None = None
        self._output: list[bytes] = []
        self._unanswered: deque[tuple[float, OnReply]] = deque()
        self._watch: asyncio.TimerHandle | None = None

    @property
    def in_flight(self) -> int:
        """How many commands are not answered yet."""
        return len(self._unanswered)

    def send(self, command: bytes, on_reply: OnReply) -> None:
        """Write one packed command; `on_reply` gets its reply, unless the connection ends first."""
        assert self._transport is not None, "a command on a connection that is over"
        now = self._loop.time()
        self._unanswered.append((now, on_reply))
        if not self._output:
            self._loop.call_soon(self._flush)  # one write for all that is sent in this turn of the loop
        self._output.append(command)
        if self._watch is None:
            self._watch = self._loop.call_at(now + self._answer_timeout, self._check_silence)

    def abort(self, because: str) -> None:
        """End it now. `closed` is done when this returns."""
        transport, self._transport = self._transport, None
        if self._watch is not None:
            self._watch.cancel()
        self._unanswered.clear()
        if not self.closed.done():
            self.closed.set_result(because)
        if transport is not None:
            transport.abort()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's are no subclasses

    def data_received(self, data: bytes) -> None:
        self._bytes_unread += len(data)
        try:
            self._reader.feed(data)
            while self._transport is not None and (reply := self._reader.gets()) is not _NOTHING:
                self._bytes_unread = 0
                self._take(reply)
        except (hiredis.ProtocolError, UnicodeDecodeError) as error:
            self.abort(f"the node's answer is not RESP3: {error}")
        if self._bytes_unread > REPLY_BYTES_MAX:
            self.abort(f"the node's answer is larger than {REPLY_BYTES_MAX} bytes")

    def connection_lost(self, exc: Exception | None) -> None:
        self.abort(f"the connection was lost: {exc}" if exc else "the node closed the connection")

    def _flush(self) -> None:
        output, self._output = self._output, []
        if self._transport is not None:
            self._transport.write(b"".join(output))

    def _take(self, reply: Reply) -> None:
        if isinstance(reply, hiredis.PushNotification):
            if len(reply) == 2 and isinstance(reply[0], str):
                self._on_push(reply[0], reply[1])
            return
        if not self._unanswered:
            # A node that is full says so to whoever comes in, and hangs up.
            is_error = isinstance(reply, hiredis.ReplyError)
            self.abort(str(reply) if is_error else "the node answered a command that was not sent")
            return
        _, on_reply = self._unanswered.popleft()
        on_reply(error_of(str(reply)) if isinstance(reply, hiredis.ReplyError) else reply)

    def _check_silence(self) -> None:
        self._watch = None
        if not self._unanswered:
            return
        due = self._unanswered[0][0] + self._answer_timeout
        if due <= self._loop.time():
            self.abort(f"the node did not answer within {self._answer_timeout:.2f} s")
        else:
            self._watch = self._loop.call_at(due, self._check_silence)


async def connect(
    endpoint: Endpoint, options: ClientOptions, *, answer_timeout: float, on_push: OnPush
) -> tuple[Connection, Greeting]:
    """Open a connection and introduce the client, within `answer_timeout`.

    Raises OSError (TimeoutError too) when the node can't be reached, does not greet or is none of
    lockd's, and the LockdError that it answers with: AccessDenied for wrong credentials.
    """
    connection: Connection | None = None
    try:
        async with asyncio.timeout(answer_timeout):
            connection = await _open(
                endpoint, options, lambda: Connection(answer_timeout=answer_timeout, on_push=on_push)
            )
            return connection, await greet(connection, options)
    except BaseException as error:
        if connection is not None:
            connection.abort("it was not greeted")
        if isinstance(error, TimeoutError) and not str(error):
            raise TimeoutError(f"no greeting within {answer_timeout:.2f} s") from None
        raise


async def _open(endpoint: Endpoint, options: ClientOptions, protocol: Callable[[], Connection]) -> Connection:
    loop = asyncio.get_running_loop()
    if endpoint.path:
        return (await loop.create_unix_connection(protocol, endpoint.path))[1]
    hostname = endpoint.host if options.tls else None
    _, connection = await loop.create_connection(
        protocol, endpoint.host, endpoint.port, ssl=options.tls, server_hostname=hostname
    )
    return connection


async def greet(connection: Connection, options: ClientOptions) -> Greeting:
    """Introduce the client on an open connection. Raises what `connect` raises."""
    words: Words = ("HELLO", 3)
    if options.user:
        words = (*words, "AUTH", options.user, options.password)
    if options.name and " " not in options.name:
        words = (*words, "SETNAME", options.name)
    if connection.closed.done():
        raise ConnectionError(connection.closed.result())
    greeted: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
    connection.send(pack(words), greeted.set_result)
    await asyncio.wait([greeted, connection.closed], return_when=asyncio.FIRST_COMPLETED)
    if not greeted.done():
        raise ConnectionError(connection.closed.result())
    reply = greeted.result()
    if isinstance(reply, LockdError):
        raise reply
    greeting = reading(Greeting)(reply)
    if greeting.server != OURS:
        raise ConnectionError(f"a server of {greeting.server!r} answers there, not {OURS}")
    return greeting
