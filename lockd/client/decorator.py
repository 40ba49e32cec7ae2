"""The `locked` decorator: hold a lock for the length of a call, under a name made of its arguments.

The decorated function keeps its signature and types, less the parameter whose default is HELD:
that one is given the lease, and neither callers nor FastAPI see it.
"""

import asyncio
import functools
import inspect
import string
import sys
from collections.abc import Callable, Coroutine, Mapping
from contextlib import AbstractAsyncContextManager, AbstractContextManager, AsyncExitStack, ExitStack
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final, Literal, ParamSpec, Protocol, TypeVar, overload

from lockd.errors import LockTimeout

if sys.version_info >= (3, 14):
    import annotationlib

P = ParamSpec("P")
R = TypeVar("R")
F = TypeVar("F", bound=Callable[..., Any])

OnBusy = Literal["raise", "skip"]
Function = Callable[..., Any]
OpenBlock = Callable[[str], AbstractContextManager[Any]]
OpenAsyncBlock = Callable[[str], AbstractAsyncContextManager[Any]]


class Skipped(Enum):
    """The type of SKIPPED, so that type checkers tell it from a result."""

    SKIPPED = "skipped"


class _Held(Enum):
    HELD = "held"


SKIPPED: Final = Skipped.SKIPPED
"""What a call returns when the lock was busy and `on_busy="skip"`."""
HELD: Final[Any] = _Held.HELD
"""The default of the parameter that is given the lease: `*, lease: Lease = lockd.HELD`."""


class InstallsLease(Protocol):
    """A fence of lockd_storage, or anything that wants the lease before the work begins (SAFETY S1)."""

    def install(self, lease: Any, /) -> object:
        """Make the lease's token the one that counts.

        For an `async def` this may be a coroutine function; a plain one is called on a thread then, so
        that a storage that is slow to answer doesn't keep the loop from renewing the lease.
        """
        ...


@dataclass(frozen=True)
class Locked:
    """A decorator that gives back a function of the same type."""

    wrap: Callable[[Function], Function]

    def __call__(self, function: F) -> F:
        """Decorate a `def` or an `async def`."""
        wrapped: F = self.wrap(function)  # type: ignore[assignment] # as callable as it was
        return wrapped


@dataclass(frozen=True)
class LockedOrSkipped:
    """As Locked; the result may be SKIPPED."""

    wrap: Callable[[Function], Function]

    @overload
    def __call__(
        self, function: Callable[P, Coroutine[Any, Any, R]]
    ) -> Callable[P, Coroutine[Any, Any, R | Skipped]]: ...
    @overload
    def __call__(self, function: Callable[P, R]) -> Callable[P, R | Skipped]: ...
    def __call__(self, function: Function) -> Function:
        """Decorate a `def` or an `async def`."""
        return self.wrap(function)


@dataclass(frozen=True)
class AsyncLocked:
    """A decorator for `async def` alone."""

    wrap: Callable[[Function], Function]

    def __call__(self, function: Callable[P, Coroutine[Any, Any, R]]) -> Callable[P, Coroutine[Any, Any, R]]:
        """Decorate an `async def`. Raises TypeError for anything else."""
        return self.wrap(function)


@dataclass(frozen=True)
class AsyncLockedOrSkipped:
    """As AsyncLocked; the result may be SKIPPED."""

    wrap: Callable[[Function], Function]

    def __call__(
        self, function: Callable[P, Coroutine[Any, Any, R]]
    ) -> Callable[P, Coroutine[Any, Any, R | Skipped]]:
        """Decorate an `async def`. Raises TypeError for anything else."""
        return self.wrap(function)


def lock_calls(
    function: Function,
    template: str,
    *,
    open_block: OpenBlock | None,
    open_async_block: OpenAsyncBlock,
    on_busy: OnBusy,
    fence: InstallsLease | None,
) -> Function:
    """Wrap a function so that each call holds the lock. `open_block` None: `async def` alone.

    Raises TypeError for a function that can't be wrapped so, and ValueError for a template that
    names no parameter of it.
    """
    if on_busy not in ("raise", "skip"):
        raise ValueError(f'on_busy is "raise" or "skip", not {on_busy!r}')
    _check_callable(function)
    code = _code_of(function)
    if inspect.isgeneratorfunction(code) or inspect.isasyncgenfunction(code):
        raise TypeError(f"{_name_of(function)} is a generator: its body runs after the call has returned")
    plan = _Plan.of(function, template)
    if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(code):
        return plan.finish(_locked_async(function, plan, open_async_block, on_busy, fence))
    if open_block is None:
        raise TypeError(f"an AsyncClient can't lock {_name_of(function)}: it is no `async def`")
    return plan.finish(_locked(function, plan, open_block, on_busy, fence))


def _check_callable(function: object) -> None:
    if not callable(function):
        text = "a classmethod or property goes above the lock's decorator, not beneath it"
        raise TypeError(f"{function!r} can't be called: {text}")


def _code_of(function: Function) -> Function:
    """What tells whether calling it runs a coroutine: an object's __call__, a partial's function."""
    while isinstance(function, functools.partial):
        function = function.func
    is_object = not (inspect.isroutine(function) or inspect.isclass(function))
    return type(function).__call__ if is_object else function


def _name_of(function: Function) -> str:
    return getattr(function, "__qualname__", repr(function))


