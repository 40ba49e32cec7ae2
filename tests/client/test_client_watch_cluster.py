"""Watches and elections on real nodes that are killed and frozen while they go on."""

import asyncio
import contextlib
from collections.abc import Iterator

import pytest

import lockd
from tests.processes import PATIENCE_S, ClusterProcesses, LockdProcess, running_cluster

pytestmark = pytest.mark.process

FAULTS = 3


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterProcesses]:
    with running_cluster(tmp_path_factory.mktemp("watch")) as found:
        yield found


@pytest.fixture(autouse=True)
def all_nodes(cluster: ClusterProcesses) -> None:
    """Whatever the test before did, three nodes are up."""
    cluster.thaw()
    cluster.start().await_ready()


async def churn(cluster: ClusterProcesses, prefix: str, until: asyncio.Event) -> None:
    """Take locks and give them back, as fast as it goes, whatever becomes of it."""
    async with lockd.AsyncClient(cluster.endpoints, ttl=3) as client:
        number = 0
        while not until.is_set():
            number += 1
            with contextlib.suppress(lockd.LockdError):
                async with client.lock(f"{prefix}{number % 7}", meta={"n": number}):
                    pass


async def collect(watch: lockd.AsyncFeed[lockd.LockEvent], into: list[lockd.LockEvent]) -> None:
    async for event in watch:
        into.append(event)
        if event.lock == "end":
            return


async def restart(cluster: ClusterProcesses, node: LockdProcess) -> None:
    await asyncio.to_thread(node.kill)
    await asyncio.to_thread(cluster.leader)  # a majority that is left agrees on one
    node.start()
    await asyncio.to_thread(node.await_ready)


def test_watches_lose_nothing_and_repeat_nothing_while_nodes_are_killed(cluster: ClusterProcesses) -> None:
    """The one of all locks sees revisions without a gap; the others see its events, and all of theirs."""

    async def main() -> None:
        seen: dict[str, list[lockd.LockEvent]] = {"": [], "a/": [], "b/": []}
        endpoints = cluster.endpoints.split(",")
        clients = [lockd.AsyncClient(endpoints[turn:] + endpoints[:turn], ttl=3) for turn in range(len(seen))]
        watches = {prefix: clients[turn].watch(prefix) for turn, prefix in enumerate(seen)}
        for watch in watches.values():
            await watch.__aenter__()
        first = watches[""].revision
        assert first is not None
        done = asyncio.Event()
        collecting = [asyncio.create_task(collect(watches[prefix], into)) for prefix, into in seen.items()]
        churning = [asyncio.create_task(churn(cluster, prefix, done)) for prefix in ("a/", "b/")]
        for fault in range(FAULTS):
            victim = await asyncio.to_thread(cluster.leader) if fault % 2 == 0 else next(iter(cluster))
            await restart(cluster, victim)
        done.set()
        await asyncio.gather(*churning)
        for prefix in ("a/", "b/", ""):
            async with clients[0].lock(f"{prefix}end" if prefix else "end"):
                pass
        await collecting[0]
        found = seen[""]
        assert [event.revision for event in found] == list(range(first + 1, found[-1].revision + 1))
        for prefix in ("a/", "b/"):
            expected = [event for event in found if event.lock.startswith(prefix)]
            while len(seen[prefix]) < len(expected):  # noqa: ASYNC110 - it reads on by itself
                await asyncio.sleep(0.01)
            assert seen[prefix] == expected, "every node tells the same of a revision"
            assert len(expected) > 100
        for task in collecting[1:]:
            task.cancel()
        for client in clients:
            await client.close()

    asyncio.run(asyncio.wait_for(main(), 100))


def test_a_watch_leaves_a_node_that_is_cut_off_from_the_others(cluster: ClusterProcesses) -> None:
    """It answers, but learns of nothing: here, as the other two are frozen and it alone is awake."""

    async def main() -> None:
        leader = await asyncio.to_thread(cluster.leader)
        alone = cluster.followers()[0]
        others = [node for node in cluster if node is not alone]
        client = lockd.AsyncClient(alone.endpoint, ttl=2)
        writer = lockd.AsyncClient(leader.endpoint, ttl=60)
        async with client.watch() as events:
            await writer.acquire("before")
            assert (await anext(events)).lock == "before"
            for node in others:
                await asyncio.to_thread(node.freeze)
            source = events._source
            assert isinstance(source, lockd.client.watch.Watcher)
            await _until(lambda: not source._is_live)  # it was left: it could not answer a read
            for node in others:
                node.thaw()
            await writer.acquire("after")
            while (await anext(events)).lock != "after":
                pass
        await client.close()
        await writer.close()

    asyncio.run(asyncio.wait_for(main(), 60))


async def _until(condition: object) -> None:
    assert callable(condition)
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.01)


def test_p1_candidates_lead_one_at_a_time_while_nodes_are_killed(cluster: ClusterProcesses) -> None:
    """And whoever observes sees all of them, in the order of their tokens (P2)."""

    async def main() -> None:
        leading = 0
        terms: list[int] = []
        observed: list[int] = []
        clients = [lockd.AsyncClient(cluster.endpoints, ttl=3, name=f"host-{n}") for n in range(3)]
        elections = [client.election("office", value=n) for n, client in enumerate(clients)]

        async def lead(lease: lockd.AsyncLease) -> None:
            nonlocal leading
            leading += 1
            assert leading == 1
            terms.append(lease.token)
            try:
                await asyncio.sleep(3600)
            finally:
                leading -= 1

        async def observe() -> None:
            async for leader in observer.election("office").observe():
                if leader is not None:
                    observed.append(leader.token)
                    assert leader.name == f"host-{leader.value}"

        observer = lockd.AsyncClient(cluster.endpoints, ttl=3)
        observing = asyncio.create_task(observe())
        running = [asyncio.create_task(election.run(lead)) for election in elections]
        for fault in range(FAULTS):
            await _until(lambda: leading == 1)
            if fault % 2:
                # The holder's session ends: the next in the queue leads, and this one stands again.
                await observer.break_lock("office", terms[-1], reason="test")
                count = len(terms)
                await _until(lambda count=count: len(terms) > count)
            else:
                await restart(cluster, await asyncio.to_thread(cluster.leader))
        for election, task in zip(elections, running, strict=True):
            await _until(lambda: leading == 1 or all(task.done() for task in running))
            election.stop()
            await task
        assert leading == 0
        assert terms == sorted(set(terms))
        await _until(lambda: observed[-1:] == terms[-1:])
        assert observed == terms
        observing.cancel()
        for client in (*clients, observer):
            await client.close()

    asyncio.run(asyncio.wait_for(main(), 100))
