"""What a service over a real socket answers, and that a reply follows its commit."""

import asyncio
import importlib
import subprocess
import sys
from collections.abc import Iterator

import httpx
import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lockd.errors import LeaseLost, LockdError, LockTimeout, OutcomeUnknown, StaleToken, Unavailable
from lockd_storage import (
    NotDurable,
    NotFenceable,
    NotInstalled,
    OutsideFence,
    WrongCluster,
    WrongLock,
    WrongMode,
)
from lockd_storage.errors import MalformedToken
from lockd_storage.http import FenceMiddleware, fence_routes, fencing_header, kind_of
from lockd_storage.http.fastapi import fence_of
from lockd_storage.http.problems import KINDS, PROBLEM_JSON, TYPE_PREFIX, error_in, problem_of
from lockd_storage.memory import MemoryFence
from tests.storage.leases import OTHER_CLUSTER, GivenLease
from tests.storage.shop import Shop, open_shop

LEASE = GivenLease(33)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    with open_shop(tmp_path_factory.mktemp("shop")) as shop:
        yield shop


@pytest.fixture
def shop(served: Shop) -> Shop:
    """The one service of this module, with nothing stored and no mark."""
    with served.engine.begin() as connection:
        for table in ("journal", "child", "lockd_fence"):
            connection.exec_driver_sql(f"DELETE FROM {table}")
    served.raised.clear()
    return served


def ask(
    app: ASGIApp, method: str, path: str = "/", *leases: GivenLease, raises: bool = True
) -> httpx.Response:
    """A request to an application without a server; what it raises is raised here, unless told."""

    async def reply() -> httpx.Response:
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=raises)
        async with httpx.AsyncClient(transport=transport, base_url="http://shop") as client:
            return await client.request(method, path, headers=fencing_header(*leases) if leases else {})

    return asyncio.run(reply())


def assert_problem(reply: httpx.Response, status: int, slug: str) -> dict[str, object]:
    assert (reply.status_code, reply.headers["content-type"]) == (status, PROBLEM_JSON), reply.text
    problem = reply.json()
    assert problem["type"] == TYPE_PREFIX + slug
    assert problem["status"] == status
    assert problem["title"]
    assert problem["detail"]
    assert isinstance(problem, dict)
    return problem


def test_a_holder_writes_and_a_stale_one_is_told_who_is_newer(shop: Shop) -> None:
    shop.fence.install(LEASE)
    assert shop.post("/orders?token=33", LEASE).json() == {"added": 33}
    assert shop.post("/orders/by-hand", LEASE).is_success
    shop.fence.install(GivenLease(34))
    for path in ("/orders?token=33", "/orders/by-hand"):
        problem = assert_problem(shop.post(path, LEASE), 412, "stale-token")
        assert (problem["presented"], problem["mark"], problem["resource"]) == (33, 34, "orders")
    assert shop.lines() == [33, 33]


def test_without_a_fence_a_guarded_path_is_refused_early(shop: Shop) -> None:
    for path in ("/orders", "/orders/by-hand", "/orders/none/such"):
        assert_problem(shop.post(path), 428, "outside-fence")
    assert shop.client.get("/orders").json() is False
    assert shop.client.post("/ordersmith").status_code == 404


def test_a_header_that_cannot_be_read_is_refused_wherever_it_goes(shop: Shop) -> None:
    for path in ("/orders", "/elsewhere"):
        reply = shop.client.post(path, headers={"Fencing-Token": "7.1"})
        assert "scheduler's attempt" in str(assert_problem(reply, 400, "malformed-token")["detail"])


def test_what_lockd_run_gives_a_command_is_enough(shop: Shop) -> None:
    shop.fence.install(LEASE)
    for text in (LEASE.fence, f"{LEASE.fence};mode=exclusive"):
        assert shop.client.post("/orders?token=33", headers={"Fencing-Token": text}).is_success
    reply = shop.client.post("/orders?token=33", headers={"Fencing-Token": f"{LEASE.fence};mode=shared"})
    assert_problem(reply, 409, "wrong-mode")
    assert shop.lines() == [33, 33]


