"""Grants as their clients wrote them down, and what must hold of them all (SAFETY P1, P2)."""

import heapq
from collections import defaultdict
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Grant:
    """One grant that a client was told of. Times are seconds of this machine's CLOCK_BOOTTIME."""

    kind: str
    client: str
    locks: tuple[str, ...]
    mode: str
    """exclusive, shared or semaphore."""
    limit: int
    weight: int
    token: int
    asked_s: float
    told_s: float
    trusted_until_s: float
    """Trusted from `told_s` until then; not at all when that is before it."""


def check_order(grants: list[Grant]) -> None:
    """P2: no token twice, and one that was asked for after another had been told is larger."""
    by_token: dict[int, Grant] = {}
    for grant in grants:
        assert grant.token not in by_token, f"P2: one token twice: {by_token[grant.token]} and {grant}"
        by_token[grant.token] = grant
    told = sorted(grants, key=lambda grant: grant.told_s)
    highest: Grant | None = None
    at = 0
    for grant in sorted(grants, key=lambda grant: grant.asked_s):
        while at < len(told) and told[at].told_s < grant.asked_s:
            highest = told[at] if highest is None or told[at].token > highest.token else highest
            at += 1
        assert highest is None or highest.token < grant.token, f"P2: {highest} was told before {grant}"


def check_exclusion(grants: list[Grant]) -> None:
    """P1: no two were trusted at one moment whose modes exclude each other, nor too many units."""
    of_lock: defaultdict[str, list[Grant]] = defaultdict(list)
    for grant in grants:
        if grant.trusted_until_s > grant.told_s:
            for lock in grant.locks:
                of_lock[lock].append(grant)
    for lock, those in of_lock.items():
        live: list[tuple[float, int, Grant]] = []
        for grant in sorted(those, key=lambda grant: grant.told_s):
            while live and live[0][0] <= grant.told_s:
                heapq.heappop(live)
            others = [other for _, _, other in live]
            assert _may_join(grant, others), f"P1: {lock!r} was trusted by {grant} beside {others}"
            heapq.heappush(live, (grant.trusted_until_s, grant.token, grant))


def _may_join(grant: Grant, others: list[Grant]) -> bool:
    if grant.mode == "semaphore":
        return sum(other.weight for other in others) + grant.weight <= grant.limit
    return not others or (grant.mode == "shared" and all(other.mode == "shared" for other in others))
