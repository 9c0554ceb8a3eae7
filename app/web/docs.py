"""The JSON API's own page: drawn here from the OpenAPI document, so that no script comes from anywhere else."""

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from app.web.deps import SignedIn
from app.web.templating import render

router = APIRouter(include_in_schema=False)

METHODS = ("get", "post", "put", "patch", "delete")


@router.get("/docs")
def docs(request: Request, principal: SignedIn) -> Response:
    document = request.app.openapi()
    return render(request, "docs/index.html", calls=list(_calls(document)), errors={})


@router.get("/api/v1/openapi.json")
def openapi(request: Request, principal: SignedIn) -> Response:
    """For tools that generate clients."""
    return JSONResponse(request.app.openapi())


def _calls(document: dict[str, Any]) -> list[dict[str, Any]]:
    """Each call with what a caller needs to know, in the order of the document."""
    return [
        {
            "method": method.upper(),
            "path": path,
            "summary": operation.get("summary", ""),
            "description": operation.get("description", ""),
            "parameters": [
                {
                    "name": parameter["name"],
                    "place": parameter["in"],
                    "kind": _kind(document, parameter.get("schema", {})),
                    "required": parameter.get("required", False),
                }
                for parameter in operation.get("parameters", [])
            ],
            "body": _fields(document, _body(operation)),
            "answers": sorted(operation.get("responses", {})),
        }
        for path, operations in document.get("paths", {}).items()
        for method, operation in operations.items()
        if method in METHODS
    ]


def _body(operation: dict[str, Any]) -> dict[str, Any]:
    content = operation.get("requestBody", {}).get("content", {})
    return next((kind.get("schema", {}) for kind in content.values()), {})


def _fields(document: dict[str, Any], schema: dict[str, Any]) -> list[dict[str, Any]]:
    """The fields of an object, each with its type, whether it must be there, and what it is for."""
    resolved = _resolve(document, schema)
    required = set(resolved.get("required", []))
    return [
        {
            "name": name,
            "kind": _kind(document, field),
            "required": name in required,
            "description": field.get("description", ""),
            "default": field.get("default"),
        }
        for name, field in resolved.get("properties", {}).items()
    ]


def _resolve(document: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    reference = schema.get("$ref")
    if not reference:
        return schema
    found: dict[str, Any] = document["components"]["schemas"][reference.rsplit("/", 1)[-1]]
    return found


def _kind(document: dict[str, Any], schema: dict[str, Any]) -> str:
    """`string`, `list of integer`, `a or b`: the type in words."""
    schema = _resolve(document, schema)
    if options := schema.get("anyOf") or schema.get("oneOf"):
        return " or ".join(_kind(document, option) for option in options)
    if values := schema.get("enum"):
        return " or ".join(f"“{value}”" for value in values)
    if schema.get("type") == "array":
        return f"list of {_kind(document, schema.get('items', {}))}"
    return str(schema.get("type") or schema.get("title") or "anything")
