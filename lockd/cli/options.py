"""The options that commands share: where the cluster is, who asks, how answers look, durations."""

import functools
import json
import math
import os
import re
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar, cast

import click

from lockd.cli.exits import RefusedError
from lockd.client.aio import AsyncClient
from lockd.client.options import DEFAULT_ENDPOINTS, ENDPOINTS_VARIABLE
from lockd.client.sync import Client

F = TypeVar("F", bound=Callable[..., Any])
C = TypeVar("C", Client, AsyncClient)

USER_VARIABLE: Final = "LOCKD_USER"
PASSWORD_VARIABLE: Final = "LOCKD_PASSWORD"  # noqa: S105 - its name, not what is in it

PATIENCE_SECONDS: Final = 5.0
"""How long a single question waits for a node that answers: some elections long."""

_UNIT_SECONDS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_PART: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h|d)", re.ASCII)
_WHOLE: Final = re.compile(rf"(?:{_PART.pattern})+", re.ASCII)


def parse_duration(text: str) -> float:
    """Seconds from 10s, 500ms, 1m30s, 1.5h, or 0. Raises ValueError."""
    if text == "0":
        return 0.0
    if not _WHOLE.fullmatch(text):
        raise ValueError(f"{text!r} is not a duration: 10s, 500ms, 1m30s")
    return math.fsum(float(number) * _UNIT_SECONDS[unit] for number, unit in _PART.findall(text))


class Duration(click.ParamType[float | None]):
    """A duration, as seconds. With `or_forever` the word `forever` is None."""

    name = "duration"

    def __init__(self, *, or_forever: bool = False) -> None:
        self._or_forever = or_forever

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float | None:
        if not isinstance(value, str):
            return float(value)
        if self._or_forever and value == "forever":
            return None
        try:
            return parse_duration(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class WholeNumber(click.IntRange):
    """A click.IntRange whose refusal of what is no number at all reads as a sentence."""

    name = "whole number"


class LockName(click.ParamType[str]):
    """A lock's name: the cluster has the other rules, these are what can't be sent to it."""

    name = "name"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        text = str(value)
        if not text:
            self.fail("a lock's name can't be empty", param, ctx)
        try:
            text.encode()
        except UnicodeEncodeError:  # arguments that are no UTF-8 come as surrogates
            self.fail(f"a lock's name is UTF-8, and {text!r} is not", param, ctx)
        return text


class JsonObject(click.ParamType[dict[str, Any]]):
    """A JSON object, as a dict."""

    name = "json"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> dict[str, Any]:
        try:
            found = json.loads(value)
        except ValueError as error:
            self.fail(f"{value!r} is not JSON: {error}", param, ctx)
        if not isinstance(found, dict):
            self.fail(f"{value!r} is not a JSON object", param, ctx)
        return found


@dataclass(frozen=True, slots=True)
class Access:
    """How to reach the cluster, and as whom."""

    endpoints: str
    user: str
    password: str
    tls_ca: Path | None

    def client(self, *, ttl: float = PATIENCE_SECONDS, name: str = "") -> Client:
        """A client, which connects at its first use. `ttl` in seconds is also its patience."""
        return self._made(Client, ttl=ttl, name=name)

    def async_client(self, *, ttl: float = PATIENCE_SECONDS, name: str = "") -> AsyncClient:
        """The same for asyncio."""
        return self._made(AsyncClient, ttl=ttl, name=name)

    def _made(self, kind: type[C], *, ttl: float, name: str) -> C:
        tls: bool | ssl.SSLContext = False
        if self.tls_ca is not None:
            try:
                tls = ssl.create_default_context(cafile=str(self.tls_ca))
            except OSError as error:
                raise RefusedError(f"--tls-ca {self.tls_ca}: {error}") from error
        auth = (self.user, self.password) if self.user else None
        try:
            return kind(self.endpoints, ttl=ttl, name=name, tls=tls, auth=auth)
        except ValueError as error:
            raise RefusedError(str(error)) from error


def with_access(command: F) -> F:
    """Give a command --endpoints, --user, --password-file and --tls-ca, as its argument `access`."""

    @functools.wraps(command)
    def call(
        *, endpoints: str, user: str, password_file: Path | None, tls_ca: Path | None, **rest: Any
    ) -> Any:
        return command(access=Access(endpoints, user, _password(user, password_file), tls_ca), **rest)

    for option in reversed(_ACCESS):
        option(call)
    return cast("F", call)


with_meta = click.option(
    "--meta", type=JsonObject(), metavar="JSON", help="What others see while it is held: an object."
)
with_shared = click.option("--shared", is_flag=True, help="Share it with others who do: readers, say.")
with_max_hold = click.option(
    "--max-hold", type=Duration(), help="Have the cluster take it back after so long, however it is renewed."
)
as_json = click.option("--json", "as_json", is_flag=True, help="Answer with one JSON document.")

_FILE: Final = click.Path(path_type=Path)
_ACCESS: Final = (
    click.option(
        "--endpoints",
        envvar=ENDPOINTS_VARIABLE,
        default=DEFAULT_ENDPOINTS,
        show_default=True,
        metavar="HOST:PORT,...",
        help=f"Nodes to ask; any will do. Or {ENDPOINTS_VARIABLE}.",
    ),
    click.option("--user", envvar=USER_VARIABLE, default="", help=f"Who asks. Or {USER_VARIABLE}."),
    click.option(
        "--password-file", type=_FILE, metavar="FILE", help=f"Their password. Or {PASSWORD_VARIABLE}."
    ),
    click.option(
        "--tls-ca", type=_FILE, metavar="FILE", help="Use TLS, with nodes whose certificates this signs."
    ),
)


def _password(user: str, file: Path | None) -> str:
    if file is None:
        password = os.environ.get(PASSWORD_VARIABLE, "")
    else:
        try:
            password = file.read_text(encoding="utf-8").rstrip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            raise RefusedError(f"--password-file {file}: {error}") from error
    if user and not password:
        raise RefusedError(f"user {user!r} needs --password-file or {PASSWORD_VARIABLE}")
    if file is not None and not user:
        raise RefusedError(f"--password-file needs --user or {USER_VARIABLE}")
    return password
