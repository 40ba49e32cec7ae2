"""Where settings come from, and what a wrong one is answered with."""

from pathlib import Path

import pytest

from lockd.server.config import Address, ConfigError, load


def test_without_anything_it_is_one_node_on_loopback() -> None:
    config, warnings = load({}, {})
    assert (str(config.listen_client), str(config.listen_peer), str(config.listen_http)) == (
        "127.0.0.1:7420",
        "127.0.0.1:7421",
        "127.0.0.1:7422",
    )
    assert config.founding_members == {1: Address("127.0.0.1", 7421)}
    assert config.data_dir == Path("lockd-data")
    assert warnings == []


def test_flags_win_over_the_environment_and_that_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "lockd.toml"
    file.write_text('node-id = 3\nheartbeat-ms = 30\nelection_timeout_ms = 400\nlog-format = "json"\n')
    environ = {"LOCKD_NODE_ID": "2", "LOCKD_HEARTBEAT_MS": "40"}
    config, _ = load({"node_id": "1"}, environ, file)
    assert (config.node_id, config.heartbeat_ms, config.election_timeout_ms) == (1, 40, 400)
    assert config.log_format == "json"


def test_unknown_variables_warn_and_known_others_do_not() -> None:
    environ = {"LOCKD_SERVICE_HOST": "10.0.0.1", "LOCKD_ENDPOINTS": "a:1", "LOCKD_TOKEN": "7", "PATH": "/bin"}
    environ |= {"LOCKD_DB": "sqlite://", "LOCKD_MODE": "exclusive"}
    _, warnings = load({}, environ)
    assert len(warnings) == 1
    assert "LOCKD_SERVICE_HOST" in warnings[0]


def test_addresses_take_names_and_both_families() -> None:
    assert Address.parse("[::1]:7420") == Address("::1", 7420)
    assert str(Address("::1", 7420)) == "[::1]:7420"
    assert Address.parse("[::1]:7420").is_loopback
    assert Address.parse("localhost:1").is_loopback
    assert not Address.parse("0.0.0.0:7420").is_loopback


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"node_id": "0"}, "node-id"),
        ({"node_id": "x"}, "node-id"),
        ({"listen_client": "7420"}, "HOST:PORT"),
        ({"listen_client": "::1:7420"}, "brackets"),
        ({"listen_client": "127.0.0.1:70000"}, "65535"),
        ({"advertise_peer": "a..b:7421"}, "'a..b' can't be the name of a host"),
        ({"listen_client": "0.0.0.0:7420"}, "--insecure"),
        ({"listen_http": "192.0.2.1:7422"}, "--insecure"),
        ({"election_timeout_ms": "abc"}, "election-timeout-ms (from the command line)"),
        ({"election_timeout_ms": "150", "heartbeat_ms": "50"}, "at least 4 times"),
        ({"initial_cluster": "2=127.0.0.1:7421"}, "does not name this node"),
        ({"initial_cluster": "1=a:1,2=b:1"}, "1, 3, 5 or 7"),
        ({"initial_cluster": "1=a:1,1=b:1"}, "named twice"),
        ({"initial_cluster": "1"}, "ID=HOST:PORT"),
        ({"tls_cert": "cert.pem"}, "go together"),
        ({"log_format": "xml"}, "log-format"),
        ({"initial_cluster": "1=a:1,2=b:1,3=a:1"}, "a:1 is given to nodes 1 and 3"),
        ({"join": "a:1", "node_id": "4", "initial_cluster": "4=a:2"}, "joins a cluster or founds one"),
        ({"join": "127.0.0.1:7421", "node_id": "4"}, "this node itself"),
        ({"join": "a:1"}, "join needs node-id"),
        ({"snapshot_log_bytes": "65535"}, "snapshot-log-bytes"),
        ({"listen_client": "0.0.0.0:7420", "insecure": True}, "advertise-client"),
        ({"advertise_client": "[::]:7420"}, "advertise-client"),
        ({"colour": "blue"}, "not a setting"),
    ],
)
def test_a_wrong_setting_is_one_line_that_names_it(flags: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(flags, {})
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_line_says_where_the_wrong_value_came_from(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="from LOCKD_HEARTBEAT_MS"):
        load({}, {"LOCKD_HEARTBEAT_MS": "soon"})
    file = tmp_path / "lockd.toml"
    file.write_text("heartbeat-ms = -1\n")
    with pytest.raises(ConfigError, match=r"in .*lockd\.toml"):
        load({}, {}, file)
    file.write_text("heartbeat-ms = = 1\n")
    with pytest.raises(ConfigError, match="not valid TOML"):
        load({}, {}, file)
    with pytest.raises(ConfigError, match="cannot read"):
        load({}, {}, tmp_path / "absent.toml")


def test_a_node_that_joins_founds_nothing() -> None:
    config, _ = load({"join": "a:7421", "node_id": "4"}, {})
    assert config.join == Address("a", 7421)
    assert config.founding_members == {}
    assert config.snapshot_log_bytes == 64 * 1024 * 1024
