"""The checks of recorded histories, both ways: what breaks a promise is found, and what does not is let pass.

A check that never objects would let every run of the nemesis pass.
"""

import math

import pytest

from tests.nemesis.checks import check, check_linearizable, check_tokens, check_trust
from tests.nemesis.history import History, Kind, Operation, Outcome, Tenure


def acquired(client: str, token: int, called_s: float, answered_s: float, lock: str = "a") -> Operation:
    request = f"{client}/{token}"
    return Operation(client, Kind.ACQUIRE, Outcome.GRANTED, lock, request, token, called_s, answered_s)


def released(client: str, token: int, called_s: float, answered_s: float) -> Operation:
    request = f"{client}/{token}"
    return Operation(client, Kind.RELEASE, Outcome.RELEASED, "a", request, token, called_s, answered_s)


def ended(client: str, token: int, since_s: float) -> Operation:
    """The client's lease may be over since then."""
    return Operation(client, Kind.END, Outcome.UNKNOWN, "a", f"{client}/{token}", token, since_s, math.inf)


def unheard(client: str, request: str, called_s: float) -> Operation:
    """An acquire whose answer was lost."""
    return Operation(client, Kind.ACQUIRE, Outcome.UNKNOWN, "a", request, 0, called_s, math.inf)


def refused(client: str, called_s: float, answered_s: float) -> Operation:
    return Operation(client, Kind.ACQUIRE, Outcome.REFUSED, "a", f"{client}/x", 0, called_s, answered_s)


def busy(client: str, called_s: float, answered_s: float) -> Operation:
    return Operation(client, Kind.ACQUIRE, Outcome.BUSY, "a", f"{client}/b", 0, called_s, answered_s)


def seen(token: int, called_s: float, answered_s: float) -> Operation:
    return Operation("looker", Kind.INSPECT, Outcome.SEEN, "a", "", token, called_s, answered_s)


def tenure(client: str, token: int, from_s: float, until_s: float, lock: str = "a") -> Tenure:
    return Tenure(client, lock, token, from_s, until_s)


@pytest.mark.parametrize(
    "tenures",
    [
        [tenure("x", 1, 0, 2), tenure("y", 2, 1.9, 3)],
        [tenure("y", 2, 1.9, 3), tenure("x", 1, 0, 2)],
        [tenure("x", 1, 0, 9), tenure("y", 2, 1, 2)],
        [tenure("x", 1, 0, 9), tenure("x", 2, 1, 2)],
    ],
)
def test_p1_two_who_trust_one_lock_at_once_are_found(tenures: list[Tenure]) -> None:
    with pytest.raises(AssertionError, match="P1"):
        check_trust(tenures)


def test_p2_a_later_lease_with_a_lower_token_is_found() -> None:
    with pytest.raises(AssertionError, match="P2"):
        check_trust([tenure("x", 2, 0, 1), tenure("y", 1, 2, 3)])


def test_leases_one_after_the_other_or_of_different_locks_are_let_pass() -> None:
    check_trust([tenure("x", 1, 0, 2), tenure("y", 2, 2, 3), tenure("z", 3, 0, 9, lock="b")])


@pytest.mark.parametrize(
    "operations",
    [
        pytest.param([acquired("x", 1, 0, 1), acquired("y", 1, 5, 6, lock="b")], id="twice"),
        pytest.param([acquired("x", 2, 0, 1), acquired("y", 1, 2, 3, lock="b")], id="backwards"),
        pytest.param([seen(7, 0, 1), acquired("y", 6, 2, 3, lock="b")], id="below one that was seen"),
        pytest.param(
            [acquired("x", 9, 0, 1), acquired("y", 10, 2, 3), acquired("z", 5, 3.5, 4)],
            id="below the highest, not only the last",
        ),
    ],
)
def test_p2_tokens_that_do_not_grow_are_found(operations: list[Operation]) -> None:
    with pytest.raises(AssertionError, match="P2"):
        check_tokens(operations)


def test_tokens_of_calls_that_overlap_may_come_in_any_order() -> None:
    check_tokens([acquired("x", 2, 0, 3), acquired("y", 1, 1, 4, lock="b"), seen(0, 5, 6)])


UNSOUND = {
    "granted while another holds": [acquired("x", 1, 0, 1), acquired("y", 2, 2, 3)],
    "granted while another's lease can't be over": [
        acquired("x", 1, 0, 1),
        acquired("y", 2, 2, 3),
        ended("x", 1, 4),
    ],
    "busy while nobody holds": [acquired("x", 1, 0, 1), released("x", 1, 2, 3), busy("y", 4, 5)],
    "seen free while it is held": [acquired("x", 1, 0, 1), seen(0, 2, 3), released("x", 1, 4, 5)],
    "a token is seen that nobody has": [acquired("x", 1, 0, 1), seen(5, 2, 3)],
    "a refusal took effect": [refused("x", 0, 1), busy("y", 2, 3)],
    "a refusal explains the wait of another": [refused("x", 0, 1), seen(4, 2, 3), acquired("y", 5, 6, 7)],
    "a stale read": [
        acquired("x", 1, 0, 1),
        released("x", 1, 2, 3),
        acquired("y", 2, 4, 5),
        seen(1, 6, 7),
    ],
    "what an unheard call took is given to another while it was seen": [
        unheard("x", "x/?", 0),
        seen(1, 1, 2),
        acquired("y", 1, 3, 4),
    ],
}
SOUND = {
    "one after the other": [acquired("x", 1, 0, 1), released("x", 1, 2, 3), acquired("y", 2, 4, 5)],
    "a lease that may have been over": [acquired("x", 1, 0, 1), ended("x", 1, 2), acquired("y", 2, 3, 4)],
    "an unheard call took it, and was withdrawn": [
        unheard("x", "x/?", 0),
        busy("y", 1, 2),
        acquired("y", 2, 3, 4),
    ],
    "an unheard call took effect late": [
        unheard("x", "x/?", 0),
        acquired("y", 1, 1, 2),
        released("y", 1, 3, 4),
        seen(2, 5, 6),
    ],
    "a read that overlaps": [acquired("x", 1, 0, 3), seen(0, 1, 2), seen(1, 2.5, 4)],
}


@pytest.mark.parametrize("name", UNSOUND)
def test_answers_that_fit_no_order_are_found_and_shown(name: str) -> None:
    with pytest.raises(AssertionError, match=r"fit no order(.|\n)*->"):
        check_linearizable(UNSOUND[name])


@pytest.mark.parametrize("name", SOUND)
def test_answers_that_fit_an_order_are_let_pass(name: str) -> None:
    check_linearizable(SOUND[name])


def test_a_history_is_held_to_all_of_it() -> None:
    overlapping, backwards, unordered = History(), History(), History()
    overlapping.tenures += [tenure("x", 1, 0, 2), tenure("y", 2, 1, 3)]
    backwards.operations += [acquired("x", 2, 0, 1), acquired("y", 1, 2, 3, lock="b")]
    unordered.operations += UNSOUND["a stale read"]
    for history in (overlapping, backwards, unordered):
        with pytest.raises(AssertionError):
            check(history)
    check(History())
