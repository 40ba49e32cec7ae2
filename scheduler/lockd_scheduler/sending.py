"""Sending notices to a webhook, on a thread of the service that nothing else waits for.

    POST, Content-Type: application/json
    Idempotency-Key: <the same for every try>
    Lockd-Signature: t=<unix seconds>,v1=<hex of HMAC-SHA256 over "<t>.<body>">     if there is a secret

A status of 2xx is an answer; anything else is tried again. Every replica with a webhook sends: no office
is needed to tell of what is committed, and notices also leave while nobody is in office.
"""

import asyncio
import hashlib
import hmac
import json
import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from urllib.parse import urlsplit

import httpx

from lockd_scheduler.errors import BadSchedule
from lockd_scheduler.figures import Figures
from lockd_scheduler.outboxes import CLAIM, Notice, Outbox
from lockd_scheduler.worker import LEDGER_ERRORS, first_line

logger = logging.getLogger("lockd_scheduler")

TRY_SECONDS = 10.0
"""All of a try: name, connection, request and the answer's head."""
TOGETHER_MAX = 20
POLL_SECONDS = 1.0
TIDY_SECONDS = 600.0
FAULT_PAUSE_SECONDS = 60.0
THREAD_NAME = "lockd-scheduler-notices"
LAST_ANSWER_SECONDS = 0.5
"""So long a try that is under way is waited for when the process stops."""
_STOP_SECONDS = 5.0
_CUT_SHORT = "no answer before this process stopped"

assert CLAIM.total_seconds() > 2 * TRY_SECONDS


@dataclass(frozen=True)
class Webhook:
    """Where notices go."""

    url: str = field(repr=False)
    secret: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        """Raises BadSchedule for what is not a URL."""
        try:
            parts = urlsplit(self.url)
            is_url = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
        except ValueError:
            is_url = False
        if not is_url or not self.url.isprintable() or " " in self.url:
            raise BadSchedule("--webhook is not an http:// or https:// URL")

    @property
    def place(self) -> str:
        """The host alone, for the log: a path or a query may be a secret."""
        return urlsplit(self.url).hostname or ""

    def headers(self, notice: Notice, body: bytes, *, at: int) -> dict[str, str]:
        """What goes out with a notice's body at that second."""
        headers = {
            "Content-Type": "application/json",
            "Idempotency-Key": notice.key,
            "User-Agent": "lockd-scheduler",
        }
        if self.secret:
            signed = hmac.digest(self.secret.encode(), f"{at}.".encode() + body, hashlib.sha256).hex()
            headers["Lockd-Signature"] = f"t={at},v1={signed}"
        return headers


