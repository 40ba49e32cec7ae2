"""Every program of docs/FENCING.md runs as it is written there; only addresses and folders differ.

A new user's project comes first: a model, `alembic init` and a first migration, all without fences.
"""

import asyncio
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
import redis.asyncio
import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from sqlalchemy.orm import Session

import lockd
from lockd.errors import StaleToken
from lockd.testing import Server
from lockd_storage import OutsideFence
from lockd_storage.http.client import HttpFence, raise_for_fence
from lockd_storage.redis import AsyncRedisFence, RedisFence
from lockd_storage.schema import upgrade
from lockd_storage.sqlalchemy import SqlFence
from tests.documents import Document
from tests.servers.moto import S3Server
from tests.servers.valkey import ValkeyServer, running_replica
from tests.storage.leases import GivenLease
from tests.storage.stores import Store, sqlite_url
from tests.storage.web import serving

TEXT = Document("FENCING.md").text
BLOCKS: list[str] = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
SQL: list[str] = re.findall(r"```sql\n(.*?)```", TEXT, re.DOTALL)
GUARDED, CONFIGURE, MIGRATION, REDIS, S3, FILES, SERVICE, CALLER = BLOCKS
GUARD_LINE = re.compile(r" +__table_args__ = .*\n")


def ran(block: str, *replaced: tuple[str, str], **given: Any) -> dict[str, Any]:
    """Run a program with its addresses replaced and these names given. The names that it has made."""
    for old, new in replaced:
        assert old in block
        block = block.replace(old, new)
    names: dict[str, Any] = {"__name__": "fencing_document", **given}
    exec(compile(block, "docs/FENCING.md", "exec"), names)
    return names


def imports(*blocks: str) -> str:
    """The lines of programs above that a later one goes by."""
    lines = [line for block in blocks for line in block.splitlines()]
    return "".join(f"{line}\n" for line in lines if re.match(r"(from|import) ", line))


class Project:
    """A user's Alembic project, as `alembic init` makes it."""

    def __init__(self, folder: Path, url: str) -> None:
        scripts = folder / "alembic"
        command.init(Config(folder / "alembic.ini", stdout=sys.stderr), str(scripts))
        self._env = scripts / "env.py"
        # The file's logging section is left out: it would be set up for all tests of the process.
        self._config = Config(attributes={})
        self._config.set_main_option("script_location", str(scripts))
        self._config.set_main_option("path_separator", "os")
        self._config.set_main_option("sqlalchemy.url", url)
        self._edit(r"target_metadata = None", 'target_metadata = config.attributes["models"]')

    def configure(self, call: str) -> None:
        self._edit(r"context\.configure\(\s*connection=connection.*?\)", call.strip())

    def migrate(self, name: str, models: Any) -> str:
        """Autogenerate, upgrade, and return what was generated."""
        self._config.attributes["models"] = models
        made = command.revision(self._config, name, autogenerate=True)
        assert made is not None
        assert not isinstance(made, list)
        command.upgrade(self._config, "head")
        return Path(made.path).read_text()

    def _edit(self, old: str, new: str) -> None:
        text, times = re.subn(old, lambda _: new, self._env.read_text(), flags=re.DOTALL)
        assert times == 1
        self._env.write_text(text)


def models_in(block: str) -> Any:
    """The metadata of the models in the document's first program."""
    classes = block[block.index("class Base") : block.index("engine =")]
    return ran(imports(block) + classes)["Base"].metadata


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    found: str = (
        sqlite_url(tmp_path) if request.param == "sqlite" else request.getfixturevalue("postgres_url")
    )
    return found


@pytest.fixture
def shop(
    url: str, tmp_path: Path, lockd_client: lockd.Client, monkeypatch: pytest.MonkeyPatch
) -> Iterator[dict[str, Any]]:
    """The names of the document's first program, which has run in a project that had no fences."""
    project = Project(tmp_path, url)
    project.migrate("first", models_in(GUARD_LINE.sub("", GUARDED)))
    plain = sa.create_engine(url)
    with plain.begin() as connection:
        connection.execute(sa.text("INSERT INTO orders (id, state) VALUES (1, 'open')"))
    project.configure(CONFIGURE)
    generated = project.migrate("guarded", models_in(GUARDED))
    for line in MIGRATION.splitlines():
        assert line.partition("#")[0].strip() in generated.replace("'", '"')
    with plain.begin() as connection, pytest.raises(sa.exc.DBAPIError):
        connection.execute(sa.text("UPDATE orders SET state = 'unfenced'"))
    plain.dispose()
    monkeypatch.setattr(lockd, "Client", lambda ttl: lockd_client if ttl else None)
    names = ran(GUARDED, ("sqlite:///shop.db", url))
    yield names
    names["engine"].dispose()


def states(shop: dict[str, Any]) -> dict[int, str]:
    with shop["engine"].connect() as connection:
        rows = connection.execute(sa.text("SELECT id, state FROM orders ORDER BY id"))
        return {int(row.id): str(row.state) for row in rows}


