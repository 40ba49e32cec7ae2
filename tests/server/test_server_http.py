"""/v1: JSON in and out, with the statuses of docs/PROTOCOL.md and the rights of the client protocol."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette

from lockd.locks.commands import RequestOrphaned
from lockd.passwords import hash_password
from lockd.protocol.verbs import VERBS
from lockd.server.auth import Users
from lockd.server.http.api import BODY_BYTES_MAX, STATUSES, WAITING_MAX, Api
from lockd.server.http.endpoints import ENDPOINTS, EVENTS
from lockd.server.http.openapi import document
from lockd.server.http.page import page_routes
from lockd.server.listener import Listener
from tests.listener.single import CLUSTER, INCARNATION, SingleNode

PATIENCE_S = 10.0
UUID = "6e0d56a2-93a4-4a8f-8ad3-0123456789ab"


@dataclass
class Served:
    node: SingleNode
    app: Starlette
    http: httpx.AsyncClient

    async def post(self, path: str, **body: Any) -> dict[str, Any]:
        """What a request that must be done tells."""
        return told(await self.http.post(path, json=body))

    async def get(self, path: str, **query: Any) -> dict[str, Any]:
        return told(await self.http.get(path, params=query))

    async def refused(self, path: str, **body: Any) -> tuple[int, str]:
        found = await self.http.post(path, json=body)
        return found.status_code, found.json()["error"]

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not condition():  # noqa: ASYNC110 - it is in several parts of the node
                await asyncio.sleep(0)


def told(response: httpx.Response) -> dict[str, Any]:
    assert response.status_code == 200, response.text
    found = response.json()
    assert isinstance(found, dict)
    return found


@contextlib.asynccontextmanager
async def serving(users: Users | None = None) -> AsyncIterator[Served]:
    node = SingleNode()
    listener = Listener(node, users=users)
    app = Starlette(routes=[*Api(listener.service, node.history, users).routes, *page_routes()])
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://node") as http:
        yield Served(node, app, http)
    if users is not None:
        users.close()


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(main, 30))


def test_a_lock_by_script() -> None:
    async def main() -> None:
        async with serving() as served:
            asked = {"lock": "a/b?c", "ttl_ms": 20_000, "request": UUID, "meta": {"job": "né"}}
            grant = await served.post("/v1/locks/acquire", **asked)
            assert (grant["status"], grant["lock"], grant["mode"], grant["fencing"]) == (
                "granted",
                "a/b?c",
                "exclusive",
                True,
            )
            assert grant["fence"] == f"{CLUSTER}/{INCARNATION}/{grant['token']}"
            assert await served.post("/v1/locks/acquire", **asked) == grant | {"repeat": True}  # G3
            lock = await served.get("/v1/locks/inspect", lock="a/b?c")
            assert (lock["status"], lock["holders"][0]["meta"]) == ("held", {"job": "né"})
            held = {"session": grant["session"]}
            assert await served.post("/v1/sessions/renew", **held) == {"ttl_ms": 20_000, "ended": []}
            change = {"lock": "a/b?c", "token": grant["token"], "meta": [1], **held}
            assert await served.post("/v1/locks/meta", **change) == {"done": True}
            page = await served.get("/v1/locks", prefix="a/")
            assert [found["holders"][0]["meta"] for found in page["locks"]] == [[1]]
            query = {"lock": "a/b?c", "token": grant["token"]}
            assert await served.get("/v1/locks/validate", **query) == {"state": "current"}
            release = {"lock": "a/b?c", "token": grant["token"], **held}
            assert await served.post("/v1/locks/release", **release) == {"done": True}
            assert await served.post("/v1/locks/release", **release) == {"done": False}
            assert await served.get("/v1/locks/validate", **query) == {"state": "free"}

    run(main())


def test_sessions_and_several_locks() -> None:
    async def main() -> None:
        async with serving() as served:
            opened = await served.post("/v1/sessions/open", ttl_ms=10_000, name="n", meta=None)
            session = opened["session"]
            asked = {"session": session, "locks": ["b", "a"], "request": 1}
            grant = await served.post("/v1/locks/acquire-all", **asked)
            assert grant["locks"] == ["a", "b"]
            page = await served.get("/v1/sessions")
            assert [(found["name"], found["held"], found["private"]) for found in page["sessions"]] == [
                ("n", 1, False)
            ]
            assert session not in json.dumps(page)
            all_of_it = {"session": session, "token": grant["token"]}
            assert await served.post("/v1/locks/release-all", **all_of_it) == {"released": 2}
            semaphore = {"lock": "s", "session": session, "limit": 3, "weight": 2}
            grant = await served.post("/v1/locks/acquire", **semaphore)
            assert (grant["mode"], grant["fencing"], grant["weight"]) == ("semaphore", False, 2)
            listed = await served.get("/v1/locks", session=session)
            assert [found["used"] for found in listed["locks"]] == [2]
            cancel = {"lock": "s", "session": session, "request": 9}
            assert await served.post("/v1/locks/cancel", **cancel) == {"done": False}
            assert await served.post("/v1/sessions/close", session=session) == {"done": True}

    run(main())


def test_a_refusal_has_the_status_of_its_word_and_the_facts() -> None:
    async def main() -> None:
        async with serving() as served:
            opened = await served.post("/v1/sessions/open", ttl_ms=10_000, name="billing")
            held = {"lock": "k", "session": opened["session"], "owner": "o", "meta": [1]}
            await served.post("/v1/locks/acquire", **held)
            served.node.advance(50)
            busy = await served.http.post("/v1/locks/acquire", json={"lock": "k", "ttl_ms": 5000})
            assert busy.status_code == 409
            assert busy.json() | {"text": ""} == {
                "error": "BUSY",
                "text": "",
                "lock": "k",
                "holder": "billing",
                "owner": "o",
                "meta": [1],
                "held_ms": 50,
                "queue_length": 0,
            }
            assert await served.refused("/v1/sessions/renew", session="0" * 32) == (404, "NOSESSION")
            assert await served.refused("/v1/locks/acquire", lock="k", ttl_ms=5000, limit=2) == (
                409,
                "MISMATCH",
            )
            served.node.unavailable = True
            assert await served.refused("/v1/locks/acquire", lock="k", ttl_ms=5000) == (503, "UNAVAILABLE")

    run(main())


@pytest.mark.parametrize(
    ("path", "body", "text"),
    [
        ("/v1/locks/acquire", {"lock": "", "ttl_ms": 5}, "a lock's name can't be empty"),
        ("/v1/locks/acquire", {"lock": "k"}, "one of SESSION and TTL is needed, and not both"),
        ("/v1/locks/acquire", {"ttl_ms": 5}, "lock: Field required"),
        ("/v1/locks/acquire", {"lock": "k", "ttl_ms": "5"}, "ttl_ms: Input should be a valid integer"),
        ("/v1/locks/acquire", {"lock": "k", "ttl_ms": True}, "ttl_ms: Input should be a valid integer"),
        ("/v1/locks/acquire", {"lock": "k", "ttl_ms": 5, "nope": 1}, "nope: Extra inputs are not permitted"),
        (
            "/v1/locks/acquire",
            {"lock": "k\r\nx", "ttl_ms": 5},
            "the lock's name contains a control character",
        ),
        ("/v1/locks/acquire", {"lock": "SESSION", "ttl_ms": -5}, "TTL: -5 is not between 1 and"),
        ("/v1/locks/break", {"lock": "k", "token": 1, "reason": ""}, "REASON is empty"),
        ("/v1/members/add", {"node": 4, "peer": "nowhere"}, "'nowhere' is not HOST:PORT"),
        ("/v1/sessions/renew", {"session": "x"}, "session 'x' is not 32 lower-case hex digits"),
    ],
)
def test_each_mistake_is_named(path: str, body: dict[str, Any], text: str) -> None:
    """P6: with the same words as over RESP, and without its usage."""

    async def main() -> None:
        async with serving() as served:
            found = await served.http.post(path, json=body)
            assert (found.status_code, found.json()["error"]) == (400, "ERR")
            assert text in found.json()["text"]
            assert "usage" not in found.json()["text"]
            assert served.node.batches == []

    run(main())


@pytest.mark.parametrize(
    ("content", "headers"),
    [
        (b"{", {"content-type": "application/json"}),
        (b"[" * 50_000, {"content-type": "application/json"}),
        (b"\xff", {"content-type": "application/json"}),
        (b'{"lock": "\\ud800", "ttl_ms": 5000}', {"content-type": "application/json"}),
        (b'{"lock": "k", "ttl_ms": 5000}', {"content-type": "text/plain"}),
        (b'{"lock": "k", "ttl_ms": 5000}', {}),
        (b'{"lock": "' + b"k" * BODY_BYTES_MAX + b'", "ttl_ms": 5}', {"content-type": "application/json"}),
    ],
)
def test_p6_bodies_that_are_none(content: bytes, headers: dict[str, str]) -> None:
    async def main() -> None:
        async with serving() as served:
            found = await served.http.post("/v1/locks/acquire", content=content, headers=headers)
            assert (found.status_code, found.json()["error"]) in {(400, "ERR"), (429, "LIMIT")}
            assert served.node.batches == []

    run(main())


def basic(name: str, password: str) -> httpx.BasicAuth:
    return httpx.BasicAuth(name, password)


def test_g11_rights_are_those_of_the_client_protocol(tmp_path: Path) -> None:
    path = tmp_path / "auth.toml"
    path.write_text(
        "".join(
            f'[users.{name}]\npassword_scrypt = "{hash_password(name)}"\nroles = {roles}\n'
            for name, roles in {"app": ["lock"], "ops": ["operator"], "sheriff": ["break"]}.items()
        )
    )

    async def main() -> None:
        async with serving(Users.load(path)) as served:
            http = served.http
            for name, password in (("app", "wrong"), ("nobody", "x"), ("", "")):
                auth = basic(name, password)
                found = await http.post("/v1/locks/acquire", json={"nonsense": 1}, auth=auth)
                assert (found.status_code, found.json()["error"]) == (401, "NOAUTH")
                assert found.headers["www-authenticate"].startswith("Basic ")
            assert (await http.get("/v1/status")).status_code == 401
            for header in ("", "Basic", "Basic !!", "Bearer eA=="):
                found = await http.get("/v1/status", headers={"authorization": header})
                assert found.status_code == 401
            asked = {"lock": "k", "ttl_ms": 5000}
            grant = told(await http.post("/v1/locks/acquire", json=asked, auth=basic("app", "app")))
            broken = {"lock": "k", "token": grant["token"], "reason": "r", "now": True}
            for name in ("app", "ops"):
                found = await http.post("/v1/locks/break", json=broken, auth=basic(name, name))
                assert (found.status_code, found.json()["error"]) == (403, "NOPERM")
            other = {"session": grant["session"]}
            found = await http.post("/v1/sessions/close", json=other, auth=basic("ops", "ops"))
            assert found.status_code == 403
            for looked_at in ("/v1/locks", "/v1/locks/events", "/v1/members"):
                assert (await http.get(looked_at, auth=basic("ops", "ops"))).status_code == 200
                assert (await http.get(looked_at, auth=basic("sheriff", "sheriff"))).status_code == 403
            assert told(await http.post("/v1/locks/break", json=broken, auth=basic("sheriff", "sheriff")))
            assert served.node.batches[-1]

    run(main())


def test_p6_a_web_page_may_look_and_change_nothing_where_everyone_is_let_in() -> None:
    """DNS rebinding: to the browser it is a page of this node's."""

    async def main() -> None:
        async with serving() as served:
            origin = {"origin": "http://evil.example:7422"}
            asked = {"lock": "k", "ttl_ms": 5000}
            found = await served.http.post("/v1/locks/acquire", json=asked, headers=origin)
            assert (found.status_code, found.json()["error"]) == (403, "NOPERM")
            assert served.node.batches == []
            assert (await served.http.get("/v1/locks", headers=origin)).status_code == 200

    run(main())


