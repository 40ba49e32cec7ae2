"""From what the disk holds to the two machines of a node: consensus and locks."""

from collections.abc import Callable

from lockd.disk.recovery import Recovered
from lockd.disk.snapshot_file import StoredSnapshot
from lockd.errors import CorruptData
from lockd.locks.machine import LockMachine
from lockd.raft.entries import Configuration
from lockd.raft.log import Log
from lockd.raft.node import RaftConfig, RaftNode


def recovered_core(
    recovered: Recovered, config: RaftConfig, *, draw: Callable[[int, int], int]
) -> tuple[RaftNode, LockMachine]:
    """Both as of the snapshot, or as of the founding; entries after it are applied again from the log.

    Raises CorruptData when what was recovered contradicts itself.
    """
    snapshot = recovered.snapshot.header.meta if recovered.snapshot else None
    raft = RaftNode(
        config,
        configuration=snapshot.configuration if snapshot else Configuration(recovered.identity.founders),
        hard_state=recovered.hard_state,
        log=Log.from_run(recovered.entries, base_term=recovered.base_term),
        draw=draw,
        applied=snapshot.index if snapshot else None,
    )
    if recovered.snapshot is None:
        return raft, LockMachine()
    raft.snapshot_taken(recovered.snapshot.header.meta)
    return raft, machine_of(recovered.snapshot, recovered.state)


def machine_of(stored: StoredSnapshot, state: bytes) -> LockMachine:
    """The locks that a snapshot's body tells of.

    Raises CorruptData when the body does not decode, or is of another cluster or of later entries than
    its header says (SAFETY C9): the text names the entry and tells a newer version from damage.
    """
    header = stored.header
    name = f"the snapshot of entry {header.meta.index} of term {header.meta.term}"
    try:
        machine = LockMachine.from_snapshot(state)
    except CorruptData as error:
        raise CorruptData(f"{name}: {error}") from error
    whose = header.cluster, header.incarnation
    if whose != (machine.cluster, machine.incarnation):
        raise CorruptData(f"{name}: its state is of another cluster or incarnation than its header")
    if machine.state.applied > header.meta.index:
        raise CorruptData(f"{name}: its state has entry {machine.state.applied} applied")
    return machine
