"""Random batches of commands, mostly sensible, some odd, the same for the same seed."""

import random
from typing import get_args

from lockd.locks.commands import (
    WAIT_FOREVER,
    Acquire,
    AddMember,
    Batch,
    Cancel,
    ClearSilent,
    CloseSession,
    Command,
    CreateCluster,
    ExpireSessions,
    MarkSilent,
    OpenSession,
    Operation,
    Origin,
    OriginGone,
    PromoteMember,
    RegisterNode,
    Release,
    RemoveMember,
    RequestOrphaned,
)
from lockd.locks.state import LockState

ALL_KINDS: tuple[type, ...] = get_args(Operation)

_SESSIONS = tuple(f"s{n}" for n in range(6))
_LOCKS = ("a", "b", "c/1", "ünï", "")
_OWNERS = ("", "t1", "t2")
_USERS = ("ann", "ann", "ann", "bob", "")
_ODD_TEXTS = ("", "x" * 5_000, "line\nbreak", "\x85", "é" * 300)
_ODD_NUMBERS = (-(2**63), -2, -1, 0, 1, 2**31, 2**53, 2**63 - 1)


class RandomLog:
    """A log that is drawn while it is applied, so that it can release what is held."""

    def __init__(self, seed: int) -> None:
        self._draw = random.Random(seed)
        self._stamp_ms = 0

    def next_batch(self, state: LockState) -> Batch:
        """Up to four commands, with a stamp that mostly grows."""
        draw = self._draw
        self._stamp_ms += draw.choice((0, 1, 7, 90, 400, 2_500))
        stamp_ms = max(0, self._stamp_ms - (1_000 if draw.random() < 0.05 else 0))
        commands = [random_command(draw) for _ in range(draw.randrange(5))]
        lock = state.locks.get(draw.choice(_LOCKS))
        holder = None if lock is None else next(iter(lock.holders.values()), None)
        if holder is not None and draw.random() < 0.5:
            user = state.sessions[holder.session].user
            release = Release(holder.lock.name, holder.token)
            commands.append(Command(user, holder.session, "", 0, Origin(1, 1, 1, 99), release))
        return Batch(Batch.VERSION, stamp_ms, tuple(commands))


def random_command(draw: random.Random) -> Command:
    origin = Origin(
        draw.choice((1, 2, 3, 5)), draw.randrange(1, 3), draw.randrange(0, 4), draw.randrange(1, 50)
    )
    operation = _change_of_members(draw) if draw.random() < 0.02 else _operation(draw, origin)
    request: int | str = draw.choice((0, draw.randrange(1, 40), draw.randrange(1, 40), "", "u1", "u2", "u3"))
    session = draw.choice(_SESSIONS)
    if isinstance(operation, Acquire) and operation.ttl_ms:
        session = f"p{draw.randrange(10**6)}"
        request = draw.choice(("", "u1", "u2", "u3", "u4", 3))
    if draw.random() < 0.02:
        request = draw.choice((-5, 2**63, "x" * 500))
    user, owner = draw.choice(_USERS), draw.choice(_OWNERS)
    return Command(user, session, owner, request, origin, operation)


def _operation(draw: random.Random, origin: Origin) -> Operation:
    lock = draw.choice(_ODD_TEXTS if draw.random() < 0.02 else _LOCKS)
    odd = draw.choice(_ODD_NUMBERS)
    sessions = tuple(draw.choices(_SESSIONS, k=draw.randrange(3)))
    match draw.choices(range(12), weights=(1, 2, 6, 2, 1, 2, 1, 30, 8, 14, 3, 4))[0]:
        case 0:
            return CreateCluster("c" * 32, "1" * 8)
        case 1:
            return RegisterNode(draw.choice((origin.node, 5)), "0" * 32, "p", "c", "h", "0.1.0")
        case 2:
            return OpenSession(draw.choice((1_000, 5_000, odd)), draw.choice(("", "billing")), "")
        case 3:
            return CloseSession()
        case 4:
            return ExpireSessions(sessions)
        case 5:
            return MarkSilent(tuple((session, draw.choice((600, odd))) for session in sessions))
        case 6:
            return ClearSilent()
        case 7:
            ttl_ms = draw.choice((0, 0, 0, 2_000, odd))
            wait_ms = draw.choice((0, 300, 5_000, WAIT_FOREVER, odd))
            return Acquire(lock, ttl_ms, wait_ms, "", draw.random() < 0.5)
        case 8:
            return Cancel(lock)
        case 9:
            return Release(lock, draw.choice((draw.randrange(1, 200), odd)))
        case 10:
            only = draw.choice((0, 0, origin.operation))
            return OriginGone(origin.node, origin.boot, origin.connection, draw.random() < 0.3, only)
        case _:
            return RequestOrphaned(lock, draw.randrange(4))


def _change_of_members(draw: random.Random) -> Operation:
    node = draw.choice(_ODD_NUMBERS) if draw.random() < 0.1 else draw.randrange(4, 12)
    joins = AddMember(node, draw.choice(("h:1", "h:1", "h:2", "")), draw.random() < 0.5)
    return draw.choice((joins, joins, PromoteMember(node), RemoveMember(node)))
