"""Single objects of a bucket: read, put on a condition, list, delete; and what errors of a store mean.

A conditional PUT ends in one of three ways: it was applied; the condition did not hold; or nobody
knows. The last is also the end of a PUT that boto3 sent again by itself and that then found the
condition broken: the first one may have been applied, and its reply lost (SAFETY S9).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum, auto
from typing import IO, TYPE_CHECKING, Any

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
)
from botocore.exceptions import (
    ConnectionError as NotConnectedError,
)

from lockd.errors import Unavailable
from lockd_storage.errors import NotFenceable

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

NO_ANSWER = (HTTPClientError, NotConnectedError, IncompleteReadError)
BUSY_CODES = {"SlowDown", "RequestTimeout", "Throttling", "ThrottlingException", "TooManyRequests"}
DENIED_CODES = {"AccessDenied", "403", "Forbidden", "AllAccessDisabled"}
MISSING_CODES = {"NoSuchKey", "404", "NotFound"}
NOT_IMPLEMENTED = 501


class Put(Enum):
    """What became of a conditional PUT."""

    DONE = auto()
    CONDITION_FAILED = auto()
    IN_DOUBT = auto()


@dataclass(frozen=True, slots=True)
class Found:
    """An object's content and its ETag, as the store spells it."""

    data: bytes
    etag: str


class Bucket:
    """One bucket through a boto3 client. Raises Unavailable and NotFenceable, with what to do, only."""

    def __init__(self, client: "S3Client", name: str) -> None:
        self.client = client
        self.name = name

    def where(self, key: str) -> str:
        return f"s3://{self.name}/{key}"

    def get(self, key: str) -> Found | None:
        """The object, or None if there is none."""
        try:
            with self._explained(key):
                reply = self.client.get_object(Bucket=self.name, Key=key)
                return Found(reply["Body"].read(), reply["ETag"])
        except _MissingError:
            return None

    def put(self, key: str, data: bytes | IO[bytes]) -> None:
        """Store an object under a key that nobody else uses: to send it twice does no harm."""
        with self._explained(key):
            self.client.put_object(Bucket=self.name, Key=key, Body=data)

    def put_if(self, key: str, data: bytes, *, etag: str | None) -> Put:
        """Replace the object that has this ETag; without one, create it if it is not there.

        Raises Unavailable or NotFenceable only when it was certainly not applied.
        """
        condition: dict[str, Any] = {"IfNoneMatch": "*"} if etag is None else {"IfMatch": etag}
        try:
            self.client.put_object(Bucket=self.name, Key=key, Body=data, **condition)
        except ClientError as error:
            # 409: another conditional PUT was under way. A missing object is 404 or 412, by store.
            status, code = _status(error), error.response["Error"]["Code"]
            if status in (409, 412) or (code == "NoSuchKey" and etag is not None):
                return Put.IN_DOUBT if _was_sent_again(error) else Put.CONDITION_FAILED
            if _is_broken(error) or _was_sent_again(error):
                return Put.IN_DOUBT
            raise explain(error, self.where(key)) from error
        except NO_ANSWER:
            return Put.IN_DOUBT  # also a connection that was refused: an earlier try may have got through
        except BotoCoreError as error:
            raise explain(error, self.where(key)) from error
        return Put.DONE

    def keys(self, prefix: str) -> Iterator[str]:
        """The keys of all objects that begin so."""
        with self._explained(prefix):
            for page in self.client.get_paginator("list_objects_v2").paginate(
                Bucket=self.name, Prefix=prefix
            ):
                for found in page.get("Contents", ()):
                    yield found["Key"]

    def delete(self, keys: list[str]) -> None:
        """Delete these objects. The request that deletes many at once is not known to every store."""
        for key in keys:
            with self._explained(key):
                self.client.delete_object(Bucket=self.name, Key=key)

    @contextmanager
    def _explained(self, key: str) -> Iterator[None]:
        try:
            yield
        except ClientError as error:
            if error.response["Error"]["Code"] in MISSING_CODES:
                raise _MissingError(f"there is no object {self.where(key)}") from error
            raise explain(error, self.where(key)) from error
        except BotoCoreError as error:
            raise explain(error, self.where(key)) from error


class _MissingError(Unavailable):
    """No such object."""


def explain(error: ClientError | BotoCoreError, where: str) -> Unavailable | NotFenceable:
    """The error to raise: Unavailable if it may go by itself, else NotFenceable with what to do."""
    if isinstance(error, NoCredentialsError):
        return NotFenceable(f"{where}: boto3 has found no credentials for this store: {error}")
    if isinstance(error, BotoCoreError):
        if isinstance(error, NO_ANSWER):
            return Unavailable(f"{where}: the store does not answer: {error}")
        return NotFenceable(f"{where}: {error}")
    code = error.response["Error"]["Code"]
    if _is_broken(error) or code in BUSY_CODES:
        return Unavailable(f"{where}: the store is busy or broken: {error}")
    if code == "NoSuchBucket":
        return NotFenceable(f"{where}: there is no such bucket. Create it first")
    if code in DENIED_CODES:
        return NotFenceable(
            f"{where}: not allowed: {error}. A fence needs s3:GetObject and s3:PutObject, and s3:ListBucket,"
            " without which a store says so of a missing object too"
        )
    return NotFenceable(f"{where}: the store refused: {error}")


def _status(error: ClientError) -> int:
    return int(error.response["ResponseMetadata"]["HTTPStatusCode"])


def _is_broken(error: ClientError) -> bool:
    return _status(error) >= 500 and _status(error) != NOT_IMPLEMENTED


def _was_sent_again(error: ClientError) -> bool:
    return error.response["ResponseMetadata"].get("RetryAttempts", 0) > 0
