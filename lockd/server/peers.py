"""The nodes' connections to each other.

Each node dials every other and sends on what it dialled; what it accepted it only reads. So a
pair has two connections, each with one direction, and there is nothing to agree on when both
dial at once. A connection opens with Hello; the acceptor checks who is calling (`handshake` has
the rules), binds the caller's instance to its id durably, and only then answers Welcome (SAFETY
C8). Frames that can't be sent are dropped: Raft repeats itself, and callers have deadlines.

Whom to dial follows the configuration, see `set_peers`. Besides those a node dials back whoever is
welcome here: a leader that was added while this node was away is in no configuration that it has.
"""

import asyncio
import contextlib
import logging
import ssl
from collections.abc import Callable, Iterable
from typing import cast

from lockd.ids import ClusterId, InstanceId, NodeId
from lockd.server import frames
from lockd.server.config import Address
from lockd.server.dialling import HANDSHAKE_SECONDS_MAX, introduced, notice_silent_host
from lockd.server.entrance import TlsServer
from lockd.server.handshake import ANYONE, Introduction, Local, check_answer, objection

log = logging.getLogger(__name__)

SEND_BUFFER_BYTES_MAX = 16 * 1024 * 1024
"""A peer that does not read is cut off from new frames at this backlog (SAFETY C10)."""
HANDSHAKE_BYTES_MAX = 4096
"""The body of a Hello."""
STRANGERS_MAX = 64
"""Connections that have not been welcomed, and besides those in their TLS handshake; one more costs the
oldest its place (SAFETY P6, C10)."""
REDIAL_SECONDS_MIN = 0.05
REDIAL_SECONDS_MAX = 1.0


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
        self._heard_of = ClusterId("")
        self._outgoing: dict[NodeId, asyncio.WriteTransport] = {}
        self._incoming: dict[_Incoming, None] = {}
        self._peers: frozenset[NodeId] = frozenset()
        self._dialers: dict[NodeId, asyncio.Task[None]] = {}
        self._dialled: dict[NodeId, Address | None] = {}
        """Where each dialer has dialled last."""
        self._server: asyncio.Server | TlsServer | None = None
        self._is_stopping = False

    async def start(self, listen: Address, peers: Iterable[NodeId]) -> None:
        """Listen and start dialling. Raises OSError when the address cannot be bound."""
        if self._server_tls is None:
            loop = asyncio.get_running_loop()
            self._server = await loop.create_server(self._accept, listen.host, listen.port)
        else:
            self._server = TlsServer(
                self._accept,
                self._server_tls,
                handshake_seconds_max=HANDSHAKE_SECONDS_MAX,
                handshakes_max=STRANGERS_MAX,
            )
            await self._server.start(listen)
        self.set_peers(peers)

    def set_peers(self, nodes: Iterable[NodeId]) -> None:
        """Dial these, and no others but who is welcome here; this node itself is left out.

        Call it whenever the configuration or an address has changed: a peer whose address is
        another now is dialled anew, and a node that was removed is cut off, to be told so when it
        dials again.
        """
        self._peers = frozenset(nodes) - {self._me.node_id}
        for incoming in list(self._incoming):
            if incoming.caller is not None and self._local.is_removed(incoming.caller[0]):
                incoming.close("the node was removed from the cluster")
        self._balance_dialers()

    def _balance_dialers(self) -> None:
        if self._is_stopping:
            return
        wanted = self._peers.union(self._guests())
        for peer, dialer in list(self._dialers.items()):
            if peer not in wanted or self._dialled.get(peer) not in (None, self._find(peer)):
                dialer.cancel()
                del self._dialers[peer]
                self._dialled.pop(peer, None)
        for peer in wanted - self._dialers.keys():
            dialer = asyncio.get_running_loop().create_task(
                self._keep_dialling(peer), name=f"dial node {peer}"
            )
            dialer.add_done_callback(_report_failure)
            self._dialers[peer] = dialer

    def _guests(self) -> dict[NodeId, Address | None]:
        """Who is welcome here, and where they say that they are dialled."""
        return {
            incoming.caller[0]: incoming.address
            for incoming in self._incoming
            if incoming.welcomed and incoming.caller is not None
        }

    def _find(self, peer: NodeId) -> Address | None:
        """Where to dial a peer: as the log says, or else as it has said itself."""
        return self._address_of(peer) or self._guests().get(peer)

    @property
    def port(self) -> int:
        """The port that is listened on: of use when port 0 was asked for."""
        assert self._server is not None, "not started"
        return int(self._server.sockets[0].getsockname()[1])

    async def stop(self) -> None:
        """Close every connection and the listener."""
        self._is_stopping = True
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

    def _accept(self) -> "_Incoming":
        return _Incoming(
            self._me,
            self._local,
            self._incoming,
            heard_of=lambda: self._heard_of,
            on_change=self._balance_dialers,
        )

    async def _keep_dialling(self, peer: NodeId) -> None:
        pause = REDIAL_SECONDS_MIN
        reported = ""
        while True:
            try:
                self._dialled[peer] = address = self._find(peer)
                await self._dial(peer, address)
                pause, reported = REDIAL_SECONDS_MIN, ""
            except (OSError, TimeoutError, frames.FrameError) as error:
                reason = str(error) or type(error).__name__
                if reason != reported:
                    log.info("node %d is not reachable: %s", peer, reason)
                    reported = reason
            await asyncio.sleep(pause)
            pause = min(pause * 2, REDIAL_SECONDS_MAX)

    async def _dial(self, peer: NodeId, address: Address | None) -> None:
        """Connect, introduce this node, and stay until the connection ends."""
        if address is None:
            raise OSError("its address is not known yet")
        async with introduced(self._me, self._local.identity(), peer, address, self._client_tls) as call:
            check_answer(self._me, self._local, peer, call.header, call.answer)
            if self._me.founders:
                self._heard_of = self._heard_of or call.header.cluster
            self._outgoing[peer] = call.writer.transport
            try:
                log.info("connected to node %d at %s", peer, address)
                await call.reader.read(1)  # nothing more is sent this way: this returns at its end
            finally:
                if self._outgoing.get(peer) is call.writer.transport:
                    del self._outgoing[peer]


