"""The JSON of /v1: what is sent, and what comes back. Durations are milliseconds.

Answers have the fields of the replies of the client protocol; 0 and 1 become false and true there,
and metadata JSON.
"""

from typing import Annotated, Any, Literal

import msgspec
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue


def _read_meta(value: Any) -> Any:
    """Metadata is kept as the text that its owner sent; "" is none."""
    return (msgspec.json.decode(value) if value else None) if isinstance(value, str) else value


Meta = Annotated[JsonValue, BeforeValidator(_read_meta)]


class Asked(BaseModel):
    """A body, or a query. Fields that do not exist are mistakes."""

    model_config = ConfigDict(extra="forbid")


class Told(BaseModel):
    """An answer."""

    model_config = ConfigDict(extra="forbid")


# Bodies and queries.


class Nothing(Asked):
    pass


class Acquire(Asked):
    lock: str
    session: str | None = None
    ttl_ms: int | None = Field(None, description="Instead of a session: a private one, in the answer.")
    owner: str | None = None
    request: int | str | None = Field(None, description="In a session a growing number, with a TTL a UUID.")
    wait_ms: int | Literal["forever"] | None = Field(None, description="0 unless given: BUSY at once.")
    mode: Literal["exclusive", "shared"] | None = None
    limit: int | None = Field(None, description="Makes it a semaphore of so many units.")
    weight: int | None = Field(None, description="How many of them; 1 unless given.")
    meta: JsonValue = None
    max_hold_ms: int | None = None
    delay_ms: int | None = None


class AcquireAll(Asked):
    locks: list[str]
    session: str
    owner: str | None = None
    request: int | None = None
    wait_ms: int | Literal["forever"] | None = None
    meta: JsonValue = None


class Cancel(Asked):
    lock: str
    request: int | str
    session: str | None = None


class Release(Asked):
    lock: str
    token: int
    session: str


class ReleaseAll(Asked):
    token: int
    session: str


class ChangeMeta(Asked):
    lock: str
    token: int
    session: str
    meta: JsonValue


class Break(Asked):
    lock: str
    token: int
    reason: str
    now: bool = Field(
        default=False, description="Pass it on at once, though its holder may trust its lease until its TTL."
    )


class Inspect(Asked):
    lock: str
    stale: bool = Field(default=False, description="From what this node has applied, without the leader.")


class ListLocks(Asked):
    prefix: str | None = None
    session: str | None = Field(None, description="Only what it holds or waits for.")
    after: str | None = None
    count: int | None = None


class ReadQueue(Asked):
    lock: str
    count: int | None = None


class Validate(Asked):
    lock: str
    token: int


class ReadEvents(Asked):
    prefix: str = ""
    after: int | None = Field(None, description="A revision; from now on unless given.")
    wait_ms: int = Field(0, ge=0, le=60_000, description="How long to wait for the first event.")


class OpenSession(Asked):
    ttl_ms: int
    name: str | None = None
    meta: JsonValue = None


class Renew(Asked):
    session: str
    ack: int | None = Field(None, description="The last notice of `ended` that was acted on.")


class CloseSession(Asked):
    session: str


class ListSessions(Asked):
    after: int | None = None
    count: int | None = None


class AddMember(Asked):
    node: int
    peer: str = Field(description="HOST:PORT, where the others are to dial it.")
    learner: bool = False
    force: bool = False


class ChangeMember(Asked):
    node: int
    force: bool = False


class Transfer(Asked):
    node: int | None = None


# Answers.


class Grant(Told):
    status: Literal["granted"]
    lock: str
    session: str
    token: int
    fence: str
    cluster: str
    incarnation: str
    mode: Literal["exclusive", "shared", "semaphore"]
    fencing: bool
    revision: int
    ttl_ms: int
    repeat: bool
    limit: int
    weight: int
    locks: list[str] | None = None


class Done(Told):
    """Whether there was anything to do."""

    done: bool


class Released(Told):
    released: int


class Holder(Told):
    session: int
    name: str
    owner: str
    token: int
    revision: int
    held_ms: int
    meta: Meta
    mode: str
    weight: int
    ending: str


class Lock(Told):
    lock: str
    status: Literal["free", "held"]
    mode: str
    holders: list[Holder]
    queue_length: int
    held_ms: int
    granted_last: int
    limit: int
    used: int
    delay_ms: int
    revision: int


class LockPage(Told):
    revision: int
    locks: list[Lock]
    next: str | None


class Waiter(Told):
    position: int
    session: int
    name: str
    owner: str
    mode: str
    weight: int
    waiting_ms: int
    meta: Meta
    locks: list[str]


class Queue(Told):
    lock: str
    revision: int
    queue_length: int
    waiters: list[Waiter]


class Validity(Told):
    state: Literal["current", "superseded", "free"]


class Event(Told):
    revision: int
    event: str
    lock: str
    token: int
    mode: str
    session: int
    name: str
    owner: str
    meta: Meta
    reason: str


class Events(Told):
    revision: int = Field(description="Everything up to here has been told: `after` of the next request.")
    events: list[Event]


class SessionOpened(Told):
    session: str
    ttl_ms: int


class Notice(Told):
    number: int
    lock: str
    token: int
    reason: str


def _read_notices(value: Any) -> Any:
    return [dict(zip(Notice.model_fields, notice, strict=True)) for notice in value]


class Renewed(Told):
    ttl_ms: int
    ended: Annotated[list[Notice], BeforeValidator(_read_notices)]


class Session(Told):
    session: int
    name: str
    user: str
    ttl_ms: int
    held: int
    waiting: int
    meta: Meta
    private: bool


class SessionPage(Told):
    sessions: list[Session]
    next: int | None


class Member(Told):
    node: int
    peer: str
    client: str
    http: str
    instance: str
    voter: bool
    wants_vote: bool
    match_index: int
    alive: bool


class Status(Told):
    cluster: str
    incarnation: str
    node: int
    role: str
    leader: int
    term: int
    commit_index: int
    last_applied: int
    log_last: int
    members: list[Member]
    locks: int
    waiters: int
    sessions: int
    revision: int
    version: str
    feature_level: int
    protocol: int


class Members(Told):
    cluster: str
    incarnation: str
    node: int
    leader: int
    members: list[Member]
    removed: list[int]


class Failure(Told):
    """What was not done. The facts about the holder come with BUSY and TIMEOUT."""

    error: str
    text: str
    lock: str | None = None
    holder: str | None = None
    owner: str | None = None
    meta: Meta = None
    held_ms: int | None = None
    queue_length: int | None = None
