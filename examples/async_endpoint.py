"""A web service with many replicas, and an endpoint that only one of them runs for an invoice at a time.

    uvicorn async_endpoint:app

The decorator keeps signatures, so a FastAPI endpoint looks the same: `lease` is hidden from FastAPI.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

import lockd

client = lockd.AsyncClient(ttl=10)


@client.locked("invoice:{number}", wait=0, on_lost="cancel")
async def close(number: str, *, lease: lockd.AsyncLease = lockd.HELD) -> dict[str, Any]:
    """Is cancelled at once when the lease is lost."""
    await asyncio.sleep(1)  # the work
    return {"closed": number, "under": lease.token}


async def endpoint(request: Request) -> JSONResponse:
    try:
        return JSONResponse(await close(request.path_params["number"]))
    except lockd.LockTimeout as busy:
        return JSONResponse({"busy_for_ms": busy.held_ms}, status_code=409)


@contextlib.asynccontextmanager
async def lifespan(_: Starlette) -> AsyncIterator[None]:
    async with client:
        yield


app = Starlette(routes=[Route("/close/{number}", endpoint, methods=["POST"])], lifespan=lifespan)
