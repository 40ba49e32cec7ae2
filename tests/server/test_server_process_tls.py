"""Real nodes behind TLS: peers that know each other by their authority, clients, users, HTTP, IPv6."""

import contextlib
import http.client
import json
import shutil
import socket
import ssl
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import hiredis
import pytest

from lockd.ids import ClusterId, InstanceId
from lockd.server import frames
from tests.processes import LockdProcess, eventually, run_lockd, running_cluster

OPENSSL = shutil.which("openssl")
pytestmark = pytest.mark.skipif(OPENSSL is None, reason="TLS IS NOT TESTED: there is no openssl command")
HELLO = frames.Hello(2, 1, "", 9, (1, 2, 3), "0.1.0")
STRANGER = InstanceId("f" * 32)


class Pair(NamedTuple):
    """A certificate and its key, PEM."""

    cert: Path
    key: Path


def openssl(*arguments: object) -> None:
    subprocess.run([str(OPENSSL), *map(str, arguments)], check=True, capture_output=True)


def make_authority(folder: Path, name: str) -> Pair:
    pair = Pair(folder / f"{name}.pem", folder / f"{name}.key")
    openssl(
        *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
        *("-days", "2", "-subj", f"/CN={name}", "-keyout", pair.key, "-out", pair.cert),
        *("-addext", "keyUsage=critical,keyCertSign,cRLSign"),  # Python 3.13 checks RFC 5280 strictly
    )
    return pair


