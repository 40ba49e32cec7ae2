"""SAFETY P6: bad input costs its sender an error or the connection, and others nothing.

In each test a witness talks to the same server before, during and after.
"""

import asyncio
import socket

import pytest

from lockd.protocol.resp import LIMITS
from lockd.server.connection import ConnectionLimits
from tests.listener.harness import Client, Failure, Run, as_map, pack, run_on_loops, serving

HASTY = ConnectionLimits(stall_s=0.05, partial_s=0.05, login_s=0.05)


async def works(witness: Client) -> None:
    """A whole life of a lock, on a connection that is otherwise left alone."""
    grant = as_map(await witness.ask("LOCK.ACQUIRE", "witness", "TTL", 60_000))
    assert grant["status"] == "granted"
    assert await witness.ask("LOCK.RELEASE", "witness", grant["token"], "SESSION", grant["session"]) == 1


@pytest.mark.parametrize(
    ("command", "text"),
    [
        (["NOPE"], "ERR unknown command 'NOPE'"),
        (["LOCK.ACQUIRE"], "ERR wrong number of arguments"),
        (["LOCK.ACQUIRE", "k", "TTL", "soon"], "ERR TTL: 'soon' is not a whole number"),
        (["LOCK.ACQUIRE", "k", "TTL", "-1"], "ERR TTL: -1 is not between"),
        (["LOCK.ACQUIRE", "k", "TTL", "9" * 30], "ERR TTL: a number of 30 digits is not between"),
        (["LOCK.ACQUIRE", "k", "TTL", str(2**63)], "ERR TTL: 9223372036854775808 is not between"),
        (["SESSION.OPEN", "-1"], "ERR ttl_ms: -1 is not between"),
        (["LOCK.ACQUIRE", "k" * 513, "TTL", "5000"], "ERR the lock's name is longer than 512 bytes"),
        (["LOCK.ACQUIRE", b"\xff", "TTL", "5000"], "ERR the lock's name is not UTF-8"),
        (["x\r\n+OK\r\n:1"], "ERR unknown command 'x +OK :1'"),
        (["LOCK.ACQUIRE", "a\r\n+OK", "TTL", "5000"], "ERR the lock's name contains a control"),
        (["LOCK.ACQUIRE", "k", "SESSION", "s"], "ERR session 's' is not 32"),
        (["LOCK.ACQUIRE", "k", "SESSION", "0" * 32], "NOSESSION "),
        (["LOCK.RELEASE", "k", str(2**53), "SESSION", "0" * 32], "ERR token: "),
        (["SESSION.KEEPALIVE", "0" * 32], "NOSESSION "),
        (["AUTH", "u", "p"], "ERR AUTH without any password configured"),
        (["HELLO", "9"], "ERR the protocol version: 9"),
        ([b"\x00"], "ERR unknown command"),
        (["PING", "x" * (LIMITS.word_bytes_max + 1)], "ERR Protocol error: a word of more than"),
    ],
)
@run_on_loops()
def test_a_wrong_command_gets_its_error(run: Run, command: list[str | bytes], text: str) -> None:
    async def main() -> None:
        async with serving() as served:
            witness, client = await served.client(), await served.client()
            await works(witness)
            assert (await client.refused(*command)).startswith(text)
            if "Protocol error" not in text:
                assert await client.ask("PING") == "PONG"
            await works(witness)

    run(main())


@pytest.mark.parametrize(
    "garbage",
    [
        b"PING\r\n",
        b"GET / HTTP/1.1\r\nHost: lockd\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        bytes(range(256)),
        b"\x00" * 10_000,
        b"*2147483647\r\n",
        pack("PING") + b"*2147483647\r\n$4\r\nPING\r\n",
        b"*1\r\n*1\r\n*1\r\n$4\r\nPING\r\n",
        b"*1000\r\n" + b"*1000\r\n" * 500,
        b"*17\r\n" + b"$65536\r\n%b\r\n" % (b"x" * 65536) * 17,
        b"*1\r\n$65537\r\n",
        b"*1\r\n$-1\r\n",
        b"*3\r\n$4\r\nPING\r\n:1\r\n",
    ],
)
@run_on_loops()
def test_garbage_gets_an_error_and_a_closed_connection(run: Run, garbage: bytes) -> None:
    async def main() -> None:
        async with serving() as served:
            witness, client = await served.client(), await served.client()
            await works(witness)
            client.write(garbage)
            try:
                while not isinstance(found := await client.reply(), Failure):
                    assert found == "PONG"
                assert str(found).startswith("ERR Protocol error: ")
            except (EOFError, ConnectionResetError):
                # The kernel drops what it has for a peer that is still sending when we close.
                assert len(garbage) > 65536
            assert await client.is_closed()
            await works(witness)
            assert served.listener.clients == 1

    run(main())


