"""What a fence costs on SQL databases: fenced transactions against plain ones, through SQLAlchemy.

    python -m benchmarks.fenced_sql [--seconds 0.05] [--rounds 31] [--only postgresql]

PostgreSQL and MariaDB with every commit synced, SQLite in a file, on this machine. Each client is a process
with connections of its own that updates its own row by primary key, under one resource that all share.
In every round all kinds of a case run one after the other, in a random order; rounds are short and many, so
that what else the machine does hits all alike. The ratio is of transactions a second, fenced to plain, in
the same round: median, and in brackets the quartiles.

The last table is the whole of it: acquire, install, one write and release, with three durable nodes
of lockd, beside a bare write.
"""

import argparse
import contextlib
import multiprocessing
import random
import statistics
import tempfile
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from typing import NamedTuple

import sqlalchemy as sa

import lockd
from benchmarks import fenced_sql_client as client
from benchmarks import machine
from lockd_storage.schema import upgrade
from lockd_storage.sqlalchemy import SqlFence
from lockd_storage.sqlalchemy.guards import Guard, postgresql
from tests.processes import running_cluster
from tests.servers import mariadb
from tests.servers.postgres import DURABLE, running_postgres

ROWS = 1000
MARIADB = Path(".pytest_cache/d/mariadb").resolve()
"""Where tests keep it, if it was downloaded."""


class Case(NamedTuple):
    """One row of the table. `fenced` is measured against `plain`."""

    title: str
    url: str
    face: str
    statements: int
    clients: int
    table: str = "plain_rows"

    def kinds(self) -> list[client.Work]:
        work = client.Work(self.url, self.face, self.statements, "plain_rows", fenced=False)
        return [work, work._replace(table=self.table, fenced=True)]


def make_ready(url: str, *, guarded: bool = False) -> str:
    """The fence store, the tables and an installed mark. Returns the URL."""
    engine = sa.create_engine(url)
    upgrade(engine)
    client.metadata.create_all(engine)
    with engine.begin() as connection:
        for table in (client.PLAIN, client.GUARDED):
            connection.execute(table.insert(), [{"id": number, "value": 0} for number in range(ROWS)])
    if guarded:
        with engine.begin() as connection:
            for statement in postgresql.create(Guard("guarded_rows", client.LEASE.lock)):
                connection.exec_driver_sql(statement)
    SqlFence(engine).install(client.LEASE)
    engine.dispose()
    return url


@contextlib.contextmanager
def postgres_cases() -> Iterator[list[Case]]:
    with running_postgres(DURABLE) as server, server.fresh_database() as url:
        make_ready(url, guarded=True)
        asyncpg = url.replace("+psycopg", "+asyncpg")
        faces = [("psycopg Connection", url, "connection"), ("psycopg Session", url, "session")]
        faces.append(("asyncpg AsyncSession", asyncpg, "async_session"))
        cases = [
            Case(f"PostgreSQL, {title}", at, face, statements, clients)
            for title, at, face in faces
            for statements in (1, 10)
            for clients in (1, 4)
        ]
        guarded = [
            Case("PostgreSQL, psycopg Session, guarded", url, "session", statements, 1, "guarded_rows")
            for statements in (1, 10)
        ]
        yield cases + guarded


@contextlib.contextmanager
def sqlite_cases() -> Iterator[list[Case]]:
    with tempfile.TemporaryDirectory(prefix="lockd-bench-") as folder:
        cases = []
        for journal in ("delete", "wal"):
            url = f"sqlite:///{Path(folder) / journal}.db"
            with contextlib.closing(sa.create_engine(url).connect()) as connection:
                connection.exec_driver_sql(f"PRAGMA journal_mode = {journal}")
            make_ready(url)
            for statements in (1, 10):
                for clients in (1, 4):
                    title = f"SQLite, journal {journal}, Session"
                    cases.append(Case(title, url, "session", statements, clients))
        yield cases