def make_certificate(folder: Path, name: str, authority: Pair) -> Pair:
    """For localhost, 127.0.0.1 and ::1, good for both ends of a connection."""
    pair = Pair(folder / f"{name}.pem", folder / f"{name}.key")
    request, extensions = folder / f"{name}.csr", folder / f"{name}.ext"
    extensions.write_text(
        "subjectAltName=DNS:localhost,IP:127.0.0.1,IP:::1\n"
        "authorityKeyIdentifier=keyid\nsubjectKeyIdentifier=hash\n"
    )
    openssl(
        *("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
        *("-subj", f"/CN={name}", "-keyout", pair.key, "-out", request),
    )
    openssl(
        *("x509", "-req", "-in", request, "-days", "2", "-CA", authority.cert, "-CAkey", authority.key),
        *("-CAcreateserial", "-extfile", extensions, "-out", pair.cert),
    )
    return pair


def peer_flags(pair: Pair, authority: Pair) -> list[str]:
    return [
        f"--tls-peer-cert={pair.cert}",
        f"--tls-peer-key={pair.key}",
        f"--tls-peer-ca={authority.cert}",
    ]


def ends_unheard(connection: socket.socket) -> bool:
    """Whether the node ends the connection without a frame, whatever is said on it."""
    connection.settimeout(10)
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        connection.sendall(frames.encode(HELLO, cluster=ClusterId(""), instance=STRANGER))
        return not connection.recv(frames.HEADER.size).startswith(b"lk")
    return True


def test_nodes_know_each_other_by_their_authority_and_nobody_else_gets_a_word_in(tmp_path: Path) -> None:
    ours, theirs = make_authority(tmp_path, "ours"), make_authority(tmp_path, "theirs")
    flags = peer_flags(make_certificate(tmp_path, "node", ours), ours)
    impostor = make_certificate(tmp_path, "impostor", theirs)
    with running_cluster(tmp_path, flags=flags) as cluster:
        leader = cluster.leader()
        follower = cluster.followers()[0]
        token = follower.ask("LOCK.ACQUIRE", "k", "TTL", 60_000)["token"]

        port = leader.ports.peer
        with socket.create_connection(("127.0.0.1", port)) as plain:
            assert ends_unheard(plain)
        for shown in (None, impostor):
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            if shown is not None:
                context.load_cert_chain(*shown)
            raw = socket.create_connection(("127.0.0.1", port))
            with contextlib.suppress(ConnectionError, ssl.SSLError), context.wrap_socket(raw) as wrapped:
                assert ends_unheard(wrapped)
            raw.close()

        leader.kill()
        cluster.leader()
        assert follower.ask("LOCK.INSPECT", "k")["holders"][0]["token"] == token
        # A node that shows the wrong authority's certificate is not of the cluster.
        leader.flags += peer_flags(impostor, theirs)
        leader.start()
        eventually(lambda: "CERTIFICATE_VERIFY_FAILED" in leader.log_text(), "it is told why")
        assert leader.http("/readyz")[0] != 200
        assert follower.ask("LOCK.ACQUIRE", "k2", "TTL", 60_000)["token"] > token


def test_a_node_joins_by_the_certificate_of_its_peers_authority(tmp_path: Path) -> None:
    ours, theirs = make_authority(tmp_path, "ours"), make_authority(tmp_path, "theirs")
    flags = peer_flags(make_certificate(tmp_path, "node", ours), ours)
    impostor = peer_flags(make_certificate(tmp_path, "impostor", theirs), theirs)
    with running_cluster(tmp_path, size=1, flags=flags) as cluster:
        (member,) = cluster
        new = cluster.nodes[2] = LockdProcess(tmp_path / "new", node_id=2)
        address, join = f"127.0.0.1:{new.ports.peer}", f"--join=127.0.0.1:{member.ports.peer}"
        added = run_lockd("members", "add", 2, address, "--endpoints", member.endpoint)
        assert added.returncode == 0, added.stderr
        new.flags = [join, *impostor]
        new.start()
        eventually(lambda: "CERTIFICATE_VERIFY_FAILED" in new.log_text(), "it is told why")
        new.stop()
        new.flags = [join, *flags]
        new.start().await_ready()
        eventually(lambda: all(found["voter"] for found in new.status()["members"]), "it votes")


def ask(node: LockdProcess, context: ssl.SSLContext, *commands: tuple[object, ...]) -> list[Any]:
    reader = hiredis.Reader(encoding="utf-8", notEnoughData=None)
    raw = socket.create_connection(("::1", node.ports.client), timeout=10)
    with context.wrap_socket(raw, server_hostname="::1") as connection:
        for words in commands:
            packed: Any = tuple(str(word) for word in words)
            connection.sendall(hiredis.pack_command(packed))
        replies: list[Any] = []
        while len(replies) < len(commands):
            while (reply := reader.gets()) is None:
                data = connection.recv(65536)
                assert data, f"closed after {replies}"
                reader.feed(data)
            replies.append(reply)
    return replies


def test_clients_and_http_behind_tls_with_users_over_ipv6_and_a_log_for_machines(tmp_path: Path) -> None:
    authority = make_authority(tmp_path, "ca")
    pair = make_certificate(tmp_path, "server", authority)
    hashed = run_lockd("hash-password", stdin="s3cret\n").stdout.strip()
    users = tmp_path / "users.toml"
    users.write_text(
        f'[users.app]\npassword_scrypt = "{hashed}"\nroles = ["lock"]\n'
        f'[users.eye]\npassword_scrypt = "{hashed}"\nroles = ["operator"]\n'
    )
    node = LockdProcess(tmp_path / "node")
    node.flags = [
        f"--listen-client=[::1]:{node.ports.client}",
        f"--listen-peer=[::1]:{node.ports.peer}",
        f"--listen-http=[::1]:{node.ports.http}",
        f"--tls-cert={pair.cert}",
        f"--tls-key={pair.key}",
        f"--auth-file={users}",
        "--log-format=json",
    ]
    context = ssl.create_default_context(cafile=str(authority.cert))

    def is_ready() -> bool:
        connection = http.client.HTTPSConnection("::1", node.ports.http, timeout=2, context=context)
        try:
            connection.request("GET", "/readyz")
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()

    try:
        node.start()
        eventually(is_ready, "the node is ready, over HTTPS")
        acquire = ("LOCK.ACQUIRE", "k", "TTL", 60_000)
        stranger = ask(node, context, acquire, ("PING",), ("HELLO", 3))
        assert [str(reply).split()[0] for reply in stranger] == ["NOAUTH"] * 3
        wrong = ask(node, context, ("AUTH", "app", "wrong"), ("AUTH", "nobody", "s3cret"), acquire)
        assert [str(reply).split()[0] for reply in wrong] == ["NOAUTH"] * 3
        greeted, granted = ask(node, context, ("HELLO", 3, "AUTH", "app", "s3cret"), acquire)
        assert greeted["server"] == "lockd"
        assert granted["status"] == "granted"
        let_in, looked, refused = ask(node, context, ("AUTH", "eye", "s3cret"), ("LOCK.LIST",), acquire)
        assert let_in == "OK"
        assert len(looked) == 6
        assert str(refused).startswith("NOPERM")
        with socket.create_connection(("::1", node.ports.client), timeout=10) as plain:
            plain.sendall(b"*1\r\n$4\r\nPING\r\n")
            with contextlib.suppress(ConnectionError):
                assert b"PONG" not in plain.recv(100)
        assert node.terminate() == 0
        lines = [json.loads(line) for line in node.log_text().splitlines()]
        assert {"time", "level", "logger", "message"} <= set(lines[0])
        assert lines[-1]["message"] == "stopped"
        assert not [line for line in lines if line["level"] in ("error", "critical")]
    finally:
        node.stop()