@run_on_loops()
def test_an_error_behind_good_commands_comes_after_their_answers(run: Run) -> None:
    async def main() -> None:
        async with serving() as served:
            client = await served.client()
            client.write(pack("SESSION.OPEN", 5000) + pack("PING", "1") + b"garbage" + pack("PING", "2"))
            opened, pong, error = await client.replies(3)
            assert "session" in as_map(opened)
            assert pong == "1"
            assert isinstance(error, Failure)
            assert await client.is_closed()

    run(main())


@run_on_loops()
def test_half_a_command_and_a_hang_up(run: Run) -> None:
    async def main() -> None:
        async with serving() as served:
            witness = await served.client()
            whole = pack("LOCK.ACQUIRE", "k", "TTL", 5000)
            for cut in range(1, len(whole)):
                client = await served.client()
                client.write(whole[:cut])
                await client.writer.drain()
                if cut % 2:
                    client.abort()
                else:
                    await client.close()
            await served.until(lambda: served.listener.clients == 1)
            await works(witness)
            assert as_map(await witness.ask("LOCK.INSPECT", "k"))["status"] == "free"

    run(main())


@run_on_loops()
def test_half_a_command_is_not_waited_for_for_ever(run: Run) -> None:
    async def main() -> None:
        async with serving(limits=HASTY) as served:
            witness, client = await served.client(), await served.client()
            client.write(pack("PING") + b"*2\r\n$4\r\nPING\r\n$5\r\nhel")
            assert await client.reply() == "PONG"
            assert await client.is_closed()
            await works(witness)  # idle between commands for longer than that

    run(main())


@run_on_loops()
def test_drip_fed_bytes_do_not_keep_half_a_command_alive(run: Run) -> None:
    async def main() -> None:
        async with serving(limits=HASTY) as served:
            client = await served.client()
            client.write(b"*1\r\n$4000\r\n")

            async def drip() -> None:
                while not client.writer.is_closing():
                    client.write(b"x")
                    await asyncio.sleep(0.01)

            dripping = asyncio.get_running_loop().create_task(drip())
            assert await client.is_closed()
            dripping.cancel()

    run(main())


def narrow(client: Client) -> None:
    """Let the kernel take little for a client that does not read."""
    sock = client.writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)


def flood(client: Client, count: int) -> None:
    client.writer.transport.pause_reading()  # type: ignore[attr-defined]  # a socket's transport
    client.write(pack("PING", "x" * 60_000) * count)


@run_on_loops()
def test_a_slow_reader_is_cut_off_and_costs_little(run: Run) -> None:
    async def main() -> None:
        async with serving(limits=HASTY) as served:
            witness, client = await served.client(), await served.client()
            narrow(client)
            flood(client, 500)  # 30 MB of answers
            await works(witness)
            await served.until(lambda: served.listener.clients == 1)
            await works(witness)

    run(main())


@run_on_loops()
def test_a_reader_that_is_slow_for_a_while_gets_everything(run: Run) -> None:
    async def main() -> None:
        async with serving() as served:
            witness, client = await served.client(), await served.client()
            flood(client, 500)
            await works(witness)
            (connection,) = [found for number, found in served.listener._connections.items() if number == 2]
            await served.until(lambda: not connection._writable)
            await works(witness)
            held = connection._output_bytes + sum(len(turn.reply or b"") for turn in connection._turns)
            assert held <= connection._limits.output_pause_bytes + 70_000
            client.writer.transport.resume_reading()  # type: ignore[attr-defined]  # a socket's transport
            assert await client.replies(500) == ["x" * 60_000] * 500

    run(main())