class Hung:
    """A request whose client is there until it hangs up, without httpx."""

    def __init__(self, app: Starlette, path: str, body: bytes) -> None:
        self._hang_up = asyncio.Event()
        self._parts = [{"type": "http.request", "body": body, "more_body": False}]
        self.sent: list[dict[str, Any]] = []
        scope = {
            "type": "http",
            "method": "POST",
            "path": path,
            "query_string": b"",
            "headers": [(b"content-type", b"application/json")],
        }
        self.task = asyncio.ensure_future(app(scope, self._receive, self._send))

    async def _receive(self) -> dict[str, Any]:
        if self._parts:
            return self._parts.pop()
        await self._hang_up.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        self.sent.append(message)

    async def hang_up(self) -> None:
        self._hang_up.set()
        await self.task


WAITS = json.dumps({"lock": "k", "ttl_ms": 9000, "wait_ms": "forever"}).encode()


def test_g4_a_wait_whose_connection_ends_is_withdrawn() -> None:
    async def main() -> None:
        async with serving() as served:
            await served.post("/v1/locks/acquire", lock="k", ttl_ms=60_000)
            waits = Hung(served.app, "/v1/locks/acquire", WAITS)
            await served.until(lambda: served.node.machine.inspect("k").queue_length == 1)
            await waits.hang_up()
            assert len(served.node.gone) == 1
            await served.until(lambda: not served.node.pending)
            served.node.advance(9_000)
            assert served.node.machine.inspect("k").queue_length == 0

    run(main())


