"""A whole cluster in one process, one thread and one seed.

The nodes run the production driver, Raft, lock state machine, record format and recovery. Time,
disk and network are simulated: messages are late, lost, doubled and overtake each other, nodes
crash and lose what was not synced, pause, and are cut off; every node and every client has a
monotonic clock with its own origin and rate. After each event the invariants are checked.

    python -m tests.sim --seed 17        replays one seed and prints what it met
    python -m tests.sim --seeds 0-199    runs a range
    python -m tests.sim --soak 600       runs as many as fit in so many seconds, on two processes

A seed ends with all clients dead at once, and a node with them: no lock may stay held by nobody.

Members are added, removed and replaced meanwhile, snapshots are taken and streamed, disks run full,
fail to sync, are lost or damaged. Ids are never used again.

Start with `world`; `run` is the course of a seed, `clients` and `calls` what the users do,
`invariants` what must never happen in any node, `history` what the log and the answers must agree on.
"""
