"""The lock service as a state machine: sessions, locks, queues and the token counter.

The idea. Every node applies the same log entries to a `LockMachine` and gets the same state and the
same outcomes. Time is a number in the entry (T1), identities are drawn by whoever proposes it, and
limits are part of the state (G11): nothing here reads a clock, a file or a random number.

What it promises
- At most one exclusive grant of a lock lives at a time, or shared ones, or as many units of a
  semaphore as there are; every grant has a higher token than any before, of whatever lock (P1, P2, G1).
- A grant that is broken, or is held for too long, keeps others out until its holder can't trust it (P1).
- Asking again with the same request id gives the same answer, and an id never holds twice, as long
  as `limits` says that ids are remembered (G3).
- First come, first served; one release wakes exactly those it grants (G5).
- A wait that could never end, because its owner stands in its own way, is refused (G8).
- A wait that nobody listens for is withdrawn, unless its id comes back in time (G4).
- The same entries make the same state, byte for byte, whatever Python runs them (G6), also when a
  node takes it from a snapshot and goes on from there (C9).
- After a restore every token is higher than any before, and nothing is granted until the leases of
  before have run out (G2).

What it refuses
- To end a lease by itself. Expiry is a command of the leader, whose deadlines are in `leases`: a
  clock of one node, outside of the state (T1, T2).
- To remember free locks. A lock that nobody holds or wants costs nothing, so nothing is known of
  its past; the one token counter is what outlives it (redisson#6510).
- To re-enter: a second request of the same owner waits like anyone's. Re-entry is the client's.

Where to start: `commands` is the log format and the list of what can be asked; `machine` applies it;
`state` has the transitions. `acquiring` is how a request is decided, with `deadlock`; `releasing` and
`revoking` how a grant ends; `listening` what becomes of one that nobody listens for (G4); `due` what
the clock does. `leases` is the leader's clock. Below them: `queues`, `sessions`, `answers` (G3),
`origins`, `timers`, `deadlines`, `limits`, and `events`, `refusals`, `views`, `invariants`, `fingerprint`
to tell and look at it all; `members` has the nodes that join and leave. `codec` turns batches into
bytes. `snapshot` does so with the whole state, which `records` takes apart and `rebuilding` puts
together; `restore` makes of one the state that a new cluster goes on from.
"""
