"""The HTTP side of a test's ledger, served by a real uvicorn on a free port."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import httpx

from lockd.passwords import hash_password
from lockd_scheduler.figures import Figures
from lockd_scheduler.web import Standing, Users, app
from lockd_scheduler.web.serving import Address, HttpSide
from tests.scheduler.harness import Process, World

PASSWORDS = {"vera": "viewer", "otto": "operator", "anna": "admin"}
"""Each user's password is the name of their role."""

_hashed = cache(hash_password)


@dataclass
class Site:
    """A world's ledger over HTTP."""

    world: World
    process: Process
    http: httpx.Client
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def as_user(self, name: str) -> httpx.Client:
        """A client that logs in as one of PASSWORDS, by HTTP Basic."""
        return httpx.Client(base_url=self.url, auth=(name, PASSWORDS[name]))


@contextmanager
def served(
    world: World,
    *,
    users: Users | None = None,
    standing: Standing | None = None,
    figures: Figures | None = None,
) -> Iterator[Site]:
    """Serve the ledger of a world whose jobs are declared; a process of it is in office."""
    process = world.process().elected(1)
    application = app(world.engine, "ops", users=users, standing=lambda: standing, figures=figures)
    side = HttpSide(application, Address("127.0.0.1", 0).bind())
    side.start()
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{side.port}") as http:
            yield Site(world, process, http, side.port)
    finally:
        side.stop()


def auth_file(folder: Path) -> Path:
    """One user of each role."""
    path = folder / "users.toml"
    path.write_text(
        "".join(
            f'[users.{name}]\npassword_scrypt = "{_hashed(role)}"\nroles = ["{role}"]\n'
            for name, role in PASSWORDS.items()
        )
    )
    return path
