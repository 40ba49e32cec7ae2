"""Peers over real sockets that misbehave: reset, silent, greedy, or back from the dead."""

import asyncio
import contextlib
import secrets
import socket
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import uvloop

from lockd.ids import ClusterId, Incarnation, InstanceId, NodeId
from lockd.server import frames
from lockd.server.app import Node
from lockd.server.config import Address, ServerConfig
from lockd.server.dialling import SILENT_HOST_MS_MAX
from lockd.server.handshake import Introduction
from lockd.server.peers import (
    HANDSHAKE_BYTES_MAX,
    STRANGERS_MAX,
    PeerNetwork,
)

ME, PEER, OTHER = NodeId(1), NodeId(2), NodeId(3)
INSTANCES = {node: InstanceId(str(node) * 32) for node in (ME, PEER, OTHER)}
CLUSTER = ClusterId("c" * 32)
INCARNATION = Incarnation("0000000a")
PATIENCE_S = 10.0


@dataclass
class Inside:
    """The inside of a node whose peers are all bound."""

    received: asyncio.Queue[tuple[NodeId, frames.Frame]] = field(default_factory=asyncio.Queue)

    def identity(self) -> tuple[ClusterId, Incarnation]:
        return CLUSTER, INCARNATION

    def bound_instance(self, node: NodeId) -> InstanceId | None:
        return INSTANCES.get(node)

    def has_room_for(self, node: NodeId) -> bool:
        del node
        return True

    def bind_peer(self, node: NodeId, instance: InstanceId, on_bound: Callable[[], None]) -> None:
        assert INSTANCES[node] == instance
        on_bound()

    def on_frame(self, sender: NodeId, frame: frames.Frame) -> None:
        self.received.put_nowait((sender, frame))

    def objection_to(self, node: NodeId) -> str | None:
        return None if node in INSTANCES else "a stranger"

    def is_removed(self, node: NodeId) -> bool:
        del node
        return False

    def founders(self) -> tuple[NodeId, ...]:
        return ()

    def addresses(self) -> Mapping[NodeId, str]:
        return {}

    def on_excluded(self, reason: str) -> None:
        raise AssertionError(reason)


def network(inside: Inside, dials: int = 0) -> PeerNetwork:
    return PeerNetwork(
        introduction=Introduction(ME, INSTANCES[ME], 5, (1, 2, 3), "0.1.0", "127.0.0.1:1"),
        local=inside,
        address_of=lambda _: Address("127.0.0.1", dials),
        server_tls=None,
        client_tls=None,
    )


async def introduce(port: int, sender: NodeId) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Dial as a peer, and come back welcome."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    hello = frames.Hello(sender, ME, "", 9, (1, 2, 3), "0.1.0")
    writer.write(frames.encode(hello, cluster=CLUSTER, instance=INSTANCES[sender]))
    header = frames.decode_header(await reader.readexactly(frames.HEADER.size))
    answer = frames.decode_body(header, await reader.readexactly(header.length))
    assert answer == frames.Welcome(ME, INCARNATION)
    return reader, writer


async def welcome(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Be node 2 towards whoever has dialled."""
    await reader.read(1)
    writer.write(frames.encode(frames.Welcome(PEER), cluster=CLUSTER, instance=INSTANCES[PEER]))
    await writer.drain()


async def welcome_and_listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await welcome(reader, writer)
    with contextlib.suppress(ConnectionError):
        await reader.read()
    await hang_up(writer)


async def hang_up(*writers: asyncio.StreamWriter) -> None:
    """Close, and wait until it is so."""
    for writer in writers:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def await_end(reader: asyncio.StreamReader) -> None:
    async with asyncio.timeout(PATIENCE_S):
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""


def test_a_frame_for_a_connection_that_was_reset_in_this_very_turn_is_not_taken() -> None:
    """On uvloop, as in production: a write to a closed transport raises there, and would stop the node."""

    async def run() -> None:
        loop = asyncio.get_running_loop()
        welcomed = asyncio.Event()

        async def on_dialled(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await welcome(reader, writer)
            await welcomed.wait()
            abrupt = struct.pack("ii", 1, 0)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, abrupt)
            writer.transport.abort()
            await hang_up(writer)

        server = await asyncio.start_server(on_dialled, "127.0.0.1", 0)
        me = network(Inside(), dials=server.sockets[0].getsockname()[1])
        faults: list[Exception] = []

        def keep_sending() -> None:
            """Once in every turn of the loop: also in those between the loss and the dialer's notice."""
            try:
                taken = me.send(PEER, frames.Raft(b"an append"))
            except Exception as error:  # noqa: BLE001 - whatever it is, the test is to say so
                faults.append(error)
                over.set()
                return
            if taken:
                welcomed.set()
            if not welcomed.is_set() or taken or me.is_connected(PEER):
                loop.call_soon(keep_sending)
            else:
                over.set()

        over = asyncio.Event()
        await me.start(Address("127.0.0.1", 0), (PEER,))
        try:
            keep_sending()
            async with asyncio.timeout(PATIENCE_S):
                await over.wait()
        finally:
            await me.stop()
            server.close()
        assert not faults

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())


