"""Fences for HTTP services: a stale caller's request changes nothing.

The service keeps the mark, as any store does; its callers install by `PUT /fences/{resource}` and
present their lease in the header `Fencing-Token` with each write.

    app.add_middleware(FenceMiddleware, guarded=["/orders"])       # reads the header, answers refusals
    app.mount("/fences", fence_routes(fence))                      # any FencePort: SqlFence, MemoryFence, ...

    @app.post("/orders", responses=FENCE_RESPONSES)
    def add(order: Order, session: Annotated[Session, fenced_session("orders", fence, sessions)]) -> None:
        session.add(...)

Promised: what the adapter behind it promises, since the check is part of the handler's own transaction,
and the reply is sent after its commit. The middleware alone would be no fence: its check is over
before the handler writes. Not covered: effects of a handler outside that transaction, such as mail or
calls to others (research: pitfall 24).

A service that keeps its state in memory writes inside `MemoryFence.write(lease)`: requests of one
token go on side by side, and an install waits for those of older ones.

Start reading at `header`, then `middleware`. `presented` is the lease as a handler sees it, `problems`
the table of replies, `routes` the two routes, `openapi` their description, `fastapi` and `sessions`
the dependencies, `client` the caller's side (httpx).
"""

from lockd_storage.http.header import HEADER, fencing_header, parse_header
from lockd_storage.http.middleware import FenceMiddleware
from lockd_storage.http.openapi import FENCE_RESPONSES, openapi_fragment
from lockd_storage.http.presented import PresentedLease, PresentedLeases
from lockd_storage.http.problems import kind_of, problem_of
from lockd_storage.http.routes import fence_routes

__all__ = [
    "FENCE_RESPONSES",
    "HEADER",
    "FenceMiddleware",
    "PresentedLease",
    "PresentedLeases",
    "fence_routes",
    "fencing_header",
    "kind_of",
    "openapi_fragment",
    "parse_header",
    "problem_of",
]
