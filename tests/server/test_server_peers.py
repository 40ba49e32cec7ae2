"""Handshakes over real sockets: who may speak, and who is told why not (SAFETY C8, C11)."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import pytest

from lockd.ids import ClusterId, Incarnation, InstanceId, NodeId
from lockd.server import frames
from lockd.server.config import Address
from lockd.server.peers import Introduction, PeerNetwork

ME, PEER = NodeId(1), NodeId(2)
MY_INSTANCE, PEER_INSTANCE, STRANGER = (InstanceId(digit * 32) for digit in "12f")
CLUSTER, OTHER_CLUSTER = ClusterId("c" * 32), ClusterId("d" * 32)
INCARNATION = Incarnation("0000000a")
HELLO = frames.Hello(PEER, ME, "", 9, (1, 2, 3), "0.1.0")


@dataclass
class Node:
    """The inside of a node, as far as connections ask it."""

    cluster: ClusterId = CLUSTER
    incarnation: Incarnation = INCARNATION
    bindings: dict[NodeId, InstanceId] = field(default_factory=dict)
    binding: asyncio.Queue[Callable[[], None]] = field(default_factory=asyncio.Queue)
    """Bindings that are not durable yet; call one to make it so."""
    received: asyncio.Queue[tuple[NodeId, frames.Frame]] = field(default_factory=asyncio.Queue)
    replaced: asyncio.Queue[NodeId] = field(default_factory=asyncio.Queue)

    def identity(self) -> tuple[ClusterId, Incarnation]:
        return self.cluster, self.incarnation

    def bound_instance(self, node: NodeId) -> InstanceId | None:
        return self.bindings.get(node)

    def bind_peer(self, node: NodeId, instance: InstanceId, on_bound: Callable[[], None]) -> None:
        if self.bindings.get(node) == instance:
            on_bound()
        else:
            self.bindings[node] = instance
            self.binding.put_nowait(on_bound)

    def on_frame(self, sender: NodeId, frame: frames.Frame) -> None:
        self.received.put_nowait((sender, frame))

    def on_replaced(self, peer: NodeId, reason: str) -> None:
        assert reason
        self.replaced.put_nowait(peer)


class Caller:
    """A peer that has dialled: writes what it is told and reads what comes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    def send(
        self, frame: frames.Frame, *, cluster: ClusterId = CLUSTER, instance: InstanceId = PEER_INSTANCE
    ) -> None:
        self._writer.write(frames.encode(frame, cluster=cluster, instance=instance))

    def send_bytes(self, data: bytes) -> None:
        self._writer.write(data)

    async def read(self) -> frames.Frame:
        header = frames.decode_header(await self._reader.readexactly(frames.HEADER.size))
        return frames.decode_body(header, await self._reader.readexactly(header.length))

    async def expect_end(self) -> None:
        with contextlib.suppress(ConnectionResetError):
            assert await self._reader.read() == b""

    async def close(self) -> None:
        self._writer.close()
        with contextlib.suppress(ConnectionError):
            await self._writer.wait_closed()


def with_node(scenario: Callable[[Node, Caller], Awaitable[None]], node: Node | None = None) -> None:
    """Run a scenario against a listening node, called by one peer."""

    async def run() -> None:
        inside = node or Node()
        network = PeerNetwork(
            introduction=Introduction(ME, MY_INSTANCE, 5, (1, 2, 3), "0.1.0"),
            local=inside,
            address_of=lambda _: None,
            server_tls=None,
            client_tls=None,
        )
        await network.start(Address("127.0.0.1", 0), ())
        caller = Caller(*await asyncio.open_connection("127.0.0.1", network.port))
        try:
            async with asyncio.timeout(10):
                await scenario(inside, caller)
        finally:
            await caller.close()
            await network.stop()

    asyncio.run(run())


def test_c8_nothing_of_a_peer_counts_before_its_instance_is_bound_durably() -> None:
    async def scenario(node: Node, caller: Caller) -> None:
        caller.send(HELLO)
        await node.binding.get()
        caller.send(frames.Raft(b"a vote"))
        await caller.expect_end()  # it may not speak before Welcome
        assert node.received.empty()

    with_node(scenario)


def test_c8_a_bound_peer_is_welcome_and_its_frames_arrive_under_its_id() -> None:
    async def scenario(node: Node, caller: Caller) -> None:
        caller.send(HELLO)
        now_durable = await node.binding.get()
        assert node.bindings == {PEER: PEER_INSTANCE}
        now_durable()
        assert await caller.read() == frames.Welcome(ME)
        caller.send(frames.Raft(b"a vote"))
        assert await node.received.get() == (PEER, frames.Raft(b"a vote"))

    with_node(scenario)


