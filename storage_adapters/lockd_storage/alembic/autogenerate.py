"""What autogenerate writes: the difference between the guards that tables declare and those there are."""

from collections.abc import Iterable
from dataclasses import replace

from alembic.autogenerate.api import AutogenContext
from alembic.autogenerate.render import renderers
from alembic.operations import MigrateOperation
from alembic.operations.ops import DropTableOp, ModifyTableOps, UpgradeOps
from alembic.util import PriorityDispatchResult
from sqlalchemy import inspect

from lockd_storage.alembic.operations import (
    CreateFenceStoreOp,
    DropFenceStoreOp,
    GuardTableOp,
    UnguardTableOp,
    store_is_missing,
)
from lockd_storage.sqlalchemy.guards.guard import Guard, declared_guard
from lockd_storage.sqlalchemy.guards.triggers import GUARDED_DIALECTS, triggers

OUR_PREFIX = "lockd_"

TableKey = tuple[str | None, str]  # schema, None for the default one; name


def compare_guards(
    context: AutogenContext, upgrade_ops: UpgradeOps, schemas: Iterable[str | None]
) -> PriorityDispatchResult:
    """Add what makes the database's guards those that are declared, and leave lockd's own tables alone.

    Sees guards that are new, changed, gone, switched off, or that miss a partition. Tables that the
    user's filters leave out, or that are not in the metadata, keep what guard they have.
    """
    assert context.connection is not None
    assert context.dialect is not None
    upgrade_ops.ops[:] = [op for op in upgrade_ops.ops if not _is_ours(op, context)]
    declared = _declared(context)
    known = {_key(context, table.schema, table.name) for table in context.sorted_tables}
    if not declared and context.dialect.name not in GUARDED_DIALECTS:
        return PriorityDispatchResult.CONTINUE
    found = {
        (guard.schema, guard.table): guard
        for guard in triggers(context.dialect.name).existing(context.connection)
        if guard.schema in set(schemas)
    }
    dropped = {(op.schema, op.table_name) for op in upgrade_ops.ops if isinstance(op, DropTableOp)}
    # SQLite's batch mode makes a new table, and the triggers stay with the old one.
    remade = {
        (op.schema, op.table_name)
        for op in upgrade_ops.ops
        if isinstance(op, ModifyTableOps) and op.ops and context.dialect.name == "sqlite"
    }
    taken = [
        guard
        for key, guard in sorted(found.items(), key=_by_name)
        if key in dropped or (key in known and (declared.get(key) != guard or key in remade))
    ]
    given = [
        guard
        for key, guard in sorted(declared.items(), key=_by_name)
        if found.get(key) != guard or key in remade
    ]
    upgrade_ops.ops[:0] = [UnguardTableOp(guard) for guard in taken]
    if given and store_is_missing(context.connection):
        existed = inspect(context.connection).has_table("lockd_fence")
        upgrade_ops.ops.append(CreateFenceStoreOp(existed=existed))
    upgrade_ops.ops.extend(GuardTableOp(guard) for guard in given)
    return PriorityDispatchResult.CONTINUE


def _declared(context: AutogenContext) -> dict[TableKey, Guard]:
    guards = {}
    for table in context.sorted_tables:
        guard = declared_guard(table)
        if guard is not None and context.run_object_filters(table, table.name, "table", False, None):  # noqa: FBT003
            key = _key(context, table.schema, table.name)
            guards[key] = replace(guard, schema=key[0])
    return guards


def _key(context: AutogenContext, schema: str | None, name: str) -> TableKey:
    assert context.dialect is not None
    return (None if schema == context.dialect.default_schema_name else schema, name)


def _is_ours(op: MigrateOperation, context: AutogenContext) -> bool:
    """Whether this drops, or empties on the way, a table of lockd that the user's metadata doesn't have."""
    if not isinstance(op, DropTableOp | ModifyTableOps) or not op.table_name.startswith(OUR_PREFIX):
        return False
    return op.table_name not in {table.name for table in context.sorted_tables}


def _by_name(item: tuple[TableKey, Guard]) -> tuple[str, str]:
    (schema, table), _ = item
    return (schema or "", table)


@renderers.dispatch_for(GuardTableOp)
def _render_guard(_context: AutogenContext, op: GuardTableOp) -> str:
    return f"op.guard_table({_arguments(op.guard)})"


@renderers.dispatch_for(UnguardTableOp)
def _render_unguard(_context: AutogenContext, op: UnguardTableOp) -> str:
    return f"op.unguard_table({_arguments(op.guard)})"


@renderers.dispatch_for(CreateFenceStoreOp)
def _render_create(_context: AutogenContext, _op: CreateFenceStoreOp) -> str:
    return "op.create_fence_store()"


@renderers.dispatch_for(DropFenceStoreOp)
def _render_drop(_context: AutogenContext, _op: DropFenceStoreOp) -> str:
    return "op.drop_fence_store()"


def _arguments(guard: Guard) -> str:
    """The table and the resource, and of the rest what is not as it is by default."""
    usual = Guard(guard.table, guard.resource)
    more = [
        f"{name}={getattr(guard, name)!r}"
        for name in ("schema", "level", "truncate", "always")
        if getattr(guard, name) != getattr(usual, name)
    ]
    return ", ".join([repr(guard.table), f"resource={guard.resource!r}", *more])
