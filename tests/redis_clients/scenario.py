"""Plays scenario.yaml over one client's connections, and compares every answer."""

import contextlib
import json
import re
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import yaml

from tests.processes import PATIENCE_S, eventually

STEPS: list[dict[str, Any]] = yaml.safe_load(Path(__file__).with_name("scenario.yaml").read_text())
LISTENING = "w"


class Refused(Exception):
    """An error reply, as this client shows its text; some leave out a leading ERR."""


class Connection(Protocol):
    """One connection of a client library. It is made and used by one thread, which may block."""

    def ask(self, words: Sequence[str]) -> Any:
        """The reply of one command: str, int, None, list or dict. Raises Refused."""

    def push(self) -> Any:
        """The next push, a list of its kind and its map. Waits for it."""

    def close(self) -> None: ...


Connect = Callable[[bool], Connection]
"""Makes a connection; True: one that will listen for pushes."""


def play(connect: Connect, *, name: str, resp: int, can_listen: bool) -> None:
    """Play all steps for that protocol. `name` tells this client's locks from others'.

    Without `can_listen` (the library drops pushes that it does not know) the pushes themselves are
    left out; the commands that bring them are not.
    """
    with _threads(connect) as run:
        player = _Player(run)
        for general in STEPS:
            if general.get("resp", resp) != resp or ("push" in general and not can_listen):
                continue
            step = _named(general, name)
            try:
                player.play(step)
            except Exception as error:
                error.add_note(f"in the step {step}, where {player.bound}")
                raise


Run = Callable[[str, Callable[[Connection], Any]], Future[Any]]
"""Does something with a connection, by name, in its thread."""


@contextlib.contextmanager
def _threads(connect: Connect) -> Iterator[Run]:
    """A thread for each connection, which is made with its first use."""
    threads: dict[str, ThreadPoolExecutor] = {}
    connections: dict[str, Connection] = {}

    def run(by: str, work: Callable[[Connection], Any]) -> Future[Any]:
        def in_thread() -> Any:
            if by not in connections:
                connections[by] = connect(by == LISTENING)
            return work(connections[by])

        return threads.setdefault(by, ThreadPoolExecutor(1)).submit(in_thread)

    try:
        yield run
    finally:
        for by, connection in connections.items():
            threads[by].submit(connection.close).result(PATIENCE_S)
        for thread in threads.values():
            thread.shutdown()


class _Player:
    def __init__(self, run: Run) -> None:
        self._run = run
        self._begun: dict[str, Future[Any]] = {}
        self.bound: dict[str, Any] = {}

    def play(self, step: Mapping[str, Any]) -> None:
        match step:
            case {"by": by, "begin": words}:
                self._begun[by] = self._ask(by, words)
            case {"ends": by}:
                self._compare_answer(self._begun.pop(by), step)
            case {"by": by, "push": wanted, "gives": fields}:
                kind, found = self._run(by, lambda connection: connection.push()).result(PATIENCE_S)
                assert kind == wanted, (kind, found)
                _compare(found, fields, self.bound)
            case {"by": by, "send": words, "until": wanted}:
                eventually(lambda: self._fits(self._ask(by, words), wanted), f"{words} gives {wanted}")
            case {"by": by, "send": words}:
                self._compare_answer(self._ask(by, words), step)
            case _:
                raise AssertionError("no such step")

    def _ask(self, by: str, words: Sequence[Any]) -> Future[Any]:
        sent = [str(self.bound[word] if str(word).startswith("$") else word) for word in words]
        return self._run(by, lambda connection: connection.ask(sent))

    def _compare_answer(self, answer: Future[Any], step: Mapping[str, Any]) -> None:
        if "refused" not in step:
            _compare(answer.result(PATIENCE_S), step["gives"], self.bound)
            return
        error = answer.exception(PATIENCE_S)
        assert isinstance(error, Refused), error or answer.result()
        text, _, facts = str(error).partition(" | {")
        assert re.search(step["refused"], text), text
        if "facts" in step:
            _compare(json.loads("{" + facts), step["facts"], self.bound)

    def _fits(self, answer: Future[Any], wanted: Any) -> bool:
        try:
            _compare(answer.result(PATIENCE_S), wanted, self.bound)
        except AssertionError:
            return False
        return True


def _named(value: Any, name: str) -> Any:
    """The step with the client's own names in it."""
    match value:
        case str():
            return value.replace("%uuid", str(uuid.uuid5(uuid.NAMESPACE_OID, name))).replace("%", f"{name}/")
        case list():
            return [_named(item, name) for item in value]
        case dict():
            return {key: _named(item, name) for key, item in value.items()}
    return value


def _compare(found: Any, wanted: Any, bound: dict[str, Any]) -> None:
    """Raises AssertionError; binds what is not bound. A map may be a flat array, as under RESP2."""
    match wanted:
        case str() if wanted.startswith("$"):
            variable, _, lower = wanted.partition(">")
            if lower:
                assert isinstance(found, int), found
                assert found > bound[lower], (found, bound[lower])
            assert bound.setdefault(variable, found) == found, (variable, found, bound[variable])
        case dict():
            fields = dict(zip(found[::2], found[1::2], strict=True)) if isinstance(found, list) else found
            assert isinstance(fields, dict), found
            for key, value in wanted.items():
                assert key in fields, (key, fields)
                _compare(fields[key], value, bound)
        case list():
            assert isinstance(found, list), found
            assert len(found) == len(wanted), found
            for one, other in zip(found, wanted, strict=True):
                _compare(one, other, bound)
        case _:
            assert (type(found), found) == (type(wanted), wanted)
