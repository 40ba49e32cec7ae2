"""The page: HTML that works without a script; a small script refreshes it and follows output.

Every change is a form with a token, sent with POST and answered with a redirect, so that reloading
repeats nothing. What users have named or printed is text: jinja2 escapes all of it.
"""

import json
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qs, urlencode

import pydantic
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from lockd_scheduler.errors import BadSchedule
from lockd_scheduler.runs import LIVE, State
from lockd_scheduler.triggers import zone_named
from lockd_scheduler.web import models, wording
from lockd_scheduler.web.access import Access, Caller, check_role
from lockd_scheduler.web.api import answer_to, read_body
from lockd_scheduler.web.endpoints import Desk
from lockd_scheduler.web.problems import ProblemError
from lockd_scheduler.web.timeline import drawn
from lockd_scheduler.web.users import Role

HERE = Path(__file__).parent
JOBS_PER_PAGE = 50
RUNS_PER_PAGE = 50
HOURS = 24
SLICES = 96

TOLD = {
    "paused": "The job is paused.",
    "resumed": "The job fires again from its next fire on.",
    "cancelling": "The run is asked to end.",
    "ended": "That run had ended already: nothing was changed.",
    "backfill": "The backfill is asked for.",
    "backfill-cancelled": "The backfill is cancelled.",
    "started": "The run is asked for.",
}
"""What a page says after a change, by the word in its address: only ever one of these texts."""

A = TypeVar("A", bound=models.Asked)
Look = Callable[[Request, Caller], Response]
Act = Callable[[Caller, dict[str, str]], str]


