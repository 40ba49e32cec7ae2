"""What operators ask, through real sockets: members, leadership, copies of the state (C7, C8, G11)."""

import hashlib
from pathlib import Path

import pytest

from lockd.locks.commands import AddMember, PromoteMember, RemoveMember
from lockd.passwords import hash_password
from lockd.protocol.cluster_verbs import SNAPSHOT_PART_BYTES_MAX
from lockd.server.auth import Users
from lockd.server.operating import COPIES_MAX
from tests.listener.harness import Client, Run, Serving, as_map, pack, run_on_loops, serving
from tests.listener.single import CLUSTER, INCARNATION

MEMBER_FIELDS = {
    "node", "peer", "client", "http", "instance", "voter", "wants_vote", "match_index", "alive",
}  # fmt: skip


@run_on_loops()
def test_members_come_and_go(run: Run) -> None:
    async def main() -> None:
        async with serving() as served:
            client = await served.client(resp=3)
            for asker in (client, await served.client()):
                found = as_map(await asker.ask("CLUSTER.MEMBERS"))
                assert set(found) == {"cluster", "incarnation", "node", "leader", "members", "removed"}
                assert (found["cluster"], found["incarnation"], found["leader"]) == (CLUSTER, INCARNATION, 1)
                assert [set(as_map(member)) for member in found["members"]] == [MEMBER_FIELDS]
            assert await client.ask("CLUSTER.ADD", 4, "d:7421") == 1
            assert await client.ask("cluster.add", 5, "[::1]:7421", "learner") == 1
            found = await client.ask("CLUSTER.MEMBERS")
            assert [(m["node"], m["peer"], m["voter"], m["wants_vote"]) for m in found["members"]] == [
                (1, "peer:1", 1, 0),
                (4, "d:7421", 0, 1),
                (5, "[::1]:7421", 0, 0),
            ]
            assert await client.ask("CLUSTER.PROMOTE", 5) == 1
            assert await client.ask("CLUSTER.REMOVE", 4) == 1
            assert "ids are not used again" in await client.refused("CLUSTER.ADD", 4, "d:7421")  # C8
            found = await client.ask("CLUSTER.MEMBERS")
            assert found["removed"] == [4]
            assert (await client.ask("CLUSTER.STATUS"))["members"] == found["members"]
            assert [batch[0] for batch in served.node.batches] == [
                AddMember(4, "d:7421", wants_vote=True),
                AddMember(5, "[::1]:7421", wants_vote=False),
                PromoteMember(5),
                RemoveMember(4),
                AddMember(4, "d:7421", wants_vote=True),
            ]
            assert served.node.forced == [False] * 5

    run(main())


@run_on_loops()
def test_force_is_passed_on_and_never_assumed(run: Run) -> None:
    """C7: a change whose new quorum can't be reached is refused unless an operator says FORCE."""

    async def main() -> None:
        async with serving() as served:
            client = await served.client()
            for words in (("ADD", 4, "d:7421"), ("PROMOTE", 4), ("REMOVE", 4)):
                await client.ask(f"CLUSTER.{words[0]}", *words[1:], "FORCE")
            assert served.node.forced == [True] * 3

    run(main())


@run_on_loops()
def test_leadership_is_handed_on(run: Run) -> None:
    async def main() -> None:
        async with serving() as served:
            client = await served.client()
            assert await client.ask("CLUSTER.TRANSFER") == 1
            assert await client.ask("CLUSTER.TRANSFER", 3) == 1
            assert served.node.transfers == [0, 3]

    run(main())


@run_on_loops()
def test_without_a_leader_nothing_is_changed_and_the_members_are_shown(run: Run) -> None:
    async def main() -> None:
        async with serving() as served:
            client = await served.client()
            served.node.unavailable = True
            for words in (["ADD", 4, "d:1"], ["PROMOTE", 4], ["REMOVE", 4], ["TRANSFER"], ["SNAPSHOT"]):
                assert (await client.refused(f"CLUSTER.{words[0]}", *words[1:])).startswith("UNAVAILABLE ")
            assert as_map(await client.ask("CLUSTER.MEMBERS"))["leader"] == 0

    run(main())


async def read_bytes(client: Client, *words: object) -> bytes:
    """One bulk string, byte for byte."""
    client.write(pack(*words))
    header = await client.reader.readuntil(b"\r\n")
    assert header.startswith(b"$"), header
    return (await client.reader.readexactly(int(header[1:]) + 2))[:-2]


