"""Lost answers, stores that ignore conditions, and errors of a store (SAFETY S8, S9)."""

import hashlib
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from threading import Thread
from typing import TYPE_CHECKING, Any, ClassVar

import boto3
import botocore.session
import pytest
import urllib3
from botocore.awsrequest import AWSPreparedRequest, AWSResponse
from botocore.compat import HTTPHeaders

from lockd.errors import OutcomeUnknown, StaleToken, Unavailable
from lockd.testing.ports import free_port
from lockd_storage import NotFenceable
from lockd_storage.s3 import S3Fence
from tests.servers.moto import S3Server, s3_client
from tests.servers.proxy import LossyProxy, lossy_proxy
from tests.storage.leases import GivenLease
from tests.storage.s3_stores import S3Store

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

Then = Callable[[], object]


@pytest.fixture
def proxy(s3_server: S3Server) -> Iterator[LossyProxy]:
    with lossy_proxy(s3_server.port) as proxy:
        yield proxy


@pytest.fixture
def client(proxy: LossyProxy) -> "S3Client":
    """A client behind the proxy, which sends nothing again by itself."""
    return s3_client(proxy.port)


@pytest.fixture
def behind(s3_store: S3Store, client: "S3Client") -> S3Fence:
    """A fence of the store's bucket behind the proxy, with 33 installed."""
    fence = S3Fence(client, s3_store.bucket)
    fence.install(GivenLease(33))
    return fence


def commit(fence: S3Fence, lease: GivenLease, *, then: Then, body: bytes = b"") -> None:
    """A block that puts one object, or sets the body if one is given, does `then`, and ends."""
    with fence.write(lease) as objects:
        if body:
            objects.body = body
        else:
            objects.put("a", str(lease.token).encode())
        then()


def losing(proxy: LossyProxy) -> Then:
    """From when it is called the answer to each PUT of a mark is lost.

    It is known by its content: boto3 sends that once the server has said 100 Continue to the headers.
    """

    def lose() -> None:
        proxy.lose = b'"revision"'

    return lose


def once(client: "S3Client", operation: str, act: Then) -> None:
    """Do `act` just before the client's next request of that kind."""
    event = f"before-call.s3.{operation}"

    def handler(**_: object) -> None:
        client.meta.events.unregister(event, handler)
        act()

    client.meta.events.register(event, handler)


def test_s9_a_lost_answer_to_a_commit_is_found_out(
    s3_store: S3Store, behind: S3Fence, proxy: LossyProxy
) -> None:
    commit(behind, GivenLease(33), then=losing(proxy))
    assert s3_store.lines() == [33]


def test_s9_a_commit_that_boto_sent_again_is_not_taken_for_a_stale_one(
    s3_store: S3Store, proxy: LossyProxy
) -> None:
    """The second try meets the first one's new ETag: 412, of a write that was applied."""
    client = s3_client(proxy.port, retries=2)
    fence = S3Fence(client, s3_store.bucket)
    fence.install(GivenLease(33))
    tries: list[int] = []

    def let_the_next_through(attempts: int, **_: object) -> None:
        tries.append(attempts)
        proxy.lose = None

    client.meta.events.register("needs-retry.s3.PutObject", let_the_next_through)
    commit(fence, GivenLease(33), then=losing(proxy))
    assert tries[-1] == 2
    assert s3_store.lines() == [33]


def test_s9_a_lost_answer_to_an_install_is_found_out(
    s3_store: S3Store, behind: S3Fence, proxy: LossyProxy
) -> None:
    losing(proxy)()
    behind.install(GivenLease(34))
    mark = s3_store.fence.mark("orders")
    assert mark is not None
    assert mark.token == 34


def test_s9_when_nothing_can_be_found_out_the_outcome_is_unknown(
    s3_store: S3Store, client: "S3Client", behind: S3Fence, proxy: LossyProxy
) -> None:
    def lose_all() -> None:
        losing(proxy)()
        once(client, "GetObject", lambda: setattr(proxy, "lose", b"HTTP/1.1"))

    with pytest.raises(OutcomeUnknown, match="may have been applied"):
        commit(behind, GivenLease(33), then=lose_all)
    proxy.lose = None
    once(client, "PutObject", lose_all)
    with pytest.raises(OutcomeUnknown, match="may have been applied"):
        behind.install(GivenLease(34))
    assert s3_store.lines() == [33]  # it had been applied
    mark = s3_store.fence.mark("orders")
    assert mark is not None
    assert mark.token == 34  # so had this
    proxy.lose = None
    assert behind.install(GivenLease(34)) == mark


