"""Guards and the fence store in a user's own Alembic project: its models, its versions, its env.py.

Autogenerate writes a revision, it goes up and down, and what it made refuses a write from elsewhere.
"""

import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import produce_migrations
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.operations import MigrateOperation, Operations
from alembic.operations.ops import DropTableOp, MigrationScript
from alembic.util import CommandError

from lockd_storage.schema import upgrade
from lockd_storage.sqlalchemy import SqlFence
from lockd_storage.sqlalchemy.guards import Guard, guard_engine
from lockd_storage.sqlalchemy.guards.triggers import triggers
from tests.storage.leases import GivenLease
from tests.storage.stores import SqlStore, sqlite_url

ENV = """
from alembic import context
from sqlalchemy import create_engine

engine = create_engine(context.config.get_main_option("sqlalchemy.url"))
try:
    if context.is_offline_mode():
        context.configure(
            dialect_name=engine.dialect.name, literal_binds=True, dialect_opts={"paramstyle": "named"}
        )
        with context.begin_transaction():
            context.run_migrations()
    else:
        with engine.connect() as connection:
            context.configure(
                connection=connection,
                target_metadata=context.config.attributes["models"],
                render_as_batch=True,
                autogenerate_plugins=["alembic.autogenerate.*", "lockd.fences"],
            )
            with context.begin_transaction():
                context.run_migrations()
finally:
    engine.dispose()
"""
TEMPLATE = '''"""${message}"""
from alembic import op
import sqlalchemy as sa
${imports if imports else ""}
revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}

def upgrade() -> None:
    ${upgrades if upgrades else "pass"}

def downgrade() -> None:
    ${downgrades if downgrades else "pass"}
'''


class Project:
    """A user's project in a folder, with models that the test changes between revisions."""

    def __init__(self, folder: Path, url: str) -> None:
        (folder / "versions").mkdir()
        (folder / "env.py").write_text(ENV)
        (folder / "script.py.mako").write_text(TEMPLATE)
        self.engine = sa.create_engine(url)
        self._config = Config(attributes={})
        self._config.set_main_option("script_location", str(folder))
        self._config.set_main_option("path_separator", "os")
        self._config.set_main_option("sqlalchemy.url", url.replace("%", "%%"))
        self._count = 0

    def revision(self, models: sa.MetaData) -> str:
        """Write the next revision from the models, upgrade to it, and return its text."""
        self._count += 1
        text = self.written(models, f"r{self._count}")
        self.upgrade()
        return text

    def written(self, models: sa.MetaData, name: str, *, autogenerate: bool = True) -> str:
        self._config.attributes["models"] = models
        made = command.revision(self._config, name, rev_id=name, autogenerate=autogenerate)
        assert made is not None
        assert not isinstance(made, list)
        return Path(made.path).read_text()

    def hand_written(self, name: str, upgrade: str) -> None:
        """A revision whose upgrade() the user wrote."""
        text = self.written(sa.MetaData(), name, autogenerate=False)
        path = next(Path(str(self._config.get_main_option("script_location"))).glob(f"versions/{name}_*.py"))
        path.write_text(text.replace("    pass", f"    {upgrade}", 1))

    def upgrade(self, *, sql: bool = False) -> None:
        command.upgrade(self._config, "head", sql=sql)

    def downgrade(self, revision: str) -> None:
        command.downgrade(self._config, revision)

    def guards(self) -> list[Guard]:
        with self.engine.connect() as connection:
            return triggers(self.engine.dialect.name).existing(connection)

    def tables(self) -> set[str]:
        return set(sa.inspect(self.engine).get_table_names())


