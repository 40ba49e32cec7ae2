"""For whoever watches over the process: is it alive, is it ready, what does it measure."""

from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from lockd_scheduler.figures import Figures
from lockd_scheduler.web.access import Access, check_role
from lockd_scheduler.web.api import known_caller
from lockd_scheduler.web.metrics import SchedulerMetrics
from lockd_scheduler.web.queries import Queries
from lockd_scheduler.web.users import Role


@dataclass(frozen=True)
class Standing:
    """How the process that serves stands just now."""

    phase: str
    """Its part in the office: standby, taking, active, out."""
    queued: int
    """Attempts that it has claimed and not started."""
    underway: int
    is_stopping: bool


def health_routes(
    queries: Queries, access: Access, standing: Callable[[], Standing | None], figures: Figures
) -> list[Route]:
    """/healthz and /readyz, which anybody may ask, and /metrics, which names jobs and needs a viewer.

    Ready is a process that is not stopping and whose ledger answers; one that stands by is ready too.
    """
    metrics = SchedulerMetrics(queries, standing, figures)

    async def healthz(_: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def readyz(_: Request) -> Response:
        now = standing()
        if now is not None and (now.is_stopping or now.phase == "out"):
            return PlainTextResponse("not ready: this process is stopping\n", status_code=503)
        try:
            await run_in_threadpool(queries.now)
        except SQLAlchemyError:
            return PlainTextResponse("not ready: the ledger does not answer\n", status_code=503)
        return PlainTextResponse("ready\n")

    async def metrics_text(request: Request) -> Response:
        def render() -> bytes:
            check_role(known_caller(access, request), Role.VIEWER)
            return metrics.render()

        return Response(await run_in_threadpool(render), media_type=metrics.content_type)

    return [Route("/healthz", healthz), Route("/readyz", readyz), Route("/metrics", metrics_text)]
