"""docs/PROTOCOL.md says what the code does."""

import re
from pathlib import Path

import pytest

from lockd.cli.exits import ExitStatus, status_of
from lockd.client.queries import ERRORS, error_of
from lockd.ids import LOCK_NAME_BYTES_MAX
from lockd.locks.limits import Limits
from lockd.protocol import arguments, resp
from lockd.protocol.cluster_verbs import SNAPSHOT_PART_BYTES_MAX
from lockd.protocol.verbs import VERBS
from lockd.server.auth import ROLES
from lockd.server.calls import CALLS_MAX
from lockd.server.connection import ConnectionLimits
from lockd.server.listener import CLIENTS_MAX
from lockd.server.locking import WAITS_PER_CONNECTION_MAX

TEXT = (Path(__file__).parents[2] / "docs" / "PROTOCOL.md").read_text(encoding="utf-8")


def rows(heading: str) -> list[list[str]]:
    """The cells of the table under a heading."""
    section = TEXT.split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines[1:]]


def test_every_verb_is_there_with_its_usage() -> None:
    written = "".join(row[0] for row in rows("Verbs")).replace("\\|", "|")
    for verb in VERBS.values():
        assert f"`{verb.name} {verb.usage}`".replace(" `", "`") in written


def test_the_table_of_errors() -> None:
    table = {word: (exception, int(status)) for word, exception, status, *_ in rows("Errors")}
    assert table.keys() == ERRORS.keys()
    for word, (exception, status) in table.items():
        error = error_of(f"{word} text")
        assert type(error).__name__ == exception
        assert status_of(error, command="acquire") == ExitStatus(status)


@pytest.mark.parametrize(
    ("what", "limit"),
    [
        ("words of a command", f"{resp.LIMITS.words_max:,} ({resp.LIMITS_BEFORE_AUTH.words_max} before"),
        ("lock name", f"{LOCK_NAME_BYTES_MAX:,} bytes"),
        ("META", f"{arguments.META_BYTES_MAX:,} bytes"),
        ("owner, session name, client name", f"{arguments.TEXT_BYTES_MAX:,} bytes"),
        ("CLUSTER.SNAPSHOT count", f"{SNAPSHOT_PART_BYTES_MAX:,} bytes"),
        ("peer address", f"{arguments.ADDRESS_BYTES_MAX:,} bytes"),
        ("LOCK.LIST COUNT", f"{arguments.LIST_COUNT_MAX:,} "),
        ("TTL", f"raised to {Limits().ttl_ms_min:,} ms, lowered to {Limits().ttl_ms_max:,} ms"),
        ("WAIT", f"{Limits().wait_ms_max:,} ms"),
        ("NOTIFY waits of a connection", f"{WAITS_PER_CONNECTION_MAX:,}"),
        ("commands, reads and renewals that a node works at; and besides, its waits", f"{CALLS_MAX:,} each"),
        ("connections of a node", f"{CLIENTS_MAX:,}"),
        ("commands behind a blocking WAIT", f"{ConnectionLimits().commands_behind_max:,}"),
    ],
)
def test_the_table_of_limits(what: str, limit: str) -> None:
    table = {row[0]: row[1] for row in rows("Limits")}
    assert table[what].startswith(limit)


def test_every_role_is_there() -> None:
    section = TEXT.split("## Users\n", 1)[1]
    for role in ROLES:
        assert f"\n| {role} |" in section
