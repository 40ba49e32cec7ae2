"""What a refusal says on the wire: its word, a text for people, and for BUSY and TIMEOUT who holds it."""

import json
import re

from lockd.locks.commands import Refused
from lockd.protocol.resp import encode_error

_NOT_PLAIN = re.compile(r"[^ -{}~]")
"""All but ASCII that can be printed, and `|`: the last one of a line is what the facts begin after."""


def encode_refusal(refused: Refused) -> bytes:
    """The error line of RESP."""
    return encode_error(refused.code, refused.text, facts(refused) if is_about_holder(refused) else "")


def is_about_holder(refused: Refused) -> bool:
    return refused.code in {"BUSY", "TIMEOUT"}


def facts(refused: Refused) -> str:
    """The holder and the queue as one line of JSON in ASCII."""
    named: dict[str, str | int] = {
        "lock": refused.lock,
        "holder": refused.holder,
        "owner": refused.owner,
        "held_ms": refused.held_ms,
        "queue_length": refused.queue_length,
    }
    fields = [f"{json.dumps(name)}:{json.dumps(value)}" for name, value in named.items()]
    # The metadata goes in as it is: parsing it here might fail, and would cost every refusal.
    fields.insert(3, f'"meta":{refused.meta or "null"}')
    return _NOT_PLAIN.sub(_escape, "{" + ",".join(fields) + "}")


def _escape(found: re.Match[str]) -> str:
    """Outside of its texts JSON has no other characters than line breaks and tabs, which mean nothing."""
    code = ord(found[0])
    if code < 0x20:
        return " "
    if code < 0x10000:
        return f"\\u{code:04x}"
    code -= 0x10000
    return f"\\u{0xD800 + (code >> 10):04x}\\u{0xDC00 + (code & 0x3FF):04x}"
