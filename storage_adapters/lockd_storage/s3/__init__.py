"""Fenced writes to an S3-compatible object store, such as AWS S3, SeaweedFS or a MinIO that is new enough.

    fence = S3Fence(boto3.client("s3"), "my-bucket", prefix="reports/")
    with client.lock("orders") as lease:
        fence.install(lease)
        with fence.write(lease) as objects:
            objects.put("2026/11.parquet", data)          # many objects: seen all at once, or none
            objects.delete("2026/10.parquet")
            objects.body = b"..."                         # one small object: kept in the mark itself
    found = fence.read("orders")                          # found.names(), found.get(name), found.body

An object store changes one object at a time, so one object decides: the mark of a resource, at
`PREFIXmarks/RESOURCE`. Its first line is the token and the list of the resource's objects; what follows is
`body`. A block uploads its objects under keys of its own, `PREFIXdata/RESOURCE/INCARNATION-TOKEN/...`, and
ends with one conditional PUT of the mark (`If-Match`); install is such a PUT too. The condition is the
ETag, a hash of what the object holds, so the token stands in the mark's content: with the token in its
metadata alone, an install leaves the ETag as it was, and the old holder's PUT passes (SAFETY S8).

Promised: once `install` has returned, no older holder's write becomes visible to whoever reads through
the fence, not even a request that was held up on its way. Unlike in a database, install does not wait
for a block under way: that block fails at its end, and what it uploaded is garbage for `sweep`. Two
blocks under one token may overlap: of one name or body, the later to end wins.

Refused: a store that ignores `If-Match` or `If-None-Match`, found out before the first install. Not
covered: objects that are written by other means, and readers who list the data keys instead of reading the
mark. A bucket policy that requires `s3:if-match` or `s3:if-none-match` for PUTs under `PREFIXmarks/`
keeps others from overwriting marks.

A mark has to stay for ever: with the mark gone, an old holder could create it again. So keep lifecycle
rules that expire objects away from PREFIX, and do not bring back old versions of a mark. There is no
floor here, since no step spans two objects: after a bucket was restored from a copy, or copied elsewhere, use
a new prefix, or acquire and install every lock once before anything is written. A replica that
lags (another region, another site) is no place to write to, or to decide from.

boto3 blocks: from async code call these verbs with `asyncio.to_thread`.

Start reading at `fence`. `mark_object` is what the mark holds, `requests` how it is asked for and changed,
`probe` the test of the store.
"""

try:
    import boto3 as _installed  # noqa: F401  the test is whether it can be imported
except ImportError as error:
    raise ImportError('lockd_storage.s3 needs boto3: pip install "lockd[s3]"') from error

from lockd_storage.s3.fence import S3Fence
from lockd_storage.s3.writing import S3Changes, Snapshot

__all__ = ["S3Changes", "S3Fence", "Snapshot"]
