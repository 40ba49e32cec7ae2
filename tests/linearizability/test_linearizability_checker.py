"""The checker on small histories made by hand, each with the verdict that reason gives it."""

import itertools
import random
from typing import TypeVar

import pytest

from tests.linearizability import keyvalue, locks, register
from tests.linearizability.checker import Operation, Verdict, check
from tests.linearizability.locks import (
    Acquire,
    Busy,
    Expire,
    Granted,
    Inspect,
    Locks,
    Release,
    Released,
    Seen,
)
from tests.linearizability.register import CompareAndSet, Done, Found, Read, Register, Write

YES = Verdict.LINEARIZABLE
NO = Verdict.NOT_LINEARIZABLE
C = TypeVar("C", register.Call, locks.Call)
A = TypeVar("A", register.Answer, locks.Answer)


def op(called: float, answered: float, call: C, answer: A) -> Operation[C, A]:
    return Operation(call, answer, called, answered)


def lost(called: float, call: register.Call) -> Operation[register.Call, register.Answer]:
    return Operation(call, None, called, None)


def maybe(called: float, call: locks.Call) -> Operation[locks.Call, locks.Answer]:
    """No answer came: it may have happened."""
    return Operation(call, None, called, None)


REGISTERS: dict[str, tuple[Verdict, list[Operation[register.Call, register.Answer]]]] = {
    "nothing": (YES, []),
    "nil at first": (YES, [op(0, 1, Read(), Found(None))]),
    "never written": (NO, [op(0, 1, Read(), Found(1))]),
    "stale read": (
        NO,
        [op(0, 1, Write(1), Done(True)), op(2, 3, Write(2), Done(True)), op(4, 5, Read(), Found(1))],
    ),
    "overlap lets a read see either": (
        YES,
        [op(0, 9, Write(1), Done(True)), op(1, 2, Read(), Found(None)), op(3, 4, Read(), Found(1))],
    ),
    "and never back again": (
        NO,
        [op(0, 9, Write(1), Done(True)), op(1, 2, Read(), Found(1)), op(3, 4, Read(), Found(None))],
    ),
    "an unanswered write may come much later": (
        YES,
        [
            lost(0, Write(1)),
            op(1, 2, Write(2), Done(True)),
            op(3, 4, Read(), Found(2)),
            op(5, 6, Read(), Found(1)),
        ],
    ),
    "or never": (YES, [lost(0, Write(1)), op(1, 2, Read(), Found(None))]),
    "but once": (
        NO,
        [
            lost(0, Write(1)),
            op(1, 2, Read(), Found(1)),
            op(3, 4, Write(2), Done(True)),
            op(5, 6, Read(), Found(1)),
        ],
    ),
    "two equal unanswered writes make it twice": (
        YES,
        [
            lost(0, Write(1)),
            lost(0, Write(1)),
            op(1, 2, Read(), Found(1)),
            op(3, 4, Write(2), Done(True)),
            op(5, 6, Read(), Found(1)),
        ],
    ),
    "not before it was called": (NO, [op(0, 1, Read(), Found(1)), lost(2, Write(1))]),
    "one of two racing cas wins": (
        YES,
        [
            op(0, 1, Write(0), Done(True)),
            op(2, 5, CompareAndSet(0, 1), Done(True)),
            op(2, 5, CompareAndSet(0, 2), Done(False)),
        ],
    ),
    "both can't": (
        NO,
        [
            op(0, 1, Write(0), Done(True)),
            op(2, 5, CompareAndSet(0, 1), Done(True)),
            op(2, 5, CompareAndSet(0, 2), Done(True)),
        ],
    ),
    "touching is overlapping": (YES, [op(0, 5, Write(1), Done(True)), op(5, 6, Read(), Found(None))]),
}


@pytest.mark.parametrize("name", REGISTERS)
def test_a_register_history_gets_the_verdict_that_reason_gives(name: str) -> None:
    verdict, history = REGISTERS[name]
    assert check(Register(), history).verdict is verdict


