"""Guards on PostgreSQL: triggers that stop every statement, wherever it comes from.

Stopped: INSERT, UPDATE, DELETE, also those of ON CONFLICT, MERGE, COPY, a WITH, another table's
trigger or a foreign key's cascade; TRUNCATE; partitions by their own names; sessions with
`session_replication_role = replica`. Guards of level "statement" also refuse what touches no row, and
so the DELETE of an unguarded parent row whose cascade finds nothing.

Not stopped, by design: the table's owner and superusers, who may disable or drop triggers; and whoever
sets `lockd.fenced` by hand with the id of the running transaction. A second look at the fence row would
not help: its token may be read by whoever may write. Guards stop accidents and zombies, not malice.

Partitions: a guard of level "row" holds for partitions added later too, while its TRUNCATE trigger and
guards of level "statement" cover those that exist when the guard is made. Guard the table again after
adding one; autogenerate sees it missing. Children by plain INHERITS are tables of their own.

Logical replication applies rows without statement triggers but with row triggers: on a subscriber
that is to receive a guarded table say `always=False`.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from sqlalchemy import Connection, Row, text

from lockd_storage.sqlalchemy.guards.guard import Guard

TRIGGER = "lockd_guard"
TRUNCATE_TRIGGER = "lockd_guard_truncate"
ROW_TRIGGERS = {
    "lockd_guard_insert": ("INSERT", ("NEW",)),
    "lockd_guard_update": ("UPDATE", ("NEW", "OLD")),
    "lockd_guard_delete": ("DELETE", ("OLD",)),
}

_ROW_BIT, _TRUNCATE_BIT = 1, 32  # of pg_trigger.tgtype
_DISABLED = ("D", "R")  # of pg_trigger.tgenabled: never, and only as a replica


def create(guard: Guard) -> list[str]:
    """The statements that guard a table, in place of any guard that it has.

    Plain SQL, as psql takes it. Needs the functions of revision fence_0003 in the search_path, and
    the rights of the table's owner.
    """
    made = _fixed_triggers(guard) if not guard.columns else _row_triggers(guard)
    truncate = _truncate_triggers(guard) if guard.truncate else []
    return [*drop(guard), *made, *truncate]


def drop(guard: Guard) -> list[str]:
    """The statements that take any guard of this table and its partitions away."""
    return [
        _block(
            guard,
            "FOR v_trigger IN SELECT t.tgname FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid"
            " WHERE t.tgrelid = v_table AND t.tgparentid = 0"
            " AND p.proname IN ('lockd_guard_table', 'lockd_guard_row') LOOP"
            " EXECUTE 'DROP TRIGGER ' || quote_ident(v_trigger) || ' ON ' || v_table;"
            " END LOOP;",
        )
    ]


def existing(connection: Connection) -> list[Guard]:
    """The guards of this database, by what its triggers do.

    One that no longer holds is left out: a trigger of its is disabled or dropped, or a partition has
    come without one. Schemas are given as None where they are the connection's default.
    """
    tables: dict[int, _Table] = defaultdict(_Table)
    for row in connection.execute(_TRIGGERS):
        tables[row.table_id].add(row)
    partitions: dict[int, list[int]] = defaultdict(list)
    for child, ancestor in connection.execute(_PARTITIONS):
        partitions[ancestor].append(child)
    of_parents = {child for ancestor in tables for child in partitions[ancestor]}
    default = connection.dialect.default_schema_name
    guards = (
        table.guard([tables[child] for child in partitions[table_id]], default_schema=default)
        for table_id, table in list(tables.items())
        if table_id not in of_parents
    )
    return [guard for guard in guards if guard is not None]


@dataclass(slots=True)
class _Table:
    """The triggers of ours that one table has."""

    names: dict[str, Row[tuple[object, ...]]] = field(default_factory=dict)

    def add(self, row: Row[tuple[object, ...]]) -> None:
        self.names[row.trigger] = row

    def guard(self, partitions: Sequence["_Table"], *, default_schema: str | None) -> Guard | None:
        rows = list(self.names.values())
        writes = [row for row in rows if not row.type & _TRUNCATE_BIT]
        if not writes:
            return None
        resource = bytes(writes[0].arguments).split(b"\0")[0].decode()
        schema, by_row = writes[0].schema, bool(writes[0].type & _ROW_BIT)
        guard = Guard(
            writes[0].table,
            resource,
            schema=None if schema == default_schema else schema,
            level="row" if by_row else "statement",
            truncate=TRUNCATE_TRIGGER in self.names,
            always=all(row.enabled == "A" for row in rows),
        )
        # Row triggers are cloned to partitions by the server.
        wanted = set(self.names) if not by_row else set(self.names) & {TRUNCATE_TRIGGER}
        holds = all(
            row.enabled not in _DISABLED for part in (self, *partitions) for row in part.names.values()
        ) and all(wanted <= set(part.names) for part in partitions)
        return (
            guard if holds and set(ROW_TRIGGERS if guard.columns else [TRIGGER]) <= set(self.names) else None
        )


def _fixed_triggers(guard: Guard) -> list[str]:
    """One trigger for a resource that is the same for all rows."""
    call = f"EXECUTE FUNCTION lockd_guard_table({_literal(guard.resource)})"
    if guard.level == "row":
        return _on_parent(guard, TRIGGER, "AFTER INSERT OR UPDATE OR DELETE", f"FOR EACH ROW {call}")
    return _on_each(guard, TRIGGER, "BEFORE INSERT OR UPDATE OR DELETE", f"FOR EACH STATEMENT {call}")


def _row_triggers(guard: Guard) -> list[str]:
    """Three triggers, since a WHEN may name OLD and NEW only where there are both.

    They come AFTER the write, when no other trigger can change the row any more, and the WHEN keeps
    the function from being called for rows that pass. A column that is renamed is renamed in them.
    """
    statements = []
    call = f"EXECUTE FUNCTION lockd_guard_row({_literal(guard.resource)})"
    for name, (verb, sides) in ROW_TRIGGERS.items():
        when = " OR ".join(f"lockd_fenced({_resource_of_row(guard, side)}) IS NOT TRUE" for side in sides)
        statements += _on_parent(guard, name, f"AFTER {verb}", f"FOR EACH ROW WHEN ({when}) {call}")
    return statements


def _truncate_triggers(guard: Guard) -> list[str]:
    function = "lockd_guard_row" if guard.columns else "lockd_guard_table"
    call = f"EXECUTE FUNCTION {function}({_literal(guard.resource)})"
    return _on_each(guard, TRUNCATE_TRIGGER, "BEFORE TRUNCATE", f"FOR EACH STATEMENT {call}")


def _on_parent(guard: Guard, name: str, when: str, action: str) -> list[str]:
    table = _table(guard)
    return [
        f"CREATE TRIGGER {name} {when} ON {table} {action}",
        f"ALTER TABLE {table} {_enable(guard)} {name}",
    ]


def _on_each(guard: Guard, name: str, when: str, action: str) -> list[str]:
    """The trigger on a table and on each of its partitions that exist now."""
    return [
        _block(
            guard,
            f"EXECUTE {_literal(f'CREATE TRIGGER {name} {when} ON ')} || v_table || {_literal(f' {action}')};"
            f" EXECUTE 'ALTER TABLE ' || v_table || {_literal(f' {_enable(guard)} {name}')};",
        )
    ]


def _block(guard: Guard, body: str) -> str:
    """A DO block that runs `body` for the table and then for each partition, as `v_table`."""
    block = _EACH_PART.format(table=_literal(_table(guard)), body=body)
    quote = "$lockd$"
    while quote in block:
        quote = f"{quote[:-1]}_$"
    return f"DO {quote} {block} {quote}"


def _resource_of_row(guard: Guard, side: str) -> str:
    return " || ".join(
        _literal(part) if kind == "text" else f"{side}.{_quoted(part)}::text" for kind, part in guard.pieces
    )


def _enable(guard: Guard) -> str:
    return "ENABLE ALWAYS TRIGGER" if guard.always else "ENABLE TRIGGER"


def _table(guard: Guard) -> str:
    return ".".join(_quoted(name) for name in _names(guard))


def _names(guard: Guard) -> Iterable[str]:
    return (guard.table,) if guard.schema is None else (guard.schema, guard.table)


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _literal(words: str) -> str:
    # E'' would be another notation: backslashes mean nothing with standard_conforming_strings.
    return "'" + words.replace("'", "''") + "'"


# pg_partition_tree() knows nothing of a table without partitions.
_EACH_PART = (
    "DECLARE v_table regclass; v_trigger name; BEGIN FOR v_table IN SELECT relid FROM"
    " (SELECT {table}::regclass AS relid, 0 AS level"
    " UNION SELECT relid, level FROM pg_partition_tree({table}))"
    " AS part ORDER BY level, relid LOOP {body} END LOOP; END"
)
_TRIGGERS = text(
    'SELECT t.tgrelid AS table_id, n.nspname AS schema, c.relname AS "table", t.tgname AS trigger,'
    " t.tgargs AS arguments, t.tgtype AS type, t.tgenabled::text AS enabled"
    " FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid JOIN pg_class c ON c.oid = t.tgrelid"
    " JOIN pg_namespace n ON n.oid = c.relnamespace"
    " WHERE p.proname IN ('lockd_guard_table', 'lockd_guard_row')"
    " ORDER BY n.nspname, c.relname, t.tgname"
)
_PARTITIONS = text(
    "SELECT c.oid AS child, a.relid::oid AS ancestor FROM pg_class c, pg_partition_ancestors(c.oid) AS a"
    " WHERE c.relispartition AND c.relkind IN ('r', 'p', 'f') AND a.relid <> c.oid"
)
