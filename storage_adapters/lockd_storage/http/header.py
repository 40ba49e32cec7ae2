"""The header `Fencing-Token`, read and written.

    Fencing-Token: "<cluster>/<incarnation>/<token>";resource="orders"

It is a list of strings with parameters, in the words of RFC 9651 (which took the place of RFC 8941). The
fence is text, since that RFC's integers end at 15 digits (research: pitfall 17). Parameters:

    resource   what the fence is presented for. Left out, it counts for whatever the service asks for
    lock       the lock's name, where that is another; only an install looks at it
    mode       `shared` or `semaphore`; left out, the lease is exclusive

A name that isn't printable ASCII is written as a display string: `resource=%"caf%c3%a9"`. Of
several fences one at most may come without a resource.

Read as well, because each can mean only one thing: the fence without quotes, which is what `lockd run`
gives a command (`curl -H "Fencing-Token: $LOCKD_FENCE;mode=$LOCKD_MODE"`), a comma in place of a
parameter's semicolon, and a name without quotes. Parameters of other names are passed over, so that
later versions may add some.

The scheduler's `run.headers` send a header of this name with another content, `7.1`: the pair of an
attempt (SAFETY R4), for services that compare the attempts of a job. It is no lock's fence and has no
mark in a `FencePort`; here it is refused with an error that says so.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import quote_from_bytes, unquote_to_bytes

from lockd.ids import Fence
from lockd_storage.errors import MalformedToken
from lockd_storage.fencing import HeldLease, lock_of, resource_of, usable_resource

HEADER = "Fencing-Token"
HEADER_CHARACTERS_MAX = 8192
FENCES_MAX = 16

_FENCE = re.compile(r"[0-9A-Za-z/]+")
_ATTEMPT = re.compile(r"[0-9]+\.[0-9]+")
_KEY = re.compile(r"[a-z*][a-z0-9_.*-]*")
_STRING = re.compile(r'"((?:[ !#-\[\]-~]|\\["\\])*)"')
_DISPLAY_STRING = re.compile(r'%"((?:[ !#$&-~]|%[0-9a-f]{2})*)"')
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~:/?@=0-9A-Za-z-]+")
_PRINTABLE = re.compile(r"[ -~]*")
_BLANKS = re.compile(r"[ \t]*")
_MODES = ("exclusive", "shared", "semaphore")
_NAMES = ("resource", "lock", "mode")


@dataclass(frozen=True, slots=True)
class PresentedFence:
    """One member of the header: a fence, and what it is presented for."""

    fence: Fence
    resource: str | None = None
    lock: str | None = None
    mode: str = "exclusive"


def fencing_header(*leases: HeldLease, resource: str | None = None) -> dict[str, str]:
    """The header that presents leases, for whatever sends requests: `post(url, headers=...)`.

    Each is presented for the resource of its lock's name; `resource` names another, of one lease.
    Raises ValueError for an unusable resource, or one given for several leases.
    """
    if resource is not None and len(leases) != 1:
        raise ValueError("resource= names the resource of one lease; several are presented for their locks")
    presented = [
        PresentedFence(Fence.parse(lease.fence), name, lock_of(lease, name), lease.mode)
        for lease in leases
        for name in [resource_of(lease, resource)]
    ]
    return {HEADER: write_header(presented)}


def write_header(presented: Iterable[PresentedFence]) -> str:
    """The header's value. `parse_header` reads it back."""
    return ", ".join(_member(each) for each in presented)


def parse_header(values: Iterable[str]) -> list[PresentedFence]:
    """The fences in the header's lines, in their order; at least one.

    Raises MalformedToken, which says what is wrong, for anything else, and for what could be read in
    two ways: two fences for one resource, or two for none.
    """
    text = ", ".join(values)
    if len(text) > HEADER_CHARACTERS_MAX:
        raise MalformedToken(f"the header is longer than {HEADER_CHARACTERS_MAX} characters")
    found = _Reader(text).members()
    if len(found) > FENCES_MAX:
        raise MalformedToken(f"the header has {len(found)} fences, and at most {FENCES_MAX} are taken")
    by_resource: dict[str | None, PresentedFence] = {}
    for each in found:
        if by_resource.setdefault(each.resource, each) != each:
            what = "without a resource" if each.resource is None else f"for {each.resource!r}"
            raise MalformedToken(f"two different fences {what}: name the resource of each, and each once")
    return list(by_resource.values())


