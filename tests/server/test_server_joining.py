"""An empty node looks for the cluster that it is to join (SAFETY C8)."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

import pytest

from lockd.ids import ClusterId, Incarnation, InstanceId, NodeId
from lockd.server import frames
from lockd.server.config import Address, ConfigError
from lockd.server.handshake import Introduction
from lockd.server.joining import ClusterFound, find_cluster
from tests.server.dialled import answering

CLUSTER, INCARNATION = ClusterId("c" * 32), Incarnation("0000000a")
MEMBER = InstanceId("1" * 32)
ME = Introduction(NodeId(4), InstanceId("4" * 32), 7, (), "0.1.0", "d:7421")
WELCOME = frames.Welcome(2, INCARNATION, ((2, "b:7421"), (4, "d:7421")), (1, 2, 3))
FOUND = ClusterFound(
    CLUSTER, INCARNATION, {NodeId(2): "b:7421", NodeId(4): "d:7421"}, (NodeId(1), NodeId(2), NodeId(3))
)
NOT_YET = frames.Refusal("node 4 is not a member of this cluster")

Scenario = Callable[[Address, list[frames.Hello]], Awaitable[None]]


def with_member(answers: list[frames.Frame], scenario: Scenario, *, cluster: ClusterId = CLUSTER) -> None:
    """A node that answers each call with the next of `answers`, the last for ever."""

    async def run() -> None:
        hellos: list[frames.Hello] = []

        async def on_dialled(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            header = frames.decode_header(await reader.readexactly(frames.HEADER.size))
            hello = frames.decode_body(header, await reader.readexactly(header.length))
            assert isinstance(hello, frames.Hello)
            assert header.cluster == ""
            hellos.append(hello)
            answer = answers.pop(0) if len(answers) > 1 else answers[0]
            writer.write(frames.encode(answer, cluster=cluster, instance=MEMBER))

        async with asyncio.timeout(10), answering(on_dialled) as at:
            await scenario(at, hellos)

    asyncio.run(run())


def test_it_asks_whoever_is_there_and_learns_where_the_members_are() -> None:
    async def scenario(at: Address, hellos: list[frames.Hello]) -> None:
        assert await find_cluster(ME, at, tls=None) == FOUND
        (hello,) = hellos
        assert (hello.sender, hello.receiver, hello.founders, hello.address) == (4, 0, (), "d:7421")

    with_member([WELCOME], scenario)


def test_it_waits_to_be_added_and_says_once_which_command_does_it(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(at: Address, hellos: list[frames.Hello]) -> None:
        assert await find_cluster(ME, at, tls=None, ask_again_s=0) == FOUND
        assert len(hellos) == 4

    with caplog.at_level(logging.INFO):
        with_member([NOT_YET, NOT_YET, NOT_YET, WELCOME], scenario)
    (said,) = [record.message for record in caplog.records if "waiting" in record.message]
    assert "lockd members add 4 d:7421" in said


@pytest.mark.parametrize(
    ("refusal", "says"),
    [
        (
            frames.Refusal("node 4 was removed; start with a new --node-id", frames.Verdict.REMOVED),
            "a new --node-id",
        ),
        (
            frames.Refusal("node 4 is another instance", frames.Verdict.REPLACED),
            "`lockd members remove 4`",
        ),
    ],
)
def test_c8_an_id_that_is_used_up_ends_it_with_what_to_do(refusal: frames.Refusal, says: str) -> None:
    async def scenario(at: Address, hellos: list[frames.Hello]) -> None:
        with pytest.raises(ConfigError) as caught:
            await find_cluster(ME, at, tls=None, ask_again_s=0)
        assert says in str(caught.value)
        assert "\n" not in str(caught.value)
        assert len(hellos) == 1

    with_member([refusal], scenario)


def test_it_waits_for_a_node_that_is_not_there_yet(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        reported = asyncio.Event()

        class Reported(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                del record
                reported.set()

        async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.close()

        async def welcome(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read(1)
            writer.write(frames.encode(WELCOME, cluster=CLUSTER, instance=MEMBER))

        handler = Reported()
        logging.getLogger("lockd.server.joining").addHandler(handler)
        try:
            async with asyncio.timeout(10):
                async with answering(hang_up) as at:
                    looking = asyncio.create_task(find_cluster(ME, at, tls=None, ask_again_s=0.01))
                    await reported.wait()
                async with answering(welcome, port=at.port):
                    assert await looking == FOUND
        finally:
            logging.getLogger("lockd.server.joining").removeHandler(handler)

    with caplog.at_level(logging.INFO):
        asyncio.run(run())
    assert "nobody answers as a node" in caplog.text


def test_a_node_that_has_no_cluster_itself_is_none_to_join() -> None:
    async def scenario(at: Address, hellos: list[frames.Hello]) -> None:
        looking = asyncio.create_task(find_cluster(ME, at, tls=None, ask_again_s=0))
        while len(hellos) < 2:  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0)
        assert not looking.done()
        looking.cancel()
        await asyncio.wait([looking])

    with_member([WELCOME], scenario, cluster=ClusterId(""))
