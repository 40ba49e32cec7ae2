"""The table of /api/v1: each path, who may ask, what it takes, what comes back, and how.

One table for the routes and for the OpenAPI document, so that neither can say what the other doesn't.
"""

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lockd_scheduler.asking import Asking
from lockd_scheduler.web import models
from lockd_scheduler.web.problems import ProblemError
from lockd_scheduler.web.queries import Queries
from lockd_scheduler.web.users import Role, User


@dataclass(frozen=True)
class Desk:
    """Where requests about one scheduler name are carried out: the API's, and the page's."""

    asking: Asking
    queries: Queries
    here: Callable[[], str | None]
    """What the process that serves says of its part in the office."""

    def start(self, user: User, job: str, asked: models.Start) -> models.Started:
        """Raises, as all here do, ProblemError and SchedulerError."""
        self._check_may_run(user, job)
        key = asked.key if asked.key is not None else f"http-{secrets.token_hex(8)}"
        made = self.asking.start(
            job, args=asked.args, key=key, at=asked.at, by=user.name, now=self.queries.now()
        )
        return models.Started(run=made)

    def cancel(self, user: User, run_id: int, asked: models.Cancel) -> models.Cancelled:
        found(self.queries.run(run_id), f"there is no run {run_id}")
        reason = asked.reason or f"{user.name} asked for it"
        state = self.asking.cancel(run_id, reason=reason, now=self.queries.now())
        return models.Cancelled(state=state)

    def pause(self, user: User, job: str, asked: models.Pause) -> models.Changed:
        self._known(job)
        changed = self.asking.pause(
            job, note=asked.note, until=asked.until, by=user.name, now=self.queries.now()
        )
        return models.Changed(changed=changed)

    def resume(self, user: User, job: str, asked: models.Resume) -> models.Changed:
        self._known(job)
        changed = self.asking.resume(job, note=asked.note, by=user.name, now=self.queries.now())
        return models.Changed(changed=changed)

    def backfill(self, user: User, job: str, asked: models.Backfill) -> models.BackfillMade:
        self._check_may_run(user, job)
        made = self.asking.backfill(
            job,
            start=asked.start,
            end=asked.end,
            parallel=asked.parallel,
            by=user.name,
            now=self.queries.now(),
        )
        return models.BackfillMade(backfill=made)

    def cancel_backfill(self, backfill_id: int) -> models.Changed:
        if self.queries.has_backfill(backfill_id) is None:
            raise ProblemError(404, "not found", f"there is no backfill {backfill_id}")
        self.asking.cancel_backfill(backfill_id, now=self.queries.now())
        return models.Changed(changed=True)

    def _check_may_run(self, user: User, job: str) -> None:
        """Such a job runs what the ledger says as this service's user: starting one needs an admin."""
        if self._known(job).needs_admin and not user.may(Role.ADMIN):
            raise ProblemError(
                403, "not allowed", f"{job!r} runs what its definition says: that needs the role admin"
            )

    def _known(self, job: str) -> models.JobDetail:
        known = self.queries.job(job, fires=0)
        if known is None:
            raise ProblemError(404, "not found", f"there is no job {job!r}")
        return known[0]


Carry = Callable[[Desk, User, Mapping[str, Any], Any], models.Told]


@dataclass(frozen=True)
class Endpoint:
    """A row of the table. GET takes a query, POST a JSON body."""

    method: str
    path: str
    summary: str
    role: Role
    asked: type[models.Asked]
    told: type[models.Told]
    carry_out: Carry
    """Given the desk, the user, the parts of the path, and what was asked."""

    @property
    def template(self) -> str:
        """The path as OpenAPI writes it."""
        return self.path.replace(":path}", "}").replace(":int}", "}")


def found(what: models.Told | None, text: str) -> models.Told:
    """What was looked for. Raises ProblemError if it is not there."""
    if what is None:
        raise ProblemError(404, "not found", text)
    return what


def _one_job(desk: Desk, _: User, path: Mapping[str, Any], asked: models.ReadJob) -> models.Told:
    job = desk.queries.job(path["job"], fires=asked.fires)
    return found(job and job[0], f"there is no job {path['job']!r}")