def test_an_existing_model_becomes_guarded(shop: dict[str, Any]) -> None:
    assert states(shop) == {1: "closed"}
    with Session(shop["engine"]) as session, pytest.raises(OutsideFence, match=r"resource.* orders"):
        session.execute(sa.text("UPDATE orders SET state = 'unfenced'"))
    with Session(shop["engine"]) as session, pytest.raises(OutsideFence, match="resource 'orders'"):
        session.execute(sa.update(shop["Order"]).values(state="unfenced"))
    assert states(shop) == {1: "closed"}


def test_the_service_and_its_caller(shop: dict[str, Any]) -> None:
    service = ran(SERVICE, **{name: shop[name] for name in ("engine", "Order", "Session", "SqlFence")})
    with serving(service["app"]) as address:
        caller = ran(CALLER, ("http://127.0.0.1:8000", address), client=shop["client"])
        assert caller["reply"].status_code == 200
        assert states(shop) == {1: "closed", 2: "closed"}
        with httpx.Client(base_url=address) as web:
            late = {"Fencing-Token": caller["lease"].fence}
            with shop["client"].lock("orders") as lease:
                HttpFence(web).install(lease)
                with pytest.raises(StaleToken):
                    raise_for_fence(web.put("/orders/3", headers=late))
            assert web.put("/orders/3").status_code == 428
    assert states(shop) == {1: "closed", 2: "closed"}


@pytest.mark.postgres
def test_the_statements_for_other_clients(postgres_url: str) -> None:
    """On PostgreSQL, through psycopg."""
    engine = sa.create_engine(postgres_url)
    metadata = models_in(GUARDED)
    metadata.create_all(engine)
    upgrade(engine)
    (block,) = SQL
    assert block.count("...;") == 1
    lease = GivenLease(33)
    statements = block.replace("cluster/incarnation/token", lease.fence)
    with psycopg.connect(postgres_url.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute(statements.replace("...;", "INSERT INTO orders VALUES (1, 'open');").encode())
    mark = SqlFence(engine).mark("orders")
    assert mark is not None
    assert mark.token == 33
    with engine.connect() as connection:
        assert connection.scalar(sa.text("SELECT state FROM orders")) == "open"
    engine.dispose()


@pytest.mark.valkey
def test_redis(valkey_server: ValkeyServer, lockd_client: lockd.Client) -> None:
    valkey_server.reset()
    port = valkey_server.port
    with running_replica(port), running_replica(port), valkey_server.client() as direct:
        at = ("redis.Redis()", f"redis.Redis(port={port})")
        names = ran(REDIS, at, client=lockd_client)
        assert direct.get("{orders}:total") == b"5"
        assert direct.get("{orders}:state") == b"closed"
        names["fence"].install(GivenLease(names["lease"].token + 1, cluster=names["lease"].fence[:32]))
        with pytest.raises(StaleToken):
            names["close"](names["lease"], keys=["{orders}:state"], args=["late"])


def test_s3(s3_server: S3Server, lockd_client: lockd.Client) -> None:
    at = (('boto3.client("s3")', "store"), ('"bucket"', f'"{s3_server.fresh_bucket()}"'))
    found = ran(S3, *at, client=lockd_client, store=s3_server.shared_client)["found"]
    assert found.names() == ["2026/11.csv"]
    assert found.get("2026/11.csv") == b"id,state"


def test_files(tmp_path: Path, lockd_client: lockd.Client) -> None:
    names = ran(FILES, ("/srv/reports", str(tmp_path)), client=lockd_client, lockd=lockd)
    assert (tmp_path / "2026" / "11.csv").read_bytes() == b"id,state"
    assert names["fence"].mark("reports:11").lock == "reports:11"


def test_the_decorator_installs_in_every_store(store: Store, lockd_client: lockd.Client) -> None:
    @lockd_client.locked("orders", fence=store.fence)
    def add(*, lease: lockd.Lease = lockd.HELD) -> int:
        with store.fence.write(lease) as handle:
            store.add(handle, lease)
        return lease.token

    @lockd_client.locked("orders", fence=store.fence)
    async def add_from_async_code(*, lease: lockd.Lease = lockd.HELD) -> int:
        return await asyncio.to_thread(write, lease)

    def write(lease: lockd.Lease) -> int:
        with store.fence.write(lease) as handle:
            store.add(handle, lease)
        return lease.token

    tokens = [add(), asyncio.run(add_from_async_code()), add()]
    assert tokens == sorted(set(tokens)) == store.lines()


@pytest.mark.valkey
def test_the_decorator_awaits_an_async_fence(valkey_server: ValkeyServer, lockd_server: Server) -> None:
    """That of Redis; those of SQL and HTTP have tests of their own."""
    valkey_server.reset()

    async def use() -> None:
        async with (
            redis.asyncio.Redis(port=valkey_server.port) as found,
            lockd.AsyncClient(lockd_server.endpoint) as locks,
        ):
            fence = AsyncRedisFence(found)

            @locks.locked("orders", fence=fence)
            async def add(*, lease: lockd.AsyncLease = lockd.HELD) -> None:
                await fence.of(lease).incrby("{orders}:total", 5)

            await add()
            await add()

    asyncio.run(use())
    with valkey_server.client() as direct:
        assert direct.get("{orders}:total") == b"10"
        assert RedisFence(direct).mark("orders") is not None
