"""One lockd node as a process: opens its data, starts its parts in order, and stops them again.

Start: lock and recover the data directory, then the log's thread, peers, clients, HTTP; ready
once a leader is known and the log is applied. Stop (SIGTERM): leadership is handed over, clients are
told, connections end, the log is flushed, exit 0. An error that no part can act on stops the node
with a status that is not 0: a node that is not sure of itself must not vote.
"""

import asyncio
import contextlib
import logging
import os
import secrets
import signal
import ssl
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import cast

import uvloop

from lockd.disk.wal import Recovered, open_data_dir
from lockd.ids import NO_NODE, ClusterId, Incarnation, InstanceId, NodeId
from lockd.locks.commands import Outcome, Refused
from lockd.raft.node import RaftConfig, Role
from lockd.server import frames
from lockd.server.admin import AdminServer
from lockd.server.auth import Users
from lockd.server.bindings import Bindings
from lockd.server.config import Address, ConfigError, ServerConfig
from lockd.server.driver import Driver
from lockd.server.forking import ForkingSnapshots
from lockd.server.handshake import Introduction
from lockd.server.joining import find_cluster
from lockd.server.listener import Listener
from lockd.server.peers import PeerNetwork
from lockd.server.recovering import recovered_core
from lockd.server.surroundings import DriverSettings, Ports

log = logging.getLogger(__name__)

EXIT_FAILED = 1
EXIT_USAGE = 2
ANSWER_TIMEOUTS = 10
"""A caller waits at most this many election timeouts for an outcome."""