@run_on_loops()
def test_many_commands_behind_a_slow_one_are_not_kept(run: Run) -> None:
    async def main() -> None:
        limits = ConnectionLimits(commands_behind_max=10)
        async with serving(limits=limits) as served:
            witness, client = await served.client(), await served.client()
            served.node.hold_back()
            client.send("SESSION.OPEN", 5000)
            names = [f"k{number}" for number in range(50_000)]
            client.write(b"".join(pack("LOCK.INSPECT", name, "STALE") for name in names))
            (connection,) = [found for number, found in served.listener._connections.items() if number == 2]
            await served.until(lambda: not connection._reading)
            for _ in range(20):
                assert await witness.ask("PING") == "PONG"
            assert len(connection._behind) < 10_000  # one chunk of what the kernel had
            served.node.let_go()
            assert len(await client.replies(50_001)) == 50_001
            await works(witness)

    run(main())


@run_on_loops()
def test_much_behind_a_waiting_command_ends_the_connection(run: Run) -> None:
    """A paused connection would not show its hang-up, and the wait would outlive it (G4)."""

    async def main() -> None:
        async with serving(limits=ConnectionLimits(commands_behind_max=10)) as served:
            witness, client = await served.client(), await served.client()
            await witness.ask("LOCK.ACQUIRE", "k", "TTL", 60_000)
            client.send("LOCK.ACQUIRE", "k", "TTL", 60_000, "WAIT", "FOREVER")
            await served.until(lambda: served.node.machine.inspect("k").queue_length == 1)
            client.write(pack("PING") * 11)
            assert await client.is_closed()
            await works(witness)

    run(main())


@run_on_loops()
def test_garbage_behind_a_waiting_command_is_not_its_answer(run: Run) -> None:
    """An error would read as "not granted"; a closed connection reads as "unknown", which it is."""

    async def main() -> None:
        async with serving() as served:
            witness, client = await served.client(), await served.client()
            await witness.ask("LOCK.ACQUIRE", "k", "TTL", 60_000)
            client.send("LOCK.ACQUIRE", "k", "TTL", 60_000, "WAIT", "FOREVER")
            await served.until(lambda: served.node.machine.inspect("k").queue_length == 1)
            client.write(b"garbage")
            with pytest.raises((EOFError, ConnectionResetError)):
                await client.reply()
            await works(witness)

    run(main())


@run_on_loops()
def test_clients_over_the_limit_are_told_and_closed(run: Run) -> None:
    async def main() -> None:
        async with serving(clients_max=2) as served:
            witness, other = await served.client(), await served.client()
            await works(other)
            third = await served.client()
            refusal = await third.reply()
            assert str(refusal).startswith("LIMIT clients of this node: at most 2")
            assert await third.is_closed()
            await works(witness)
            await other.close()
            await served.until(lambda: served.listener.clients == 1)
            await works(await served.client())

    run(main())


@run_on_loops()
def test_a_connection_that_says_nothing_hurts_nobody(run: Run) -> None:
    async def main() -> None:
        async with serving() as served:
            for _ in range(50):
                (await served.client()).abort()
            await works(await served.client())
            await served.until(lambda: served.listener.clients == 1)
            assert served.node.gone == []  # nothing to withdraw: nothing goes into the log

    run(main())


@run_on_loops()
def test_a_hang_up_during_a_read_writes_nothing_into_the_log(run: Run) -> None:
    """P6: else whoever may look could fill the disk."""

    async def main() -> None:
        async with serving() as served:
            client = await served.client()
            served.node.hold_back()
            client.send("LOCK.INSPECT", "k")
            await served.until(lambda: served.node._reads)
            client.abort()
            await served.until(lambda: served.listener.clients == 0)
            served.node.let_go()
            assert served.node.gone == []

    run(main())


def test_a_fault_of_ours_in_reading_costs_one_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """P6: even if parsing had a bug, its sender alone would pay for it."""

    async def main() -> None:
        async with serving() as served:
            witness, client = await served.client(), await served.client()
            await works(witness)
            monkeypatch.setattr("lockd.server.connection.verbs.parse", lambda words: words[99])
            client.send("PING")
            assert await client.is_closed()
            monkeypatch.undo()
            await works(witness)

    asyncio.run(main())
