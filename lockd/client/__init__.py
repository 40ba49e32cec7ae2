"""The Python client: sessions and leases as a program may trust them.

It promises that a lease which it calls held is held: "held" compares a clock that counts suspend
with a deadline taken from before the last renewal was sent, less a margin (SAFETY K1), and is
never a flag. Losing a connection is not losing a lock (K2); a lost lease says so at once and is
never replaced behind its holder's back (K3); a cancelled acquire leaves nothing behind (K4); a
forked child holds nothing (K5). It refuses to guess: an answer that did not come is
OutcomeUnknown, never "not held". A watch loses nothing and repeats nothing, or says that it can't go
on (`watch`, `feeds`); an election is a lock whose holder leads (`election`).

Start with `demand`, `lease` and `session`, which are pure and hold the rules. `engine` does what they
say over one connection (`link`, `connection`). `aio` and `sync` are thin faces of that one engine:
AsyncClient runs it on the caller's loop (`tasks`), Client on a thread of its own (`threads`, `portal`).
"""
