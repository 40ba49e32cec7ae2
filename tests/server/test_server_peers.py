"""Handshakes over real sockets: who may speak, and who is told why not (SAFETY C8, C11)."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

import pytest

from lockd.ids import ClusterId, Incarnation, InstanceId, NodeId
from lockd.server import frames
from lockd.server.config import Address
from lockd.server.handshake import Introduction
from lockd.server.peers import PeerNetwork
from tests.server.dialled import Conversation, answering

ME, PEER = NodeId(1), NodeId(2)
MY_INSTANCE, PEER_INSTANCE, STRANGER = (InstanceId(digit * 32) for digit in "12f")
CLUSTER, OTHER_CLUSTER = ClusterId("c" * 32), ClusterId("d" * 32)
INCARNATION = Incarnation("0000000a")
HELLO = frames.Hello(PEER, ME, "", 9, (1, 2, 3), "0.1.0")
FOUNDERS = (ME, PEER, NodeId(3))
WELCOME = frames.Welcome(ME, INCARNATION, ((1, "host1:7421"), (2, "host2:7421"), (3, "host3:7421")), FOUNDERS)
UNKNOWN = ClusterId("")


@dataclass
class Node:
    """The inside of a node, as far as connections ask it."""

    cluster: ClusterId = CLUSTER
    incarnation: Incarnation = INCARNATION
    bindings: dict[NodeId, InstanceId] = field(default_factory=dict)
    binding: asyncio.Queue[Callable[[], None]] = field(default_factory=asyncio.Queue)
    """Bindings that are not durable yet; call one to make it so."""
    received: asyncio.Queue[tuple[NodeId, frames.Frame]] = field(default_factory=asyncio.Queue)
    excluded: asyncio.Queue[str] = field(default_factory=asyncio.Queue)
    members: set[int] = field(default_factory=lambda: {1, 2, 3})
    removed: set[int] = field(default_factory=set)
    has_room: bool = True

    def identity(self) -> tuple[ClusterId, Incarnation]:
        return self.cluster, self.incarnation

    def bound_instance(self, node: NodeId) -> InstanceId | None:
        return self.bindings.get(node)

    def has_room_for(self, node: NodeId) -> bool:
        return self.has_room or node in self.members

    def bind_peer(self, node: NodeId, instance: InstanceId, on_bound: Callable[[], None]) -> None:
        if self.bindings.get(node) == instance:
            on_bound()
        else:
            self.bindings[node] = instance
            self.binding.put_nowait(on_bound)

    def on_frame(self, sender: NodeId, frame: frames.Frame) -> None:
        self.received.put_nowait((sender, frame))

    def objection_to(self, node: NodeId) -> str | None:
        return None if node in self.members else f"node {node} is not a member"

    def is_removed(self, node: NodeId) -> bool:
        return node in self.removed

    def founders(self) -> tuple[NodeId, ...]:
        return FOUNDERS

    def addresses(self) -> Mapping[NodeId, str]:
        return {NodeId(node): f"host{node}:7421" for node in self.members}

    def on_excluded(self, reason: str) -> None:
        self.excluded.put_nowait(reason)


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


def with_node(
    scenario: Callable[[Node, Caller], Awaitable[None]],
    node: Node | None = None,
    *,
    founders: tuple[int, ...] = FOUNDERS,
) -> None:
    """Run a scenario against a listening node, called by one peer."""

    async def run() -> None:
        inside = node or Node()
        network = PeerNetwork(
            introduction=Introduction(ME, MY_INSTANCE, 5, founders, "0.1.0", "host1:7421"),
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
        assert await caller.read() == WELCOME
        caller.send(frames.Raft(b"a vote"))
        assert await node.received.get() == (PEER, frames.Raft(b"a vote"))

    with_node(scenario)


def test_c8_another_instance_under_a_bound_id_is_refused_and_told_that_it_is_replaced() -> None:
    async def scenario(node: Node, caller: Caller) -> None:
        caller.send(HELLO, instance=STRANGER)
        refusal = await caller.read()
        assert isinstance(refusal, frames.Refusal)
        assert refusal.verdict is frames.Verdict.REPLACED
        await caller.expect_end()
        assert node.bindings == {PEER: PEER_INSTANCE}

    with_node(scenario, Node(bindings={PEER: PEER_INSTANCE}))


@pytest.mark.parametrize(
    ("hello", "cluster", "says", "verdict"),
    [
        (frames.Hello(2, 3, "", 9, FOUNDERS, "v"), CLUSTER, "not 3", "NOT_NOW"),
        (frames.Hello(1, 1, "", 9, FOUNDERS, "v"), CLUSTER, "here already", "NOT_NOW"),
        (frames.Hello(2, 1, "", 9, FOUNDERS, "v"), OTHER_CLUSTER, "cluster", "NOT_NOW"),
        (frames.Hello(2, 1, "0000000b", 9, FOUNDERS, "v"), CLUSTER, "incarnation", "NOT_NOW"),
        (frames.Hello(2, 1, "", 9, (1, 2), "v"), UNKNOWN, "can't found", "CLUSTER_EXISTS"),
        (frames.Hello(4, 1, "", 9, (1, 2, 4), "v"), UNKNOWN, "can't found", "CLUSTER_EXISTS"),
        (frames.Hello(4, 1, "", 9, (), "v"), UNKNOWN, "not a member", "NOT_NOW"),
        (frames.Hello(5, 1, "", 9, (), "v"), UNKNOWN, "never used again", "REMOVED"),
        (frames.Hello(5, 1, "", 9, (), "v"), CLUSTER, "never used again", "REMOVED"),
        (frames.Hello(5, 0, "", 9, (), "v"), UNKNOWN, "never used again", "REMOVED"),
        (frames.Hello(0, 1, "", 9, (), "v"), CLUSTER, "no id of a node", "NOT_NOW"),
        (frames.Hello(-1, 1, "", 9, (), "v"), CLUSTER, "no id of a node", "NOT_NOW"),
        (frames.Hello(2**31, 1, "", 9, (), "v"), CLUSTER, "no id of a node", "NOT_NOW"),
        (frames.Hello(2**63, 0, "", 9, (), "v"), UNKNOWN, "no id of a node", "NOT_NOW"),
        (frames.Hello(6, 1, "", 9, (), "v"), CLUSTER, "too many", "NOT_NOW"),
    ],
)
def test_c8_whoever_does_not_belong_is_told_why(
    hello: frames.Hello, cluster: ClusterId, says: str, verdict: str
) -> None:
    async def scenario(node: Node, caller: Caller) -> None:
        caller.send(hello, cluster=cluster)
        refusal = await caller.read()
        assert isinstance(refusal, frames.Refusal)
        assert says in refusal.reason
        assert refusal.verdict.name == verdict
        await caller.expect_end()
        assert not node.bindings

    with_node(scenario, Node(removed={5}, has_room=False))


@pytest.mark.parametrize(
    ("ours", "theirs", "cluster"),
    [
        ((1, 2, 3), (1, 2), UNKNOWN),  # both are about to found: not the same cluster
        ((1, 2, 3), (1, 2), CLUSTER),  # its address may have been this one's before, in another cluster
        ((1, 2, 3), (), CLUSTER),  # it joined a cluster; whether that is the one founded here isn't known
        ((), (1, 2, 3), UNKNOWN),
    ],
)
def test_c8_a_node_without_a_cluster_meets_only_those_that_it_was_founded_with(
    ours: tuple[int, ...], theirs: tuple[int, ...], cluster: ClusterId
) -> None:
    async def scenario(node: Node, caller: Caller) -> None:
        caller.send(frames.Hello(2, 1, "", 9, theirs, "v"), cluster=cluster)
        refusal = await caller.read()
        assert isinstance(refusal, frames.Refusal)
        assert refusal.verdict is frames.Verdict.NOT_NOW
        assert not node.bindings

    with_node(scenario, Node(cluster=UNKNOWN), founders=ours)


def test_a_late_founder_is_welcome_and_a_joined_node_does_not_ask_who_founded() -> None:
    """A founder that was not there at first has no cluster; that is not yet a lost disk (C8)."""

    async def scenario(_: Node, caller: Caller) -> None:
        caller.send(HELLO, cluster=UNKNOWN)
        assert isinstance(await caller.read(), frames.Welcome)

    with_node(scenario, Node(bindings={PEER: PEER_INSTANCE}))
    with_node(scenario, Node(bindings={PEER: PEER_INSTANCE}), founders=())


def test_c7_a_node_of_this_cluster_that_no_configuration_here_knows_is_heard_and_dialled_back() -> None:
    """It may be a leader that was added while this node was away: its appends are how that is learned."""

    async def scenario(node: Node, caller: Caller) -> None:
        heard: asyncio.Queue[frames.Frame] = asyncio.Queue()

        async def on_dialled(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            heard.put_nowait(await Caller(reader, writer).read())

        async with answering(on_dialled) as address:
            caller.send(frames.Hello(9, 1, "", 9, (), "v", str(address)))
            (await node.binding.get())()
            assert isinstance(await caller.read(), frames.Welcome)
            caller.send(frames.Raft(b"an append"))
            assert await node.received.get() == (9, frames.Raft(b"an append"))
            hello = await heard.get()
            assert isinstance(hello, frames.Hello)
            assert (hello.sender, hello.receiver, hello.address) == (1, 9, "host1:7421")

    with_node(scenario)


def test_who_asks_to_join_is_told_how_and_binds_nobody() -> None:
    async def scenario(node: Node, caller: Caller) -> None:
        caller.send(frames.Hello(2, 0, "", 9, (), "v"), cluster=UNKNOWN)
        assert await caller.read() == WELCOME
        await caller.expect_end()
        assert not node.bindings
        assert node.binding.empty()

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


def network(
    node: NodeId, instance: InstanceId, inside: Node, addresses: dict[NodeId, Address]
) -> PeerNetwork:
    return PeerNetwork(
        introduction=Introduction(node, instance, 5, FOUNDERS, "0.1.0", f"127.0.0.1:{node}"),
        local=inside,
        address_of=addresses.get,
        server_tls=None,
        client_tls=None,
    )


def test_two_networks_find_each_other_and_a_lost_disk_learns_that_it_is_replaced() -> None:
    """C8, with the dialling side: the empty newcomer under a known id hears of it, and what to do."""

    async def run() -> None:
        addresses: dict[NodeId, Address] = {}
        veteran, newcomer = Node(bindings={PEER: PEER_INSTANCE}), Node(cluster=UNKNOWN)
        old = network(ME, MY_INSTANCE, veteran, addresses)
        new = network(PEER, STRANGER, newcomer, addresses)
        await old.start(Address("127.0.0.1", 0), ())
        addresses[ME] = Address("127.0.0.1", old.port)
        await new.start(Address("127.0.0.1", 0), (ME,))
        try:
            async with asyncio.timeout(10):
                told = await newcomer.excluded.get()
        finally:
            await new.stop()
            await old.stop()
        assert "lockd members remove 2" in told
        assert "lockd members add NEW_ID 127.0.0.1:2" in told
        assert "--join" in told
        assert not new.is_connected(ME)

    asyncio.run(run())


@pytest.mark.parametrize(
    ("cluster", "instance", "is_believed"),
    [
        (CLUSTER, PEER_INSTANCE, True),
        (OTHER_CLUSTER, PEER_INSTANCE, False),  # whoever has the address now
        (UNKNOWN, PEER_INSTANCE, False),
        (CLUSTER, STRANGER, False),
    ],
)
def test_c8_only_a_peer_that_is_known_can_say_that_this_node_is_out(
    cluster: ClusterId, instance: InstanceId, *, is_believed: bool
) -> None:
    async def run() -> None:
        answered: asyncio.Queue[None] = asyncio.Queue()

        async def on_dialled(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await Caller(reader, writer).read()
            refusal = frames.Refusal("node 1 was removed", frames.Verdict.REMOVED)
            writer.write(frames.encode(refusal, cluster=cluster, instance=instance))
            answered.put_nowait(None)

        inside = Node(bindings={PEER: PEER_INSTANCE})
        async with asyncio.timeout(10), answering(on_dialled) as address:
            me = network(ME, MY_INSTANCE, inside, {PEER: address})
            await me.start(Address("127.0.0.1", 0), (PEER,))
            await answered.get()
            await answered.get()  # by now it has read the first answer
            await me.stop()
        assert inside.excluded.empty() is not is_believed

    asyncio.run(run())


@pytest.mark.parametrize(
    ("cluster", "instance", "sender"),
    [(CLUSTER, STRANGER, PEER), (OTHER_CLUSTER, PEER_INSTANCE, PEER), (CLUSTER, PEER_INSTANCE, 3)],
)
def test_c8_whoever_answers_as_another_is_told_nothing_more(
    cluster: ClusterId, instance: InstanceId, sender: int
) -> None:
    """A disk that came to the address of another, or a cluster that did."""

    async def run() -> None:
        ended: asyncio.Queue[bytes] = asyncio.Queue()

        async def on_dialled(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await Caller(reader, writer).read()
            writer.write(frames.encode(frames.Welcome(sender), cluster=cluster, instance=instance))
            ended.put_nowait(await reader.read())

        async with asyncio.timeout(10), answering(on_dialled) as address:
            me = network(ME, MY_INSTANCE, Node(bindings={PEER: PEER_INSTANCE}), {PEER: address})
            await me.start(Address("127.0.0.1", 0), (PEER,))
            assert await ended.get() == b""
            assert not me.is_connected(PEER)
            await me.stop()

    asyncio.run(run())


def test_c8_a_late_founder_takes_a_joined_leader_of_the_cluster_that_its_fellows_told_it_of() -> None:
    """Else it could not follow a leader that came later, until another leads."""

    async def run() -> None:
        addresses: dict[NodeId, Address] = {}
        fellow_inside, late_inside = Node(), Node(cluster=UNKNOWN)
        fellow = network(ME, MY_INSTANCE, fellow_inside, addresses)
        late = network(PEER, PEER_INSTANCE, late_inside, addresses)
        await fellow.start(Address("127.0.0.1", 0), ())
        addresses[ME] = Address("127.0.0.1", fellow.port)
        await late.start(Address("127.0.0.1", 0), (ME,))
        joined = frames.Hello(9, PEER, INCARNATION, 9, (), "v")
        try:
            async with asyncio.timeout(10):
                (await fellow_inside.binding.get())()
                while not late.is_connected(ME):  # noqa: ASYNC110 - nothing tells of it
                    await asyncio.sleep(0)
                for cluster, expected in ((OTHER_CLUSTER, frames.Refusal), (CLUSTER, frames.Welcome)):
                    caller = Caller(*await asyncio.open_connection("127.0.0.1", late.port))
                    caller.send(joined, cluster=cluster, instance=STRANGER)
                    if expected is frames.Welcome:
                        (await late_inside.binding.get())()
                    assert isinstance(await caller.read(), expected)
                    await caller.close()
        finally:
            await late.stop()
            await fellow.stop()

    asyncio.run(run())


def test_c8_set_peers_cuts_a_removed_node_off_and_tells_it_when_it_dials_again() -> None:
    async def run() -> None:
        addresses: dict[NodeId, Address] = {}
        staying, leaving = Node(bindings={PEER: PEER_INSTANCE}), Node(bindings={ME: MY_INSTANCE})
        one = network(ME, MY_INSTANCE, staying, addresses)
        two = network(PEER, PEER_INSTANCE, leaving, addresses)
        await one.start(Address("127.0.0.1", 0), ())
        await two.start(Address("127.0.0.1", 0), ())
        addresses |= {ME: Address("127.0.0.1", one.port), PEER: Address("127.0.0.1", two.port)}
        try:
            async with asyncio.timeout(10):
                one.set_peers((ME, PEER))
                two.set_peers((ME, PEER))
                while not (one.is_connected(PEER) and two.is_connected(ME)):  # noqa: ASYNC110
                    await asyncio.sleep(0)
                staying.removed.add(PEER)
                one.set_peers((ME,))
                told = await leaving.excluded.get()
                while one.is_connected(PEER):  # noqa: ASYNC110 - nothing tells of it
                    await asyncio.sleep(0)
        finally:
            await two.stop()
            await one.stop()
        assert "node 2 was removed from this cluster; ids are never used again" in told
        assert "--node-id" in told

    asyncio.run(run())


def test_c8_a_peer_whose_address_has_changed_is_dialled_where_it_is_now() -> None:
    async def run() -> None:
        addresses: dict[NodeId, Address] = {}
        here = Node(bindings={PEER: PEER_INSTANCE})
        me = network(ME, MY_INSTANCE, here, addresses)
        dialled: asyncio.Queue[int] = asyncio.Queue()

        def answer_as(number: int) -> Conversation:
            async def on_dialled(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                await Caller(reader, writer).read()
                writer.write(frames.encode(frames.Welcome(PEER), cluster=CLUSTER, instance=PEER_INSTANCE))
                dialled.put_nowait(number)
                await reader.read()

            return on_dialled

        async with (
            asyncio.timeout(10),
            answering(answer_as(1)) as before,
            answering(answer_as(2)) as after,
        ):
            addresses[PEER] = before
            await me.start(Address("127.0.0.1", 0), (PEER,))
            assert await dialled.get() == 1
            me.set_peers((PEER,))  # nothing has changed: the connection stays
            addresses[PEER] = after
            me.set_peers((PEER,))
            assert await dialled.get() == 2
            me.set_peers(())
            while me.is_connected(PEER):  # noqa: ASYNC110 - nothing tells of it
                await asyncio.sleep(0)
            await me.stop()

    asyncio.run(run())


def test_p6_a_peer_whose_address_can_not_be_a_hosts_name_costs_nobody_anything() -> None:
    """It may stand in the log of a cluster: a node that stopped at it could never start again."""

    async def run() -> None:
        faults: list[object] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: faults.append(context))
        reached: asyncio.Queue[None] = asyncio.Queue()

        async def on_dialled(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            del reader, writer
            reached.put_nowait(None)

        async with asyncio.timeout(10), answering(on_dialled) as address:
            nowhere = Address("a..b", 7421)
            me = network(ME, MY_INSTANCE, Node(), {PEER: nowhere, NodeId(3): address})
            await me.start(Address("127.0.0.1", 0), (PEER, NodeId(3)))
            await reached.get()
            await reached.get()  # it was dialled twice: the other one by now as well
            await me.stop()
        assert not faults

    asyncio.run(run())
