"""What one acquisition asks for: which locks, how, and for how long. Pure, and checked when it is made."""

import enum
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

from lockd.client.queries import Words, meta_text


class LockMode(enum.StrEnum):
    """How a lock is held."""

    EXCLUSIVE = "exclusive"
    SHARED = "shared"
    """By any number of others that share it, while nobody holds it exclusively."""
    SEMAPHORE = "semaphore"
    """By as many as its limit allows. Such grants have no order, so their tokens fence nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """Made by `of_lock`, `of_all` or `of_semaphore`, which raise ValueError for what can't be."""

    locks: tuple[str, ...]
    """One name, or several in their order."""
    mode: LockMode = LockMode.EXCLUSIVE
    of_several: bool = False
    """All of `locks` at once under one token, or none."""
    wait: float | None = None
    """Seconds; None for ever."""
    meta: str = ""
    """JSON text that others see; "" for none."""
    limit: int = 0
    weight: int = 1
    max_hold: float | None = None
    """Seconds after which the cluster revokes the grant, however it is renewed (SAFETY K7)."""
    delay: float | None = None
    """Seconds for which nobody gets the lock after this grant has ended badly."""
    may_be_handed_on: bool = False
    """Another thread or task may give it back: then nobody is known to wait for this one (SAFETY G8)."""

    @classmethod
    def of_lock(
        cls,
        name: str,
        *,
        wait: float | None,
        meta: Mapping[str, Any] | None,
        shared: bool,
        max_hold: float | None,
        delay: float | None,
    ) -> Self:
        """One lock, exclusive or shared."""
        if shared and delay is not None:
            raise ValueError(
                "a delay is for exclusive locks: those who share a lock exclude nobody who shares it"
            )
        return cls(
            locks=(_checked_name(name),),
            mode=LockMode.SHARED if shared else LockMode.EXCLUSIVE,
            wait=_checked_wait(wait),
            meta=meta_text(meta),
            max_hold=_checked_span("max_hold", max_hold),
            delay=_checked_span("delay", delay),
        )

    @classmethod
    def of_all(cls, names: Iterable[str], *, wait: float | None, meta: Mapping[str, Any] | None) -> Self:
        """Several locks, exclusively; the order in which they are named means nothing."""
        if isinstance(names, str):
            raise TypeError(f"lock_all takes a list of names, not the one name {names!r}")
        locks = tuple(sorted({_checked_name(name) for name in names}))
        if not locks:
            raise ValueError("lock_all takes at least one name")
        return cls(locks=locks, of_several=True, wait=_checked_wait(wait), meta=meta_text(meta))

    @classmethod
    def of_semaphore(
        cls,
        name: str,
        *,
        limit: int,
        weight: int,
        wait: float | None,
        meta: Mapping[str, Any] | None,
        max_hold: float | None,
    ) -> Self:
        """`weight` of the `limit` units of a semaphore."""
        if not 1 <= weight <= limit:
            raise ValueError(f"a weight is between 1 and the limit: weight={weight!r}, limit={limit!r}")
        return cls(
            locks=(_checked_name(name),),
            mode=LockMode.SEMAPHORE,
            wait=_checked_wait(wait),
            meta=meta_text(meta),
            limit=limit,
            weight=weight,
            max_hold=_checked_span("max_hold", max_hold),
        )

    @classmethod
    def of_either(
        cls,
        name: str,
        *,
        wait: float | None,
        meta: Mapping[str, Any] | None,
        shared: bool,
        max_hold: float | None,
        delay: float | None,
        limit: int | None,
        weight: int,
    ) -> Self:
        """A lock, or with a limit a semaphore."""
        if limit is None:
            return cls.of_lock(name, wait=wait, meta=meta, shared=shared, max_hold=max_hold, delay=delay)
        if shared or delay is not None:
            raise ValueError("a semaphore is not shared, and has no delay")
        return cls.of_semaphore(name, limit=limit, weight=weight, wait=wait, meta=meta, max_hold=max_hold)

    @property
    def lock(self) -> str:
        """The lock's name; of several the first."""
        return self.locks[0]

    @property
    def reentry(self) -> tuple[object, ...] | None:
        """What its owner enters again while it holds it; None: each time is a grant of its own."""
        return None if self.mode is LockMode.SEMAPHORE else (self.mode, self.of_several, self.locks)

    def named(self, name: str) -> Self:
        """The same of another lock."""
        return replace(self, locks=(_checked_name(name),))

    def to_hand_on(self) -> Self:
        """The same for a lease that is held without a block."""
        return replace(self, may_be_handed_on=True)

    def words(self, scope: Words, *, owner: str, request: int | str) -> Words:
        """Its command. `scope` is SESSION s or TTL ms. A wait is told of its end by a push."""
        words: Words = ("LOCK.ACQUIREALL" if self.of_several else "LOCK.ACQUIRE",)
        words = (*words, *scope) if self.of_several else (*words, self.lock, *scope)
        if owner:
            words = (*words, "OWNER", owner)
        words = (*words, "REQUEST", request)
        if self.wait is None:
            words = (*words, "WAIT", "FOREVER", "NOTIFY")
        elif self.wait > 0:
            words = (*words, "WAIT", _milliseconds(self.wait), "NOTIFY")
        if self.mode is LockMode.SHARED:
            words = (*words, "MODE", "shared")
        elif self.mode is LockMode.SEMAPHORE:
            words = (*words, "LIMIT", self.limit, "WEIGHT", self.weight)
        if self.meta:
            words = (*words, "META", self.meta)
        if self.max_hold is not None:
            words = (*words, "MAXHOLD", _milliseconds(self.max_hold))
        if self.delay is not None:
            words = (*words, "DELAY", _milliseconds(self.delay))
        return (*words, len(self.locks), *self.locks) if self.of_several else words


def _milliseconds(seconds: float) -> int:
    return max(1, round(seconds * 1000))


def _checked_name(name: str) -> str:
    if not isinstance(name, str) or not name:
        raise ValueError(f"a lock's name is a text that is not empty, not {name!r}")
    return name


def _checked_wait(wait: float | None) -> float | None:
    if wait is not None and not 0 <= wait < math.inf:
        raise ValueError(f"wait is in seconds, 0 or more, or None for ever, not {wait!r}")
    return wait


def _checked_span(what: str, seconds: float | None) -> float | None:
    if seconds is not None and not 0 < seconds < math.inf:
        raise ValueError(f"{what} is in seconds, more than 0, or None for none, not {seconds!r}")
    return seconds