def test_p6_a_stranger_cannot_announce_more_than_a_handshake() -> None:
    async def run() -> None:
        me = network(Inside())
        await me.start(Address("127.0.0.1", 0), ())
        reader, writer = await asyncio.open_connection("127.0.0.1", me.port)
        try:
            large = frames.HEADER.pack(
                b"lk", frames.VERSION, frames.Kind.HELLO, HANDSHAKE_BYTES_MAX + 1, 0, bytes(16), bytes(16)
            )
            writer.write(large)
            await await_end(reader)  # at once: not after the frame, nor after the time for a handshake
        finally:
            await hang_up(writer)
            await me.stop()

    asyncio.run(run())


def test_p6_c10_strangers_push_each_other_out_and_no_peer() -> None:
    async def run() -> None:
        inside = Inside()
        me = network(inside)
        await me.start(Address("127.0.0.1", 0), ())
        _, peer = await introduce(me.port, PEER)
        strangers = [await asyncio.open_connection("127.0.0.1", me.port) for _ in range(STRANGERS_MAX + 1)]
        _, late_peer = await introduce(me.port, OTHER)
        try:
            await await_end(strangers[0][0])
            for writer, sender in ((peer, PEER), (late_peer, OTHER)):
                writer.write(frames.encode(frames.Raft(b"x"), cluster=CLUSTER, instance=INSTANCES[sender]))
                async with asyncio.timeout(PATIENCE_S):
                    assert (await inside.received.get())[0] == sender
                writer.close()
        finally:
            for _, writer in strangers:
                await hang_up(writer)
            await me.stop()

    asyncio.run(run())


def test_a_peer_that_dials_again_ends_the_connection_that_its_host_has_forgotten() -> None:
    async def run() -> None:
        me = network(Inside())
        await me.start(Address("127.0.0.1", 0), ())
        forgotten, old_writer = await introduce(me.port, PEER)
        _, new_writer = await introduce(me.port, PEER)
        try:
            await await_end(forgotten)
        finally:
            await hang_up(old_writer, new_writer)
            await me.stop()

    asyncio.run(run())


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="this kernel can't be told")
def test_the_kernel_is_told_to_end_connections_whose_other_host_has_vanished() -> None:
    """A host that vanishes cannot be had here: the options of both ends are what there is to see."""

    async def run() -> None:
        server = await asyncio.start_server(welcome_and_listen, "127.0.0.1", 0)
        me = network(Inside(), dials=server.sockets[0].getsockname()[1])
        await me.start(Address("127.0.0.1", 0), (PEER,))
        _, writer = await introduce(me.port, PEER)
        try:
            async with asyncio.timeout(PATIENCE_S):
                while not me.is_connected(PEER):  # noqa: ASYNC110 - nothing tells of it
                    await asyncio.sleep(0)
            (incoming,) = me._incoming
            assert incoming._transport is not None
            for transport in (me._outgoing[PEER], incoming._transport):
                end = transport.get_extra_info("socket")
                silence_ms = end.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
                assert 0 < silence_ms <= SILENT_HOST_MS_MAX
                assert end.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        finally:
            await hang_up(writer)
            await me.stop()
            server.close()

    asyncio.run(run())


def test_c8_nobody_is_welcome_before_the_binding_is_durable_not_even_on_a_second_call(tmp_path: Path) -> None:
    """A slow disk outlasts a handshake: the peer dials again while the binding is still on its way."""

    async def run() -> None:
        config = ServerConfig.model_validate(
            {
                "data_dir": tmp_path / "data",
                "initial_cluster": "1=127.0.0.1:1,2=127.0.0.1:2,3=127.0.0.1:3",
                "listen_peer": "127.0.0.1:1",
            }
        )
        node = Node(config, version="0")
        instance, stranger = (InstanceId(secrets.token_hex(16)) for _ in range(2))
        calls: list[str] = []
        try:
            node.bind_peer(PEER, instance, lambda: calls.append("first"))
            node.bind_peer(PEER, instance, lambda: calls.append("second"))
            assert calls == []
            assert node.bound_instance(PEER) == instance != stranger
            node.driver.on_durable(1_000_000)
            assert calls == ["first", "second"]
            node.bind_peer(PEER, instance, lambda: calls.append("third"))
            assert calls == ["first", "second", "third"]
        finally:
            node._wal.close()

    asyncio.run(run())
