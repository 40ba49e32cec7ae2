"""A lockd node as a process: the shell around the consensus core and the lock state machine.

Clients come in over `listener` and `connection`, which turn bytes into commands and outcomes
into replies; `service` is the table of what each command does, by `greeting`, `locking`, `looking`,
`watching` and `operating`; `http` turns JSON into the same commands. `port` is all that they know of the
inside. Peers come in over `peers`. The `driver` owns
the Raft node, the state machine and the lease book, and decides in which order disk, network and
clients hear of things; clocks, disk, network and randomness reach it as arguments.

It promises that nothing is acknowledged before the disk has it (SAFETY D1, P3), that bad input
costs its sender an error and others nothing (P6), and that a user is authorised by the node
that took the command (G11). Start with `port`, then `driver`.
"""
