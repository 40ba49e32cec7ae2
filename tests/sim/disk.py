"""A simulated node's disk: its log, its snapshots, and the writer that a real node has as a thread."""

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from random import Random
from typing import Protocol

from lockd.disk.record import LogWrite
from lockd.disk.recovery import Recovered
from lockd.disk.snapshot_file import SnapshotHeader, StoredSnapshot
from lockd.disk.snapshots import SnapshotStore
from lockd.errors import CorruptData
from lockd.ids import InstanceId, LogIndex, NodeId, Term
from lockd.locks.machine import LockMachine
from lockd.server.driver import Driver
from tests.disk.memory import SimulatedLog
from tests.server.snapshots import DirectSnapshots
from tests.sim.clock import MILLISECOND, Schedule
from tests.sim.invariants import Invariants
from tests.sim.promises import Promises

FULL_RETRY_MS = 1_000


class Host(Protocol):
    """The process that writes to the disk, through all its lives."""

    node_id: NodeId
    life: int

    @property
    def up(self) -> Driver: ...

    def now_or_after_pause(self, step: Callable[[], None]) -> None: ...

    def fail(self) -> None:
        """A sync has failed: the process ends at once (SAFETY D1)."""


class Disk:
    """A node's log on a simulated disk."""

    def __init__(
        self,
        host: Host,
        schedule: Schedule,
        random: Random,
        *,
        latency_ms: float,
        founding: Mapping[NodeId, str],
    ) -> None:
        self._host = host
        self._schedule = schedule
        self._random = random
        self._latency_ms = latency_ms
        self._log = SimulatedLog(
            host.node_id, lambda: InstanceId(f"{random.getrandbits(128):032x}"), founding=founding
        )
        self._busy = False
        self._told_full = False
        self.next_sync_fails = False
        self.promises = Promises(self.recovered)

    @property
    def recovered(self) -> Recovered:
        return self._log.recovered

    @property
    def snapshots(self) -> SnapshotStore:
        return self._log.snapshots

    def submit(self, write: LogWrite) -> None:
        self._log.submit(write)
        self.promises.submitted(write)
        if not self._busy:
            self._busy = True
            self.after_a_while(self._sync)

    def after_a_while(self, step: Callable[[], None]) -> None:
        """Take the step when a disk would have done it, or told of it, if the process still lives."""
        delay = int(self._random.expovariate(2 / self._latency_ms) * MILLISECOND)
        self._schedule.after(delay, functools.partial(self._if_alive, self._host.life, step))

    def set_full(self, *, is_full: bool) -> None:
        """No file grows any more, and none is made; or there is room again (D4)."""
        self._log.disk.is_full = is_full

    def lose_power(self) -> None:
        """Whatever was not synced is lost, torn or kept, sector by sector; then recover."""
        self._busy = self._told_full = self.next_sync_fails = False
        self._log.disk.syncs_fail = False
        self.set_full(is_full=False)  # whoever starts it again makes room
        self.promises = Promises(self._log.crash(self._random))

    def flush(self) -> None:
        """Write what waits, as a process does that stops."""
        self.set_full(is_full=False)
        with contextlib.suppress(OSError):  # an earlier sync had failed: it ends all the same (D1)
            self._log.sync()

    def flip_a_bit(self) -> bool:
        """Damage what is on the disk of a process that is down. True: it can't start any more.

        Otherwise it starts with exactly what it had (D3): the bit was in unused space.
        """
        files = self._log.disk
        before = self.recovered
        contents = [files.open(name) for name in files.names()]
        used = [file for file in contents if any(file.durable)]
        file = self._random.choice(used)
        end = len(file.durable.rstrip(b"\0"))
        at, bit = self._random.randrange(end), self._random.randrange(8)
        for content in (file.durable, file.seen):
            content[at] ^= 1 << bit
        try:
            self._log.reopen()
        except CorruptData:
            return True
        assert self.recovered == before, "D3: a flipped bit changed what was recovered"
        return False

    def _sync(self) -> None:
        """Write and sync what waits as one group. What is submitted until that is told is of the next."""
        self._log.disk.syncs_fail = self.next_sync_fails
        try:
            ticket = self._log.sync()
            if not self._log.finds_no_room:  # what came while there was none is another group
                ticket = self._log.sync() or ticket
        except OSError:
            self._host.fail()
            return
        self._tell_full(is_full=self._log.finds_no_room)
        if ticket is not None:
            self.promises.synced(ticket)
        if self._log.finds_no_room:
            self._tell_durable(ticket)
            retry = functools.partial(self._if_alive, self._host.life, self._sync)
            self._schedule.after(FULL_RETRY_MS * MILLISECOND, retry)
        else:
            self.after_a_while(functools.partial(self._go_on, ticket))

    def _go_on(self, ticket: int | None) -> None:
        self._busy = self.promises.are_open
        if self._busy:
            self.after_a_while(self._sync)
        self._tell_durable(ticket)

    def _tell_durable(self, ticket: int | None) -> None:
        if ticket is not None:
            self._host.now_or_after_pause(functools.partial(self._durable, self._host.life, ticket))

    def _durable(self, life: int, ticket: int) -> None:
        if life == self._host.life:
            self._host.up.on_durable(ticket)

    def _tell_full(self, *, is_full: bool) -> None:
        if is_full != self._told_full:
            self._told_full = is_full
            self._host.now_or_after_pause(lambda: self._host.up.on_disk_full(is_full=is_full))

    def _if_alive(self, life: int, step: Callable[[], None]) -> None:
        if life == self._host.life:
            step()


class Snapshots(DirectSnapshots):
    """The node's snapshot files; what is taken, and what is loaded, is held against what others had."""

    def __init__(self, disk: Disk, host: Host, invariants: Invariants) -> None:
        super().__init__(lambda: disk.snapshots, self._later)
        self._disk = disk
        self._host = host
        self._invariants = invariants

    def take(
        self,
        header: SnapshotHeader,
        body: Callable[[], Iterator[bytes]],
        on_taken: Callable[[StoredSnapshot | None], None],
    ) -> None:
        self._invariants.on_state(self._host.node_id, header.meta.index, self._host.up.machine)
        super().take(header, body, on_taken)

    def load(self, index: LogIndex, term: Term) -> tuple[StoredSnapshot, LockMachine]:
        stored, machine = super().load(index, term)
        self._invariants.on_snapshot(self._host.node_id, stored.header.meta, machine)
        return stored, machine

    def _later(self, step: Callable[[], None]) -> None:
        """A process that is not there any more, or is in another life, finishes nothing."""
        life = self._host.life

        def in_this_life() -> None:
            if life != self._host.life:
                return
            try:
                step()
            except OSError:  # a sync has failed: the process ends (D1)
                self._host.fail()

        self._disk.after_a_while(lambda: self._host.now_or_after_pause(in_this_life))
