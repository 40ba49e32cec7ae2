"""A lock machine with a clock that the test turns and callers that remember what they were told."""

from dataclasses import dataclass, field

from lockd.ids import LogIndex
from lockd.locks.commands import (
    WAIT_FOREVER,
    Acquire,
    Batch,
    Cancel,
    Changed,
    CloseSession,
    Command,
    Completion,
    Granted,
    OpenSession,
    Operation,
    Origin,
    Outcome,
    Queued,
    Refused,
    Release,
)
from lockd.locks.limits import Limits
from lockd.locks.machine import LockMachine

NODE = 1
BOOT = 77


@dataclass
class Call:
    """One operation and the outcomes that came back to its origin, in order."""

    origin: Origin
    outcomes: list[Outcome] = field(default_factory=list)

    @property
    def last(self) -> Outcome:
        return self.outcomes[-1]

    @property
    def granted(self) -> Granted:
        assert isinstance(self.last, Granted), self.outcomes
        return self.last

    @property
    def refused(self) -> Refused:
        assert isinstance(self.last, Refused), self.outcomes
        return self.last

    @property
    def waits(self) -> bool:
        return isinstance(self.last, Queued)

    @property
    def count(self) -> int:
        assert isinstance(self.last, Changed), self.outcomes
        return self.last.count


class ClusterState:
    """Applies one command an entry, and checks the invariants after each."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.machine = LockMachine(limits)
        self.index = 0
        self.stamp_ms = 0
        self.calls: dict[Origin, Call] = {}
        self.operations = 0

    def send(
        self,
        operation: Operation,
        *,
        session: str = "",
        user: str = "ann",
        owner: str = "",
        request: int | str = 0,
        node: int = NODE,
        boot: int = BOOT,
        connection: int = 1,
    ) -> Call:
        self.operations += 1
        origin = Origin(node, boot, connection, self.operations)
        call = self.calls[origin] = Call(origin)
        self.apply(Command(user, session, owner, request, origin, operation))
        assert call.outcomes, "G6: every command is answered"
        return call

    def apply(self, *commands: Command) -> list[Completion]:
        self.index += 1
        batch = Batch(Batch.VERSION, self.stamp_ms, commands)
        completions = self.machine.apply(LogIndex(self.index), batch)
        self.machine.check_invariants()
        for completion in completions:
            if completion.origin in self.calls:
                self.calls[completion.origin].outcomes.append(completion.outcome)
        return completions

    def pass_ms(self, duration_ms: int) -> list[Completion]:
        """Let the leader's clock run on, and have it log an empty batch."""
        self.stamp_ms += duration_ms
        return self.apply()

    def open(self, session: str, *, ttl_ms: int = 10_000, name: str = "", user: str = "ann") -> Call:
        return self.send(OpenSession(ttl_ms, name, ""), session=session, user=user)

    def acquire(
        self,
        lock: str,
        session: str,
        *,
        wait_ms: int = WAIT_FOREVER,
        ttl_ms: int = 0,
        meta: str = "",
        user: str = "ann",
        owner: str = "",
        request: int | str = 0,
        node: int = NODE,
        boot: int = BOOT,
        connection: int = 1,
    ) -> Call:
        return self.send(
            Acquire(lock, ttl_ms, wait_ms, meta),
            session=session,
            user=user,
            owner=owner,
            request=request,
            node=node,
            boot=boot,
            connection=connection,
        )

    def release(self, lock: str, token: int, session: str, *, user: str = "ann") -> int:
        return self.send(Release(lock, token), session=session, user=user).count

    def cancel(self, lock: str, session: str, request: int | str, *, user: str = "ann") -> Call:
        return self.send(Cancel(lock), session=session, request=request, user=user)

    def close(self, session: str, *, user: str = "ann") -> Call:
        return self.send(CloseSession(), session=session, user=user)

    def holder_token(self, lock: str) -> int:
        """0 when the lock is free."""
        return self.machine.inspect(lock).granted_last
