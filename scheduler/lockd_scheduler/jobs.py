"""A job: what to run, under which name, when, and with which choices.

The name is the identity: the ledger knows a schedule by it, so a function may be moved or rewritten.
Arguments are JSON and stored with each run; functions are found in the code, never in the database.
"""

import inspect
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import lru_cache, update_wrapper
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar

from lockd_scheduler.declared import FUNCTION, PROCESS
from lockd_scheduler.errors import BadSchedule, SchedulerError
from lockd_scheduler.policies import Choices, Policy
from lockd_scheduler.triggers import Trigger, trigger_from_json

if TYPE_CHECKING:
    from lockd_scheduler.testing.clock import TurnedClock

NAME_CHARACTERS_MAX = 200
DEFINITIONS_KEPT = 10_000
"""So many of those read lately are kept as objects: to read one costs more than a fire of it."""

P = ParamSpec("P")
R = TypeVar("R")


class JobChoices(Choices, total=False):
    """What a user may write about a job that is a function, beside its trigger."""

    runner: str
    """How it is run: "function", "process", "celery" or "dask". See `lockd_scheduler.declared`."""


@dataclass(frozen=True)
class JobSpec:
    """What the ledger keeps of a job: everything but its code."""

    name: str
    trigger: Trigger
    policy: Policy
    args: Mapping[str, Any]
    runner: Mapping[str, Any] = field(default_factory=lambda: {"kind": FUNCTION})
    """How it is run: see `lockd_scheduler.declared`."""

    def to_json(self) -> dict[str, Any]:
        """The definition as it stands in the schedule's row and revisions."""
        definition = {
            "trigger": self.trigger.to_json(),
            "policy": self.policy.to_json(),
            "args": dict(self.args),
        }
        # Left out where it says nothing, so that the definitions of before stay as they are.
        return definition if self.kind == FUNCTION else definition | {"runner": dict(self.runner)}

    @classmethod
    def from_json(cls, name: str, definition: Mapping[str, Any]) -> "JobSpec":
        """Read what `to_json` made. Raises BadSchedule."""
        return cls(
            name,
            trigger_from_json(definition["trigger"]),
            Policy.from_json(definition["policy"]),
            definition["args"],
            definition.get("runner", {"kind": FUNCTION}),
        )

    @classmethod
    def from_text(cls, name: str, definition: str) -> "JobSpec":
        """Read the JSON text of what `to_json` made. Raises BadSchedule."""
        return replace(_read(definition), name=name)

    @property
    def kind(self) -> str:
        """The runner's kind: "function", "process", "shell", "http", "celery" or "dask"."""
        kind: str = self.runner["kind"]
        return kind

    def first_fire(self, now: datetime) -> datetime | None:
        """Where a schedule begins that is new, or whose trigger has changed."""
        return self.trigger.first(now)


@lru_cache(maxsize=DEFINITIONS_KEPT)
def _read(definition: str) -> JobSpec:
    return JobSpec.from_json("", json.loads(definition))


class Job(Generic[P, R]):
    """A function with its schedule. Calling it calls the function, as if undecorated.

    A shell line or an HTTP call is a job without a function, and can't be called.
    """

    def __init__(self, function: Callable[P, R] | None, spec: JobSpec) -> None:
        """Raises BadSchedule if the function can't be called with the job's arguments."""
        self.function = function
        self.spec = spec
        self.turned_by: TurnedClock | None = None
        """The clock of a test, while there is one (Cron.clock)."""
        self.is_async = inspect.iscoroutinefunction(function)
        self.takes_run = function is not None and takes_run(function)
        if function is None:
            return
        update_wrapper(self, function)
        if spec.kind == PROCESS and not all(part.isidentifier() for part in function.__qualname__.split(".")):
            raise BadSchedule(
                f"job {spec.name!r}: a process finds its function by name, so it must stand at the top of"
                " its module"
            )
        try:
            inspect.signature(function).bind(*([None] if self.takes_run else []), **spec.args)
        except TypeError as error:
            raise BadSchedule(f"job {spec.name!r} can't be called as func(run, **args): {error}") from None

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        if self.function is None:
            raise SchedulerError(f"job {self.spec.name!r} is no function: lockd-scheduler start runs it")
        return self.function(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<job {self.spec.name!r}>"

    @property
    def fires(self) -> list[datetime]:
        """In a test's `cron.clock(...)`: the nominal fire times of the runs that have begun, in UTC."""
        if self.turned_by is None:
            raise SchedulerError(f"job {self.spec.name!r} has fires inside of `with cron.clock(...)` alone")
        return self.turned_by.fires(self)


def checked_name(name: str) -> str:
    """The name, if it may name a job or a scheduler. Raises BadSchedule."""
    if not (name and name.isprintable() and len(name) <= NAME_CHARACTERS_MAX and name == name.strip()):
        raise BadSchedule(f"{name[:40]!r} can't be a name: 1 to {NAME_CHARACTERS_MAX} printable characters")
    return name


def name_of(function: Callable[..., Any]) -> str:
    """`module:function`; a script that is run directly goes by its file's name."""
    module = function.__module__
    if module == "__main__":
        file = getattr(sys.modules["__main__"], "__file__", None)
        module = Path(file).stem if file else module
    return f"{module}:{function.__qualname__}"


def checked_args(args: Mapping[str, Any] | None) -> dict[str, Any]:
    """The arguments as JSON gives them back. Raises BadSchedule."""
    given = dict(args or {})
    try:
        read_back: dict[str, Any] = json.loads(json.dumps(given, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise BadSchedule(f"args= must be JSON: {error}") from None
    if read_back != given:
        raise BadSchedule("args= must be JSON: string keys, and lists in place of tuples")
    return read_back


def takes_run(function: Callable[..., Any]) -> bool:
    """Whether a job's function is given the Run: it is, if it takes anything by position."""
    positional = (
        inspect.Parameter.POSITIONAL_ONLY,
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
        inspect.Parameter.VAR_POSITIONAL,
    )
    parameters = inspect.signature(function).parameters.values()
    return any(parameter.kind in positional for parameter in parameters)
