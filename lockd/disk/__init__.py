"""The durable log of one node: what is on disk, and from when on it counts.

A data directory holds numbered segments of one stream. Everything that Raft needs after a
restart is in that stream, in the order in which it was decided: term and vote, entries, which
instance of a peer this node has bound itself to, where the members are to be dialled, and which
cluster it belongs to (SAFETY D2, C8). Beside them lies the snapshot that a mark in the stream
names: it stands for all entries up to its index, and the segments that had those are removed (C9).

    0000000000000007.log  0000000000000008.log  0000000000000009.log (made ahead)
    snapshot-0000000000052114-0000000000000003.snap

Promised:
- `Wal` tells of a write only after fdatasync returned for it, writes in the order of `submit`,
  and after a failed write or sync never tells of another (D1). What was waiting during one sync
  goes out as one batch with one sync: group commit.
- A full disk is no failure: the write waits, unacknowledged, until there is room (D4).
- A start finds exactly what was told of, and perhaps the one batch that was under way; a batch
  is there whole or not at all (D3).
- A snapshot has a name only if it is whole and durable, and counts only once its mark is durable.
  Nothing is removed before that.

Refused: to guess. A batch that was written whole and does not match its checksums, a segment
that is missing, moved or cut short, a snapshot that is damaged or not there raise CorruptData; a
directory that is in use, or another node's, or has a snapshot and no log, raises DataDirError. A
node whose disk is damaged must not come back with less than it has promised: it could undo a vote
or an acknowledged entry.

Not seen, by the nature of it: a disk that acknowledged a sync and brings back zeros for a whole
sector of the very last batch looks just like a power cut before that sync. The rule calls it
torn.

Read in this order: batch.py (sectors, checksums, torn or damaged; pure), record.py (what a batch
says; pure), stream.py (what the records amount to; pure), recovery.py (segments to state; pure),
files.py (the calls to the operating system, a port), snapshot_file.py (a file that stands for
entries; pure), snapshots.py (those of a directory), segments.py (open, append, rotate, compact),
wal.py (the thread). inspection.py and reading.py look at a directory whose node does not run.
"""