LOCKS: dict[str, tuple[Verdict, list[Operation[locks.Call, locks.Answer]]]] = {
    "one after another": (
        YES,
        [
            op(0, 1, Acquire("k", "a"), Granted(1)),
            op(2, 3, Release("k", "a"), Released(True)),
            op(4, 5, Acquire("k", "b"), Granted(2)),
        ],
    ),
    "P1: two holders": (
        NO,
        [op(0, 1, Acquire("k", "a"), Granted(1)), op(2, 3, Acquire("k", "b"), Granted(2))],
    ),
    "P1: even if they asked at once": (
        NO,
        [op(0, 9, Acquire("k", "a"), Granted(1)), op(0, 9, Acquire("k", "b"), Granted(2))],
    ),
    "locks of two names": (
        YES,
        [op(0, 1, Acquire("k", "a"), Granted(1)), op(2, 3, Acquire("l", "b"), Granted(2))],
    ),
    "P2: a token again": (
        NO,
        [
            op(0, 1, Acquire("k", "a"), Granted(7)),
            op(2, 3, Release("k", "a"), Released(True)),
            op(4, 5, Acquire("k", "b"), Granted(7)),
        ],
    ),
    "P2: a lower token": (
        NO,
        [
            op(0, 1, Acquire("k", "a"), Granted(7)),
            op(2, 3, Release("k", "a"), Released(True)),
            op(4, 5, Acquire("k", "b"), Granted(6)),
        ],
    ),
    "busy": (YES, [op(0, 1, Acquire("k", "a"), Granted(1)), op(2, 3, Acquire("k", "b"), Busy())]),
    "busy while free": (NO, [op(0, 1, Acquire("k", "b"), Busy())]),
    "G3: the same request, the same token": (
        YES,
        [op(0, 1, Acquire("k", "a"), Granted(1)), op(2, 3, Acquire("k", "a"), Granted(1))],
    ),
    "G3: the same request, another token": (
        NO,
        [op(0, 1, Acquire("k", "a"), Granted(1)), op(2, 3, Acquire("k", "a"), Granted(2))],
    ),
    "expiry lets another in": (
        YES,
        [
            op(0, 1, Acquire("k", "a"), Granted(1)),
            maybe(5, Expire("k", "a")),
            op(6, 7, Acquire("k", "b"), Granted(2)),
        ],
    ),
    "T2: not before it was allowed": (
        NO,
        [
            op(0, 1, Acquire("k", "a"), Granted(1)),
            op(2, 3, Acquire("k", "b"), Granted(2)),
            maybe(5, Expire("k", "a")),
        ],
    ),
    "expiry need not happen": (
        YES,
        [
            op(0, 1, Acquire("k", "a"), Granted(1)),
            maybe(5, Expire("k", "a")),
            op(6, 7, Acquire("k", "b"), Busy()),
            op(8, 9, Release("k", "a"), Released(True)),
        ],
    ),
    "a lost acquire may hold it": (
        YES,
        [maybe(0, Acquire("k", "a")), op(1, 2, Acquire("k", "b"), Busy()), op(3, 4, Inspect("k"), Seen(3))],
    ),
    "or not": (YES, [maybe(0, Acquire("k", "a")), op(1, 2, Acquire("k", "b"), Granted(1))]),
    "not both": (
        NO,
        [
            maybe(0, Acquire("k", "a")),
            op(1, 2, Acquire("k", "b"), Granted(1)),
            op(3, 4, Acquire("k", "c"), Granted(2)),
        ],
    ),
    "a lost acquire's token is one": (
        NO,
        [
            maybe(0, Acquire("k", "a")),
            op(1, 2, Inspect("k"), Seen(3)),
            op(3, 4, Acquire("k", "a"), Granted(4)),
        ],
    ),
    "a lost release may have freed it": (
        YES,
        [
            op(0, 1, Acquire("k", "a"), Granted(1)),
            maybe(2, Release("k", "a")),
            op(3, 4, Acquire("k", "b"), Granted(2)),
        ],
    ),
    "G7: a second release says so": (
        NO,
        [
            op(0, 1, Acquire("k", "a"), Granted(1)),
            op(2, 3, Release("k", "a"), Released(True)),
            op(4, 5, Release("k", "a"), Released(True)),
        ],
    ),
    "a release that was undone": (
        NO,
        [
            op(0, 1, Acquire("k", "a"), Granted(1)),
            op(2, 3, Release("k", "a"), Released(True)),
            op(4, 5, Inspect("k"), Seen(1)),
        ],
    ),
    "a stale inspection": (NO, [op(0, 1, Acquire("k", "a"), Granted(1)), op(2, 3, Inspect("k"), Seen(None))]),
    "another's token": (NO, [op(0, 1, Acquire("k", "a"), Granted(1)), op(2, 3, Inspect("k"), Seen(2))]),
}


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_history_gets_the_verdict_that_reason_gives(name: str) -> None:
    verdict, history = LOCKS[name]
    assert check(Locks(), history).verdict is verdict