class Page:
    """The paths outside /api."""

    def __init__(self, desk: Desk, access: Access) -> None:
        self._desk = desk
        self._access = access
        self._templates = Environment(
            loader=FileSystemLoader(HERE / "templates"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._templates.filters.update(
            in_zone=wording.in_zone,
            utc=wording.utc,
            iso=wording.iso,
            json=_pretty,
            breakable=wording.breakable,
        )
        self._templates.globals.update(
            lasted=wording.lasted,
            relative=wording.relative,
            due=wording.due,
            Role=Role,
            hours=HOURS,
            live={state.value for state in LIVE},
            states=[state.value for state in State],
        )
        self.routes = [
            Route("/", self._looked(self._jobs)),
            Route("/job", self._looked(self._job)),
            Route("/runs", self._looked(self._runs)),
            Route("/runs/{run:int}", self._looked(self._run)),
            Route("/login", self._login_form, methods=["GET"]),
            Route("/login", self._login, methods=["POST"]),
            Route("/logout", self._logout, methods=["POST"]),
            Route("/start", self._acted(self._start), methods=["POST"]),
            Route("/cancel", self._acted(self._cancel), methods=["POST"]),
            Route("/pause", self._acted(self._pause), methods=["POST"]),
            Route("/resume", self._acted(self._resume), methods=["POST"]),
            Route("/backfill", self._acted(self._backfill), methods=["POST"]),
            Route("/backfill/cancel", self._acted(self._cancel_backfill), methods=["POST"]),
            _file_route("/page.css", "text/css; charset=utf-8"),
            _file_route("/page.js", "text/javascript; charset=utf-8"),
            _file_route("/icon.svg", "image/svg+xml"),
        ]

    async def tell_problem(self, request: Request, error: Exception) -> Response:
        """An error as a page; whoever is not known is led to the login."""
        told = answer_to(error)
        if told.status == 401 and request.method == "GET" and "authorization" not in request.headers:
            place = request.url.path + (f"?{request.url.query}" if request.url.query else "")
            return RedirectResponse(f"/login?{urlencode({'next': place})}", 303)
        html = self._templates.get_template("problem.html").render(told=told, caller=None)
        headers = {"WWW-Authenticate": "Basic"} if told.status == 401 else {}
        return HTMLResponse(html, told.status, headers)

    # Looking.

    def _looked(self, look: Look) -> Callable[[Request], Awaitable[Response]]:
        def carry_out(request: Request) -> Response:
            caller = self._known(request)
            check_role(caller, Role.VIEWER)
            return look(request, caller)

        async def serve(request: Request) -> Response:
            return await run_in_threadpool(carry_out, request)

        return serve

    def _render(self, name: str, request: Request, caller: Caller, **facts: Any) -> Response:
        told = TOLD.get(request.query_params.get("done", ""))
        status = self._desk.queries.status(self._desk.here())
        template = self._templates.get_template(name)
        return HTMLResponse(template.render(caller=caller, status=status, now=status.now, told=told, **facts))

    def _jobs(self, request: Request, caller: Caller) -> Response:
        asked = _asked(
            models.ListJobs,
            {"match": _given(request, "match"), "after": _given(request, "after"), "limit": JOBS_PER_PAGE},
        )
        page, ids = self._desk.queries.jobs(asked)
        now = self._desk.queries.now()
        timeline = self._desk.queries.timeline(
            ids, start=now - timedelta(hours=HOURS), end=now, slices=SLICES
        )
        rows = [(job, drawn(timeline, number)) for job, number in zip(page.jobs, ids, strict=True)]
        return self._render(
            "jobs.html",
            request,
            caller,
            rows=rows,
            match=asked.match or "",
            after=asked.after,
            next=page.next,
        )

    def _job(self, request: Request, caller: Caller) -> Response:
        name = request.query_params.get("name", "")
        found = self._desk.queries.job(name, fires=10)
        if found is None:
            raise ProblemError(404, "not found", f"there is no job {name!r}")
        job, number = found
        now = self._desk.queries.now()
        timeline = self._desk.queries.timeline(
            [number], start=now - timedelta(hours=HOURS), end=now, slices=SLICES
        )
        return self._render(
            "job.html",
            request,
            caller,
            job=job,
            line=drawn(timeline, number),
            runs=self._desk.queries.runs(models.ListRuns(job=name, limit=15)).runs,
            backfills=self._desk.queries.backfills(models.OfJob(job=name, limit=5)).backfills,
            revisions=self._desk.queries.revisions(models.OfJob(job=name, limit=10)).revisions,
            may_run=caller.user.may(Role.ADMIN if job.needs_admin else Role.OPERATOR),
        )

    def _runs(self, request: Request, caller: Caller) -> Response:
        words = {name: _given(request, name) for name in ("job", "state", "before")}
        asked = _asked(models.ListRuns, {**words, "limit": RUNS_PER_PAGE})
        page = self._desk.queries.runs(asked)
        return self._render("runs.html", request, caller, asked=asked, runs=page.runs, next=page.next)

    def _run(self, request: Request, caller: Caller) -> Response:
        number = request.path_params["run"]
        run = self._desk.queries.run(number) if number <= models.ID_MAX else None
        if run is None:
            raise ProblemError(404, "not found", f"there is no run {number}")
        output = {one.id: self._desk.queries.output(one.id, models.ReadOutput()) for one in run.tries}
        return self._render("run.html", request, caller, run=run, output=output)

    # Changing.

    def _acted(self, act: Act) -> Callable[[Request], Awaitable[Response]]:
        def carry_out(request: Request, form: dict[str, str]) -> Response:
            caller = self._known(request)
            caller.check_form(form.pop("token", ""))
            check_role(caller, Role.OPERATOR)
            return RedirectResponse(act(caller, form), 303)

        async def serve(request: Request) -> Response:
            return await run_in_threadpool(carry_out, request, await _read_form(request))

        return serve

    def _start(self, caller: Caller, form: dict[str, str]) -> str:
        job = form.pop("job", "")
        args = _read_args(form.pop("args", ""))
        asked = _asked(models.Start, {"args": args, "key": form.get("key") or None})
        made = self._desk.start(caller.user, job, asked)
        return f"/runs/{made.run}?done=started"

    def _cancel(self, caller: Caller, form: dict[str, str]) -> str:
        number = _read_number(form.get("run", ""))
        asked = _asked(models.Cancel, {"reason": form.get("reason") or None})
        state = self._desk.cancel(caller.user, number, asked).state
        return f"/runs/{number}?done={'cancelling' if State(state) in LIVE else 'ended'}"

    def _pause(self, caller: Caller, form: dict[str, str]) -> str:
        job = form.get("job", "")
        until = _read_moment(form["until"], form.get("zone", "UTC")) if form.get("until") else None
        asked = _asked(models.Pause, {"note": form.get("note") or None, "until": until})
        self._desk.pause(caller.user, job, asked)
        return _job_link(job, "paused")

    def _resume(self, caller: Caller, form: dict[str, str]) -> str:
        job = form.get("job", "")
        self._desk.resume(caller.user, job, models.Resume())
        return _job_link(job, "resumed")

    def _backfill(self, caller: Caller, form: dict[str, str]) -> str:
        job, zone = form.get("job", ""), form.get("zone", "UTC")
        asked = _asked(
            models.Backfill,
            {
                "start": _read_moment(form.get("start", ""), zone),
                "end": _read_moment(form.get("end", ""), zone),
                "parallel": form.get("parallel") or 1,
            },
        )
        self._desk.backfill(caller.user, job, asked)
        return _job_link(job, "backfill")

    def _cancel_backfill(self, _: Caller, form: dict[str, str]) -> str:
        self._desk.cancel_backfill(_read_number(form.get("backfill", "")))
        return _job_link(form.get("job", ""), "backfill-cancelled")

    # Coming and going.

    async def _login_form(self, request: Request) -> Response:
        return self._show_login(request.query_params.get("next", "/"), is_wrong=False)

    async def _login(self, request: Request) -> Response:
        form = await _read_form(request)
        place = form.get("next", "/")
        response = RedirectResponse(place if _is_ours(place) else "/", 303)
        is_in = await run_in_threadpool(
            self._access.login, request, response, form.get("user", ""), form.get("password", "")
        )
        return response if is_in else self._show_login(place, is_wrong=True)

    async def _logout(self, request: Request) -> Response:
        form = await _read_form(request)
        self._known(request).check_form(form.get("token", ""))
        response = RedirectResponse("/login", 303)
        self._access.logout(request, response)
        return response

    def _show_login(self, place: str, *, is_wrong: bool) -> Response:
        html = self._templates.get_template("login.html").render(next=place, is_wrong=is_wrong, caller=None)
        return HTMLResponse(html, 403 if is_wrong else 200)

    def _known(self, request: Request) -> Caller:
        caller = self._access.caller(request)
        if caller is None:
            raise ProblemError(401, "not known", "log in first")
        return caller


def _file_route(path: str, media_type: str) -> Route:
    content = (HERE / path.lstrip("/")).read_bytes()

    async def serve(_: Request) -> Response:
        return Response(content, media_type=media_type, headers={"Cache-Control": "no-cache"})

    return Route(path, serve)


async def _read_form(request: Request) -> dict[str, str]:
    """A form's fields; of those of one name the last. Raises ProblemError."""
    try:
        fields = parse_qs((await read_body(request)).decode(), keep_blank_values=True, max_num_fields=100)
    except ValueError:
        raise ProblemError(400, "wrong request", "this is not a form") from None
    return {name: values[-1].strip() for name, values in fields.items()}


def _asked(kind: type[A], words: dict[str, Any]) -> A:
    try:
        return kind.model_validate(words)
    except pydantic.ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ProblemError(400, "wrong request", f"{where}: {first['msg']}") from None


def _given(request: Request, name: str) -> str | None:
    return request.query_params.get(name, "").strip() or None


def _read_number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise ProblemError(400, "wrong request", f"{text[:20]!r} is not a number of the ledger")
    return int(text)


def _read_args(text: str) -> dict[str, Any] | None:
    if not text:
        return None
    try:
        args = json.loads(text)
    except ValueError as error:
        raise ProblemError(400, "wrong request", f"the arguments are not JSON: {error}") from None
    if not isinstance(args, dict):
        raise ProblemError(400, "wrong request", 'the arguments are an object, like {"region": "us"}')
    return args


def _read_moment(text: str, zone: str) -> datetime:
    """A wall time of the zone, or a moment with an offset of its own."""
    try:
        moment = datetime.fromisoformat(text)
        local = moment if moment.tzinfo is not None else moment.replace(tzinfo=zone_named(zone))
        return local.astimezone(UTC)
    except (ValueError, OverflowError) as error:
        if isinstance(error, BadSchedule):
            raise
        raise ProblemError(
            400, "wrong request", f"{text[:40]!r} is not a time like 2027-03-28T02:00"
        ) from None


def _job_link(job: str, done: str) -> str:
    return f"/job?{urlencode({'name': job, 'done': done})}"


def _is_ours(place: str) -> bool:
    """Whether a redirect there stays here: `//host` and `/\\host` lead away."""
    return place.startswith("/") and not place.startswith(("//", "/\\")) and place.isprintable()


def _pretty(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)
