"""What a client is told at its start: where the nodes are, and who it is there."""

import os
import socket
import ssl
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from lockd.client import clock
from lockd.client.lease import Clock

DEFAULT_PORT: Final = 7420
DEFAULT_ENDPOINTS: Final = f"127.0.0.1:{DEFAULT_PORT}"
ENDPOINTS_VARIABLE: Final = "LOCKD_ENDPOINTS"
_UNIX: Final = "unix:"
_WILDCARDS = frozenset({"0.0.0.0", "::", ""})  # noqa: S104 - to be refused, not listened on


class Endpoint(NamedTuple):
    """Where a node listens for clients: `unix:/path` and no port for a Unix socket."""

    host: str
    port: int

    @property
    def path(self) -> str:
        """Of a Unix socket, else ""."""
        return self.host.removeprefix(_UNIX) if self.host.startswith(_UNIX) else ""

    def __str__(self) -> str:
        if self.path:
            return self.host
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @classmethod
    def parse(cls, text: str) -> "Endpoint":
        """Read `host`, `host:port`, `[::1]`, `[::1]:port` or `unix:/path`. Raises ValueError."""
        text = text.strip()
        if text.startswith(_UNIX):
            if not text.startswith(f"{_UNIX}/"):
                raise ValueError(f"endpoint {text!r}: expected unix:/path, from the root on")
            if not hasattr(socket, "AF_UNIX"):
                raise ValueError(f"endpoint {text!r}: this system has no Unix sockets")
            return cls(text, 0)
        if "/" in text:
            raise ValueError(f"endpoint {text!r}: expected host:port, without a scheme or a path")
        if text.startswith("["):
            host, bracket, rest = text[1:].partition("]")
            if not bracket or (rest and not rest.startswith(":")):
                raise ValueError(f"endpoint {text!r}: expected [address]:port")
            port = rest[1:]
        elif text.count(":") > 1:
            raise ValueError(f"endpoint {text!r}: an IPv6 address is written in brackets, like [::1]:7420")
        else:
            host, _, port = text.partition(":")
        if not host:
            raise ValueError(f"endpoint {text!r}: the host is missing")
        if not port:
            return cls(host, DEFAULT_PORT)
        if not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
            raise ValueError(f"endpoint {text!r}: {port!r} is not a port")
        return cls(host, int(port))


@dataclass(frozen=True, slots=True)
class ClientOptions:
    """As given to the client, checked. Nothing is looked up or connected."""

    endpoints: tuple[Endpoint, ...]
    ttl: float
    """Seconds that the session outlives its last keepalive."""
    name: str = ""
    """What others see of this client where it holds a lock."""
    tls: ssl.SSLContext | None = None
    user: str = ""
    password: str = field(default="", repr=False)
    clock: Clock = clock.now
    """By which leases end: the machine's, but for nodes under test."""

    @classmethod
    def build(
        cls,
        endpoints: str | Sequence[str] | None,
        *,
        ttl: float,
        name: str,
        tls: bool | ssl.SSLContext,
        auth: tuple[str, str] | None,
    ) -> "ClientOptions":
        """Check what the user gave. Raises ValueError that says what is wrong."""
        if not 0.5 <= ttl <= 3_600:
            raise ValueError(f"ttl is in seconds, 0.5 to 3600, not {ttl!r}")
        user, password = auth or ("", "")
        where = _endpoints(endpoints)
        if tls and (sockets := [str(endpoint) for endpoint in where if endpoint.path]):
            raise ValueError(f"endpoint {sockets[0]!r}: there is no TLS over a Unix socket")
        return cls(
            endpoints=where,
            ttl=ttl,
            name=name,
            tls=ssl.create_default_context() if tls is True else tls or None,
            user=user,
            password=password,
            clock=clock.of_endpoints(where),
        )


def _endpoints(given: str | Sequence[str] | None) -> tuple[Endpoint, ...]:
    if given is None:
        given = os.environ.get(ENDPOINTS_VARIABLE) or DEFAULT_ENDPOINTS
    texts = given.split(",") if isinstance(given, str) else given
    endpoints = tuple(dict.fromkeys(Endpoint.parse(text) for text in texts if text.strip()))
    if not endpoints:
        raise ValueError("no endpoint is given: expected host:port, and more after commas")
    return endpoints


class EndpointRing:
    """In which order the nodes are tried: the configured ones and those that members reported (K6)."""

    def __init__(self, configured: Sequence[Endpoint]) -> None:
        self._all = list(configured)
        self._next = 0

    def __len__(self) -> int:
        return len(self._all)

    def all(self) -> tuple[Endpoint, ...]:
        return tuple(self._all)

    def next(self) -> Endpoint:
        """The node to try now; the one after it is tried next."""
        endpoint = self._all[self._next % len(self._all)]
        self._next = (self._next + 1) % len(self._all)
        return endpoint

    def reported(self, texts: Sequence[str]) -> None:
        """A member told where the clients' side of the members is."""
        for text in texts:
            try:
                endpoint = Endpoint.parse(text)
            except ValueError:
                continue  # a node without an address for clients
            # What a node says may lead to another node, and never to a socket of this machine.
            if not endpoint.path and endpoint.host not in _WILDCARDS and endpoint not in self._all:
                self._all.append(endpoint)
