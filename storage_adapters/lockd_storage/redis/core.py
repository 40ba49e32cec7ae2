"""What is sent to the server, in which order, and what its answers mean. No socket is touched here.

Each verb is a generator: it yields requests and is sent the replies, or has the client library's error
thrown in. `routes` finds the node, and `links` and `alinks` have the connections.
"""

from collections.abc import Generator
from functools import lru_cache
from typing import Any, Literal, NamedTuple, TypeVar

from redis.exceptions import NoScriptError, RedisError, ResponseError

from lockd.ids import Fence
from lockd_storage.errors import NotDurable, NotFenceable
from lockd_storage.fencing import (
    HeldLease,
    Mark,
    check_deadline,
    judge_install,
    judge_write,
    lock_of,
    presented_fence,
    resource_of,
    writing_fence,
)
from lockd_storage.redis import scripts
from lockd_storage.redis.batch import Batch
from lockd_storage.redis.keys import check_key, mark_key, tag_of
from lockd_storage.redis.refusals import Lost, explain
from lockd_storage.redis.scripts import Script
from lockd_storage.redis.stored import stored_floor, stored_mark
from lockd_storage.redis.verbs import Command

T = TypeVar("T")
Confirm = Literal["memory", "disk"]

# WAIT is asked for slices of this length: the client library gives up on a reply that takes longer than
# its socket timeout.
WAIT_SLICE_MS = 200


class Request(NamedTuple):
    """One command for the server. `decode`: make text of the reply if the client is set up to."""

    words: tuple[bytes | str | int, ...]
    decode: bool = False


Steps = Generator[Request, Any, T]


class Grant(NamedTuple):
    """A lease at a resource: what it presents, and where the mark is."""

    lease: HeldLease
    resource: str
    fence: Fence
    tag: bytes
    mark_key: bytes
    presented: bytes

    def check_key(self, key: bytes) -> None:
        """Raise OutsideFence for a key that this resource does not guard."""
        check_key(key, self.tag, self.resource)


def installing(lease: HeldLease, resource: str | None, cluster: str | None) -> Grant:
    """The grant of a lease that may install. Raises WrongCluster, WrongMode, LeaseLost, ValueError."""
    name = resource_of(lease, resource)
    grant = _grant(lease, name, presented_fence(lease, resource=name, cluster=cluster))
    check_deadline(lease)
    return grant


def writing(lease: HeldLease, resource: str | None, cluster: str | None) -> Grant:
    """The grant of a lease that may write. Raises WrongCluster, WrongMode, ValueError."""
    name = resource_of(lease, resource)
    return _grant(lease, name, writing_fence(lease, resource=name, cluster=cluster))


def reading(lease: HeldLease, resource: str | None, cluster: str | None) -> Grant:
    """The grant of a lease that may read, a shared one too. Raises WrongCluster, WrongMode, ValueError."""
    name = resource_of(lease, resource)
    return _grant(lease, name, presented_fence(lease, resource=name, cluster=cluster))


def may_write(grant: Grant) -> None:
    """Raise WrongMode for a lease that may read only (SAFETY G10)."""
    if grant.lease.mode != "exclusive":
        writing_fence(grant.lease, resource=grant.resource, cluster=None)


def _grant(lease: HeldLease, resource: str, fence: Fence) -> Grant:
    return Grant(lease, resource, fence, *_placed(resource), str(fence).encode())


@lru_cache(maxsize=1024)
def _placed(resource: str) -> tuple[bytes, bytes]:
    # A resource's tag and the key of its mark. A script asks for its own at every call.
    tag = tag_of(resource)
    return tag, mark_key(tag)


def install(
    grant: Grant, *, floor_key: bytes, replicas: int | None, confirm: Confirm, timeout: float
) -> Steps[Mark]:
    """Raise the mark, and see it confirmed. See `RedisFence.install`."""
    try:
        yield from _refuse_eviction()
        fence = grant.fence
        arguments = (
            lock_of(grant.lease, grant.resource).encode(),
            fence.cluster,
            fence.incarnation,
            str(fence.token),
        )
        _, *before = yield from run(scripts.INSTALL, (grant.mark_key, floor_key), arguments)
        mark = _judge_install(grant, before)
        if replicas is None:
            # Asked only now: the node that was asked first may have been a cluster's former primary.
            replicas = yield from connected_replicas()
        yield from confirmed(
            f"the mark of resource {grant.resource!r}",
            resource=grant.resource,
            replicas=replicas,
            confirm=confirm,
            timeout=timeout,
        )
    except RedisError as error:
        explain(error, grant.resource, grant.fence, lost=Lost.INSTALL)
    return mark


def read_mark(resource: str) -> Steps[Mark | None]:
    """The mark of a resource."""
    try:
        lock, fence = yield Request((b"HMGET", mark_key(tag_of(resource)), b"lock", b"fence"))
    except RedisError as error:
        explain(error, resource, None, lost=Lost.READ)
    return stored_mark(resource, lock, fence)


