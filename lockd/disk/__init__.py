"""The durable log of one node: what is on disk, and from when on it counts.

A data directory holds numbered segments of one stream. Everything that Raft needs after a
restart is in that stream, in the order in which it was decided: term and vote, entries, which
instance of a peer this node has bound itself to, where the members are to be dialled, and which
cluster it belongs to (SAFETY D2, C8).

Promised:
- `Wal` tells of a write only after fdatasync returned for it, writes in the order of `submit`,
  and after a failed write or sync never tells of another (D1). What was waiting during one sync
  goes out as one batch with one sync: group commit.
- A start finds exactly what was told of, and perhaps the one batch that was under way; a batch
  is there whole or not at all (D3).

Refused: to guess. A batch that was written whole and does not match its checksums, a segment
that is missing, moved or cut short raise CorruptData; a directory that is in use, or another
node's, raises DataDirError. A node whose disk is damaged must not come back with less than it
has promised: it could undo a vote or an acknowledged entry.

Not seen, by the nature of it: a disk that acknowledged a sync and brings back zeros for a whole
sector of the very last batch looks just like a power cut before that sync. The rule calls it
torn.

Read in this order: batch.py (sectors, checksums, torn or damaged; pure), record.py (what a batch
says; pure), recovery.py (segments to state; pure), files.py (the calls to the operating system,
a port), segments.py (open, append, rotate), wal.py (the thread).
"""
