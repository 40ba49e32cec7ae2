"""What a job says about how it is run: words in, a JSON definition out, or an error that names the place.

    {"kind": "function"}                                        on a thread, or on the event loop
    {"kind": "process"}                                         its function, in an interpreter of its own
    {"kind": "process", "function": "package.module:function"}  one that is named, not decorated
    {"kind": "shell", "command": ..., "env": {...}, "cwd": ...}
    {"kind": "http", "url": ..., "method": ..., "headers": {...}, "body": ..., "expect": "2xx"}
    {"kind": "celery"}, {"kind": "dask"}                        handed over to an engine

It stands in the ledger with the schedule, so a password in it can be read there: shell jobs see the
environment of the service, which is the place for one.
"""

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, NoReturn
from urllib.parse import urlsplit

from lockd_scheduler.errors import BadSchedule

FUNCTION = "function"
PROCESS = "process"
SHELL = "shell"
HTTP = "http"
ENGINES = ("celery", "dask")
CHOICES = (FUNCTION, PROCESS, *ENGINES)
"""What a decorated function may ask for."""

_METHOD = re.compile(r"[A-Z]{1,32}")
_HEADER = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_EXPECTED = re.compile(r"[1-5](xx|[0-9]{2})(,[1-5](xx|[0-9]{2}))*")
_REFERENCE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def runner_of_choice(choice: str) -> dict[str, Any]:
    """What `runner=` of a decorated function says. Raises BadSchedule."""
    if choice not in CHOICES:
        raise BadSchedule(f"runner={choice!r} is not available; choose from: {', '.join(CHOICES)}")
    return {"kind": choice}


def runner_from_words(words: Mapping[str, Any], *, place: str = "run") -> dict[str, Any]:
    """The definition of a job that has no decorated function, from what a file or a call says.

    `{"shell": "vacuumdb -a", "env": {...}, "cwd": "/srv"}`, `{"http": "https://x/y"}` or
    `{"http": {"url": ..., "method": ..., "headers": ..., "body": ..., "expect": ...}}`, or
    `{"python": "package.module:function"}`, which runs in an interpreter of its own. Raises
    BadSchedule that begins with the place, like `run.http.expect: ...`.
    """
    if not isinstance(words, Mapping):
        _refuse(place, f'{words!r} is not a mapping like {{shell: "vacuumdb -a"}}')
    given = dict(words)
    kinds = [kind for kind in _READERS if kind in given]
    if len(kinds) != 1:
        _refuse(place, f"it says one of {', '.join(_READERS)}, and this says {', '.join(kinds) or 'none'}")
    return _READERS[kinds[0]](given, place)


def _shell(given: dict[str, Any], place: str) -> dict[str, Any]:
    command, env, cwd = given.pop("shell"), given.pop("env", None), given.pop("cwd", None)
    _refuse_rest(given, place, "shell, env and cwd")
    if not isinstance(command, str) or not command.strip():
        _refuse(f"{place}.shell", "it is a command line, like vacuumdb -a")
    _check_text(f"{place}.shell", command)
    runner: dict[str, Any] = {"kind": SHELL, "command": command}
    if env is not None:
        runner["env"] = _texts(f"{place}.env", env, _VARIABLE)
    if cwd is not None:
        if not isinstance(cwd, str) or not cwd:
            _refuse(f"{place}.cwd", f"{cwd!r} is not a directory's path")
        _check_text(f"{place}.cwd", cwd)
        runner["cwd"] = cwd
    return runner


def _http(given: dict[str, Any], place: str) -> dict[str, Any]:
    call = given.pop("http")
    _refuse_rest(given, place, "http alone")
    place += ".http"
    if isinstance(call, str):
        call = {"url": call}
    if not isinstance(call, Mapping):
        _refuse(place, f"{call!r} is neither a URL nor a mapping with url")
    call = dict(call)
    runner: dict[str, Any] = {
        "kind": HTTP,
        "url": _url(f"{place}.url", call.pop("url", None)),
        "method": call.pop("method", "GET"),
        "expect": str(call.pop("expect", "2xx")).replace(" ", "").lower(),
    }
    headers, body = call.pop("headers", None), call.pop("body", None)
    _refuse_rest(call, place, "url, method, headers, body and expect")
    if not isinstance(runner["method"], str) or not _METHOD.fullmatch(runner["method"]):
        _refuse(f"{place}.method", f"{runner['method']!r} is not a method, like POST")
    if not _EXPECTED.fullmatch(runner["expect"]):
        _refuse(f"{place}.expect", f'{runner["expect"]!r}: write it like "2xx", "204" or "200,404"')
    if headers is not None:
        runner["headers"] = _texts(f"{place}.headers", headers, _HEADER)
    if body is not None:
        try:
            runner["body"] = json.loads(json.dumps(body, allow_nan=False))
        except (TypeError, ValueError) as error:
            _refuse(f"{place}.body", f"it is a text, or JSON: {error}")
    return runner


def _python(given: dict[str, Any], place: str) -> dict[str, Any]:
    reference = given.pop("python")
    _refuse_rest(given, place, "python alone")
    if not isinstance(reference, str) or not _REFERENCE.fullmatch(reference):
        _refuse(f"{place}.python", f"{reference!r} is not a function; write it like package.module:function")
    return {"kind": PROCESS, "function": reference}


_READERS: dict[str, Callable[[dict[str, Any], str], dict[str, Any]]] = {
    "shell": _shell,
    "http": _http,
    "python": _python,
}


def _url(place: str, url: Any) -> str:
    try:
        parts = urlsplit(url if isinstance(url, str) else "")
        is_url = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        is_url = False
    if not is_url or not url.isprintable() or " " in url:
        _refuse(place, f"{url!r} is not an http:// or https:// URL")
    assert isinstance(url, str)
    return url


def _texts(place: str, given: Any, name_pattern: re.Pattern[str]) -> dict[str, str]:
    if not isinstance(given, Mapping):
        _refuse(place, f"{given!r} is not a mapping of names to texts")
    texts = {}
    for name, value in given.items():
        if not isinstance(name, str) or not name_pattern.fullmatch(name):
            _refuse(place, f"{name!r} can't be a name there")
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            _refuse(f"{place}.{name}", f"{value!r} is not a text")
        texts[name] = str(value)
        _check_text(f"{place}.{name}", texts[name], forbidden="\0\r\n" if name_pattern is _HEADER else "\0")
    return texts


def _check_text(place: str, text: str, forbidden: str = "\0") -> None:
    if any(character in text for character in forbidden):
        _refuse(place, "it has a character that can't be there")
    try:
        text.encode()
    except UnicodeEncodeError:
        _refuse(place, "it is not a text in Unicode")


def _refuse_rest(given: Mapping[str, Any], place: str, known: str) -> None:
    if given:
        _refuse(place, f"it knows {known}, not {', '.join(sorted(map(str, given)))}")


def _refuse(place: str, text: str) -> NoReturn:
    raise BadSchedule(f"{place}: {text}")
