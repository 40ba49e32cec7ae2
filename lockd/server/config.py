"""What `lockd serve` is told: flags, `LOCKD_*` environment and a TOML file say the same things.

Flags win over the environment, which wins over the file. Whatever is wrong becomes one
`ConfigError` whose text names the setting, where it came from, and what would be right.
"""

import ipaddress
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, Self

import pydantic

from lockd.ids import NODE_ID_MAX, NodeId, ascii_int

ENV_PREFIX = "LOCKD_"
_OTHER_VARIABLES = frozenset(
    f"LOCKD_{name}"
    for name in (
        *("CONFIG", "ENDPOINTS", "USER", "PASSWORD", "LOCK", "TOKEN", "FENCE", "TTL_MS", "MODE"),
        *("DB", "SCHEDULER_DB", "PG_BIN"),
    )
)


class ConfigError(Exception):
    """Wrong configuration: one line that says what, where it was set, and what to do."""


class Address(NamedTuple):
    """Host and port. Its text puts an IPv6 host in brackets."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    @property
    def is_every_address(self) -> bool:
        """It can be listened on, and not dialled."""
        try:
            return ipaddress.ip_address(self.host).is_unspecified
        except ValueError:
            return False

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `host:port` or `[v6]:port`. Raises ValueError."""
        host, colon, port = text.strip().rpartition(":")
        bare = host.removeprefix("[").removesuffix("]")
        if not colon or not bare or (":" in bare and not host.startswith("[")):
            raise ValueError(f"{text!r} is not HOST:PORT (an IPv6 host goes in brackets)")
        try:
            bare.encode("idna")
        except UnicodeError:
            raise ValueError(f"{bare!r} can't be the name of a host") from None
        return cls(bare, ascii_int(port, low=1, high=65535))


def _parse_address(value: object) -> object:
    return Address.parse(value) if isinstance(value, str) else value


def _parse_directory(value: object) -> object:
    if value == "":
        raise ValueError("it is empty; say . for the directory you are in")
    return value


def _parse_cluster(value: object) -> object:
    if isinstance(value, str):
        value = dict(_members(value))
    return value


def _members(text: str) -> Iterator[tuple[NodeId, Address]]:
    seen: set[int] = set()
    addresses: dict[Address, NodeId] = {}
    for part in text.split(","):
        number, equals, address = part.strip().partition("=")
        if not equals:
            raise ValueError(f"{part.strip()!r} is not ID=HOST:PORT")
        node = NodeId(ascii_int(number, low=1, high=NODE_ID_MAX))
        if node in seen:
            raise ValueError(f"node {node} is named twice")
        found = Address.parse(address)
        if found in addresses:
            raise ValueError(f"{found} is given to nodes {addresses[found]} and {node}")
        seen.add(node)
        addresses[found] = node
        yield node, found


Endpoint = Annotated[Address, pydantic.BeforeValidator(_parse_address)]


