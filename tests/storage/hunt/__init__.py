"""The race hunt: random interleavings of holders against one rule, on the real stores (SAFETY S1, P4).

    once install(n) has returned, nothing with a token below n becomes visible.

Three holders of the same one or two locks install, read, and write lines and rows in several tables,
in several transactions, with commits, savepoints and rollbacks. A conductor lets one step of one holder
go at a time, drawn from the seed: hooks in the library or the driver make a holder stand still
between any two statements or requests, also those that an adapter sends by itself. A step that must wait
for another holder stays under way while others go on. In some games connections are killed, replies lost,
tasks cancelled, leases end, a holder stops in mid transaction until all others have ended.

    python -m tests.storage.hunt --adapter postgresql --seeds 0-2999    many games
    python -m tests.storage.hunt --adapter postgresql --seeds 1234      the same game again

    history.py      what was done, told and seen, and the judge of it
    players.py      threads that go one step at a time
    arena.py        what an adapter brings: a store for many games, and a holder's hands
    script.py       what a holder does
    conductor.py    plays a seed
    memory.py, sqlite.py, postgresql.py, ...        the arenas
    awaited.py      a holder behind asyncio, on a loop of the player's own, whose tasks are cancelled
    bad.py          designs that are known to be wrong, each of which the hunt must find

A seed gives the same game again as far as the store allows: time-outs and a server's own threads are
the store's. Whether a step waits is asked of PostgreSQL itself; a SQLite connection says so; where
nobody can be asked, a step that takes some ms is taken to wait, and more than one holder may move.
"""
