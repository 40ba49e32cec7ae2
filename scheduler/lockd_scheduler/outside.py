"""What a service shows and tells to the world: the HTTP side and the webhook. Jobs need neither.

Both have an engine and threads of their own, so that whoever looks, or a webhook that hangs, takes
nothing from the scheduler.
"""

import logging
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from lockd_scheduler.engines import open_engine
from lockd_scheduler.errors import BadSchedule
from lockd_scheduler.figures import Figures
from lockd_scheduler.outboxes import Outbox
from lockd_scheduler.sending import Sender, Webhook
from lockd_scheduler.web import Standing, Users, app
from lockd_scheduler.web.serving import Address, HttpSide

logger = logging.getLogger("lockd_scheduler")

DEFAULT_LISTEN = "127.0.0.1:7423"
OFF = "off"
WEBHOOK_VARIABLE = "LOCKD_SCHEDULER_WEBHOOK"
SECRET_VARIABLE = "LOCKD_SCHEDULER_WEBHOOK_SECRET"  # noqa: S105 - the variable's name


class OutsideWords(TypedDict, total=False):
    """What a user may say of it. See `lockd_scheduler.Cron.serve`."""

    listen_http: str | None
    auth_file: str | None
    insecure: bool
    webhook: str | None


@dataclass(frozen=True)
class OutsideSettings:
    """The same, checked."""

    listen: Address | None
    """None: no HTTP side."""
    is_chosen: bool
    """Whether somebody named the address: then it has to be free."""
    users: Users | None
    webhook: Webhook | None

    @classmethod
    def from_words(
        cls,
        *,
        listen_http: str | None = None,
        auth_file: str | None = None,
        insecure: bool = False,
        webhook: str | None = None,
    ) -> "OutsideSettings":
        """Check what a user wrote; the environment stands in for the webhook. Raises BadSchedule."""
        text = listen_http or DEFAULT_LISTEN
        listen = None if text == OFF else Address.parse(text)
        users = None if auth_file is None else Users.load(Path(auth_file))
        if listen is not None and not listen.is_loopback and users is None and not insecure:
            raise BadSchedule(
                f"--listen-http {listen} can be reached from other machines: that needs --auth-file FILE,"
                " or --insecure to let everyone who reaches it do everything"
            )
        url = webhook or os.environ.get(WEBHOOK_VARIABLE)
        secret = os.environ.get(SECRET_VARIABLE)
        return cls(listen, listen_http is not None, users, Webhook(url, secret or None) if url else None)


class Outside:
    """The listening socket, from the start; what answers on it, and what sends, once there is a service."""

    def __init__(self, settings: OutsideSettings) -> None:
        """Raises BadSchedule if the address that was named can't be listened on."""
        self._settings = settings
        self._bound = _bind(settings)
        self._ends: list[Callable[[], None]] = [] if self._bound is None else [self._bound.close]

    @property
    def port(self) -> int | None:
        """Where HTTP is answered; None if it is not."""
        return None if self._bound is None else int(self._bound.getsockname()[1])

    def start(
        self, db: str, scope: str, *, standing: Callable[[], Standing | None], figures: Figures
    ) -> None:
        """Begin to answer and to send. The ledger's tables are there by now."""
        engine = open_engine(db)
        self._ends.append(engine.dispose)
        sender = Sender(Outbox(engine, scope), self._settings.webhook, figures)
        sender.start()
        self._ends.append(sender.stop)
        if self._bound is None or self._settings.listen is None:
            return
        application = app(
            engine,
            scope,
            users=self._settings.users,
            local_names_only=self._settings.listen.is_loopback,
            standing=standing,
            figures=figures,
        )
        side = HttpSide(application, self._bound)
        side.start()
        self._ends.append(side.stop)
        logger.info("http://%s:%d", self._settings.listen.host, side.port)

    def stop(self) -> None:
        """End it all. Idempotent."""
        while self._ends:
            self._ends.pop()()


def _bind(settings: OutsideSettings) -> socket.socket | None:
    if settings.listen is None:
        return None
    try:
        return settings.listen.bind()
    except OSError as error:
        told = f"can't listen on {settings.listen}: {error.strerror or error}"
        if settings.is_chosen:
            raise BadSchedule(f"--listen-http: {told}") from None
        # Two schedulers on one machine: the second one's page is not worth its jobs.
        logger.warning("no HTTP side: %s; name another with --listen-http", told)
        return None
