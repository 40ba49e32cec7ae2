"""HTTP calls: what is sent, what counts as an answer, and what is not known (SAFETY R5)."""

import asyncio
import gc
import json
import threading
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from lockd.testing.ports import free_port
from lockd_scheduler.asking import Asking
from lockd_scheduler.runners import http_call
from tests.scheduler.harness import MINUTE, SECOND, World
from tests.scheduler.running import ran, said, underway, until

KEY = "ops/call/scheduled/2026-06-01T12:00:00Z"

Answer = Callable[[asyncio.StreamWriter], Awaitable[None]]


@dataclass
class FarEnd:
    """A server that does with each request what the test says."""

    port: int
    answer: Answer
    requests: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)
    connections: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            headers: dict[str, str] = {}
            for name, _, value in (line.partition(": ") for line in head[1:] if line):
                assert headers.setdefault(name.lower(), value) == value, f"{name} came twice"
            body = await reader.readexactly(int(headers.get("content-length", "0")))
            self.requests.append((head[0], headers, body))
            await self.answer(writer)
            await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


def says(status: str, body: bytes = b"", headers: str = "", *, length: int | None = None) -> Answer:
    async def answer(writer: asyncio.StreamWriter) -> None:
        size = len(body) if length is None else length
        writer.write(f"HTTP/1.1 {status}\r\nContent-Length: {size}\r\n{headers}\r\n".encode() + body)

    return answer


async def hangs_up(writer: asyncio.StreamWriter) -> None:
    writer.close()


async def is_silent(writer: asyncio.StreamWriter) -> None:  # noqa: ARG001
    await asyncio.sleep(600)


@pytest.fixture
def far_end() -> Iterator[FarEnd]:
    loop = asyncio.new_event_loop()
    end = FarEnd(0, says("204 No Content"))
    server = loop.run_until_complete(asyncio.start_server(end.serve, "127.0.0.1", 0))
    end.port = server.sockets[0].getsockname()[1]
    turning = threading.Thread(target=loop.run_forever)
    turning.start()
    yield end

    async def close() -> None:
        server.close()
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    asyncio.run_coroutine_threadsafe(close(), loop).result(20)
    loop.call_soon_threadsafe(loop.stop)
    turning.join(20)
    loop.close()


@pytest.fixture
def db_url(tmp_path: Path) -> str:
    """What is shown here is between a worker and the far end: one kind of ledger will do."""
    return f"sqlite:///{tmp_path}/ledger.db"


def called(world: World, url: str, **choices: Any) -> list[str]:
    """The states after one call."""
    world.cron.http("0 * * * *", url, name="call", **choices)
    ran(world)
    return world.states()


def test_a_call_carries_the_fires_key_and_the_attempts_token(world: World, far_end: FarEnd) -> None:
    headers = {"X-Team": "ops", "idempotency-key": "mine"}
    states = called(world, far_end.url, method="POST", headers=headers, body={"day": 1})
    assert states == ["succeeded"]
    [(line, sent, body)] = far_end.requests
    assert line == "POST /hook HTTP/1.1"
    assert (sent["idempotency-key"], sent["fencing-token"], sent["x-team"]) == (KEY, "1.1", "ops")
    assert sent["content-type"] == "application/json"
    assert json.loads(body) == {"day": 1}
    assert said(world, "http") == "HTTP 204 No Content\n"


def test_the_runs_arguments_are_the_body_where_the_job_has_none(world: World, far_end: FarEnd) -> None:
    world.cron.http("0 0 1 1 *", far_end.url, name="call", method="PUT")
    process = world.process().elected(1)
    Asking(world.engine, "ops").start("call", args={"region": "us"}, key="ticket-42", now=world.clock.now())
    process.turn()
    process.run_all()
    assert json.loads(far_end.requests[0][2]) == {"region": "us"}


@pytest.mark.parametrize(
    ("status", "expect", "state"),
    [
        ("200 OK", "2xx", "succeeded"),
        ("404 Not Found", "200,404", "succeeded"),
        ("200 OK", "204", "failed"),
        ("500 Internal Server Error", "2xx", "failed"),
        ("502 Bad Gateway", "2xx", "lost"),
        ("504 Gateway Timeout", "2xx", "lost"),
        ("504 Gateway Timeout", "5xx", "succeeded"),
    ],
)
def test_the_status_decides(world: World, far_end: FarEnd, status: str, expect: str, state: str) -> None:
    """R5: a gateway's 502 and 504 do not say whether the work was done."""
    far_end.answer = says(status, b"and why")
    assert called(world, far_end.url, expect=expect) == [state]
    assert said(world, "http") == f"HTTP {status}\nand why"
    if state != "succeeded":
        assert world.attempts()[0].error.startswith(f"HTTP {status}, expected {expect}")