def test_a_lease_for_something_else_does_not_count(shop: Shop) -> None:
    shop.fence.install(LEASE)
    problem = assert_problem(shop.post("/orders?token=1", GivenLease(33, lock="stock")), 428, "outside-fence")
    assert "for 'stock' alone" in str(problem["detail"])
    both = shop.post("/orders?token=33", GivenLease(7, lock="stock"), LEASE)
    assert both.is_success
    assert shop.lines() == [33]


def test_a_fence_may_come_in_a_header_line_of_its_own(shop: Shop) -> None:
    shop.fence.install(LEASE)
    lines = [*fencing_header(GivenLease(7, lock="stock")).items(), *fencing_header(LEASE).items()]
    assert shop.client.post("/orders?token=33", headers=lines).is_success


def test_an_entity_of_the_path_has_a_fence_of_its_own(shop: Shop) -> None:
    lease = GivenLease(33, lock="orders:42")
    shop.fence.install(lease)
    assert shop.post("/orders/42/lines", lease).is_success
    assert_problem(shop.post("/orders/43/lines", lease), 428, "outside-fence")
    bare = shop.client.post("/orders/43/lines", headers={"Fencing-Token": lease.fence})
    assert_problem(bare, 409, "not-installed")
    assert shop.lines() == [42]


def test_s2_what_was_not_installed_and_other_clusters_are_refused(shop: Shop) -> None:
    assert_problem(shop.post("/orders?token=1", LEASE), 409, "not-installed")
    shop.fence.install(LEASE)
    assert_problem(shop.post("/orders?token=1", GivenLease(35)), 409, "not-installed")
    stranger = GivenLease(33, cluster=OTHER_CLUSTER)
    assert_problem(shop.post("/orders?token=1", stranger), 409, "wrong-cluster")
    assert shop.lines() == []


def test_pitfall_16_a_token_of_another_cluster_neither_installs_nor_writes(shop: Shop) -> None:
    shop.client.put("/fences/orders", headers=fencing_header(LEASE)).raise_for_status()
    stranger = GivenLease(34, cluster=OTHER_CLUSTER)
    reply = shop.client.put("/fences/orders", headers=fencing_header(stranger))
    assert_problem(reply, 409, "wrong-cluster")
    assert_problem(shop.post("/orders?token=34", stranger), 409, "wrong-cluster")


def test_a_handler_that_raises_rolls_back(shop: Shop) -> None:
    shop.fence.install(LEASE)
    assert shop.post("/orders/changed-my-mind", LEASE).status_code == 422
    assert shop.lines() == []


def test_the_reply_follows_the_commit(shop: Shop) -> None:
    """What only the COMMIT refuses must not have been answered with 200."""
    shop.fence.install(LEASE)
    assert shop.post("/orders/refused-by-commit", LEASE).status_code == 500


def test_known_bad_a_usual_dependency_replies_before_its_commit(shop: Shop) -> None:
    """FastAPI ends dependencies with `yield` after the reply, unless told: why fenced_by tells it."""
    shop.fence.install(LEASE)
    reply = ask(shop.app, "POST", "/orders/replied-before-commit", LEASE, raises=False)
    assert (reply.status_code, reply.json()) == (200, "stored")
    with shop.engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM child").scalar() == 0


REFUSALS: list[tuple[LockdError, int, str]] = [
    (OutsideFence("x", resource="stock"), 428, "outside-fence"),
    (MalformedToken("x"), 400, "malformed-token"),
    (StaleToken("x", resource="orders", presented=33, mark=2**53 - 1), 412, "stale-token"),
    (NotInstalled("x", resource="orders"), 409, "not-installed"),
    (WrongCluster("x", resource="orders"), 409, "wrong-cluster"),
    (WrongLock("x", resource="orders"), 409, "wrong-lock"),
    (WrongMode("x", resource="orders"), 409, "wrong-mode"),
    (NotDurable("x", resource="orders"), 503, "not-durable"),
    (LeaseLost("x", lock="orders", token=33), 503, "out-of-time"),
    (Unavailable("x"), 503, "unavailable"),
    (OutcomeUnknown("x"), 500, "outcome-unknown"),
]