def _member(presented: PresentedFence) -> str:
    words = [f'"{presented.fence}"']
    if presented.resource is not None:
        words.append(f"resource={_text(presented.resource)}")
    if presented.lock not in (None, presented.resource):
        words.append(f"lock={_text(presented.lock or '')}")
    if presented.mode != "exclusive":
        words.append(f"mode={presented.mode}")
    return ";".join(words)


def _text(value: str) -> str:
    """A string of RFC 9651, section 3.3.3, or a display string, section 3.3.8."""
    if _PRINTABLE.fullmatch(value):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        return f'"{escaped}"'
    safe = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) not in '%"')
    encoded = re.sub("%[0-9A-F]{2}", lambda found: found[0].lower(), quote_from_bytes(value.encode(), safe))
    return f'%"{encoded}"'


class _Reader:
    """Goes through the text once, from left to right."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def members(self) -> list[PresentedFence]:
        found: list[PresentedFence] = []
        self._skip()
        while True:
            fence = self._fence()
            found.append(self._with_parameters(fence))
            self._skip()
            if self._at == len(self._text):
                return found
            if not self._take(","):
                raise self._wrong("a comma or the end")
            self._skip()

    def _fence(self) -> Fence:
        quoted = self._match(_STRING)
        if quoted is not None:
            text = quoted[1]
        else:
            attempt = self._match(_ATTEMPT)
            if attempt is not None:
                raise MalformedToken(
                    f"{attempt[0][:40]!r} is the token of a scheduler's attempt (run.headers), which no mark"
                    " is compared with. Present a lock's fence: cluster/incarnation/token"
                )
            bare = self._match(_FENCE)
            if bare is None:
                raise self._wrong("a fence: cluster/incarnation/token")
            text = bare[0]
        try:
            return Fence.parse(text)
        except ValueError as error:
            raise MalformedToken(str(error)) from None

    def _with_parameters(self, fence: Fence) -> PresentedFence:
        given: dict[str, str] = {}
        while True:
            start = self._at
            self._skip()
            comma = self._take(",")
            if not comma and not self._take(";"):
                self._at = start
                return _presented(fence, given)
            self._skip()
            key = self._match(_KEY)
            if comma and (key is None or key[0] not in _NAMES or self._peek() != "="):
                self._at = start  # the comma was a list's: another fence follows
                return _presented(fence, given)
            if key is None:
                raise self._wrong("a parameter's name")
            value = self._value() if self._take("=") else ""
            if key[0] in given:
                raise MalformedToken(f"{key[0]!r} is given twice for one fence")
            if key[0] in _NAMES:
                given[key[0]] = value

    def _value(self) -> str:
        string = self._match(_STRING)
        if string is not None:
            return re.sub(r"\\(.)", r"\1", string[1])
        display = self._match(_DISPLAY_STRING)
        if display is not None:
            try:
                return unquote_to_bytes(display[1]).decode()
            except UnicodeDecodeError:
                raise MalformedToken(f"{display[0][:40]!r} is not UTF-8") from None
        other = self._match(_TOKEN)
        if other is None:
            raise self._wrong("a parameter's value")
        return other[0]

    def _match(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        found = pattern.match(self._text, self._at)
        if found is not None:
            self._at = found.end()
        return found

    def _skip(self) -> None:
        self._match(_BLANKS)

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def _take(self, character: str) -> bool:
        taken = self._peek() == character
        self._at += taken
        return taken

    def _wrong(self, expected: str) -> MalformedToken:
        rest = self._text[self._at : self._at + 40]
        return MalformedToken(f"expected {expected}, found {rest!r}" if rest else f"expected {expected}")


def _presented(fence: Fence, given: dict[str, str]) -> PresentedFence:
    mode = given.get("mode", "exclusive")
    if mode not in _MODES:
        raise MalformedToken(f"mode {mode[:40]!r} is none of {', '.join(_MODES)}")
    resource = given.get("resource")
    try:
        for name in (resource, given.get("lock")):
            if name is not None:
                usable_resource(name)
    except ValueError as error:
        raise MalformedToken(str(error)) from None
    return PresentedFence(fence, resource, given.get("lock", resource), mode)
