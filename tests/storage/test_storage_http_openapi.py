"""The descriptions that a service publishes show the header and the refusals."""

from typing import Any

import pytest
from openapi_spec_validator import validate

from lockd_storage.http import openapi_fragment
from lockd_storage.http.problems import KINDS, PROBLEM_JSON, TYPE_PREFIX
from tests.storage.shop import open_shop

STATUSES = {str(kind.status) for kind in KINDS}


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    with open_shop(tmp_path_factory.mktemp("shop")) as shop:
        document: dict[str, Any] = shop.client.get("/openapi.json").json()
    return document


def test_what_fastapi_generates_is_valid(generated: dict[str, Any]) -> None:
    validate(generated)


@pytest.mark.parametrize("path", ["/orders", "/orders/by-hand", "/orders/{order_id}/lines"])
def test_what_fastapi_generates_shows_the_header_and_the_refusals(
    generated: dict[str, Any], path: str
) -> None:
    post = generated["paths"][path]["post"]
    (header,) = [each for each in post["parameters"] if each["in"] == "header"]
    assert header["name"] == "Fencing-Token"
    assert "cluster" in header["description"]
    assert set(post["responses"]) >= STATUSES
    for status in STATUSES:
        (schema,) = [
            content["schema"]
            for media, content in post["responses"][status]["content"].items()
            if media == PROBLEM_JSON
        ]
        assert schema["properties"]["type"]["enum"] == [TYPE_PREFIX + kind.slug for kind in KINDS]


def test_the_routes_description_is_a_valid_part_of_a_document() -> None:
    document = {
        "openapi": "3.1.0",
        "info": {"title": "shop", "version": "1"},
        **openapi_fragment("/v1/fences"),
    }
    validate(document)
    routes = document["paths"]["/v1/fences/{resource}"]
    assert set(routes["put"]["responses"]) == {"200", *STATUSES}
    assert document["components"]["parameters"]["FencingToken"]["name"] == "Fencing-Token"
    assert set(document["components"]["responses"]) == {f"Fence{status}" for status in STATUSES}
