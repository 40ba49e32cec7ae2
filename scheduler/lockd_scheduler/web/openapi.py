"""The OpenAPI document of /api/v1, made from the table of endpoints."""

import json
import re
from typing import Any

import pydantic
from pydantic.json_schema import models_json_schema

from lockd_scheduler.web import models
from lockd_scheduler.web.endpoints import ENDPOINTS, Endpoint

_REF = "#/components/schemas/{model}"
_PROBLEMS = {
    "400": "Something in the request is wrong; `detail` says what.",
    "401": "Nobody known sends it.",
    "403": "The user lacks the role, or a page of another site sends it.",
    "404": "There is no such job, run, attempt or backfill.",
    "409": "The ledger can't do it now.",
    "503": "The ledger's database does not answer.",
}


def document(version: str) -> bytes:
    """As JSON. OpenAPI 3.1, whose schemas are JSON Schema as pydantic writes it."""
    shown: set[type[pydantic.BaseModel]] = {row.told for row in ENDPOINTS} | {models.Problem}
    shown |= {row.asked for row in ENDPOINTS if row.method == "POST"}
    ordered = sorted(shown, key=lambda model: model.__name__)
    _, schemas = models_json_schema([(model, "validation") for model in ordered], ref_template=_REF)
    paths: dict[str, dict[str, Any]] = {}
    for row in ENDPOINTS:
        paths.setdefault(row.template, {})[row.method.lower()] = _operation(row)
    described = {
        "openapi": "3.1.0",
        "info": {
            "title": "lockd-scheduler",
            "version": version,
            "description": "Jobs, runs and the ledger of one scheduler. docs/SCHEDULER.md has the rules.",
        },
        "paths": paths,
        "components": {
            "schemas": schemas["$defs"],
            "securitySchemes": {
                "basic": {"type": "http", "scheme": "basic"},
                "login": {"type": "apiKey", "in": "cookie", "name": "lockd_scheduler"},
            },
        },
        "security": [{}, {"basic": []}, {"login": []}],
    }
    return json.dumps(described, indent=2).encode()


def _operation(row: Endpoint) -> dict[str, Any]:
    words = [part.strip("{}") for part in row.template.removeprefix("/api/v1/").split("/")]
    described: dict[str, Any] = {
        "operationId": "_".join([row.method.lower(), *words]),
        "summary": row.summary,
        "description": f"Needs the role {row.role.word}.",
        "parameters": [_path_parameter(*part) for part in re.findall(r"{(\w+):(\w+)}", row.path)],
        "responses": {
            "200": {"description": "Done", "content": _content(row.told)},
            **{
                status: {"description": text, "content": _content(models.Problem, "application/problem+json")}
                for status, text in _PROBLEMS.items()
            },
        },
    }
    if row.method == "POST":
        described["requestBody"] = {"required": False, "content": _content(row.asked)}
    else:
        schema = row.asked.model_json_schema()
        described["parameters"] += [
            {
                "name": name,
                "in": "query",
                "required": name in schema.get("required", ()),
                "schema": {key: value for key, value in one.items() if key != "title"},
            }
            for name, one in schema.get("properties", {}).items()
        ]
    return described


def _path_parameter(name: str, kind: str) -> dict[str, Any]:
    schema = {"type": "integer"} if kind == "int" else {"type": "string"}
    return {"name": name, "in": "path", "required": True, "schema": schema}


def _content(
    model: type[pydantic.BaseModel], media_type: str = "application/json"
) -> dict[str, dict[str, Any]]:
    return {media_type: {"schema": {"$ref": _REF.format(model=model.__name__)}}}
