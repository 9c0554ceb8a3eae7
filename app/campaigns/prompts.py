"""Prompts: reading them from what a lead pastes or uploads, and storing each once."""

import csv
import io
import json
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import column, func, select
from sqlalchemy.dialects.postgresql import JSONB, insert
from sqlalchemy.orm import Session

from app.campaigns import messages as chat
from app.campaigns.models import Campaign, Prompt, Split
from app.core.errors import Invalid

HELD_OUT_PERCENT = 20
csv.field_size_limit(2**31 - 1)  # of the whole process; here `chat.MAX_CHARACTERS` is the limit, and names the line
MAX_REJECTED = 100
"""How many bad lines are described; more are counted."""


@dataclass
class Report:
    """What became of each line of an upload."""

    created: int = 0
    duplicates: int = 0
    rejected: list[dict[str, Any]] = field(default_factory=list)
    """`{line, error}`, the first hundred."""
    rejected_count: int = 0

    def reject(self, line: int, error: Exception) -> None:
        self.rejected_count += 1
        if len(self.rejected) < MAX_REJECTED:
            message = getattr(error, "message", str(error))
            where = getattr(error, "field", None)
            self.rejected.append({"line": line, "error": f"{where}: {message}" if where else message})


def split_of(fingerprint: str) -> Split:
    """Which side of the split a prompt is on. It follows from the prompt alone, so it never changes."""
    return Split.held_out if int(fingerprint[:8], 16) % 100 < HELD_OUT_PERCENT else Split.train


def json_line(line: str) -> Any:
    """One JSON value, or `Invalid` with the column where it breaks. NaN and deep nesting are refused."""
    try:
        return json.loads(line, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        raise Invalid(f"this is not valid JSON at column {error.colno}: {error.msg}.") from None
    except RecursionError:
        raise Invalid("this JSON is nested too deeply.") from None


def _no_constant(name: str) -> None:
    raise Invalid(f"{name} is not a JSON value.")


def read(text: str, format: str) -> Iterator[tuple[int, Any]]:
    """The prompts of a paste or upload as `(line number, value or Invalid)`.

    `format` is `lines` (one prompt a line), `jsonl` (strings, message lists or `{"prompt": …}`), or `csv` (a column
    named prompt).
    """
    text = text.removeprefix("\ufeff")
    if format == "csv":
        yield from _csv(text)
        return
    # Not splitlines(): U+2028 and its like are letters to JSON.
    for number, line in enumerate(text.replace("\r\n", "\n").split("\n"), start=1):
        if not line.strip():
            continue
        if format == "lines":
            yield number, line.strip()
            continue
        try:
            value = json_line(line)
        except Invalid as error:
            yield number, error
            continue
        yield number, value.get("prompt") if isinstance(value, dict) and "prompt" in value else value


def _csv(text: str) -> Iterator[tuple[int, Any]]:
    rows = csv.DictReader(io.StringIO(text, newline=""))
    try:
        if "prompt" not in (rows.fieldnames or []):
            found = ", ".join(repr(name) for name in rows.fieldnames or []) or "nothing"
            yield 1, Invalid(f"The CSV needs a column named prompt in its first line, which has {found[:200]}.")
            return
        for row in rows:
            yield rows.line_num, row["prompt"] or ""
    except csv.Error as error:
        yield rows.line_num, Invalid(f"from here on this is not valid CSV: {error}.")


def sift(values: Iterable[tuple[int, Any]]) -> tuple[dict[str, chat.Messages], Report]:
    """The good prompts by fingerprint, and a report on the rest (in which nothing is created yet). Pure."""
    report = Report()
    parsed: dict[str, chat.Messages] = {}
    for line, value in values:
        try:
            if isinstance(value, Exception):
                raise value
            messages = chat.parse(value)
        except Invalid as error:
            report.reject(line, error)
            continue
        mark = chat.fingerprint(messages)
        report.duplicates += mark in parsed
        parsed[mark] = messages
    return parsed, report


def add(session: Session, campaign: Campaign, values: Iterable[tuple[int, Any]]) -> Report:
    """Store prompts, each once; bad ones are reported by line and the rest are kept."""
    parsed, report = sift(values)
    known = store(session, campaign.id, parsed)
    report.created = len(known.created)
    report.duplicates += len(parsed) - report.created
    return report


@dataclass
class Stored:
    ids: dict[str, uuid.UUID]
    """Fingerprint to prompt id, of all that were given."""
    created: set[str]


def search(
    session: Session, campaign_id: uuid.UUID, text: str = "", *, page: int = 1, size: int = 25
) -> tuple[list[Prompt], int]:
    """One page of the prompts in which `text` occurs, newest first, and how many there are in all."""
    condition = Prompt.campaign_id == campaign_id
    if text:
        turn = func.jsonb_array_elements(Prompt.messages).table_valued(column("value", JSONB))
        said = turn.c.value["content"].astext
        condition &= select(1).select_from(turn).where(said.icontains(text, autoescape=True)).exists()
    total = session.scalar(select(func.count()).select_from(Prompt).where(condition)) or 0
    ordered = select(Prompt).where(condition).order_by(Prompt.created_at.desc(), Prompt.fingerprint)
    return list(session.scalars(ordered.offset((page - 1) * size).limit(size))), total


def store(session: Session, campaign_id: uuid.UUID, prompts: dict[str, chat.Messages]) -> Stored:
    """Insert the prompts that the campaign does not have yet; `prompts` is keyed by fingerprint."""
    if not prompts:
        return Stored({}, set())
    rows = [
        {"id": uuid.uuid4(), "campaign_id": campaign_id, "messages": m, "fingerprint": f, "split": split_of(f)}
        for f, m in prompts.items()
    ]
    statement = insert(Prompt).on_conflict_do_nothing().returning(Prompt.fingerprint)
    created = set(session.scalars(statement, rows))
    wanted = select(Prompt.fingerprint, Prompt.id).where(
        Prompt.campaign_id == campaign_id, Prompt.fingerprint.in_(prompts)
    )
    return Stored(dict(session.execute(wanted).all()), created)
