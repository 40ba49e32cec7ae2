"""Passwords as auth files keep them: hashed with scrypt (RFC 7914), as text.

    scrypt$16384$8$1$<salt, hex>$<hash, hex>

The daemon and the scheduler read the same files, with roles of their own.
"""

import hashlib
import hmac
import secrets
from dataclasses import dataclass
from typing import Self

from lockd.ids import ascii_int

_COST = 2**14


@dataclass(frozen=True, slots=True)
class PasswordHash:
    """A password, hashed. `str` gives the text that `parse` reads."""

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
            raise ValueError("expected scrypt$n$r$p$salt$hash, as `lockd hash-password` prints it")
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
        """Whether it is of this password. Takes some 50 ms and 16 MiB."""
        found = _scrypt(password, self.salt, self.cost, self.block_size, self.parallel, len(self.digest))
        return hmac.compare_digest(found, self.digest)


def hash_password(password: str) -> str:
    """Hash a password for `password_scrypt`, with a salt of its own."""
    salt = secrets.token_bytes(16)
    return str(PasswordHash(_COST, 8, 1, salt, _scrypt(password.encode(), salt, _COST, 8, 1, 32)))


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