def models(guard: Any = None, *columns: sa.Column[Any], others: Any = None) -> sa.MetaData:
    """Two tables, whose guards are `guard` and `others`."""
    metadata = sa.MetaData()
    for name, info in (("orders", guard), ("bills", others)):
        sa.Table(
            name,
            metadata,
            sa.Column("id", sa.Integer, primary_key=True),
            sa.Column("total", sa.Integer),
            *(columns if name == "orders" else ()),
            info={} if info is None else {"lockd_guard": info},
        )
    return metadata


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def project(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    url = sqlite_url(tmp_path) if request.param == "sqlite" else request.getfixturevalue("postgres_url")
    folder = tmp_path / "theirs"
    folder.mkdir()
    made = Project(folder, url)
    yield made
    made.engine.dispose()


def assert_refused_from_elsewhere(project: Project, statement: str) -> None:
    """Through a driver alone: no SQLAlchemy and nothing of ours takes part."""
    url = project.engine.url
    if project.engine.dialect.name == "sqlite":
        plain = sqlite3.connect(str(url.database))
        with pytest.raises(sqlite3.OperationalError, match="no such function: lockd_fenced"):
            plain.execute(statement)
        plain.close()
        return
    with (
        psycopg.connect(host=url.host, port=url.port, user=url.username, dbname=url.database) as connection,
        pytest.raises(psycopg.Error, match="needs the fence of resource") as error,
    ):
        connection.execute(statement.encode())
    assert error.value.sqlstate == "LF007"


def body(text: str, function: str) -> list[str]:
    """The operations in upgrade() or downgrade(), without comments."""
    after = text.split(f"def {function}() -> None:")[1].partition("def ")[0]
    return [line.strip() for line in after.splitlines() if line.strip().startswith(("op.", "pass"))]


def operations(script: MigrationScript) -> list[MigrateOperation]:
    assert script.upgrade_ops is not None
    return list(script.upgrade_ops.ops)


def test_s6_a_model_becomes_guarded_by_one_generated_revision(project: Project) -> None:
    project.revision(models())
    text = project.revision(models("orders"))
    assert body(text, "upgrade") == [
        "op.create_fence_store()",
        "op.guard_table('orders', resource='orders')",
    ]
    assert body(text, "downgrade") == [
        "op.unguard_table('orders', resource='orders')",
        "op.drop_fence_store()",
    ]
    assert_refused_from_elsewhere(project, "INSERT INTO orders (id) VALUES (1)")
    assert body(project.revision(models("orders")), "upgrade") == ["pass"]

    guard_engine(project.engine)
    fence = SqlFence(project.engine)
    fence.install(GivenLease(33))
    with fence.write(GivenLease(33)) as connection:
        connection.exec_driver_sql("INSERT INTO orders (id) VALUES (1)")

    project.downgrade("r1")
    assert project.guards() == []
    assert project.tables() - {"lockd_alembic_version"} == {"alembic_version", "bills", "orders"}
    with project.engine.begin() as connection:
        connection.exec_driver_sql("INSERT INTO orders (id) VALUES (2)")
    project.upgrade()
    assert_refused_from_elsewhere(project, "DELETE FROM orders")


def test_a_table_is_made_and_guarded_and_goes_in_one_revision_each(project: Project) -> None:
    first = project.revision(models("orders"))
    assert body(first, "upgrade")[-2:] == [
        "op.create_fence_store()",
        "op.guard_table('orders', resource='orders')",
    ]
    second = project.revision(sa.MetaData())
    assert body(second, "upgrade")[0] == "op.unguard_table('orders', resource='orders')"
    assert project.tables() >= {"lockd_fence"}
    assert "orders" not in project.tables()
    project.downgrade("r1")  # puts table and guard back
    assert_refused_from_elsewhere(project, "INSERT INTO orders (id) VALUES (1)")
    project.downgrade("base")
    assert project.tables() <= {"alembic_version", "lockd_alembic_version"}


def test_changed_guards_are_replaced_and_come_back_on_the_way_down(project: Project) -> None:
    project.revision(models("orders", others="bills:*"))
    by_row = {"resource": "o:{id}", "truncate": False}
    text = project.revision(models(by_row))
    guarded_again = "op.guard_table('orders', resource='o:{id}', truncate=False)"
    assert body(text, "upgrade") == [
        "op.unguard_table('bills', resource='bills:*')",
        "op.unguard_table('orders', resource='orders')",
        guarded_again,
    ]
    assert project.guards() == [Guard("orders", "o:{id}", truncate=False)]
    assert body(project.revision(models(by_row)), "upgrade") == ["pass"]
    project.downgrade("r1")
    assert project.guards() == [Guard("bills", "bills:*"), Guard("orders", "orders")]


def test_a_guard_that_was_taken_away_by_hand_is_written_again(project: Project) -> None:
    project.revision(models("orders"))
    trigger = (
        "lockd_guard ON orders" if project.engine.dialect.name != "sqlite" else "lockd_guard_delete_orders"
    )
    with project.engine.begin() as connection:
        connection.exec_driver_sql(f"DROP TRIGGER {trigger}")
    assert body(project.revision(models("orders")), "upgrade") == [
        "op.guard_table('orders', resource='orders')"
    ]


def test_a_table_that_batch_mode_makes_anew_keeps_its_guard(project: Project) -> None:
    """On SQLite its triggers go with the old table."""
    project.revision(models("orders"))
    project.revision(models("orders", sa.Column("note", sa.String(10), nullable=True)))
    assert project.guards() == [Guard("orders", "orders")]
    project.downgrade("r1")
    assert project.guards() == [Guard("orders", "orders")]


def test_tables_that_are_not_in_the_models_keep_their_guards(project: Project) -> None:
    project.revision(models("orders", others="bills"))
    with project.engine.connect() as connection:
        only_bills = sa.MetaData()
        models(others="bills").tables["bills"].to_metadata(only_bills)
        context = MigrationContext.configure(
            connection,
            opts={
                "target_metadata": only_bills,
                "autogenerate_plugins": ["alembic.autogenerate.*", "lockd.fences"],
                "include_name": lambda name, kind, _parents: kind != "table" or name == "bills",
            },
        )
        assert operations(produce_migrations(context, only_bills)) == []


def test_autogenerate_leaves_lockds_tables_alone(project: Project) -> None:
    """Those of the scheduler too, with their indexes."""
    upgrade(project.engine)
    upgrade(project.engine, branch="scheduler")
    text = project.revision(models())
    assert "lockd" not in text
    with project.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"target_metadata": models()})
        without_us = operations(produce_migrations(context, models()))
    assert any(isinstance(op, DropTableOp) and op.table_name == "lockd_fence" for op in without_us)


