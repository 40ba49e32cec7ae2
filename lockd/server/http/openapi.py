"""The OpenAPI document of /v1, made from the table of endpoints."""

import json
from typing import Any

import pydantic
from pydantic.json_schema import models_json_schema

from lockd.server.http import models
from lockd.server.http.endpoints import ENDPOINTS, EVENTS, Endpoint

_REF = "#/components/schemas/{model}"
_FAILURES = {
    "400": "ERR: bad command or argument",
    "401": "NOAUTH",
    "403": "NOPERM: the user lacks the role",
    "404": "NOSESSION: no such session of this user",
    "409": "BUSY, TIMEOUT, NOTHELD, DEADLOCK or MISMATCH",
    "410": "GONE: the events after that revision are not kept any more",
    "429": "LIMIT: a limit, which is named",
    "503": "UNAVAILABLE: nothing was appended anywhere",
    "504": "UNKNOWN: ask again with the same request id",
}


def document(version: str) -> bytes:
    """As JSON. OpenAPI 3.1, whose schemas are JSON Schema as pydantic writes it."""
    rows = (*ENDPOINTS, EVENTS)
    shown: set[type[pydantic.BaseModel]] = {row.asked for row in rows} | {row.told for row in rows}
    shown.add(models.Failure)
    ordered = sorted(shown, key=lambda model: model.__name__)
    _, schemas = models_json_schema([(model, "validation") for model in ordered], ref_template=_REF)
    paths: dict[str, dict[str, Any]] = {}
    for row in rows:
        paths.setdefault(row.path, {})[row.method.lower()] = _operation(row, schemas["$defs"])
    described = {
        "openapi": "3.1.0",
        "info": {
            "title": "lockd",
            "version": version,
            "description": "Locks, sessions and members of a lockd cluster. docs/PROTOCOL.md has the rules.",
        },
        "paths": paths,
        "components": {
            "schemas": schemas["$defs"],
            "securitySchemes": {"basic": {"type": "http", "scheme": "basic"}},
        },
        "security": [{}, {"basic": []}],
    }
    return json.dumps(described, indent=2).encode()


def _operation(row: Endpoint, schemas: dict[str, Any]) -> dict[str, Any]:
    described: dict[str, Any] = {
        "operationId": row.path.removeprefix("/v1/").replace("/", "_").replace("-", "_"),
        "summary": row.summary,
        "responses": {
            "200": {"description": "Done", "content": _content(row.told)},
            **{
                status: {"description": text, "content": _content(models.Failure)}
                for status, text in _FAILURES.items()
            },
        },
    }
    if row.method == "POST":
        described["requestBody"] = {"required": True, "content": _content(row.asked)}
    else:
        schema = schemas[row.asked.__name__]
        described["parameters"] = [
            {
                "name": name,
                "in": "query",
                "required": name in schema.get("required", ()),
                "schema": {key: value for key, value in field.items() if key != "title"},
            }
            for name, field in schema.get("properties", {}).items()
        ]
    return described


def _content(model: type[models.Asked | models.Told]) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": _REF.format(model=model.__name__)}}}
