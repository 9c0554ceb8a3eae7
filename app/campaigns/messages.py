"""What a prompt is: a list of chat messages that ends with the user's turn. Pure."""

import hashlib
import json
from typing import Any

from app.core.errors import Invalid

ROLES = ("system", "user", "assistant")
MAX_CHARACTERS = 100_000
"""Of one prompt or one completion. Longer ones cannot be read by a person, nor trained on."""

Messages = list[dict[str, str]]


def parse(value: Any, field: str = "prompt") -> Messages:
    """Chat messages from a string (one user turn) or a list of `{role, content}`.

    Raises `Invalid` with a sentence that says what to mend.
    """
    if isinstance(value, str):
        value = [{"role": "user", "content": value}]
    if not isinstance(value, list) or not value:
        raise Invalid("The prompt is missing: give a string, or a list of messages with role and content.", field)
    messages = [_message(m, f"{field}[{i}]") for i, m in enumerate(value)]
    if messages[-1]["role"] != "user":
        raise Invalid("The last message of a prompt must be the user's: the model has to answer something.", field)
    total = sum(len(m["content"]) for m in messages)
    if total > MAX_CHARACTERS:
        raise Invalid(f"The prompt is {total:,} characters long; at most {MAX_CHARACTERS:,}.", field)
    return messages


def _message(value: Any, field: str) -> dict[str, str]:
    if not isinstance(value, dict) or set(value) - {"role", "content", "name"}:
        raise Invalid('Each message must be an object like {"role": "user", "content": "…"}.', field)
    role, content = value.get("role"), value.get("content")
    if role not in ROLES:
        raise Invalid(f"The role {role!r} is unknown; it must be one of {', '.join(ROLES)}.", field)
    return {"role": role, "content": text(content, f"{field}.content", "The message")}


def text(value: Any, field: str, what: str) -> str:
    """A string with something in it and nothing that PostgreSQL or a tokenizer cannot hold."""
    if not isinstance(value, str):
        raise Invalid(f"{what} must be text, not {type(value).__name__}.", field)
    if not value.strip():
        raise Invalid(f"{what} is empty.", field)
    if "\x00" in value:
        raise Invalid(f"{what} contains a NUL character; remove it.", field)
    try:
        value.encode()
    except UnicodeEncodeError:
        raise Invalid(f"{what} contains half of a surrogate pair, which is not valid text.", field) from None
    if len(value) > MAX_CHARACTERS:
        raise Invalid(f"{what} is {len(value):,} characters long; at most {MAX_CHARACTERS:,}.", field)
    return value


def fingerprint(messages: Messages) -> str:
    """The same prompt has the same fingerprint, whatever it came from."""
    return hashlib.sha256(json.dumps(messages, ensure_ascii=False, sort_keys=True).encode()).hexdigest()
