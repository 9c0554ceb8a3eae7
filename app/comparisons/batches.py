"""Putting comparisons into a campaign: from an import, or from what a checkpoint sampled."""

import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from sqlalchemy import insert, select, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.orm import Session

from app.campaigns import messages as chat
from app.campaigns import prompts
from app.campaigns.models import Campaign, Prompt
from app.campaigns.prompts import Report
from app.comparisons import records
from app.comparisons.models import Batch, Comparison, ComparisonCompletion, Completion, Source
from app.comparisons.records import Record
from app.core import live
from app.core.errors import Invalid

CHUNK = 500


@dataclass
class Made:
    """A comparison that has just been stored, and the record it came from."""

    comparison_id: uuid.UUID
    completion_ids: list[uuid.UUID]
    record: Record


def new_batch(session: Session, campaign: Campaign, source: Source, **values: Any) -> Batch:
    batch = Batch(campaign_id=campaign.id, source=source, **values)
    session.add(batch)
    session.flush()
    return batch


def add_lines(
    session: Session,
    campaign: Campaign,
    lines: Iterable[tuple[int, Any]],
    on_made: Callable[[list[Made]], None] | None = None,
) -> Report:
    """Import comparisons from `(line number, JSON value or Invalid)`, streaming; bad lines are reported, the rest kept.

    `on_made` sees what each chunk created (for the labels that came with it).
    """
    report = Report()
    batch = new_batch(session, campaign, Source.imported)
    for chunk in _chunks(_parsed(lines, report)):
        made = store(session, campaign, batch, chunk)
        report.created += len(made)
        report.duplicates += len(chunk) - len(made)
        if on_made:
            on_made(made)
    if not report.created:
        session.delete(batch)
        session.flush()
    live.nudge(session, f"campaign:{campaign.id}")
    return report


def _parsed(lines: Iterable[tuple[int, Any]], report: Report) -> Iterator[Record]:
    for line, value in lines:
        try:
            if isinstance(value, Exception):
                raise value
            yield records.parse(value)
        except Invalid as error:
            report.reject(line, error)


def _chunks(items: Iterator[Record]) -> Iterator[list[Record]]:
    while chunk := list(islice(items, CHUNK)):
        yield chunk


def store(session: Session, campaign: Campaign, batch: Batch, items: list[Record]) -> list[Made]:
    """Insert those comparisons that the campaign does not have yet."""
    by_mark = {item.fingerprint: item for item in items}
    known = prompts.store(session, campaign.id, {chat.fingerprint(i.prompt): i.prompt for i in items})
    rows = [
        {
            "id": uuid.uuid4(),
            "campaign_id": campaign.id,
            "prompt_id": known.ids[chat.fingerprint(item.prompt)],
            "batch_id": batch.id,
            "overlap": campaign.overlap,
            "open_slots": campaign.overlap,
            "fingerprint": mark,
            "meta": item.meta,
        }
        for mark, item in by_mark.items()
    ]
    statement = (
        upsert(Comparison)
        .on_conflict_do_nothing()
        .returning(Comparison.id, Comparison.fingerprint, Comparison.prompt_id)
    )
    made: list[Made] = []
    completions: list[dict[str, Any]] = []
    for comparison_id, mark, prompt_id in session.execute(statement, rows):
        item = by_mark[mark]
        ids = [uuid.uuid4() for _ in item.completions]
        made.append(Made(comparison_id, ids, item))
        completions += [
            {
                "id": i,
                "campaign_id": campaign.id,
                "prompt_id": prompt_id,
                "text": text,
                "source": batch.source,
                "source_name": name,
                "checkpoint_id": batch.checkpoint_id,
            }
            for i, text, name in zip(ids, item.completions, item.sources, strict=True)
        ]
    if made:
        _store_completions(session, made, completions)
    return made


def _store_completions(session: Session, made: list[Made], completions: list[dict[str, Any]]) -> None:
    session.execute(insert(Completion), completions)
    places = [
        {"comparison_id": one.comparison_id, "place": place, "completion_id": i}
        for one in made
        for place, i in enumerate(one.completion_ids)
    ]
    session.execute(insert(ComparisonCompletion), places)
    golds = [
        {"id": one.comparison_id, "gold": [[str(one.completion_ids[n]) for n in g] for g in one.record.gold]}
        for one in made
        if one.record.gold
    ]
    if golds:
        session.execute(update(Comparison), golds)


def prompts_to_sample(session: Session, campaign_id: uuid.UUID, count: int) -> list[Prompt]:
    """The prompts of the next batch: the least sampled first, the rest of the order fixed by their fingerprints."""
    statement = (
        select(Prompt)
        .where(Prompt.campaign_id == campaign_id)
        .order_by(Prompt.samples, Prompt.fingerprint)
        .limit(count)
    )
    return list(session.scalars(statement))


def add_sampled(
    session: Session,
    campaign: Campaign,
    *,
    run_id: uuid.UUID,
    checkpoint_id: uuid.UUID,
    rows: Iterable[dict[str, Any]],
) -> int:
    """Make a batch from what a sampling run wrote: rows with `id` (of the prompt) and `completions`.

    A prompt whose completions came out the same is left for another batch. Returns the number of comparisons made.
    """
    batch = new_batch(session, campaign, Source.checkpoint, checkpoint_id=checkpoint_id, run_id=run_id)
    items: list[Record] = []
    sampled: list[uuid.UUID] = []
    for row in rows:
        sampled.append(uuid.UUID(row["id"]))
        # A model may emit anything, even NUL, which PostgreSQL cannot hold; nobody can see it either way.
        said = (completion["text"].replace("\x00", "\ufffd") for completion in row["completions"])
        texts = list(dict.fromkeys(text for text in said if text.strip()))
        if len(texts) >= 2:
            items.append(Record(row["prompt"], texts, [""] * len(texts)))
    made = [one for chunk in _chunks(iter(items)) for one in store(session, campaign, batch, chunk)]
    session.execute(update(Prompt).where(Prompt.id.in_(sampled)).values(samples=Prompt.samples + 1))
    live.nudge(session, f"campaign:{campaign.id}")
    return len(made)
