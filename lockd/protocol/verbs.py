"""The verbs of the client protocol: from the words of a command to a typed request.

`parse` looks the verb up in `VERBS`, the one table of what there is, and reads its arguments. The
rows are in a file for each family. Verbs and option words are taken in any case. Whatever is wrong
raises RequestError with one line that says what, and how the verb is used (P6).
"""

from collections.abc import Sequence

from lockd.protocol.arguments import shown
from lockd.protocol.cluster_verbs import CLUSTER_VERBS
from lockd.protocol.connection_verbs import CONNECTION_VERBS
from lockd.protocol.lock_verbs import LOCK_VERBS
from lockd.protocol.looking_verbs import LOOKING_VERBS
from lockd.protocol.requests import Request, RequestError
from lockd.protocol.session_verbs import SESSION_VERBS
from lockd.protocol.verb import Verb

VERBS: dict[bytes, Verb] = {
    verb.name.encode(): verb
    for verb in (*CONNECTION_VERBS, *SESSION_VERBS, *LOCK_VERBS, *LOOKING_VERBS, *CLUSTER_VERBS)
}
"""Every verb by its upper-case name, subcommands with a space."""

_CONTAINERS = frozenset(name.split()[0] for name in VERBS if b" " in name)


def parse(words: Sequence[bytes]) -> Request:
    """Read one command, given as its words. Raises RequestError."""
    name = words[0].upper()
    if name in _CONTAINERS and (len(words) > 1 or name not in VERBS):
        verb, arguments = _subverb(words)
    elif b" " not in name and (found := VERBS.get(name)) is not None:
        verb, arguments = found, words[1:]
    else:
        raise RequestError(f"unknown command '{shown(words[0])}'")
    if not verb.words_min <= len(arguments) <= verb.words_max:
        raise RequestError(f"wrong number of arguments for '{verb.name}'", _usage(verb))
    try:
        return verb.parse(arguments)
    except ValueError as error:
        raise RequestError(str(error), _usage(verb)) from None


def _subverb(words: Sequence[bytes]) -> tuple[Verb, Sequence[bytes]]:
    container = words[0].upper()
    if len(words) < 2:
        raise RequestError(f"wrong number of arguments for '{shown(container)}'; it takes a subcommand")
    verb = VERBS.get(container + b" " + words[1].upper())
    if verb is None:
        raise RequestError(f"unknown subcommand '{shown(words[1])}' of '{shown(container)}'")
    return verb, words[2:]


def _usage(verb: Verb) -> str:
    return f"usage: {verb.name} {verb.usage}".rstrip()