def test_g4_a_grant_that_comes_after_its_connection_has_ended_is_given_back() -> None:
    async def main() -> None:
        async with serving() as served:
            served.node.hold_back()
            waits = Hung(served.app, "/v1/locks/acquire", WAITS)
            await served.until(lambda: served.node.pending)
            await waits.hang_up()
            served.node.let_go()
            await served.until(lambda: served.node.orphaned())
            assert isinstance(served.node.orphaned()[0], RequestOrphaned)

    run(main())


def test_p6_requests_that_wait_leave_room_for_others() -> None:
    async def main() -> None:
        async with serving() as served:
            await served.post("/v1/locks/acquire", lock="k", ttl_ms=60_000)
            waits = [Hung(served.app, "/v1/locks/acquire", WAITS) for _ in range(WAITING_MAX)]
            await served.until(lambda: served.node.machine.inspect("k").queue_length == WAITING_MAX)
            assert await served.refused("/v1/locks/acquire", lock="x", ttl_ms=5000) == (429, "LIMIT")
            await waits[0].hang_up()
            await served.post("/v1/locks/acquire", lock="x", ttl_ms=5000)
            for one in waits[1:]:
                await one.hang_up()

    run(main())


def test_events_are_told_after_a_revision_and_waited_for() -> None:
    async def main() -> None:
        async with serving() as served:
            grant = await served.post("/v1/locks/acquire", lock="k", ttl_ms=60_000)
            await served.post("/v1/locks/acquire", lock="other", ttl_ms=60_000)
            found = await served.get("/v1/locks/events", prefix="k", after=0)
            assert found["revision"] == 2
            assert [(event["event"], event["lock"], event["meta"]) for event in found["events"]] == [
                ("acquired", "k", None)
            ]
            assert await served.get("/v1/locks/events", after=2) == {"revision": 2, "events": []}
            waits = asyncio.ensure_future(served.get("/v1/locks/events", prefix="k", wait_ms=9000))
            await asyncio.sleep(0)
            release = {"lock": "k", "token": grant["token"], "session": grant["session"]}
            await served.post("/v1/locks/acquire", lock="more", ttl_ms=60_000)
            await served.post("/v1/locks/release", **release)
            found = await waits
            assert (found["revision"], [event["event"] for event in found["events"]]) == (4, ["released"])
            served.node.history.restart(9)
            response = await served.http.get("/v1/locks/events", params={"after": 4})
            assert (response.status_code, response.json()["error"]) == (410, "GONE")

    run(main())


