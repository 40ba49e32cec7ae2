"""What every request passes: is it from where it may be, and the headers of every answer.

Three ways in which a web page of somebody else's reaches a scheduler on this machine, and what
stands against each. A form or script of another site: the browser says where a request comes from
(Origin, Sec-Fetch-Site), and a change from elsewhere is refused, besides the token in every form. A name
that its owner points at 127.0.0.1 (DNS rebinding): without users, only this machine's own names are
answered to. A frame: no page may hold ours. Nothing here ever sends a CORS header.
"""

from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lockd_scheduler.web.problems import problem

LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
READS = frozenset({"GET", "HEAD", "OPTIONS"})

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src 'self';"
        " form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Guard:
    """ASGI middleware around everything else."""

    def __init__(self, app: ASGIApp, *, local_names_only: bool) -> None:
        self._app = app
        self._local_names_only = local_names_only

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        refusal = self._refusal(scope["method"], scope["path"], Headers(scope=scope))
        if refusal is not None:
            await problem(403, "refused", refusal)(scope, receive, send_guarded)
            return
        await self._app(scope, receive, send_guarded)

    def _refusal(self, method: str, path: str, headers: Headers) -> str | None:
        host = headers.get("host", "")
        if self._local_names_only and _name_of(f"//{host}") not in LOCAL_NAMES:
            return (
                "without --auth-file this answers to localhost and 127.0.0.1 alone, not to"
                f" {host[:80]!r}: a name that its owner may point anywhere"
            )
        is_change = method not in READS
        if not is_change and not path.startswith("/api/"):
            return None
        site = headers.get("sec-fetch-site")
        if site not in (None, "same-origin", "none"):
            return "this came from a page of another site"
        origin = headers.get("origin")
        # The scheme is left out: a proxy in front may speak TLS where we do not.
        if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
            return f"this came from a page of {origin[:80]!r}"
        return None


def _name_of(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None