@run_on_loops()
def test_a_snapshot_is_read_in_parts_byte_for_byte(run: Run) -> None:
    data = b"".join(hashlib.sha256(bytes([number])).digest() for number in range(256)) * 160

    async def main() -> None:
        async with serving() as served:
            served.node.snapshot_bytes = data
            client = await served.client(resp=3)
            made = await client.ask("CLUSTER.SNAPSHOT")
            assert set(made) == {"id", "index", "term", "bytes"}
            assert (made["index"], made["term"], made["bytes"]) == (2, 1, len(data))
            got = b""
            while part := await read_bytes(
                client, "CLUSTER.SNAPSHOT", made["id"], len(got), SNAPSHOT_PART_BYTES_MAX
            ):
                assert len(part) <= SNAPSHOT_PART_BYTES_MAX
                got += part
            assert got == data
            behind = await client.refused("CLUSTER.SNAPSHOT", made["id"], len(data) + 1, 1)
            assert "behind the end" in behind

    run(main())


@run_on_loops()
def test_c10_a_connection_has_one_snapshot_open_and_takes_it_with_it(run: Run) -> None:
    async def main() -> None:
        async with serving() as served:
            client, other = await served.client(resp=3), await served.client()
            first = await client.ask("CLUSTER.SNAPSHOT")
            second = await client.ask("CLUSTER.SNAPSHOT")
            assert [snapshot.is_closed for snapshot in served.node.snapshots] == [True, False]
            for asker, name in ((client, first["id"]), (other, second["id"])):
                assert "was made over this connection" in await asker.refused("CLUSTER.SNAPSHOT", name, 0, 8)
            await client.close()
            await served.until(lambda: served.node.snapshots[1].is_closed)

    run(main())


@run_on_loops()
def test_c10_a_node_keeps_so_many_snapshots_and_no_more(run: Run) -> None:
    """Each is a file as large as the state: they would fill the disk, which stops the node (P6)."""

    async def main() -> None:
        async with serving() as served:
            clients = [await served.client() for _ in range(COPIES_MAX + 1)]
            for client in clients[1:-1]:
                await client.ask("CLUSTER.SNAPSHOT")
            served.node.hold_back()
            clients[0].send("CLUSTER.SNAPSHOT")
            await served.until(lambda: served.node._reads)
            await clients[0].close()  # what is being made for it counts until it is made
            assert "keeps no more" in await clients[-1].refused("CLUSTER.SNAPSHOT")
            served.node.let_go()
            await served.until(lambda: served.node.snapshots[-1].is_closed)
            for client in clients[1:]:
                await client.ask("CLUSTER.SNAPSHOT")  # in the place of its own, or the last
            assert sum(not snapshot.is_closed for snapshot in served.node.snapshots) == COPIES_MAX

    run(main())


@run_on_loops()
def test_a_snapshot_that_is_ready_too_late_is_let_go_of(run: Run) -> None:
    async def main() -> None:
        async with serving() as served:
            client = await served.client()
            await client.ask("PING")
            served.node.hold_back()
            client.send("CLUSTER.SNAPSHOT")
            await served.until(lambda: served.node._reads)
            await client.close()
            await served.until(lambda: served.listener.clients == 0)
            served.node.let_go()
            assert [snapshot.is_closed for snapshot in served.node.snapshots] == [True]

    run(main())


@pytest.fixture
def users(tmp_path: Path) -> Users:
    hashed = hash_password("p")
    file = tmp_path / "users.toml"
    file.write_text(
        f'[users.app]\npassword_scrypt = "{hashed}"\nroles = ["lock", "break"]\n'
        f'[users.ops]\npassword_scrypt = "{hashed}"\nroles = ["operator"]\n'
    )
    return Users.load(file)


@run_on_loops()
def test_g11_only_operators_may(run: Run, users: Users) -> None:
    async def main() -> None:
        async with serving(users=users) as served:
            verbs = (
                *(("CLUSTER.MEMBERS",), ("CLUSTER.ADD", 4, "d:1"), ("CLUSTER.PROMOTE", 4)),
                *(("CLUSTER.REMOVE", 4), ("CLUSTER.TRANSFER",), ("CLUSTER.SNAPSHOT",)),
                ("CLUSTER.SNAPSHOT", "0" * 16, 0, 1),
            )
            app = await _logged_in(served, "app")
            for words in verbs:
                assert "needs the role operator" in await app.refused(*words)
            assert not served.node.batches
            assert not served.node.snapshots
            ops = await _logged_in(served, "ops")
            assert await ops.ask("CLUSTER.ADD", 4, "d:1") == 1

    run(main())


async def _logged_in(served: Serving, user: str) -> Client:
    client = await served.client()
    assert await client.ask("AUTH", user, "p") == "OK"
    return client
