"""Notices to a webhook (SAFETY R7): at least once, each with one key, and never in the scheduler's way."""

import hashlib
import hmac
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from sqlalchemy import Engine, select, update

from lockd_scheduler import BadSchedule
from lockd_scheduler.dialects import now_of
from lockd_scheduler.figures import Figures
from lockd_scheduler.outboxes import CLAIM, GIVE_UP_AFTER, PAUSE_MOST, Outbox, pause_after
from lockd_scheduler.outside import SECRET_VARIABLE, WEBHOOK_VARIABLE, OutsideSettings
from lockd_scheduler.sending import Sender, Webhook
from lockd_scheduler.tables import outbox
from tests.scheduler.harness import World

SECRET = "whisper"
PATIENCE = 20.0


@dataclass
class Received:
    """One request as the webhook saw it."""

    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> dict[str, Any]:
        told: dict[str, Any] = json.loads(self.body)
        return told


@dataclass
class Receiver:
    """A real HTTP server that answers as the test says."""

    url: str = ""
    requests: list[Received] = field(default_factory=list)
    answer: Callable[[BaseHTTPRequestHandler], object] = lambda handler: _answer(handler, 200)
    arrived: threading.Event = field(default_factory=threading.Event)
    let_go: threading.Event = field(default_factory=threading.Event)
    """Set at the end, for answers that hang."""


def _answer(handler: BaseHTTPRequestHandler, status: int, **headers: str) -> None:
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name, value)
    handler.send_header("Content-Length", "0")
    handler.end_headers()


