"""Schedules that are written down in files, YAML or TOML, beside or instead of code.

    jobs:
      vacuum:
        schedule: "H 3 * * sun"
        tz: Europe/Berlin
        run: {shell: "vacuumdb -a"}
        overlap: replace
        keep: {runs: 500, days: 90}
      ping:
        every: 1m
        run: {http: {url: https://x/y, expect: 2xx}}

A job has one of `schedule` (a cron line with `tz` and `dst`, a macro, or `@every 5m`), `every` (with
`offset`), `at`, `calendar` and `after`; `run` says what is done, see `lockd_scheduler.declared`; the
choices are those of `Cron.job`. Everything that is wrong is told at once, each with file, line, job and
field. Two files that are read together are one set: a name stands in one of them.

`written` reads the text, this file says what it means, `plans` compares it with the ledger.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime, time
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from lockd_scheduler.declared import runner_from_words
from lockd_scheduler.durations import parse_duration
from lockd_scheduler.errors import BadSchedule
from lockd_scheduler.jobs import JobSpec, checked_args, checked_name
from lockd_scheduler.policies import Choices, Policy
from lockd_scheduler.triggers import (
    AfterTrigger,
    AtTrigger,
    CalendarTrigger,
    EveryTrigger,
    Trigger,
    hashed_slot,
    read_schedule,
)
from lockd_scheduler.written import BadFile, Mistake, Path_, Written, read_written

T = TypeVar("T")

TIMINGS = ("schedule", "every", "at", "calendar", "after")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class CalendarWords(_Strict):
    """Every so many months (and years) or days (and weeks) from `start` on."""

    years: int = 0
    months: int = 0
    weeks: int = 0
    days: int = 0
    at: str = "00:00"
    start: str = "2000-01-01"


class AfterWords(_Strict):
    """Whenever a run of another job has ended so. A name alone is that of the job."""

    job: str
    on: str = "succeeded"

    @model_validator(mode="before")
    @classmethod
    def _of_name(cls, given: Any) -> Any:
        return {"job": given} if isinstance(given, str) else given


class JobWords(_Strict):
    """One job of a file."""

    schedule: str | None = None
    every: str | None = None
    offset: str | None = None
    at: str | None = None
    calendar: CalendarWords | None = None
    after: AfterWords | None = None
    tz: str | None = None
    dst: str | None = None
    run: dict[str, Any]
    args: dict[str, Any] | None = None
    overlap: str = "skip"
    catch_up: str = "none"
    within: str | None = None
    delivery: str = "at_most_once"
    retries: int = 0
    backoff: str = "10s..10m"
    timeout: str | None = None
    jitter: str | None = None
    lock: str | None = None
    keep: dict[str, int] | None = None
    alert_if_late: str | None = None
    notify: list[str] = Field(default_factory=list)


class FileWords(_Strict):
    """A whole file."""

    version: Literal[1] = 1
    scheduler: str | None = None
    """The scheduler's name, like that of a Cron; --scope says it otherwise."""
    jobs: dict[str, JobWords]


def read_files(paths: Sequence[Path]) -> tuple[str | None, dict[str, Written]]:
    """The scheduler's name, if the files say one, and their jobs as they are written.

    Raises BadFile with every mistake that can be told without knowing the scheduler's name.
    """
    mistakes: list[Mistake] = []
    written: list[Written] = []
    for path in paths:
        try:
            written.append(read_written(path))
        except BadFile as error:
            mistakes += error.mistakes
    return _gathered(written, mistakes)


def read_content(name: str, content: Any) -> tuple[str | None, dict[str, Written]]:
    """`read_files` for what was read or made elsewhere; `name` stands for the file. Raises BadFile."""
    return _gathered([Written(name, content)], [])


def _gathered(files: Sequence[Written], mistakes: list[Mistake]) -> tuple[str | None, dict[str, Written]]:
    scope: str | None = None
    jobs: dict[str, Written] = {}
    for written in files:
        try:
            words = _checked(written)
        except BadFile as error:
            mistakes += error.mistakes
            continue
        if words.scheduler is not None:
            if scope not in (None, words.scheduler):
                mistakes.append(written.mistake(("scheduler",), f"another file says {scope!r}"))
            scope = words.scheduler
        for name in words.jobs:
            if name in jobs:
                mistakes.append(written.mistake(("jobs", name), f"it is in {jobs[name].file} too"))
            jobs[name] = written
    if mistakes:
        raise BadFile(mistakes)
    return scope, jobs


def job_specs(jobs: Mapping[str, Written], scope: str) -> dict[str, JobSpec]:
    """What the files' jobs are for a scheduler of that name, on which `H` depends. Raises BadFile."""
    mistakes: list[Mistake] = []
    specs: dict[str, JobSpec] = {}
    models: dict[str, FileWords] = {}
    for name, written in jobs.items():
        model = models.setdefault(written.file, _checked(written))
        reader = _JobReader(name, model.jobs[name], f"{scope}/{name}", written)
        spec = reader.spec()
        mistakes += reader.mistakes
        if spec is not None:
            specs[name] = spec
    if mistakes:
        raise BadFile(mistakes)
    return specs


