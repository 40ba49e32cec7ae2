"""What lockd may refuse the office, by a real node: what passes is tried again, what does not ends it."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from lockd.errors import Unavailable
from lockd.locks.limits import Limits
from lockd.server.auth import Users
from lockd.testing import Server, running_server
from lockd_scheduler import BadSchedule, Cron
from lockd_scheduler.app import Settings, start_service
from lockd_scheduler.errors import SchedulerError
from lockd_scheduler.offices import LockdOffice
from lockd_scheduler.tenure import Phase
from tests.listener.harness import Serving, serving
from tests.scheduler.harness import World

PATIENCE = 20.0
NOBODYS = f"scrypt$16384$8$1${'00' * 16}${'00' * 32}"
"""A hash that no password has."""


@pytest.fixture
def users(tmp_path: Path) -> Users:
    file = tmp_path / "users.toml"
    file.write_text(f'[users.me]\npassword_scrypt = "{NOBODYS}"\nroles = ["lock"]\n')
    return Users.load(file)


@pytest.fixture
def server() -> Iterator[Server]:
    with running_server() as server:
        yield server


@pytest.mark.parametrize("db_url", ["sqlite"], indirect=True)
def test_a_limit_is_told_once_and_tried_again(
    world: World, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    machine = server._node.driver.machine  # no setting lowers a limit of the cluster
    machine.state.limits = Limits(sessions_max=0)
    office = LockdOffice(server.endpoint, name="ops", lease_ttl=5.0, holder="me")
    process = world.process()
    process.officer.office = office
    try:
        assert [process.officer.turn() > 0 for _ in range(2)] == [True, True]
        [line] = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
        assert "trying on scope=ops: lockd refuses the office: sessions" in line
        machine.state.limits = Limits()
        process.officer.turn()
        assert process.officer.tenure.phase is Phase.TAKING
    finally:
        process.officer.stop()
        office.close()


def test_who_is_not_let_in_at_the_start_ends_with_one_line(
    users: Users, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def serve(node: Serving) -> Exception | None:
        endpoint = f"127.0.0.1:{node.listener.port}"
        settings = Settings.from_words(db=f"sqlite:///{tmp_path}/l.db", lockd=endpoint, listen_http="off")
        service = start_service("ops", Cron("ops").jobs, settings, None)
        try:
            assert service.ended.wait(PATIENCE)
            return service.failure
        finally:
            service.stop(drain=0)

    async def main() -> Exception | None:
        async with serving(users=users) as node:
            return await asyncio.to_thread(serve, node)

    failure = asyncio.run(main())
    assert isinstance(failure, SchedulerError)
    assert str(failure).startswith("lockd refuses this scheduler: authentication required")
    assert not any(record.exc_info for record in caplog.records), "no traceback for a wrong setting"


def test_who_was_let_in_before_tries_on(users: Users) -> None:
    def campaigns(node: Serving, loop: asyncio.AbstractEventLoop) -> None:
        office = LockdOffice(f"127.0.0.1:{node.listener.port}", name="ops", lease_ttl=1.0, holder="me")
        try:
            seat = office.campaign(1.0)
            assert seat is not None
            seat.resign()
            node.listener._users = users  # as a node that is started again with a file
            loop.call_soon_threadsafe(node.listener.cut_off, "a restart")
            told = ""
            while "authentication required" not in told:
                with pytest.raises(Unavailable) as caught:
                    office.campaign(0.5)  # the session that it had ends first, with its TTL
                told = str(caught.value)
        finally:
            office.close()

    async def main() -> None:
        async with serving() as node:
            await asyncio.to_thread(campaigns, node, asyncio.get_running_loop())

    asyncio.run(main())


def test_a_name_that_no_lock_can_have_is_refused(tmp_path: Path) -> None:
    settings = Settings.from_words(db=f"sqlite:///{tmp_path}/l.db", lockd="127.0.0.1:1", listen_http="off")
    with pytest.raises(BadSchedule, match=r"name is too long for a lock .* 816 bytes, at most 512"):
        start_service("\U0001f600" * 200, {}, settings, None)