def test_a_store_that_was_there_survives_the_way_down(project: Project) -> None:
    upgrade(project.engine)
    SqlFence(project.engine).install(GivenLease(33))
    text = project.revision(models("orders"))
    assert "create_fence_store" not in text
    project.hand_written("again", "op.create_fence_store(); op.execute('UPDATE bills SET total = 1')")
    project.upgrade()
    project.downgrade("base")
    mark = SqlFence(project.engine).mark("orders")
    assert mark is not None
    assert mark.token == 33


@pytest.mark.postgres
def test_an_older_store_is_upgraded_and_not_dropped_on_the_way_down(
    tmp_path: Path, postgres_url: str
) -> None:
    folder = tmp_path / "theirs"
    folder.mkdir()
    project = Project(folder, postgres_url)
    upgrade(project.engine)
    SqlFence(project.engine).install(GivenLease(33))
    ours = Config(attributes={})
    ours.set_main_option("script_location", "lockd_migrations:")
    with project.engine.begin() as connection:
        ours.attributes["connection"] = connection
        command.downgrade(ours, "fence_0002")
    text = project.revision(models("orders"))
    assert body(text, "upgrade")[-2] == "op.create_fence_store()"
    assert "op.create_fence_store()" in body(text, "downgrade")
    project.downgrade("base")
    assert SqlFence(project.engine).mark("orders") is not None
    project.engine.dispose()


def test_a_failed_migration_leaves_no_half_of_a_fence_store(project: Project) -> None:
    project.hand_written("broken", "op.create_fence_store(); op.execute('SELECT nonsense FROM nowhere')")
    with pytest.raises(sa.exc.DBAPIError):
        project.upgrade()
    if project.engine.dialect.name == "postgresql":  # on SQLite Alembic commits each step of DDL
        assert project.tables() == set()
    assert "lockd_fence" not in project.tables() or project.engine.dialect.name == "sqlite"


def test_guarding_without_a_store_says_what_to_put_before(project: Project) -> None:
    project.revision(models())
    project.hand_written("early", "op.guard_table('orders', resource='orders')")
    with pytest.raises(CommandError, match=r"Put op\.create_fence_store\(\) before"):
        project.upgrade()


@pytest.mark.parametrize("guard", ["orders", "orders:*", "orders:{id}"])
def test_a_guard_is_taken_away_by_the_name_of_its_table_alone(project: Project, guard: str) -> None:
    project.revision(models(guard))
    assert project.guards() == [Guard("orders", guard)]
    project.hand_written("open", "op.unguard_table('orders')")
    project.upgrade()
    assert project.guards() == []


def test_guards_can_be_written_down_as_sql_and_the_store_can_not(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    project.hand_written("guard", "op.guard_table('orders', resource=\"it's 5% of:{id}\")")
    project.upgrade(sql=True)
    script = capsys.readouterr().out
    assert "it''s 5% of:" in script
    assert "CREATE TRIGGER" in script
    project.hand_written("store", "op.create_fence_store()")
    with pytest.raises(CommandError, match="needs a database"):
        project.upgrade(sql=True)


@pytest.mark.postgres
def test_a_percent_sign_reaches_the_database_as_it_is(postgres_store: SqlStore) -> None:
    """psycopg makes "$1" of a "%s" in plain SQL; text() a parameter of a colon."""
    resource = "100%s :odd \\:name %(x)s"
    with postgres_store.engine.begin() as connection:
        op = Operations(MigrationContext.configure(connection))
        op.guard_table("journal", resource=resource)  # type: ignore[attr-defined]
        assert triggers("postgresql").existing(connection) == [Guard("journal", resource)]
        with pytest.raises(sa.exc.DBAPIError) as error:
            connection.exec_driver_sql("DELETE FROM journal")
        assert f"resource {resource}, which" in str(error.value.orig)


def test_a_guard_that_can_not_be_meant_is_refused_by_autogenerate(project: Project) -> None:
    for info in ("o:{nope}", {"level": "row"}, 5):
        with pytest.raises(ValueError, match=r"has no column 'nope'|is a resource or a mapping of"):
            project.written(models(info), "bad")


@pytest.mark.parametrize(
    "first",
    ["import alembic", "import lockd_storage.alembic"],
)
def test_the_plugin_is_found_whatever_is_imported_first(first: str) -> None:
    """Alembic looks for plug-ins while it is only half imported itself."""
    check = "from alembic import op; op.guard_table, op.create_fence_store, op.create_table"
    subprocess.run([sys.executable, "-W", "error", "-c", f"{first}; {check}"], check=True, timeout=60)
