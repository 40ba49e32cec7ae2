"""What a recorded history must satisfy, whatever was done to the cluster meanwhile."""

import bisect
import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace

from tests.linearizability import checker, locks
from tests.nemesis.history import History, Kind, Operation, Outcome, Tenure

MISFIT_SHOWN = 12
"""How many answers before the one that does not fit are shown with it."""

Asked = checker.Operation[locks.Call, locks.Answer]


def check(history: History) -> None:
    """P1 by what was trusted, P2 by tokens, and linearizability. Raises AssertionError with the evidence."""
    check_trust(history.tenures)
    check_tokens(history.operations)
    check_linearizable(history.operations)


def check_trust(tenures: list[Tenure]) -> None:
    """P1: no two leases of one lock were trusted at one moment."""
    of_lock: defaultdict[str, list[Tenure]] = defaultdict(list)
    for tenure in tenures:
        of_lock[tenure.lock].append(tenure)
    for lock, held in of_lock.items():
        held.sort(key=lambda tenure: tenure.from_s)
        latest: Tenure | None = None
        for tenure in held:
            assert latest is None or latest.until_s <= tenure.from_s, (
                f"P1: two trusted their leases of {lock!r} at once: {latest} and {tenure}"
            )
            assert latest is None or latest.token < tenure.token, (
                f"P2: {lock!r} went from token {latest} to {tenure}"
            )
            latest = tenure


def check_tokens(operations: list[Operation]) -> None:
    """P2: no token twice; one that was granted after another was known is larger, whatever the lock."""
    granted = [each for each in operations if each.outcome is Outcome.GRANTED]
    by_token: dict[int, Operation] = {}
    for grant in granted:
        assert grant.token not in by_token, f"P2: one token for {by_token[grant.token]} and {grant}"
        by_token[grant.token] = grant
    # Tokens that were known by a time: told by a grant, or seen where somebody holds.
    known = sorted(
        (each.returned_s, each.token)
        for each in operations
        if each.outcome in (Outcome.GRANTED, Outcome.SEEN) and each.token
    )
    times = [time for time, _ in known]
    highest: list[int] = []
    for _, token in known:
        highest.append(max(token, highest[-1] if highest else 0))
    for grant in granted:
        before = bisect.bisect_left(times, grant.invoked_s)
        assert before == 0 or highest[before - 1] < grant.token, (
            f"P2: token {highest[before - 1]} was known before {grant} was asked for"
        )


def check_linearizable(operations: list[Operation], *, seconds_max: float = 30.0) -> None:
    """Every answer fits one order of all calls, each at some moment between its call and its answer.

    A refused acquire takes no part: what was never applied must explain nothing. Raises
    AssertionError with the first answer that fits no order, and what was going on around it.
    """
    of_lock: defaultdict[str, list[Operation]] = defaultdict(list)
    for operation in operations:
        of_lock[operation.lock].append(operation)
    for lock, those in of_lock.items():
        verdict = _verdict(those, seconds_max)
        if verdict is checker.Verdict.NOT_LINEARIZABLE:
            raise AssertionError(
                f"the answers of {lock!r} fit no order:\n{_first_misfit(those, seconds_max)}"
            )
        assert verdict is checker.Verdict.LINEARIZABLE, f"{lock!r}: no verdict within {seconds_max} s"


def _verdict(operations: Iterable[Operation], seconds_max: float) -> checker.Verdict:
    asked = (each for operation in operations for each in _as_asked(operation))
    return checker.check(locks.Locks(), asked, seconds_max=seconds_max).verdict


def _first_misfit(operations: list[Operation], seconds_max: float) -> str:
    """The operations around the earliest answer that makes the history one that fits no order."""
    ends = sorted(each.returned_s for each in operations if each.outcome is not Outcome.UNKNOWN)
    low, high = 0, len(ends) - 1
    while low < high:
        middle = (low + high) // 2
        known = [until for each in operations if (until := _until(each, ends[middle])) is not None]
        if _verdict(known, seconds_max) is checker.Verdict.NOT_LINEARIZABLE:
            high = middle
        else:
            low = middle + 1
    around = [
        each
        for each in operations
        if each.invoked_s <= ends[high] and each.returned_s >= ends[max(0, high - MISFIT_SHOWN)]
    ]
    lines = [_line(each, ends[high]) for each in sorted(around, key=lambda each: each.invoked_s)]
    return "\n".join(lines)


def _until(operation: Operation, now: float) -> Operation | None:
    """The operation as it was known at a time: not called, called, or answered."""
    if operation.returned_s <= now:
        return operation
    if operation.invoked_s > now or operation.kind is Kind.INSPECT or operation.outcome is Outcome.REFUSED:
        return None
    kind = Kind.ACQUIRE if operation.kind is Kind.ACQUIRE else Kind.END
    return replace(operation, kind=kind, outcome=Outcome.UNKNOWN, token=0, returned_s=math.inf)


def _line(operation: Operation, misfit_s: float) -> str:
    called, answered = operation.invoked_s - misfit_s, operation.returned_s - misfit_s
    mark = "->" if operation.returned_s == misfit_s else "  "
    what = f"{operation.kind.value} {operation.outcome.value} token {operation.token}"
    who = operation.request or operation.client
    return f"{mark} {called:9.4f} to {answered:9.4f} s  {who}: {what}  {operation.told}"


def _as_asked(operation: Operation) -> list[Asked]:
    """The operation as the model knows it. What is not known may also end by itself."""
    lock, request = operation.lock, operation.request
    called, answered = operation.invoked_s, operation.returned_s
    match operation.kind, operation.outcome:
        case Kind.ACQUIRE, Outcome.GRANTED:
            return [
                checker.Operation(
                    locks.Acquire(lock, request), locks.Granted(operation.token), called, answered
                )
            ]
        case Kind.ACQUIRE, Outcome.BUSY:
            return [checker.Operation(locks.Acquire(lock, request), locks.Busy(), called, answered)]
        case Kind.ACQUIRE, Outcome.UNKNOWN:
            # The client withdraws it, or its session ends: either way, some time after the grant.
            return [
                checker.Operation(locks.Acquire(lock, request), None, called, None),
                checker.Operation(locks.Expire(lock, request), None, called, None),
            ]
        case Kind.ACQUIRE, Outcome.REFUSED:
            return []
        case Kind.RELEASE, Outcome.RELEASED:
            released = locks.Released(was_held=True)
            return [checker.Operation(locks.Release(lock, request), released, called, answered)]
        case Kind.INSPECT, Outcome.SEEN:
            seen = locks.Seen(operation.token or None)
            return [checker.Operation(locks.Inspect(lock), seen, called, answered)]
        case Kind.END, Outcome.UNKNOWN:
            return [checker.Operation(locks.Expire(lock, request), None, called, None)]
    raise AssertionError(f"no such operation: {operation}")