@contextlib.contextmanager
def mariadb_cases() -> Iterator[list[Case]]:
    MARIADB.mkdir(parents=True, exist_ok=True)
    with (
        mariadb.running_mariadb(mariadb.find_programs(MARIADB), mariadb.DURABLE) as server,
        server.fresh_database() as url,
    ):
        make_ready(url)
        yield [
            Case("MariaDB, pymysql Session", url, "session", statements, clients)
            for statements in (1, 10)
            for clients in (1, 4)
        ]


STORES = {"postgresql": postgres_cases, "sqlite": sqlite_cases, "mariadb": mariadb_cases}


@contextlib.contextmanager
def running_clients(case: Case) -> Iterator[Callable[[client.Work, float], float]]:
    """Runs a kind of work in all of a case's processes for so long: transactions a second."""
    spawn = multiprocessing.get_context("spawn")
    pipes: list[Pipe] = []
    processes = []
    for number in range(case.clients):
        ours, theirs = spawn.Pipe()
        processes.append(spawn.Process(target=client.main, args=(theirs, number), daemon=True))
        processes[-1].start()
        pipes.append(ours)

    def run(work: client.Work, seconds: float) -> float:
        for pipe in pipes:
            pipe.send((work, seconds))
        return sum(float(pipe.recv()) for pipe in pipes)

    try:
        yield run
    finally:
        for pipe in pipes:
            pipe.send(None)
        for process in processes:
            process.join()


def measure(case: Case, seconds: float, rounds: int) -> str:
    """One row of the table."""
    plain, fenced = kinds = case.kinds()
    rates: dict[client.Work, list[float]] = {kind: [] for kind in kinds}
    with running_clients(case) as run:
        for kind in kinds:
            run(kind, 0.1)  # connect, and let the statements be compiled
        for _ in range(rounds):
            for kind in random.sample(kinds, len(kinds)):
                rates[kind].append(run(kind, seconds))
    low, middle, high = statistics.quantiles(
        [ours / theirs for ours, theirs in zip(rates[fenced], rates[plain], strict=True)], n=4
    )
    return (
        f"| {case.title} | {case.statements} | {case.clients} | {statistics.median(rates[plain]):,.0f}"
        f" | {statistics.median(rates[fenced]):,.0f} | {middle:.2f} ({low:.2f} to {high:.2f}) |"
    )


def measure_whole(url: str, endpoints: str, times: int) -> str:
    """Acquire, install, write and release, beside a bare write: medians, in turn."""
    engine = sa.create_engine(url)
    fence = SqlFence(engine)
    took: dict[str, list[float]] = {}
    with lockd.Client(endpoints, ttl=30) as holder:
        for number in range(times + 5):
            for name, seconds in client.whole(holder, engine, fence, number % ROWS).items():
                if number >= 5:  # the first ones connect
                    took.setdefault(name, []).append(seconds * 1000)
    engine.dispose()
    medians = {name: statistics.median(column) for name, column in took.items()}
    steps = " | ".join(f"{medians[name]:.2f}" for name in client.STEPS)
    return f"| {steps} | {medians['whole'] / medians['bare write']:.1f} |"


def main(seconds: float, rounds: int, stores: list[str]) -> None:
    print("| store | statements | clients | plain tx/s | fenced tx/s | ratio (quartiles) |")
    print("|---|---|---|---|---|---|")
    for store in stores:
        with STORES[store]() as cases:
            for case in cases:
                print(measure(case, seconds, rounds), flush=True)
    print(f"\n| {' | '.join(f'{name} ms' for name in client.STEPS)} | whole to bare |")
    print("|---|---|---|---|---|---|---|")
    with (
        tempfile.TemporaryDirectory(prefix="lockd-bench-") as name,
        running_cluster(Path(name)) as cluster,
        running_postgres(DURABLE) as server,
        server.fresh_database() as url,
    ):
        print(measure_whole(make_ready(url), cluster.endpoints, rounds * 5))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=float, default=0.05, help="of each kind in a round")
    parser.add_argument("--rounds", type=int, default=31, help="of each case")
    parser.add_argument("--only", choices=sorted(STORES), help="one store")
    given = parser.parse_args()
    print(machine.describe(), "\n")
    main(given.seconds, given.rounds, [given.only] if given.only else list(STORES))
