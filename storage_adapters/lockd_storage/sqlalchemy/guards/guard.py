"""What a guard says: which table, and which fence a write to it needs.

A resource has one of three forms:

    orders          the fence of exactly this resource
    orders:*        any fence begun in this transaction whose resource begins with "orders:"
    orders:{id}     each row needs the fence of its own: the column's value, as text, in place of
                    {id}. Several columns are fine: "{tenant}:{id}". An update that changes the
                    value needs both fences, the old one and the new one; NULL is refused.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, Self

from sqlalchemy import Table

from lockd_storage.fencing import RESOURCE_BYTES_MAX

INFO_KEY = "lockd_guard"

Level = Literal["statement", "row"]

_PIECE = re.compile(r"\{([^{}]*)\}")


@dataclass(frozen=True, slots=True)
class Guard:
    """One guarded table. A value: two that are equal make the same triggers.

    `level` is when the database looks: once for each statement, also for one that touches no row,
    or for each row that is written. A resource with columns is always judged by row. `truncate`
    guards TRUNCATE too, and `always` also those sessions that act as a replica
    (`session_replication_role`); both mean something on PostgreSQL alone.

    Raises ValueError for a resource, level or name that can't be meant.
    """

    table: str
    resource: str
    schema: str | None = None
    level: Level = "statement"
    truncate: bool = True
    always: bool = True

    def __post_init__(self) -> None:
        for what, name in (("table", self.table), ("schema", self.schema)):
            if name is not None and not _is_plain(name):
                raise ValueError(f"the {what} of a guard is a name without control characters, not {name!r}")
        _check_resource(self.resource)
        if self.level not in ("statement", "row"):
            raise ValueError(f'level= of a guard is "statement" or "row", not {self.level!r}')
        if self.columns:
            object.__setattr__(self, "level", "row")

    @property
    def prefix(self) -> str | None:
        """What the resource begins with, of the form "orders:*"; else None."""
        return self.resource[:-1] if self.resource.endswith("*") else None

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns whose values the resource is made of; () for the forms without any."""
        return tuple(_PIECE.findall(self.resource))

    @property
    def pieces(self) -> tuple[tuple[Literal["text", "column"], str], ...]:
        """The resource of a row in order: ("text", "orders:"), ("column", "id"). No text is empty."""
        parts = _PIECE.split(self.resource)  # texts at even places, columns at odd ones
        return tuple(
            ("column" if place % 2 else "text", part) for place, part in enumerate(parts) if place % 2 or part
        )

    def admits(self, resources: Iterable[str]) -> bool:
        """Whether a write may pass under fences of these resources, as far as one can tell without
        its rows: for "orders:{id}", whether some resource has that form."""
        if self.prefix is not None:
            prefix = self.prefix
            return any(resource.startswith(prefix) for resource in resources)
        if self.columns:
            form = "".join(".*" if kind == "column" else re.escape(part) for kind, part in self.pieces)
            return any(re.fullmatch(form, resource, re.DOTALL) for resource in resources)
        return self.resource in resources

    def note(self) -> str:
        """All but table and schema in one line, for a comment in the text of a trigger.

        `existing()` reads it back where the database keeps a trigger's text and nothing else. It
        holds no `*/` and no apostrophe.
        """
        values = {field: getattr(self, field) for field in _NOTED}
        text = json.dumps(values).replace("'", r"\u0027")
        return f"lockd_guard {text}"

    @classmethod
    def from_note(cls, text: str, *, table: str, schema: str | None = None) -> Self | None:
        """The guard whose `note()` is somewhere in `text`, or None."""
        found = _NOTE.search(text)
        if found is None:
            return None
        values, _ = json.JSONDecoder().raw_decode(text, found.end())
        return cls(table, schema=schema, **values)


def declared_guard(table: Table) -> Guard | None:
    """The guard in a table's `info`, or None.

    `info={"lockd_guard": "orders"}` names the resource; a mapping gives more of `Guard`'s fields:
    `info={"lockd_guard": {"resource": "orders", "truncate": False}}`. Raises ValueError.
    """
    declared = table.info.get(INFO_KEY)
    if declared is None:
        return None
    values = {"resource": declared} if isinstance(declared, str) else declared
    if not isinstance(values, Mapping) or "resource" not in values or set(values) - set(_NOTED):
        raise ValueError(
            f'info["{INFO_KEY}"] of table {table.name!r} is a resource or a mapping of'
            f" {', '.join(_NOTED)}, not {declared!r}"
        )
    guard = Guard(table.name, schema=table.schema, **_strings(values))
    unknown = [name for name in guard.columns if name not in {column.name for column in table.columns}]
    if unknown:
        raise ValueError(f"guard {guard.resource!r}: table {table.name!r} has no column {unknown[0]!r}")
    return guard


def _strings(values: Mapping[Any, Any]) -> dict[str, Any]:
    return {str(name): value for name, value in values.items()}


def _check_resource(resource: str) -> None:
    if not isinstance(resource, str) or not _is_plain(resource):
        raise ValueError(
            f"a guard's resource is text without control characters, such as 'orders', not {resource!r}"
        )
    if len(resource.encode()) > RESOURCE_BYTES_MAX:
        raise ValueError(f"a guard's resource has at most {RESOURCE_BYTES_MAX} bytes: {resource[:40]!r}...")
    columns = _PIECE.findall(resource)
    if "{" in _PIECE.sub("", resource) or "}" in _PIECE.sub("", resource) or "" in columns:
        raise ValueError(f"in the resource {resource!r} a column is written {{name}}")
    if "}{" in resource:
        raise ValueError(
            f"in the resource {resource!r} two columns touch, so that 1 and 12 would look like 11 and 2:"
            " put a sign between them"
        )
    star = resource.find("*")
    if star >= 0 and (star != len(resource) - 1 or star == 0 or columns):
        raise ValueError(
            f"in the resource {resource!r} the * may only be the end, after at least one letter,"
            " and not together with columns"
        )


def _is_plain(name: str) -> bool:
    return bool(name) and all(character >= " " and character != "\x7f" for character in name)


_NOTED = tuple(field.name for field in fields(Guard) if field.name not in ("table", "schema"))
_NOTE = re.compile(r"lockd_guard (?=\{)")
