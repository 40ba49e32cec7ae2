"""Who may come in over HTTP, and as what.

An auth file is TOML, like lockd's own; `lockd hash-password` makes the hashes:

    [users.ann]
    password_scrypt = "scrypt$16384$8$1$<salt, hex>$<hash, hex>"
    roles = ["operator"]

A viewer looks at everything, an operator also starts, cancels, pauses and backfills, and an admin
does so with shell jobs too. Without an auth file everyone is an admin, which is why the page is then
only there for this machine, unless somebody insists.
"""

import hmac
import secrets
import threading
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Self

import pydantic

from lockd.passwords import PasswordHash
from lockd_scheduler.errors import BadSchedule


class Role(IntEnum):
    """What somebody may do; each may do what those before it may."""

    VIEWER = 1
    OPERATOR = 2
    ADMIN = 3

    @property
    def word(self) -> str:
        """As it stands in an auth file."""
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class User:
    """Somebody who has been let in."""

    name: str
    role: Role

    def may(self, role: Role) -> bool:
        """Whether this user has that role, or one that includes it."""
        return self.role >= role


EVERYONE = User("anyone", Role.ADMIN)
"""Who everyone is without an auth file."""


class _Entry(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")

    password_scrypt: str
    roles: list[str] = pydantic.Field(min_length=1)

    @pydantic.field_validator("password_scrypt")
    @classmethod
    def _check_hash(cls, value: str) -> str:
        PasswordHash.parse(value)
        return value

    @pydantic.field_validator("roles")
    @classmethod
    def _check_roles(cls, value: list[str]) -> list[str]:
        known = [role.word for role in Role]
        unknown = sorted(set(value).difference(known))
        if unknown:
            raise ValueError(f"unknown role {unknown[0]!r}; there are {', '.join(known)}")
        return value


class _AuthFile(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")

    users: dict[str, _Entry] = pydantic.Field(min_length=1)


class Users:
    """The users of an auth file. Safe on any thread."""

    def __init__(self, entries: Mapping[str, tuple[User, PasswordHash]]) -> None:
        self._entries = entries
        # An unknown name takes as long as a wrong password: a hash that nothing matches.
        sample = next(hashed for _, hashed in entries.values())
        self._nobody = PasswordHash(
            sample.cost, sample.block_size, sample.parallel, sample.salt, secrets.token_bytes(32)
        )
        # A page asks often: a password that was right is known again by a keyed hash, whose key never
        # leaves this process.
        self._key = secrets.token_bytes(32)
        self._right: dict[str, bytes] = {}
        self._one_login = threading.Lock()

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read an auth file. Raises BadSchedule: one line that says what is wrong with it."""
        try:
            found = _AuthFile.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
        except OSError as error:
            raise BadSchedule(f"--auth-file: can't read {path}: {error.strerror}") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise BadSchedule(f"--auth-file: {path} is not valid TOML: {error}") from error
        except pydantic.ValidationError as error:
            first = error.errors(include_input=False)[0]
            where = ".".join(str(part) for part in first["loc"])
            raise BadSchedule(f"--auth-file: {path}: {where}: {first['msg']}") from None
        return cls(
            {
                name: (
                    User(name, max(Role[role.upper()] for role in entry.roles)),
                    PasswordHash.parse(entry.password_scrypt),
                )
                for name, entry in found.users.items()
            }
        )

    def authenticate(self, name: str, password: str) -> User | None:
        """The user, when the password is theirs. One login at a time costs memory and a processor."""
        given = password.encode("utf-8", "surrogatepass")
        keyed = hmac.digest(self._key, given, "sha256")
        user, expected = self._entries.get(name, (None, self._nobody))
        if user is not None and hmac.compare_digest(self._right.get(name, b""), keyed):
            return user
        with self._one_login:
            is_right = expected.matches(given)
        if user is None or not is_right:
            return None
        self._right[name] = keyed
        return user

    def named(self, name: str) -> User | None:
        """The user of that name."""
        return self._entries.get(name, (None, None))[0]