def test_members_status_and_queues() -> None:
    async def main() -> None:
        async with serving() as served:
            status = await served.get("/v1/status")
            assert (status["cluster"], status["leader"], status["members"][0]["voter"]) == (CLUSTER, 1, True)
            assert await served.post("/v1/members/add", node=4, peer="d:7421", learner=True) == {"done": True}
            members = await served.get("/v1/members")
            assert [found["node"] for found in members["members"]] == [1, 4]
            assert await served.post("/v1/members/remove", node=4, force=True) == {"done": True}
            assert served.node.forced == [False, True]
            assert (await served.get("/v1/members"))["removed"] == [4]
            assert await served.post("/v1/members/transfer") == {"done": True}
            await served.post("/v1/locks/acquire", lock="k", ttl_ms=60_000)
            waits = Hung(served.app, "/v1/locks/acquire", WAITS)
            await served.until(lambda: served.node.machine.inspect("k").queue_length == 1)
            queue = await served.get("/v1/locks/queue", lock="k")
            assert [(found["position"], found["locks"]) for found in queue["waiters"]] == [(0, ["k"])]
            await waits.hang_up()

    run(main())


def test_the_page_is_served_and_trusts_nothing() -> None:
    async def main() -> None:
        async with serving() as served:
            page = await served.http.get("/")
            assert page.headers["content-type"].startswith("text/html")
            assert page.headers["content-security-policy"].startswith("default-src 'self'")
            script = (await served.http.get("/page.js")).text
            assert "innerHTML" not in script
            for path in ("/page.js", "/page.css"):
                assert path in page.text
            known = {row.path for row in ENDPOINTS}
            fetched = [word for word in script.split('"') if word.startswith("/v1/")]
            assert fetched
            assert known.issuperset(fetched)

    run(main())


