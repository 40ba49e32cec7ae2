"""The table of /v1: each path, what it takes, the command that it stands for, and what comes back."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydantic import JsonValue

from lockd.protocol.resp import Reply
from lockd.server.http import models


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A row of the table. GET takes a query, POST a JSON body."""

    method: str
    path: str
    summary: str
    asked: type[models.Asked]
    told: type[models.Told]
    words: Callable[[Any], list[str]]
    """The command that it stands for, given what was asked."""
    field: str = ""
    """Where a reply that is no map goes in the answer."""

    def tell(self, reply: Reply) -> models.Told:
        """The answer that a reply makes."""
        return self.told.model_validate({self.field: reply} if self.field else reply)


def _command(verb: str, *arguments: str | int, **options: str | int | None) -> list[str]:
    """Words in order, then the options that are given; a flag is given as ""."""
    words = [verb, *map(str, arguments)]
    for name, value in options.items():
        if value is not None:
            words += [name, str(value)] if value != "" or name not in _FLAGS else [name]
    return words


_FLAGS = frozenset({"NOW", "STALE", "LEARNER", "FORCE"})


def _flag(given: bool) -> str | None:  # noqa: FBT001 - the value of a field
    return "" if given else None


def _meta(value: JsonValue) -> str | None:
    return None if value is None else _json(value)


def _json(value: JsonValue) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _acquire(asked: models.Acquire) -> list[str]:
    return _command(
        "LOCK.ACQUIRE",
        asked.lock,
        SESSION=asked.session,
        TTL=asked.ttl_ms,
        OWNER=asked.owner,
        REQUEST=asked.request,
        WAIT=asked.wait_ms,
        MODE=asked.mode,
        LIMIT=asked.limit,
        WEIGHT=asked.weight,
        META=_meta(asked.meta),
        MAXHOLD=asked.max_hold_ms,
        DELAY=asked.delay_ms,
    )


def _acquire_all(asked: models.AcquireAll) -> list[str]:
    options = _command(
        "LOCK.ACQUIREALL",
        SESSION=asked.session,
        OWNER=asked.owner,
        REQUEST=asked.request,
        WAIT=asked.wait_ms,
        META=_meta(asked.meta),
    )
    return [*options, str(len(asked.locks)), *asked.locks]


_LOCKS = (
    Endpoint(
        "POST",
        "/v1/locks/acquire",
        "Obtain a lock or units of a semaphore, at once or after a wait.",
        models.Acquire,
        models.Grant,
        _acquire,
    ),
    Endpoint(
        "POST",
        "/v1/locks/acquire-all",
        "Obtain several locks under one token, all or none.",
        models.AcquireAll,
        models.Grant,
        _acquire_all,
    ),
    Endpoint(
        "POST",
        "/v1/locks/cancel",
        "Withdraw a wait or its grant; that request id never holds again.",
        models.Cancel,
        models.Done,
        lambda asked: _command("LOCK.CANCEL", asked.lock, SESSION=asked.session, REQUEST=asked.request),
        "done",
    ),
    Endpoint(
        "POST",
        "/v1/locks/release",
        "End a grant.",
        models.Release,
        models.Done,
        lambda asked: _command("LOCK.RELEASE", asked.lock, asked.token, SESSION=asked.session),
        "done",
    ),
    Endpoint(
        "POST",
        "/v1/locks/release-all",
        "Give back every lock of a grant.",
        models.ReleaseAll,
        models.Released,
        lambda asked: _command("LOCK.RELEASEALL", asked.token, SESSION=asked.session),
        "released",
    ),
    Endpoint(
        "POST",
        "/v1/locks/meta",
        "Change the metadata of a grant, or the value of an election.",
        models.ChangeMeta,
        models.Done,
        lambda asked: [
            *_command("LOCK.META", asked.lock, asked.token, SESSION=asked.session),
            _json(asked.meta),
        ],
        "done",
    ),
    Endpoint(
        "POST",
        "/v1/locks/break",
        "Take a grant from its holder. Needs the role break.",
        models.Break,
        models.Done,
        lambda asked: _command(
            "LOCK.BREAK", asked.lock, asked.token, REASON=asked.reason, NOW=_flag(asked.now)
        ),
        "done",
    ),
    Endpoint(
        "GET",
        "/v1/locks",
        "Locks that are held or waited for, by name.",
        models.ListLocks,
        models.LockPage,
        lambda asked: _command(
            "LOCK.LIST",
            PREFIX=asked.prefix,
            SESSION=asked.session,
            AFTER=asked.after,
            COUNT=asked.count,
        ),
    ),
    Endpoint(
        "GET",
        "/v1/locks/inspect",
        "Who holds a lock, and how many wait.",
        models.Inspect,
        models.Lock,
        lambda asked: _command("LOCK.INSPECT", asked.lock, STALE=_flag(asked.stale)),
    ),
    Endpoint(
        "GET",
        "/v1/locks/queue",
        "Who waits for a lock, in order.",
        models.ReadQueue,
        models.Queue,
        lambda asked: _command("LOCK.QUEUE", asked.lock, COUNT=asked.count),
    ),
    Endpoint(
        "GET",
        "/v1/locks/validate",
        "Whether a grant is the newest of its lock: current, superseded or free.",
        models.Validate,
        models.Validity,
        lambda asked: _command("LOCK.VALIDATE", asked.lock, asked.token),
        "state",
    ),
)

