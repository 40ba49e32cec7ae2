"""Histories that others have recorded and judged: the linearizability checker agrees with each.

`jepsen-etcd`: one register. What is answered `:info`, or not at all, may take effect at any later
time; a read without an answer says nothing. `kv`: a store of texts. `verdicts.json` says of each
file whether it is linearizable.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path

from tests.linearizability import keyvalue, register
from tests.linearizability.checker import Operation, Verdict, check

SECONDS_MAX = 60.0
_JEPSEN = re.compile(r"^INFO\s+jepsen\.util - (\d+)\s+:(invoke|ok|fail|info)\s+:(read|write|cas)\s+(.*)$")
_CALL_OR_ANSWER = re.compile(r":(invoke|ok|fail|info)\s")
_KEY_VALUE = re.compile(
    r'^\{:process (\d+), :type :(invoke|ok), :f :(get|put|append), :key "(.*)", :value (nil|".*")\}$'
)


def verdicts(folder: Path) -> Iterator[tuple[Path, bool]]:
    """Yield each history's file and whether it is linearizable."""
    for subfolder, files in json.loads((folder / "verdicts.json").read_text()).items():
        for name, is_linearizable in files.items():
            yield folder / subfolder / name, is_linearizable


def judge(file: Path) -> bool:
    """Return whether our checker finds the history linearizable. Raises TimeoutError."""
    if file.suffix == ".log":
        finding = check(register.Register(), jepsen_history(file.read_text()), seconds_max=SECONDS_MAX)
    else:
        finding = check(keyvalue.KeyValue(), key_value_history(file.read_text()), seconds_max=SECONDS_MAX)
    if finding.verdict is Verdict.UNDECIDED:
        raise TimeoutError(f"{file.name} was not decided within {SECONDS_MAX} s")
    return finding.verdict is Verdict.LINEARIZABLE


def jepsen_history(text: str) -> list[Operation[register.Call, register.Answer]]:
    """Read a log of Jepsen's etcd test. Raises ValueError for an operation that is none of its."""
    history: list[Operation[register.Call, register.Answer]] = []
    open_calls: dict[str, tuple[register.Call, int]] = {}
    for number, line in enumerate(text.splitlines()):
        found = _JEPSEN.match(line)
        if found is None:
            if _CALL_OR_ANSWER.search(line):
                raise ValueError(f"line {number + 1} is of no operation that is known: {line!r}")
            continue  # Jepsen logs other things, too.
        process, kind, function, value = found.groups()
        if kind == "invoke":
            open_calls[process] = (_register_call(function, value), number)
            continue
        call, called = open_calls.pop(process)
        timed_out = kind == "info" or value.strip() == ":timed-out"
        if not timed_out:
            history.append(Operation(call, _register_answer(call, kind, value), called, number))
        elif not isinstance(call, register.Read):
            history.append(Operation(call, None, called, None))
    history += [
        Operation(call, None, called, None)
        for call, called in open_calls.values()
        if not isinstance(call, register.Read)
    ]
    return history


def key_value_history(text: str) -> list[Operation[keyvalue.Call, str]]:
    """Read a log of the key-value store. Raises ValueError for a line that is none of its."""
    history: list[Operation[keyvalue.Call, str]] = []
    open_calls: dict[str, tuple[keyvalue.Call, int]] = {}
    for number, line in enumerate(text.splitlines()):
        found = _KEY_VALUE.match(line)
        if found is None:
            raise ValueError(f"line {number + 1} is not of a key-value log: {line!r}")
        process, kind, function, key, quoted = found.groups()
        value = "" if quoted == "nil" else quoted[1:-1]
        if kind == "invoke":
            open_calls[process] = (_key_value_call(function, key, value), number)
        else:
            call, called = open_calls.pop(process)
            history.append(Operation(call, value, called, number))
    return history + [
        Operation(call, None, called, None)
        for call, called in open_calls.values()
        if not isinstance(call, keyvalue.Get)
    ]


def _key_value_call(function: str, key: str, value: str) -> keyvalue.Call:
    match function:
        case "get":
            return keyvalue.Get(key)
        case "put":
            return keyvalue.Put(key, value)
        case _:
            return keyvalue.Append(key, value)


def _register_call(function: str, value: str) -> register.Call:
    match function:
        case "read":
            return register.Read()
        case "write":
            return register.Write(_register_value(value))
        case _:
            expected, new = value.strip("[] ").split()
            return register.CompareAndSet(_register_value(expected), _register_value(new))


def _register_answer(call: register.Call, kind: str, value: str) -> register.Answer:
    if isinstance(call, register.Read):
        return register.Found(_register_value(value))
    return register.Done(kind == "ok")


def _register_value(text: str) -> register.Value:
    return None if text == "nil" else int(text)
