"""What strict mypy and web frameworks see of decorated functions, in a program like a user's."""

import inspect
import subprocess
import sys
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import pytest

import lockd
from lockd import AsyncLease, Lease, Skipped

client = lockd.Client("127.0.0.1:1")
async_client = lockd.AsyncClient("127.0.0.1:1")
"""Never used for IO: decorating does none."""

PROGRAM = '''
from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, TypeVar, assert_type

import lockd
from lockd import AsyncLease, Lease, Skipped

Endpoint = TypeVar("Endpoint", bound=Callable[..., object])


class App:
    """Decorates as FastAPI and Starlette do."""

    def post(self, path: str) -> Callable[[Endpoint], Endpoint]:
        def add(endpoint: Endpoint) -> Endpoint:
            return endpoint

        return add


app = App()
client = lockd.Client()
tasks = lockd.AsyncClient()


@app.post("/invoices/{number}/close")
@client.locked("invoice:{number}", wait=5, max_hold=60)
def close_invoice(number: int, dry: bool = False, *, lease: Lease = lockd.HELD) -> dict[str, int]:
    return {"number": number, "token": lease.token}


@app.post("/reports/{day}")
@tasks.locked("report:{day}", wait=0, on_busy="skip", shared=True)
async def report(day: Annotated[str, "path"], *, lease: AsyncLease = lockd.HELD) -> str:
    await lease.check(1.0)
    await lease.update_meta({"day": day})
    return lease.fence


@client.locked("import", on_lost="cancel", delay=2)
async def load(count: int) -> int:
    return count


class Accounts:
    @client.locked("account:{number}")
    def close(self, number: int) -> bool:
        return number > 0


assert_type(close_invoice(7, dry=True), dict[str, int])
assert_type(Accounts().close(3), bool)
lease = client.try_lock("k", shared=True)
if lease:
    assert_type(lease.mode, lockd.LockMode)
    assert_type(lease.locks, tuple[str, ...])
with client.lock_all(["a", "b"], wait=3) as both, client.semaphore("pool", limit=3, weight=2) as units:
    assert_type((both, units), tuple[Lease, Lease])


async def main() -> None:
    assert_type(await report("today"), str | Skipped)
    assert_type(await load(3), int)
    async with tasks.lock_all(["a"]) as one, tasks.semaphore("pool", limit=1) as unit:
        assert_type((one, unit), tuple[AsyncLease, AsyncLease])
    awaited: Awaitable[None] = one.check()
    await awaited


try:
    with client.lock("k"):
        pass
except lockd.LockTimeout as busy:
    assert_type((busy.holder, busy.held_ms, busy.queue_length), tuple[str, int, int])
except (lockd.Deadlock, lockd.LimitMismatch):
    pass
'''

MISTAKES = [
    ('close_invoice("seven")', "arg-type"),
    ("Accounts().close()", "call-arg"),
    ('client.lock("k", on_lost="cancel")', "arg-type"),
    ('client.lock("k", shared="yes")', "arg-type"),
    ('client.semaphore("k")', "call-arg"),
    ('client.locked("k", on_busy="wait")', "call-overload"),
    ('tasks.locked("k")(len)', "arg-type"),
    ("load(3) + 1", "operator"),
]


def test_strict_mypy_accepts_a_users_program_and_finds_its_mistakes(tmp_path: Path) -> None:
    program = PROGRAM.lstrip() + "\n" + "\n".join(f"{line}  # mistake" for line, _ in MISTAKES) + "\n"
    (tmp_path / "program.py").write_text(program)
    options = [
        "--strict",
        "--config-file=",
        "--no-color-output",
        "--no-error-summary",
        "--hide-error-context",
    ]
    command = [sys.executable, "-m", "mypy", *options, f"--cache-dir={tmp_path / 'cache'}", "program.py"]
    mypy = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert mypy.stderr == ""
    errors = [line for line in mypy.stdout.splitlines() if ": error: " in line]
    first = program[: program.index("# mistake")].count("\n") + 1
    found = [(int(line.split(":")[1]) - first, line.rsplit("[", 1)[1].rstrip("]")) for line in errors]
    assert found == [(number, code) for number, (_, code) in enumerate(MISTAKES)], mypy.stdout


# As FastAPI reads an endpoint: the signature, with names resolved where the function was written.


class Number(int):
    """A type of this module, which the decorator's own does not know."""


@client.locked("invoice:{number}")
def endpoint(
    number: "Number", note: Annotated["str", "query"] = "", *, lease: Lease = lockd.HELD
) -> "list[Number]":
    return [number] if note and lease.token else []


@async_client.locked("invoice:{number}", on_busy="skip")
async def async_endpoint(number: "Number", *, lease: AsyncLease = lockd.HELD) -> "list[Number]":
    return [number] if lease.token else []


@pytest.mark.parametrize("function", [endpoint, async_endpoint])
def test_a_framework_sees_the_parameters_and_types_without_the_lease(function: Callable[..., Any]) -> None:
    signature = inspect.signature(function)
    assert "lease" not in signature.parameters
    assert signature.parameters["number"].annotation is Number
    assert signature.return_annotation == list[Number]
    hints = typing.get_type_hints(function, include_extras=True)
    assert hints["number"] is Number
    assert "lease" not in hints
    # Which module's names they are, and whether it is awaited, is asked of the innermost function.
    assert inspect.unwrap(function).__globals__ is globals()
    assert inspect.iscoroutinefunction(function) is inspect.iscoroutinefunction(inspect.unwrap(function))


def public_names(kind: type) -> set[str]:
    return {name for name in dir(kind) if not name.startswith("_")}


@pytest.mark.parametrize(
    ("sync", "tasks"), [(lockd.Client, lockd.AsyncClient), (Lease, AsyncLease)], ids=["client", "lease"]
)
def test_tasks_have_every_name_of_threads_with_the_same_parameters(sync: type, tasks: type) -> None:
    of_threads_alone = {"from_env"}
    assert public_names(sync) - of_threads_alone == public_names(tasks)
    for name in public_names(tasks) - {"wait_lost"}:  # asyncio.timeout is how a task waits for so long
        one, other = getattr(sync, name), getattr(tasks, name)
        if callable(one):
            parameters = [list(inspect.signature(each).parameters.values()) for each in (one, other)]
            names = [[(each.name, each.kind, each.default) for each in found] for found in parameters]
            assert names[0] == names[1], name


def test_types_that_exist_for_checkers_alone_stay_as_they_were_written() -> None:
    def written(number: "Nowhere", *, lease: Lease = lockd.HELD) -> "Nowhere":  # type: ignore[name-defined] # noqa: F821
        return number if lease.token else None

    found = client.locked("k:{number}")(written)
    assert inspect.signature(found).parameters["number"].annotation == "Nowhere"
    assert Skipped.SKIPPED is lockd.SKIPPED
