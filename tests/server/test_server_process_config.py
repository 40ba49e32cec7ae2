"""Settings that look right and would do harm later."""

import hashlib
from pathlib import Path

import pytest

from lockd.server.auth import Users
from lockd.server.config import Address, ConfigError, load

MEMBERS = "1=lockd1:7421,2=lockd2:7421,3=lockd3:7421"


def test_a_node_that_listens_everywhere_is_dialled_where_it_was_founded() -> None:
    """Else the others would learn 0.0.0.0 through the log, and dial themselves from then on."""
    flags = {"insecure": True, "listen_peer": "0.0.0.0:7421", "node_id": "2"}
    config, _ = load(flags | {"initial_cluster": MEMBERS}, {})
    assert config.peer_address == Address("lockd2", 7421)
    config, _ = load(flags | {"initial_cluster": MEMBERS, "advertise_peer": "10.0.0.2:7421"}, {})
    assert config.peer_address == Address("10.0.0.2", 7421)
    for everywhere in ("0.0.0.0:7421", "[::]:7421"):
        with pytest.raises(ConfigError, match="advertise-peer"):
            load(flags | {"listen_peer": everywhere}, {})
    with pytest.raises(ConfigError, match="advertise-peer"):
        load({"advertise_peer": "0.0.0.0:7421"}, {})


def test_an_empty_data_dir_is_not_the_directory_one_happens_to_be_in() -> None:
    with pytest.raises(ConfigError, match=r"data-dir .*empty"):
        load({"data_dir": ""}, {})


def test_an_empty_variable_is_not_set() -> None:
    config, warnings = load({}, {"LOCKD_TLS_CERT": "", "LOCKD_DATA_DIR": "", "LOCKD_INSECURE": ""})
    assert config.data_dir == Path("lockd-data")
    assert config.tls_cert is None
    assert not warnings


def test_a_hash_that_no_login_could_be_checked_against_is_refused_at_the_start(tmp_path: Path) -> None:
    """P6: it would end the node at the first login."""
    with pytest.raises(ValueError, match=r"limit|nvalid"):
        hashlib.scrypt(b"p", salt=b"s" * 16, n=65536, r=1, p=1, maxmem=2**30)
    users = tmp_path / "users.toml"
    users.write_text(
        f'[users.app]\npassword_scrypt = "scrypt$65536$1$1${"00" * 16}${"00" * 32}"\nroles = ["lock"]\n'
    )
    with pytest.raises(ConfigError, match="block size"):
        Users.load(users)
