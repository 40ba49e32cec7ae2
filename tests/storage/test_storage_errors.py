"""Errors cross processes whole: those of a Celery task, of a pool of processes, copied for a log."""

import copy
import pickle

import pytest

from lockd.errors import LeaseLost, LockdError, LockTimeout, StaleToken
from lockd_scheduler.errors import AttemptFenced, BadSchedule
from lockd_storage.errors import (
    MalformedToken,
    NotDurable,
    NotFenceable,
    NotInstalled,
    OutsideFence,
    WrongCluster,
    WrongLock,
    WrongMode,
)

ERRORS = [
    StaleToken("stale", resource="orders", presented=3, mark=4),
    LockTimeout("busy", lock="orders", holder="host-a", meta={"job": "close"}, held_ms=7, queue_length=2),
    LeaseLost("over", lock="orders", token=3),
    AttemptFenced("moved", lock="orders", token=3),
    *(
        kind("refused", resource="orders")
        for kind in (NotInstalled, WrongCluster, WrongLock, WrongMode, OutsideFence, NotDurable)
    ),
    *(kind("refused") for kind in (NotFenceable, MalformedToken, BadSchedule)),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_an_error_is_pickled_and_copied_with_all_it_says(error: LockdError) -> None:
    for other in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
        assert type(other) is type(error)
        assert str(other) == str(error)
        assert other.__dict__ == error.__dict__


def test_what_was_noted_on_an_error_goes_with_it() -> None:
    error = StaleToken("stale", resource="orders", presented=3, mark=4)
    error.add_note("while closing order 7")
    assert pickle.loads(pickle.dumps(error)).__notes__ == ["while closing order 7"]
