"""docs/PROTOCOL.md says what the code does."""

import re
from pathlib import Path

import pydantic
import pytest

from lockd.cli.exits import ExitStatus, status_of
from lockd.client.queries import ERRORS, error_of
from lockd.ids import LOCK_NAME_BYTES_MAX
from lockd.locks.events import EventKind
from lockd.locks.limits import Limits
from lockd.protocol import arguments, resp
from lockd.protocol.cluster_verbs import SNAPSHOT_PART_BYTES_MAX
from lockd.protocol.verbs import VERBS
from lockd.server.admin import CONNECTIONS_MAX
from lockd.server.auth import ROLES
from lockd.server.calls import CALLS_MAX
from lockd.server.connection import ConnectionLimits
from lockd.server.history import BYTES_MAX, EVENTS_MAX
from lockd.server.http import models
from lockd.server.http.api import BODY_BYTES_MAX, STATUSES, WAITING_MAX
from lockd.server.http.endpoints import ENDPOINTS, EVENTS
from lockd.server.listener import CLIENTS_MAX
from lockd.server.locking import WAITS_PER_CONNECTION_MAX
from lockd.server.watching import WATCHES_PER_CONNECTION_MAX

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
        ("META", f"{arguments.META_BYTES_MAX:,} bytes of JSON, {arguments.META_DEPTH_MAX} levels"),
        ("REASON", f"{arguments.REASON_BYTES_MAX} bytes"),
        ("LIMIT of a semaphore", f"{Limits().semaphore_limit_max:,}"),
        ("names of an ACQUIREALL", f"{Limits().locks_per_request_max:,}"),
        ("MAXHOLD", f"{Limits().max_hold_ms_max:,} ms"),
        ("DELAY", f"{Limits().delay_ms_max:,} ms"),
        ("waiters of a lock; what a session holds or waits for", f"{Limits().waiters_per_lock_max:,} each"),
        ("sessions", f"{Limits().sessions_max:,}"),
        (
            "requests and locks that a wait with OWNER may depend on, where somebody waits behind that owner",
            f"{Limits().deadlock_search_max:,}",
        ),
        (
            "requests with MAXHOLD in a session; revoked grants of a session that BREAK adds to",
            f"{Limits().revoked_per_session_max:,} each",
        ),
        ("notices that a session has not acknowledged", f"{Limits().notices_per_session_max:,}"),
        ("watches of a connection", f"{WATCHES_PER_CONNECTION_MAX:,}"),
        ("events that a node keeps for watches", f"{EVENTS_MAX:,}, or {BYTES_MAX // 2**20} MiB"),
        ("HTTP: bytes of a body", f"{BODY_BYTES_MAX:,}"),
        ("HTTP: requests under way on a node", f"{WAITING_MAX}"),
        ("HTTP: connections of a node", f"{CONNECTIONS_MAX}"),
        ("CLUSTER.SNAPSHOT count", f"{SNAPSHOT_PART_BYTES_MAX:,} bytes"),
        ("peer address", f"{arguments.ADDRESS_BYTES_MAX:,} bytes"),
        ("COUNT of a list or a queue", f"{arguments.LIST_COUNT_MAX:,} "),
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


def test_the_limits_of_a_reason_and_of_metadata_are_the_states() -> None:
    """The node that takes a command refuses what every node would."""
    limits = Limits()
    assert limits.reason_bytes_max == arguments.REASON_BYTES_MAX
    assert limits.meta_bytes_max == arguments.META_BYTES_MAX
    assert f"over {Limits().refusal_meta_bytes_max} bytes" in TEXT


def test_the_http_statuses() -> None:
    assert {word: int(status) for word, _, _, status, _ in rows("Errors")} == STATUSES


def test_the_paths_of_http() -> None:
    paths = "".join(row[0] for row in rows("HTTP"))
    for row in (*ENDPOINTS, EVENTS):
        assert row.path in paths or f"`/{row.path.rpartition('/')[2]}`" in paths


def test_every_event_is_there() -> None:
    assert {row[0] for row in rows("Watching")} == {kind.value for kind in EventKind}


def shapes(name: str) -> str:
    """What is said of a reply, between its name in bold and the next."""
    return re.split(rf"\*\*{name}\*\*", TEXT, maxsplit=1)[1].split("\n\n", 1)[0]


@pytest.mark.parametrize(
    ("verb", "model"),
    [
        ("SESSION.OPEN", models.SessionOpened),
        ("SESSION.KEEPALIVE", models.Renewed),
        ("SESSION.LIST", models.SessionPage),
        ("LOCK.LIST", models.LockPage),
        ("LOCK.QUEUE", models.Queue),
        ("CLUSTER.STATUS", models.Status),
        ("CLUSTER.MEMBERS", models.Members),
    ],
)
def test_the_fields_of_replies_that_are_told_beside_their_verb(
    verb: str, model: type[pydantic.BaseModel]
) -> None:
    (reply,) = [row[1] for row in rows("Verbs") if row[0].startswith(f"`{verb}")]
    for field in model.model_fields:
        assert re.search(rf"\b{field}\b", reply), field


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("A grant", models.Grant),
        ("A lock", models.Lock),
        ("A lock", models.Holder),
        ("A waiter", models.Waiter),
        ("A session", models.Session),
        ("A member", models.Member),
    ],
)
def test_the_fields_of_replies(name: str, model: type[pydantic.BaseModel]) -> None:
    for field in model.model_fields:
        assert re.search(rf"\b{field}\b", shapes(name)), field


def test_every_role_is_there() -> None:
    section = TEXT.split("## Users\n", 1)[1]
    for role in ROLES:
        assert f"\n| {role} |" in section
