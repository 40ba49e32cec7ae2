"""G8: the machine refuses a wait exactly when trying everything finds no way out for its owner."""

import random
import re
from collections import Counter

import pytest

from lockd.ids import LogIndex
from lockd.locks.commands import (
    EXCLUSIVE,
    SEMAPHORE,
    SHARED,
    WAIT_FOREVER,
    Acquire,
    AcquireAll,
    Batch,
    Break,
    Cancel,
    Command,
    FreeRevoked,
    OpenSession,
    Operation,
    Origin,
    Refused,
    Release,
    ReleaseAll,
)
from lockd.locks.limits import Limits
from lockd.locks.machine import LockMachine
from lockd.locks.restore import restored_state
from tests.locks.cluster_state import ClusterState
from tests.locks.deadlock_search import Claim, can_run_to_its_end, lost_owners
from tests.locks.reference import Reference
from tests.locks.reference_records import Request, said

A, B, C = ("s", "a"), ("s", "b"), ("s", "c")
OWNERS = (("s1", "t1"), ("s1", "t2"), ("s1", "t3"), ("s2", "t1"), ("s2", "t2"))
PLAIN = ("a", "b", "c")
STEPS = 60
NAMES_CYCLE = re.compile(
    'this wait would never end: this owner waits for "[a-z]+" behind '
    '(owner "t." of session ., owner "t." of session . waits for "[a-z]+" behind )*this owner'
)


class Contest:
    """A few owners who want more than there is, in the machine and in the reference."""

    def __init__(self, seed: int, wishes: tuple[str, ...]) -> None:
        self.draw = random.Random(seed)
        self.wishes = wishes
        self.machine = LockMachine()
        self.reference = Reference(Limits())
        if seed % 4 == 3:
            self.machine, self.reference = in_quiet_period()
        self.stamp_ms = 0
        self.drawn = 0
        self.refused: Counter[str] = Counter()
        for session in ("s1", "s2"):
            self.send(OpenSession(10_000, "", ""), session)

    def send(self, operation: Operation, session: str, owner: str = "") -> None:
        self.drawn += 1
        command = Command("ann", session, owner, self.drawn, Origin(1, 1, 1, self.drawn), operation)
        if isinstance(operation, Acquire) and operation.ttl_ms:
            command = Command("ann", f"p{self.drawn}", owner, f"u{self.drawn}", command.origin, operation)
        self.apply(command)

    def apply(self, command: Command) -> None:
        batch = Batch(Batch.VERSION, self.stamp_ms, (command,))
        completions = self.machine.apply(LogIndex(self.drawn), batch)
        assert self.reference.apply(self.stamp_ms, command) == [
            said(completion) for completion in completions
        ]
        for completion in completions:
            if isinstance(completion.outcome, Refused):
                self.refused[completion.outcome.code] += 1
                if completion.outcome.code == "DEADLOCK":
                    assert NAMES_CYCLE.fullmatch(completion.outcome.text), completion.outcome.text
        claims = tuple(request.claim for request in self.reference.live)
        assert lost_owners(claims) == []

    def step(self) -> None:
        if self.draw.random() < 0.02:
            self.stamp_ms += Limits().ttl_ms_max
        session, owner = self.draw.choice(OWNERS)
        if self.draw.random() < 0.6:
            owner = owner if self.draw.random() < 0.9 else ""
            self.send(self._wish(), session, owner)
        elif self.reference.live:
            self._end(self.draw.choice(self.reference.live))

    def _wish(self) -> Operation:
        draw, lock = self.draw, self.draw.choice(PLAIN)
        match draw.choice(self.wishes):
            case "semaphore":
                weight = draw.choice((1, 1, 2, 3))
                name = draw.choice(("sem", "sem", "pool"))
                return Acquire(name, 0, WAIT_FOREVER, "", limit=3, weight=weight)
            case "all":
                names = draw.sample((*PLAIN, "d"), draw.choice((2, 2, 3)))
                return AcquireAll(tuple(names), WAIT_FOREVER, "")
            case "private":
                return Acquire(lock, 5_000, WAIT_FOREVER, "")
            case mode:
                delay_ms = draw.choice((0, 0, 5_000)) if mode == EXCLUSIVE else 0
                return Acquire(lock, 0, WAIT_FOREVER, "", mode=mode, delay_ms=delay_ms)

    def _end(self, request: Request) -> None:
        if not request.token or request.private:
            command = Command(
                "ann", request.session, "", request.id, Origin(1, 1, 1, 0), Cancel(request.locks[0])
            )
            self.drawn += 1
            self.apply(command)
            return
        lock = self.draw.choice(request.locks)
        what: tuple[Operation, ...] = (
            Release(lock, request.token),
            ReleaseAll(request.token),
            Break(lock, request.token, "drill", False),
            FreeRevoked((request.token,)),
        )
        self.send(self.draw.choice(what), request.session)