def test_a_refused_connection_is_a_known_failure(world: World) -> None:
    assert called(world, f"http://127.0.0.1:{free_port()}/", retries=1) == ["claimed"]
    assert world.attempts()[0].state == "failed"
    assert world.attempts()[0].error.startswith("nothing was sent: ConnectError")


@pytest.mark.parametrize(("delivery", "state"), [("at_most_once", "lost"), ("at_least_once", "claimed")])
@pytest.mark.parametrize("answer", [hangs_up, says("200 OK", b"half", length=1000)])
def test_r5_a_call_without_a_whole_answer_has_an_unknown_outcome(
    world: World, far_end: FarEnd, delivery: str, state: str, answer: Answer
) -> None:
    """R5: at_most_once does not call again, whatever its retries; at_least_once does."""
    far_end.answer = answer
    assert called(world, far_end.url, delivery=delivery, retries=3) == [state]
    assert world.attempts()[0].state == "lost"
    assert world.attempts()[0].error.endswith("the request was under way, its outcome is not known")


@pytest.mark.parametrize(("delivery", "state"), [("at_most_once", "lost"), ("at_least_once", "claimed")])
def test_r5_a_timeout_after_sending_has_an_unknown_outcome(
    world: World, far_end: FarEnd, delivery: str, state: str
) -> None:
    far_end.answer = is_silent
    world.cron.http("0 * * * *", far_end.url, name="call", timeout="30s", delivery=delivery, retries=3)
    process = world.process().elected(1)
    process.turn()
    with underway(process):
        until(lambda: far_end.requests)
        world.clock.turn(SECOND * 30)
        process.worker.enforce()
    assert world.states() == [state]
    world.clock.turn(MINUTE * 20)
    process.turn()
    assert len(process.runner.attempts) == (1 if state == "claimed" else 0)


# httpcore leaves a connection whose handshake is cancelled to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_timeout_before_anything_was_sent_is_a_known_failure(world: World, far_end: FarEnd) -> None:
    """A TLS handshake that nobody answers: the request has not left."""
    url = far_end.url.replace("http:", "https:")
    world.cron.http("0 * * * *", url, name="call", timeout="30s", retries=1)
    process = world.process().elected(1)
    process.turn()
    with underway(process):
        until(lambda: far_end.connections)
        world.clock.turn(SECOND * 30)
        process.worker.enforce()
    assert world.states() == ["claimed"]
    assert world.attempts()[0].state == "timed_out"
    assert world.attempts()[0].error == "timed_out, before anything was sent"
    gc.collect()


def test_a_server_that_is_silent_too_long_is_not_waited_for(
    world: World, far_end: FarEnd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_call, "SILENCE_SECONDS", 0.1)
    far_end.answer = is_silent
    assert called(world, far_end.url) == ["lost"]
    assert "ReadTimeout" in world.attempts()[0].error


def test_a_cancelled_call_is_lost_and_not_made_again(world: World, far_end: FarEnd) -> None:
    """Whoever cancels it ends the waiting, not what the far end does."""
    far_end.answer = is_silent
    world.cron.http("0 * * * *", far_end.url, name="call", delivery="at_least_once")
    process = world.process().elected(1)
    process.turn()
    with underway(process):
        until(lambda: far_end.requests)
        Asking(world.engine, "ops").cancel(1, reason=None, now=world.clock.now())
        process.worker.enforce()
    assert world.states() == ["lost"]


def test_a_call_that_a_stopped_service_leaves_behind_is_found_lost(world: World, far_end: FarEnd) -> None:
    far_end.answer = is_silent
    world.cron.http("0 * * * *", far_end.url, name="call")
    process = world.process().elected(1)
    process.turn()
    with underway(process):
        until(lambda: far_end.requests)
        process.worker.abandoned.set()
    assert world.states() == ["running"]


def test_redirects_are_told_and_not_followed(world: World, far_end: FarEnd) -> None:
    far_end.answer = says("302 Found", headers="Location: http://elsewhere.example/steal\r\n")
    assert called(world, far_end.url) == ["failed"]
    error = world.attempts()[0].error
    assert "redirected to another host, http://elsewhere.example/steal" in error
    assert len(far_end.requests) == 1


def test_a_long_answer_is_cut(world: World, far_end: FarEnd) -> None:
    far_end.answer = says("200 OK", b"x" * 10_000_000)
    assert called(world, far_end.url) == ["succeeded"]
    assert len(said(world, "http")) == len("HTTP 200 OK\n") + 65_536
    assert said(world, "lockd") == "\n[the answer is cut here, after 65536 bytes]\n"