@pytest.mark.parametrize(("error", "status", "slug"), REFUSALS, ids=[slug for _, _, slug in REFUSALS])
def test_what_a_handler_raises_is_answered_by_the_table(
    shop: Shop, error: LockdError, status: int, slug: str
) -> None:
    shop.raised.append(error)
    reply = shop.post("/raise", LEASE)
    problem = assert_problem(reply, status, slug)
    assert ("retry-after" in reply.headers) == (status == 503)
    told = error_in(reply.headers["content-type"], reply.content)
    assert type(told) is (Unavailable if isinstance(error, LeaseLost) else type(error))
    for name in ("resource", "presented", "mark"):
        assert problem.get(name) == getattr(error, name, None) == getattr(told, name, None)


def test_the_table_is_all() -> None:
    assert [(kind.status, kind.slug) for kind in KINDS] == [(status, slug) for _, status, slug in REFUSALS]


@pytest.mark.parametrize(
    "error",
    [
        StaleToken("of a lease of the service's own", resource="stock", presented=7, mark=8),
        LeaseLost("of the service's own", lock="stock", token=7),
        NotInstalled("of another resource", resource="stock"),
        OutsideFence("the handler forgot its lease", resource="orders"),
        NotFenceable("the service is set up wrongly"),
        LockTimeout("no refusal of a fence"),
    ],
    ids=lambda error: str(error).replace(" ", "-"),
)
def test_what_is_not_about_the_callers_lease_is_the_services_own_error(shop: Shop, error: LockdError) -> None:
    shop.raised.append(error)
    reply = shop.post("/raise", LEASE)
    assert (reply.status_code, reply.text) == (500, "Internal Server Error")


def test_a_reply_that_has_begun_is_broken_off(shop: Shop) -> None:
    shop.raised.append(StaleToken("x", resource="orders", presented=33, mark=34))
    with pytest.raises((httpx.RemoteProtocolError, httpx.ReadError)):
        shop.post("/raise-late", LEASE)


def test_a_template_that_the_path_does_not_fill_is_the_services_error(shop: Shop) -> None:
    assert shop.post("/misnamed", LEASE).status_code == 500
    with pytest.raises(ValueError, match="name parameters"):
        fence_of("orders:{0}")


def test_a_service_without_the_middleware_says_what_it_lacks() -> None:
    app = FastAPI()

    @app.post("/")
    def add(lease: object = fence_of("orders")) -> None:
        raise AssertionError(lease)

    with pytest.raises(RuntimeError, match="add_middleware"):
        ask(app, "POST")


def test_the_middleware_refuses_paths_that_would_guard_nothing() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None: ...

    for wrong in ("/orders", ["orders"]):
        with pytest.raises(ValueError, match="slash in front"):
            FenceMiddleware(app, guarded=wrong)


def test_other_connections_than_requests_pass_through() -> None:
    seen: list[Scope] = []

    async def app(scope: Scope, _receive: Receive, _send: Send) -> None:
        seen.append(scope)

    async def receive() -> Message:
        raise AssertionError

    async def send(message: Message) -> None:
        raise AssertionError(message)

    scope = {"type": "websocket", "path": "/orders", "headers": [(b"fencing-token", b"7.1")]}
    asyncio.run(FenceMiddleware(app, guarded=["/orders"])(scope, receive, send))
    assert seen == [scope]


def test_a_plain_starlette_service_with_its_state_in_memory() -> None:
    fence = MemoryFence()
    stock = {"apples": 3}

    async def take(request: Request) -> JSONResponse:
        with fence.write(request.state.fences.lease("stock")):
            stock["apples"] -= 1
        return JSONResponse(stock)

    app = Starlette(routes=[Route("/take", take, methods=["POST"])])
    app.add_middleware(FenceMiddleware, guarded=["/"])
    lease = GivenLease(33, lock="stock")
    fence.install(lease)
    assert ask(app, "POST", "/take", lease).json() == {"apples": 2}
    fence.install(GivenLease(34, lock="stock"))
    assert_problem(ask(app, "POST", "/take", lease), 412, "stale-token")
    assert_problem(ask(app, "POST", "/take"), 428, "outside-fence")
    assert stock == {"apples": 2}


