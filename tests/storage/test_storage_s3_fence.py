"""What the S3 adapter does beyond the contract (SAFETY S1, S8), on moto's server over HTTP."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import TypeVar

import pytest
from botocore.exceptions import ClientError

from lockd.errors import CorruptData, StaleToken, Unavailable
from lockd_storage import NotFenceable, NotInstalled, WrongCluster, WrongLock
from lockd_storage.s3 import S3Fence
from lockd_storage.s3.requests import Bucket, Put
from tests.servers.moto import S3Server
from tests.storage.leases import OTHER_CLUSTER, GivenLease
from tests.storage.s3_stores import S3Store

RACERS = 16

AnswerT = TypeVar("AnswerT")


def at_once(work: Callable[[int], AnswerT]) -> list[AnswerT]:
    """What `work` returned to each of the racers, which set off together."""
    start = Barrier(RACERS)

    def run(number: int) -> AnswerT:
        start.wait(20)
        return work(number)

    with ThreadPoolExecutor(RACERS) as pool:
        return list(pool.map(run, range(RACERS)))


@pytest.fixture
def fence(s3_store: S3Store) -> S3Fence:
    return s3_store.fence


def put_one(fence: S3Fence, lease: GivenLease, *, then: Callable[[], object]) -> None:
    """A block that puts one object, does `then`, and ends."""
    with fence.write(lease) as objects:
        objects.put("a", str(lease.token).encode())
        then()


def test_s8_a_token_in_the_metadata_alone_lets_the_old_holder_write(s3_store: S3Store) -> None:
    """A known-bad design, shown to lose: the install changes no content, so the ETag stays."""
    client, bucket = s3_store.client, s3_store.bucket
    old = client.put_object(Bucket=bucket, Key="account", Body=b"100", Metadata={"token": "33"})
    new = client.put_object(
        Bucket=bucket, Key="account", Body=b"100", Metadata={"token": "34"}, IfMatch=old["ETag"]
    )
    assert new["ETag"] == old["ETag"]
    client.put_object(Bucket=bucket, Key="account", Body=b"0", IfMatch=old["ETag"])  # 33 writes


def test_s8_a_token_in_the_content_shuts_the_old_holder_out(s3_store: S3Store, fence: S3Fence) -> None:
    fence.install(GivenLease(33))
    client, bucket, key = s3_store.client, s3_store.bucket, fence.key("orders")
    old = client.get_object(Bucket=bucket, Key=key)
    fence.install(GivenLease(34))
    with pytest.raises(ClientError, match="PreconditionFailed"):
        client.put_object(Bucket=bucket, Key=key, Body=b"0", IfMatch=old["ETag"])
    with pytest.raises(ClientError, match="PreconditionFailed"):
        client.put_object(Bucket=bucket, Key=key, Body=b"0", IfNoneMatch="*")


def test_s1_a_commit_that_was_held_up_on_its_way_arrives_in_vain(
    s3_server: S3Server, s3_store: S3Store
) -> None:
    """The old holder compared, and its PUT of the mark is let go after the new one has installed."""
    old = GivenLease(33)
    client = s3_server.client()
    events = client.meta.events
    fence = S3Fence(client, s3_store.bucket)
    fence.install(old)
    held: list[bool] = []

    def held_up(**_: object) -> None:
        if not held:
            held.append(True)
            s3_store.fence.install(GivenLease(34))

    with pytest.raises(StaleToken):
        put_one(fence, old, then=lambda: events.register("before-send.s3.PutObject", held_up))
    assert held
    assert s3_store.lines() == []


def test_s8_of_sixteen_racing_puts_one_is_taken(s3_store: S3Store, fence: S3Fence) -> None:
    bucket = Bucket(s3_store.client, s3_store.bucket)
    fence.install(GivenLease(33))
    key = fence.key("orders")
    found = bucket.get(key)
    assert found is not None
    etag = found.etag
    changed = at_once(lambda number: bucket.put_if(key, str(number).encode(), etag=etag))
    created = at_once(lambda number: bucket.put_if("new", str(number).encode(), etag=None))
    for puts in (changed, created):
        assert sorted(puts, key=lambda put: put.value) == [Put.DONE] + [Put.CONDITION_FAILED] * (RACERS - 1)


def test_s1_of_sixteen_racing_installs_the_newest_stands(fence: S3Fence) -> None:
    def install(number: int) -> int:
        try:
            return fence.install(GivenLease(100 + number), timeout=30).token
        except StaleToken as refused:
            return 0 if refused.mark > refused.presented else -1

    installed = at_once(install)
    mark = fence.mark("orders")
    assert mark is not None
    assert mark.token == max(installed) == 100 + RACERS - 1


def test_blocks_of_one_token_that_end_together_all_count(fence: S3Fence) -> None:
    lease = GivenLease(33)
    fence.install(lease)

    def write(number: int) -> None:
        with fence.write(lease) as objects:
            objects.put(f"{number:02}", b"x")

    at_once(write)
    found = fence.read("orders")
    assert found is not None
    assert found.names() == [f"{number:02}" for number in range(RACERS)]


def test_s1_the_changes_of_a_block_are_seen_all_at_once_or_not_at_all(fence: S3Fence) -> None:
    lease = GivenLease(33)
    fence.install(lease)
    with fence.write(lease) as objects:
        objects.put("a", b"1")
        objects.put("b", b"1")
        objects.body = b"first"
    before = fence.read("orders")
    with pytest.raises(ZeroDivisionError):
        put_one(fence, lease, then=lambda: 1 // 0)
    with fence.write(lease) as objects:
        assert (objects.body, objects.before.get("a")) == (b"first", b"1")
        objects.put("c", b"3")
        objects.delete("a")
        objects.delete("never there")
        objects.body = b"third"
        assert objects.body == b"third"
        meanwhile = fence.read("orders")
        assert meanwhile is not None
        assert (meanwhile.names(), meanwhile.get("a"), meanwhile.body) == (["a", "b"], b"1", b"first")
    after = fence.read("orders")
    assert after is not None
    assert (after.names(), after.get("c"), after.body) == (["b", "c"], b"3", b"third")
    with pytest.raises(KeyError):
        after.get("a")
    assert before is not None
    assert before.get("a") == b"1"  # a reader keeps what it has read


def test_s1_install_keeps_what_is_there(fence: S3Fence) -> None:
    fence.install(GivenLease(33))
    with fence.write(GivenLease(33)) as objects:
        objects.put("a", b"1")
        objects.body = b"line\nline\n"
    fence.install(GivenLease(34))
    found = fence.read("orders")
    assert found is not None
    assert (found.mark.token, found.get("a"), found.body) == (34, b"1", b"line\nline\n")


def test_s8_no_content_of_a_mark_comes_back(s3_store: S3Store, fence: S3Fence) -> None:
    """Else a held-up PUT of before would find its ETag again (ABA)."""
    lease = GivenLease(33)
    fence.install(lease)
    etags = []
    for body in (b"a", b"b", b"a"):
        with fence.write(lease) as objects:
            objects.body = body
        etags.append(s3_store.client.head_object(Bucket=s3_store.bucket, Key=fence.key("orders"))["ETag"])
    assert len({*etags}) == 3


def test_a_file_is_uploaded_as_it_is(fence: S3Fence, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("upload") / "file"
    path.write_bytes(b"x" * 100_000)
    fence.install(GivenLease(33))
    with fence.write(GivenLease(33)) as objects, path.open("rb") as file:
        objects.put("a/b ü", file)
    found = fence.read("orders")
    assert found is not None
    assert len(found.get("a/b ü")) == 100_000
    for name in ("", "\ud800"):
        with pytest.raises(ValueError, match=r"name|surrogates"), fence.write(GivenLease(33)) as objects:
            objects.put(name, b"")


def test_what_is_kept_of_a_block_that_has_ended_takes_nothing(fence: S3Fence) -> None:
    fence.install(GivenLease(33))
    with fence.write(GivenLease(33)) as objects:
        objects.body = b"1"
    with pytest.raises(NotFenceable, match="has ended"):
        objects.put("a", b"2")
    with pytest.raises(NotFenceable, match="has ended"):
        objects.delete("a")
    with pytest.raises(NotFenceable, match="has ended"):
        objects.body = b"2"
    found = fence.read("orders")
    assert found is not None
    assert (found.names(), found.body) == ([], b"1")


def test_a_body_is_bytes(fence: S3Fence) -> None:
    fence.install(GivenLease(33))
    with fence.write(GivenLease(33)) as objects:
        for wrong in (5, "text"):
            with pytest.raises(TypeError, match="bytes-like"):
                objects.body = wrong  # type: ignore[assignment]
        objects.body = b"12"
    found = fence.read("orders")
    assert found is not None
    assert found.body == b"12"


def test_pitfall_14_sweeping_takes_what_nobody_can_commit_any_more(fence: S3Fence) -> None:
    fence.install(GivenLease(33))
    with fence.write(GivenLease(33)) as kept:
        kept.put("a", b"33")
        kept.put("b", b"33")
    with pytest.raises(StaleToken):
        put_one(fence, GivenLease(33), then=lambda: fence.install(GivenLease(34)))
    with fence.write(GivenLease(34)) as under_way:
        under_way.put("b", b"34")
        before = fence.read("orders")
        assert fence.sweep("orders") == 1  # the lost upload; a and b of 33 are listed, b of 34 may be soon
    assert fence.sweep("orders") == 1  # b of 33
    assert fence.sweep("never installed") == 0
    found = fence.read("orders")
    assert found is not None
    assert {name: found.get(name) for name in found.names()} == {"a": b"33", "b": b"34"}
    assert found.key("a").startswith("data/orders/0000000a-33/")
    assert before is not None
    with pytest.raises(Unavailable, match="swept"):
        before.get("b")
    fence.install(GivenLease(35))
    fence.sweep("orders")
    mark = fence.mark("orders")
    assert mark is not None
    assert mark.token == 35
    assert fence.marks("or") == [mark]
    assert fence.marks("in") == []


def test_pitfall_14_a_mark_that_was_deleted_by_hand_is_a_slot_for_anyone(
    s3_store: S3Store, fence: S3Fence
) -> None:
    """Why nothing here deletes a mark. Until somebody installs, writes fail closed, also those under way."""
    new = GivenLease(34)
    fence.install(new)
    client, bucket = s3_store.client, s3_store.bucket
    with pytest.raises(NotInstalled):
        put_one(fence, new, then=lambda: client.delete_object(Bucket=bucket, Key=fence.key("orders")))
    with pytest.raises(NotInstalled), fence.write(new):
        pytest.fail("written without a mark")
    fence.install(GivenLease(33))


def test_pitfall_13_the_mark_is_in_the_bucket_and_nowhere_else(s3_store: S3Store) -> None:
    s3_store.fence.install(GivenLease(34))
    with pytest.raises(StaleToken):
        S3Fence(s3_store.client, s3_store.bucket).install(GivenLease(33))
    elsewhere = S3Fence(s3_store.client, s3_store.bucket, prefix="elsewhere/")
    assert elsewhere.install(GivenLease(33)).token == 33


def test_pitfall_16_a_token_of_another_cluster_is_told_apart_from_an_old_one(fence: S3Fence) -> None:
    fence.install(GivenLease(33))
    with pytest.raises(WrongCluster):
        fence.install(GivenLease(2**53 - 1, cluster=OTHER_CLUSTER))
    with pytest.raises(WrongLock):
        fence.install(GivenLease(34, lock="invoices"), "orders")


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]\n", b'{"format":2,"mark":{}}', b"\xff"])
def test_s2_what_is_no_mark_lets_nobody_write(s3_store: S3Store, fence: S3Fence, content: bytes) -> None:
    s3_store.client.put_object(Bucket=s3_store.bucket, Key=fence.key("orders"), Body=content)
    with pytest.raises(CorruptData, match="marks/orders"):
        fence.install(GivenLease(33))
    with pytest.raises(CorruptData), fence.write(GivenLease(33)):
        pytest.fail("written beside a broken mark")


def test_s2_a_mark_under_another_resources_key_is_not_taken(s3_store: S3Store, fence: S3Fence) -> None:
    fence.install(GivenLease(33))
    client, bucket = s3_store.client, s3_store.bucket
    client.copy_object(
        Bucket=bucket, Key=fence.key("invoices"), CopySource={"Bucket": bucket, "Key": fence.key("orders")}
    )
    with pytest.raises(CorruptData, match="orders"):
        fence.mark("invoices")
