"""The JSON of /api/v1: what is sent, and what comes back. Moments are ISO 8601 and carry their offset."""

from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, JsonValue

from lockd_scheduler.runs import State

NOTE_CHARACTERS_MAX = 1_000
REASON_CHARACTERS_MAX = 255


ID_MAX = 2**63 - 1


def _storable(text: str) -> str:
    if "\0" in text:
        raise ValueError("a text can't have a NUL in it")
    return text


def _in_utc(moment: datetime) -> datetime:
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        raise ValueError("a moment lies in the years 1 to 9999, in UTC too") from None


Moment = Annotated[AwareDatetime, AfterValidator(_in_utc)]
Text = Annotated[str, AfterValidator(_storable)]


class Asked(BaseModel):
    """A query or a body. Fields that don't exist are mistakes."""

    model_config = ConfigDict(extra="forbid")


class Told(BaseModel):
    """An answer. Later versions may add fields."""

    model_config = ConfigDict(extra="forbid")


# Queries and bodies.


class Nothing(Asked):
    pass


class ListJobs(Asked):
    match: Text | None = Field(None, description="Only jobs whose name contains this text.")
    after: Text | None = Field(None, description="Go on after this name: `next` of the page before.")
    limit: int = Field(100, ge=1, le=500)
    fires: int = Field(3, ge=0, le=20, description="How many next fires of each.")


class ReadJob(Asked):
    fires: int = Field(10, ge=0, le=100, description="How many next fires.")


class ListRuns(Asked):
    job: Text | None = None
    state: State | None = None
    before: int | None = Field(
        None, ge=1, le=ID_MAX, description="Go on below this id: `next` of the page before."
    )
    limit: int = Field(100, ge=1, le=1000)


class ReadOutput(Asked):
    after: int = Field(0, ge=0, description="Only pieces after this number; to follow, the last one seen.")
    limit: int = Field(1000, ge=1, le=1000)


class OfJob(Asked):
    job: Text | None = None
    limit: int = Field(100, ge=1, le=1000)


class Judge(Asked):
    job: Text | None = None
    since: Text = Field("7d", description="How far back, as a duration: 12h, 7d.")


class Start(Asked):
    args: dict[str, JsonValue] | None = Field(None, description="Added to the job's own arguments.")
    key: Text | None = Field(None, description="Names the request: with the same key it is the same run.")
    at: Moment | None = Field(None, description="When, if not now.")


class Cancel(Asked):
    reason: Text | None = Field(None, max_length=REASON_CHARACTERS_MAX)


class Pause(Asked):
    note: Text | None = Field(None, max_length=NOTE_CHARACTERS_MAX)
    until: Moment | None = Field(None, description="Ends by itself then.")


class Resume(Asked):
    note: Text | None = Field(None, max_length=NOTE_CHARACTERS_MAX)


class Backfill(Asked):
    start: Moment
    end: Moment = Field(description="Fires before it, not at it.")
    parallel: int = Field(1, ge=1, le=1000, description="So many runs at a time.")


# Answers.


class Status(Told):
    scheduler: str
    version: str
    now: AwareDatetime = Field(description="The database's time.")
    office_token: int
    active: str | None = Field(description="The process in office, by the ledger.")
    here: str | None = Field(description="standby, taking, active or out: the process that answers.")
    jobs: int
    live_runs: int
    notices_pending: int


class LastRun(Told):
    run: int
    state: str
    reason: str | None
    fire_time: AwareDatetime
    finished_at: AwareDatetime | None


class Job(Told):
    name: str
    revision: int
    kept_by: str
    schedule: str = Field(description="The trigger in words.")
    zone: str
    state: str = Field(description="active, paused, parked (nothing declares it any more) or ended.")
    paused_at: AwareDatetime | None
    paused_until: AwareDatetime | None
    pause_note: str | None
    kind: str = Field(description="function, process, shell, http, celery or dask.")
    needs_admin: bool = Field(description="Its definition names what is run, so starting it needs an admin.")
    next_fires: list[AwareDatetime]
    waiting: int
    running: int
    last_run: LastRun | None = Field(description="Of its newest fires, one of each kind, the one made last.")


class JobPage(Told):
    jobs: list[Job]
    next: str | None = Field(description="Ask for what is after it; null at the end.")


class JobDetail(Job):
    definition: dict[str, Any] = Field(
        description="As in the ledger; what may be a secret of its runner is starred."
    )


class Run(Told):
    id: int
    job: str
    kind: str
    fire_time: AwareDatetime
    key: str
    state: str
    reason: str | None
    skipped_until: AwareDatetime | None
    args: dict[str, Any]
    attempts: int
    claimed_at: AwareDatetime
    queued_at: AwareDatetime | None
    next_attempt_at: AwareDatetime | None
    started_at: AwareDatetime | None
    finished_at: AwareDatetime | None
    error: str | None
    asked_by: str | None
    cancel_asked_at: AwareDatetime | None
    cancel_reason: str | None
    parent_run_id: int | None
    backfill_id: int | None


class RunPage(Told):
    runs: list[Run]
    next: int | None


class Attempt(Told):
    id: int
    number: int
    state: str
    office_token: int
    ordinal: int
    worker: str | None
    claimed_at: AwareDatetime
    started_at: AwareDatetime | None
    heartbeat_at: AwareDatetime | None
    timeout_at: AwareDatetime | None
    finished_at: AwareDatetime | None
    error: str | None
    exit_status: int | None
    output_characters: int | None
    late_state: str | None = Field(description="What it came to after it had been ended by the office.")
    late_error: str | None
    late_at: AwareDatetime | None


class RunDetail(Run):
    tries: list[Attempt]


class Piece(Told):
    number: int
    stream: str
    written_at: AwareDatetime
    text: str


class Output(Told):
    pieces: list[Piece]
    ended: bool = Field(description="Nothing will follow the last piece.")


class BackfillState(Told):
    id: int
    job: str
    start_at: AwareDatetime
    end_at: AwareDatetime
    parallel: int
    next_fire_at: AwareDatetime | None
    asked_by: str | None
    asked_at: AwareDatetime
    ended_at: AwareDatetime | None
    cancelled_at: AwareDatetime | None
    live: int
    runs: int


class Backfills(Told):
    backfills: list[BackfillState]


class Revision(Told):
    job: str
    revision: int
    change: str
    changed_at: AwareDatetime
    changed_by: str | None
    note: str | None
    office_token: int
    definition: dict[str, Any]


class Revisions(Told):
    revisions: list[Revision]


class Miss(Told):
    first: AwareDatetime
    last: AwareDatetime
    count: int


class JobAudit(Told):
    job: str
    counts: dict[str, int] = Field(description="Nominal fires by what became of them.")
    skipped: dict[str, int] = Field(description="Of the skipped ones, by reason.")
    misses: list[Miss] = Field(description="Stretches of fires without a row that nothing explains.")
    is_floor: bool = Field(description="There are more fires than were counted.")


class Audit(Told):
    since: AwareDatetime
    until: AwareDatetime
    jobs: list[JobAudit]
    real_misses: int


class Started(Told):
    run: int


class Cancelled(Told):
    state: str = Field(description="The state that the run was in; one that had ended stays as it is.")


class Changed(Told):
    changed: bool = Field(description="False: it was so already.")


class BackfillMade(Told):
    backfill: int


class Problem(Told):
    type: str
    title: str
    status: int
    detail: str