def in_quiet_period() -> tuple[LockMachine, Reference]:
    """All queue up, and who is let in when it is over has to be foreseen."""
    saved = b"".join(LockMachine().snapshot())
    pieces = restored_state(
        saved, now_unix_s=9, taken_unix_s=9, incarnation="1", node=1, instance="", peer_address="h:1"
    )
    machine = LockMachine.from_snapshot(b"".join(pieces))
    return machine, Reference(Limits(), token=machine.token, quiet_ms=machine.grants_from_ms)


@pytest.mark.parametrize(
    "wishes",
    [
        (EXCLUSIVE,),
        (EXCLUSIVE, SHARED, SHARED),
        ("semaphore", "semaphore", EXCLUSIVE),
        ("all", EXCLUSIVE),
        (EXCLUSIVE, SHARED, SHARED, "semaphore", "semaphore", "all", "private"),
    ],
    ids=["exclusive", "shared", "semaphore", "all-at-once", "mixed"],
)
def test_g8_every_deadlock_is_refused_and_nothing_else(wishes: tuple[str, ...]) -> None:
    refused: Counter[str] = Counter()
    for seed in range(60):
        contest = Contest(seed, wishes)
        for _ in range(STEPS):
            contest.step()
        refused += contest.refused
    assert refused["DEADLOCK"] > 30, "the contests are too tame to show anything"


def test_g3_the_refusal_is_the_answer_to_its_id_when_the_way_is_free_too() -> None:
    cluster = ClusterState()
    cluster.open("s1")
    held = {name: cluster.acquire(name, "s1", owner=f"t{name}").granted.token for name in "ab"}
    waiting = cluster.acquire("b", "s1", owner="ta", request=1)
    refused = cluster.acquire("a", "s1", owner="tb", request=2).refused
    assert refused.code == "DEADLOCK"
    cluster.release("b", held["b"], "s1")
    cluster.release("b", waiting.granted.token, "s1")
    cluster.release("a", held["a"], "s1")
    assert cluster.acquire("a", "s1", owner="tb", request=2).refused == refused


def claims(*texts: str) -> tuple[Claim, ...]:
    """Claims in the order of arrival, each as "owner holds|waits lock... [mode] [weight/limit]"."""
    found = []
    for ticket, text in enumerate(texts):
        owner, verb, *words = text.split()
        locks = tuple(word for word in words if len(word) == 1)
        units = [tuple(map(int, word.split("/"))) for word in words if "/" in word]
        mode = SEMAPHORE if units else SHARED if SHARED in words else EXCLUSIVE
        weight, limit = units[0] if units else (1, 0)
        found.append(Claim(ticket, ("s", owner), locks, mode, limit, weight, verb == "holds"))
    return tuple(found)


@pytest.mark.parametrize(
    ("lost", "texts"),
    [
        ([], ("a holds x", "b waits x")),
        ([A, B], ("a holds x", "b holds y", "a waits y", "b waits x")),
        ([A], ("a holds x", "a waits x")),
        ([A, B], ("a holds x shared", "b holds x shared", "a waits x", "b waits x")),
        ([], ("a holds x shared", "b waits x", "b holds y shared", "a waits y shared")),
        # Nobody overtakes: a waits behind c in y, and c waits for x, which a holds.
        ([A, B, C], ("b holds y shared", "a holds x", "c waits x y", "a waits y shared", "b waits x")),
        ([], ("a holds x 1/3", "b holds x 1/3", "a waits x 1/3")),
        ([A, B], ("a holds x 1/3", "b holds x 1/3", "a waits x 2/3", "b waits x 2/3")),
        ([], ("a holds x 1/3", "b holds x 1/3", "c holds x 1/3", "a waits x 1/3", "b waits x 1/3")),
        ([A, B], ("a holds x", "b holds y", "b waits x z", "a waits z y")),
    ],
)
def test_the_search_knows_deadlocks_that_are_plain_to_see(lost: list[object], texts: tuple[str, ...]) -> None:
    assert lost_owners(claims(*texts)) == lost


def test_the_search_lets_out_whoever_can_still_end() -> None:
    held = claims("a holds x", "b holds y", "a waits y", "c waits x")
    assert all(can_run_to_its_end(held, owner) for owner in (A, B, C))
