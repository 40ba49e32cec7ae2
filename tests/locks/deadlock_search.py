"""Deadlock as SAFETY G8 means it, by trying everything: no graph, no reduction, no order that is cleverer.

What stands in the locks is a list of claims, oldest first. A claim that waits is granted as soon as it is
the first that waits in each of its locks and goes with all who hold them. Any owner of whom nothing waits
may run to its end, and gives back all it holds. An owner is lost when no row of such ends, in whatever
order, lets it run to its own. Exponential: for a handful of owners and locks.
"""

from typing import NamedTuple

from lockd.locks.commands import EXCLUSIVE, SEMAPHORE

Owner = tuple[str, str]
"""Session and owner text; ("", "") of a grant that ends by itself."""
NOBODY: Owner = ("", "")


class Claim(NamedTuple):
    """A grant or a wait of one owner, in one lock or in several under one ticket."""

    ticket: int
    owner: Owner
    locks: tuple[str, ...]
    mode: str
    limit: int
    weight: int
    holds: bool


Claims = tuple[Claim, ...]


def fits(claim: Claim, holders: list[Claim]) -> bool:
    """Whether these holders of a lock leave room for the claim."""
    if claim.mode == SEMAPHORE:
        return sum(holder.weight for holder in holders) + claim.weight <= claim.limit
    return not holders or (claim.mode != EXCLUSIVE and all(holder.mode == claim.mode for holder in holders))


def settled(claims: Claims) -> Claims:
    """The claims when all that can be granted is granted, by G5."""
    for number, claim in enumerate(claims):
        if not claim.holds and _is_next(claims, number):
            return settled((*claims[:number], claim._replace(holds=True), *claims[number + 1 :]))
    return claims


def _is_next(claims: Claims, number: int) -> bool:
    claim = claims[number]
    for lock in claim.locks:
        if any(lock in older.locks and not older.holds for older in claims[:number]):
            return False
        if not fits(claim, [other for other in claims if other.holds and lock in other.locks]):
            return False
    return True


def can_run_to_its_end(claims: Claims, owner: Owner) -> bool:
    """Whether some row of ends lets all that this owner waits for be granted."""
    to_visit, seen = [settled(_that_take_part(claims))], set[Claims]()
    while to_visit:
        state = to_visit.pop()
        if state in seen:
            continue
        seen.add(state)
        waiting = {claim.owner for claim in state if not claim.holds}
        if owner not in waiting:
            return True
        to_visit += [settled(left) for left in _ends(state, waiting)]
    return False


def lost_owners(claims: Claims) -> list[Owner]:
    """The owners who can never run to their end."""
    owners = sorted({claim.owner for claim in claims if claim.owner[1] and not claim.holds})
    return [owner for owner in owners if not can_run_to_its_end(claims, owner)]


def _that_take_part(claims: Claims) -> Claims:
    """A wait without OWNER takes no part (G8), and a grant without one ends by itself."""
    return tuple(
        claim if claim.owner[1] else claim._replace(owner=NOBODY)
        for claim in claims
        if claim.owner[1] or claim.holds
    )


def _ends(state: Claims, waiting: set[Owner]) -> list[Claims]:
    """What is left after one more owner of whom nothing waits, or one grant of nobody's, has ended."""
    free = [claim for claim in state if claim.owner not in waiting]
    ends = {
        claim.owner: tuple(other for other in state if other.owner != claim.owner)
        for claim in free
        if claim.owner != NOBODY
    }
    alone = [tuple(other for other in state if other is not claim) for claim in free if claim.owner == NOBODY]
    return [*ends.values(), *alone]
