"""The kinds of clients of a mixed crowd: each takes locks, holds them for a moment, and writes it down."""

import asyncio
import contextlib
import itertools
import json
import random
import shutil
import threading
from collections.abc import Callable
from typing import Any

import redis

import lockd
from lockd.client import clock
from lockd.client.lease import margin
from tests.nemesis.trust import Grant
from tests.processes import run_lockd

LOCKS = ("m1", "m2", "m3")
"""Held exclusively, by all kinds."""
READ_WRITE = "rw"
POOL = "pool"
POOL_LIMIT = 3
TTL_S = 3.0
WAIT_S = 1.0
HOLD_S_MEAN = 0.03

Follow = Callable[["Errand", str], None]


class Errand:
    """What every client does until it is told to stop, and where it writes."""

    def __init__(self, endpoints: str, grants: list[Grant], done: threading.Event, *, seed: int) -> None:
        self.endpoints = endpoints
        self.grants = grants
        self.done = done
        self.seed = seed
        self.failures: list[BaseException] = []

    def follow(self, kind: str, body: Follow, name: str) -> None:
        del kind
        try:
            body(self, name)
        except BaseException as error:  # noqa: BLE001 - raised by `run`, on the test's thread
            self.failures.append(error)
            self.done.set()

    def draw(self, name: str) -> random.Random:
        return random.Random(f"{self.seed} {name}")

    def hold(self, draw: random.Random) -> None:
        """Keep it for a moment."""
        self.done.wait(draw.expovariate(1 / HOLD_S_MEAN))

    def note(
        self,
        name: str,
        locks: tuple[str, ...],
        token: int,
        *,
        asked_s: float,
        told_s: float,
        trusted_until_s: float,
        mode: str = "exclusive",
        weight: int = 1,
    ) -> None:
        kind = name.rpartition(" ")[0]
        limit = POOL_LIMIT if mode == "semaphore" else 0
        self.grants.append(
            Grant(kind, name, locks, mode, limit, weight, token, asked_s, told_s, trusted_until_s)
        )


# Threads and tasks of the Python client.


def in_a_thread(errand: Errand, name: str) -> None:
    draw = errand.draw(name)
    with lockd.Client(errand.endpoints, ttl=TTL_S, name=name) as client:
        while not errand.done.is_set():
            asked_s = clock.now()
            uses_pool = draw.random() < 0.2
            lock = POOL if uses_pool else draw.choice(LOCKS)
            weight = draw.choice((1, 2)) if uses_pool else 1
            try:
                if uses_pool:
                    block = client.semaphore(POOL, limit=POOL_LIMIT, weight=weight, wait=WAIT_S)
                else:
                    block = client.lock(lock, wait=WAIT_S, on_lost="flag")
                with block as lease:
                    told_s = clock.now()
                    errand.hold(draw)
                    until_s = _trusted_until(lease)
                    errand.note(
                        name,
                        (lock,),
                        lease.token,
                        asked_s=asked_s,
                        told_s=told_s,
                        trusted_until_s=until_s,
                        mode=lease.mode,
                        weight=weight,
                    )
            except lockd.LockdError:
                errand.hold(draw)


def _trusted_until(lease: lockd.Lease | lockd.AsyncLease) -> float:
    """Now, about to be given back; or its deadline, if that has passed."""
    return min(clock.now(), lease.grant.trust.deadline)


