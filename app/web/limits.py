"""How much a request may carry. FastAPI counts the bytes; a declared length is not believed."""

from typing import Any

BODY_LIMIT = 2_000_000
"""Bytes, for every route that does not say otherwise."""

IMPORT_BODY_LIMIT = 200_000_000
"""Bytes, for routes that take files: `@router.post(…, max_body_size=IMPORT_BODY_LIMIT)`."""

FORM_LIMITS: dict[str, Any] = {"max_fields": 200, "max_files": 5, "max_part_size": BODY_LIMIT}
"""A long text pasted into a form is one part, and may be as long as the body."""
