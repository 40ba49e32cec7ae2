"""Backups: a state from a data directory that has no running node, and back (SAFETY G2). Pure."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from lockd.disk.record import Identity
from lockd.disk.recovery import Recovered
from lockd.disk.snapshot_file import SnapshotHeader, StoredSnapshot, encode_snapshot
from lockd.errors import CorruptData
from lockd.ids import ClusterId, Incarnation, InstanceId, LogIndex, NodeId
from lockd.locks.codec import decode_batch
from lockd.locks.machine import LockMachine
from lockd.locks.restore import Clients, RestoreRefused, restored_state
from lockd.raft.entries import Configuration, EntryKind, SnapshotMeta
from lockd.raft.membership import MembershipError, apply_change, decode_change
from lockd.server.recovering import machine_of

__all__ = [
    "Clients",
    "Contents",
    "NothingToSave",
    "RestoreRefused",
    "Restored",
    "backup_of",
    "contents_of",
    "restored_from",
]


class NothingToSave(Exception):
    """The directory belongs to a node that never knew a cluster."""


def backup_of(recovered: Recovered, *, taken_unix_s: int) -> Iterator[bytes]:
    """The bytes of a snapshot of all that a node knew: its own snapshot and every entry of its log.

    Also the entries that it does not know to be committed. The others may be lost, and with them the
    proof: an acknowledged grant may be in any of those entries, and its token must never be issued
    again. One that was not committed does no harm, for a restore keeps no grant. Raises CorruptData when
    the log contradicts itself, and NothingToSave.
    """
    machine, configuration = _everything_applied(recovered)
    if not machine.cluster:
        raise NothingToSave("its log has no cluster yet")
    run = recovered.entries
    index, term = LogIndex(run.first - 1), recovered.base_term
    if run.terms:
        index, term = run.last, run.terms[-1]
    addresses = dict(recovered.snapshot.header.addresses) if recovered.snapshot else {}
    header = SnapshotHeader(
        SnapshotMeta(index, term, configuration),
        machine.cluster,
        machine.incarnation,
        tuple(sorted((addresses | recovered.addresses).items())),
        taken_unix_s,
    )
    return encode_snapshot(header, machine.snapshot())


def _everything_applied(recovered: Recovered) -> tuple[LockMachine, Configuration]:
    applied = LogIndex(0)
    machine = LockMachine()
    configuration = Configuration(recovered.identity.founders)
    if recovered.snapshot is not None:
        meta = recovered.snapshot.header.meta
        applied, configuration = meta.index, meta.configuration
        machine = machine_of(recovered.snapshot, recovered.state)
    run = recovered.entries
    for offset, (kind, payload) in enumerate(zip(run.kinds, run.payloads, strict=True)):
        index = LogIndex(run.first + offset)
        if index <= applied:
            continue  # kept for slow followers
        try:
            configuration = _apply(machine, configuration, index, kind, payload)
        except (CorruptData, MembershipError) as error:
            raise CorruptData(f"entry {index} can't be applied: {error}") from error
    return machine, configuration


def _apply(
    machine: LockMachine, configuration: Configuration, index: LogIndex, kind: EntryKind, payload: bytes
) -> Configuration:
    """Apply one entry to the machine; returns the configuration after it."""
    match kind:
        case EntryKind.NOOP:
            return configuration
        case EntryKind.COMMANDS:
            machine.apply(index, decode_batch(payload))
            return configuration
        case EntryKind.CONFIGURATION:
            change = decode_change(payload)
            if change.context:
                machine.apply(index, decode_batch(change.context))
            return apply_change(configuration, change)


@dataclass(frozen=True, slots=True)
class Contents:
    """What a saved state holds, in numbers."""

    feature_level: int
    removed: tuple[int, ...]
    """Ids of nodes that are never used again, sorted."""
    sessions: int
    locks: int
    """Held or waited for."""
    waiters: int
    tokens_up_to: int
    """The token drawn last; for people to compare backups by, no leave to write (G9)."""
    revision: int
    quiet_ms: int
    """For so long of running nothing is granted (G2)."""


def contents_of(stored: StoredSnapshot, state: bytes) -> Contents:
    """Read the body of a snapshot and check that all of it fits together. Raises CorruptData."""
    return _contents(machine_of(stored, state))


def _contents(machine: LockMachine) -> Contents:
    try:
        machine.check_invariants()
    except AssertionError as error:
        raise CorruptData(f"the state contradicts itself: {error}") from error
    stats = machine.stats
    return Contents(
        feature_level=machine.feature_level,
        removed=tuple(sorted(machine.removed)),
        sessions=stats.sessions,
        locks=stats.locks,
        waiters=stats.waiters,
        tokens_up_to=machine.token,
        revision=machine.revision,
        quiet_ms=max(machine.grants_from_ms - machine.clock_ms, 0),
    )


@dataclass(frozen=True, slots=True)
class Restored:
    """What a data directory is created from."""

    identity: Identity
    contents: Contents
    snapshot: Iterator[bytes]


def restored_from(
    stored: StoredSnapshot,
    state: bytes,
    *,
    now_unix_s: int,
    node: NodeId,
    instance: InstanceId,
    incarnation: Incarnation,
    peer_address: str,
    clients: Clients,
) -> Restored:
    """A cluster of one that goes on from a backup, as G2 has it: see lockd.locks.restore, which refuses.

    Its log begins after the backup's last entry. Raises RestoreRefused and CorruptData.
    """
    backup = stored.header
    machine_of(stored, state)
    body = b"".join(
        restored_state(
            state,
            now_unix_s=now_unix_s,
            taken_unix_s=backup.taken_unix_s,
            incarnation=incarnation,
            node=node,
            instance=instance,
            peer_address=peer_address,
            former_nodes=(*backup.meta.configuration.members, *(former for former, _ in backup.addresses)),
            clients=clients,
        )
    )
    header = replace(
        backup,
        meta=replace(backup.meta, configuration=Configuration((node,))),
        incarnation=incarnation,
        addresses=((node, peer_address),),
        taken_unix_s=now_unix_s,
    )
    identity = Identity(node, instance, ClusterId(backup.cluster), incarnation, (node,))
    contents = _contents(LockMachine.from_snapshot(body))
    return Restored(identity, contents, encode_snapshot(header, (body,)))
