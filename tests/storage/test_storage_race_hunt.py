"""Some games of the race hunt on each adapter, and the known-bad designs that it must find (SAFETY S1).

`python -m tests.storage.hunt` plays thousands.
"""

import logging
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.servers.moto import S3Server
from tests.servers.valkey import ValkeyServer
from tests.storage.hunt import bad, bad_objects
from tests.storage.hunt.aiosqlite import AiosqliteArena
from tests.storage.hunt.arena import Arena
from tests.storage.hunt.asyncpg import AsyncpgArena, AsyncpgHands
from tests.storage.hunt.awaited import AsyncSqlHands
from tests.storage.hunt.conductor import FIRST_TOKEN, Conductor
from tests.storage.hunt.files import FilesArena
from tests.storage.hunt.http import HttpArena
from tests.storage.hunt.mariadb import MariadbArena
from tests.storage.hunt.memory import MemoryArena
from tests.storage.hunt.postgresql import PostgresArena
from tests.storage.hunt.redis import RedisArena
from tests.storage.hunt.s3 import S3Arena
from tests.storage.hunt.sql import SqlHands
from tests.storage.hunt.sqlite import SqliteArena

SEEDS = range(15)
FEWER_SEEDS = {
    "aiosqlite": range(6),
    "asyncpg": range(6),
    "s3": range(6),
    "mariadb": range(8),
    "http": range(6),
}
"""Where a game takes long: for requests over HTTP, or for not knowing who waits."""

