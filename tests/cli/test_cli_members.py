"""`lockd members`: what is asked of the cluster, what is shown, and which exit status says what."""

import asyncio
import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from lockd.cli import main, members
from lockd.locks.commands import AddMember, PromoteMember, RemoveMember
from lockd.server.config import Address
from lockd.server.listener import Listener
from tests.listener.single import CLUSTER, SingleNode


class Served:
    """A node in memory that clients reach over a real socket, on a loop in a thread of its own."""

    def __init__(self) -> None:
        self.node = SingleNode()
        self.endpoint = ""
        self._started = threading.Event()
        self._stop: asyncio.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        listener = Listener(self.node)
        await listener.start(Address("127.0.0.1", 0))
        self.endpoint = f"127.0.0.1:{listener.port}"
        self._started.set()
        await self._stop.wait()
        await listener.stop()

    def __enter__(self) -> "Served":
        self._thread.start()
        assert self._started.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._loop is not None
        assert self._stop is not None
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    with Served() as serving:
        monkeypatch.setenv("LOCKD_ENDPOINTS", serving.endpoint)
        yield serving


class Lockd:
    """The command line in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *arguments: str) -> tuple[int, str, str]:
        """Exit status, standard output, standard error."""
        status = main(arguments)
        shown = self._capsys.readouterr()
        assert "Traceback" not in shown.err
        return status, shown.out, shown.err

    def json(self, *arguments: str) -> Any:
        status, out, err = self(*arguments, "--json")
        assert status == 0, err
        return json.loads(out)


@pytest.fixture
def lockd(capsys: pytest.CaptureFixture[str]) -> Lockd:
    return Lockd(capsys)


def test_each_change_is_asked_for_as_it_was_said(served: Served, lockd: Lockd) -> None:
    for command, says in (
        (("add", "4", "d:7421"), "node 4 is a member at d:7421, and becomes a voter"),
        (("add", "5", "[::1]:7421", "--learner", "--force"), "stays a learner"),
        (("promote", "5"), "node 5 is a voter"),
        (("promote", "5", "--force"), "node 5 is a voter"),
        (("remove", "4", "--force"), "node 4 is removed"),
        (("remove", "5"), "node 5 is removed"),
    ):
        status, out, err = lockd("members", *command)
        assert (status, err) == (0, "")
        assert says in out
    assert [batch[0] for batch in served.node.batches] == [
        AddMember(4, "d:7421", wants_vote=True),
        AddMember(5, "[::1]:7421", wants_vote=False),
        PromoteMember(5),
        PromoteMember(5),
        RemoveMember(4),
        RemoveMember(5),
    ]
    assert served.node.forced == [False, True, False, True, True, False]


def test_leadership_is_handed_on(served: Served, lockd: Lockd) -> None:
    assert lockd("members", "transfer", "3") == (0, "node 3 leads\n", "")
    assert lockd.json("members", "transfer") == {"leader": 1}
    assert served.node.transfers == [3, 0]


def test_the_members_are_shown_with_learners_and_used_up_ids(served: Served, lockd: Lockd) -> None:
    del served
    lockd("members", "add", "4", "d:7421")
    lockd("members", "add", "5", "e:7421", "--learner")
    lockd("members", "add", "6", "f:7421")
    lockd("members", "remove", "6")
    status, out, _ = lockd("members")
    assert status == 0
    for line in ("1     leader", "4     learner, will vote", "5     learner  ", "to be used again: 6"):
        assert line in out
    found = lockd.json("members")
    assert found["cluster"] == CLUSTER
    assert [(m["node"], m["voter"], m["wants_vote"]) for m in found["members"]] == [
        (1, 1, 0),
        (4, 0, 1),
        (5, 0, 0),
    ]
    assert found["removed"] == [6]
    _, out, _ = lockd("status")
    assert "4     learner, will vote" in out
    assert "5     learner  " in out


def test_c8_a_refusal_of_the_cluster_is_status_1_with_its_reason(served: Served, lockd: Lockd) -> None:
    del served
    lockd("members", "remove", "4")
    status, out, err = lockd("members", "add", "4", "d:7421")
    assert (status, out) == (1, "")
    assert err == "lockd members: node 4 was removed: ids are not used again\n"
    status, _, err = lockd("members", "add", "4", "d:7421", "--json")
    assert (status, json.loads(err)["exit_status"]) == (1, 1)


def test_what_is_so_already_is_no_refusal(served: Served, lockd: Lockd) -> None:
    """The client asks again when an answer is lost, and is then told that it can't be done twice."""
    lockd("members", "add", "4", "d:7421")
    lockd("members", "remove", "5")
    served.node.refuses_changes = True
    assert lockd("members", "add", "4", "d:7421")[0] == 0
    assert lockd("members", "remove", "5")[0] == 0
    assert lockd("members", "promote", "1")[0] == 0
    for otherwise in (("add", "4", "e:7421"), ("remove", "4"), ("promote", "4"), ("transfer", "4")):
        status, _, err = lockd("members", *otherwise)
        assert (status, err) == (1, "lockd members: it is so already\n")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("add", "4"), "HOST:PORT"),
        (("add", "0", "d:7421"), "0 is not in the range"),
        (("add", "4", "d"), "'d' is not HOST:PORT"),
        (("add", "4", "0.0.0.0:7421"), "every address"),
        (("add", "4", "d\udcff:1"), "surrogates not allowed"),
        (("remove",), "Missing argument 'ID'"),
        (("transfer", "x"), "not a valid whole number"),
        (("swap", "4"), "No such command 'swap'"),
        (("--endpoints", "elsewhere:1", "remove", "4"), "options go behind the command"),
        (("--json", "remove", "4"), "options go behind the command"),
    ],
)
def test_wrong_usage_is_status_2_and_asks_the_cluster_nothing(
    served: Served, lockd: Lockd, arguments: tuple[str, ...], says: str
) -> None:
    status, _, err = lockd("members", *arguments)
    assert status == 2
    assert says in err
    assert not served.node.batches
    assert not served.node.transfers


def test_without_a_leader_it_is_status_3(
    served: Served, lockd: Lockd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(members, "CHANGE_PATIENCE_SECONDS", 1.0)
    served.node.unavailable = True
    status, out, _ = lockd("members")
    assert status == 3
    assert "1     follower" in out
    status, _, err = lockd("members", "remove", "4")
    assert status == 3
    assert "no leader is known" in err


def test_an_answer_that_is_lost_is_status_3_and_says_to_look(
    served: Served, lockd: Lockd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(members, "CHANGE_PATIENCE_SECONDS", 1.0)
    served.node.hold_back()
    status, _, err = lockd("members", "remove", "4")
    assert status == 3
    assert "look with `lockd members`" in err