class Node:
    """The parts of one node and how they hear of each other. `run` is its whole life."""

    def __init__(self, config: ServerConfig, *, version: str) -> None:
        """Open and recover the data directory.

        Raises ConfigError, DataDirError, CorruptData: each with a text that says what to do.
        """
        self._config = config
        self._users = Users.load(config.auth_file) if config.auth_file else None
        self._client_tls = _server_tls(config)
        peer_server_tls, self._peer_client_tls = _peer_tls(config)
        recovered, self._wal = open_data_dir(
            config.data_dir,
            node_id=config.node_id,
            founding={node: str(address) for node, address in config.founding_members.items()},
            draw_instance=lambda: InstanceId(secrets.token_hex(16)),
        )
        self._boot = secrets.randbits(62) + 1
        self._stopping = asyncio.Event()
        self._failure: BaseException | None = None
        self._exit_status = 0
        self._turn_scheduled = False
        self._members_change_scheduled = False
        founders = recovered.identity.founders
        self._introduction = Introduction(
            config.node_id,
            recovered.identity.instance,
            self._boot,
            founders if config.node_id in founders else (),
            version,
            str(config.peer_address),
        )
        self.network = PeerNetwork(
            introduction=self._introduction,
            local=self,
            address_of=self._peer_address,
            server_tls=peer_server_tls,
            client_tls=self._peer_client_tls,
        )
        self._snapshots = ForkingSnapshots(self._wal.snapshots)
        self.driver = self._build_driver(recovered, version)
        self._bindings = Bindings(
            recovered.bindings,
            write=self.driver.bind_peer,
            registered=self._registered_instance,
            is_guest=lambda node: self.objection_to(node) is not None and not self.is_removed(node),
        )
        self.listener = Listener(self.driver, users=self._users)
        self.admin = AdminServer(self, users=self._users, version=version)

    def _build_driver(self, recovered: Recovered, version: str) -> Driver:
        config = self._config
        raft, machine = recovered_core(
            recovered,
            RaftConfig(
                node_id=config.node_id,
                election_ticks=config.election_timeout_ms // config.heartbeat_ms,
                heartbeat_ticks=1,
            ),
            draw=lambda low, high: low + secrets.randbelow(high - low + 1),
        )
        return Driver(
            settings=DriverSettings(
                election_timeout_ms=config.election_timeout_ms,
                answer_ms_max=ANSWER_TIMEOUTS * config.election_timeout_ms,
                peer_address=str(config.peer_address),
                client_address=str(config.client_address),
                http_address=str(config.http_address),
                version=version,
                snapshot_log_bytes=config.snapshot_log_bytes,
            ),
            identity=recovered.identity,
            addresses=recovered.addresses,
            boot=self._boot,
            raft=raft,
            machine=machine,
            ports=Ports(
                disk=self._wal,
                network=self.network,
                clock_ms=lambda: time.monotonic_ns() // 1_000_000,
                wake=self._schedule_turn,
                draw_cluster=lambda: (ClusterId(secrets.token_hex(16)), Incarnation(secrets.token_hex(4))),
                snapshots=self._snapshots,
                unix_s=lambda: int(time.time()),
                members_changed=self._schedule_members_change,
            ),
        )

    # What the peers' connections ask of this node.

    def identity(self) -> tuple[ClusterId, Incarnation]:
        identity = self.driver.identity
        return identity.cluster, identity.incarnation

    def bound_instance(self, node: NodeId) -> InstanceId | None:
        return self._bindings.instance_of(node)

    def has_room_for(self, node: NodeId) -> bool:
        return self._bindings.has_room_for(node)

    def bind_peer(self, node: NodeId, instance: InstanceId, on_bound: Callable[[], None]) -> None:
        self._bindings.bind(node, instance, on_bound)

    def on_frame(self, sender: NodeId, frame: frames.Frame) -> None:
        with self._stops_on_error():
            self.driver.on_frame(sender, frame)

    def objection_to(self, node: NodeId) -> str | None:
        if node in self.driver.raft.configuration.members:
            return None
        return f"node {node} is not a member of this cluster"

    def is_removed(self, node: NodeId) -> bool:
        return node in self.driver.machine.removed

    def addresses(self) -> Mapping[NodeId, str]:
        return self.driver.addresses

    def founders(self) -> tuple[NodeId, ...]:
        return self.driver.identity.founders

    def on_excluded(self, reason: str) -> None:
        self._exit(EXIT_USAGE, reason)

    def _registered_instance(self, node: NodeId) -> InstanceId | None:
        registered = self.driver.machine.nodes.get(node)
        return None if registered is None else InstanceId(registered.instance)

    def _peer_address(self, node: NodeId) -> Address | None:
        with contextlib.suppress(ValueError):  # another node's word: as good as none
            return Address.parse(self.driver.addresses.get(node, ""))
        return None

    def _schedule_members_change(self) -> None:
        if not self._members_change_scheduled:
            self._members_change_scheduled = True
            asyncio.get_running_loop().call_soon(self._on_members_changed)

    def _on_members_changed(self) -> None:
        """Connect to who is a member now. A node that is none any more has nothing left to do."""
        self._members_change_scheduled = False
        self.network.set_peers(self._peers())
        if self.is_removed(self._config.node_id):
            # Whoever asked for it is told first.
            delay_s = self._config.election_timeout_ms / 1000
            asyncio.get_running_loop().call_later(
                delay_s, self._exit, 0, "this node was removed from the cluster"
            )

    def _peers(self) -> Iterable[NodeId]:
        """Whom to dial: the members; before a joining node knows them, whoever it was told of."""
        return self.driver.raft.configuration.members or self.driver.addresses

    # The process.

    async def run(self) -> int:
        """Serve until SIGTERM, SIGINT or a failure. Returns the exit status."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._exit, 0, f"{number.name} received")
        loop.set_exception_handler(self._on_loop_error)
        try:
            await self._start(loop)
            await self._stopping.wait()
        finally:
            await self._stop()
        log.info("stopped")
        return self._exit_status

    async def _start(self, loop: asyncio.AbstractEventLoop) -> None:
        config = self._config
        self._wal.start(
            lambda ticket: _from_thread(loop, self._on_durable, ticket),
            lambda error: _from_thread(loop, self._fail, error),
            lambda is_full: _from_thread(loop, self._on_disk_full, is_full),
        )
        if config.join is not None:
            await self._join(config.join)
        with _listening("listen-peer", config.listen_peer):
            await self.network.start(config.listen_peer, self._peers())
        with _listening("listen-client", config.listen_client):
            await self.listener.start(config.listen_client, tls=self._client_tls)
        with _listening("listen-http", config.listen_http):
            await self.admin.start(config.listen_http, config.tls_cert, config.tls_key)
        log.info(
            "node %d (instance %s) serves clients on %s, peers on %s, HTTP on %s, data in %s",
            config.node_id,
            self.driver.identity.instance,
            config.listen_client,
            config.listen_peer,
            config.listen_http,
            config.data_dir,
        )
        self._tick(loop)
        if self.driver.raft.configuration.voters == (config.node_id,):
            self.driver.raft.campaign()  # nobody else can lead: there is no time-out to wait for

    async def _join(self, at: Address) -> None:
        """Learn from the node at `at` whose cluster this empty one is part of; wait until it is (C8)."""
        if self.driver.identity.cluster or self.driver.raft.configuration.members:
            log.info("join %s is ignored: this node has its data already", at)
            return
        search = asyncio.create_task(find_cluster(self._introduction, at, tls=self._peer_client_tls))
        stop = asyncio.create_task(self._stopping.wait())
        await asyncio.wait([search, stop], return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        if not search.done():
            search.cancel()
            return
        found = search.result()
        log.info("joining cluster %s, incarnation %s", found.cluster, found.incarnation)
        self.driver.joined(
            found.cluster, found.incarnation, founders=found.founders, addresses=found.addresses
        )

    async def _hand_over(self) -> None:
        """Have another node lead before this one goes, so that clients miss no election timeout."""
        raft = self.driver.raft
        if self._exit_status != 0 or raft.role is not Role.LEADER or len(raft.configuration.voters) == 1:
            return
        answered: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self.driver.transfer(target=NO_NODE, on_outcome=answered.set_result)
        outcome = await answered  # it has a deadline of two election timeouts
        if isinstance(outcome, Refused):
            log.warning("stopping as the leader: %s", outcome.text)

    async def _stop(self) -> None:
        await self._hand_over()
        self.driver.stop()
        await self.listener.stop()
        await self.admin.stop()
        await self.network.stop()
        await self._snapshots.stop()
        await asyncio.to_thread(self._wal.close)

    def _tick(self, loop: asyncio.AbstractEventLoop) -> None:
        # The next tick is set from now: ticks missed while the process was paused stay missed.
        loop.call_later(self._config.heartbeat_ms / 1000, self._tick, loop)
        with self._stops_on_error():
            self.driver.tick()

    def _schedule_turn(self) -> None:
        if not self._turn_scheduled:
            self._turn_scheduled = True
            asyncio.get_running_loop().call_soon(self._turn)

    def _turn(self) -> None:
        self._turn_scheduled = False
        with self._stops_on_error():
            self.driver.turn()

    def _on_durable(self, ticket: int) -> None:
        with self._stops_on_error():
            self.driver.on_durable(ticket)

    @contextlib.contextmanager
    def _stops_on_error(self) -> Iterator[None]:
        """The boundary of everything that the driver does: what it can't act on ends the node."""
        try:
            yield
        except frames.FrameError:
            raise
        except Exception as error:  # noqa: BLE001 - the boundary: it is logged and the node stops
            self._fail(error)

    def _on_loop_error(self, _: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
        error = context.get("exception")
        transport = context.get("transport")
        if isinstance(error, Exception) and transport is not None:
            # One connection's end, whatever the fault: the others notice nothing (P6).
            log.error("a connection is closed: %s", context.get("message"), exc_info=error)
            cast("asyncio.WriteTransport", transport).abort()
            return
        self._fail(error if isinstance(error, Exception) else RuntimeError(str(context.get("message"))))

    def _on_disk_full(self, is_full: bool) -> None:  # noqa: FBT001 - the log's callback
        if is_full:
            log.error("the disk is full: this node takes no writes until there is room")
        else:
            log.info("the disk has room again")
        with self._stops_on_error():
            self.driver.on_disk_full(is_full=is_full)

    def _fail(self, error: BaseException) -> None:
        log.critical("this node stops: %s", error, exc_info=error)
        self._exit(EXIT_FAILED, "a failure that it cannot act on")

    def _exit(self, status: int, reason: str) -> None:
        if self._stopping.is_set():
            return
        (log.info if status == 0 else log.error)("stopping: %s", reason)
        self._exit_status = status
        self._stopping.set()

    @property
    def is_stopping(self) -> bool:
        return self._stopping.is_set()


@contextlib.contextmanager
def _listening(setting: str, address: Address) -> Iterator[None]:
    """Say which address could not be had, as ConfigError."""
    try:
        yield
    except OSError as error:
        # uvloop's texts repeat the address; a resolver's numbers are negative and not the system's.
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror or error
        raise ConfigError(f"{setting}: cannot listen on {address}: {reason}") from error


def _from_thread(loop: asyncio.AbstractEventLoop, call: Callable[..., None], argument: object) -> None:
    # The writer may finish a last write after the loop has closed: nobody waits for it any more.
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(call, argument)


def _server_tls(config: ServerConfig) -> ssl.SSLContext | None:
    if config.tls_cert is None or config.tls_key is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _load_chain(context, config.tls_cert, config.tls_key, "tls")
    return context


def _peer_tls(config: ServerConfig) -> tuple[ssl.SSLContext | None, ssl.SSLContext | None]:
    """Both ends of the peers' connections: each shows a certificate of the peers' own authority."""
    if config.tls_peer_cert is None or config.tls_peer_key is None:
        return None, None
    contexts = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    for context in contexts:
        _load_chain(context, config.tls_peer_cert, config.tls_peer_key, "tls-peer")
        context.verify_mode = ssl.CERT_REQUIRED
        try:
            context.load_verify_locations(config.tls_peer_ca)
        except OSError as error:
            raise ConfigError(f"tls-peer-ca: cannot read {config.tls_peer_ca}: {error}") from error
    contexts[1].check_hostname = False  # a peer is known by its authority and its bound instance
    return contexts


def _load_chain(context: ssl.SSLContext, cert: Path, key: Path, name: str) -> None:
    try:
        context.load_cert_chain(cert, key)
    except OSError as error:
        raise ConfigError(f"{name}-cert, {name}-key: cannot load {cert} and {key}: {error}") from error


def serve(config: ServerConfig, *, version: str) -> int:
    """Run a node until it ends. Returns the process's exit status; errors of the start are raised."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:

        async def main() -> int:
            return await Node(config, version=version).run()

        return runner.run(main())
