"""One node in memory: Raft, the lock machine, the driver and the listener that a real node has.

Its disk says at once that it has everything, and keeps nothing but in memory. It has no peers. Its
clock stands still: nothing ends by time until `advance` is called. Everything here runs on one event
loop.
"""

import asyncio
import secrets
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from typing import NoReturn

from lockd.client.clock import TurnedClock
from lockd.disk.errors import DiskFullError
from lockd.disk.record import Identity, LogWrite
from lockd.disk.recovery import Recovered
from lockd.disk.snapshot_file import SnapshotHeader, StoredSnapshot
from lockd.disk.snapshots import PartialSnapshot
from lockd.ids import ClusterId, Incarnation, InstanceId, LogIndex, NodeId, Term
from lockd.locks.commands import Operation, Outcome
from lockd.locks.machine import LockMachine
from lockd.raft.entries import EntryRun, HardState
from lockd.raft.node import RaftConfig
from lockd.server import frames
from lockd.server.config import Address
from lockd.server.driver import Driver
from lockd.server.listener import Listener
from lockd.server.port import SnapshotReader
from lockd.server.recovering import recovered_core
from lockd.server.surroundings import DriverSettings, Ports

_NODE = NodeId(1)
_NOBODY = NodeId(0)
ELECTION_TIMEOUT_MS = 500
"""As of a real node, and so the shortest TTL: three of these."""


class MemoryNode:
    """A cluster of one. `start`, then `stop`, once."""

    def __init__(self, clock: TurnedClock) -> None:
        self._clock = clock
        self._is_woken = False
        self._is_scheduled = False
        self._submitted = 0
        self._written = 0
        self._conditions: dict[asyncio.Future[None], Callable[[], object]] = {}
        self.driver = self._build_driver()
        self.listener = Listener(self.driver)

    def _build_driver(self) -> Driver:
        identity = Identity(
            _NODE, InstanceId(secrets.token_hex(16)), ClusterId(""), Incarnation(""), founders=(_NODE,)
        )
        recovered = Recovered(
            identity=identity,
            hard_state=HardState(Term(0), _NOBODY, LogIndex(0)),
            entries=EntryRun(LogIndex(1), (), (), ()),
            bindings={},
            addresses={},
            fresh=True,
            base_term=Term(0),
            snapshot=None,
            state=b"",
        )
        raft, machine = recovered_core(recovered, RaftConfig(node_id=_NODE), draw=lambda _, high: high)
        return Driver(
            settings=DriverSettings(
                election_timeout_ms=ELECTION_TIMEOUT_MS,
                answer_ms_max=10 * ELECTION_TIMEOUT_MS,
                peer_address="",
                client_address="",  # clients have it; its port is not known yet
                http_address="",
                version=version("lockd"),
                snapshot_log_bytes=2**60,
            ),
            identity=identity,
            addresses={},
            boot=secrets.randbits(62) + 1,
            raft=raft,
            machine=machine,
            ports=Ports(
                disk=self,
                network=self,
                clock_ms=lambda: self._clock.ms,
                wake=self._wake,
                draw_cluster=lambda: (ClusterId(secrets.token_hex(16)), Incarnation(secrets.token_hex(4))),
                snapshots=_NoSnapshots(),
                unix_s=lambda: int(time.time()),
                members_changed=lambda: None,
            ),
        )

    async def start(self) -> None:
        """Be elected, found a cluster, and listen on a free port of 127.0.0.1."""
        self.driver.raft.campaign()
        self._is_woken = True
        self._settle()
        await self.listener.start(Address("127.0.0.1", 0))

    async def stop(self) -> None:
        """Tell everyone who waits, and end every connection."""
        self.driver.stop()
        await self.listener.stop(grace_s=1.0)
        for reached in self._conditions:
            reached.cancel()

    def advance(self, ms: int) -> None:
        """Let time pass, without a word from anybody meanwhile; what is then due has happened.

        In steps: one turn of the loop counts an election timeout at most (SAFETY T1).
        """
        until = self._clock.ms + ms
        while self._clock.ms < until:
            self._clock.ms = min(until, self._clock.ms + ELECTION_TIMEOUT_MS)
            self.driver.tick()
            self._settle()

    def decide(self, operation: Operation) -> Outcome:
        """Have an operation applied, now."""
        outcomes: list[Outcome] = []
        self.driver.submit(
            user="",
            session="",
            owner="",
            request=0,
            operation=operation,
            connection=0,
            on_outcome=outcomes.append,
        )
        self._settle()
        return outcomes[0]

    async def reach(self, condition: Callable[[], object]) -> None:
        """Return once the condition holds. It is looked at whenever this node has done something."""
        if condition():
            return
        reached: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._conditions[reached] = condition
        try:
            await reached
        finally:
            del self._conditions[reached]

    # The ports of the driver.

    def submit(self, write: LogWrite) -> None:
        self._submitted = write.ticket

    def send(self, node: NodeId, frame: frames.Frame) -> bool:
        del node, frame
        return False  # there is no other node

    def is_connected(self, node: NodeId) -> bool:
        del node
        return False

    def _wake(self) -> None:
        self._is_woken = True
        if not self._is_scheduled:
            self._is_scheduled = True
            asyncio.get_running_loop().call_soon(self._turn)

    def _turn(self) -> None:
        self._is_scheduled = False
        self._settle()

    def _settle(self) -> None:
        """Do all that there is to do: what was written is on the disk, and what is committed applied."""
        while self._is_woken or self._written < self._submitted:
            self._is_woken = False
            self._written = self._submitted
            self.driver.on_durable(self._written)
        for reached, condition in list(self._conditions.items()):
            try:
                if not reached.done() and condition():
                    reached.set_result(None)
            except Exception as error:  # noqa: BLE001 - it is the test's, and raised there
                reached.set_exception(error)


class _NoSnapshots:
    """A node in memory takes none, so a backup of it is refused; and nobody sends it any."""

    def take(
        self,
        header: SnapshotHeader,
        body: Callable[[], Iterator[bytes]],
        on_taken: Callable[[StoredSnapshot | None], None],
    ) -> None:
        del header, body
        on_taken(None)

    def back_up(
        self,
        header: SnapshotHeader,
        body: Callable[[], Iterator[bytes]],
        on_ready: Callable[[SnapshotReader | None], None],
    ) -> None:
        del header, body
        on_ready(None)

    def begin(self) -> PartialSnapshot:
        self._refuse()

    def no_room(self, error: DiskFullError) -> None:
        raise error

    def finish(self, partial: PartialSnapshot, on_finished: Callable[[StoredSnapshot | None], None]) -> None:
        del partial, on_finished
        self._refuse()

    def open(self, index: LogIndex, term: Term) -> SnapshotReader:
        del index, term
        self._refuse()

    def load(self, index: LogIndex, term: Term) -> tuple[StoredSnapshot, LockMachine]:
        del index, term
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise AssertionError("a cluster of one neither sends nor receives snapshots")
