"""The API's documentation agrees with the API."""

import re
from typing import Any

from fastapi.routing import iter_route_contexts

from app.web import api_reference
from tests.web.conftest import World


def section(page: str, anchor: str) -> str:
    start = page.index(f'<section class="card api-call" id="{anchor}"')
    return page[start : page.index("</section>", start)]


def test_every_call_of_the_api_is_described(world: World) -> None:
    page = world.browser("annotator").get("/docs").text
    found = 0
    for route in iter_route_contexts(list(world.app.routes)):
        path = getattr(route, "path", "") or ""
        if path.startswith("/api/v1") and getattr(route, "include_in_schema", True) and path != "/api/v1/openapi.json":
            found += 1
            assert f"<code>{path}</code>" in page, path
    assert found > 20


def test_a_call_shows_its_fields_its_answer_and_a_line_to_copy(world: World) -> None:
    page = world.browser("lead").get("/docs").text
    submit = section(page, "put-assignments-assignment-id-annotation")
    for said in ("ranking", "list of list of string", "a group of two is a tie", "idempotency-key", "in the header"):
        assert said in submit, said
    assert "next.completions[].text" in submit
    assert "curl -X PUT" in submit
    assert "Authorization: Bearer $TOKEN" in submit
    assert "/api/v1/assignments/$ASSIGNMENT_ID/annotation" in submit
    lease = section(page, "post-campaigns-campaign-id-assignments")
    assert "Nothing is left for you" in lease


def test_the_document_holds_the_public_calls_and_what_they_use_and_nothing_else(world: World) -> None:
    document = world.browser("lead").get("/api/v1/openapi.json").json()
    assert document["paths"]
    assert all(path.startswith("/api/v1/") for path in document["paths"])
    used = set(re.findall(r"#/components/schemas/(\w+)", str(document)))
    assert used == set(document["components"]["schemas"])
    for calls in document["paths"].values():
        for call in calls.values():
            assert "application/problem+json" in call["responses"]["422"]["content"]


def test_nobody_reads_it_who_is_not_signed_in(world: World) -> None:
    nobody = world.browser("anonymous")
    assert nobody.get("/docs").status_code == 303
    assert nobody.get("/api/v1/openapi.json").status_code == 401


def test_nothing_on_the_page_comes_from_elsewhere(world: World) -> None:
    page = world.browser("lead").get("/docs").text
    assert not re.search(r'(?:src|href)="(?:https?:)?//', page)


def test_types_and_examples_in_words() -> None:
    shapes: dict[str, Any] = {
        "Colour": {"enum": ["red", "blue"], "type": "string"},
        "Pot": {"type": "object", "required": ["colour", "size"], "properties": {
            "colour": {"$ref": "#/components/schemas/Colour"},
            "size": {"type": "integer", "default": 3},
            "lids": {"anyOf": [{"type": "array", "items": {"type": "string"}}, {"type": "null"}]},
        }},
    }  # fmt: skip
    document = {"components": {"schemas": shapes}}
    pot = {"$ref": "#/components/schemas/Pot"}
    assert api_reference.kind_of(document, shapes["Pot"]["properties"]["lids"]) == "list of string or null"
    assert api_reference.kind_of(document, shapes["Pot"]["properties"]["colour"]) == "“red” or “blue”"
    assert api_reference.example(document, pot) == {"colour": "red", "size": 1}
