"""Refusals are counted once, under labels that stay few, and told in words that say what to do."""

import importlib
import logging
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress

import pytest
from prometheus_client import REGISTRY, generate_latest

from lockd.errors import LeaseLost, LockdError, LockTimeout, OutcomeUnknown, StaleToken, Unavailable
from lockd_storage import (
    NotDurable,
    NotFenceable,
    NotInstalled,
    OutsideFence,
    WrongCluster,
    WrongLock,
    WrongMode,
    rejects,
)
from lockd_storage.errors import MalformedToken
from lockd_storage.memory import MemoryFence
from lockd_storage.rejects import FAMILIES_MAX, GAP, OTHER_FAMILIES, REASONS, REJECTS, family, told
from tests.storage.leases import GivenLease


@pytest.fixture(autouse=True)
def _counted_from_zero() -> Iterator[None]:
    REJECTS.clear()
    GAP.clear()
    rejects._families.clear()
    yield
    rejects._families.clear()


def counted() -> dict[tuple[str, str, str], float]:
    """The rejects by adapter, resource and reason."""
    return {
        (sample.labels["adapter"], sample.labels["resource"], sample.labels["reason"]): sample.value
        for metric in REJECTS.collect()
        for sample in metric.samples
        if sample.name == "lockd_fence_rejects_total"
    }


def stale(presented: int = 33, mark: int = 34, resource: str = "orders") -> StaleToken:
    return StaleToken("x", resource=resource, presented=presented, mark=mark)


def refuse(error: LockdError, *, adapter: str = "redis", resource: str = "orders") -> None:
    with pytest.raises(type(error)), told(adapter, resource):
        raise error


def test_pitfall_27_a_refusal_is_counted_by_adapter_resource_and_reason() -> None:
    fence = MemoryFence()
    fence.install(GivenLease(33))
    fence.install(GivenLease(34))
    with pytest.raises(StaleToken), told("memory", "orders"), fence.write(GivenLease(33)):
        pytest.fail("a stale write began")
    assert counted() == {("memory", "orders", "stale"): 1.0}


def test_an_error_that_passes_several_blocks_is_counted_once() -> None:
    error = stale()
    with suppress(StaleToken), told("http", "orders"), told("postgresql", "orders"):
        raise error
    refuse(error, adapter="http")
    assert counted() == {("postgresql", "orders", "stale"): 1.0}
    refuse(stale())
    assert counted() == {("postgresql", "orders", "stale"): 1.0, ("redis", "orders", "stale"): 1.0}


REFUSALS: list[tuple[LockdError, str]] = [
    (stale(), "stale"),
    (NotInstalled("x", resource="orders"), "not_installed"),
    (WrongCluster("x", resource="orders"), "wrong_cluster"),
    (WrongLock("x", resource="orders"), "wrong_lock"),
    (WrongMode("x", resource="orders"), "wrong_mode"),
    (OutsideFence("x", resource="orders"), "outside_fence"),
    (NotFenceable("x"), "not_fenceable"),
    (NotDurable("x", resource="orders"), "not_durable"),
    (LeaseLost("x"), "lease_lost"),
    (MalformedToken("x"), "malformed"),
]


@pytest.mark.parametrize(("error", "reason"), REFUSALS, ids=[reason for _, reason in REFUSALS])
def test_each_refusal_has_its_reason_and_says_what_to_do(
    caplog: pytest.LogCaptureFixture, error: LockdError, reason: str
) -> None:
    refuse(type(error)(*error.args, **vars(error)))
    assert counted() == {("redis", "orders", reason): 1.0}
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("lockd_storage", logging.WARNING)
    advice = REASONS[type(error)][1]
    assert advice
    assert advice in record.getMessage()
    assert f"(redis, {reason})" in record.getMessage()


def test_the_reasons_are_all() -> None:
    assert [reason for reason, _ in REASONS.values()] == [reason for _, reason in REFUSALS]


