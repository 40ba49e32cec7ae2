"""Known-bad designs on Redis, S3, files and HTTP; see `bad`."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from botocore.exceptions import BotoCoreError
from redis.exceptions import RedisError

from lockd.errors import OutcomeUnknown, StaleToken, Unavailable
from lockd.ids import Fence
from lockd_storage import HeldLease
from lockd_storage.fencing import judge_write
from lockd_storage.http import PresentedLease
from tests.storage.hunt.arena import Book
from tests.storage.hunt.files import FilesHands
from tests.storage.hunt.history import LINES, View, Write
from tests.storage.hunt.http import HttpArena
from tests.storage.hunt.players import pause
from tests.storage.hunt.redis import RedisHands, key
from tests.storage.hunt.s3 import S3Hands


def _stale(lease: HeldLease) -> StaleToken:
    return StaleToken("refused", resource=lease.lock, presented=lease.token, mark=0)


class LuaNumbers(RedisHands):
    """Tokens compared as Lua's numbers, which are doubles: from 2**53 on, two tokens are one."""

    INSTALL = (
        "local mark = redis.call('GET', KEYS[1]) "
        "if mark and tonumber(mark) > tonumber(ARGV[1]) then return 0 end "
        "redis.call('SET', KEYS[1], ARGV[1]) return 1"
    )
    WRITE = (
        "if tonumber(redis.call('GET', KEYS[1]) or '0') ~= tonumber(ARGV[1]) then return 0 end "
        "redis.call('RPUSH', KEYS[2], ARGV[2]) return 1"
    )

    def install(self, lease: HeldLease) -> None:
        self._run(self.INSTALL, lease)

    def work(self, book: Book) -> None:
        book.leases = [book.leases[0]]
        write = book.write(f"{book.leases[0].lock}/{LINES}")
        self._run(self.WRITE, book.leases[0], key(write.place), write.encode())

    def _run(self, script: str, lease: HeldLease, *more: str) -> None:
        keys = [key(f"{lease.lock}/mark"), *more[:1]]
        try:
            done = self.arena.client.eval(script, len(keys), *keys, str(lease.token), *more[1:])
        except RedisError as error:
            raise OutcomeUnknown("the reply was lost") from error
        if not done:
            raise _stale(lease)


class MetadataOnly(S3Hands):
    """The token stands in the object's metadata: an install leaves the ETag, so an older If-Match holds."""

    def install(self, lease: HeldLease) -> None:
        token, body, condition = self._read(lease.lock)
        if token > lease.token:
            raise _stale(lease)
        self._put(lease, body, condition)

    def look(self) -> View:
        words: list[str] = []
        for resource in self.arena.resources:
            words += self._read(resource)[1]
        return frozenset(map(Write.decode, words))

    def work(self, book: Book) -> None:
        lease = book.leases[0]
        book.leases = [lease]
        token, body, condition = self._read(lease.lock)
        if token != lease.token:
            raise _stale(lease)
        self._put(lease, [*body, book.write(f"{lease.lock}/{LINES}").encode()], condition)

    def _read(self, resource: str) -> tuple[int, list[str], dict[str, Any]]:
        try:
            found = self.client.get_object(Bucket=self.arena.bucket, Key=resource)
        except self.client.exceptions.NoSuchKey:
            return 0, [], {"IfNoneMatch": "*"}
        words: list[str] = json.loads(found["Body"].read())
        return int(found["Metadata"]["token"]), words, {"IfMatch": found["ETag"]}

    def _put(self, lease: HeldLease, words: list[str], condition: dict[str, Any]) -> None:
        try:
            self.client.put_object(
                Bucket=self.arena.bucket,
                Key=lease.lock,
                Body=json.dumps(words).encode(),
                Metadata={"token": str(lease.token)},
                **condition,
            )
        except self.client.exceptions.ClientError as error:
            raise Unavailable("the condition did not hold") from error
        except BotoCoreError as error:
            raise OutcomeUnknown("the reply was lost") from error


class CheckedOutsideTheLock(FilesHands):
    """Compares the mark, and no longer holds the lock when it puts the file in its place."""

    def work(self, book: Book) -> None:
        lease = book.leases[0]
        book.leases = [lease]
        mark = self.arena.fence.mark(lease.lock)
        if mark is None or mark.token != lease.token:
            raise _stale(lease)
        write = book.write(f"{lease.lock}/{LINES}")
        for _ in range(3):  # it writes for a while
            pause()
        folder = self.arena.folder / lease.lock
        folder.mkdir(exist_ok=True)
        (folder / write.encode()).touch()


class MiddlewareOnly(HttpArena):
    """Compares as a middleware would, before the handler, and holds nothing while that writes."""

    @contextmanager
    def block(self, lease: PresentedLease) -> Iterator[None]:
        judge_write(self.fence.mark(lease.lock), resource=lease.lock, fence=Fence.parse(lease.fence))
        yield
