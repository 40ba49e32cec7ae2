"""A job: what to run, under which name, when, and with which choices.

The name is the identity: the ledger knows a schedule by it, so a function may be moved or rewritten.
Arguments are JSON and stored with each run; functions are found in the code, never in the database.
"""

import inspect
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import update_wrapper
from pathlib import Path
from typing import Any, Generic, ParamSpec, TypeVar

from lockd_scheduler.errors import BadSchedule
from lockd_scheduler.policies import Policy
from lockd_scheduler.triggers import Trigger, trigger_from_json

NAME_CHARACTERS_MAX = 200

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True)
class JobSpec:
    """What the ledger keeps of a job: everything but its code."""

    name: str
    trigger: Trigger
    policy: Policy
    args: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """The definition as it stands in the schedule's row and revisions."""
        return {
            "trigger": self.trigger.to_json(),
            "policy": self.policy.to_json(),
            "args": dict(self.args),
        }

    @classmethod
    def from_json(cls, name: str, definition: Mapping[str, Any]) -> "JobSpec":
        """Read what `to_json` made. Raises BadSchedule."""
        return cls(
            name,
            trigger_from_json(definition["trigger"]),
            Policy.from_json(definition["policy"]),
            definition["args"],
        )

    def first_fire(self, now: datetime) -> datetime | None:
        """Where a schedule begins that is new, or whose trigger has changed."""
        return self.trigger.first(now)


class Job(Generic[P, R]):
    """A function with its schedule. Calling it calls the function, as if undecorated."""

    def __init__(self, function: Callable[P, R], spec: JobSpec) -> None:
        """Raises BadSchedule if the function can't be called with the job's arguments."""
        update_wrapper(self, function)
        self.function = function
        self.spec = spec
        self.is_async = inspect.iscoroutinefunction(function)
        self.takes_run = _takes_run(function)
        try:
            inspect.signature(function).bind(*([None] if self.takes_run else []), **spec.args)
        except TypeError as error:
            raise BadSchedule(f"job {spec.name!r} can't be called as func(run, **args): {error}") from None

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        return self.function(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<job {self.spec.name!r}>"


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


def _takes_run(function: Callable[..., Any]) -> bool:
    positional = (
        inspect.Parameter.POSITIONAL_ONLY,
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
        inspect.Parameter.VAR_POSITIONAL,
    )
    parameters = inspect.signature(function).parameters.values()
    return any(parameter.kind in positional for parameter in parameters)