def _locked(
    function: Function, plan: "_Plan", open_block: OpenBlock, on_busy: OnBusy, fence: InstallsLease | None
) -> Function:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        block = open_block(plan.lock_name(args, kwargs))
        with ExitStack() as stack:
            try:
                lease = stack.enter_context(block)
            except LockTimeout:
                if on_busy == "skip":
                    return SKIPPED
                raise
            if fence is not None:
                fence.install(lease)
            result = function(*args, **plan.with_lease(kwargs, lease))
            if inspect.iscoroutine(result):
                result.close()
                name = _name_of(function)
                raise TypeError(
                    f"{name} gave a coroutine, whose body would run without the lock: use `async def`"
                )
            return result

    return call


def _locked_async(
    function: Function,
    plan: "_Plan",
    open_block: OpenAsyncBlock,
    on_busy: OnBusy,
    fence: InstallsLease | None,
) -> Function:
    @functools.wraps(function)
    async def call(*args: Any, **kwargs: Any) -> Any:
        block = open_block(plan.lock_name(args, kwargs))
        async with AsyncExitStack() as stack:
            try:
                lease = await stack.enter_async_context(block)
            except LockTimeout:
                if on_busy == "skip":
                    return SKIPPED
                raise
            if fence is not None:
                if inspect.iscoroutinefunction(fence.install):
                    await fence.install(lease)
                else:
                    await asyncio.to_thread(fence.install, lease)
            return await function(*args, **plan.with_lease(kwargs, lease))

    return call


@dataclass(frozen=True)
class _Plan:
    """What is known of the function at its decoration."""

    template: str
    signature: inspect.Signature
    """As callers see it: without the lease."""
    lease_parameter: str | None
    has_fields: bool

    @classmethod
    def of(cls, function: Function, template: str) -> "_Plan":
        signature = _signature(function)
        lease = [name for name, parameter in signature.parameters.items() if parameter.default is HELD]
        if len(lease) > 1:
            raise TypeError(f"{_name_of(function)}: only one parameter can be the lease, not {lease}")
        if lease:
            _check_place(function, list(signature.parameters.values()), lease[0])
        public = [parameter for name, parameter in signature.parameters.items() if name not in lease]
        fields = _fields(template)
        known = {parameter.name for parameter in public}
        takes_any = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in public)
        unknown = sorted(fields - known)
        if unknown and not takes_any:
            raise ValueError(f"{template!r}: {_name_of(function)} has no parameter {', '.join(unknown)}")
        return cls(
            template=template,
            signature=signature.replace(parameters=public),
            lease_parameter=lease[0] if lease else None,
            has_fields=bool(fields),
        )

    def lock_name(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
        """The lock's name for this call. Raises TypeError for arguments that don't fit."""
        if self.lease_parameter in kwargs:
            raise TypeError(f"got an unexpected keyword argument {self.lease_parameter!r}: it is filled in")
        if not self.has_fields:
            return self.template.format()
        bound = self.signature.bind(*args, **kwargs)
        bound.apply_defaults()
        values = dict(bound.arguments)
        for name, parameter in self.signature.parameters.items():
            if parameter.kind is inspect.Parameter.VAR_KEYWORD:
                values |= values.pop(name)
        return self.template.format(**values)

    def with_lease(self, kwargs: dict[str, Any], lease: object) -> dict[str, Any]:
        if self.lease_parameter is not None:
            kwargs[self.lease_parameter] = lease
        return kwargs

    def finish(self, wrapper: Function) -> Function:
        """Show callers, FastAPI and type hints the function without the lease."""
        hints = _annotations(wrapper)
        hints.pop(self.lease_parameter or "", None)
        wrapper.__annotations__ = hints
        wrapper.__signature__ = self.signature  # type: ignore[attr-defined]
        return wrapper


def _check_place(function: Function, parameters: list[inspect.Parameter], lease: str) -> None:
    """The lease is given by keyword, and callers don't see it: nothing positional may stand behind it."""
    at = [parameter.name for parameter in parameters].index(lease)
    if parameters[at].kind is inspect.Parameter.POSITIONAL_ONLY:
        raise TypeError(f"{_name_of(function)}: the lease is given by keyword")
    if parameters[at].kind is inspect.Parameter.POSITIONAL_OR_KEYWORD:
        positional = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
        behind = [parameter.name for parameter in parameters[at + 1 :] if parameter.kind in positional]
        if behind:
            text = f"a caller's {behind[0]!r} would be taken for the lease; write `*, {lease}: Lease = HELD`"
            raise TypeError(f"{_name_of(function)}: {text}")


def _signature(function: Function) -> inspect.Signature:
    try:
        # FastAPI reads annotations in the module of the wrapper, where their names mean nothing.
        return inspect.signature(function, eval_str=True)
    except NameError:  # a name that exists only for type checkers
        if sys.version_info >= (3, 14):
            return inspect.signature(function, annotation_format=annotationlib.Format.FORWARDREF)
        return inspect.signature(function)


def _annotations(function: Function) -> dict[str, Any]:
    if sys.version_info >= (3, 14):
        return annotationlib.get_annotations(function, format=annotationlib.Format.FORWARDREF)
    return dict(getattr(function, "__annotations__", {}))


def _fields(template: str) -> set[str]:
    """The parameters that a template names: `report:{user.id}` names `user`."""
    fields = set()
    for _, field, _, _ in string.Formatter().parse(template):
        if field is not None:
            name = field.partition(".")[0].partition("[")[0]
            if not name or name.isdigit():
                raise ValueError(f"{template!r}: arguments are named, like {{user_id}}")
            fields.add(name)
    return fields