def test_c8_another_instance_under_a_bound_id_is_refused_and_told_that_it_is_replaced() -> None:
    async def scenario(node: Node, caller: Caller) -> None:
        caller.send(HELLO, instance=STRANGER)
        refusal = await caller.read()
        assert isinstance(refusal, frames.Refusal)
        assert refusal.replaced
        await caller.expect_end()
        assert node.bindings == {PEER: PEER_INSTANCE}

    with_node(scenario, Node(bindings={PEER: PEER_INSTANCE}))


@pytest.mark.parametrize(
    ("hello", "cluster", "says"),
    [
        (frames.Hello(2, 3, "", 9, (1, 2, 3), "v"), CLUSTER, "not 3"),
        (frames.Hello(1, 1, "", 9, (1, 2, 3), "v"), CLUSTER, "here already"),
        (frames.Hello(2, 1, "", 9, (1, 2, 3), "v"), OTHER_CLUSTER, "cluster"),
        (frames.Hello(2, 1, "0000000b", 9, (1, 2, 3), "v"), CLUSTER, "incarnation"),
        (frames.Hello(2, 1, "", 9, (1, 2), "v"), ClusterId(""), "founded"),
        (frames.Hello(4, 1, "", 9, (1, 2, 3), "v"), CLUSTER, "not a member"),
    ],
)
def test_c8_whoever_does_not_belong_is_told_why(hello: frames.Hello, cluster: ClusterId, says: str) -> None:
    async def scenario(node: Node, caller: Caller) -> None:
        caller.send(hello, cluster=cluster)
        refusal = await caller.read()
        assert isinstance(refusal, frames.Refusal)
        assert says in refusal.reason
        assert not refusal.replaced
        assert not node.bindings

    with_node(scenario)


def test_c8_a_frame_of_another_instance_on_a_welcome_connection_ends_it() -> None:
    async def scenario(node: Node, caller: Caller) -> None:
        caller.send(HELLO)
        await caller.read()
        caller.send(frames.Raft(b"stray"), instance=STRANGER)
        await caller.expect_end()
        assert node.received.empty()

    with_node(scenario, Node(bindings={PEER: PEER_INSTANCE}))


@pytest.mark.parametrize(
    "data", [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 3, b"\x00" * 100, b"lk\x09" + b"x" * 60]
)
def test_p6_garbage_is_answered_by_a_closed_connection(data: bytes) -> None:
    async def scenario(node: Node, caller: Caller) -> None:
        caller.send_bytes(data)
        await caller.expect_end()
        assert not node.bindings

    with_node(scenario)


def test_p6_frames_before_hello_end_the_connection() -> None:
    async def scenario(node: Node, caller: Caller) -> None:
        caller.send(frames.Raft(b"a vote"))
        await caller.expect_end()
        assert node.received.empty()

    with_node(scenario, Node(bindings={PEER: PEER_INSTANCE}))


def test_frames_cut_anywhere_arrive_whole() -> None:
    async def scenario(node: Node, caller: Caller) -> None:
        caller.send(HELLO)
        await caller.read()
        sent = [frames.Raft(bytes([number]) * number) for number in range(20)]
        data = b"".join(frames.encode(frame, cluster=CLUSTER, instance=PEER_INSTANCE) for frame in sent)
        for at in range(0, len(data), 7):
            caller.send_bytes(data[at : at + 7])
            await asyncio.sleep(0)
        assert [(await node.received.get())[1] for _ in sent] == sent

    with_node(scenario, Node(bindings={PEER: PEER_INSTANCE}))


def test_two_networks_find_each_other_and_a_lost_disk_learns_that_it_is_replaced() -> None:
    """C8, with the dialling side: the empty newcomer under a known id hears of it."""

    async def run() -> None:
        addresses: dict[NodeId, Address] = {}

        def network(node: NodeId, instance: InstanceId, inside: Node) -> PeerNetwork:
            return PeerNetwork(
                introduction=Introduction(node, instance, 5, (1, 2, 3), "0.1.0"),
                local=inside,
                address_of=addresses.get,
                server_tls=None,
                client_tls=None,
            )

        veteran, newcomer = Node(bindings={PEER: PEER_INSTANCE}), Node(cluster=ClusterId(""))
        old, new = network(ME, MY_INSTANCE, veteran), network(PEER, STRANGER, newcomer)
        await old.start(Address("127.0.0.1", 0), ())
        addresses[ME] = Address("127.0.0.1", old.port)
        await new.start(Address("127.0.0.1", 0), (ME,))
        try:
            async with asyncio.timeout(10):
                assert await newcomer.replaced.get() == ME
        finally:
            await new.stop()
            await old.stop()
        assert not new.is_connected(ME)

    asyncio.run(run())
