"""What the model test draws: few names, so that they meet, and mostly what has an effect."""

from hypothesis import strategies as st

from lockd.locks.commands import EXCLUSIVE, SHARED, WAIT_FOREVER, Acquire, AcquireAll

LOCKS = ("a", "b", "c", "sem")
ONE_LOCK = st.sampled_from(("a", "a", "b", "c", "sem"))
SESSIONS = st.sampled_from(("s1",) * 6 + ("s2",) * 6 + ("s3",) * 2 + ("s4",))
OWNERS = st.sampled_from(("t1", "t1", "t2", ""))
USERS = st.sampled_from(("ann",) * 15 + ("bob",))
NEXT = -1
"""Stands for an id that is higher than any before."""
LATE = -2
"""Stands for one that has come five commands late."""
NUMBERS = st.one_of(st.sampled_from((0, NEXT, NEXT, NEXT, NEXT)), st.integers(1, 30))
UUIDS = st.sampled_from(("", "u1", "u2", "u3"))
WAITS = st.sampled_from((0, 400, 1_500, WAIT_FOREVER))
LASTING = st.sampled_from((WAIT_FOREVER, WAIT_FOREVER, 1_500))
HOLDS = st.sampled_from((0, 0, 0, 700))
DELAYS = st.sampled_from((0, 600, 900))
MODES = st.sampled_from((EXCLUSIVE, SHARED))
METAS = st.sampled_from(("", "1", '"long"'))
CONNECTIONS = st.integers(1, 3)
NODES = st.integers(1, 2)
PICKS = st.integers(0, 7)
TOKENS = st.integers(0, 12)

WHO = st.fixed_dictionaries(
    {
        "session": SESSIONS,
        "owner": OWNERS,
        "request": NUMBERS,
        "user": USERS,
        "node": NODES,
        "connection": CONNECTIONS,
    }
)
WELL_KNOWN = st.fixed_dictionaries(
    {
        "session": st.sampled_from(("s1", "s2")),
        "owner": OWNERS,
        "request": st.sampled_from((NEXT,) * 7 + (LATE,)),
    }
)
BY_UUID = st.fixed_dictionaries(
    {
        "owner": OWNERS,
        "request": st.one_of(UUIDS, UUIDS, st.just(7)),
        "user": USERS,
        "node": NODES,
        "connection": CONNECTIONS,
    }
)


def one(ttl_ms: int, waits: st.SearchStrategy[int]) -> st.SearchStrategy[Acquire]:
    """A plain lock, alone or shared."""
    lock, ttl = ONE_LOCK, st.just(ttl_ms)
    alone = st.builds(Acquire, lock, ttl, waits, METAS, max_hold_ms=HOLDS, delay_ms=DELAYS)
    return st.one_of(alone, alone, st.builds(Acquire, lock, ttl, waits, METAS, mode=MODES, max_hold_ms=HOLDS))


def units(waits: st.SearchStrategy[int]) -> st.SearchStrategy[Acquire]:
    """Some of a semaphore, or of what is none."""
    weight, none = st.sampled_from((1, 1, 2, 3)), st.just(0)
    usual = st.builds(
        Acquire, st.just("sem"), none, waits, METAS, limit=st.just(3), weight=weight, max_hold_ms=HOLDS
    )
    other = st.builds(Acquire, ONE_LOCK, none, waits, METAS, limit=st.just(2), weight=weight)
    return st.one_of(usual, usual, usual, other)


def several(waits: st.SearchStrategy[int]) -> st.SearchStrategy[AcquireAll]:
    names = st.lists(st.sampled_from((*LOCKS[:3], *LOCKS)), min_size=1, max_size=3)
    return st.builds(AcquireAll, names.map(tuple), waits, METAS)
