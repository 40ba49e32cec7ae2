"""Who may come in, and what they may ask for (SAFETY G11: the receiving node decides).

An auth file is TOML:

    [users.billing]
    password_scrypt = "scrypt$16384$8$1$<salt, hex>$<hash, hex>"
    roles = ["lock"]

`lockd hash-password` makes the hashes. Without an auth file everyone is the user `default` with all roles.
"""

import asyncio
import hmac
import secrets
import tomllib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import pydantic

from lockd.passwords import PasswordHash, hash_password
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


class _UserEntry(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")

    password_scrypt: str
    roles: list[str]

    @pydantic.field_validator("password_scrypt")
    @classmethod
    def _check_hash(cls, value: str) -> str:
        PasswordHash.parse(value)
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

    def __init__(self, entries: dict[str, tuple[User, PasswordHash]]) -> None:
        self._entries = entries
        self._nobody = PasswordHash.parse(hash_password(secrets.token_hex(16)))
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
                name: (User(name, frozenset(entry.roles)), PasswordHash.parse(entry.password_scrypt))
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