def _checked(written: Written) -> FileWords:
    try:
        return FileWords.model_validate(written.content)
    except ValidationError as error:
        mistakes = [written.mistake(tuple(one["loc"]), _reason(dict(one))) for one in error.errors()]
        raise BadFile(mistakes) from None


def _reason(error: Mapping[str, Any]) -> str:
    match error["type"]:
        case "extra_forbidden":
            return "there is no such field"
        case "missing":
            return "it must be there"
        case "string_type":
            return f"{error['input']!r:.60} is not a text; write it in quotes"
        case "dict_type" | "model_type":
            return f"{error['input']!r:.60} is not a table of names and values"
        case _:
            return str(error["msg"])


class _JobReader:
    """Makes the spec of one job, and gathers what is wrong with it."""

    def __init__(self, name: str, words: JobWords, slot: str, written: Written) -> None:
        self.mistakes: list[Mistake] = []
        self._name = name
        self._words = words
        self._slot = slot
        self._written = written

    def spec(self) -> JobSpec | None:
        """The spec; None if there are mistakes."""
        words = self._words
        with_name = self._try((), lambda: checked_name(self._name))
        trigger = self._trigger()
        policy = self._policy()
        args = self._try(("args",), lambda: checked_args(words.args))
        runner = self._runner()
        if self.mistakes:
            return None
        assert with_name is not None
        assert trigger is not None
        assert policy is not None
        assert args is not None
        assert runner is not None
        return JobSpec(with_name, trigger, policy, args, runner)

    def _runner(self) -> dict[str, Any] | None:
        try:
            return runner_from_words(self._words.run, place="run")
        except BadSchedule as error:
            place, _, reason = str(error).partition(": ")
            self._note(tuple(place.split(".")), reason)
            return None

    def _trigger(self) -> Trigger | None:
        words = self._words
        given = [timing for timing in TIMINGS if getattr(words, timing) is not None]
        if len(given) != 1:
            told = f"it has one of {', '.join(TIMINGS)}, and this has {' and '.join(given) or 'none'}"
            self._note((), told)
            return None
        [timing] = given
        self._refuse_beside(timing)
        match timing:
            case "schedule":
                return self._try(("schedule",), self._cron)
            case "every":
                return self._try(("every",), self._every)
            case "at":
                return self._try(("at",), lambda: AtTrigger(_moment(words.at or "")))
            case "calendar":
                return self._try(("calendar",), self._calendar)
            case _:
                assert words.after is not None
                after = words.after
                return self._try(("after",), lambda: AfterTrigger(after.job, after.on))

    def _refuse_beside(self, timing: str) -> None:
        """Refuse what says nothing beside this kind of timing."""
        words = self._words
        is_every = words.schedule is not None and words.schedule.split()[:1] == ["@every"]
        if words.tz is not None and (timing not in ("schedule", "calendar") or is_every):
            self._note(("tz",), "only a cron line and a calendar interval have a zone")
        if words.dst is not None and (timing != "schedule" or is_every):
            self._note(("dst",), "only a cron line has a choice of it")
        if words.offset is not None and timing != "every":
            self._note(("offset",), "only `every` has one")

    def _cron(self) -> Trigger:
        words = self._words
        assert words.schedule is not None
        return read_schedule(words.schedule, tz=words.tz or "UTC", dst=words.dst or "once", slot=self._slot)

    def _every(self) -> Trigger:
        length = parse_duration(self._words.every or "")
        offset = self._words.offset or "0s"
        return EveryTrigger(
            length, hashed_slot(self._slot, length) if offset == "H" else parse_duration(offset)
        )

    def _calendar(self) -> Trigger:
        words = self._words.calendar
        assert words is not None
        try:
            first, wall = date.fromisoformat(words.start), time.fromisoformat(words.at)
        except ValueError:
            raise BadSchedule(f"start {words.start!r} at {words.at!r}: write 2026-01-31 and 02:30") from None
        return CalendarTrigger(
            months=12 * words.years + words.months,
            days=7 * words.weeks + words.days,
            start=first,
            at=wall,
            tz=self._words.tz or "UTC",
        )

    def _policy(self) -> Policy | None:
        words: dict[str, Any] = {name: getattr(self._words, name) for name in Choices.__annotations__}
        before = len(self.mistakes)
        for name, word in words.items():
            beside = {"catch_up": "all"} if name == "within" and word is not None else {}
            self._try((name,), partial(Policy.from_words, **{name: word, **beside}))
        if len(self.mistakes) > before:
            return None
        return self._try(("within",), partial(Policy.from_words, **words))

    def _try(self, path: Path_, make: Callable[[], T]) -> T | None:
        try:
            return make()
        except BadSchedule as error:
            self._note(path, str(error))
            return None

    def _note(self, path: Path_, reason: str) -> None:
        self.mistakes.append(self._written.mistake(("jobs", self._name, *path), reason))


def _moment(text: str) -> datetime:
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        raise BadSchedule(f"{text[:60]!r} is not a time in ISO 8601, like 2027-03-28T02:00+01:00") from None
