"""An S3 server for tests: moto's, over HTTP on a free port."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from typing import TYPE_CHECKING

import boto3
from botocore.config import Config

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client


class S3Server:
    """A running server. `fresh_bucket()` gives each caller a bucket of its own."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.shared_client = s3_client(port)
        self._numbers = count(1)

    def client(self) -> "S3Client":
        """A client of the caller's own, which takes a tenth of a second."""
        return s3_client(self.port)

    def fresh_bucket(self) -> str:
        name = f"test-{next(self._numbers)}"
        self.shared_client.create_bucket(Bucket=name)
        return name


def s3_client(port: int, *, retries: int = 0) -> "S3Client":
    """A client of an S3 server on this machine, which by itself sends a request again so many times."""
    return boto3.client(
        "s3",
        endpoint_url=f"http://127.0.0.1:{port}",
        region_name="us-east-1",
        aws_access_key_id="test",
        aws_secret_access_key="test",
        config=Config(
            connect_timeout=20,
            read_timeout=20,
            max_pool_connections=32,
            retries={"total_max_attempts": 1 + retries, "mode": "standard"},
            s3={"addressing_style": "path"},
        ),
    )


@contextmanager
def running_moto() -> Iterator[S3Server]:
    """Serve from a thread of this process, which ends with it."""
    from moto.server import ThreadedMotoServer  # noqa: PLC0415  takes half a second, and few tests need it

    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        running = S3Server(server.get_host_and_port()[1])
        yield running
        running.shared_client.close()
    finally:
        server.stop()