class Sender:
    """The thread. Without a webhook it only gives up what is too old."""

    def __init__(self, box: Outbox, webhook: Webhook | None, figures: Figures) -> None:
        self._box = box
        self._webhook = webhook
        self._figures = figures
        self._is_stopping = threading.Event()
        self._is_told = False
        self._tries = _Tries()
        # httpx logs whole URLs, and that of a webhook is often the key to it.
        logging.getLogger("httpx").addFilter(_is_not_ours)
        self._thread = threading.Thread(target=self._send_on, name=THREAD_NAME, daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """Begin no other try, and give up those that are not answered by now. Idempotent.

        Their notices stay in the outbox, and are tried again by whoever sends next.
        """
        self._is_stopping.set()
        self._tries.cut_short()
        if self._thread.ident is not None:
            self._thread.join(_STOP_SECONDS)

    def send_due(self, webhook: Webhook) -> int:
        """Try what is due, a bounded number together; how many it were. Raises SQLAlchemy's errors."""
        notices = self._box.claim(TOGETHER_MAX)
        if notices:
            errors = asyncio.run(self._tries.carry(webhook, notices))
            self._box.settle(list(zip(notices, errors, strict=True)))
            self._tell(webhook, errors)
        return len(notices)

    def _send_on(self) -> None:
        tidy_next = 0.0
        pause = 0.0
        while not self._is_stopping.wait(pause):
            pause = POLL_SECONDS if self._webhook is not None else TIDY_SECONDS
            try:
                if time.monotonic() >= tidy_next:
                    self._box.tidy()
                    tidy_next = time.monotonic() + TIDY_SECONDS
                if self._webhook is not None and self.send_due(self._webhook) == TOGETHER_MAX:
                    pause = 0.0
            except LEDGER_ERRORS as error:
                logger.info("notices wait, the ledger does not answer: %s", first_line(error))
            except Exception:  # jobs go on without notices; the log and the metrics say so
                logger.exception("a fault in sending notices, trying on")
                pause = FAULT_PAUSE_SECONDS

    def _tell(self, webhook: Webhook, errors: list[str | None]) -> None:
        for error in errors:
            self._figures.tried("sent" if error is None else "failed")
        failed = [error for error in errors if error is not None]
        if failed and not self._is_told:
            logger.warning("webhook %s: %s; trying on", webhook.place, failed[0])
        elif not failed and self._is_told:
            logger.info("webhook %s takes notices again", webhook.place)
        self._is_told = bool(failed)


def _is_not_ours(record: logging.LogRecord) -> bool:
    return record.threadName != THREAD_NAME


class _Tries:
    """Tries that go on together, and can be cut short from another thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._is_cut_short = False
        self._tell: Callable[[], object] | None = None

    def cut_short(self) -> None:
        """Give up, in a moment, what is not answered, now and from now on."""
        with self._lock:
            self._is_cut_short = True
            if self._tell is not None:
                self._tell()

    async def carry(self, webhook: Webhook, notices: list[Notice]) -> list[str | None]:
        """Try each notice once; what went wrong with each, or None."""
        loop, stop = asyncio.get_running_loop(), asyncio.Event()
        with self._lock:
            if self._is_cut_short:
                stop.set()
            self._tell = partial(loop.call_soon_threadsafe, stop.set)
        try:
            async with httpx.AsyncClient(follow_redirects=False, timeout=TRY_SECONDS) as client:
                tries = [asyncio.create_task(_try(client, webhook, notice)) for notice in notices]
                giving_up = asyncio.create_task(_cancel_late(tries, stop))
                answers = await asyncio.gather(*tries, return_exceptions=True)
                giving_up.cancel()
        finally:
            with self._lock:
                self._tell = None
        return [_error_of(answer) for answer in answers]


async def _cancel_late(tries: list[asyncio.Task[str | None]], stop: asyncio.Event) -> None:
    await stop.wait()
    await asyncio.sleep(LAST_ANSWER_SECONDS)
    for one in tries:
        one.cancel()


def _error_of(answer: str | BaseException | None) -> str | None:
    if isinstance(answer, asyncio.CancelledError):
        return _CUT_SHORT
    if isinstance(answer, BaseException):
        raise answer
    return answer


async def _try(client: httpx.AsyncClient, webhook: Webhook, notice: Notice) -> str | None:
    """One try; what went wrong, or None."""
    told: Mapping[str, object] = {
        **notice.payload,
        "id": notice.key,
        "made_at": notice.made_at.isoformat(),
        "try": notice.tries,
    }
    body = json.dumps(told, ensure_ascii=False).encode("utf-8", "replace")
    try:
        # httpx bounds each read; this bounds the whole, also for an answer that drips.
        async with asyncio.timeout(TRY_SECONDS):
            headers = webhook.headers(notice, body, at=int(time.time()))
            async with client.stream("POST", webhook.url, content=body, headers=headers) as answer:
                return None if answer.is_success else f"answered {answer.status_code}"
    except TimeoutError:
        return f"no answer within {TRY_SECONDS:g} s"
    except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
        return f"{type(error).__name__}: {first_line(error)}"
