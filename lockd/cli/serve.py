"""`lockd serve`: one node, until it is told to stop."""

import logging
import os
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import click

from lockd.cli import logs
from lockd.cli.exits import RefusedError
from lockd.disk.errors import DataDirError
from lockd.errors import CorruptData
from lockd.server import app
from lockd.server.config import ConfigError, ServerConfig, load

log = logging.getLogger("lockd")

_HELP: Final = {
    "node_id": ("N", "This node's number in the cluster."),
    "data_dir": ("DIR", "Where its log is kept."),
    "listen_client": ("HOST:PORT", "Where clients connect."),
    "advertise_client": ("HOST:PORT", "What clients are told to dial, if not --listen-client."),
    "listen_peer": ("HOST:PORT", "Where the other nodes connect."),
    "advertise_peer": ("HOST:PORT", "What the other nodes are told to dial, if not --listen-peer."),
    "listen_http": ("HOST:PORT", "Where /healthz, /readyz and /metrics are."),
    "advertise_http": ("HOST:PORT", "What others are told of it, if not --listen-http."),
    "initial_cluster": (
        "1=HOST:PORT,2=...",
        "The nodes (1, 3, 5 or 7) that a new cluster begins with; once there is data it is ignored.",
    ),
    "join": (
        "HOST:PORT",
        "A node of the cluster that this new node is to join, where the other nodes dial it.",
    ),
    "election_timeout_ms": ("MS", "How long a silent leader is waited for before an election."),
    "heartbeat_ms": ("MS", "How often a leader says that it is there."),
    "snapshot_log_bytes": ("BYTES", "How much log is written before the next snapshot is taken."),
    "tls_cert": ("FILE", "Certificate chain for clients and HTTP, PEM."),
    "tls_key": ("FILE", "Its key."),
    "tls_peer_cert": ("FILE", "Certificate chain towards the other nodes, PEM."),
    "tls_peer_key": ("FILE", "Its key."),
    "tls_peer_ca": ("FILE", "Who signs the nodes' certificates; both ends show one."),
    "auth_file": ("FILE", "Users, hashed passwords and roles, TOML; without it everyone may do everything."),
    "insecure": ("", "Listen without TLS also on addresses that are not loopback."),
    "log_format": ("text|json", "How log lines on standard error look."),
}
"""Placeholder and help of each setting; tests hold it to ServerConfig's fields."""


def _flags() -> list[click.Parameter]:
    """One flag for each setting. They are strings here: what is wrong is said by `load`, in one place."""
    flags: list[click.Parameter] = [
        click.Option(
            ["--config", "config_file"],
            type=click.Path(path_type=Path),
            metavar="FILE",
            help="TOML file with the same settings. Flags win over LOCKD_ variables, which win over it.",
        )
    ]
    for name, field in ServerConfig.model_fields.items():
        placeholder, text = _HELP[name]
        if field.default is not None and field.annotation is not bool:
            text += f"  [default: {field.default}]"
        flag = f"--{name.replace('_', '-')}"
        if field.annotation is bool:
            flags.append(click.Option([flag, name], is_flag=True, default=None, help=text))
        else:
            flags.append(click.Option([flag, name], metavar=placeholder, help=text))
    return flags


def _serve(config_file: Path | None, **given: Any) -> int:
    flags = {name: value for name, value in given.items() if value is not None}
    release = version("lockd")
    try:
        config, warnings = load(flags, os.environ, config_file)
        logs.configure(config.log_format)
        for warning in warnings:
            log.warning("%s", warning)
        if config == ServerConfig():
            click.echo(
                f"lockd {release}: a durable single node for clients on {config.listen_client}, "
                f"its data in ./{config.data_dir}. Look with `lockd status`, stop with Ctrl-C.",
                err=True,
            )
        return app.serve(config, version=release)
    except (ConfigError, DataDirError, CorruptData) as error:
        raise RefusedError(str(error)) from error
    except Exception:
        log.critical("this node stops: a failure that it cannot act on", exc_info=True)
        return app.EXIT_FAILED


serve = click.Command(
    "serve",
    params=_flags(),
    callback=_serve,
    help="""Run one node until SIGTERM.

    Without flags it is a durable single node on 127.0.0.1 with its data in ./lockd-data. Every
    setting can also come from an environment variable (LOCKD_DATA_DIR) or the file (data-dir).

    It exits with 0 when told to stop, with 2 when its configuration, its data directory or what is
    on the disk has to be looked at first, with 1 when it failed while running.
    """,
)
