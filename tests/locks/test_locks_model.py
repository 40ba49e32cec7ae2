"""G1 to G8, P1, K7, C9: the machine, at times from a snapshot, and its plainest form, side by side."""

from typing import Any

from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from lockd.ids import LogIndex, SessionId
from lockd.locks.commands import (
    AcknowledgeNotices,
    Acquire,
    AcquireAll,
    Batch,
    Break,
    Cancel,
    ChangeMeta,
    ClearSilent,
    CloseSession,
    Command,
    ExpireSessions,
    FreeRevoked,
    MarkSilent,
    OpenSession,
    Operation,
    Origin,
    OriginGone,
    RegisterNode,
    Release,
    ReleaseAll,
    RemoveMember,
    RequestOrphaned,
)
from lockd.locks.limits import Limits
from lockd.locks.machine import LockMachine
from lockd.locks.restore import restored_state
from tests.locks import reference_views as views
from tests.locks.drawn_commands import (
    BY_UUID,
    CONNECTIONS,
    LASTING,
    LATE,
    LOCKS,
    METAS,
    NEXT,
    NODES,
    NUMBERS,
    ONE_LOCK,
    PICKS,
    SESSIONS,
    TOKENS,
    USERS,
    UUIDS,
    WAITS,
    WELL_KNOWN,
    WHO,
    one,
    several,
    units,
)
from tests.locks.reference import Reference
from tests.locks.reference_records import Request, said

ROOMY = Limits(ttl_ms_max=3_000, private_answers_kept_max=3, private_answers_forgotten_per_entry=2)
TIGHT = Limits(
    ttl_ms_max=3_000,
    sessions_max=4,
    waiters_per_lock_max=2,
    requests_per_session_max=3,
    answers_per_session_kept=2,
    refusal_meta_bytes_max=3,
    notices_per_session_max=2,
)