SEEDS_UNTIL_FOUND = 400


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Thousands of refusals are logged: what pytest would keep of them is not read."""
    logger = logging.getLogger("lockd_storage")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    yield
    logger.setLevel(before)


def is_found(arena: Arena, *, first_token: int = FIRST_TOKEN, first_seed: int = 0) -> bool:
    """Whether the rule itself was seen broken, and not a slip in what a bad design tells its holder."""
    seeds = range(first_seed, first_seed + SEEDS_UNTIL_FOUND)
    with closing(Conductor(arena, first_token=first_token)) as conductor:
        return any("install" in words for seed in seeds for words in conductor.play(seed))


@pytest.fixture(
    params=[
        "memory",
        "sqlite",
        "sqlite-wal",
        "aiosqlite",
        pytest.param("postgresql", marks=pytest.mark.postgres),
        pytest.param("asyncpg", marks=pytest.mark.postgres),
        pytest.param("mariadb", marks=pytest.mark.mariadb),
        pytest.param("redis", marks=pytest.mark.valkey),
        "s3",
        "files",
        "http",
    ]
)
def arena(request: pytest.FixtureRequest, tmp_path: Path) -> Arena:
    match request.param:
        case "memory":
            return MemoryArena()
        case "postgresql":
            return PostgresArena(request.getfixturevalue("postgres_url"))
        case "aiosqlite":
            return AiosqliteArena(tmp_path)
        case "asyncpg":
            return AsyncpgArena(request.getfixturevalue("postgres_url"))
        case "mariadb":
            return MariadbArena(request.getfixturevalue("mariadb_url"))
        case "redis":
            return RedisArena(request.getfixturevalue("valkey_server").port)
        case "s3":
            return S3Arena(request.getfixturevalue("s3_server"))
        case "files":
            return FilesArena(tmp_path)
        case "http":
            return HttpArena()
        case name:
            return SqliteArena(tmp_path, journal=name.partition("-")[2] or "delete")


def test_s1_nothing_older_becomes_visible_after_an_install(arena: Arena) -> None:
    seeds = FEWER_SEEDS.get(arena.name, SEEDS)
    with closing(Conductor(arena)) as conductor:
        found = {seed: violations for seed in seeds if (violations := conductor.play(seed))}
    assert not found, f"replay with: python -m tests.storage.hunt --adapter {arena.name} --seeds N"


@pytest.mark.parametrize("journal", ["delete", "wal"])
def test_the_hunt_finds_a_check_before_the_write_lock_on_sqlite(tmp_path: Path, journal: str) -> None:
    arena = SqliteArena(tmp_path, journal=journal)
    arena.hands_type = bad.NoWriteLock
    assert is_found(arena)


def test_the_hunt_finds_a_check_before_the_write_lock_behind_asyncio(tmp_path: Path) -> None:
    arena = AiosqliteArena(tmp_path)
    arena.hands_type = bad.behind_asyncio(bad.NoWriteLock, AsyncSqlHands)
    assert is_found(arena)


@pytest.mark.postgres
@pytest.mark.parametrize(
    "hands",
    [
        pytest.param(bad.MarkMovedAtFirstWrite, id="pitfall_02_mark_moved_at_first_write"),
        pytest.param(bad.OnlyTheFirstTransaction, id="pitfall_03_only_the_first_transaction"),
        pytest.param(bad.UnlockedExists, id="pitfall_04_unlocked_exists"),
        pytest.param(bad.InstallAndWorkInOne, id="pitfall_06_install_and_work_in_one"),
        pytest.param(bad.AutoAdvance, id="pitfall_08_auto_advance"),
    ],
)
def test_the_hunt_finds_what_is_known_to_be_wrong(postgres_url: str, hands: type[SqlHands]) -> None:
    arena = PostgresArena(postgres_url)
    arena.hands_type = hands
    assert is_found(arena)


@pytest.mark.postgres
def test_pitfall_05_the_hunt_finds_a_key_share_lock(postgres_url: str) -> None:
    assert is_found(bad.weakened(PostgresArena(postgres_url)))


@pytest.mark.postgres
@pytest.mark.parametrize(
    ("hands", "first_seed"),  # shortly before one that finds it: a game behind asyncio takes twice as long
    [
        pytest.param(bad.OnlyTheFirstTransaction, 0, id="pitfall_03_only_the_first_transaction"),
        pytest.param(bad.UnlockedExists, 15, id="pitfall_04_unlocked_exists"),
        pytest.param(bad.InstallAndWorkInOne, 1, id="pitfall_06_install_and_work_in_one"),
    ],
)
def test_the_hunt_finds_what_is_known_to_be_wrong_behind_asyncio(
    postgres_url: str, hands: type[bad.OwnCheck], first_seed: int
) -> None:
    arena = AsyncpgArena(postgres_url)
    arena.hands_type = bad.behind_asyncio(hands, AsyncpgHands)
    assert is_found(arena, first_seed=first_seed)


@pytest.mark.postgres
def test_pitfall_05_the_hunt_finds_a_key_share_lock_behind_asyncio(postgres_url: str) -> None:
    assert is_found(bad.weakened(AsyncpgArena(postgres_url)), first_seed=12)


@pytest.mark.mariadb
def test_pitfall_20_the_hunt_finds_a_variable_that_stays_on_a_pooled_connection(mariadb_url: str) -> None:
    assert is_found(bad.LeftoverVariable(mariadb_url), first_seed=5)


@pytest.mark.valkey
def test_pitfall_17_the_hunt_finds_tokens_compared_as_lua_numbers(valkey_server: ValkeyServer) -> None:
    arena = RedisArena(valkey_server.port)
    arena.hands_type = bad_objects.LuaNumbers
    assert is_found(arena, first_token=2**53)


def test_s8_the_hunt_finds_a_token_in_an_objects_metadata_only(s3_server: S3Server) -> None:
    arena = S3Arena(s3_server)
    arena.hands_type = bad_objects.MetadataOnly
    assert is_found(arena)


def test_pitfall_03_the_hunt_finds_a_file_written_outside_the_lock(tmp_path: Path) -> None:
    arena = FilesArena(tmp_path)
    arena.hands_type = bad_objects.CheckedOutsideTheLock
    assert is_found(arena)


def test_pitfall_03_the_hunt_finds_a_check_that_is_the_middlewares_alone() -> None:
    assert is_found(bad_objects.MiddlewareOnly(), first_seed=144)  # seldom before