def test_s5_a_request_that_has_used_up_its_time_begins_nothing() -> None:
    fence = MemoryFence()

    async def write(request: Request) -> None:
        with fence.write(request.state.fences.lease("orders")):
            pytest.fail("a write began after the request's time")

    app = Starlette(routes=[Route("/", write, methods=["POST"])])
    app.add_middleware(FenceMiddleware, seconds=0.0)
    fence.install(LEASE)
    assert_problem(ask(app, "POST", "/", LEASE), 503, "out-of-time")


def test_a_problem_can_be_made_where_a_framework_catches_errors_itself() -> None:
    refusal = StaleToken("x", resource="orders", presented=33, mark=34)
    kind = kind_of(refusal)
    assert kind is not None
    assert problem_of(refusal, kind)["mark"] == 34
    assert kind_of(NotFenceable("x")) is None


NAMES = ["orders", "orders:42", "a/b", "/", "a//b", ".", "..", "a b", "100%", "%2F", "é", "a?b#c", "a\\b"]


@pytest.mark.parametrize("name", NAMES)
def test_routes_take_every_name(shop: Shop, name: str) -> None:
    lease = GivenLease(33, lock=name)
    path = "/fences/" + "".join(f"%{byte:02X}" for byte in name.encode())
    assert shop.client.get(path).status_code == 404
    mark = {"resource": name, "lock": name, "fence": lease.fence}
    assert shop.client.put(path, headers=fencing_header(lease)).json() == mark
    assert shop.client.get(path).json() == mark
    found = shop.fence.mark(name)
    assert found is not None
    assert found.resource == name


@pytest.mark.parametrize(
    ("path", "detail"),
    [
        ("/fences/", "1 to 512 bytes"),
        ("/fences/" + "x" * 513, "1 to 512 bytes"),
        ("/fences/a%00b", "no NUL"),
        ("/fences/a%FFb", "not UTF-8"),
        ("/fences/orders?timeout=soon", "no number of seconds"),
        ("/fences/orders?timeout=nan", "no number of seconds"),
        ("/fences/orders?timeout=-1", "no number of seconds"),
    ],
)
def test_routes_refuse_what_makes_no_sense(shop: Shop, path: str, detail: str) -> None:
    reply = shop.client.put(path, headers={"Fencing-Token": LEASE.fence})
    assert detail in str(assert_problem(reply, 400, "malformed-token")["detail"])


def test_an_install_needs_a_lease_and_names_its_lock(shop: Shop) -> None:
    assert_problem(shop.client.put("/fences/orders"), 428, "outside-fence")
    shop.client.put("/fences/orders", headers=fencing_header(LEASE)).raise_for_status()
    other = GivenLease(34, lock="invoices")
    reply = shop.client.put("/fences/orders", headers=fencing_header(other, resource="orders"))
    assert_problem(reply, 409, "wrong-lock")
    assert shop.client.delete("/fences/orders").status_code == 405


def test_routes_serve_an_async_fence() -> None:
    class AsyncTwin:
        """As the adapters for asyncio are: the same verbs, awaited."""

        def __init__(self) -> None:
            self.fence = MemoryFence()

        async def install(self, lease: GivenLease, resource: str, *, timeout: float) -> object:  # noqa: ASYNC109
            return self.fence.install(lease, resource, timeout=timeout)

        async def mark(self, resource: str) -> object:
            return self.fence.mark(resource)

    routes = fence_routes(AsyncTwin())
    assert ask(routes, "PUT", "/orders", LEASE).json()["fence"] == LEASE.fence
    assert ask(routes, "GET", "/orders").json()["fence"] == LEASE.fence


@pytest.mark.parametrize(
    ("module", "missing", "advice"),
    [
        ("lockd_storage.http.client", "httpx", "pip install"),
        ("lockd_storage.http.fastapi", "fastapi", "pip install fastapi"),
    ],
)
def test_a_library_that_is_missing_is_named(
    monkeypatch: pytest.MonkeyPatch, module: str, missing: str, advice: str
) -> None:
    monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImportError, match=f"{module} needs .*{advice}"):
        importlib.import_module(module)


def test_the_middleware_needs_neither() -> None:
    program = (
        "import sys; sys.modules.update(dict.fromkeys(['fastapi', 'httpx', 'sqlalchemy']));"
        " import lockd_storage.http"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
