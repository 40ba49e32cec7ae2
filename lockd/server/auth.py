"""Who may come in, and what they may ask for (SAFETY G11: the receiving node decides).

An auth file is TOML:

    [users.billing]
    password_scrypt = "scrypt$16384$8$1$<salt, hex>$<hash, hex>"
    roles = ["lock"]

`hash_password` makes the hashes. Without an auth file everyone is the user `default` with all roles.
"""

import asyncio
import hashlib
import hmac
import secrets
import tomllib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import pydantic

from lockd.ids import ascii_int
from lockd.server.config import ConfigError

LOCK = "lock"
"""Sessions and locks."""
OPERATOR = "operator"
"""Looking at everything, and running the cluster."""
BREAK = "break"
"""Ending the grants of others."""
ADMIN = "admin"
"""Everything."""
ROLES = (LOCK, OPERATOR, BREAK, ADMIN)

_SCRYPT_COST = 2**14
_LOGINS_WAITING_MAX = 256
"""One login costs 16 MiB and some 50 ms of a thread."""


@dataclass(frozen=True, slots=True)
class User:
    """Someone who has been let in."""

    name: str
    roles: frozenset[str]

    def has_any(self, roles: frozenset[str]) -> bool:
        """Whether one of `roles` is this user's; everyone has the empty set of needs."""
        return not roles or ADMIN in self.roles or not roles.isdisjoint(self.roles)


EVERYONE = User("default", frozenset(ROLES))
"""Who everyone is when no auth file is set."""


class TooManyLoginsError(Exception):
    """More logins wait for a thread than this node takes."""


@dataclass(frozen=True, slots=True)
class _Hash:
    """A password, hashed."""

    cost: int
    block_size: int
    parallel: int
    salt: bytes
    digest: bytes

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read the text form. Raises ValueError."""
        parts = text.split("$")
        if len(parts) != 6 or parts[0] != "scrypt":
            raise ValueError("expected scrypt$n$r$p$salt$hash")
        cost = ascii_int(parts[1], low=2, high=2**20)
        if cost & (cost - 1):
            raise ValueError(f"the cost {cost} is not a power of two")
        block_size = ascii_int(parts[2], low=1, high=32)
        if cost >= 2 ** (16 * block_size):
            raise ValueError(f"the cost {cost} is too high for the block size {block_size}")  # RFC 7914, 6
        salt, digest = bytes.fromhex(parts[4]), bytes.fromhex(parts[5])
        if len(salt) < 8 or len(digest) < 16:
            raise ValueError("the salt or the hash is too short")
        return cls(cost, block_size, ascii_int(parts[3], low=1, high=16), salt, digest)

    def __str__(self) -> str:
        return f"scrypt${self.cost}${self.block_size}${self.parallel}${self.salt.hex()}${self.digest.hex()}"

    def matches(self, password: bytes) -> bool:
        found = _scrypt(password, self.salt, self.cost, self.block_size, self.parallel, len(self.digest))
        return hmac.compare_digest(found, self.digest)


def _scrypt(password: bytes, salt: bytes, cost: int, block_size: int, parallel: int, size: int) -> bytes:
    return hashlib.scrypt(
        password,
        salt=salt,
        n=cost,
        r=block_size,
        p=parallel,
        dklen=size,
        maxmem=256 * cost * block_size + 2**20,
    )


def hash_password(password: str) -> str:
    """Hash a password for `password_scrypt`, with a salt of its own."""
    salt = secrets.token_bytes(16)
    return str(_Hash(_SCRYPT_COST, 8, 1, salt, _scrypt(password.encode(), salt, _SCRYPT_COST, 8, 1, 32)))


class _UserEntry(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")

    password_scrypt: str
    roles: list[str]

    @pydantic.field_validator("password_scrypt")
    @classmethod
    def _check_hash(cls, value: str) -> str:
        _Hash.parse(value)
        return value

    @pydantic.field_validator("roles")
    @classmethod
    def _check_roles(cls, value: list[str]) -> list[str]:
        unknown = sorted(set(value).difference(ROLES))
        if unknown:
            raise ValueError(f"unknown role {unknown[0]!r}; there are {', '.join(ROLES)}")
        return value


class _AuthFile(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")

    users: dict[str, _UserEntry]


class Users:
    """The users of an auth file, and the thread that checks passwords."""

    def __init__(self, entries: dict[str, tuple[User, _Hash]]) -> None:
        self._entries = entries
        self._nobody = _Hash.parse(hash_password(secrets.token_hex(16)))
        self._threads = ThreadPoolExecutor(max_workers=1, thread_name_prefix="lockd-login")
        self._waiting = 0
        # A cluster that lost a node gets all its clients back at once. A password that was right is
        # known again by a keyed hash, whose key never leaves this process.
        self._key = secrets.token_bytes(32)
        self._right: dict[str, bytes] = {}

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read an auth file. Raises ConfigError: one line that says what is wrong with it."""
        try:
            found = _AuthFile.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
        except OSError as error:
            raise ConfigError(f"auth-file: cannot read {path}: {error.strerror}") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"auth-file: {path} is not valid TOML: {error}") from error
        except pydantic.ValidationError as error:
            first = error.errors(include_input=False)[0]
            where = ".".join(str(part) for part in first["loc"])
            raise ConfigError(f"auth-file: {path}: {where}: {first['msg']}") from error
        return cls(
            {
                name: (User(name, frozenset(entry.roles)), _Hash.parse(entry.password_scrypt))
                for name, entry in found.users.items()
            }
        )

    async def authenticate(self, name: str, password: bytes) -> User | None:
        """The user, when the password is theirs. An unknown name takes as long as a wrong password.

        Raises TooManyLoginsError.
        """
        keyed = hmac.digest(self._key, password, "sha256")
        user, expected = self._entries.get(name, (None, self._nobody))
        if user is not None and hmac.compare_digest(self._right.get(name, b""), keyed):
            return user
        if self._waiting >= _LOGINS_WAITING_MAX:
            raise TooManyLoginsError
        self._waiting += 1
        try:
            loop = asyncio.get_running_loop()
            matches = await loop.run_in_executor(self._threads, expected.matches, password)
        finally:
            self._waiting -= 1
        if user is None or not matches:
            return None
        self._right[name] = keyed
        return user

    def close(self) -> None:
        """Let the thread end; logins that wait are dropped."""
        self._threads.shutdown(wait=False, cancel_futures=True)
