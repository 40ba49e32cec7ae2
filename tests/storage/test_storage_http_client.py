"""The caller's side: what a missing, late or refused reply means."""

import asyncio
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Thread

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route

import lockd
from lockd.errors import LeaseLost, OutcomeUnknown, StaleToken, Unavailable
from lockd.testing import Server
from lockd_storage import NotInstalled, WrongCluster, WrongMode
from lockd_storage.http import FenceMiddleware, fence_routes
from lockd_storage.http.client import AsyncHttpFence, FencingAuth, HttpFence, raise_for_fence
from lockd_storage.http.problems import PROBLEM_JSON, TYPE_PREFIX
from lockd_storage.memory import MemoryFence
from tests.storage.http_store import Sites
from tests.storage.leases import OTHER_CLUSTER, GivenLease
from tests.storage.web import PATIENCE_S

LEASE = GivenLease(33, lock="till")
NEW = GivenLease(34, lock="till")


class Till:
    """A service that counts what it was paid, and can be slow to reply after it has."""

    def __init__(self) -> None:
        self.fence = MemoryFence()
        self.paid = 0
        self.headers: list[str | None] = []
        self.written = Event()
        self.reply = Event()
        self.reply.set()

    def pay(self, request: Request) -> Response:
        self.headers.append(request.headers.get("authorization"))
        with self.fence.write(request.state.fences.lease("till")):
            self.paid += 1
        self.written.set()
        assert self.reply.wait(PATIENCE_S)
        return JSONResponse({"paid": self.paid})

    def application(self) -> Starlette:
        app = Starlette(
            routes=[
                Route("/pay", self.pay, methods=["POST"]),
                Mount("/fences", fence_routes(self.fence)),
            ]
        )
        app.add_middleware(FenceMiddleware, guarded=["/pay"])
        return app


@pytest.fixture
def till() -> Till:
    return Till()


@pytest.fixture
def client(till: Till, sites: Sites) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=sites.open(till.application()), timeout=PATIENCE_S) as found:
        yield found
        till.reply.set()


def test_a_holder_installs_and_sends(till: Till, client: httpx.Client) -> None:
    fence = HttpFence(client)
    assert fence.mark("till") is None
    mark = fence.install(LEASE)
    assert (mark.lock, str(mark.fence)) == ("till", LEASE.fence)
    assert fence.mark("till") == mark
    calls = fence.calls(LEASE)
    assert calls.send("POST", "/pay").json() == {"paid": 1}
    assert calls.send("GET", "/nowhere").status_code == 404
    fence.install(NEW)
    with pytest.raises(StaleToken) as refused:
        calls.send("POST", "/pay")
    assert (refused.value.presented, refused.value.mark, refused.value.resource) == (33, 34, "till")
    assert till.paid == 1


def test_pitfall_23_a_refused_repeat_of_a_timed_out_request_is_no_refusal_of_it(
    till: Till, client: httpx.Client
) -> None:
    """The first try was applied, its reply was late, and the repeat comes after the lock has passed on."""
    fence = HttpFence(client)
    fence.install(LEASE)
    calls = fence.calls(LEASE)
    till.reply.clear()
    with pytest.raises(OutcomeUnknown, match="may have been applied"):
        calls.send("POST", "/pay", timeout=httpx.Timeout(PATIENCE_S, read=0.1))
    assert till.written.wait(PATIENCE_S)
    till.reply.set()
    fence.install(NEW)
    with pytest.raises(OutcomeUnknown, match="an earlier try got no reply") as unknown:
        calls.send("POST", "/pay")
    assert isinstance(unknown.value.__cause__, StaleToken)
    assert till.paid == 1, "it was written, though the repeat was refused"
    with pytest.raises(StaleToken):
        calls.send("POST", "/pay?other")


def test_a_repeat_that_is_answered_settles_it(till: Till, client: httpx.Client) -> None:
    fence = HttpFence(client)
    fence.install(LEASE)
    calls = fence.calls(LEASE)
    till.reply.clear()
    with pytest.raises(OutcomeUnknown):
        calls.send("POST", "/pay", timeout=httpx.Timeout(PATIENCE_S, read=0.1))
    till.reply.set()
    assert calls.send("POST", "/pay").is_success
    fence.install(NEW)
    with pytest.raises(StaleToken):
        calls.send("POST", "/pay")


def test_what_was_never_sent_is_unavailable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    with httpx.Client(base_url=url) as client:
        fence = HttpFence(client)
        attempts: list[Callable[[], object]] = [
            lambda: fence.install(LEASE),
            lambda: fence.mark("till"),
            lambda: fence.calls(LEASE).send("POST", "/pay"),
        ]
        for attempt in attempts:
            with pytest.raises(Unavailable):
                attempt()


