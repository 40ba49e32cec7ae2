"""How answers look: columns for people, one JSON document for machines."""

import json
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

import click


def show_json(document: Any) -> None:
    """Print one JSON document."""
    click.echo(json.dumps(document, indent=1, ensure_ascii=False))


def show_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print rows under their header, as narrow as they can be; the last column runs out to the right."""
    lines = [tuple(header), *(tuple(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header) - 1)]
    for line in lines:
        cells = [text.ljust(width) for text, width in zip(line, widths, strict=False)]
        click.echo("  ".join([*cells, line[-1]]).rstrip())


def utc_text(moment: datetime) -> str:
    """A moment for people, in UTC, without saying so."""
    return moment.astimezone(UTC).replace(tzinfo=None).isoformat(sep=" ")


def iso_text(moment: datetime) -> str:
    """A moment in ISO 8601 with a Z."""
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")
