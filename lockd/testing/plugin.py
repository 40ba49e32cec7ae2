"""The pytest plugin: fixtures `lockd_server`, `lockd_client` and `lockd_cluster`.

It comes with lockd, so pytest loads it in every run of every project that has lockd installed: it
imports nothing of ours until a test asks for a fixture.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from lockd.client.sync import Client
    from lockd.testing.cluster import Cluster
    from lockd.testing.server import Server

_ENDPOINTS = "LOCKD_ENDPOINTS"


@pytest.fixture
def lockd_server(monkeypatch: pytest.MonkeyPatch) -> "Iterator[Server]":
    """A lockd server for this test alone, in this process, whose clock the test turns.

    LOCKD_ENDPOINTS names it meanwhile, so `lockd.Client()` finds it.
    """
    from lockd.testing.server import running_server  # noqa: PLC0415 - see the module's text

    with running_server() as server:
        monkeypatch.setenv(_ENDPOINTS, server.endpoint)
        yield server


@pytest.fixture
def lockd_client(lockd_server: "Server") -> "Client":
    """A `lockd.Client` of `lockd_server`, closed after the test."""
    return lockd_server.client()


@pytest.fixture
def lockd_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> "Iterator[Cluster]":
    """Three real lockd processes for this test alone, to be killed, paused and cut off.

    LOCKD_ENDPOINTS names them meanwhile, so `lockd.Client()` finds them.
    """
    from lockd.testing.cluster import running_cluster  # noqa: PLC0415 - see the module's text

    with running_cluster(tmp_path) as cluster:
        monkeypatch.setenv(_ENDPOINTS, cluster.endpoints)
        yield cluster
