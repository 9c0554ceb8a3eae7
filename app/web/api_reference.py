"""The JSON API in words, from its OpenAPI document: what each call takes, what it gives, and how to make it. Pure."""

import json
import re
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

PREFIX = "/api/v1"
METHODS = ("get", "post", "put", "patch", "delete")

PROBLEM = {
    "type": "object",
    "title": "Problem",
    "description": "RFC 9457.",
    "required": ["title", "status", "detail"],
    "properties": {
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string", "description": "What is wrong, and how to mend it."},
        "field": {"type": "string", "description": "The field to mend, where it is one."},
        "request_id": {"type": "string", "description": "To be given to whoever runs the site."},
    },
}
ERRORS = {
    "401": "No token, or one that is unknown, expired or revoked.",
    "403": "The token's scopes, or your role, do not reach this far.",
    "404": "There is no such thing, or you may not know of it.",
    "422": "What was sent does not fit; `detail` and `field` say where.",
}


@dataclass
class Field:
    name: str
    kind: str
    required: bool
    text: str = ""
    place: str = ""
    """`path`, `query` or `header` for parameters."""
    default: str = ""


@dataclass
class Call:
    anchor: str
    method: str
    path: str
    title: str
    text: str
    parameters: list[Field]
    body: list[Field]
    body_kind: str
    """Says so where the body is no plain object, such as lines of JSON."""
    answers: list[tuple[str, str, list[Field]]]
    """Status, what it means, and the fields of what comes back."""
    curl: str


@dataclass
class Section:
    title: str
    calls: list[Call] = field(default_factory=list)


