"""The nodes' connections to each other.

Each node dials every other and sends on what it dialled; what it accepted it only reads. So a
pair has two connections, each with one direction, and there is nothing to agree on when both
dial at once. A connection opens with Hello; the acceptor checks who is calling, binds the
caller's instance to its id durably, and only then answers Welcome (SAFETY C8). Frames that can't
be sent are dropped: Raft repeats itself, and callers have deadlines.
"""

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, cast

from lockd.ids import ClusterId, Incarnation, InstanceId, NodeId
from lockd.server import frames
from lockd.server.config import Address

log = logging.getLogger(__name__)

SEND_BUFFER_BYTES_MAX = 16 * 1024 * 1024
"""A peer that does not read is cut off from new frames at this backlog (SAFETY C10)."""
HANDSHAKE_SECONDS_MAX = 5.0
HANDSHAKE_BYTES_MAX = 4096
"""A body of Hello, Welcome or Refusal."""
STRANGERS_MAX = 64
"""Connections that have not been welcomed; one more costs the oldest its place (SAFETY P6, C10)."""
SILENT_HOST_MS_MAX = 5000
"""A host that acknowledges nothing for so long is gone, or cut off: its connections end."""
REDIAL_SECONDS_MIN = 0.05
REDIAL_SECONDS_MAX = 1.0


@dataclass(frozen=True, slots=True)
class Introduction:
    """What this node says of itself in each handshake."""

    node_id: NodeId
    instance: InstanceId
    boot: int
    voters: tuple[int, ...]
    version: str


class Local(Protocol):
    """The node behind the network, as the connections see it."""

    def identity(self) -> tuple[ClusterId, Incarnation]:
        """The cluster's identity as far as this node knows it; empty texts before that."""

    def bound_instance(self, node: NodeId) -> InstanceId | None:
        """The instance durably bound to a peer's id, if any."""

    def bind_peer(self, node: NodeId, instance: InstanceId, on_bound: Callable[[], None]) -> None:
        """Bind durably, then call back; at once when that is durable already."""

    def on_frame(self, sender: NodeId, frame: frames.Frame) -> None:
        """A frame of a peer that is bound. Raises FrameError on nonsense."""

    def on_replaced(self, peer: NodeId, reason: str) -> None:
        """A peer knows another instance under this node's id: this one may not take part."""


