"""Looking into a pickle without unpickling it: no class is looked up, nothing is imported or called.

`read_inert` walks the instructions that `pickletools` parses, and builds plain values and descriptions of
the rest: "an instance of this name with this state", "what this name would return for these
arguments". Instructions that the standard pickler does not write for such values are refused.
"""

import pickletools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

BYTES_MAX = 1024 * 1024
_MARK = object()


class NotInertError(ValueError):
    """The bytes are not a pickle that can be looked into."""


@dataclass(frozen=True, eq=False)
class Name:
    """A class or function, by its name alone."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(eq=False)
class Thing:
    """An instance, or what a call would return: `of` with its arguments, and the state it would be given."""

    of: Any
    arguments: Any
    state: Any = field(default=None, repr=False)

    @property
    def name(self) -> str:
        """The full name of its class or function."""
        return str(self.of) if isinstance(self.of, Name) else ""


def read_inert(data: bytes) -> Any:
    """The value that the bytes describe. Raises NotInertError."""
    if len(data) > BYTES_MAX:
        raise NotInertError(f"it has more than {BYTES_MAX} bytes")
    machine = _Machine()
    try:
        for opcode, argument, _ in pickletools.genops(data):
            if opcode.name == "STOP":
                return machine.pop()
            machine.step(opcode.name, argument)
    except NotInertError:
        raise
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, UnicodeError) as error:
        raise NotInertError(f"it is no pickle: {error}") from None
    raise NotInertError("it is no pickle: it has no end")


_PUSHED = frozenset(
    (
        *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
        *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
        *("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
    )
)
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_MADE: dict[str, Callable[[], Any]] = {
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_TUPLE": tuple,
    "EMPTY_SET": list,
}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class _Machine:
    """The pickle machine's stack and memo, without its powers."""

    def __init__(self) -> None:
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def pop(self) -> Any:
        value = self._stack.pop()
        if value is _MARK:
            raise NotInertError("it is no pickle: a mark where a value should be")
        return value

    def step(self, name: str, argument: Any) -> None:
        """Carry out one instruction. Raises NotInertError for one that has no business here."""
        push = self._stack.append
        if name in _PUSHED:
            push(argument)
        elif name in _CONSTANTS:
            push(_CONSTANTS[name])
        elif name in _MADE:
            push(_MADE[name]())
        elif name in _TUPLES:
            count = _TUPLES[name]
            values = [self.pop() for _ in range(count)]
            push(tuple(reversed(values)))
        elif name == "MARK":
            push(_MARK)
        elif name in ("TUPLE", "LIST", "FROZENSET"):
            values = self._to_mark()
            push(tuple(values) if name == "TUPLE" else values)
        elif name == "DICT":
            push(_paired({}, self._to_mark()))
        elif name not in ("PROTO", "FRAME"):
            self._step_on(name, argument)

    def _step_on(self, name: str, argument: Any) -> None:
        match name:
            case "APPEND":
                value = self.pop()
                self._top(list).append(value)
            case "APPENDS" | "ADDITEMS":
                values = self._to_mark()
                self._top(list).extend(values)
            case "SETITEM":
                value, key = self.pop(), self.pop()
                _paired(self._top(dict), [key, value])
            case "SETITEMS":
                values = self._to_mark()
                _paired(self._top(dict), values)
            case "MEMOIZE":
                self._memo[len(self._memo)] = self._stack[-1]
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                self._memo[argument] = self._stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                self._stack.append(self._memo[argument])
            case _:
                self._describe(name, argument)

    def _describe(self, name: str, argument: Any) -> None:
        match name:
            case "GLOBAL":
                module, _, attribute = argument.partition(" ")
                self._stack.append(Name(module, attribute))
            case "STACK_GLOBAL":
                attribute, module = self.pop(), self.pop()
                self._stack.append(Name(str(module), str(attribute)))
            case "REDUCE" | "NEWOBJ":
                arguments, of = self.pop(), self.pop()
                self._stack.append(Thing(of, arguments))
            case "NEWOBJ_EX":
                named, arguments, of = self.pop(), self.pop(), self.pop()
                self._stack.append(Thing(of, (arguments, named)))
            case "BUILD":
                state = self.pop()
                self._top(Thing).state = state
            case _:
                raise NotInertError(f"it has the instruction {name}")

    def _to_mark(self) -> list[Any]:
        values = []
        while (value := self._stack.pop()) is not _MARK:
            values.append(value)
        values.reverse()
        return values

    def _top(self, kind: type) -> Any:
        top = self._stack[-1]
        if not isinstance(top, kind):
            raise NotInertError(f"it is no pickle: a {kind.__name__} should be there")
        return top


def _paired(mapping: dict[Any, Any], values: list[Any]) -> dict[Any, Any]:
    for key, value in zip(values[::2], values[1::2], strict=True):
        if not isinstance(key, str | int | float | bytes | None):
            raise NotInertError("it has a key that is not plain")
        mapping[key] = value
    return mapping