class _Incoming(asyncio.Protocol):
    """A connection that a peer has dialled: Hello, then its frames."""

    def __init__(
        self,
        me: Introduction,
        local: Local,
        registry: dict["_Incoming", None],
        *,
        heard_of: Callable[[], ClusterId],
        on_change: Callable[[], None],
    ) -> None:
        """`on_change` is called when it has become welcome, and when it is over."""
        self._me = me
        self._local = local
        self._registry = registry
        self._heard_of = heard_of
        self._on_change = on_change
        self._buffer = bytearray()
        self._header: frames.Header | None = None
        self.caller: tuple[NodeId, InstanceId] | None = None
        self.address: Address | None = None
        """Where the caller says that it is dialled."""
        self.welcomed = False
        self._transport: asyncio.WriteTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.WriteTransport", transport)  # uvloop's are no subclasses
        self._registry[self] = None
        notice_silent_host(transport)
        strangers = [other for other in self._registry if not other.welcomed]
        if len(strangers) > STRANGERS_MAX:
            strangers[0].close("too many connections without a handshake")
        asyncio.get_running_loop().call_later(HANDSHAKE_SECONDS_MAX, self._give_up_on_stranger)

    def connection_lost(self, _: Exception | None) -> None:
        self._transport = None
        self._registry.pop(self, None)
        if self.welcomed:
            self._on_change()

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
        refusal = objection(self._me, self._local, header, hello, heard_of=self._heard_of())
        if refusal is not None:
            if hello.receiver != ANYONE:  # who asks to join says so itself, again and again
                log.warning("refusing node %d (instance %s): %s", sender, header.instance, refusal.reason)
            self._write(refusal)
            self.close(refusal.reason)
            return
        if hello.receiver == ANYONE:
            self._write(self._answer())
            self.close(f"node {sender} has been told how to join")
            return
        with contextlib.suppress(ValueError):
            self.address = Address.parse(hello.address)
        self.caller = sender, header.instance
        self._local.bind_peer(sender, header.instance, self._welcome)

    def _welcome(self) -> None:
        if self._transport is None:
            return
        for other in [other for other in self._registry if other.caller == self.caller]:
            if other is not self:
                other.close("the peer has dialled again")  # its host may have vanished without a word
        self.welcomed = True
        self._write(self._answer())
        self._on_change()

    def _answer(self) -> frames.Welcome:
        _, incarnation = self._local.identity()
        local = self._local
        return frames.Welcome(
            self._me.node_id, incarnation, tuple(sorted(local.addresses().items())), local.founders()
        )

    def _write(self, frame: frames.Frame) -> None:
        if self._transport is not None:
            cluster, _ = self._local.identity()
            self._transport.write(frames.encode(frame, cluster=cluster, instance=self._me.instance))


def _checked_stranger(header: frames.Header) -> frames.Header:
    """What a stranger announces is kept in memory: no more than a handshake needs (P6)."""
    if header.length > HANDSHAKE_BYTES_MAX:
        raise frames.FrameError(f"a frame of {header.length} bytes before the handshake")
    return header


def _report_failure(dialer: asyncio.Task[None]) -> None:
    """A dialer ends by being cancelled. Any other end is a fault, and the node must hear of it."""
    if not dialer.cancelled() and (error := dialer.exception()) is not None:
        report = {"message": f"{dialer.get_name()} has failed", "exception": error}
        dialer.get_loop().call_exception_handler(report)
