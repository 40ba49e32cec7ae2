"""A bucket as a store under test."""

from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING

from lockd_storage import HeldLease
from lockd_storage.s3 import S3Changes, S3Fence

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client


@dataclass
class S3Store:
    """The journal is an object for each line, of any resource; read through the fence."""

    bucket: str
    client: "S3Client"
    numbers: "count[int]" = field(default_factory=count)

    @property
    def fence(self) -> S3Fence:
        return S3Fence(self.client, self.bucket)

    def add(self, handle: S3Changes, lease: HeldLease) -> None:
        handle.put(f"{next(self.numbers):06}", str(lease.token).encode())

    def lines(self) -> list[int]:
        found: dict[str, bytes] = {}
        for mark in self.fence.marks():
            snapshot = self.fence.read(mark.resource)
            assert snapshot is not None
            found |= {name: snapshot.get(name) for name in snapshot.names()}
        return [int(found[name]) for name in sorted(found)]

    def pinned(self, cluster: str) -> S3Fence:
        return S3Fence(self.client, self.bucket, cluster=cluster)