class PeerNetwork:
    """All connections of one node. Its `send` is the driver's network port."""

    def __init__(
        self,
        *,
        introduction: Introduction,
        local: Local,
        address_of: Callable[[NodeId], Address | None],
        server_tls: ssl.SSLContext | None,
        client_tls: ssl.SSLContext | None,
    ) -> None:
        self._me = introduction
        self._local = local
        self._address_of = address_of
        self._server_tls = server_tls
        self._client_tls = client_tls
        self._outgoing: dict[NodeId, asyncio.WriteTransport] = {}
        self._incoming: dict[_Incoming, None] = {}
        self._dialers: dict[NodeId, asyncio.Task[None]] = {}
        self._server: asyncio.Server | None = None

    async def start(self, listen: Address, peers: tuple[NodeId, ...]) -> None:
        """Listen and start dialling. Raises OSError when the address cannot be bound."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: _Incoming(self._me, self._local, self._incoming),
            listen.host,
            listen.port,
            ssl=self._server_tls,
            ssl_handshake_timeout=None if self._server_tls is None else HANDSHAKE_SECONDS_MAX,
        )
        for peer in peers:
            dialer = loop.create_task(self._keep_dialling(peer), name=f"dial node {peer}")
            dialer.add_done_callback(_report_failure)
            self._dialers[peer] = dialer

    @property
    def port(self) -> int:
        """The port that is listened on: of use when port 0 was asked for."""
        assert self._server is not None, "not started"
        return int(self._server.sockets[0].getsockname()[1])

    async def stop(self) -> None:
        """Close every connection and the listener."""
        for dialer in self._dialers.values():
            dialer.cancel()
        await asyncio.gather(*self._dialers.values(), return_exceptions=True)
        for incoming in list(self._incoming):
            incoming.close("this node is stopping")
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()

    def send(self, node: NodeId, frame: frames.Frame) -> bool:
        """Hand the frame to the peer's connection; False when there is none or it is clogged."""
        transport = self._outgoing.get(node)
        # A closed one stays here until its dialer's turn; uvloop raises on a write to it.
        if transport is None or transport.is_closing():
            return False
        if transport.get_write_buffer_size() > SEND_BUFFER_BYTES_MAX:
            return False
        cluster, _ = self._local.identity()
        transport.write(frames.encode(frame, cluster=cluster, instance=self._me.instance))
        return True

    def is_connected(self, node: NodeId) -> bool:
        """Whether this node can send to the peer now."""
        return node in self._outgoing

    async def _keep_dialling(self, peer: NodeId) -> None:
        pause = REDIAL_SECONDS_MIN
        reported = ""
        while True:
            try:
                await self._dial(peer)
                pause, reported = REDIAL_SECONDS_MIN, ""
            except (OSError, TimeoutError, frames.FrameError) as error:
                reason = str(error) or type(error).__name__
                if reason != reported:
                    log.info("node %d is not reachable: %s", peer, reason)
                    reported = reason
            await asyncio.sleep(pause)
            pause = min(pause * 2, REDIAL_SECONDS_MAX)

    async def _dial(self, peer: NodeId) -> None:
        """Connect, introduce this node, and stay until the connection ends."""
        address = self._address_of(peer)
        if address is None:
            raise OSError("its address is not known yet")
        async with asyncio.timeout(HANDSHAKE_SECONDS_MAX):
            reader, writer = await asyncio.open_connection(address.host, address.port, ssl=self._client_tls)
        try:
            if writer.is_closing():
                raise ConnectionResetError("the peer closed the connection at once")
            _notice_silent_host(writer.transport)
            cluster, incarnation = self._local.identity()
            hello = frames.Hello(
                self._me.node_id, peer, incarnation, self._me.boot, self._me.voters, self._me.version
            )
            writer.write(frames.encode(hello, cluster=cluster, instance=self._me.instance))
            async with asyncio.timeout(HANDSHAKE_SECONDS_MAX):
                self._check_welcome(peer, *await _read_frame(reader))
            self._outgoing[peer] = writer.transport
            log.info("connected to node %d at %s", peer, address)
            await reader.read(1)  # nothing more is sent this way: this returns when the connection ends
        except asyncio.IncompleteReadError as error:
            raise frames.FrameError("the peer closed the connection in the handshake") from error
        finally:
            self._outgoing.pop(peer, None)
            writer.close()

    def _check_welcome(self, peer: NodeId, header: frames.Header, answer: frames.Frame) -> None:
        if isinstance(answer, frames.Refusal):
            reason = " ".join(answer.reason.split())  # it goes into the log: one line
            if answer.replaced:
                self._local.on_replaced(peer, reason)
            raise frames.FrameError(f"refused: {reason}")
        if not isinstance(answer, frames.Welcome) or answer.sender != peer:
            raise frames.FrameError(f"whoever answered is not node {peer}")
        bound = self._local.bound_instance(peer)
        if bound is not None and bound != header.instance:
            raise frames.FrameError(f"instance {header.instance} answered; node {peer} is {bound}")


