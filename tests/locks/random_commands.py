"""Random batches of commands, mostly sensible, some odd, the same for the same seed."""

import random
from typing import get_args

from lockd.locks.commands import (
    EXCLUSIVE,
    SHARED,
    WAIT_FOREVER,
    AcknowledgeNotices,
    Acquire,
    AcquireAll,
    AddMember,
    Batch,
    Break,
    Cancel,
    ChangeMeta,
    ClearSilent,
    CloseSession,
    Command,
    CreateCluster,
    ExpireSessions,
    FreeRevoked,
    MarkSilent,
    OpenSession,
    Operation,
    Origin,
    OriginGone,
    PromoteMember,
    RegisterNode,
    Release,
    ReleaseAll,
    RemoveMember,
    RequestOrphaned,
)
from lockd.locks.state import LockState
from lockd.locks.views import LockView, view_lock

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
        held = view_lock(state, draw.choice(_LOCKS))
        if held.holders and draw.random() < 0.5:
            commands.append(self._about(state, held))
        return Batch(Batch.VERSION, stamp_ms, tuple(commands))

    def _about(self, state: LockState, held: LockView) -> Command:
        """Something that its holder may do with a grant, or others to it."""
        draw = self._draw
        holder = draw.choice(held.holders)
        session = next(each for each in state.sessions.values() if each.number == holder.session_number)
        operation: Operation = Release(held.name, holder.token)
        if draw.random() < 0.3:
            operation = draw.choice(
                (
                    ReleaseAll(holder.token),
                    ChangeMeta(held.name, holder.token, draw.choice(_ODD_TEXTS)),
                    Break(held.name, holder.token, draw.choice(_ODD_TEXTS), draw.random() < 0.5),
                    AcknowledgeNotices(draw.randrange(4)),
                    FreeRevoked((holder.token, holder.token - 1)),
                )
            )
        return Command(session.user, session.id, "", 0, Origin(1, 1, 1, 99), operation)


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
    kind = draw.choices((_of_a_session, _of_a_request, _of_a_grant), weights=(2, 8, 3))[0]
    return kind(draw, origin)


def _of_a_session(draw: random.Random, origin: Origin) -> Operation:
    odd = draw.choice(_ODD_NUMBERS)
    sessions = tuple(draw.choices(_SESSIONS, k=draw.randrange(3)))
    match draw.choices(range(8), weights=(1, 2, 6, 2, 1, 2, 1, 1))[0]:
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
        case _:
            return AcknowledgeNotices(draw.choice((1, 2, odd)))


def _of_a_request(draw: random.Random, origin: Origin) -> Operation:
    lock = _lock(draw)
    match draw.choices(range(5), weights=(26, 8, 8, 3, 4))[0]:
        case 0:
            return _acquire(draw, lock)
        case 1:
            locks = tuple(draw.choices(_LOCKS[:-1], k=draw.randrange(4)))
            wait_ms = draw.choice((0, 300, WAIT_FOREVER, draw.choice(_ODD_NUMBERS)))
            return AcquireAll(locks, wait_ms, "", draw.random() < 0.5)
        case 2:
            return Cancel(lock)
        case 3:
            only = draw.choice((0, 0, origin.operation))
            return OriginGone(origin.node, origin.boot, origin.connection, draw.random() < 0.3, only)
        case _:
            return RequestOrphaned(lock, draw.randrange(4))


def _of_a_grant(draw: random.Random, origin: Origin) -> Operation:
    del origin
    lock, text = _lock(draw), draw.choice(_ODD_TEXTS)
    token = draw.choice((draw.randrange(1, 200), draw.choice(_ODD_NUMBERS)))
    match draw.choices(range(5), weights=(10, 2, 1, 2, 1))[0]:
        case 0:
            return Release(lock, token)
        case 1:
            return ReleaseAll(token)
        case 2:
            return ChangeMeta(lock, token, text)
        case 3:
            return Break(lock, token, text, draw.random() < 0.5)
        case _:
            return FreeRevoked((token, token, draw.randrange(1, 200)))


def _lock(draw: random.Random) -> str:
    return draw.choice(_ODD_TEXTS if draw.random() < 0.02 else _LOCKS)


def _acquire(draw: random.Random, lock: str) -> Acquire:
    def mostly(usual: int, *others: int) -> int:
        return usual if draw.random() < 0.8 else draw.choice((*others, draw.choice(_ODD_NUMBERS)))

    return Acquire(
        lock,
        ttl_ms=draw.choice((0, 0, 0, 2_000, draw.choice(_ODD_NUMBERS))),
        wait_ms=draw.choice((0, 300, 5_000, WAIT_FOREVER, draw.choice(_ODD_NUMBERS))),
        meta="",
        notify=draw.random() < 0.5,
        mode=draw.choice((EXCLUSIVE, SHARED, "x")) if draw.random() < 0.5 else EXCLUSIVE,
        limit=mostly(2 if lock.startswith("c") else 0, 1, 3),
        weight=mostly(1, 2),
        max_hold_ms=mostly(0, 700),
        delay_ms=mostly(0, 900),
    )


def _change_of_members(draw: random.Random) -> Operation:
    node = draw.choice(_ODD_NUMBERS) if draw.random() < 0.1 else draw.randrange(4, 12)
    joins = AddMember(node, draw.choice(("h:1", "h:1", "h:2", "")), draw.random() < 0.5)
    return draw.choice((joins, joins, PromoteMember(node), RemoveMember(node)))
