"""Carrying a request of /v1 out: who asks, what, and the answer with its status."""

import asyncio
import base64
import binascii
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pydantic
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route

from lockd.locks.commands import Refused
from lockd.locks.events import LockEvent
from lockd.protocol import verbs
from lockd.protocol.requests import LockWatch, Request, RequestError
from lockd.protocol.resp import Reply
from lockd.server import replies
from lockd.server.auth import EVERYONE, TooManyLoginsError, User, Users
from lockd.server.history import History
from lockd.server.http import models
from lockd.server.http.endpoints import ENDPOINTS, EVENTS, Endpoint
from lockd.server.refusals import is_about_holder
from lockd.server.service import Service
from lockd.server.turns import Client, Kind, Unsent

BODY_BYTES_MAX = 64 * 1024
WAITING_MAX = 64
"""Requests that may wait at once: the node's health has to be asked for beside them (P6)."""
EVENTS_MAX = 1000
"""In one answer."""

STATUSES = {
    "ERR": 400,
    "BUSY": 409,
    "TIMEOUT": 409,
    "NOTHELD": 409,
    "NOSESSION": 404,
    "DEADLOCK": 409,
    "LIMIT": 429,
    "MISMATCH": 409,
    "GONE": 410,
    "UNAVAILABLE": 503,
    "UNKNOWN": 504,
    "NOAUTH": 401,
    "NOPERM": 403,
}
"""By the first word of the error; docs/PROTOCOL.md has the table."""


