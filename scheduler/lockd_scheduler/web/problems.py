"""Errors over HTTP: `application/problem+json` (RFC 9457) for programs."""

from typing import Any

from starlette.responses import JSONResponse, Response


class ProblemError(Exception):
    """A request can't be carried out. Raised anywhere below an endpoint; becomes its answer."""

    def __init__(self, status: int, title: str, detail: str) -> None:
        super().__init__(detail)
        self.status = status
        self.title = title
        self.detail = detail


def problem(status: int, title: str, detail: str, **headers: str) -> Response:
    """The answer: `title` is the same for all of its kind, `detail` says what is wrong here."""
    body: dict[str, Any] = {"type": "about:blank", "title": title, "status": status, "detail": detail}
    return JSONResponse(body, status, headers, media_type="application/problem+json")
