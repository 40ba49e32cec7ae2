"""Who sends a request: by HTTP Basic, or by the cookie of a login; and the token of their forms.

Logins live in this process alone: after a restart everybody logs in again.
"""

import base64
import binascii
import hmac
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from starlette.requests import Request
from starlette.responses import Response

from lockd_scheduler.web.problems import ProblemError
from lockd_scheduler.web.users import EVERYONE, Role, User, Users

COOKIE = "lockd_scheduler"
LOGIN_SECONDS = 12 * 3600
LOGINS_MAX = 10_000


@dataclass(frozen=True)
class Caller:
    """The sender of a request."""

    user: User
    form_token: str
    """What a form of theirs has to carry: no other site knows it."""
    has_login: bool = False

    def check_form(self, token: str) -> None:
        """Raises ProblemError unless that is the token."""
        if not hmac.compare_digest(token.encode(), self.form_token.encode()):
            raise ProblemError(403, "refused", "the form is too old: load the page again")


@dataclass
class Access:
    """Lets people in. `users` is None where everyone may do everything. Safe on any thread."""

    users: Users | None
    clock: Callable[[], float] = time.monotonic
    _key: bytes = field(default_factory=lambda: secrets.token_bytes(32))
    _logins: dict[str, tuple[str, float]] = field(default_factory=dict)
    """By the cookie: the user's name, and when it ends."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def caller(self, request: Request) -> Caller | None:
        """Who sends it; None if they have to log in. Raises ProblemError for wrong credentials."""
        if self.users is None:
            return Caller(EVERYONE, self._form_token("everyone"))
        authorization = request.headers.get("authorization")
        if authorization is not None:
            user = self._by_password(self.users, authorization)
            return Caller(user, self._form_token(f"basic {user.name}"))
        cookie = request.cookies.get(COOKIE, "")
        with self._lock:
            name, ends = self._logins.get(cookie, ("", 0.0))
        known = self.users.named(name) if ends > self.clock() else None
        return None if known is None else Caller(known, self._form_token(f"login {cookie}"), has_login=True)

    def login(self, request: Request, response: Response, name: str, password: str) -> bool:
        """Let somebody in by a form: the response gets their cookie. False if the password is wrong."""
        user = None if self.users is None else self.users.authenticate(name, password)
        if user is None:
            return False
        cookie, now = secrets.token_urlsafe(32), self.clock()
        with self._lock:
            self._logins = {key: one for key, one in self._logins.items() if one[1] > now}
            while len(self._logins) >= LOGINS_MAX:
                del self._logins[next(iter(self._logins))]
            self._logins[cookie] = (user.name, now + LOGIN_SECONDS)
        is_tls = request.url.scheme == "https"
        response.set_cookie(
            COOKIE, cookie, max_age=LOGIN_SECONDS, httponly=True, samesite="lax", secure=is_tls
        )
        return True

    def logout(self, request: Request, response: Response) -> None:
        """End the login: its cookie opens nothing any more, wherever it was copied to."""
        with self._lock:
            self._logins.pop(request.cookies.get(COOKIE, ""), None)
        response.delete_cookie(COOKIE)

    def _by_password(self, users: Users, authorization: str) -> User:
        scheme, _, credentials = authorization.partition(" ")
        try:
            name, colon, password = base64.b64decode(credentials, validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            name, colon, password = "", "", ""
        user = users.authenticate(name, password) if scheme.lower() == "basic" and colon else None
        if user is None:
            raise ProblemError(401, "not known", "wrong user name or password")
        return user

    def _form_token(self, of: str) -> str:
        return hmac.digest(self._key, of.encode(), "sha256").hex()


def check_role(caller: Caller, role: Role) -> None:
    """Raises ProblemError unless the caller has the role."""
    if not caller.user.may(role):
        raise ProblemError(
            403, "not allowed", f"{caller.user.name!r} is {caller.user.role.word}: that needs {role.word}"
        )