def test_the_document_describes_every_endpoint() -> None:
    found = json.loads(document("1.2.3"))
    assert (found["openapi"], found["info"]["version"]) == ("3.1.0", "1.2.3")
    for row in (*ENDPOINTS, EVENTS):
        operation = found["paths"][row.path][row.method.lower()]
        assert operation["summary"] == row.summary
        schema = operation["responses"]["200"]["content"]["application/json"]["schema"]["$ref"]
        assert schema.removeprefix("#/components/schemas/") in found["components"]["schemas"]
        assert ("requestBody" in operation) == (row.method == "POST")
    references = {part.split('"')[0] for part in json.dumps(found).split('"#/components/schemas/')[1:]}
    assert references <= found["components"]["schemas"].keys()
    identifiers = [found["paths"][row.path][row.method.lower()]["operationId"] for row in ENDPOINTS]
    assert len(set(identifiers)) == len(identifiers)


def test_every_verb_of_locks_and_sessions_has_an_endpoint() -> None:
    sources = (Path(__file__).parents[2] / "lockd/server/http/endpoints.py").read_text(encoding="utf-8")
    for verb in VERBS.values():
        if verb.group in {"lock", "session", "cluster"}:
            # A copy of the state is a stream, for the command line; HTTP has no pushes to end.
            assert f'"{verb.name}"' in sources or verb.name in {"CLUSTER.SNAPSHOT", "LOCK.UNWATCH"}


def test_every_error_has_a_status() -> None:
    assert set(STATUSES.values()) <= {400, 401, 403, 404, 409, 410, 429, 503, 504}