def test_s9_before_anything_was_sent_the_store_is_merely_unavailable(
    behind: S3Fence, proxy: LossyProxy
) -> None:
    proxy.lose = b"HTTP/1.1"
    with pytest.raises(Unavailable, match="does not answer"):
        behind.install(GivenLease(34))
    with pytest.raises(Unavailable), behind.write(GivenLease(33)):
        pytest.fail("compared with nothing")


def newer_commits(store: S3Store) -> None:
    store.fence.install(GivenLease(34))
    commit(store.fence, GivenLease(34), then=list, body=b"34")


def test_pitfall_23_refused_after_a_lost_answer_does_not_mean_not_written(
    s3_store: S3Store, client: "S3Client", behind: S3Fence, proxy: LossyProxy
) -> None:
    """33's body is applied and its answer lost; before 33 looks, 34 has installed and replaced the body."""

    def lose() -> None:
        losing(proxy)()
        once(client, "GetObject", lambda: newer_commits(s3_store))

    with pytest.raises(OutcomeUnknown, match="mark is 34") as unknown:
        commit(behind, GivenLease(33), then=lose, body=b"33")
    assert isinstance(unknown.value.__cause__, StaleToken)


def test_pitfall_23_the_same_when_it_was_boto_that_sent_it_again(
    s3_store: S3Store, proxy: LossyProxy
) -> None:
    """boto3's second try finds the condition broken, by its own first one or by 34: nobody can tell."""
    client = s3_client(proxy.port, retries=2)
    fence = S3Fence(client, s3_store.bucket)
    fence.install(GivenLease(33))

    def before_the_second_try(**_: object) -> None:
        if proxy.lose is not None:
            proxy.lose = None
            newer_commits(s3_store)

    client.meta.events.register("needs-retry.s3.PutObject", before_the_second_try)
    with pytest.raises(OutcomeUnknown, match="mark is 34"):
        commit(fence, GivenLease(33), then=losing(proxy), body=b"33")


def test_pitfall_23_a_second_try_that_is_not_allowed_says_nothing_of_the_first(
    s3_store: S3Store, proxy: LossyProxy
) -> None:
    """As when credentials run out in between: the first try had been applied."""
    client = s3_client(proxy.port, retries=1)
    fence = S3Fence(client, s3_store.bucket)
    fence.install(GivenLease(33))
    tries = count()

    def denied_at_the_second_try(request: AWSPreparedRequest, **_: object) -> AWSResponse | None:
        if proxy.lose is None or next(tries) == 0:
            return None
        proxy.lose = None
        body = urllib3.HTTPResponse(
            io.BytesIO(b"<Error><Code>AccessDenied</Code></Error>"), preload_content=False
        )
        return AWSResponse(request.url, 403, HTTPHeaders(), body)

    events: Any = client.meta.events  # what such a handler returns is sent in place of the answer
    events.register("before-send.s3.PutObject", denied_at_the_second_try)
    commit(fence, GivenLease(33), then=losing(proxy), body=b"33")
    found = s3_store.fence.read("orders")
    assert found is not None
    assert found.body == b"33"


def test_pitfall_23_an_object_that_is_still_listed_proves_that_it_was_written(
    s3_store: S3Store, client: "S3Client", behind: S3Fence, proxy: LossyProxy
) -> None:
    def lose() -> None:
        losing(proxy)()
        once(client, "GetObject", lambda: newer_commits(s3_store))

    commit(behind, GivenLease(33), then=lose)
    assert s3_store.lines() == [33]


def test_s9_a_plain_refusal_stays_one(s3_store: S3Store, behind: S3Fence) -> None:
    with pytest.raises(StaleToken) as refused:
        commit(behind, GivenLease(33), then=lambda: newer_commits(s3_store))
    assert refused.value.mark == 34
    assert s3_store.lines() == []


