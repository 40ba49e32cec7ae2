"""Endpoints as people write them, and the order in which nodes are tried."""

import ssl
import time

import pytest

import lockd
from lockd.client.options import ClientOptions, Endpoint, EndpointRing


def build(endpoints: str | list[str] | None = None, **changes: object) -> ClientOptions:
    given = {"ttl": 10.0, "name": "", "tls": False, "auth": None} | changes
    return ClientOptions.build(endpoints, **given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("127.0.0.1:7430", "127.0.0.1", 7430),
        ("lockd.example", "lockd.example", 7420),
        ("[::1]:7430", "::1", 7430),
        ("[::1]", "::1", 7420),
        (" a:1 ", "a", 1),
        ("unix:/run/lockd.sock", "unix:/run/lockd.sock", 0),
    ],
)
def test_an_endpoint_is_read_as_written(text: str, host: str, port: int) -> None:
    endpoint = Endpoint.parse(text)
    assert endpoint == (host, port)
    assert Endpoint.parse(str(endpoint)) == endpoint


@pytest.mark.parametrize(
    "text",
    [
        "::1:7420",
        ":7420",
        "a:b",
        "a:0",
        "a:65536",
        "[::1",
        "[::1]x",
        "",
        "a:\uff11",
        "unix:",
        "unix:lockd.sock",
        "http://a:1",
        "a:1/0",
    ],
)
def test_a_wrong_endpoint_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="endpoint"):
        Endpoint.parse(text)


def test_several_endpoints_come_as_text_or_list_or_from_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert build("a:1,b:2, a:1").endpoints == (("a", 1), ("b", 2))
    assert build(["a:1", "[::1]:2"]).endpoints == (("a", 1), ("::1", 2))
    monkeypatch.setenv("LOCKD_ENDPOINTS", "c:3,d:4")
    assert build().endpoints == (("c", 3), ("d", 4))
    monkeypatch.delenv("LOCKD_ENDPOINTS")
    assert build().endpoints == (("127.0.0.1", 7420),)
    with pytest.raises(ValueError, match="no endpoint"):
        build(" , ")


def test_what_cannot_be_is_refused_before_any_io() -> None:
    for ttl in (0.0, -1.0, 90_000.0, float("nan")):
        with pytest.raises(ValueError, match="ttl is in seconds"):
            lockd.Client("a:1", ttl=ttl)


def test_tls_is_true_or_a_context_and_the_password_is_not_shown() -> None:
    assert build("a:1", tls=True).tls is not None
    context = ssl.create_default_context()
    assert build("a:1", tls=context).tls is context
    assert build("a:1").tls is None
    assert "s3cret" not in repr(build("a:1", auth=("me", "s3cret")))


def test_a_unix_socket_has_no_tls() -> None:
    assert build(["unix:/run/a,b.sock", "a:1"]).endpoints[0].path == "/run/a,b.sock"
    with pytest.raises(ValueError, match="no TLS over a Unix socket"):
        build("a:1,unix:/run/lockd.sock", tls=True)


def test_k6_only_configured_and_reported_nodes_are_tried_each_in_turn() -> None:
    ring = EndpointRing([Endpoint("a", 1), Endpoint("b", 2)])
    assert [str(ring.next()) for _ in range(3)] == ["a:1", "b:2", "a:1"]
    ring.reported(["c:3", "b:2", "", "0.0.0.0:7420", "[::]:7420", "not:a:port", "unix:/run/other.sock"])
    assert len(ring) == 3
    assert {str(ring.next()) for _ in range(3)} == {"a:1", "b:2", "c:3"}


@pytest.mark.skipif(not hasattr(time, "CLOCK_BOOTTIME"), reason="only Linux has a clock that counts suspend")
def test_k1_leases_end_by_a_clock_that_counts_suspend(monkeypatch: pytest.MonkeyPatch) -> None:
    read = time.clock_gettime

    def after_an_hour_asleep(which: int) -> float:
        return read(which) + (3600 if which == time.CLOCK_BOOTTIME else 0)

    monkeypatch.setattr(time, "clock_gettime", after_an_hour_asleep)
    assert build().clock() - time.monotonic() > 3599
