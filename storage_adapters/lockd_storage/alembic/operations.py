"""What a migration may say: make or drop the fence store, guard a table or let it go."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import alembic.context
import alembic.op
from alembic.operations import MigrateOperation, Operations
from alembic.util import CommandError
from sqlalchemy import Connection, inspect, text

from lockd_storage.sqlalchemy.guards.guard import Guard, Level
from lockd_storage.sqlalchemy.guards.triggers import clause, triggers

_UNSAID = "any"
"""Stands for the resource of a guard that is taken away and was not named."""


@Operations.register_operation("create_fence_store")
class CreateFenceStoreOp(MigrateOperation):
    """`existed` tells autogenerate that an older store is there, which a downgrade must not drop."""

    def __init__(self, *, existed: bool = False) -> None:
        self.existed = existed

    @classmethod
    def create_fence_store(cls, operations: Operations) -> None:
        """Bring lockd's own tables to their newest revision, as part of this migration.

        Does nothing when they are. They keep their versions in `lockd_alembic_version`; an older
        store is upgraded and keeps its marks. Raises CommandError in --sql mode, since what there is
        to do depends on the database.
        """
        operations.invoke(cls())

    def reverse(self) -> MigrateOperation:
        return self if self.existed else DropFenceStoreOp()


@Operations.register_operation("drop_fence_store")
class DropFenceStoreOp(MigrateOperation):
    """Takes the marks along: holders are refused everything until they install anew."""

    @classmethod
    def drop_fence_store(cls, operations: Operations) -> None:
        """Drop lockd's fence tables and functions with all marks, as part of this migration.

        Leave no fenced writer running: whatever it does is refused (NotInstalled). Raises CommandError
        in --sql mode, and what the database says if guards still need the functions.
        """
        operations.invoke(cls())

    def reverse(self) -> MigrateOperation:
        return CreateFenceStoreOp()


@Operations.register_operation("guard_table")
class GuardTableOp(MigrateOperation):
    """See `lockd_storage.sqlalchemy.guards.Guard`."""

    def __init__(self, guard: Guard) -> None:
        self.guard = guard

    @classmethod
    def guard_table(
        cls,
        operations: Operations,
        table: str,
        *,
        resource: str,
        schema: str | None = None,
        level: Level = "statement",
        truncate: bool = True,
        always: bool = True,
    ) -> None:
        """From here on the table takes writes under a fence of `resource` only.

        The arguments are those of `Guard`. In place of any guard that the table has: so guard it again
        to change the guard, or to cover a new partition. Raises ValueError for a resource that can't be
        meant, and CommandError if there is no fence store, or one of an older version.
        """
        guard = Guard(table, resource, schema=schema, level=level, truncate=truncate, always=always)
        operations.invoke(cls(guard))

    def reverse(self) -> MigrateOperation:
        return UnguardTableOp(self.guard)


@Operations.register_operation("unguard_table")
class UnguardTableOp(MigrateOperation):
    """Knows the whole guard, so that it can be put back."""

    def __init__(self, guard: Guard) -> None:
        self.guard = guard

    @classmethod
    def unguard_table(
        cls,
        operations: Operations,
        table: str,
        *,
        resource: str | None = None,
        schema: str | None = None,
        level: Level = "statement",
        truncate: bool = True,
        always: bool = True,
    ) -> None:
        """From here on the table takes all writes again, whatever guard it has.

        The arguments are those of its guard: they tell whoever reads the migration, and its way back,
        what it was. Table and schema alone will do.
        """
        named = _UNSAID if resource is None else resource
        guard = Guard(table, named, schema=schema, level=level, truncate=truncate, always=always)
        operations.invoke(cls(guard))

    def reverse(self) -> MigrateOperation:
        return GuardTableOp(self.guard)


def store_is_missing(connection: Connection) -> bool:
    """Whether there is no fence store that guards could rely on."""
    if connection.dialect.name == "postgresql":
        return connection.scalar(text("SELECT to_regprocedure('lockd_guard_table()') IS NULL")) is True
    return not inspect(connection).has_table("lockd_fence")


@Operations.implementation_for(GuardTableOp)
def _guard_table(operations: Operations, operation: GuardTableOp) -> None:
    connection = operations.get_context().connection
    if connection is not None and not operations.get_context().as_sql and store_is_missing(connection):
        raise CommandError(
            f"table {operation.guard.table!r} can't be guarded: this database has no fence store of this"
            " version. Put op.create_fence_store() before op.guard_table()"
        )
    _send(operations, operation.guard, triggers(operations.get_context().dialect.name).create)


@Operations.implementation_for(UnguardTableOp)
def _unguard_table(operations: Operations, operation: UnguardTableOp) -> None:
    _send(operations, operation.guard, triggers(operations.get_context().dialect.name).drop)


@Operations.implementation_for(CreateFenceStoreOp)
def _create_fence_store(operations: Operations, _operation: CreateFenceStoreOp) -> None:
    # Here, as this module is loaded while Alembic itself is being imported.
    from lockd_storage.schema import upgrade  # noqa: PLC0415

    with _nested(operations, "create_fence_store") as connection:
        upgrade(connection)


@Operations.implementation_for(DropFenceStoreOp)
def _drop_fence_store(operations: Operations, _operation: DropFenceStoreOp) -> None:
    from lockd_storage.schema import downgrade  # noqa: PLC0415

    with _nested(operations, "drop_fence_store") as connection:
        downgrade(connection)


def _send(operations: Operations, guard: Guard, statements_for: Callable[[Guard], list[str]]) -> None:
    for statement in statements_for(guard):
        operations.execute(clause(statement))


@contextmanager
def _nested(operations: Operations, name: str) -> Iterator[Connection]:
    """A block that may run other migrations, and gives `op` and `context` back to this one afterwards.

    Both are modules whose names lead to the migration that runs; Alembic expects one at a time.
    """
    migration = operations.get_context()
    if migration.connection is None or migration.as_sql:
        raise CommandError(
            f"op.{name}() needs a database, and can't be written down as SQL: run it, or call"
            " lockd_storage.schema.upgrade(engine) beforehand and leave it out"
        )
    kept = [(module, dict(vars(module))) for module in (alembic.op, alembic.context)]
    try:
        yield migration.connection
    finally:
        for module, names in kept:
            vars(module).update(names)