@contextmanager
def hanging_up() -> Iterator[str]:
    """A service that reads a request and closes the connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                connection, _ = listener.accept()
                with connection:
                    if not connection.recv(1):
                        return

        thread = Thread(target=serve)
        thread.start()
        address = listener.getsockname()
        try:
            yield f"http://127.0.0.1:{address[1]}"
        finally:
            socket.create_connection(address).close()
            thread.join(PATIENCE_S)


def test_a_lost_reply_to_an_install_is_unknown_and_again_is_fine(client: httpx.Client) -> None:
    with hanging_up() as url, httpx.Client(base_url=url) as cut, pytest.raises(OutcomeUnknown):
        HttpFence(cut).install(LEASE)
    with hanging_up() as url, httpx.Client(base_url=url) as cut, pytest.raises(Unavailable):
        HttpFence(cut).mark("till")
    fence = HttpFence(client)
    assert fence.install(LEASE) == fence.install(LEASE)


def test_a_lease_that_has_ended_sends_nothing(till: Till, client: httpx.Client) -> None:
    fence = HttpFence(client)
    ended = GivenLease(33, lock="till")
    fence.install(ended)
    ended.seconds = 0.0
    attempts: list[Callable[[], object]] = [
        lambda: fence.install(ended),
        lambda: fence.calls(ended).send("POST", "/pay"),
        lambda: client.post("/pay", auth=FencingAuth(ended)),
    ]
    for attempt in attempts:
        with pytest.raises(LeaseLost):
            attempt()
    assert till.headers == []
    fence.install(NEW)
    with pytest.raises(StaleToken):
        fence.calls(ended).send("POST", "/pay")


def test_g10_a_shared_lease_does_not_write_and_a_semaphores_presents_nothing(
    till: Till, client: httpx.Client
) -> None:
    fence = HttpFence(client)
    reader = GivenLease(33, lock="till", mode="shared")
    fence.install(reader)
    with pytest.raises(WrongMode, match="exclusively"):
        fence.calls(reader).send("POST", "/pay")
    with pytest.raises(WrongMode, match="no order"):
        fence.calls(GivenLease(33, lock="till", mode="semaphore"))
    with pytest.raises(WrongMode):
        raise_for_fence(client.post("/pay", auth=FencingAuth(reader)))
    assert till.paid == 0


def test_a_pinned_cluster_sends_nothing_else(client: httpx.Client) -> None:
    with pytest.raises(WrongCluster):
        HttpFence(client, cluster=OTHER_CLUSTER).install(LEASE)
    assert HttpFence(client).mark("till") is None


def test_requests_of_another_kind_present_a_lease_too(till: Till, client: httpx.Client) -> None:
    HttpFence(client).install(LEASE)
    client.headers["Authorization"] = "Bearer of-the-service"
    reply = raise_for_fence(client.post("/pay", auth=FencingAuth(LEASE)))
    assert reply.json() == {"paid": 1}
    assert till.headers == ["Bearer of-the-service"]
    with pytest.raises(NotInstalled):
        raise_for_fence(client.post("/pay", auth=FencingAuth(NEW)))


def test_the_async_twins(till: Till, client: httpx.Client) -> None:
    async def use() -> None:
        async with httpx.AsyncClient(base_url=client.base_url, timeout=PATIENCE_S) as found:
            fence = AsyncHttpFence(found)
            assert await fence.mark("till") is None
            mark = await fence.install(LEASE)
            assert await fence.mark("till") == mark
            calls = fence.calls(LEASE)
            assert (await calls.send("POST", "/pay")).is_success
            assert (await found.post("/pay", auth=FencingAuth(LEASE))).is_success
            till.reply.clear()
            with pytest.raises(OutcomeUnknown):
                await calls.send("POST", "/pay", timeout=httpx.Timeout(PATIENCE_S, read=0.1))
            till.reply.set()
            await fence.install(NEW)
            with pytest.raises(OutcomeUnknown, match="an earlier try"):
                await calls.send("POST", "/pay")
            ended = GivenLease(33, lock="till", seconds=0.0)
            with pytest.raises(StaleToken):
                await fence.calls(ended).send("POST", "/pay")
        with hanging_up() as url:
            async with httpx.AsyncClient(base_url=url) as cut:
                with pytest.raises(OutcomeUnknown):
                    await AsyncHttpFence(cut).install(LEASE)
                with pytest.raises(Unavailable):
                    await AsyncHttpFence(cut).mark("till")

    asyncio.run(use())
    assert till.paid == 3


def reply(status: int, body: bytes = b"", content_type: str = "text/plain") -> httpx.Response:
    request = httpx.Request("POST", "http://shop/pay")
    return httpx.Response(status, content=body, headers={"content-type": content_type}, request=request)


@pytest.mark.parametrize("status", [502, 504])
def test_a_gateway_that_gave_up_leaves_it_unknown(status: int) -> None:
    with pytest.raises(OutcomeUnknown, match="in between"):
        raise_for_fence(reply(status))


def test_a_refusal_that_a_later_version_invents_settles_nothing() -> None:
    later = f'{{"type": "{TYPE_PREFIX}later", "detail": "x"}}'.encode()
    stale_without_its_mark = f'{{"type": "{TYPE_PREFIX}stale-token", "presented": "33"}}'.encode()
    for body in (later, stale_without_its_mark):
        with pytest.raises(OutcomeUnknown, match="not known here"):
            raise_for_fence(reply(412, body, PROBLEM_JSON))


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"{", PROBLEM_JSON),
        (b"[]", PROBLEM_JSON),
        (b"{}", PROBLEM_JSON),
        (b'{"type": 7}', PROBLEM_JSON),
        (b'{"type": "about:blank"}', f"{PROBLEM_JSON}; charset=utf-8"),
        (b"\xff", PROBLEM_JSON),
        (f'{{"type": "{TYPE_PREFIX}stale-token"}}'.encode(), "application/json"),
    ],
)
def test_other_replies_are_the_callers(body: bytes, content_type: str) -> None:
    assert raise_for_fence(reply(412, body, content_type)).status_code == 412


def test_a_service_without_the_routes_is_named_as_that(sites: Sites) -> None:
    async def hello(_: Request) -> Response:
        return Response("hello")

    url = sites.open(Starlette(routes=[Route("/fences/till", hello, methods=["GET"])]))
    with httpx.Client(base_url=url) as client:
        fence = HttpFence(client)
        with pytest.raises(Unavailable, match="no fence routes: 200"):
            fence.mark("till")
        with pytest.raises(Unavailable, match="no fence routes: 405"):
            fence.install(LEASE)
        with pytest.raises(Unavailable, match="no fence routes: 404"):
            HttpFence(client, "/elsewhere").install(LEASE)


@pytest.mark.parametrize("name", ["a/b", "//", ".", "..", "a b", "100%", "%2F", "é", "a?b#c", 'a"b\\c'])
def test_names_of_every_kind_reach_the_service(till: Till, client: httpx.Client, name: str) -> None:
    fence = HttpFence(client)
    lease = GivenLease(33, lock=name)
    mark = fence.install(lease)
    assert mark == till.fence.mark(name) == fence.mark(name)
    assert (mark.resource, mark.lock) == (name, name)


def test_a_name_that_no_path_can_have_is_refused(client: httpx.Client) -> None:
    with pytest.raises(ValueError, match="line break"):
        HttpFence(client).install(LEASE, "a\nb")


def test_the_decorator_installs_at_the_service(
    till: Till, client: httpx.Client, lockd_client: lockd.Client
) -> None:
    fence = HttpFence(client)

    @lockd_client.locked("till", fence=fence)
    def pay(*, lease: lockd.Lease = lockd.HELD) -> int:
        fence.calls(lease).send("POST", "/pay")
        return lease.token

    first, second = pay(), pay()
    assert first < second
    assert till.paid == 2
    mark = fence.mark("till")
    assert mark is not None
    assert mark.token == second


def test_the_decorator_installs_with_an_async_client(
    till: Till, client: httpx.Client, lockd_server: Server
) -> None:
    async def use() -> None:
        async with (
            httpx.AsyncClient(base_url=client.base_url) as found,
            lockd.AsyncClient(lockd_server.endpoint) as locks,
        ):
            fence = AsyncHttpFence(found)

            @locks.locked("till", fence=fence)
            async def pay(*, lease: lockd.AsyncLease = lockd.HELD) -> None:
                await fence.calls(lease).send("POST", "/pay")

            await pay()

    asyncio.run(use())
    assert till.paid == 1


def test_s5_an_install_waits_as_long_as_it_is_told(till: Till, client: httpx.Client) -> None:
    fence = HttpFence(client)
    fence.install(LEASE)
    with till.fence.write(LEASE), pytest.raises(Unavailable, match=r"did not end in 0\.05 s"):
        fence.install(NEW, timeout=0.05)
    fence.install(NEW)