_SESSIONS = (
    Endpoint(
        "POST",
        "/v1/sessions/open",
        "Open a session.",
        models.OpenSession,
        models.SessionOpened,
        lambda asked: _command("SESSION.OPEN", asked.ttl_ms, NAME=asked.name, META=_meta(asked.meta)),
    ),
    Endpoint(
        "POST",
        "/v1/sessions/renew",
        "Renew a session for its TTL, and learn which of its grants were revoked.",
        models.Renew,
        models.Renewed,
        lambda asked: _command("SESSION.KEEPALIVE", asked.session, ACK=asked.ack),
    ),
    Endpoint(
        "POST",
        "/v1/sessions/close",
        "End a session: free its locks, drop its waits.",
        models.CloseSession,
        models.Done,
        lambda asked: _command("SESSION.CLOSE", asked.session),
        "done",
    ),
    Endpoint(
        "GET",
        "/v1/sessions",
        "The sessions that are open, by their public numbers.",
        models.ListSessions,
        models.SessionPage,
        lambda asked: _command("SESSION.LIST", AFTER=asked.after, COUNT=asked.count),
    ),
)

_CLUSTER = (
    Endpoint(
        "GET",
        "/v1/status",
        "Nodes, roles and log positions, as this node knows them.",
        models.Nothing,
        models.Status,
        lambda _: ["CLUSTER.STATUS"],
    ),
    Endpoint(
        "GET",
        "/v1/members",
        "The members and the ids that were removed, as this node knows them.",
        models.Nothing,
        models.Members,
        lambda _: ["CLUSTER.MEMBERS"],
    ),
    Endpoint(
        "POST",
        "/v1/members/add",
        "Add a node as a learner, which becomes a voter once it has caught up.",
        models.AddMember,
        models.Done,
        lambda asked: _command(
            "CLUSTER.ADD", asked.node, asked.peer, LEARNER=_flag(asked.learner), FORCE=_flag(asked.force)
        ),
        "done",
    ),
    Endpoint(
        "POST",
        "/v1/members/promote",
        "Make a learner a voter.",
        models.ChangeMember,
        models.Done,
        lambda asked: _command("CLUSTER.PROMOTE", asked.node, FORCE=_flag(asked.force)),
        "done",
    ),
    Endpoint(
        "POST",
        "/v1/members/remove",
        "Remove a node for good: its id is never used again.",
        models.ChangeMember,
        models.Done,
        lambda asked: _command("CLUSTER.REMOVE", asked.node, FORCE=_flag(asked.force)),
        "done",
    ),
    Endpoint(
        "POST",
        "/v1/members/transfer",
        "Hand leadership to a voter, or to the one that is most up to date.",
        models.Transfer,
        models.Done,
        lambda asked: _command("CLUSTER.TRANSFER", *([] if asked.node is None else [asked.node])),
        "done",
    ),
)

EVENTS = Endpoint(
    "GET",
    "/v1/locks/events",
    "What happened to the locks whose names begin so, after a revision; waits for the first event.",
    models.ReadEvents,
    models.Events,
    lambda asked: _command("LOCK.WATCH", asked.prefix, FROM=asked.after),
)
"""Answered from the history at once, or when there is something to tell: HTTP has no pushes."""

ENDPOINTS = (*_LOCKS, *_SESSIONS, *_CLUSTER)
