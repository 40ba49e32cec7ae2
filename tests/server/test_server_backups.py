"""G2, P2, C8: what a backup of a stopped node holds, and what a restore makes of it. No disk."""

from dataclasses import replace

import pytest

from lockd.disk.record import Identity
from lockd.disk.recovery import Recovered
from lockd.disk.snapshot_file import StoredSnapshot, decode_snapshot
from lockd.errors import CorruptData
from lockd.ids import NO_NODE, ClusterId, Incarnation, InstanceId, LogIndex, NodeId, Term
from lockd.locks.codec import encode_batch
from lockd.locks.commands import (
    Acquire,
    AddMember,
    Batch,
    Command,
    CreateCluster,
    OpenSession,
    Operation,
    Origin,
)
from lockd.raft.entries import Configuration, EntryKind, EntryRun, HardState
from lockd.raft.membership import Change, ChangeKind, ConfigurationChange, encode_change
from lockd.server.backups import (
    Clients,
    NothingToSave,
    Restored,
    RestoreRefused,
    backup_of,
    contents_of,
    restored_from,
)

ORIGIN = Origin(1, 1, 1, 1)
CLUSTER = ClusterId("c" * 32)
TAKEN_S = 1_790_000_000

Entry = tuple[EntryKind, bytes]


def commands(*operations: Operation) -> Entry:
    batch = Batch(1, 0, tuple(Command("ann", "s1", "", 0, ORIGIN, operation) for operation in operations))
    return EntryKind.COMMANDS, encode_batch(batch)


def joins(node: int) -> Entry:
    """The node joins as a learner, of which the state is told too."""
    change = Change(ChangeKind.ADD_LEARNER, NodeId(node))
    context = commands(AddMember(node, f"h{node}:1", wants_vote=True))[1]
    return EntryKind.CONFIGURATION, encode_change(ConfigurationChange((change,), context=context))


NOOP: Entry = (EntryKind.NOOP, b"")
FOUNDING = commands(CreateCluster(CLUSTER, "1" * 8), OpenSession(60_000, "", ""))
LOG = (NOOP, FOUNDING, commands(Acquire("a", 0, 0, "")), joins(4), NOOP, commands(Acquire("b", 0, 0, "")))


def recovered(*entries: Entry, first: int = 1, commit: int = 0) -> Recovered:
    """What the disk of node 2 of three holds; it knows of `commit` that entries up to it are committed."""
    run = EntryRun(
        LogIndex(first),
        tuple(Term(3) for _ in entries),
        tuple(kind for kind, _ in entries),
        tuple(payload for _, payload in entries),
    )
    founders = (NodeId(1), NodeId(2), NodeId(3))
    return Recovered(
        identity=Identity(NodeId(2), InstanceId("2" * 32), CLUSTER, Incarnation("1" * 8), founders),
        hard_state=HardState(Term(3), NO_NODE, LogIndex(commit)),
        entries=run,
        bindings={},
        addresses={founder: f"h{founder}:1" for founder in founders},
        fresh=False,
        base_term=Term(3 if first > 1 else 0),
        snapshot=None,
        state=b"",
    )


def saved(found: Recovered) -> tuple[StoredSnapshot, bytes]:
    return decode_snapshot(b"".join(backup_of(found, taken_unix_s=TAKEN_S)), name="backup")


def restored(
    stored: StoredSnapshot,
    state: bytes,
    *,
    now_unix_s: int = TAKEN_S + 60,
    node: int = 1,
    incarnation: str = "2" * 8,
) -> Restored:
    return restored_from(
        stored,
        state,
        now_unix_s=now_unix_s,
        node=NodeId(node),
        instance=InstanceId("9" * 32),
        incarnation=Incarnation(incarnation),
        peer_address="new:1",
        clients=Clients.MAY_RUN,
    )


