"""What a user sees: a named scheduler, jobs added by decorators, and ways to run it."""

import asyncio
import logging
import signal
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from datetime import date, datetime, time
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, Unpack

from sqlalchemy import Engine

from lockd_scheduler.app import DEFAULT_DB, Settings, start_service
from lockd_scheduler.declared import FUNCTION, runner_from_words, runner_of_choice
from lockd_scheduler.durations import parse_duration
from lockd_scheduler.errors import BadSchedule, SchedulerError
from lockd_scheduler.handover import JobEngine
from lockd_scheduler.jobs import Job, JobChoices, JobSpec, checked_args, checked_name, name_of
from lockd_scheduler.outside import OFF, OutsideWords
from lockd_scheduler.policies import Choices, Policy
from lockd_scheduler.service import Service
from lockd_scheduler.triggers import (
    AfterTrigger,
    AtTrigger,
    CalendarTrigger,
    EveryTrigger,
    Trigger,
    hashed_slot,
    read_schedule,
)

if TYPE_CHECKING:
    from lockd_scheduler.testing.chaos import Report
    from lockd_scheduler.testing.clock import TurnedClock

logger = logging.getLogger("lockd_scheduler")

P = ParamSpec("P")
R = TypeVar("R")


class Cron:
    """A named set of jobs. Processes that serve the same name on one database share its office."""

    def __init__(self, name: str = "default", *, notify: Iterable[str] = ()) -> None:
        """`notify`: what is told of jobs that don't say it themselves. Raises BadSchedule."""
        self.name = checked_name(name)
        self._notify = tuple(notify)
        self.jobs: dict[str, Job[..., Any]] = {}
        self.engines: dict[str, JobEngine] = {}
        """Where attempts are handed over to: "celery", "dask"."""

    def job(
        self,
        expression: str,
        *,
        tz: str = "UTC",
        dst: str = "once",
        name: str | None = None,
        args: Mapping[str, Any] | None = None,
        **choices: Unpack[JobChoices],
    ) -> Callable[[Callable[P, R]], Job[P, R]]:
        """Run the function by a cron line of five fields, or six with seconds first, or a macro.

        `H` in a field stands for a value that depends on the job's name alone; `@daily`, `@hourly` and
        so on are known, and `@every 5m`. `tz`: an IANA zone. `dst`, where its clocks are changed:
        "once" a fixed time fires once also on such a day, "wall" whenever the clocks show it, "elapsed"
        by standard time all year. The function takes the Run first, if it takes anything by position,
        and `args` by keyword. The other choices:

        `overlap`, while an earlier run has not ended: "skip" the fire, let it wait ("queue_one",
        "queue_all"), "replace" the earlier run, or "allow" both. `catch_up`: which fires are run
        when nobody was there for over a minute: "none", "latest" or "all", no older than `within`.
        `delivery`: "at_most_once", or "at_least_once" to try again when an attempt was lost.
        `retries`: further attempts after a failure, with pauses that double within `backoff`.
        `timeout`: how long an attempt may run. `jitter`: start up to so much later, each run by its own
        fixed delay. `lock`: a lock of lockd to hold while it runs. `keep`: how much of the past stays in
        the ledger, like {"runs": 500, "days": 90}. `notify`: which of "failed", "lost", "late" is told
        to the webhook; late is what has not begun `alert_if_late` after its time. `runner`: "function" on
        a thread or on the event loop; "process" in an interpreter of its own, which can be killed; or
        the engine that runs it, "celery" or "dask" (see `hand_over`).

        Raises BadSchedule that names what is wrong.
        """
        chosen = self._chosen(choices)

        def trigger(job_name: str) -> Trigger:
            return read_schedule(expression, tz=tz, dst=dst, slot=f"{self.name}/{job_name}")

        trigger("")  # what is wrong with the line is told before there is a function
        return lambda function: self._add(function, name, trigger, chosen, args)

    def every(
        self,
        period: str,
        *,
        offset: str = "0s",
        name: str | None = None,
        args: Mapping[str, Any] | None = None,
        **choices: Unpack[JobChoices],
    ) -> Callable[[Callable[P, R]], Job[P, R]]:
        """Run the function every `period` of elapsed time, the same moments in every process.

        They are counted from 1970-01-01T00:00Z plus `offset`; "H" takes an offset that depends on the
        job's name alone, so that many jobs spread. The other options are those of `job`.
        """
        chosen = self._chosen(choices)
        length = parse_duration(period)

        def trigger(job_name: str) -> Trigger:
            slot = hashed_slot(f"{self.name}/{job_name}", length) if offset == "H" else parse_duration(offset)
            return EveryTrigger(length, slot)

        return lambda function: self._add(function, name, trigger, chosen, args)

    def calendar(
        self,
        *,
        years: int = 0,
        months: int = 0,
        weeks: int = 0,
        days: int = 0,
        at: str = "00:00",
        start: str = "2000-01-01",
        tz: str = "UTC",
        name: str | None = None,
        args: Mapping[str, Any] | None = None,
        **choices: Unpack[JobChoices],
    ) -> Callable[[Callable[P, R]], Job[P, R]]:
        """Run the function every so many months (and years), or days (and weeks), at a wall time.

        Counted from the date `start`, an ISO date; months that have no such day are passed over. `at`:
        "02:30" in the zone `tz`. The other options are those of `job`.
        """
        chosen = self._chosen(choices)
        try:
            first, wall = date.fromisoformat(start), time.fromisoformat(at)
        except ValueError:
            raise BadSchedule(f"start={start!r} at={at!r}: write 2026-01-31 and 02:30") from None
        trigger = CalendarTrigger(
            months=12 * years + months, days=7 * weeks + days, start=first, at=wall, tz=tz
        )
        return lambda function: self._add(function, name, lambda _: trigger, chosen, args)

    def at(
        self,
        moment: datetime,
        *,
        name: str | None = None,
        args: Mapping[str, Any] | None = None,
        **choices: Unpack[JobChoices],
    ) -> Callable[[Callable[P, R]], Job[P, R]]:
        """Run the function once, at an aware datetime. The other options are those of `job`."""
        chosen = self._chosen(choices)
        trigger = AtTrigger(moment)
        return lambda function: self._add(function, name, lambda _: trigger, chosen, args)

    def serve(
        self,
        *,
        db: str = DEFAULT_DB,
        lockd: str | None = None,
        drain: str = "5m",
        lease_ttl: str = "2s",
        lost_after: str = "30s",
        threads: int = 100,
        **outside: Unpack[OutsideWords],
    ) -> bool:
        """Serve until SIGTERM or SIGINT; a second one ends the drain. Call it on the main thread.

        `db`: a sqlite:/// file or postgresql:// URL. `lockd`: endpoints of a lockd cluster, to run
        one active process and others standing by. `listen_http`: where the API and the page are, by
        default 127.0.0.1:7423 if that is free, or "off"; beyond this machine only with an `auth_file` or
        `insecure`. `webhook`: the URL that notices go to. Returns whether every attempt had ended.
        Raises SchedulerError, also for a fault that stopped the service.
        """
        settings = Settings.from_words(
            db=db,
            lockd=lockd,
            drain=drain,
            lease_ttl=lease_ttl,
            lost_after=lost_after,
            threads=threads,
            **outside,
        )
        return asyncio.run(self._serve(settings))

    @asynccontextmanager
    async def running(
        self,
        *,
        db: str = DEFAULT_DB,
        lockd: str | None = None,
        drain: str = "30s",
        lease_ttl: str = "2s",
        lost_after: str = "30s",
        threads: int = 100,
        **outside: Unpack[OutsideWords],
    ) -> AsyncIterator[Service]:
        """Serve beside whatever this event loop does; async jobs run on it. Options as for `serve`.

        Whoever is around it serves HTTP already: here `listen_http` is off unless it is given.
        """
        chosen: OutsideWords = {"listen_http": OFF, **outside}
        settings = Settings.from_words(
            db=db,
            lockd=lockd,
            drain=drain,
            lease_ttl=lease_ttl,
            lost_after=lost_after,
            threads=threads,
            **chosen,
        )
        loop = asyncio.get_running_loop()
        service = await asyncio.to_thread(
            start_service, self.name, self.jobs, settings, loop, engines=self.engines
        )
        try:
            yield service
        finally:
            await asyncio.to_thread(service.stop, drain=settings.drain.total_seconds())

    def after(
        self,
        job: Job[..., Any] | str,
        *,
        on: str = "succeeded",
        name: str | None = None,
        args: Mapping[str, Any] | None = None,
        **choices: Unpack[JobChoices],
    ) -> Callable[[Callable[P, R]], Job[P, R]]:
        """Run the function whenever a run of another job has "succeeded", "failed", or "ended" in any way.

        Its run has the other one's fire time, and is made in the transaction that ends that one. The
        other choices are those of `job`.
        """
        chosen = self._chosen(choices)
        trigger = AfterTrigger(job if isinstance(job, str) else job.spec.name, on)
        return lambda function: self._add(function, name, lambda _: trigger, chosen, args)

    def hand_over(self, engine: JobEngine) -> None:
        """Let this engine run the attempts of jobs that name it as their `runner`.

        Say it in the job file, which the engine's workers import too. See `lockd_scheduler.handover`.
        """
        engine.attach(self.name, self.jobs)
        self.engines[engine.name] = engine

    def shell(
        self,
        schedule: str,
        command: str,
        *,
        name: str,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        tz: str = "UTC",
        dst: str = "once",
        **choices: Unpack[Choices],
    ) -> Job[..., None]:
        """Run a command line with /bin/sh, in a process group of its own; it succeeds by exit status 0.

        What it says goes to the ledger. It sees the service's environment, `env`, and LOCKD_RUN_ID,
        LOCKD_JOB, LOCKD_FIRE_TIME, LOCKD_ATTEMPT, LOCKD_TOKEN, LOCKD_IDEMPOTENCY_KEY and LOCKD_ARGS.
        Command and `env` stand in the ledger: keep passwords in the service's environment. `schedule`,
        `tz`, `dst` and the other choices are those of `job`. Raises BadSchedule.
        """
        words = {"shell": command, "env": env, "cwd": cwd}
        return self._add_run(words, schedule, name=name, tz=tz, dst=dst, choices=choices)

    def http(
        self,
        schedule: str,
        url: str,
        *,
        name: str,
        method: str = "GET",
        headers: Mapping[str, str] | None = None,
        body: Any = None,
        expect: str = "2xx",
        tz: str = "UTC",
        dst: str = "once",
        **choices: Unpack[Choices],
    ) -> Job[..., None]:
        """Make an HTTP call with `Idempotency-Key` and `Fencing-Token`; it succeeds by its status.

        `body`: a text, or JSON; without it the run's arguments, as JSON. `expect`: "2xx", "204",
        "200,404". Redirects are not followed. A call that got no answer once it was under way, or a
        gateway's 502 or 504, has an unknown outcome: the attempt is lost, and `delivery` says
        whether another follows. `schedule`, `tz`, `dst` and the other choices are those of `job`.
        Raises BadSchedule.
        """
        call = {"url": url, "method": method, "headers": headers, "body": body, "expect": expect}
        return self._add_run({"http": call}, schedule, name=name, tz=tz, dst=dst, choices=choices)

    def clock(self, start: str | datetime, *, engine: Engine | None = None) -> "TurnedClock":
        """For tests: this scheduler in a `with` block, at a moment, by a clock that the test turns.

        `start`: "2026-03-28 23:59 Europe/Berlin", or an aware datetime. The ledger is a private SQLite
        file, or the one that `engine` opens. See `lockd_scheduler.testing`. Raises BadSchedule.
        """
        from lockd_scheduler.testing.clock import TurnedClock  # noqa: PLC0415 - for tests alone

        return TurnedClock(self.name, self.jobs, start, engine=engine)

    def chaos(
        self,
        *,
        kill_after: str | None = None,
        pause_after: str | None = None,
        start: str | datetime = "2026-06-01 00:00 UTC",
    ) -> "Report":
        """For tests: let the active process die, or sleep past its lease, at a place in each job's next fire.

        The place: "office", "claim", "start", "effect" or "finish" (`testing.chaos.Hole`). The jobs
        are really called, under both choices of delivery; the report tells how often and how each run
        ended. Raises BadSchedule for another place, or none.
        """
        from lockd_scheduler.testing.chaos import replay  # noqa: PLC0415 - for tests alone

        return replay(self.name, self.jobs, kill_after=kill_after, pause_after=pause_after, start=start)

    def _add_run(
        self, words: Mapping[str, Any], schedule: str, *, name: str, tz: str, dst: str, choices: Choices
    ) -> Job[..., None]:
        trigger = read_schedule(schedule, tz=tz, dst=dst, slot=f"{self.name}/{name}")
        policy, _ = self._chosen(choices)
        spec = JobSpec(
            checked_name(name), trigger, policy, {}, runner_from_words(words, place=f"job {name!r}")
        )
        return self._keep(Job(None, spec))

    def _chosen(self, choices: JobChoices | Choices) -> tuple[Policy, Mapping[str, Any]]:
        """The policy, and the runner's definition."""
        words: dict[str, Any] = {"notify": self._notify, **choices}
        known = sorted(JobChoices.__optional_keys__)
        for unknown in sorted(words.keys() - set(known)):
            meant = get_close_matches(unknown, known, 1)
            hint = f"did you mean {meant[0]}=?" if meant else f"there are {', '.join(known)}"
            raise BadSchedule(f"{unknown}= is not a choice of this job; {hint}")
        runner = runner_of_choice(words.pop("runner", FUNCTION))
        return Policy.from_words(**words), runner

    def _add(
        self,
        function: Callable[P, R],
        name: str | None,
        trigger: Callable[[str], Trigger],
        chosen: tuple[Policy, Mapping[str, Any]],
        args: Mapping[str, Any] | None,
    ) -> Job[P, R]:
        if not callable(function):
            raise BadSchedule(f"{function!r:.60} can't be called: a job is a function")
        job_name = checked_name(name or name_of(function))
        policy, runner = chosen
        return self._keep(
            Job(function, JobSpec(job_name, trigger(job_name), policy, checked_args(args), runner))
        )

    def _keep(self, job: Job[P, R]) -> Job[P, R]:
        if job.spec.name in self.jobs:
            raise BadSchedule(f"two jobs are called {job.spec.name!r}")
        self.jobs[job.spec.name] = job
        return job

    async def _serve(self, settings: Settings) -> bool:
        loop = asyncio.get_running_loop()
        ended, hurry = asyncio.Event(), asyncio.Event()

        def on_signal() -> None:
            (hurry if ended.is_set() else ended).set()

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, on_signal)
        service = await asyncio.to_thread(
            start_service, self.name, self.jobs, settings, loop, engines=self.engines
        )
        service.on_ended = lambda: loop.call_soon_threadsafe(ended.set)
        if service.ended.is_set():
            ended.set()
        await ended.wait()
        logger.info("stopping scope=%s", self.name)
        is_idle = await _stop(service, settings.drain.total_seconds(), hurry)
        if service.failure is not None:
            if isinstance(service.failure, SchedulerError):
                raise service.failure
            raise SchedulerError(f"stopped by a fault: {service.failure!r}") from service.failure
        return is_idle


async def _stop(service: Service, drain: float, hurry: asyncio.Event) -> bool:
    """Stop within `drain` seconds, or at once when `hurry` is set."""
    stopping = asyncio.create_task(asyncio.to_thread(service.stop, drain=drain))
    hurrying = asyncio.create_task(hurry.wait())
    await asyncio.wait({stopping, hurrying}, return_when=asyncio.FIRST_COMPLETED)
    hurrying.cancel()
    service.hurry()
    return await stopping
