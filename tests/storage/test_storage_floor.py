"""The floor and the operator's verbs on SQL stores (SAFETY S2): what goes, who is shut out, what stays."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from lockd.errors import StaleToken
from lockd.ids import TOKEN_MAX, ClusterId
from lockd_storage import NotInstalled, WrongCluster
from lockd_storage.errors import NotFenceable
from lockd_storage.fencing import Floor
from lockd_storage.schema import upgrade
from lockd_storage.sqlalchemy.upkeep import Upkeep
from lockd_storage.tables import fence_floor, fence_marks
from lockd_storage.upkeep import FloorChange
from tests.servers.postgres import PostgresServer
from tests.storage.leases import CLUSTER, OTHER_CLUSTER, OTHER_INCARNATION, GivenLease
from tests.storage.stores import SqlStore, sql_store, sqlite_url


@pytest.fixture
def upkeep(sql: SqlStore) -> Upkeep:
    return Upkeep(sql.engine)


@pytest.fixture
def sqlite_upkeep(sqlite_store: SqlStore) -> Upkeep:
    """For what is decided before the database is asked."""
    return Upkeep(sqlite_store.engine)


def write(store: SqlStore, lease: GivenLease, resource: str | None = None) -> None:
    with store.fence.write(lease, resource) as handle:
        store.add(handle, lease)


def install_and_write(store: SqlStore, lease: GivenLease, resource: str | None = None) -> None:
    store.fence.install(lease, resource)
    write(store, lease, resource)


def assert_shut_out(
    store: SqlStore, lease: GivenLease, *, mark: int | None = None, resource: str | None = None
) -> None:
    """The lease neither writes nor installs. `mark`: what its install is told stands there."""
    before = store.lines()
    with pytest.raises((StaleToken, NotInstalled, WrongCluster)):
        write(store, lease, resource)
    with pytest.raises((StaleToken, WrongCluster)) as refusal:
        store.fence.install(lease, resource)
    if mark is not None:
        assert isinstance(refusal.value, StaleToken)
        assert refusal.value.mark == mark
    assert store.lines() == before


def make_old(store: SqlStore, resource: str, *, days: int) -> None:
    """Have the mark look as if it had been installed so long ago."""
    when = datetime.now(UTC) - timedelta(days=days)
    with store.engine.begin() as connection:
        connection.execute(
            sa.update(fence_marks).where(fence_marks.c.resource == resource).values(installed_at=when)
        )


def resources(upkeep: Upkeep) -> list[str]:
    return [kept.mark.resource for kept in upkeep.marks()]


class TestRaiseFloor:
    def test_s2_no_token_at_or_under_it_installs_or_writes(self, sql: SqlStore, upkeep: Upkeep) -> None:
        install_and_write(sql, GivenLease(33))
        change = upkeep.raise_floor(50)
        assert change == FloorChange(Floor(0), Floor(50), removed=1)
        assert upkeep.floor() == Floor(50)
        for token in (33, 34, 50):
            assert_shut_out(sql, GivenLease(token), mark=50)
        assert_shut_out(sql, GivenLease(50), mark=50, resource="never-seen")
        install_and_write(sql, GivenLease(51))
        assert sql.lines() == [33, 51]

    def test_marks_above_it_stay(self, sql: SqlStore, upkeep: Upkeep) -> None:
        sql.fence.install(GivenLease(33), "below")
        sql.fence.install(GivenLease(50), "at")
        sql.fence.install(GivenLease(51), "above")
        upkeep.raise_floor(50)
        assert resources(upkeep) == ["above"]
        write(sql, GivenLease(51), "above")

    def test_it_never_goes_down_and_may_be_repeated(self, sql: SqlStore, upkeep: Upkeep) -> None:
        sql.fence.install(GivenLease(33))
        upkeep.raise_floor(50)
        for token in (50, 40):
            change = upkeep.raise_floor(token)
            assert change == FloorChange(Floor(50), Floor(50), removed=0)

    @pytest.mark.parametrize("token", [0, -1, TOKEN_MAX, 2**60])
    def test_pitfall_08_a_floor_above_all_tokens_is_refused(self, sqlite_upkeep: Upkeep, token: int) -> None:
        with pytest.raises(ValueError, match="tokens above it"):
            sqlite_upkeep.raise_floor(token)
        assert sqlite_upkeep.floor() == Floor(0)

    def test_it_is_kept_by_the_database_alone(self, sql: SqlStore, upkeep: Upkeep) -> None:
        """Pitfall 13 in its smallest form: nothing of the rule is in this process."""
        upkeep.raise_floor(50)
        sql.engine.dispose()
        again = sa.create_engine(sql.engine.url)
        assert Upkeep(again).floor() == Floor(50)
        again.dispose()


class TestRestoredBackup:
    """Marks 33 in the backup; 34 to 40 were issued, installed and superseded after it."""

    @pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
    def restored(self, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[SqlStore]:
        if request.param == "sqlite":
            with restored_sqlite(tmp_path) as store:
                yield store
        else:
            server = request.getfixturevalue("postgres_server")
            assert isinstance(server, PostgresServer)
            with restored_postgres(server) as store:
                yield store

    def test_pitfall_11_without_raising_the_floor_a_zombie_is_admitted(self, restored: SqlStore) -> None:
        write(restored, GivenLease(33))
        install_and_write(restored, GivenLease(36))
        assert restored.lines() == [33, 33, 36], "if this fails, raise_floor may no longer be needed"

    def test_pitfall_11_raising_the_floor_shuts_every_zombie_out(self, restored: SqlStore) -> None:
        highest_ever_issued = 40
        Upkeep(restored.engine).raise_floor(highest_ever_issued)
        for token in (33, 36, 40):
            assert_shut_out(restored, GivenLease(token), mark=40)
        install_and_write(restored, GivenLease(41))
        assert restored.lines() == [33, 41]

    def test_pitfall_11_adopting_the_cluster_it_has_does_the_same(self, restored: SqlStore) -> None:
        Upkeep(restored.engine).adopt(GivenLease(40).fence)
        for token in (33, 36, 40):
            assert_shut_out(restored, GivenLease(token), mark=40)
        install_and_write(restored, GivenLease(41))


@contextmanager
def restored_sqlite(folder: Path) -> Iterator[SqlStore]:
    url = sqlite_url(folder)
    with sql_store(url) as live:
        install_and_write(live, GivenLease(33))
        live.engine.dispose()
        shutil.copyfile(folder / "data.db", folder / "backup.db")
        install_and_write(live, GivenLease(40))
    shutil.copyfile(folder / "backup.db", folder / "data.db")
    with sql_store(url) as store:
        yield store


@contextmanager
def restored_postgres(server: PostgresServer) -> Iterator[SqlStore]:
    with server.fresh_database() as url:
        with sql_store(url) as live:
            install_and_write(live, GivenLease(33))
            live.engine.dispose()
            name = sa.make_url(url).database
            server.execute(f"CREATE DATABASE {name}_backup TEMPLATE {name} STRATEGY file_copy")
            install_and_write(live, GivenLease(40))
        try:
            with sql_store(f"{url}_backup") as store:
                yield store
        finally:
            server.execute(f"DROP DATABASE {name}_backup WITH (FORCE)")


def test_pitfall_12_a_restored_lockd_goes_on_upwards_and_needs_nothing_here(
    sql: SqlStore, upkeep: Upkeep
) -> None:
    install_and_write(sql, GivenLease(33))
    again = GivenLease(33, incarnation=OTHER_INCARNATION)  # what must never be issued (SAFETY P2, G2)
    assert_shut_out(sql, again, mark=33)
    install_and_write(sql, GivenLease(33 + 2**32, incarnation=OTHER_INCARNATION))
    assert_shut_out(sql, GivenLease(34), mark=33 + 2**32)
    assert upkeep.floor() == Floor(0)


class TestPurge:
    def test_pitfall_14_a_mark_removed_by_hand_lets_a_zombie_in(self, sql: SqlStore) -> None:
        install_and_write(sql, GivenLease(33))
        install_and_write(sql, GivenLease(34))
        with sql.engine.begin() as connection:
            connection.execute(sa.delete(fence_marks))
        install_and_write(sql, GivenLease(33))
        assert sql.lines() == [33, 34, 33], "if this fails, purge may no longer have to raise the floor"

    def test_pitfall_14_a_purged_mark_refuses_as_before(self, sql: SqlStore, upkeep: Upkeep) -> None:
        sql.fence.install(GivenLease(33))
        sql.fence.install(GivenLease(34))
        make_old(sql, "orders", days=91)
        change = upkeep.purge(timedelta(days=90))
        assert change == FloorChange(Floor(0), Floor(34), removed=1)
        for token in (33, 34):
            assert_shut_out(sql, GivenLease(token), mark=34)
        install_and_write(sql, GivenLease(35))

    def test_younger_marks_stay_and_their_holders_write_on(self, sql: SqlStore, upkeep: Upkeep) -> None:
        sql.fence.install(GivenLease(20), "young")
        sql.fence.install(GivenLease(34), "old")
        make_old(sql, "old", days=91)
        upkeep.purge(timedelta(days=90))
        assert resources(upkeep) == ["young"]
        assert upkeep.floor() == Floor(34)
        write(sql, GivenLease(20), "young")
        sql.fence.install(GivenLease(20), "young")  # the very same: a lost reply
        assert_shut_out(sql, GivenLease(19), resource="young", mark=34)
        assert_shut_out(sql, GivenLease(34), resource="young", mark=34)

    def test_an_install_makes_a_mark_young_again(self, sql: SqlStore, upkeep: Upkeep) -> None:
        sql.fence.install(GivenLease(33))
        make_old(sql, "orders", days=91)
        sql.fence.install(GivenLease(34))
        assert upkeep.purge(timedelta(days=90)).removed == 0

    def test_only_resources_of_the_prefix_go_letter_by_letter(self, sql: SqlStore, upkeep: Upkeep) -> None:
        for name in ("orders:1", "Orders:1", "orders_1", "orders"):
            sql.fence.install(GivenLease(33, lock=name))
            make_old(sql, name, days=91)
        assert upkeep.purge(timedelta(days=90), prefix="orders:").removed == 1
        assert resources(upkeep) == ["Orders:1", "orders", "orders_1"]
        assert [kept.mark.resource for kept in upkeep.marks("orders_")] == ["orders_1"]

    def test_more_marks_go_than_one_statement_takes(self, sql: SqlStore, upkeep: Upkeep) -> None:
        old = datetime.now(UTC) - timedelta(days=91)
        row = {"lock": "l", "cluster": CLUSTER, "incarnation": "0000000a", "installed_at": old}
        with sql.engine.begin() as connection:
            connection.execute(
                sa.insert(fence_marks), [row | {"resource": f"r{n}", "token": n} for n in range(1, 1202)]
            )
        change = upkeep.purge(timedelta(days=90))
        assert (change.after, change.removed) == (Floor(1201), 1201)
        assert upkeep.marks() == []

    def test_marks_of_several_clusters_are_left_alone(self, sql: SqlStore, upkeep: Upkeep) -> None:
        sql.fence.install(GivenLease(33), "a")
        sql.fence.install(GivenLease(7, cluster=OTHER_CLUSTER), "b")
        make_old(sql, "a", days=91)
        with pytest.raises(WrongCluster, match="adopt"):
            upkeep.purge(timedelta(days=90))
        assert resources(upkeep) == ["a", "b"]
        assert upkeep.floor() == Floor(0)


class TestAdopt:
    def test_s2_no_lease_of_the_old_cluster_writes_or_installs_again(
        self, sql: SqlStore, upkeep: Upkeep
    ) -> None:
        install_and_write(sql, GivenLease(1000))
        fresh = GivenLease(5, cluster=OTHER_CLUSTER)
        change = upkeep.adopt(fresh.fence)
        assert change == FloorChange(Floor(0), Floor(5, ClusterId(OTHER_CLUSTER)), removed=1)
        for token in (1000, 2000):
            assert_shut_out(sql, GivenLease(token))
        install_and_write(sql, GivenLease(6, cluster=OTHER_CLUSTER))
        assert sql.lines() == [1000, 6]

    def test_pitfall_16_once_adopted_no_other_cluster_installs_where_there_is_no_mark(
        self, sql: SqlStore, upkeep: Upkeep
    ) -> None:
        upkeep.adopt(GivenLease(5).fence)
        with pytest.raises(WrongCluster, match=f"belongs to cluster {CLUSTER}, not {OTHER_CLUSTER}"):
            sql.fence.install(GivenLease(99, cluster=OTHER_CLUSTER), "never-seen")
        assert upkeep.marks() == []

    def test_moving_away_and_back_lets_no_earlier_lease_in(self, sql: SqlStore, upkeep: Upkeep) -> None:
        sql.fence.install(GivenLease(100))
        upkeep.adopt(GivenLease(5, cluster=OTHER_CLUSTER).fence)
        upkeep.adopt(GivenLease(130).fence)
        for token in (100, 110, 130):
            assert_shut_out(sql, GivenLease(token), mark=130)
        assert_shut_out(sql, GivenLease(6, cluster=OTHER_CLUSTER))
        install_and_write(sql, GivenLease(131))

    @pytest.mark.parametrize("is_named", [True, False])
    def test_within_a_cluster_the_floor_does_not_go_down(
        self, sql: SqlStore, upkeep: Upkeep, *, is_named: bool
    ) -> None:
        if is_named:
            upkeep.adopt(GivenLease(50).fence)
        sql.fence.install(GivenLease(60))
        upkeep.raise_floor(55)
        assert upkeep.adopt(GivenLease(40).fence).after == Floor(55, upkeep.floor().cluster)
        assert_shut_out(sql, GivenLease(55), mark=60)
        write(sql, GivenLease(60))

    def test_a_floor_of_unknown_cluster_does_not_shut_the_new_one_out(
        self, sql: SqlStore, upkeep: Upkeep
    ) -> None:
        upkeep.raise_floor(1000)
        upkeep.adopt(GivenLease(5, cluster=OTHER_CLUSTER).fence)
        install_and_write(sql, GivenLease(6, cluster=OTHER_CLUSTER))

    @pytest.mark.parametrize("text", ["", "5", f"{CLUSTER}/5", f"{CLUSTER}/0000000a/{TOKEN_MAX}"])
    def test_what_is_no_fence_is_refused(self, sqlite_upkeep: Upkeep, text: str) -> None:
        with pytest.raises(ValueError, match="not"):
            sqlite_upkeep.adopt(text)


def test_marks_tell_when_they_were_installed_in_utc(sql: SqlStore, upkeep: Upkeep) -> None:
    before = datetime.now(UTC) - timedelta(seconds=2)
    mark = sql.fence.install(GivenLease(33))
    (kept,) = upkeep.marks()
    assert kept.mark == mark
    assert kept.installed_at is not None
    assert before <= kept.installed_at <= datetime.now(UTC) + timedelta(seconds=2)


def test_without_a_store_the_verbs_say_how_to_make_one(tmp_path: Path) -> None:
    engine = sa.create_engine(sqlite_url(tmp_path))
    for verb in (Upkeep(engine).marks, Upkeep(engine).floor, lambda: Upkeep(engine).raise_floor(5)):
        with pytest.raises(NotInstalled, match="lockd fences upgrade"):
            verb()
    engine.dispose()


def test_a_store_of_the_first_version_is_refused_until_it_is_upgraded(tmp_path: Path) -> None:
    with sql_store(sqlite_url(tmp_path)) as store:
        with store.engine.begin() as connection:
            connection.execute(sa.text("ALTER TABLE lockd_fence_floor DROP COLUMN cluster"))
            connection.execute(sa.text("UPDATE lockd_alembic_version SET version_num = 'fence_0001'"))
        with pytest.raises(NotInstalled):
            store.fence.install(GivenLease(33))
        with pytest.raises(NotInstalled, match="lockd fences upgrade"):
            Upkeep(store.engine).floor()
        upgrade(store.engine)
        install_and_write(store, GivenLease(33))


def test_a_store_without_its_floor_row_fails_closed(sql: SqlStore) -> None:
    with sql.engine.begin() as connection:
        connection.execute(sa.delete(fence_floor))
    with pytest.raises(sa.exc.SQLAlchemyError):
        sql.fence.install(GivenLease(33))
    assert sql.fence.mark("orders") is None


def test_another_kind_of_engine_is_refused() -> None:
    with pytest.raises(NotFenceable, match="Upkeep takes an Engine"):
        Upkeep(object())  # type: ignore[arg-type]