def test_the_part_that_is_wrong_is_named() -> None:
    wrong = [op(0, 1, Acquire("l", "a"), Granted(1)), op(2, 3, Acquire("l", "b"), Granted(2))]
    right = [op(0, 1, Acquire("k", "a"), Granted(1))]
    assert check(Locks(), [*right, *wrong]).part == "l"


def test_appends_make_one_text() -> None:
    model = keyvalue.KeyValue()
    appends: list[Operation[keyvalue.Call, str]] = [
        Operation(keyvalue.Append("k", letter), None, 0, 9) for letter in "ab"
    ]

    def then(text: str) -> Verdict:
        get: Operation[keyvalue.Call, str] = Operation(keyvalue.Get("k"), text, 10, 11)
        return check(model, [*appends, get]).verdict

    assert [then(text) for text in ("ab", "ba", "a", "aba", "")] == [YES, YES, NO, NO, NO]


def test_time_that_runs_out_is_no_verdict() -> None:
    # Writes that all overlap, and a value that nobody wrote: every order must be tried.
    history: list[Operation[register.Call, register.Answer]] = [
        op(0, 100, Write(value), Done(True)) for value in range(18)
    ]
    history.append(op(0, 100, Read(), Found(99)))
    assert check(Register(), history, seconds_max=0.05).verdict is Verdict.UNDECIDED


def test_lost_acquires_are_not_tried_in_vain() -> None:
    """Forty of unknown outcome beside two hundred that were answered: most of them never mattered."""
    history: list[Operation[locks.Call, locks.Answer]] = []
    for turn in range(100):
        request = f"r{turn}"
        history.append(op(10 * turn, 10 * turn + 4, Acquire("k", request), Granted(turn + 1)))
        history.append(op(10 * turn + 5, 10 * turn + 9, Release("k", request), Released(True)))
        if turn % 5 == 0:
            history += [
                maybe(10 * turn, Acquire("k", f"lost{turn}")),
                maybe(10 * turn, Expire("k", f"lost{turn}")),
            ]
    assert check(Locks(), history, seconds_max=20).verdict is YES
    history.append(op(1000, 1001, Acquire("k", "late"), Granted(100)))
    assert check(Locks(), history, seconds_max=20).verdict is NO


def test_random_histories_get_the_verdict_that_trying_every_order_gives() -> None:
    draw = random.Random(7)
    verdicts = []
    for _ in range(600):
        history = _random_register_history(draw)
        verdict = check(Register(), history).verdict
        assert (verdict is YES) == _some_order_fits(history)
        verdicts.append(verdict)
    assert min(verdicts.count(YES), verdicts.count(NO)) > 100, "both kinds are met"


def _random_register_history(draw: random.Random) -> list[Operation[register.Call, register.Answer]]:
    history: list[Operation[register.Call, register.Answer]] = []
    for _ in range(5):
        called = draw.randrange(8)
        answered = called + draw.randrange(1, 6)
        value = draw.choice([None, 1, 2])
        match draw.randrange(4):
            case 0:
                history.append(op(called, answered, Write(draw.choice([1, 2])), Done(True)))
            case 1:
                history.append(lost(called, Write(draw.choice([1, 2]))))
            case 2:
                outcome = Done(draw.random() < 0.5)
                history.append(op(called, answered, CompareAndSet(value, draw.choice([1, 2])), outcome))
            case _:
                history.append(op(called, answered, Read(), Found(value)))
    return history


def _some_order_fits(history: list[Operation[register.Call, register.Answer]]) -> bool:
    answered = [operation for operation in history if operation.answered is not None]
    unanswered = [operation for operation in history if operation.answered is None]
    for count in range(len(unanswered) + 1):
        for chosen in itertools.combinations(unanswered, count):
            if any(map(_fits, itertools.permutations([*answered, *chosen]))):
                return True
    return False


def _fits(order: tuple[Operation[register.Call, register.Answer], ...]) -> bool:
    for first, second in itertools.combinations(order, 2):
        if second.answered is not None and second.answered < first.called:
            return False
    states = {Register().initial("register")}
    for operation in order:
        states = {new for state in states for new in Register().step(state, operation.call, operation.answer)}
    return bool(states)
