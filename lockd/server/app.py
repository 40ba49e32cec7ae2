"""One lockd node as a process: opens its data, starts its parts in order, and stops them again.

Start: lock and recover the data directory, then the log's thread, peers, clients, HTTP; ready
once a leader is known and the log is applied. Stop (SIGTERM): clients are told, connections end, the log
is flushed, exit 0. An error that no part can act on stops the node with a status that is not 0: a
node that is not sure of itself must not vote.
"""

import asyncio
import contextlib
import logging
import os
import secrets
import signal
import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import uvloop

from lockd.disk.wal import Recovered, open_data_dir
from lockd.ids import ClusterId, Incarnation, InstanceId, NodeId
from lockd.locks.machine import LockMachine
from lockd.raft.entries import Configuration
from lockd.raft.log import Log
from lockd.raft.node import RaftConfig, RaftNode
from lockd.server import frames
from lockd.server.admin import AdminServer
from lockd.server.auth import Users
from lockd.server.config import Address, ConfigError, ServerConfig
from lockd.server.driver import Driver, DriverSettings, Ports
from lockd.server.listener import Listener
from lockd.server.peers import Introduction, PeerNetwork

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
        peer_server_tls, peer_client_tls = _peer_tls(config)
        recovered, self._wal = open_data_dir(
            config.data_dir,
            node_id=config.node_id,
            founding={node: str(address) for node, address in config.founding_members.items()},
            draw_instance=lambda: InstanceId(secrets.token_hex(16)),
        )
        self._bindings = dict(recovered.bindings)
        self._durable_bindings = set(recovered.bindings)
        self._boot = secrets.randbits(62) + 1
        self._stopping = asyncio.Event()
        self._failure: BaseException | None = None
        self._exit_status = 0
        self._turn_scheduled = False
        voters = recovered.identity.founders
        self.network = PeerNetwork(
            introduction=Introduction(
                config.node_id, recovered.identity.instance, self._boot, voters, version
            ),
            local=self,
            address_of=self._peer_address,
            server_tls=peer_server_tls,
            client_tls=peer_client_tls,
        )
        self.driver = self._build_driver(recovered, voters, version)
        self.listener = Listener(self.driver, users=self._users)
        self.admin = AdminServer(self)

    def _build_driver(self, recovered: Recovered, voters: tuple[NodeId, ...], version: str) -> Driver:
        config = self._config
        raft = RaftNode(
            RaftConfig(
                node_id=config.node_id,
                election_ticks=config.election_timeout_ms // config.heartbeat_ms,
                heartbeat_ticks=1,
            ),
            configuration=Configuration(voters),
            hard_state=recovered.hard_state,
            log=Log.from_run(recovered.entries),
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
            ),
            identity=recovered.identity,
            addresses=recovered.addresses,
            boot=self._boot,
            raft=raft,
            machine=LockMachine(),
            ports=Ports(
                disk=self._wal,
                network=self.network,
                clock_ms=lambda: time.monotonic_ns() // 1_000_000,
                wake=self._schedule_turn,
                draw_cluster=lambda: (ClusterId(secrets.token_hex(16)), Incarnation(secrets.token_hex(4))),
            ),
        )

    # What the peers' connections ask of this node.

    def identity(self) -> tuple[ClusterId, Incarnation]:
        identity = self.driver.identity
        return identity.cluster, identity.incarnation

    def bound_instance(self, node: NodeId) -> InstanceId | None:
        return self._bindings.get(node)

    def bind_peer(self, node: NodeId, instance: InstanceId, on_bound: Callable[[], None]) -> None:
        """Bind a peer whose id is free or bound to this very instance."""

        def now_durable() -> None:
            self._durable_bindings.add(node)
            on_bound()

        if node in self._durable_bindings:
            on_bound()
        else:
            self._bindings[node] = instance  # from here on no other instance is taken for it
            self.driver.bind_peer(node, instance, now_durable)

    def on_frame(self, sender: NodeId, frame: frames.Frame) -> None:
        with self._stops_on_error():
            self.driver.on_frame(sender, frame)

    def on_replaced(self, peer: NodeId, reason: str) -> None:
        self._exit(
            EXIT_USAGE,
            f"node {peer} refuses this data directory: {reason}. The cluster knows this node under its old "
            f"disk. Restore that disk, or have an operator run `lockd members remove {self._config.node_id}` "
            "and add a new node under a new id",
        )

    def _peer_address(self, node: NodeId) -> Address | None:
        text = self.driver.addresses.get(node)
        return None if text is None else Address.parse(text)

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
        peers = tuple(node for node in self.driver.addresses if node != config.node_id)
        with _listening("listen-peer", config.listen_peer):
            await self.network.start(config.listen_peer, peers)
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

    async def _stop(self) -> None:
        self.driver.stop()
        await self.listener.stop()
        await self.admin.stop()
        await self.network.stop()
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