def test_a_subclass_has_the_reason_of_what_it_is() -> None:
    class Fenced(StaleToken):
        """As an adapter may make of it."""

    refuse(Fenced("x", resource="orders", presented=33, mark=34))
    assert counted() == {("redis", "orders", "stale"): 1.0}


@pytest.mark.parametrize(
    "error",
    [Unavailable("x"), OutcomeUnknown("x"), LockTimeout("x")],
    ids=["unavailable", "unknown", "timeout"],
)
def test_what_is_no_refusal_is_neither_counted_nor_told(
    caplog: pytest.LogCaptureFixture, error: LockdError
) -> None:
    refuse(error)
    with suppress(KeyError), told("redis", "orders"):
        raise KeyError
    with told("redis", "orders"):
        pass
    assert counted() == {}
    assert caplog.records == []


def test_the_line_about_a_stale_holder(caplog: pytest.LogCaptureFixture) -> None:
    """Which resource, who came too late, who is there now, whether anything was written, and what to do."""
    refuse(stale(33, 34), adapter="postgresql")
    (record,) = caplog.records
    assert record.getMessage() == (
        "refused (postgresql, stale): resource 'orders' has been taken over under token 34, and the holder of"
        " token 33 still came; nothing of that was written. Expected after a pause, a partition or a slow"
        " renewal; the holder should stop and acquire again"
    )


def test_the_gap_is_how_far_the_stale_token_was_behind() -> None:
    for mark in (34, 40, 5_000):
        refuse(stale(33, mark))
    for bound, at_most in (("1.0", 1), ("10.0", 2), ("1000.0", 2), ("100000.0", 3)):
        labels = {"adapter": "redis", "le": bound}
        assert REGISTRY.get_sample_value("lockd_fence_reject_gap_bucket", labels) == at_most
    assert REGISTRY.get_sample_value("lockd_fence_reject_gap_sum", {"adapter": "redis"}) == 1 + 7 + 4967


@pytest.mark.parametrize(
    ("resource", "label"),
    [
        ("orders", "orders"),
        ("orders:42", "orders:*"),
        ("orders/42", "orders/*"),
        ("a/b:c", "a/*"),
        ("a:b/c", "a:*"),
        (":", ":*"),
        ("", ""),
    ],
)
def test_entities_are_counted_by_family(resource: str, label: str) -> None:
    assert family(resource) == label


def test_a_million_entities_are_one_series() -> None:
    labels = {rejects._label(f"orders:{number}") for number in range(1_000_000)}
    assert labels == {"orders:*"}


def test_p6_names_from_outside_make_no_end_of_series() -> None:
    for number in range(FAMILIES_MAX + 10):
        refuse(stale(resource=f"made-up-{number}"), resource=f"made-up-{number}")
    assert len(counted()) == FAMILIES_MAX + 1
    assert counted()["redis", OTHER_FAMILIES, "stale"] == 10
    refuse(stale(), resource="made-up-0")
    assert counted()["redis", "made-up-0", "stale"] == 2


def test_the_metrics_are_where_prometheus_looks() -> None:
    refuse(stale())
    text = generate_latest(REGISTRY).decode()
    assert 'lockd_fence_rejects_total{adapter="redis",reason="stale",resource="orders"} 1.0' in text
    assert 'lockd_fence_reject_gap_bucket{adapter="redis",le="1.0"} 1.0' in text


def test_a_module_that_is_loaded_again_goes_on_counting() -> None:
    refuse(stale())
    before = dict(vars(rejects))
    try:
        again = importlib.reload(rejects)
        again.tell(stale(), adapter="redis", resource="orders")
    finally:
        vars(rejects).update(before)
    assert counted() == {("redis", "orders", "stale"): 2.0}


def test_importing_it_counts_and_logs_nothing() -> None:
    program = (
        "import logging; logging.basicConfig(level=0)\n"
        "import lockd_storage.memory, lockd_storage.rejects\n"
        "from prometheus_client import generate_latest\n"
        "print([line for line in generate_latest().decode().splitlines()"
        " if line.startswith('lockd_fence')])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")