class CarelessStore(BaseHTTPRequestHandler):
    """A small S3 server that keeps objects and takes PUTs whatever their `ignored` header says."""

    protocol_version = "HTTP/1.1"
    ignored: ClassVar[str]
    status = 200
    code = ""
    kept: ClassVar[dict[str, bytes]]

    def do_GET(self) -> None:
        if self.path in self.kept:
            self._answer(200, self.kept[self.path])
        else:
            self._answer(404, b"<Error><Code>NoSuchKey</Code></Error>")

    def do_PUT(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        present = self.kept.get(self.path)
        if self.status != 200:
            self._answer(self.status, f"<Error><Code>{self.code}</Code></Error>".encode())
        elif self._broken("If-None-Match", present is not None) or self._broken(
            "If-Match", present is None or self.headers["If-Match"] != etag(present)
        ):
            self._answer(412, b"<Error><Code>PreconditionFailed</Code></Error>")
        else:
            self.kept[self.path] = data
            self._answer(200, b"", etag(data))

    def _broken(self, header: str, broken: bool) -> bool:
        return header in self.headers and header != self.ignored and broken

    def _answer(self, status: int, data: bytes, tag: str = "") -> None:
        self.send_response(status)
        self.send_header("ETag", tag or etag(data))
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


def etag(data: bytes) -> str:
    return f'"{hashlib.md5(data).hexdigest()}"'


@contextmanager
def careless_store(*, ignored: str = "", status: int = 200, code: str = "") -> Iterator["S3Client"]:
    handler = type(
        "Handler", (CarelessStore,), {"ignored": ignored, "status": status, "code": code, "kept": {}}
    )
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        client = s3_client(server.server_port)
        yield client
        client.close()
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("header", ["If-Match", "If-None-Match"])
def test_s8_a_store_that_ignores_conditions_is_refused_before_the_first_install(header: str) -> None:
    with careless_store(ignored=header) as client:
        fence = S3Fence(client, "bucket")
        for _ in range(2):
            with pytest.raises(NotFenceable, match=f"ignores {header}:"):
                fence.install(GivenLease(33))
        assert fence.mark("orders") is None


def test_s8_a_store_that_keeps_to_them_is_taken_and_tried_once() -> None:
    with careless_store() as client:
        sent: list[str] = []
        client.meta.events.register("before-send.s3", lambda request, **_: sent.append(request.url))
        for resource in ("orders", "invoices"):
            S3Fence(client, "bucket", prefix="p/").install(GivenLease(33), resource)
        assert sum("/p/probe" in url for url in sent) == 6


@pytest.mark.parametrize(
    ("status", "code", "error", "text"),
    [
        (404, "NoSuchBucket", NotFenceable, "Create it"),
        (403, "AccessDenied", NotFenceable, "s3:PutObject"),
        (501, "NotImplemented", NotFenceable, "NotImplemented"),
        (400, "InvalidArgument", NotFenceable, "InvalidArgument"),
        (503, "SlowDown", Unavailable, "conditional PUT|can't be changed"),
    ],
)
def test_errors_of_a_store_say_what_to_do(status: int, code: str, error: type[Exception], text: str) -> None:
    with careless_store(status=status, code=code) as client, pytest.raises(error, match=text):
        S3Fence(client, "bucket").install(GivenLease(33))


def test_no_such_bucket_is_named(s3_store: S3Store) -> None:
    with pytest.raises(NotFenceable, match="s3://no-such-bucket/probe: there is no such bucket"):
        S3Fence(s3_store.client, "no-such-bucket").install(GivenLease(33))


def test_a_store_out_of_reach_is_unavailable() -> None:
    with pytest.raises(Unavailable, match="does not answer"):
        S3Fence(s3_client(free_port()), "bucket").install(GivenLease(33))


def test_without_credentials_it_says_so(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    session = boto3.session.Session(botocore_session=botocore.session.Session())
    client = session.client("s3", endpoint_url=f"http://127.0.0.1:{s3_server.port}", region_name="us-east-1")
    with pytest.raises(NotFenceable, match="credentials"):
        S3Fence(client, "bucket").install(GivenLease(33))