class MachineAgainstReference(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.machine = LockMachine(ROOMY)
        self.reference = Reference(ROOMY)
        self.index = 0
        self.stamp_ms = 0
        self.drawn = 0
        self.together: list[Command] = []
        self.wanted_together = 1
        self.asked: list[Command] = []

    def send(
        self,
        operation: Operation,
        *,
        user: str = "ann",
        session: str = "",
        owner: str = "",
        request: int | str = 0,
        node: int = 1,
        boot: int = 1,
        connection: int = 0,
    ) -> None:
        self.drawn += 1
        origin = Origin(node, boot, connection, self.drawn)
        if request in (NEXT, LATE):
            request = self.drawn if request == NEXT else max(self.drawn - 5, 1)
        command = Command(user, session, owner, request, origin, operation)
        if isinstance(operation, Acquire | AcquireAll):
            self.asked.append(command)
        self.together.append(command)
        if len(self.together) >= self.wanted_together:
            self.apply()

    def apply(self) -> None:
        commands, self.together, self.wanted_together = tuple(self.together), [], 1
        self.index += 1
        batch = Batch(Batch.VERSION, self.stamp_ms, commands)
        real = [said(completion) for completion in self.machine.apply(LogIndex(self.index), batch)]
        assert self.reference.apply(self.stamp_ms, *commands) == real
        assert self.machine.events == self.reference.events
        assert self.machine.lease_changes == self.reference.leases
        self.machine.check_invariants()
        if self.index % 3 == 0:
            self.restart_from_a_snapshot()

    def restart_from_a_snapshot(self) -> None:
        """C9: what is saved of any state can be read again, and goes on as if nothing had happened."""
        saved = b"".join(self.machine.snapshot())
        self.machine = LockMachine.from_snapshot(saved)
        assert b"".join(self.machine.snapshot()) == saved

    @property
    def grants(self) -> list[Request]:
        return [request for request in self.reference.live if request.token]

    @property
    def waits(self) -> list[Request]:
        return [request for request in self.reference.live if not request.token]

    @property
    def is_crowded(self) -> bool:
        """Requests may end by themselves: before, others would never come to wait for them."""
        return len(self.reference.live) > 3

    # How it begins

    @initialize(
        limits=st.sampled_from((ROOMY, ROOMY, TIGHT)), restored=st.sampled_from((False, False, False, True))
    )
    def begin(self, limits: Limits, restored: bool) -> None:
        self.machine, self.reference = LockMachine(limits), Reference(limits)
        if restored:
            saved = b"".join(self.machine.snapshot())
            pieces = restored_state(
                saved, now_unix_s=9, taken_unix_s=9, incarnation="1", node=1, instance="i", peer_address="h:1"
            )
            self.machine = LockMachine.from_snapshot(b"".join(pieces))
            token, quiet_ms = self.machine.token, self.machine.grants_from_ms
            self.reference = Reference(limits, token=token, quiet_ms=quiet_ms)
            self.reference.instances[1] = "i"
        for session, name in (("s1", ""), ("s2", "billing"), ("s3", "")):
            self.send(OpenSession(2_000, name, ""), session=session)

    # Sessions

    @rule(session=SESSIONS, user=USERS, ttl_ms=st.sampled_from((2_000, 1, 9_000)))
    def open(self, session: str, user: str, ttl_ms: int) -> None:
        self.send(OpenSession(ttl_ms, "", "{}"), session=session, user=user)

    @precondition(lambda self: len(self.reference.sessions) > 2)
    @rule(pick=PICKS, user=USERS, how=st.sampled_from(("close", "expire", "expire two", "by name")))
    def end_a_session(self, pick: int, user: str, how: str) -> None:
        known = sorted(self.reference.sessions)
        session = known[pick % len(known)]
        match how:
            case "close":
                self.send(CloseSession(), session=session, user=user)
            case "expire":
                self.send(ExpireSessions((session,)), user="")
            case "expire two":
                self.send(ExpireSessions((session, "nobody", session, known[0])), user="")
            case _:
                self.send(CloseSession(), session=f"s{pick}", user=user)

    @rule(
        session=SESSIONS,
        silent_ms=st.sampled_from((700, -1, 5_000)),
        user=st.sampled_from(("ann", "", "bob")),
    )
    def fall_silent_and_come_back(self, session: str, silent_ms: int, user: str) -> None:
        self.send(MarkSilent(((session, silent_ms), ("nobody", 1))), user="")
        self.send(ClearSilent(), session=session, user=user)

    # To acquire

    @rule(operation=one(0, LASTING), who=WELL_KNOWN)
    def wait_for_one(self, operation: Acquire, who: dict[str, Any]) -> None:
        self.send(operation, **who)

    @rule(operation=units(LASTING), who=WELL_KNOWN)
    def wait_for_units(self, operation: Acquire, who: dict[str, Any]) -> None:
        self.send(operation, **who)

    @rule(operation=several(LASTING), who=WELL_KNOWN)
    def wait_for_several(self, operation: AcquireAll, who: dict[str, Any]) -> None:
        self.send(operation, **who)

    @rule(operation=st.one_of(one(0, LASTING), units(LASTING), several(LASTING)), who=WELL_KNOWN)
    def wait_for_any(self, operation: Operation, who: dict[str, Any]) -> None:
        self.send(operation, **who)

    @rule(operation=st.one_of(one(0, WAITS), units(WAITS), several(WAITS)), who=WHO)
    def acquire(self, operation: Operation, who: dict[str, Any]) -> None:
        self.send(operation, **who)

    @rule(operation=one(1_500, WAITS), who=BY_UUID)
    def acquire_privately(self, operation: Acquire, who: dict[str, Any]) -> None:
        self.send(operation, session=f"p{self.drawn}", **who)

    @precondition(lambda self: self.asked)
    @rule(back=st.integers(1, 12), node=NODES, connection=CONNECTIONS)
    def ask_again(self, back: int, node: int, connection: int) -> None:
        """The same over another connection, be it that the answer was lost or that a copy is late."""
        asked = self.asked[-min(back, len(self.asked))]
        is_private = asked.session not in ("s1", "s2", "s3", "s4")
        self.send(
            asked.operation,
            session=f"p{self.drawn}" if is_private else asked.session,
            user=asked.user,
            owner=asked.owner,
            request=asked.request,
            node=node,
            connection=connection,
        )

    # To give back

    @precondition(lambda self: self.is_crowded)
    @rule(pick=PICKS)
    def cancel_what_lives(self, pick: int) -> None:
        request = self.reference.live[pick % len(self.reference.live)]
        self.send(Cancel(request.locks[-1]), session=request.session, user=request.user, request=request.id)

    @precondition(lambda self: self.grants and self.is_crowded)
    @rule(pick=PICKS, last=st.booleans())
    def release_what_is_held(self, pick: int, last: bool) -> None:
        grant = self.grants[pick % len(self.grants)]
        lock = grant.locks[-1 if last else 0]
        self.send(Release(lock, grant.token), session=grant.session, user=grant.user)

    @precondition(lambda self: self.grants and self.is_crowded)
    @rule(pick=PICKS, user=USERS, astray=st.sampled_from((0, 0, 0, 1)))
    def release_all(self, pick: int, user: str, astray: int) -> None:
        grant = self.grants[pick % len(self.grants)]
        self.send(ReleaseAll(grant.token + astray), session=grant.session, user=user)

    @precondition(lambda self: self.grants)
    @rule(pick=PICKS, lock=ONE_LOCK, meta=METAS, user=USERS)
    def change_meta(self, pick: int, lock: str, meta: str, user: str) -> None:
        grant = self.grants[pick % len(self.grants)]
        name = lock if meta else grant.locks[-1]
        self.send(ChangeMeta(name, grant.token, meta), session=grant.session, user=user)

    # To be taken from

    @precondition(lambda self: self.grants)
    @rule(pick=PICKS, now=st.sampled_from((False, False, True)), user=USERS)
    def break_what_is_held(self, pick: int, now: bool, user: str) -> None:
        grant = self.grants[pick % len(self.grants)]
        self.send(Break(grant.locks[-1], grant.token, "drill", now), user=user)

    @precondition(lambda self: any(each.notices for each in self.reference.sessions.values()))
    @rule(pick=PICKS, back=st.sampled_from((0, 0, 1, 2)), user=USERS)
    def acknowledge(self, pick: int, back: int, user: str) -> None:
        told = [session for session in self.reference.sessions.values() if session.notices]
        session = told[pick % len(told)]
        self.send(AcknowledgeNotices(session.noticed - back), session=session.id, user=user)

    @precondition(lambda self: any(grant.ending for grant in self.grants))
    @rule(extra=TOKENS, count=st.integers(1, 3))
    def free_revoked(self, extra: int, count: int) -> None:
        tokens = [grant.token for grant in self.grants if grant.ending]
        self.send(FreeRevoked((*tokens[:count][::-1], extra)), user="")

    @rule(
        operation=st.one_of(
            st.builds(Release, ONE_LOCK, TOKENS),
            st.builds(ReleaseAll, TOKENS),
            st.builds(Break, ONE_LOCK, TOKENS, st.just(""), st.booleans()),
            st.builds(ChangeMeta, ONE_LOCK, TOKENS, st.just("")),
            st.builds(AcknowledgeNotices, TOKENS),
            st.builds(Cancel, ONE_LOCK),
            st.builds(RequestOrphaned, ONE_LOCK, CONNECTIONS),
        ),
        session=SESSIONS,
        request=st.one_of(NUMBERS, UUIDS),
        node=NODES,
        user=USERS,
    )
    def ask_for_what_may_not_be(self, operation: Operation, **who: Any) -> None:
        self.send(operation, **who)

    # Who listens

    @precondition(lambda self: self.waits)
    @rule(pick=PICKS)
    def lose_one_wait(self, pick: int) -> None:
        request = self.waits[pick % len(self.waits)]
        origin = request.origin
        told = OriginGone(origin.node, origin.boot, origin.connection, operation=origin.operation)
        self.send(told, user="")

    @precondition(lambda self: self.grants)
    @rule(pick=PICKS)
    def lose_the_answer(self, pick: int) -> None:
        grant = self.grants[pick % len(self.grants)]
        self.send(
            RequestOrphaned(grant.locks[0], grant.origin.connection),
            user=grant.user,
            session=grant.session,
            owner=grant.owner,
            request=grant.id,
            node=grant.origin.node,
        )

    @rule(
        operation=st.one_of(
            st.builds(OriginGone, NODES, st.integers(1, 2), st.integers(0, 3), st.booleans()),
            st.builds(RegisterNode, NODES, st.sampled_from("iij"), *map(st.just, ("p", "c", "h", "0.1.0"))),
        ),
        node=st.integers(1, 3),
        boot=st.sampled_from((1, 2)),
    )
    def lose_connections(self, operation: Operation, node: int, boot: int) -> None:
        self.send(operation, user="", node=node, boot=boot)

    @rule(chance=st.integers(0, 9))
    def remove_a_member(self, chance: int) -> None:
        if chance == 9:
            self.send(RemoveMember(2), user="")

    # Time, and the log

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

    @rule(count=st.integers(2, 4))
    def put_the_next_into_one_entry(self, count: int) -> None:
        self.wanted_together = count

    # What both show

    @invariant()
    def both_show_the_same_locks(self) -> None:
        machine, reference = self.machine, self.reference
        for name in LOCKS:
            assert machine.inspect(name) == views.view_lock(reference, name)
            assert machine.queue(name, 3) == views.view_queue(reference, name, 3)
            for token in {*reference.last_tokens.values(), reference.token + 1}:
                assert machine.validate(name, token) == views.validate(reference, name, token)
        known = [name for name in LOCKS if reference.is_known(name)]
        assert machine.locks() == [views.view_lock(reference, name) for name in known]
        assert (machine.token, machine.revision) == (reference.token, reference.revision)
        assert machine.revoked() == views.revoked(reference)

    @invariant()
    def both_show_the_same_sessions(self) -> None:
        machine, reference = self.machine, self.reference
        by_number = [views.view_session(reference, each) for each in reference.sessions.values()]
        assert machine.sessions(0, 100) == by_number
        assert list(machine.lease_sessions()) == sorted(by_number, key=lambda view: view.id)
        for session in reference.sessions.values():
            assert machine.notices(SessionId(session.id)) == tuple(session.notices)
            named = {name for request in reference.requests_of(session.id) for name in request.locks}
            of_it = [views.view_lock(reference, name) for name in sorted(named)]
            assert machine.locks_of(SessionId(session.id), "", "", 9) == of_it
        assert machine.next_timer_ms() == reference.next_timer_ms
        assert machine.clock_ms == reference.clock_ms


MachineAgainstReference.TestCase.settings = settings(
    max_examples=250,
    stateful_step_count=50,
    deadline=None,
    phases=(Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink),
)
TestMachineAgainstReference = MachineAgainstReference.TestCase