def command(grant: Grant, given: Command) -> Steps[Any]:
    """One checked command. Replies what the server does, parsed."""
    for key in given.keys:
        grant.check_key(key)
    if len(given.keys) == 1:
        script, arguments = scripts.ONE_KEY, (given.name, *given.arguments, grant.presented)
    else:
        script, arguments = scripts.ALL_KEYS, (given.name, grant.presented)
    reply = yield from _checked(grant, script, given.keys, arguments, reads=given.reads)
    return given.parse(reply)


def batch(grant: Grant, given: Batch) -> Steps[None]:
    """All commands of a batch in one step."""
    keys, arguments = given.script_words()
    replies = yield from _checked(grant, scripts.BATCH, tuple(keys), (*arguments, grant.presented))
    given.take_replies(replies)


def own_script(
    grant: Grant, script: Script, keys: tuple[bytes, ...], arguments: tuple[bytes, ...]
) -> Steps[Any]:
    """A user's script, wrapped by `scripts.fenced_script`."""
    for key in keys:
        grant.check_key(key)
    return (yield from _checked(grant, script, keys, (*arguments, grant.presented)))


def run(
    script: Script, keys: tuple[bytes, ...], arguments: tuple[bytes | str, ...], *, decode: bool = False
) -> Steps[Any]:
    """Run a script, which the server may not know or no longer know: then nothing ran, and it is sent."""
    try:
        return (yield Request((b"EVALSHA", script.sha, len(keys), *keys, *arguments), decode))
    except NoScriptError:
        return (yield Request((b"EVAL", script.source, len(keys), *keys, *arguments), decode))


def _checked(
    grant: Grant,
    script: Script,
    keys: tuple[bytes, ...],
    arguments: tuple[bytes, ...],
    *,
    reads: bool = False,
) -> Steps[Any]:
    if grant.lease.remaining() <= 0:
        # Nothing begins after the deadline. If someone newer is there, say who.
        judge_write((yield from read_mark(grant.resource)), resource=grant.resource, fence=grant.fence)
        check_deadline(grant.lease)
    try:
        return (yield from run(script, (*keys, grant.mark_key), arguments, decode=True))
    except RedisError as error:
        explain(error, grant.resource, grant.fence, lost=Lost.READ if reads else Lost.WRITE)


def _judge_install(grant: Grant, before: list[bytes | None]) -> Mark:
    """What the install script did, in the words of the rule."""
    lock, fence, floor, floor_cluster = before
    return judge_install(
        stored_mark(grant.resource, lock, fence),
        floor=stored_floor(floor, floor_cluster),
        resource=grant.resource,
        lock=lock_of(grant.lease, grant.resource),
        fence=grant.fence,
    )


def connected_replicas() -> Steps[int]:
    """How many replicas the primary sees now."""
    return int(_facts((yield Request((b"INFO", b"replication")))).get("connected_slaves", "0"))


def _refuse_eviction() -> Steps[None]:
    policy = _facts((yield Request((b"INFO", b"memory")))).get("maxmemory_policy", "unknown")
    if policy.startswith("allkeys-") or policy == "unknown":
        raise NotFenceable(
            f"the server's maxmemory-policy is {policy}: under memory pressure it may drop marks, and let"
            " nobody write any more. Set it to noeviction or to one of the volatile- policies"
        )


def confirmed(what: str, *, resource: str, replicas: int, confirm: Confirm, timeout: float) -> Steps[None]:
    """Wait until the connection's last write has come to so many replicas. Raises NotDurable."""
    if confirm == "memory" and replicas == 0:
        return
    left_ms = max(1, round(timeout * 1000))
    acknowledged = 0
    while left_ms > 0:
        slice_ms = min(left_ms, WAIT_SLICE_MS)
        left_ms -= slice_ms
        if confirm == "disk":
            try:
                here, acknowledged = yield Request((b"WAITAOF", 1, replicas, slice_ms))
            except ResponseError as error:
                raise NotFenceable(
                    f"{what} can't be confirmed on disk: {error}. That needs appendonly yes, and Redis 7.2"
                    " or Valkey"
                ) from error
        else:
            here, acknowledged = 1, (yield Request((b"WAIT", replicas, slice_ms)))
        if here >= 1 and acknowledged >= replicas:
            return
    raise NotDurable(
        f"{what} is set on the primary, and {acknowledged} of {replicas} replicas have confirmed it in"
        f" {timeout:g} s: a failover could lose it. Do it again once they are back",
        resource=resource,
    )


def _facts(info: bytes) -> dict[str, str]:
    """The fields of an INFO reply."""
    lines = info.decode(errors="replace").splitlines()
    return dict(line.split(":", 1) for line in lines if ":" in line)