class Tasks:
    """All clients that are tasks, on one loop."""

    def __init__(self, errand: Errand, names: list[str]) -> None:
        self._errand = errand
        self._names = names

    async def run(self) -> None:
        try:
            await asyncio.gather(*map(self._in_a_task, self._names))
        except BaseException as error:  # noqa: BLE001 - raised by `run`, on the test's thread
            self._errand.failures.append(error)
            self._errand.done.set()

    async def _in_a_task(self, name: str) -> None:
        draw = self._errand.draw(name)
        async with lockd.AsyncClient(self._errand.endpoints, ttl=TTL_S, name=name) as client:
            while not self._errand.done.is_set():
                try:
                    await self._once(client, name, draw)
                except lockd.LockdError:
                    await asyncio.sleep(draw.expovariate(1 / HOLD_S_MEAN))

    async def _once(self, client: lockd.AsyncClient, name: str, draw: random.Random) -> None:
        asked_s = clock.now()
        what = draw.random()
        if what < 0.2:
            locks: tuple[str, ...] = (READ_WRITE,)
            block = client.lock(READ_WRITE, wait=WAIT_S, on_lost="flag", shared=what < 0.15)
        elif what < 0.4:
            locks = tuple(sorted(draw.sample(LOCKS, 2)))
            block = client.lock_all(locks, wait=WAIT_S, on_lost="flag")
        else:
            locks = (draw.choice(LOCKS),)
            block = client.lock(locks[0], wait=WAIT_S, on_lost="flag")
        async with block as lease:
            told_s = clock.now()
            await asyncio.sleep(draw.expovariate(1 / HOLD_S_MEAN))
            until_s = _trusted_until(lease)
            self._errand.note(
                name,
                locks,
                lease.token,
                asked_s=asked_s,
                told_s=told_s,
                trusted_until_s=until_s,
                mode=lease.mode,
            )


# Any Redis client.


class _Raw:
    """redis-py as a user without our client would write it, by the rules of docs/PROTOCOL.md."""

    def __init__(self, endpoints: str, protocol: int, name: str) -> None:
        self._protocol = protocol
        self._name = name
        self._endpoints = itertools.cycle(endpoints.split(","))
        self._redis: redis.Redis | None = None
        self.session = ""
        self._deadline_s = 0.0
        self.requests = itertools.count(1)

    def call(self, *words: object) -> Any:
        """One command, at another node when the one at hand does not answer. Raises ConnectionError."""
        if self._redis is None:
            host, _, port = next(self._endpoints).rpartition(":")
            self._redis = redis.Redis(
                host=host,
                port=int(port),
                protocol=self._protocol,
                client_name=self._name.replace(" ", "-"),
                decode_responses=True,
                socket_timeout=WAIT_S + 2.0,
                retry=redis.retry.Retry(redis.backoff.NoBackoff(), 0),
                single_connection_client=True,
            )
        try:
            return self._redis.execute_command(*words)  # type: ignore[no-untyped-call]
        except (redis.ConnectionError, redis.TimeoutError) as error:
            self.close()
            raise ConnectionError(str(error)) from error

    def close(self) -> None:
        if self._redis is not None:
            with contextlib.suppress(redis.RedisError):
                self._redis.close()
            self._redis = None

    def ask(self, words: tuple[object, ...]) -> Any:
        """One command until it is answered for certain, or the session can't be relied on any more."""
        while True:
            try:
                return self.call(*words)
            except ConnectionError:
                pass
            except redis.ResponseError as error:
                if not str(error).startswith(("UNAVAILABLE", "UNKNOWN")):
                    raise
            if self.session and clock.now() >= self._deadline_s:
                raise ConnectionError("not answered before the session's deadline")

    def renew(self) -> None:
        """Have a session that was heard of just now."""
        sent_s = clock.now()
        if not self.session or sent_s >= self._deadline_s:
            self.session = ""
            self.session = _map(self.ask(("SESSION.OPEN", round(TTL_S * 1000), "NAME", self._name)))[
                "session"
            ]
            self.requests = itertools.count(1)
            sent_s = clock.now()
        ttl_ms = _map(self.ask(("SESSION.KEEPALIVE", self.session)))["ttl_ms"]
        self._deadline_s = sent_s + ttl_ms / 1000 - margin(ttl_ms / 1000)

    @property
    def deadline_s(self) -> float:
        return self._deadline_s


def _map(reply: Any) -> dict[str, Any]:
    """A RESP3 map, or the flat array that it is under RESP2."""
    return reply if isinstance(reply, dict) else dict(zip(reply[::2], reply[1::2], strict=True))


