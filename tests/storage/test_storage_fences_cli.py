"""`lockd fences`: an operator's way through a restore and a move, and what each mistake is told."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from redis.cluster import RedisCluster

import lockd
from lockd.cli import main
from lockd.cli.options import Access
from lockd.errors import StaleToken
from lockd.testing.ports import free_port
from lockd_storage import NotInstalled
from lockd_storage.redis import RedisFence
from lockd_storage.sqlalchemy import SqlFence
from lockd_storage.sqlalchemy.upkeep import Upkeep
from tests.processes import LockdProcess, clean_environment, lockd_command, run_lockd, running_node
from tests.servers.valkey import ValkeyServer, running_valkey_cluster
from tests.storage.leases import CLUSTER, INCARNATION, GivenLease
from tests.storage.stores import SqlStore, sqlite_url

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LockdProcess]:
    with running_node(tmp_path_factory.mktemp("fences")) as started:
        yield started


class Fences:
    """`fences("ls", "--json")` runs a command on one store to its end, in this process."""

    def __init__(self, url: str, capsys: pytest.CaptureFixture[str]) -> None:
        self._url = url
        self._capsys = capsys

    def __call__(self, *arguments: str) -> tuple[int, str, str]:
        """Exit status, standard output, standard error."""
        status = main(["fences", *arguments, "--db", self._url])
        shown = self._capsys.readouterr()
        assert "Traceback" not in shown.err
        return status, shown.out, shown.err

    def json(self, *arguments: str) -> Any:
        status, out, err = self(*arguments, "--json")
        assert status == 0, err
        return json.loads(out)


@pytest.fixture
def fences(sql: SqlStore, capsys: pytest.CaptureFixture[str]) -> Fences:
    return Fences(sql.engine.url.render_as_string(hide_password=False), capsys)


def refused(status: int, out: str, err: str) -> str:
    """The one line that a command which was refused has said."""
    assert (status, out) == (2, "")
    assert err.count("\n") == 1
    return err


def test_without_a_token_and_without_lockd_it_says_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    how_long: Any = Access.client.__kwdefaults__
    monkeypatch.setitem(how_long, "ttl", 1.0)
    fences = Fences(sqlite_url(tmp_path), capsys)
    assert fences("upgrade")[0] == 0
    for verb in ("raise-floor", "adopt"):
        status, out, err = fences(verb, "--endpoints", f"127.0.0.1:{free_port()}")
        assert (status, out) == (3, "")
        assert "none was given, and lockd can't be asked for one" in err


def test_pitfall_11_a_restore_end_to_end(node: LockdProcess, tmp_path: Path) -> None:
    url, live, backup = sqlite_url(tmp_path), tmp_path / "data.db", tmp_path / "backup.db"
    assert main(["fences", "upgrade", "--db", url]) == 0
    with lockd.Client(node.endpoint, ttl=30) as client, lockd.Client(node.endpoint, ttl=30) as paused:
        zombie = paused.acquire("orders")
        engine = sa.create_engine(url)
        fence = SqlFence(engine)
        fence.install(zombie)
        shutil.copyfile(live, backup)
        client.break_lock("orders", zombie.token, reason="it hangs", now=True)
        with client.lock("orders") as lost:
            fence.install(lost)
        engine.dispose()
        shutil.copyfile(backup, live)

        done = run_lockd(
            "fences", "raise-floor", "--yes", "--db", url, "--endpoints", node.endpoint, "--json"
        )
        assert done.returncode == 0, done.stderr
        change = json.loads(done.stdout)
        assert change["removed"] == 1
        assert change["floor"]["token"] > lost.token
        old = GivenLease(
            zombie.token, cluster=zombie.fence.split("/")[0], incarnation=zombie.fence.split("/")[1]
        )
        with pytest.raises(NotInstalled), fence.write(old) as connection:
            connection.execute(sa.select(1))
        with pytest.raises(StaleToken):
            fence.install(old)
        with client.lock("orders") as next_one:
            fence.install(next_one)
        engine.dispose()


def test_a_move_to_another_cluster(node: LockdProcess, sql: SqlStore, fences: Fences) -> None:
    sql.fence.install(GivenLease(10**9))
    endpoints = ("--endpoints", node.endpoint)
    said = refused(*fences("raise-floor", "--yes", *endpoints))
    assert f"of cluster {CLUSTER}" in said
    assert "`lockd fences adopt`" in said
    with lockd.Client(node.endpoint, ttl=30) as client:
        early = client.acquire("orders")
        change = fences.json("adopt", "--yes", *endpoints)
        assert change["before"] == {"token": 0, "cluster": None}
        assert change["floor"]["cluster"] == early.fence.split("/")[0]
        assert change["removed"] == 1
        with pytest.raises(StaleToken):
            sql.fence.install(early)
        early.release()
        with client.lock("orders") as late:
            sql.fence.install(late)
        assert fences.json("raise-floor", "--yes", *endpoints)["floor"]["token"] > late.token


def test_ls_shows_marks_by_prefix_and_the_floor(sql: SqlStore, fences: Fences) -> None:
    for name in ("orders:1", "orders:2", "stock"):
        sql.fence.install(GivenLease(33, lock="shop"), name)
    Upkeep(sql.engine).raise_floor(20)
    status, out, _ = fences("ls", "orders:")
    lines = out.splitlines()
    assert status == 0
    assert lines[0].split() == ["RESOURCE", "LOCK", "TOKEN", "INCARNATION", "CLUSTER", "INSTALLED", "(UTC)"]
    assert [line.split()[:5] for line in lines[1:3]] == [
        [name, "shop", "33", INCARNATION, CLUSTER] for name in ("orders:1", "orders:2")
    ]
    assert [line.split() for line in lines[3:]] == [[], ["floor", "20"], ["cluster", "any"]]
    found = fences.json("ls", "stock")
    assert found["floor"] == {"token": 20, "cluster": None}
    (mark,) = found["marks"]
    assert mark.pop("installed_at").endswith("+00:00")
    assert mark == {
        "resource": "stock",
        "lock": "shop",
        "cluster": CLUSTER,
        "incarnation": INCARNATION,
        "token": 33,
    }


def test_purge_by_age_and_prefix(sql: SqlStore, fences: Fences) -> None:
    sql.fence.install(GivenLease(33), "orders:1")
    sql.fence.install(GivenLease(34), "stock")
    assert fences.json("purge", "--older-than", "1h", "--yes")["removed"] == 0
    change = fences.json("purge", "--older-than", "0", "--prefix", "orders:", "--yes")
    if change["removed"] == 0:  # the store keeps whole seconds, and it is still the same one
        change = fences.json("purge", "--older-than", "0", "--prefix", "orders:", "--yes")
    assert change["floor"] == {"token": 33, "cluster": None}
    assert [mark["resource"] for mark in fences.json("ls")["marks"]] == ["stock"]


@pytest.fixture
def sqlite_fences(sqlite_store: SqlStore, capsys: pytest.CaptureFixture[str]) -> Fences:
    return Fences(str(sqlite_store.engine.url), capsys)


def test_without_a_terminal_nothing_changes_unless_yes_is_said(
    sqlite_store: SqlStore, sqlite_fences: Fences
) -> None:
    sqlite_store.fence.install(GivenLease(33))
    for arguments in (("raise-floor", "50"), ("adopt", GivenLease(50).fence), ("purge", "--older-than", "0")):
        assert "needs --yes" in refused(*sqlite_fences(*arguments))
    assert [kept.mark.token for kept in Upkeep(sqlite_store.engine).marks()] == [33]


@pytest.mark.parametrize(("answer", "status", "floor"), [("n\n", 1, 0), ("y\n", 0, 50)])
def test_a_person_is_asked_with_what_would_happen(
    sqlite_store: SqlStore, tmp_path: Path, answer: str, status: int, floor: int
) -> None:
    sqlite_store.fence.install(GivenLease(33))
    terminal, its_end = os.openpty()
    try:
        os.write(terminal, answer.encode())
        done = subprocess.run(
            lockd_command("fences", "raise-floor", "50", "--db", sqlite_url(tmp_path)),
            env=clean_environment(),
            stdin=its_end,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
    finally:
        os.close(terminal)
        os.close(its_end)
    assert "from 0 of any cluster to 50 of any cluster, and 1 marks are removed" in done.stderr
    assert done.returncode == status
    assert Upkeep(sqlite_store.engine).floor().token == floor


@pytest.mark.parametrize(
    ("url", "words", "status"),
    [
        ("orders", "begins with one of", 2),
        ("mongodb://u:secret@localhost/x", "begins with one of", 2),
        ("postgresql://u:secret@localhost:port/x", "not a database URL", 2),
        ("redis://u:secret@localhost:port/0", "Port could not be", 2),
        ("redis://u:secret@127.0.0.1:{port}/0", "can't be reached", 3),
        ("postgresql+foo://u:secret@localhost/x", "unknown database driver 'postgresql+foo'", 2),
        ("mysql+mysqlconnector://u:secret@localhost/x", "needs the package 'mysql'", 2),
        ("sqlite:///nowhere.db", "there is no SQLite file 'nowhere.db'", 2),
        ("postgresql://u:secret@127.0.0.1:{port}/x", "can't be reached", 3),
        ("mysql+asyncmy://u:secret@127.0.0.1:{port}/x", "can't be reached", 3),
    ],
)
def test_a_wrong_url_is_one_line_without_its_password(
    capsys: pytest.CaptureFixture[str], url: str, words: str, status: int
) -> None:
    found, out, err = Fences(url.format(port=free_port()), capsys)("ls")
    assert (found, out, err.count("\n")) == (status, "", 1)
    assert words in err
    assert "secret" not in err


def test_what_is_no_database_or_has_no_store_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data.db").write_text("not a database, but long enough to be looked at as one")
    fences = Fences(sqlite_url(tmp_path), capsys)
    assert "file is not a database" in refused(*fences("ls"))
    (tmp_path / "data.db").write_text("")
    assert "`lockd fences upgrade`" in refused(*fences("ls"))
    assert fences("upgrade")[0] == 0
    assert fences.json("upgrade") == {"upgraded": True}
    assert fences.json("ls") == {"floor": {"token": 0, "cluster": None}, "marks": []}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("adopt", "50", "--yes"), "'50' is not a fence"),
        (("raise-floor", str(2**53 - 1), "--yes"), "tokens above it"),
        (("raise-floor", "fifty", "--yes"), "not a valid whole number"),
        (("purge", "--yes"), "--older-than"),
        (("purge", "--older-than", "soon", "--yes"), "'soon' is not a duration"),
        (("purge", "--older-than", "999999d", "--yes"), "hundred years"),
        (("purge", "--older-than", "99999999999999d", "--yes"), "hundred years"),
    ],
)
def test_wrong_usage_is_one_line(sqlite_fences: Fences, arguments: tuple[str, ...], words: str) -> None:
    assert words in refused(*sqlite_fences(*arguments))


def test_the_database_may_be_named_by_the_environment(
    sqlite_store: SqlStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LOCKD_DB", str(sqlite_store.engine.url).replace("sqlite:", "sqlite+aiosqlite:"))
    assert main(["fences", "ls", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["marks"] == []


@pytest.mark.postgres
def test_s3_an_applications_role_is_told_what_it_lacks(
    postgres_store: SqlStore, capsys: pytest.CaptureFixture[str]
) -> None:
    role = f"app_{postgres_store.engine.url.database}"
    with postgres_store.engine.begin() as connection:
        connection.exec_driver_sql(f"CREATE ROLE {role} LOGIN")
        connection.exec_driver_sql(f"GRANT SELECT ON lockd_fence, lockd_fence_floor TO {role}")
    fences = Fences(
        str(postgres_store.engine.url.set(username=role, drivername="postgresql+asyncpg")), capsys
    )
    try:
        assert fences("ls")[0] == 0
        said = refused(*fences("raise-floor", "50", "--yes"))
        assert "this needs SELECT, UPDATE and DELETE on lockd_fence" in said
    finally:
        with postgres_store.engine.begin() as connection:
            connection.exec_driver_sql(f"DROP OWNED BY {role}")
            connection.exec_driver_sql(f"DROP ROLE {role}")


def test_a_redis_server_is_looked_after_alike(
    redis_server: ValkeyServer, capsys: pytest.CaptureFixture[str]
) -> None:
    fences = Fences(f"redis://127.0.0.1:{redis_server.port}/0", capsys)
    with redis_server.client() as client:
        RedisFence(client).install(GivenLease(33))
    assert [mark["token"] for mark in fences.json("ls")["marks"]] == [33]
    assert fences.json("raise-floor", "50", "--yes")["removed"] == 1
    assert fences.json("ls") == {"floor": {"token": 50, "cluster": None}, "marks": []}
    assert "only a SQL database" in refused(*fences("upgrade"))


@pytest.mark.valkey
def test_any_node_of_a_redis_cluster_stands_for_all(capsys: pytest.CaptureFixture[str]) -> None:
    with running_valkey_cluster() as servers:
        fences = Fences(f"redis://127.0.0.1:{servers[-1].port}", capsys)
        with RedisCluster(host="127.0.0.1", port=servers[0].port) as client:
            for name in ("a", "b", "c", "d"):
                RedisFence(client).install(GivenLease(33, lock=name))
        assert fences.json("raise-floor", "50", "--yes")["removed"] == 4
        assert fences.json("ls")["floor"] == {"token": 50, "cluster": None}
