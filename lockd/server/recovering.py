"""From what the disk holds to the two machines of a node: consensus and locks."""

from collections.abc import Callable

from lockd.disk.recovery import Recovered
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
    if snapshot is None:
        return raft, LockMachine()
    raft.snapshot_taken(snapshot)
    return raft, LockMachine.from_snapshot(recovered.state)