class ServerConfig(pydantic.BaseModel):
    """A node's settings. Durations in ms; addresses as HOST:PORT."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    node_id: Annotated[NodeId, pydantic.Field(ge=1, le=NODE_ID_MAX)] = NodeId(1)
    data_dir: Annotated[Path, pydantic.BeforeValidator(_parse_directory)] = Path("lockd-data")
    listen_client: Endpoint = Address("127.0.0.1", 7420)
    advertise_client: Endpoint | None = None
    listen_peer: Endpoint = Address("127.0.0.1", 7421)
    advertise_peer: Endpoint | None = None
    listen_http: Endpoint = Address("127.0.0.1", 7422)
    advertise_http: Endpoint | None = None
    initial_cluster: Annotated[dict[NodeId, Endpoint] | None, pydantic.BeforeValidator(_parse_cluster)] = None
    join: Endpoint | None = None
    election_timeout_ms: Annotated[int, pydantic.Field(ge=100, le=60_000)] = 500
    heartbeat_ms: Annotated[int, pydantic.Field(ge=10, le=10_000)] = 50
    snapshot_log_bytes: Annotated[int, pydantic.Field(ge=64 * 1024, le=2**50)] = 64 * 1024 * 1024
    """Log written since the last snapshot before the next one is taken."""
    tls_cert: Path | None = None
    tls_key: Path | None = None
    tls_peer_cert: Path | None = None
    tls_peer_key: Path | None = None
    tls_peer_ca: Path | None = None
    auth_file: Path | None = None
    insecure: bool = False
    log_format: Literal["text", "json"] = "text"

    @property
    def client_address(self) -> Address:
        """What clients are told to dial."""
        return self.advertise_client or self.listen_client

    @property
    def peer_address(self) -> Address:
        """What the other nodes are told to dial: what they were founded with, if nothing else will do."""
        if self.advertise_peer is None and self.listen_peer.is_every_address and self.initial_cluster:
            return self.initial_cluster[self.node_id]
        return self.advertise_peer or self.listen_peer

    @property
    def http_address(self) -> Address:
        return self.advertise_http or self.listen_http

    @property
    def founding_members(self) -> dict[NodeId, Address]:
        """Who the cluster begins with: `initial_cluster`, or this node alone; nobody to join another."""
        if self.join is not None:
            return {}
        return self.initial_cluster or {self.node_id: self.peer_address}

    @pydantic.model_validator(mode="after")
    def _check_together(self) -> Self:
        if self.initial_cluster is not None and self.node_id not in self.initial_cluster:
            raise ValueError(
                f"initial-cluster does not name this node: add {self.node_id}={self.peer_address}"
            )
        if self.initial_cluster is not None and len(self.initial_cluster) not in (1, 3, 5, 7):
            raise ValueError(
                f"initial-cluster names {len(self.initial_cluster)} nodes: it must be 1, 3, 5 or 7"
            )
        self._check_join()
        if self.election_timeout_ms < 4 * self.heartbeat_ms:
            raise ValueError(
                f"election-timeout-ms {self.election_timeout_ms} must be at least "
                f"4 times heartbeat-ms {self.heartbeat_ms}"
            )
        for cert, key, name in (
            (self.tls_cert, self.tls_key, "tls"),
            (self.tls_peer_cert, self.tls_peer_key, "tls-peer"),
        ):
            if (cert is None) != (key is None):
                raise ValueError(f"{name}-cert and {name}-key go together")
        if (self.tls_peer_cert is None) != (self.tls_peer_ca is None):
            raise ValueError("tls-peer-ca is needed with tls-peer-cert: peers authenticate each other")
        self._check_exposure()
        self._check_dialled()
        return self

    def _check_join(self) -> None:
        if self.join is None:
            return
        if self.initial_cluster is not None:
            raise ValueError("join and initial-cluster: a new node joins a cluster or founds one, not both")
        if self.join in (self.peer_address, self.listen_peer):
            raise ValueError(f"join {self.join} is this node itself: name one that is in the cluster")
        if "node_id" not in self.model_fields_set:
            raise ValueError("join needs node-id: a number that the cluster has never had")

    def _check_exposure(self) -> None:
        if self.insecure:
            return
        for name, address, cert in (
            ("listen-client", self.listen_client, self.tls_cert),
            ("listen-peer", self.listen_peer, self.tls_peer_cert),
            ("listen-http", self.listen_http, self.tls_cert),
        ):
            if cert is None and not address.is_loopback:
                raise ValueError(
                    f"{name} {address} is not a loopback address: "
                    "give TLS files, or --insecure in a trusted network"
                )

    def _check_dialled(self) -> None:
        for name, address, who in (
            ("peer", self.peer_address, "the other nodes"),
            ("client", self.client_address, "clients"),
        ):
            if address.is_every_address:
                raise ValueError(
                    f"listen-{name} {address} is every address of this machine: "
                    f"say with advertise-{name} which one {who} are to dial"
                )


def load(
    flags: Mapping[str, object], environ: Mapping[str, str], config_file: Path | None = None
) -> tuple[ServerConfig, list[str]]:
    """The settings in force, and warnings to log. Raises ConfigError.

    `flags` has only what was given on the command line, under ServerConfig's field names.
    """
    path = config_file or (Path(environ["LOCKD_CONFIG"]) if environ.get("LOCKD_CONFIG") else None)
    sources = dict.fromkeys((file_values := _read_file(path)), f"in {path}")
    env_values, warnings = _read_environment(environ)
    sources |= {name: f"from {ENV_PREFIX}{name.upper()}" for name in env_values}
    sources |= dict.fromkeys(flags, "from the command line")
    try:
        return ServerConfig.model_validate(file_values | env_values | dict(flags)), warnings
    except pydantic.ValidationError as error:
        raise ConfigError(_one_line(error, sources)) from error


def _read_file(path: Path | None) -> dict[str, object]:
    if path is None:
        return {}
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the configuration file {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
    return {name.replace("-", "_"): value for name, value in values.items()}


def _read_environment(environ: Mapping[str, str]) -> tuple[dict[str, object], list[str]]:
    values: dict[str, object] = {}
    warnings: list[str] = []
    for variable, value in sorted(environ.items()):
        if not value or not variable.startswith(ENV_PREFIX) or variable in _OTHER_VARIABLES:
            continue  # compose files and charts leave what is not set empty
        name = variable.removeprefix(ENV_PREFIX).lower()
        if name in ServerConfig.model_fields:
            values[name] = value
        else:
            # Kubernetes injects LOCKD_SERVICE_HOST and the like for a service named lockd.
            warnings.append(f"{variable} is set but is not a setting of lockd; it is ignored")
    return values, warnings


def _one_line(error: pydantic.ValidationError, sources: Mapping[str, str]) -> str:
    first = error.errors()[0]
    text = str(first["msg"]).removeprefix("Value error, ")
    if not first["loc"]:
        return text
    name = str(first["loc"][0])
    shown = name.replace("_", "-")
    if first["type"] == "extra_forbidden":
        return f"{shown} ({sources.get(name, 'given')}) is not a setting of lockd"
    return f"{shown} ({sources.get(name, 'given')}): {text}; got {str(first['input'])[:80]!r}"
