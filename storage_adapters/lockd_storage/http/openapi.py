"""What an OpenAPI 3.1 description says of the header, the refusals and the routes of a fence."""

from typing import Any

from lockd_storage.http.header import HEADER
from lockd_storage.http.problems import KINDS, PROBLEM_JSON, TYPE_PREFIX

HEADER_DESCRIPTION = (
    "The fence of the caller's lock, and the resource it is presented for:"
    ' `"<cluster>/<incarnation>/<token>";resource="orders"`. Several are separated by commas.'
)
HEADER_EXAMPLE = '"c1c1c1c1c1c1c1c1c1c1c1c1c1c1c1c1/0000000a/123456";resource="orders"'

PROBLEM_SCHEMA: dict[str, Any] = {
    "type": "object",
    "description": "RFC 9457. Nothing of the transaction was written, but for outcome-unknown.",
    "required": ["type", "title", "status", "detail"],
    "properties": {
        "type": {"type": "string", "enum": [TYPE_PREFIX + kind.slug for kind in KINDS]},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "resource": {"type": "string"},
        "presented": {"type": "integer", "format": "int64", "description": "The token that was refused."},
        "mark": {"type": "integer", "format": "int64", "description": "The token that is installed."},
    },
}
MARK_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["resource", "lock", "fence"],
    "properties": {
        "resource": {"type": "string"},
        "lock": {"type": "string"},
        "fence": {"type": "string", "description": "cluster/incarnation/token"},
    },
}


def _responses(schema: dict[str, Any]) -> dict[int | str, dict[str, Any]]:
    titles: dict[int, list[str]] = {}
    for kind in KINDS:
        titles.setdefault(kind.status, []).append(kind.title)
    return {
        status: {"description": ". ".join(titles[status]), "content": {PROBLEM_JSON: {"schema": schema}}}
        for status in sorted(titles)
    }


FENCE_RESPONSES: dict[int | str, dict[str, Any]] = _responses(PROBLEM_SCHEMA)
"""For `responses=` of a FastAPI route, router or application whose handlers write under a fence."""


def openapi_fragment(prefix: str = "/fences") -> dict[str, Any]:
    """`paths` and `components` of `fence_routes`, to be merged into the description of a service.

    Routes of a service that are guarded refer to `#/components/parameters/FencingToken`, and to
    `#/components/responses/Fence412` and so on.
    """
    problems = {
        f"Fence{status}": response
        for status, response in _responses({"$ref": "#/components/schemas/FenceProblem"}).items()
    }
    resource = {
        "name": "resource",
        "in": "path",
        "required": True,
        "description": "Percent-encoded as one segment.",
        "schema": {"type": "string", "minLength": 1, "maxLength": 512},
    }
    timeout = {
        "name": "timeout",
        "in": "query",
        "description": "Seconds that older writes under way get to end.",
        "schema": {"type": "number", "minimum": 0},
    }
    mark = {
        "description": "The mark",
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/FenceMark"}}},
    }
    refusals = {name[-3:]: {"$ref": f"#/components/responses/{name}"} for name in problems}
    return {
        "paths": {
            f"{prefix}/{{resource}}": {
                "parameters": [resource],
                "put": {
                    "operationId": "installFence",
                    "summary": "Make the caller's token the one whose writes count",
                    "parameters": [{"$ref": "#/components/parameters/FencingToken"}, timeout],
                    "responses": {"200": mark, **refusals},
                },
                "get": {
                    "operationId": "readFence",
                    "summary": "The token that is installed now",
                    "responses": {"200": mark, "404": {"description": "Nothing is installed"}},
                },
            }
        },
        "components": {
            "parameters": {"FencingToken": header_parameter()},
            "responses": problems,
            "schemas": {"FenceProblem": PROBLEM_SCHEMA, "FenceMark": MARK_SCHEMA},
        },
    }


def header_parameter() -> dict[str, Any]:
    """The header as an OpenAPI parameter."""
    return {
        "name": HEADER,
        "in": "header",
        "required": True,
        "description": HEADER_DESCRIPTION,
        "schema": {"type": "string"},
        "example": HEADER_EXAMPLE,
    }
