"""Guards and the fence store in a user's own Alembic migrations.

    op.create_fence_store()                              # lockd's tables, to their newest revision
    op.guard_table("orders", resource="orders")          # from here on only under a fence (SAFETY S6)
    op.unguard_table("orders")                           # all may write again
    op.drop_fence_store()                                # with all marks; refused while guards need it

Alembic 1.18 and later find them by themselves. So that autogenerate writes them, from
`info={"lockd_guard": "orders"}` of a table, name the plug-in in env.py:

    context.configure(..., autogenerate_plugins=["alembic.autogenerate.*", "lockd.fences"])

It then also leaves tables whose names begin with `lockd_` alone. Where plug-ins are not looked for,
`import lockd_storage.alembic` in env.py makes the operations known.

A migration that changes rows of a guarded table is refused like everybody else: put it between
`op.unguard_table` and `op.guard_table`, while no holder works.

Start reading at `operations`; `autogenerate` compares what tables declare with what the database has.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from alembic.autogenerate.api import AutogenContext
    from alembic.operations.ops import UpgradeOps
    from alembic.runtime.plugins import Plugin
    from alembic.util import PriorityDispatchResult


def setup(plugin: "Plugin") -> None:
    """Called by Alembic while it is itself being imported, and only half there."""
    from alembic.util import DispatchPriority  # noqa: PLC0415

    # Last, as tables are guarded after they were made and before they are dropped.
    plugin.add_autogenerate_comparator(_compare, "schema", priority=DispatchPriority.LAST)


def _compare(
    context: "AutogenContext", upgrade_ops: "UpgradeOps", schemas: Iterable[str | None]
) -> "PriorityDispatchResult":
    from lockd_storage.alembic.autogenerate import compare_guards  # noqa: PLC0415

    return compare_guards(context, upgrade_ops, schemas)


# After `setup`: importing the operations imports Alembic, which looks for `setup` in this module.
from lockd_storage.alembic.operations import (  # noqa: E402
    CreateFenceStoreOp,
    DropFenceStoreOp,
    GuardTableOp,
    UnguardTableOp,
)

__all__ = ["CreateFenceStoreOp", "DropFenceStoreOp", "GuardTableOp", "UnguardTableOp", "setup"]