@contextmanager
def receiving() -> Iterator[Receiver]:
    receiver = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            receiver.requests.append(Received(dict(self.headers), body))
            receiver.arrived.set()
            try:
                receiver.answer(self)
            except OSError:
                self.close_connection = True  # the sender has hung up

        def log_message(self, *_: Any) -> None:
            """Not on the tests' screen."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    receiver.url = f"http://127.0.0.1:{server.server_port}/hook?key=1"
    try:
        yield receiver
    finally:
        receiver.let_go.set()
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


@pytest.fixture
def box(world: World) -> Outbox:
    """The outbox of a ledger in which one run has failed for good."""

    @world.cron.every("1h", name="tick", notify=["failed"])
    def tick() -> None:
        raise RuntimeError("no eu")

    process = world.process().elected(1)
    process.turn()
    process.run_all()
    assert world.states() == ["failed"]
    # The ledger's own time is the test's; the sender asks the database for it.
    age(world.engine, timedelta())
    return Outbox(world.engine, "ops")


def rows(engine: Engine) -> list[Any]:
    with engine.connect() as connection:
        return list(connection.execute(select(outbox).order_by(outbox.c.id)))


def age(engine: Engine, by: timedelta, *, is_due: bool = True) -> None:
    """Make the notices so old, and due."""
    with engine.begin() as connection:
        now = connection.execute(select(now_of(connection))).scalar_one()
        values: dict[str, Any] = {"made_at": now - by}
        if is_due:
            values["next_try_at"] = now - timedelta(seconds=1)
        connection.execute(update(outbox).values(**values))


def send(box: Outbox, url: str, *, secret: str | None = None, figures: Figures | None = None) -> int:
    webhook = Webhook(url, secret)
    return Sender(box, webhook, figures or Figures()).send_due(webhook)


def test_r7_a_notice_is_sent_once_signed_and_tells_what_happened(
    world: World, box: Outbox, receiver: Receiver
) -> None:
    assert send(box, receiver.url, secret=SECRET) == 1
    assert send(box, receiver.url, secret=SECRET) == 0
    [request] = receiver.requests
    told = request.json
    assert (told["event"], told["scheduler"], told["job"], told["state"]) == (
        "failed",
        "ops",
        "tick",
        "failed",
    )
    assert told["error"].strip().endswith("RuntimeError: no eu")
    assert told["id"] == request.headers["Idempotency-Key"]
    at, signature = (part.partition("=")[2] for part in request.headers["Lockd-Signature"].split(","))
    expected = hmac.new(SECRET.encode(), f"{at}.".encode() + request.body, hashlib.sha256).hexdigest()
    assert signature == expected
    [row] = rows(world.engine)
    assert (row.sent_at is not None, row.next_try_at, row.tries, row.error) == (True, None, 1, None)


def test_without_a_secret_nothing_is_signed(box: Outbox, receiver: Receiver) -> None:
    send(box, receiver.url)
    assert "Lockd-Signature" not in receiver.requests[0].headers


NO_YES: list[tuple[Callable[[BaseHTTPRequestHandler], object], str]] = [
    (lambda handler: _answer(handler, 500), "answered 500"),
    (lambda handler: _answer(handler, 404), "answered 404"),
    (lambda handler: _answer(handler, 302, Location="/elsewhere"), "answered 302"),
    (lambda handler: handler.connection.close(), "Error"),
    (lambda handler: handler.wfile.write(b"nonsense\r\n\r\n"), "RemoteProtocolError"),
]


def test_r7_what_is_no_yes_is_tried_again_with_the_same_key(
    world: World, box: Outbox, receiver: Receiver
) -> None:
    for tries, (answer, told) in enumerate(NO_YES, start=1):
        receiver.answer = answer
        assert send(box, receiver.url) == 1
        [row] = rows(world.engine)
        assert told in row.error
        assert (row.sent_at, row.tries) == (None, tries)
        assert row.next_try_at > row.made_at
        assert send(box, receiver.url) == 0, "not before its pause is over"
        with world.engine.begin() as connection:
            connection.execute(update(outbox).values(next_try_at=row.made_at))
    receiver.answer = lambda handler: _answer(handler, 204)
    assert send(box, receiver.url) == 1
    assert len({request.json["id"] for request in receiver.requests}) == 1
    assert [request.json["try"] for request in receiver.requests] == list(range(1, len(NO_YES) + 2))
    assert rows(world.engine)[0].sent_at is not None


def test_r7_an_answer_that_hangs_or_drips_is_given_up_in_time(
    world: World, box: Outbox, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """httpx bounds each read alone: a header every tenth of a second would never end."""
    monkeypatch.setattr("lockd_scheduler.sending.TRY_SECONDS", 0.5)

    def drip(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
        while not receiver.let_go.wait(0.1):
            handler.wfile.write(b"X-Y: z\r\n")
            handler.wfile.flush()

    def hang(_: BaseHTTPRequestHandler) -> None:
        receiver.let_go.wait(PATIENCE)

    for answer in (hang, drip):
        receiver.answer = answer
        age(world.engine, timedelta())
        assert send(box, receiver.url) == 1
        assert rows(world.engine)[0].error == "no answer within 0.5 s"


def test_r7_nobody_there_is_an_error_like_others(world: World, box: Outbox) -> None:
    figures = Figures()
    send(box, "http://127.0.0.1:1/", figures=figures)
    assert "ConnectError" in rows(world.engine)[0].error
    labels = {"outcome": "failed"}
    assert figures.registry.get_sample_value("lockd_scheduler_notices_total", labels) == 1


def test_r7_two_senders_are_given_a_notice_one_after_the_other(world: World, box: Outbox) -> None:
    """Whoever claims it has it for a minute; if they die, it is due again, and a late answer still counts."""
    [first] = box.claim(10)
    assert Outbox(world.engine, "ops").claim(10) == []
    left = rows(world.engine)[0].next_try_at - first.made_at
    assert left > CLAIM - timedelta(seconds=5)
    with world.engine.begin() as connection:
        connection.execute(update(outbox).values(next_try_at=first.made_at))
    [second] = box.claim(10)
    assert (second.tries, second.key) == (2, first.key)
    box.settle([(first, "too late to matter")])
    assert rows(world.engine)[0].error is None
    box.settle([(first, None)])
    assert rows(world.engine)[0].sent_at is not None
    box.settle([(second, "answered 500")])
    assert rows(world.engine)[0].next_try_at is None


def test_r7_another_schedulers_notices_are_left_alone(world: World, box: Outbox) -> None:  # noqa: ARG001
    assert Outbox(world.engine, "others").claim(10) == []


def test_r7_after_a_day_of_trying_it_is_given_up_and_keeps_the_error(
    world: World, box: Outbox, receiver: Receiver
) -> None:
    receiver.answer = lambda handler: _answer(handler, 503)
    age(world.engine, GIVE_UP_AFTER - timedelta(seconds=1))
    send(box, receiver.url)
    [row] = rows(world.engine)
    assert (row.next_try_at, row.sent_at, row.error) == (None, None, "given up: answered 503")


def test_r7_what_nobody_sends_is_marked_after_a_day_and_forgotten_after_a_week(
    world: World, box: Outbox
) -> None:
    box.tidy()
    assert rows(world.engine)[0].next_try_at is not None
    age(world.engine, GIVE_UP_AFTER)
    box.tidy()
    [row] = rows(world.engine)
    assert row.next_try_at is None
    assert "no process had a webhook" in row.error
    age(world.engine, timedelta(days=7), is_due=False)
    box.tidy()
    assert rows(world.engine) == []


def test_r7_what_a_dead_sender_left_is_given_up_a_little_later(world: World, box: Outbox) -> None:
    box.claim(10)
    age(world.engine, GIVE_UP_AFTER)
    box.tidy()
    assert rows(world.engine)[0].next_try_at is not None, "a sender that lives may still settle it"
    age(world.engine, GIVE_UP_AFTER + PAUSE_MOST + CLAIM)
    box.tidy()
    assert rows(world.engine)[0].next_try_at is None


def test_r7_a_process_that_stops_does_not_wait_for_a_webhook_that_hangs(
    world: World, box: Outbox, receiver: Receiver
) -> None:
    def hang(_: BaseHTTPRequestHandler) -> None:
        receiver.let_go.wait(PATIENCE)

    receiver.answer = hang
    sender = Sender(box, Webhook(receiver.url), Figures())
    sender.start()
    assert receiver.arrived.wait(PATIENCE)
    sender.stop()
    [row] = rows(world.engine)
    assert (row.error, row.sent_at) == ("no answer before this process stopped", None)
    assert row.next_try_at is not None, "the outbox keeps it for whoever sends next"


def test_the_log_never_has_the_webhooks_path(
    world: World, box: Outbox, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    """httpx logs each request with its whole URL, which is often all it takes to use a webhook."""
    caplog.set_level("INFO")
    sender = Sender(box, Webhook(receiver.url), Figures())
    sender.start()
    assert receiver.arrived.wait(PATIENCE)
    sender.stop()
    assert rows(world.engine)[0].sent_at is not None
    assert "hook" not in "".join(record.getMessage() for record in caplog.records)


def test_pauses_double_up_to_a_quarter_of_an_hour() -> None:
    assert [pause_after(tries).total_seconds() for tries in (1, 2, 3, 9, 10_000)] == [5, 10, 20, 900, 900]


def test_the_webhook_is_configuration_and_its_secret_is_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(WEBHOOK_VARIABLE, "https://hooks.example/T0/secret")
    monkeypatch.setenv(SECRET_VARIABLE, SECRET)
    webhook = OutsideSettings.from_words(listen_http="off").webhook
    assert webhook == Webhook("https://hooks.example/T0/secret", SECRET)
    assert SECRET not in repr(webhook)
    assert "T0" not in repr(webhook)
    for url in ("ftp://x/y", "hooks.example", "http://", "http://a b/", "http://h:99999/"):
        with pytest.raises(BadSchedule, match="--webhook is not an http"):
            OutsideSettings.from_words(listen_http="off", webhook=url)
