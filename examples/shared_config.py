"""Many read a configuration together; who writes it is alone. Readers never see half of a change."""

import json
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import lockd

client = lockd.Client()


def write(path: Path, number: int) -> None:
    """Alone: no reader, and no other writer. Later readers do not overtake a writer that waits."""
    with client.lock("example/config", wait=30):
        path.write_text(json.dumps({"low": number, "high": number}))


def read(path: Path) -> bool:
    """Together with other readers."""
    with client.lock("example/config", shared=True, wait=30) as lease:
        assert lease.mode == "shared"
        config = json.loads(path.read_text())
        return bool(config["low"] == config["high"])


if __name__ == "__main__":
    with client, tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(8) as workers:
        file = Path(folder) / "config.json"
        write(file, 0)
        reads = [workers.submit(read, file) for _ in range(30)]
        for changed in [workers.submit(write, file, number) for number in range(1, 5)]:
            changed.result()
        print(f"{sum(done.result() for done in reads)} of {len(reads)} reads were whole")