def restrict(document: dict[str, Any]) -> dict[str, Any]:
    """The document of the public calls alone, with the errors as they really come and how to authenticate."""
    paths = {path: calls for path, calls in document.get("paths", {}).items() if path.startswith(PREFIX)}
    content = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    errors = {status: {"description": text, "content": content} for status, text in ERRORS.items()}
    paths = {
        path: {
            method: {**call, "responses": {**call.get("responses", {}), **errors}} if method in METHODS else call
            for method, call in calls.items()
        }
        for path, calls in paths.items()
    }
    known = {**document.get("components", {}).get("schemas", {}), "Problem": PROBLEM}
    return {
        **document,
        "paths": paths,
        "security": [{"token": []}],
        "components": {
            "schemas": {name: known[name] for name in sorted(_used(paths, known))},
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def _used(paths: dict[str, Any], known: dict[str, Any]) -> set[str]:
    """The names of the shapes that the calls mention, directly or through others."""
    found: set[str] = set()
    waiting = _references(paths)
    while waiting:
        name = waiting.pop()
        if name not in found and name in known:
            found.add(name)
            waiting |= _references(known[name])
    return found


def _references(part: Any) -> set[str]:
    return set(re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(part)))


def sections(document: dict[str, Any], base: str) -> list[Section]:
    """The calls by subject, in the document's order. `base` is where the examples send them."""
    made: dict[str, Section] = {}
    for path, calls in document["paths"].items():
        for method, call in calls.items():
            if method in METHODS:
                tag = (call.get("tags") or ["other"])[0]
                made.setdefault(tag, Section(tag.capitalize())).calls.append(_call(document, method, path, call, base))
    return list(made.values())


def _call(document: dict[str, Any], method: str, path: str, call: dict[str, Any], base: str) -> Call:
    contents: dict[str, Any] = call.get("requestBody", {}).get("content", {})
    kind = next(iter(contents), "")
    schema: dict[str, Any] = contents[kind].get("schema", {}) if kind else {}
    return Call(
        anchor=re.sub(r"[^a-z0-9]+", "-", f"{method} {path.removeprefix(PREFIX)}".lower()).strip("-"),
        method=method.upper(),
        path=path,
        title=call.get("summary", "").capitalize(),
        text=call.get("description", ""),
        parameters=[_parameter(document, p) for p in call.get("parameters", [])],
        body=_fields(document, schema),
        body_kind="" if kind in ("", "application/json") else kind,
        answers=[
            (status, _meaning(answer), _fields(document, _shape(answer)))
            for status, answer in sorted(call.get("responses", {}).items())
            if status not in ERRORS
        ],
        curl=_curl(document, method, path, kind, schema, base),
    )


def _meaning(answer: dict[str, Any]) -> str:
    said = str(answer.get("description", ""))
    return "" if said == "Successful Response" else said


def _shape(answer: dict[str, Any]) -> dict[str, Any]:
    content: dict[str, Any] = next(iter(answer.get("content", {}).values()), {})
    found: dict[str, Any] = content.get("schema", {})
    return found


def _parameter(document: dict[str, Any], parameter: dict[str, Any]) -> Field:
    schema = parameter.get("schema", {})
    return Field(
        name=parameter["name"],
        kind=kind_of(document, schema),
        required=parameter.get("required", False),
        text=parameter.get("description", ""),
        place=parameter["in"],
        default=_default(schema),
    )


def _default(schema: dict[str, Any]) -> str:
    value = schema.get("default")
    return "" if value in (None, "", [], {}) else json.dumps(value, ensure_ascii=False)


def _fields(document: dict[str, Any], schema: dict[str, Any], prefix: str = "") -> list[Field]:
    """The fields of an object, or of the objects in a list; those of objects inside it under dotted names."""
    schema = _one(document, schema)
    if schema.get("type") == "array":
        return _fields(document, schema.get("items", {}), f"{prefix}[].")
    required = set(schema.get("required", []))
    found: list[Field] = []
    for name, part in schema.get("properties", {}).items():
        made = Field(
            name=prefix + name,
            kind=kind_of(document, part),
            required=name in required,
            text=part.get("description", ""),
            default=_default(part),
        )
        found.append(made)
        inner = _one(document, part)
        is_list = inner.get("type") == "array"
        inside = _one(document, inner.get("items", {})) if is_list else inner
        if inside.get("properties") and prefix.count(".") < 2:
            found += _fields(document, inside, f"{prefix}{name}{'[]' if is_list else ''}.")
    return found


def _one(document: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    """The schema itself behind a reference, or behind "this or null"."""
    if options := schema.get("anyOf"):
        real = [option for option in options if option.get("type") != "null"]
        return _one(document, real[0]) if len(real) == 1 else schema
    if reference := schema.get("$ref"):
        found: dict[str, Any] = document["components"]["schemas"][reference.rsplit("/", 1)[-1]]
        return found
    return schema


def kind_of(document: dict[str, Any], schema: dict[str, Any]) -> str:
    """`string`, `list of integer`, `“jsonl” or “parquet”`: the type in words."""
    if options := schema.get("anyOf") or schema.get("oneOf"):
        return " or ".join(dict.fromkeys(kind_of(document, option) for option in options))
    schema = _one(document, schema)
    if values := schema.get("enum"):
        return " or ".join(f"“{value}”" for value in values)
    if schema.get("type") == "array":
        return f"list of {kind_of(document, schema.get('items', {}))}"
    if schema.get("format") == "date-time":
        return "time"
    return str(schema.get("type") or "anything")


def _curl(document: dict[str, Any], method: str, path: str, kind: str, schema: dict[str, Any], base: str) -> str:
    """The call on a command line; names in capitals are to be filled in."""
    root = f"{urlsplit(base).scheme}://{urlsplit(base).netloc}"
    address = re.sub(r"\{(\w+)\}", lambda match: "$" + match[1].upper(), path)
    parts = ["curl" if method == "get" else f"curl -X {method.upper()}", f'"{root}{address}"']
    parts.append('-H "Authorization: Bearer $TOKEN"')
    if "ndjson" in kind:
        parts += [f'-H "Content-Type: {kind}"', f"--data-binary @{path.rsplit('/', 1)[-1]}.jsonl"]
    elif kind:
        body = json.dumps(example(document, schema), ensure_ascii=False)
        parts += ['-H "Content-Type: application/json"', f"-d '{body}'"]
    return " \\\n  ".join(parts)


EXAMPLES: dict[str, Any] = {
    "name": "Kind answers",
    "ranking": [["COMPLETION_1"], ["COMPLETION_2"]],
    "reason": "read the samples, they are better",
    "checkpoints": ["CHECKPOINT"],
    "prompts": ["How do I get a stain out of a shirt?"],
}


def example(document: dict[str, Any], schema: dict[str, Any]) -> Any:
    """The least that the schema asks for."""
    schema = _one(document, schema)
    required = schema.get("required", [])
    return {name: EXAMPLES.get(name, _sample(document, schema["properties"][name])) for name in required}


def _sample(document: dict[str, Any], schema: dict[str, Any]) -> Any:
    schema = _one(document, schema)
    if values := schema.get("enum"):
        return values[0]
    return {"string": "…", "integer": 1, "number": 1.0, "boolean": True, "array": []}.get(schema.get("type", ""), {})