V, O = Role.VIEWER, Role.OPERATOR  # noqa: E741 - columns of the table

ENDPOINTS = (
    Endpoint(
        "GET",
        "/api/v1/status",
        "The scheduler, and who is in office.",
        V,
        models.Nothing,
        models.Status,
        lambda desk, _user, _path, _asked: desk.queries.status(desk.here()),
    ),
    Endpoint(
        "GET",
        "/api/v1/jobs",
        "Jobs by name, with their next fires.",
        V,
        models.ListJobs,
        models.JobPage,
        lambda desk, _user, _path, asked: desk.queries.jobs(asked)[0],
    ),
    Endpoint("GET", "/api/v1/jobs/{job:path}", "A job.", V, models.ReadJob, models.JobDetail, _one_job),
    Endpoint(
        "POST",
        "/api/v1/jobs/{job:path}/start",
        "Ask for a run, now or at a moment. Shell jobs need the role admin.",
        O,
        models.Start,
        models.Started,
        lambda desk, user, path, asked: desk.start(user, path["job"], asked),
    ),
    Endpoint(
        "POST",
        "/api/v1/jobs/{job:path}/pause",
        "Let a job fire no more. Paused again, the note and the end are changed.",
        O,
        models.Pause,
        models.Changed,
        lambda desk, user, path, asked: desk.pause(user, path["job"], asked),
    ),
    Endpoint(
        "POST",
        "/api/v1/jobs/{job:path}/resume",
        "Let a paused job fire again.",
        O,
        models.Resume,
        models.Changed,
        lambda desk, user, path, asked: desk.resume(user, path["job"], asked),
    ),
    Endpoint(
        "POST",
        "/api/v1/jobs/{job:path}/backfill",
        "Ask for a run of every fire of a past range. Shell jobs need the role admin.",
        O,
        models.Backfill,
        models.BackfillMade,
        lambda desk, user, path, asked: desk.backfill(user, path["job"], asked),
    ),
    Endpoint(
        "GET",
        "/api/v1/runs",
        "Runs, newest first.",
        V,
        models.ListRuns,
        models.RunPage,
        lambda desk, _user, _path, asked: desk.queries.runs(asked),
    ),
    Endpoint(
        "GET",
        "/api/v1/runs/{run:int}",
        "A run with its attempts.",
        V,
        models.Nothing,
        models.RunDetail,
        lambda desk, _user, path, _asked: found(
            desk.queries.run(path["run"]), f"there is no run {path['run']}"
        ),
    ),
    Endpoint(
        "POST",
        "/api/v1/runs/{run:int}/cancel",
        "Ask for the end of a run. One that has ended stays as it is.",
        O,
        models.Cancel,
        models.Cancelled,
        lambda desk, user, path, asked: desk.cancel(user, path["run"], asked),
    ),
    Endpoint(
        "GET",
        "/api/v1/attempts/{attempt:int}/output",
        "What an attempt has said so far.",
        V,
        models.ReadOutput,
        models.Output,
        lambda desk, _user, path, asked: found(
            desk.queries.output(path["attempt"], asked), f"there is no attempt {path['attempt']}"
        ),
    ),
    Endpoint(
        "GET",
        "/api/v1/backfills",
        "Backfills, newest first.",
        V,
        models.OfJob,
        models.Backfills,
        lambda desk, _user, _path, asked: desk.queries.backfills(asked),
    ),
    Endpoint(
        "POST",
        "/api/v1/backfills/{backfill:int}/cancel",
        "Make no further run of a backfill, and end those that live.",
        O,
        models.Nothing,
        models.Changed,
        lambda desk, _user, path, _asked: desk.cancel_backfill(path["backfill"]),
    ),
    Endpoint(
        "GET",
        "/api/v1/revisions",
        "What was changed about jobs, by whom, newest first.",
        V,
        models.OfJob,
        models.Revisions,
        lambda desk, _user, _path, asked: desk.queries.revisions(asked),
    ),
    Endpoint(
        "GET",
        "/api/v1/audit",
        "Every nominal fire of the past and what became of it.",
        V,
        models.Judge,
        models.Audit,
        lambda desk, _user, _path, asked: desk.queries.audit(asked),
    ),
)