@pytest.mark.parametrize("commit", [0, 2, 6])
def test_p2_a_backup_has_every_entry_committed_or_not(commit: int) -> None:
    """The one that acknowledged may be lost: a survivor knows of no entry that it was not."""
    stored, state = saved(recovered(*LOG, commit=commit))
    assert contents_of(stored, state).tokens_up_to == 2
    meta = stored.header.meta
    assert (meta.index, meta.term) == (6, 3)
    assert meta.configuration == Configuration((NodeId(1), NodeId(2), NodeId(3)), learners=(NodeId(4),))
    assert stored.header.taken_unix_s == TAKEN_S


def test_entries_that_a_snapshot_stands_for_are_not_applied_again() -> None:
    stored, state = saved(recovered(*LOG[:4]))
    # Entries 3 and 4 are kept for slow followers; 5 and 6 came after the snapshot.
    later = replace(recovered(*LOG[2:], first=3), snapshot=stored, state=state)
    assert saved(later)[1] == saved(recovered(*LOG))[1]
    alone = replace(recovered(first=5), snapshot=stored, state=state)
    again, same_state = saved(alone)
    assert same_state == state
    assert again.header.meta == stored.header.meta


def test_a_node_that_never_knew_a_cluster_has_nothing_to_save() -> None:
    with pytest.raises(NothingToSave):
        backup_of(recovered(), taken_unix_s=TAKEN_S)


@pytest.mark.parametrize(
    "entry",
    [
        (EntryKind.CONFIGURATION, encode_change(ConfigurationChange(()))),
        (EntryKind.CONFIGURATION, b"no change"),
        (EntryKind.COMMANDS, b"no batch"),
    ],
)
def test_a_log_that_contradicts_itself_is_corrupt_data(entry: Entry) -> None:
    with pytest.raises(CorruptData, match=r"^entry 3 can't be applied: "):
        backup_of(recovered(NOOP, FOUNDING, entry), taken_unix_s=TAKEN_S)


def test_g2_a_restored_directory_is_of_a_cluster_of_one() -> None:
    made = restored(*saved(recovered(*LOG)))
    stored, state = decode_snapshot(b"".join(made.snapshot), name="restored")
    header = stored.header
    assert header.meta.configuration == Configuration((NodeId(1),))
    assert header.meta.index == 6
    assert header.addresses == ((1, "new:1"),)
    assert (header.cluster, header.incarnation) == (CLUSTER, "2" * 8)
    assert (made.identity.cluster, made.identity.incarnation) == (CLUSTER, "2" * 8)
    assert made.identity.founders == (1,)
    contents = contents_of(stored, state)
    assert contents == made.contents
    assert contents.tokens_up_to >= (TAKEN_S + 60) * 2**20
    assert (contents.sessions, contents.locks) == (0, 0)
    assert contents.quiet_ms == 3_600_000


def test_c8_founders_that_the_state_never_heard_of_are_buried_too() -> None:
    """Nobody registered in that log: nodes 1 to 3 are known by the configuration alone."""
    assert restored(*saved(recovered(*LOG))).contents.removed == (2, 3, 4)
    assert restored(*saved(recovered(*LOG)), node=9).contents.removed == (1, 2, 3, 4)


def test_g2_a_restore_is_dated_by_its_own_clock() -> None:
    """A backup of the restored cluster can't be restored by a clock before the restore."""
    first = decode_snapshot(b"".join(restored(*saved(recovered(*LOG))).snapshot), name="restored")
    with pytest.raises(RestoreRefused, match="earlier than the backup's"):
        restored(*first, now_unix_s=TAKEN_S + 59, incarnation="3" * 8)


def test_g2_a_header_and_a_state_that_contradict_each_other_are_corrupt_data() -> None:
    """Of another cluster, the tokens that it goes on from would be another cluster's."""
    stored, state = saved(recovered(*LOG))
    of_another = replace(stored, header=replace(stored.header, cluster=ClusterId("d" * 32)))
    with pytest.raises(CorruptData, match="another cluster"):
        contents_of(of_another, state)
    with pytest.raises(CorruptData, match="another cluster"):
        restored(of_another, state)
    with pytest.raises(CorruptData, match="another cluster"):
        saved(replace(recovered(first=7), snapshot=of_another, state=state))
