"""Which node a verb's requests go to. No socket is touched here either.

A verb stays on one connection from beginning to end, as WAIT counts the writes of its own connection;
only a cluster that moves the key meanwhile makes it change. Each request is sent once.
"""

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, TypeVar

from redis.exceptions import AskError, MovedError, RedisClusterException, RedisError

from lockd.errors import Unavailable
from lockd_storage.redis.core import Request, Steps
from lockd_storage.redis.refusals import unreachable

T = TypeVar("T")

REDIRECTS_MAX = 5
FAILURES = (RedisError, RedisClusterException, OSError)
"""What a `Go`, a `Request` or a `Refresh` may end with."""


@dataclass(frozen=True, slots=True)
class Go:
    """Take a connection to the node at an address, or to the primary that has the key."""

    address: tuple[str, int] | None = None


@dataclass(frozen=True, slots=True)
class Refresh:
    """Ask the cluster anew who has which slots."""


Route = Generator[Go | Request | Refresh, Any, T]


def routed(steps: Steps[T], *, sharded: bool) -> Route[T]:
    """A verb's steps with the finding of the node around them.

    Raises what the steps raise, and Unavailable or AccessDenied when no connection is to be had.
    """
    try:
        request = next(steps)
        yield from _go(Go(), sharded=sharded)
        while True:
            try:
                reply = yield request
            except AskError as error:  # MovedError too: it was not carried out here
                if sharded:
                    try:
                        reply = yield from _redirected(request, error)
                    except RedisError as failure:
                        request = steps.throw(failure)
                        continue
                else:
                    request = steps.throw(error)
                    continue
            except RedisError as error:
                request = steps.throw(error)
                continue
            request = steps.send(reply)
    except StopIteration as done:
        result: T = done.value
        return result


def _redirected(request: Request, error: AskError) -> Route[Any]:
    for _ in range(REDIRECTS_MAX):
        if isinstance(error, MovedError):
            yield from _refreshed()
        yield from _go(Go(error.node_addr), sharded=True)
        if not isinstance(error, MovedError):
            yield Request((b"ASKING",))
        try:
            return (yield request)
        except AskError as again:
            error = again
    raise Unavailable(f"the cluster redirected {REDIRECTS_MAX} times: it is being rearranged")


def _go(step: Go, *, sharded: bool) -> Route[None]:
    try:
        yield step
    except FAILURES as error:
        if sharded:  # the next call may find that a replica has taken over
            yield from _refreshed()
        raise unreachable(error) from error


def _refreshed() -> Route[None]:
    try:
        yield Refresh()
    except FAILURES as error:
        raise unreachable(error) from error