class _HttpTurn:
    """A command that came over HTTP, until its one answer."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.answered: asyncio.Future[Reply | Refused] = asyncio.get_running_loop().create_future()
        self.unsent: Unsent | None = None
        self.is_given_up = False

    def answer(self, value: Reply, unsent: Unsent | None = None) -> None:
        if not self.is_given_up:
            self.unsent = unsent
            self.answered.set_result(value)
        elif unsent is not None:
            unsent()

    def refuse(self, refused: Refused) -> None:
        if not self.is_given_up:
            self.answered.set_result(refused)

    def give_up(self) -> None:
        """Nobody is there for the answer any more."""
        self.is_given_up = True
        if self.unsent is not None:
            self.unsent()


class _Gone(Exception):
    """The connection has ended before the answer."""


class Api:
    """/v1 of one node."""

    def __init__(self, service: Service, history: History, users: Users | None) -> None:
        self._service = service
        self._history = history
        self._users = users
        self._waiting = 0
        self._news = asyncio.Event()
        self._is_stopping = False
        history.subscribe(self._on_events, lambda _: self._on_events(()))
        self.routes = [
            Route(row.path, self._endpoint(row, self._carry_out), methods=[row.method]) for row in ENDPOINTS
        ]
        self.routes.append(Route(EVENTS.path, self._endpoint(EVENTS, self._read_events), methods=["GET"]))

    def stop(self) -> None:
        """Whoever waits for events is told that this node is going; the driver tells all others."""
        self._is_stopping = True
        self._news.set()

    def _endpoint(
        self,
        row: Endpoint,
        carry_out: Callable[[Endpoint, Request, models.Asked, User, HttpRequest], Awaitable[Reply | Refused]],
    ) -> Callable[[HttpRequest], Awaitable[Response]]:
        async def serve(http: HttpRequest) -> Response:
            user = await self._authenticate(http)
            if isinstance(user, Refused):
                return _refusal(user)
            asked = await _read(row, http)
            if isinstance(asked, Refused):
                return _refusal(asked)
            try:
                request = verbs.parse([word.encode() for word in row.words(asked)])
            except RequestError as error:
                return _refusal(Refused("ERR", error.problem))
            if self._waiting >= WAITING_MAX:
                return _refusal(Refused("LIMIT", f"HTTP requests under way: at most {WAITING_MAX}"))
            self._waiting += 1
            try:
                reply = await carry_out(row, request, asked, user, http)
            except _Gone:
                return Response(status_code=499)  # nobody reads it
            finally:
                self._waiting -= 1
            return _refusal(reply) if isinstance(reply, Refused) else _answer(row.tell(reply))

        return serve

    async def _authenticate(self, http: HttpRequest) -> User | Refused:
        if self._users is None:
            if http.method == "POST" and "origin" in http.headers:
                # A name that its owner points at this machine makes any page of his one of ours.
                text = "a web page may change nothing on a node without an auth file"
                return Refused("NOPERM", text)
            return EVERYONE
        scheme, _, credentials = http.headers.get("authorization", "").partition(" ")
        try:
            name, colon, password = base64.b64decode(credentials, validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            name, colon, password = "", "", ""
        if scheme.lower() != "basic" or not colon:
            return Refused("NOAUTH", "authentication required: HTTP Basic, with a user of the auth file")
        try:
            user = await self._users.authenticate(name, password.encode())
        except TooManyLoginsError:
            return Refused("UNAVAILABLE", "too many logins at once; try again")
        return user or Refused("NOAUTH", "wrong user name or password")

    async def _carry_out(
        self, _row: Endpoint, request: Request, _asked: models.Asked, user: User, http: HttpRequest
    ) -> Reply | Refused:
        turn = _HttpTurn(request)
        client = Client(number=next(self._service.numbers), user=user, push=_no_push, resp=3)
        self._service.start(turn, client)
        try:
            await _until(turn.answered, http)
        except BaseException:
            # G4: what waits is withdrawn through the log, and a grant that comes too late given back.
            turn.give_up()
            if self._service.kind_of(request) in {Kind.LOG, Kind.WAIT}:
                self._service.gone(client)
            raise
        return turn.answered.result()

    # Events.

    def _on_events(self, _: Sequence[LockEvent]) -> None:
        self._news.set()
        self._news = asyncio.Event()

    async def _read_events(
        self, _row: Endpoint, request: Request, asked: models.Asked, user: User, http: HttpRequest
    ) -> Reply | Refused:
        assert isinstance(request, LockWatch)
        assert isinstance(asked, models.ReadEvents)
        refused = self._service.objection_to(request, user)
        after = self._history.revision if request.after is None else request.after
        deadline = asyncio.get_running_loop().time() + asked.wait_ms / 1000
        while refused is None:
            if self._is_stopping:
                return Refused("UNAVAILABLE", "this node is stopping")
            if not self._history.reaches(after):
                return Refused("GONE", replies.gone_text(after))
            events, after = self._events_after(after, request.prefix)
            left_s = deadline - asyncio.get_running_loop().time()
            if events or left_s <= 0:
                return {"revision": after, "events": [replies.event(event) for event in events]}
            news = asyncio.ensure_future(self._news.wait())
            try:
                await _until(news, http, at_most_s=left_s)
            finally:
                news.cancel()
        return refused

    def _events_after(self, after: int, prefix: str) -> tuple[list[LockEvent], int]:
        """The events after that revision, and the one up to which there are no others."""
        found: list[LockEvent] = []
        for event in self._history.after(after):
            if len(found) == EVENTS_MAX:
                break
            after = event.revision
            if event.lock.startswith(prefix):
                found.append(event)
        return found, after


async def _read(row: Endpoint, http: HttpRequest) -> models.Asked | Refused:
    """What is asked, from the query or the body."""
    try:
        if row.method == "GET":
            return row.asked.model_validate(dict(http.query_params))
        if http.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            # A web page of someone else's can't send this without being asked for its leave first.
            return Refused("ERR", "the body has to be JSON: Content-Type: application/json")
        body = bytearray()
        async for part in http.stream():
            body += part
            if len(body) > BODY_BYTES_MAX:
                return Refused("LIMIT", f"bytes of a body: at most {BODY_BYTES_MAX}")
        return row.asked.model_validate_json(bytes(body), strict=True)
    except pydantic.ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        return Refused("ERR", f"{where}: {first['msg']}" if where else first["msg"])


async def _until(done: asyncio.Future[Any], http: HttpRequest, at_most_s: float | None = None) -> None:
    """Wait until it is done, or for so long. Raises _Gone when the connection ends before."""
    if done.done():
        return
    hang_up = asyncio.ensure_future(_hang_up(http))
    try:
        await asyncio.wait({done, hang_up}, timeout=at_most_s, return_when=asyncio.FIRST_COMPLETED)
        if hang_up.done() and not done.done():
            raise _Gone
    finally:
        hang_up.cancel()


async def _hang_up(http: HttpRequest) -> None:
    while (await http.receive())["type"] != "http.disconnect":
        """What a GET has for a body means nothing."""


def _no_push(_message: bytes, _unsent: Unsent | None) -> None:
    raise AssertionError("nothing is pushed over HTTP")


def _answer(told: models.Told) -> Response:
    return Response(told.model_dump_json(exclude_unset=True), media_type="application/json")


def _refusal(refused: Refused) -> Response:
    told = models.Failure(error=refused.code, text=refused.text)
    if is_about_holder(refused):
        told = models.Failure(
            error=refused.code,
            text=refused.text,
            lock=refused.lock,
            holder=refused.holder,
            owner=refused.owner,
            meta=refused.meta,
            held_ms=refused.held_ms,
            queue_length=refused.queue_length,
        )
    headers = {"WWW-Authenticate": 'Basic realm="lockd", charset="UTF-8"'} if refused.code == "NOAUTH" else {}
    return Response(
        told.model_dump_json(exclude_unset=True),
        status_code=STATUSES[refused.code],
        headers=headers,
        media_type="application/json",
    )