def _over_resp(protocol: int) -> Follow:
    def follow(errand: Errand, name: str) -> None:
        draw = errand.draw(name)
        raw = _Raw(errand.endpoints, protocol, name)
        while not errand.done.is_set():
            try:
                _take_over_resp(errand, name, raw, draw)
            except (ConnectionError, redis.ResponseError) as error:
                if "NOSESSION" in str(error):
                    raw.session = ""
                errand.hold(draw)
        with contextlib.suppress(ConnectionError, redis.ResponseError):
            raw.call("SESSION.CLOSE", raw.session)
        raw.close()

    return follow


def _take_over_resp(errand: Errand, name: str, raw: _Raw, draw: random.Random) -> None:
    raw.renew()
    lock, request = draw.choice(LOCKS), next(raw.requests)
    asked_s = clock.now()
    wait_ms = draw.choice((0, round(WAIT_S * 500)))
    scope = ("SESSION", raw.session, "REQUEST", request, "WAIT", wait_ms)
    granted = _map(raw.ask(("LOCK.ACQUIRE", lock, *scope)))
    told_s = clock.now()
    errand.hold(draw)
    until_s = min(clock.now(), raw.deadline_s)
    errand.note(name, (lock,), granted["token"], asked_s=asked_s, told_s=told_s, trusted_until_s=until_s)
    raw.ask(("LOCK.RELEASE", lock, granted["token"], "SESSION", raw.session))


# The command line.

_CHILD = (
    "read up idle < /proc/uptime; echo $up $LOCKD_TOKEN; sleep 0.05; read up idle < /proc/uptime; echo $up"
)
_UPTIME_STEP_S = 0.01


def by_lockd_run(errand: Errand, name: str) -> None:
    draw = errand.draw(name)
    while not errand.done.is_set():
        lock, asked_s = draw.choice(LOCKS), clock.now()
        ran = run_lockd(
            *("run", "--lock", lock, "--ttl", f"{TTL_S}s", "--wait", f"{WAIT_S}s"),
            *("--endpoints", errand.endpoints, "--", shutil.which("sh"), "-c", _CHILD),
        )
        lines = ran.stdout.split("\n")
        if lines[0]:
            began, token = lines[0].split()
            # A child that was stopped has said when it began alone: then it was trusted at that moment.
            until_s = float(lines[1]) if lines[1:] and lines[1] else float(began)
            told_s = float(began) + _UPTIME_STEP_S
            errand.note(name, (lock,), int(token), asked_s=asked_s, told_s=told_s, trusted_until_s=until_s)


def by_script(errand: Errand, name: str) -> None:
    """acquire, work, release: nobody renews, so it is trusted for its TTL at most."""
    draw = errand.draw(name)
    while not errand.done.is_set():
        lock, asked_s = draw.choice(LOCKS), clock.now()
        where = ("--endpoints", errand.endpoints, "--json")
        took = run_lockd("acquire", lock, "--ttl", f"{TTL_S}s", "--wait", f"{WAIT_S}s", *where)
        told_s = clock.now()
        if took.returncode != 0:
            continue
        granted = json.loads(took.stdout)
        errand.hold(draw)
        # A grant that waited is trusted from a renewal alone; a script has none, so until then not at all.
        deadline_s = asked_s + TTL_S - margin(TTL_S)
        until_s = min(clock.now(), deadline_s)
        token = granted["token"]
        errand.note(name, (lock,), token, asked_s=asked_s, told_s=told_s, trusted_until_s=until_s)
        run_lockd("release", lock, token, "--session", granted["session"], *where)


KINDS: dict[str, Follow] = {
    "thread": in_a_thread,
    "redis RESP2": _over_resp(2),
    "redis RESP3": _over_resp(3),
    "lockd run": by_lockd_run,
    "script": by_script,
}
"""All but the tasks, which share a loop: `Tasks`."""