class _Incoming(asyncio.Protocol):
    """A connection that a peer has dialled: Hello, then its frames."""

    def __init__(self, me: Introduction, local: Local, registry: dict["_Incoming", None]) -> None:
        self._me = me
        self._local = local
        self._registry = registry
        self._buffer = bytearray()
        self._header: frames.Header | None = None
        self.caller: tuple[NodeId, InstanceId] | None = None
        self.welcomed = False
        self._transport: asyncio.WriteTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.WriteTransport", transport)  # uvloop's are no subclasses
        self._registry[self] = None
        _notice_silent_host(transport)
        strangers = [other for other in self._registry if not other.welcomed]
        if len(strangers) > STRANGERS_MAX:
            strangers[0].close("too many connections without a handshake")
        asyncio.get_running_loop().call_later(HANDSHAKE_SECONDS_MAX, self._give_up_on_stranger)

    def connection_lost(self, _: Exception | None) -> None:
        self._transport = None
        self._registry.pop(self, None)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        try:
            while self._transport is not None and (frame := self._next_frame()) is not None:
                self._on_frame(*frame)
        except frames.FrameError as error:
            self.close(str(error))

    def close(self, reason: str) -> None:
        if self._transport is not None:
            log.info("closing the connection from %s: %s", self.caller or "a stranger", reason)
            self._transport.close()
            self._transport = None
            self._registry.pop(self, None)

    def _give_up_on_stranger(self) -> None:
        if not self.welcomed:
            self.close("no handshake in time")

    def _next_frame(self) -> tuple[frames.Header, frames.Frame] | None:
        if self._header is None:
            if len(self._buffer) < frames.HEADER.size:
                return None
            header = frames.decode_header(bytes(self._buffer[: frames.HEADER.size]))
            self._header = header if self.welcomed else _checked_stranger(header)
            del self._buffer[: frames.HEADER.size]
        if len(self._buffer) < self._header.length:
            return None
        header, self._header = self._header, None
        body = bytes(self._buffer[: header.length])
        del self._buffer[: header.length]
        return header, frames.decode_body(header, body)

    def _on_frame(self, header: frames.Header, frame: frames.Frame) -> None:
        if self.caller is None:
            if not isinstance(frame, frames.Hello):
                raise frames.FrameError(f"{header.kind.name} frame before Hello")
            self._on_hello(header, frame)
            return
        sender, instance = self.caller
        cluster, _ = self._local.identity()
        if (
            not self.welcomed
            or header.instance != instance
            or (cluster and header.cluster not in ("", cluster))
        ):
            raise frames.FrameError(f"{header.kind.name} frame of another instance or cluster")
        self._local.on_frame(sender, frame)

    def _on_hello(self, header: frames.Header, hello: frames.Hello) -> None:
        sender = NodeId(hello.sender)
        refusal = self._objection(header, hello)
        if refusal is not None:
            log.warning("refusing node %d (instance %s): %s", sender, header.instance, refusal.reason)
            self._write(refusal)
            self.close(refusal.reason)
            return
        self.caller = sender, header.instance
        self._local.bind_peer(sender, header.instance, self._welcome)

    def _objection(self, header: frames.Header, hello: frames.Hello) -> frames.Refusal | None:
        cluster, incarnation = self._local.identity()
        bound = self._local.bound_instance(NodeId(hello.sender))
        if hello.receiver != self._me.node_id:
            return frames.Refusal(f"this is node {self._me.node_id}, not {hello.receiver}", replaced=False)
        if hello.sender == self._me.node_id:
            return frames.Refusal(f"node {hello.sender} is here already", replaced=False)
        if header.cluster and cluster and header.cluster != cluster:
            return frames.Refusal(f"this node is of cluster {cluster}, not {header.cluster}", replaced=False)
        if hello.incarnation and incarnation and hello.incarnation != incarnation:
            reason = (
                f"this cluster's incarnation is {incarnation}, not {hello.incarnation!r}: it was restored"
            )
            return frames.Refusal(reason, replaced=False)
        if not (header.cluster and cluster) and hello.voters != self._me.voters:
            those, ours = (",".join(map(str, voters)) for voters in (hello.voters, self._me.voters))
            return frames.Refusal(
                f"founded with nodes {those}; this node was founded with {ours}", replaced=False
            )
        if bound is not None and bound != header.instance:
            return frames.Refusal(
                f"node {hello.sender} is instance {bound}, not {header.instance}", replaced=True
            )
        if NodeId(hello.sender) not in self._me.voters:
            return frames.Refusal(f"node {hello.sender} is not a member", replaced=False)
        return None

    def _welcome(self) -> None:
        if self._transport is None:
            return
        for other in [other for other in self._registry if other.caller == self.caller]:
            if other is not self:
                other.close("the peer has dialled again")  # its host may have vanished without a word
        self.welcomed = True
        self._write(frames.Welcome(self._me.node_id))

    def _write(self, frame: frames.Frame) -> None:
        if self._transport is not None:
            cluster, _ = self._local.identity()
            self._transport.write(frames.encode(frame, cluster=cluster, instance=self._me.instance))


async def _read_frame(reader: asyncio.StreamReader) -> tuple[frames.Header, frames.Frame]:
    header = _checked_stranger(frames.decode_header(await reader.readexactly(frames.HEADER.size)))
    return header, frames.decode_body(header, await reader.readexactly(header.length))


def _checked_stranger(header: frames.Header) -> frames.Header:
    """What a stranger announces is kept in memory: no more than a handshake needs (P6)."""
    if header.length > HANDSHAKE_BYTES_MAX:
        raise frames.FrameError(f"a frame of {header.length} bytes before the handshake")
    return header


def _notice_silent_host(transport: asyncio.BaseTransport) -> None:
    """Have the kernel end a connection whose other host is gone or cut off.

    It would go on for a quarter of an hour, with retries up to two minutes apart: a healed
    partition would stay one for that long.
    """
    end = transport.get_extra_info("socket")
    end.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 2)
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1)
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, SILENT_HOST_MS_MAX)


def _report_failure(dialer: asyncio.Task[None]) -> None:
    """A dialer ends by being cancelled. Any other end is a fault, and the node must hear of it."""
    if not dialer.cancelled() and (error := dialer.exception()) is not None:
        report = {"message": f"{dialer.get_name()} has failed", "exception": error}
        dialer.get_loop().call_exception_handler(report)
