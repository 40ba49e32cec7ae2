"""G1 to G7, C9: the machine, at times from a snapshot, and its plainest form, over random histories."""

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from lockd.ids import LogIndex
from lockd.locks.commands import (
    WAIT_FOREVER,
    Acquire,
    Batch,
    Cancel,
    CloseSession,
    Command,
    ExpireSessions,
    OpenSession,
    Operation,
    Origin,
    OriginGone,
    Release,
    RequestOrphaned,
)
from lockd.locks.limits import Limits
from lockd.locks.machine import LockMachine
from tests.locks.reference import Reference, said

LIMITS = Limits(ttl_ms_max=3_000, private_answers_kept_max=3, private_answers_forgotten_per_entry=2)
SESSIONS = st.sampled_from(("s1", "s2", "s3"))
LOCKS = st.sampled_from(("a", "b"))
OWNERS = st.just("")
USERS = st.sampled_from(("ann", "ann", "ann", "bob"))
NUMBERS = st.integers(0, 9)
UUIDS = st.sampled_from(("", "u1", "u2", "u3"))
WAITS = st.sampled_from((0, 400, 1_500, WAIT_FOREVER))
CONNECTIONS = st.integers(1, 3)
NODES = st.integers(1, 2)


class MachineAgainstReference(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.machine = LockMachine(LIMITS)
        self.reference = Reference(LIMITS)
        self.index = 0
        self.stamp_ms = 0
        self.drawn = 0

    def send(
        self,
        operation: Operation,
        *,
        user: str = "ann",
        session: str = "",
        owner: str = "",
        request: int | str = 0,
        node: int = 1,
        connection: int = 0,
    ) -> None:
        self.drawn += 1
        origin = Origin(node, 1, connection, self.drawn)
        self.apply(Command(user, session, owner, request, origin, operation))

    def apply(self, *commands: Command) -> None:
        self.index += 1
        batch = Batch(Batch.VERSION, self.stamp_ms, commands)
        real = [said(completion) for completion in self.machine.apply(LogIndex(self.index), batch)]
        assert real == self.reference.apply(self.stamp_ms, *commands)

    @initialize()
    def sessions_to_begin_with(self) -> None:
        for session in ("s1", "s2"):
            self.send(OpenSession(2_000, "", ""), session=session)

    @rule(session=SESSIONS, user=USERS, ttl_ms=st.sampled_from((1, 1_000, 2_000)))
    def open(self, session: str, user: str, ttl_ms: int) -> None:
        self.send(OpenSession(ttl_ms, "", ""), session=session, user=user)

    @rule(session=SESSIONS, user=USERS)
    def close(self, session: str, user: str) -> None:
        self.send(CloseSession(), session=session, user=user)

    @rule(data=st.data())
    def expire(self, data: st.DataObject) -> None:
        known = sorted(self.reference.sessions)
        if known:
            some = data.draw(st.lists(st.sampled_from(known), max_size=2))
            self.send(ExpireSessions(tuple(some)), user="")

    @rule(
        lock=LOCKS,
        session=SESSIONS,
        owner=OWNERS,
        request=NUMBERS,
        wait_ms=WAITS,
        user=USERS,
        node=NODES,
        connection=CONNECTIONS,
    )
    def acquire(self, *, lock: str, wait_ms: int, **who: Any) -> None:
        self.send(Acquire(lock, 0, wait_ms, ""), **who)

    @rule(lock=LOCKS, request=UUIDS, wait_ms=WAITS, user=USERS, node=NODES, connection=CONNECTIONS)
    def acquire_privately(self, *, lock: str, wait_ms: int, **who: Any) -> None:
        self.send(Acquire(lock, 1_500, wait_ms, ""), session=f"p{self.drawn}", **who)

    @rule(lock=LOCKS, session=SESSIONS, request=st.one_of(NUMBERS, UUIDS), user=USERS)
    def cancel(self, *, lock: str, **who: Any) -> None:
        self.send(Cancel(lock), **who)

    @rule(lock=LOCKS)
    def release_what_is_held(self, lock: str) -> None:
        holder = self.reference.holder(lock)
        if holder is not None:
            self.send(Release(lock, holder.token), session=holder.session, user=holder.user)

    @rule(lock=LOCKS, session=SESSIONS, token=st.integers(0, 20), user=USERS)
    def release_anything(self, *, lock: str, token: int, **who: Any) -> None:
        self.send(Release(lock, token), **who)

    @rule(node=NODES, connection=st.integers(0, 3), boot=st.integers(1, 2), alive=st.booleans())
    def lose_origin(self, *, node: int, connection: int, boot: int, alive: bool) -> None:
        self.send(OriginGone(node, boot, connection, alive), user="")

    @rule(lock=LOCKS, number=st.integers(0, 3))
    def lose_one_wait(self, lock: str, number: int) -> None:
        waiting = [request for request in self.reference.live if request.lock == lock and not request.token]
        for request in waiting[number : number + 1]:
            origin = request.origin
            told = OriginGone(origin.node, origin.boot, origin.connection, operation=origin.operation)
            self.send(told, user="")

    @rule(lock=LOCKS)
    def lose_the_answer(self, lock: str) -> None:
        holder = self.reference.holder(lock)
        if holder is not None:
            self.send(
                RequestOrphaned(lock, holder.origin.connection),
                user=holder.user,
                session=holder.session,
                request=holder.id,
                node=holder.origin.node,
            )

    @rule(lock=LOCKS, session=SESSIONS, request=st.one_of(NUMBERS, UUIDS), node=NODES, gone=CONNECTIONS)
    def lose_any_answer(self, *, lock: str, gone: int, **who: Any) -> None:
        self.send(RequestOrphaned(lock, gone), **who)

    @rule(duration_ms=st.sampled_from((1, 399, 400, 1_000, 2_000, 5_000)))
    def pass_ms(self, duration_ms: int) -> None:
        self.stamp_ms += duration_ms
        self.apply()

    @rule()
    def pass_to_the_next_timer(self) -> None:
        due = self.machine.next_timer_ms()
        if due is not None:
            self.stamp_ms = due
            self.apply()

    @rule()
    def restart_from_a_snapshot(self) -> None:
        self.machine = LockMachine.from_snapshot(b"".join(self.machine.snapshot()))

    @invariant()
    def both_show_the_same(self) -> None:
        self.machine.check_invariants()
        for lock in ("a", "b"):
            view, holder = self.machine.inspect(lock), self.reference.holder(lock)
            assert view.granted_last == (holder.token if holder else 0)
            assert view.queue_length == len(self.reference.queue(lock))
        assert [view.id for view in self.machine.lease_sessions()] == sorted(self.reference.sessions)
        assert self.machine.token == self.reference.token


MachineAgainstReference.TestCase.settings = settings(max_examples=100, stateful_step_count=50, deadline=None)
TestMachineAgainstReference = MachineAgainstReference.TestCase
