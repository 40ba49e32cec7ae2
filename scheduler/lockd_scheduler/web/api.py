"""Carrying a request of /api/v1 out: who asks, what, and the answer.

The ledger is asked on a few threads, so that whoever looks can't take the database's connections from
the scheduler.
"""

import logging
from collections.abc import Awaitable, Callable
from typing import Any

import pydantic
from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from lockd_scheduler.errors import BadSchedule, SchedulerError
from lockd_scheduler.web import models
from lockd_scheduler.web.access import Access, Caller, check_role
from lockd_scheduler.web.endpoints import ENDPOINTS, Desk, Endpoint
from lockd_scheduler.web.problems import ProblemError, problem
from lockd_scheduler.worker import first_line

logger = logging.getLogger("lockd_scheduler")

BODY_BYTES_MAX = 64 * 1024

Serve = Callable[[Request], Awaitable[Response]]


def api_routes(desk: Desk, access: Access) -> list[Route]:
    """The routes of the table."""
    return [Route(row.path, _endpoint(row, desk, access), methods=[row.method]) for row in ENDPOINTS]


def _endpoint(row: Endpoint, desk: Desk, access: Access) -> Serve:
    async def serve(request: Request) -> Response:
        asked = await _read(row, request)

        def carry_out() -> models.Told:
            caller = known_caller(access, request)
            check_role(caller, row.role)
            if any(isinstance(part, int) and part > models.ID_MAX for part in request.path_params.values()):
                raise ProblemError(404, "not found", "no number of the ledger is so large")
            return row.carry_out(desk, caller.user, request.path_params, asked)

        told = await run_in_threadpool(carry_out)
        return Response(told.model_dump_json(), media_type="application/json")

    return serve


def known_caller(access: Access, request: Request) -> Caller:
    """Who sends it. Raises ProblemError if nobody known does."""
    caller = access.caller(request)
    if caller is None:
        raise ProblemError(401, "not known", "log in, or send HTTP Basic with a user of the auth file")
    return caller


def answer_to(error: Exception) -> ProblemError:
    """What an error comes to for whoever asked. A fault of ours tells them nothing; uvicorn logs it."""
    match error:
        case ProblemError():
            return error
        case BadSchedule():
            return ProblemError(400, "wrong request", first_line(error))
        case SchedulerError():
            return ProblemError(409, "not possible now", first_line(error))
        case SQLAlchemyError():
            logger.warning("HTTP: the ledger does not answer: %s", first_line(error))
            return ProblemError(503, "the ledger does not answer", "try again; the log has more")
        case _:
            return ProblemError(500, "a fault", "the log has more")


async def tell_problem(_: Request, error: Exception) -> Response:
    """An error as the answer of the API."""
    told = answer_to(error)
    headers = {}
    if told.status == 401:
        headers["WWW-Authenticate"] = 'Basic realm="lockd-scheduler", charset="UTF-8"'
    return problem(told.status, told.title, told.detail, **headers)


async def read_body(request: Request) -> bytes:
    """The body, of at most 64 KiB. Raises ProblemError."""
    body = bytearray()
    try:
        async for part in request.stream():
            body += part
            if len(body) > BODY_BYTES_MAX:
                raise ProblemError(413, "too large", f"a body has at most {BODY_BYTES_MAX} bytes")
    except ClientDisconnect:
        raise ProblemError(400, "wrong request", "the body ended early") from None
    return bytes(body)


async def _read(row: Endpoint, request: Request) -> Any:
    """What is asked, from the query or the body. Raises ProblemError."""
    try:
        if row.method == "GET":
            return row.asked.model_validate(dict(request.query_params))
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        body = await read_body(request)
        if kind != "application/json" and (body or kind):
            # A web page of somebody else's can't send this without being asked for its leave first.
            raise ProblemError(415, "wrong request", "send JSON, with Content-Type: application/json")
        return row.asked.model_validate_json(body or b"{}")
    except pydantic.ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        detail = f"{where}: {first['msg']}" if where else first["msg"]
        raise ProblemError(400, "wrong request", detail) from None
