"""Forms whose fields are not known beforehand (recipes), and files that come with forms."""

from typing import Annotated, BinaryIO

from fastapi import Depends, Request
from starlette.datastructures import FormData, UploadFile

from app.core.errors import Invalid
from app.web.limits import FORM_LIMITS


async def submitted(request: Request) -> FormData:
    """All that the form holds."""
    return await request.form(**FORM_LIMITS)


Submitted = Annotated[FormData, Depends(submitted)]


def texts(form: FormData) -> dict[str, str]:
    """The text fields; of several with one name, the last."""
    return {name: value.replace("\r\n", "\n") for name, value in form.multi_items() if isinstance(value, str)}


def upload(form: FormData, field: str) -> tuple[str, BinaryIO] | None:
    """Name and content of the file in a field; None where none was chosen."""
    file = form.get(field)
    return (file.filename, file.file) if isinstance(file, UploadFile) and file.filename else None


def read_text(name: str, file: BinaryIO, field: str) -> str:
    """A text file's content, or `Invalid` beside the field."""
    content = file.read()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise Invalid(f"{name} is not UTF-8 text (line {line}). Save it as UTF-8 and choose it again.", field) from None


def format_of(name: str, text: str) -> str:
    """`csv`, `jsonl` or `lines`, by the file's name and else by how it begins."""
    ending = name.lower().rpartition(".")[2]
    known = {"csv": "csv", "jsonl": "jsonl", "ndjson": "jsonl", "json": "jsonl", "txt": "lines"}
    return known.get(ending) or ("jsonl" if text.lstrip()[:1] in ("{", "[") else "lines")
