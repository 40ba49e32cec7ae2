"""ASGI middleware: reads the header, and answers what the fence of a handler refuses."""

import json
import logging
from collections.abc import Collection

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lockd.errors import LeaseLost, LockdError, OutcomeUnknown, StaleToken
from lockd_storage.errors import MalformedToken, OutsideFence
from lockd_storage.http.header import HEADER
from lockd_storage.http.presented import REQUEST_SECONDS, PresentedLeases
from lockd_storage.http.problems import PROBLEM_JSON, RETRY_AFTER_SECONDS, kind_of, problem_of
from lockd_storage.rejects import tell

ADAPTER = "http"
UNSAFE_METHODS = frozenset({"POST", "PUT", "PATCH", "DELETE"})
NO_RESOURCE = "(request)"
"""Stands for the resource where a request was refused before one was known."""

logger = logging.getLogger("lockd_storage.http")


class FenceMiddleware:
    """Puts what a request presents into `request.state.fences`, and turns refusals into replies.

        app.add_middleware(FenceMiddleware, guarded=["/orders"])

    A request to a path in `guarded`, or below it, as the application sees it when it is mounted
    somewhere, with one of `methods` is answered 428 if it presents
    no fence; any request whose header can't be read is answered 400. That is for early and clear
    answers, and no check: a token that was current when the request came in may be stale when the
    handler writes. What decides is the handler's own transaction (`fence_of`, `fenced_session`, or
    the adapter's `fenced(...)` and `write(...)`), and what that raises is answered here, by the table in
    `lockd_storage.http.problems`. An error about something that the request didn't present, such as a
    stale lease of the service itself, is passed on to the framework.

    `seconds` is a request's time, see `PresentedLease`. Pure ASGI, for Starlette, FastAPI and others. Add it
    with `add_middleware`: wrapped around a whole Starlette application it comes too late, since that
    answers every error with a 500 first.

    Django under ASGI gets the header read (`request.scope["state"]["fences"]`) and requests without one
    refused; what a view raises it answers itself, so return `problem_of(error, kind_of(error))` from a
    `process_exception` there. WSGI applications are not covered.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        guarded: Collection[str] = (),
        methods: Collection[str] = UNSAFE_METHODS,
        seconds: float = REQUEST_SECONDS,
    ) -> None:
        if isinstance(guarded, str) or not all(path.startswith("/") for path in guarded):
            raise ValueError(f"guarded is a list of paths, each with a slash in front, not {guarded!r}")
        self._app = app
        self._guarded = tuple(path.rstrip("/") for path in guarded)
        self._methods = frozenset(method.upper() for method in methods)
        self._seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection; those that aren't HTTP requests are passed through."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            fences = PresentedLeases.of_header(Headers(scope=scope).getlist(HEADER), seconds=self._seconds)
            if not fences and self._is_guarded(scope):
                raise OutsideFence(
                    f"{scope['path']} is written under a lock: send `{HEADER}` with its holder's fence",
                    resource=NO_RESOURCE,
                )
        except (MalformedToken, OutsideFence) as refusal:
            await self._answer(refusal, send)
            return
        scope.setdefault("state", {})["fences"] = fences
        await self._serve(scope, receive, send, fences)

    async def _serve(self, scope: Scope, receive: Receive, send: Send, fences: PresentedLeases) -> None:
        started = False

        async def watched(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except LockdError as refusal:
            if started or not _concerns(refusal, fences):
                raise
            if isinstance(refusal, OutcomeUnknown):
                # A 500 of the service's own store: its log has to say why.
                logger.exception(
                    "%s %s was answered 500, outcome unknown: it may have been applied. Look at the store",
                    scope["method"],
                    scope["path"],
                )
            await self._answer(refusal, send)

    async def _answer(self, refusal: LockdError, send: Send) -> None:
        tell(refusal, adapter=ADAPTER, resource=getattr(refusal, "resource", NO_RESOURCE))
        await send_problem(refusal, send)

    def _is_guarded(self, scope: Scope) -> bool:
        # Servers put the place that the application is mounted at, or served under, before the path.
        root = scope.get("root_path", "").rstrip("/")
        path = scope["path"].removeprefix(root) if scope["path"].startswith(f"{root}/") else scope["path"]
        return scope["method"] in self._methods and any(
            path == guarded or path.startswith(f"{guarded}/") for guarded in self._guarded
        )


async def send_problem(refusal: LockdError, send: Send) -> None:
    """Answer a request with the problem+json of a refusal that is in the table."""
    kind = kind_of(refusal)
    assert kind is not None, f"{type(refusal).__name__} is for the service itself"
    body = json.dumps(problem_of(refusal, kind)).encode()
    headers = [
        (b"content-type", PROBLEM_JSON.encode()),
        (b"content-length", str(len(body)).encode()),
        (b"cache-control", b"no-store"),
    ]
    if kind.status == 503:
        headers.append((b"retry-after", str(RETRY_AFTER_SECONDS).encode()))
    await send({"type": "http.response.start", "status": kind.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _concerns(refusal: LockdError, fences: PresentedLeases) -> bool:
    """Whether it is the caller's business."""
    if isinstance(refusal, StaleToken):
        return fences.has_token(refusal.presented)
    if isinstance(refusal, LeaseLost):
        return fences.has_token(refusal.token)
    if isinstance(refusal, OutsideFence):
        # With a lease at hand for it, the handler forgot to write under that: a mistake in the service.
        return not fences.is_for(refusal.resource)
    resource = getattr(refusal, "resource", None)
    return kind_of(refusal) is not None and (resource is None or fences.is_for(resource))
