"""Reading the answers of a campaign, and freezing them into an immutable preference dataset."""

import hashlib
import json
import uuid
from collections.abc import Iterator

from sqlalchemy import insert, select
from sqlalchemy.orm import Session

from app.annotation.models import Annotation
from app.annotation.ranking import Ranking
from app.annotation.scales import Scale
from app.campaigns.models import Campaign, Guidelines, Prompt, Split
from app.comparisons.models import Comparison, ComparisonCompletion, ComparisonState, Completion
from app.core import artifacts
from app.preferences.models import DatasetAnnotation, PreferenceDataset
from app.preferences.pairs import Answered, pairs

CHUNK = 1000


def answers(session: Session, campaign: Campaign) -> Iterator[Answered]:
    """Every current answer that counts (no surplus, nothing discarded, no gold), in a reproducible order."""
    statement = (
        select(
            Annotation.id,
            Annotation.comparison_id,
            Annotation.annotator_id,
            Annotation.ranking,
            Annotation.strength,
            Comparison.batch_id,
            Prompt.messages,
            Prompt.split,
            Guidelines.version,
        )
        .join(Comparison, Comparison.id == Annotation.comparison_id)
        .join(Prompt, Prompt.id == Comparison.prompt_id)
        .outerjoin(Guidelines, Guidelines.id == Annotation.guidelines_id)
        .where(
            Annotation.campaign_id == campaign.id,
            Annotation.superseded_at.is_(None),
            Annotation.surplus.is_(False),
            Comparison.state != ComparisonState.discarded,
            Comparison.gold.is_(None),
        )
        .order_by(Prompt.fingerprint, Comparison.fingerprint, Annotation.created_at, Annotation.id)
        .execution_options(yield_per=CHUNK)
    )
    strengths = Scale(campaign.scale).strengths
    for part in session.execute(statement).partitions():
        texts = _texts(session, {row.comparison_id for row in part})
        for row in part:
            own = texts[row.comparison_id]
            yield Answered(
                annotation_id=str(row.id),
                comparison_id=str(row.comparison_id),
                annotator=pseudonym(campaign.id, row.annotator_id),
                prompt=row.messages,
                texts=own,
                ranking=Ranking.parse(row.ranking, list(own)),
                strength=row.strength,
                strengths=strengths,
                held_out=row.split is Split.held_out,
                batch_id=str(row.batch_id),
                guidelines_version=row.version,
            )


def _texts(session: Session, comparisons: set[uuid.UUID]) -> dict[uuid.UUID, dict[str, str]]:
    found: dict[uuid.UUID, dict[str, str]] = {}
    statement = (
        select(ComparisonCompletion.comparison_id, Completion.id, Completion.text)
        .join(Completion, Completion.id == ComparisonCompletion.completion_id)
        .where(ComparisonCompletion.comparison_id.in_(comparisons))
        .order_by(ComparisonCompletion.comparison_id, ComparisonCompletion.place)
    )
    for comparison_id, completion_id, text in session.execute(statement):
        found.setdefault(comparison_id, {})[str(completion_id)] = text
    return found


def pseudonym(campaign_id: uuid.UUID, annotator_id: uuid.UUID) -> str:
    """How an annotator is called in exports: the same within a campaign, unlinkable between campaigns."""
    return hashlib.sha256(campaign_id.bytes + annotator_id.bytes).hexdigest()[:12]


def freeze(session: Session, campaign: Campaign) -> PreferenceDataset:
    """An immutable snapshot of every answer so far, split by prompt into what trains and what measures.

    The files are named by their contents, so the same answers always give the same snapshot.
    """
    everything = list(answers(session, campaign))
    lines: dict[bool, list[str]] = {False: [], True: []}
    for answer, row in pairs(everything):
        lines[answer.held_out].append(json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n")
    names = {held_out: hashlib.sha256("".join(text).encode()).hexdigest() for held_out, text in lines.items()}
    uris = {}
    for held_out, text in lines.items():
        uris[held_out] = artifacts.url("campaigns", str(campaign.id), "datasets", f"{names[held_out]}.jsonl")
        artifacts.write_text(uris[held_out], text)
    dataset = PreferenceDataset(
        campaign_id=campaign.id,
        sha256=hashlib.sha256((names[False] + names[True]).encode()).hexdigest(),
        train_uri=uris[False],
        held_out_uri=uris[True],
        train_pairs=len(lines[False]),
        held_out_pairs=len(lines[True]),
        ties=sum(answer.ranking.is_tie for answer in everything),
        annotations=len(everything),
        filters={"surplus": False, "discarded": False, "gold": False},
    )
    session.add(dataset)
    session.flush()
    if everything:
        session.execute(
            insert(DatasetAnnotation),
            [{"dataset_id": dataset.id, "annotation_id": uuid.UUID(a.annotation_id)} for a in everything],
        )
    return dataset
