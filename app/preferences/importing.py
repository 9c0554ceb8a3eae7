"""Comparisons on their way in, together with what people elsewhere said of them."""

import uuid
from collections.abc import Iterable, Iterator
from typing import Any

from sqlalchemy import func, insert, select, update
from sqlalchemy.orm import Session

from app.annotation.models import Annotation, Annotator, Assignment, AssignmentState
from app.annotation.ranking import Ranking
from app.annotation.scales import Scale
from app.campaigns.models import Campaign
from app.campaigns.prompts import Report, json_line
from app.comparisons import batches
from app.comparisons.batches import Made
from app.comparisons.models import Comparison, ComparisonState
from app.core.errors import Invalid


def lines(stream: Iterable[bytes]) -> Iterator[tuple[int, Any]]:
    """`(line number, JSON value or Invalid)` of an NDJSON stream; blank lines are passed over."""
    for number, raw in enumerate(stream, start=1):
        if not raw.strip():
            continue
        try:
            yield number, json_line(raw.decode("utf-8"))
        except UnicodeDecodeError as error:
            yield number, Invalid(f"this line is not UTF-8 (byte {error.start + 1}).")
        except Invalid as error:
            yield number, error


def import_comparisons(session: Session, campaign: Campaign, values: Iterable[tuple[int, Any]]) -> Report:
    """Store comparisons, and the labels they came with as answers of imported annotators."""
    annotators = _Annotators(session, campaign)

    def labels(made: list[Made]) -> None:
        store_labels(session, campaign, made, annotators)

    return batches.add_lines(session, campaign, values, labels)


class _Annotators:
    """The campaign's imported annotators by the name in the file, made when first met."""

    def __init__(self, session: Session, campaign: Campaign) -> None:
        self.session, self.campaign = session, campaign
        known = select(Annotator.label, Annotator.id).where(
            Annotator.campaign_id == campaign.id, Annotator.user_id.is_(None)
        )
        self.ids: dict[str, uuid.UUID] = dict(session.execute(known).all())

    def __getitem__(self, label: str) -> uuid.UUID:
        if label not in self.ids:
            made = Annotator(label=label, campaign_id=self.campaign.id)
            self.session.add(made)
            self.session.flush()
            self.ids[label] = made.id
        return self.ids[label]


def store_labels(session: Session, campaign: Campaign, made: list[Made], annotators: _Annotators) -> None:
    """Write the labels of fresh comparisons as submitted assignments and current annotations.

    An annotator counts once per comparison. Labels beyond the overlap are kept as surplus.
    """
    assignments: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    slots: list[dict[str, Any]] = []
    scale = Scale(campaign.scale)
    now = session.scalar(select(func.now()))
    for one in made:
        ids = [str(i) for i in one.completion_ids]
        distinct = {label.annotator: label for label in one.record.labels}.values()
        for nth, label in enumerate(distinct):
            ranking = Ranking.parse([[ids[n] for n in g] for g in label.ranking], ids)
            key = {
                "campaign_id": campaign.id,
                "comparison_id": one.comparison_id,
                "annotator_id": annotators[label.annotator],
            }
            assignments.append(
                {"id": uuid.uuid4(), "state": AssignmentState.submitted, "shown": ids, "expires_at": now, **key}
            )
            annotations.append(
                {
                    "assignment_id": assignments[-1]["id"],
                    "ranking": ranking.as_json(),
                    "strength": None if ranking.is_tie or not label.strength else min(label.strength, scale.strengths),
                    "comment": label.comment,
                    "surplus": nth >= campaign.overlap,
                    "imported": True,
                    "idempotency_key": "import",
                    **key,
                }
            )
        if one.record.labels:
            left = max(0, campaign.overlap - len(distinct))
            state = ComparisonState.open if left else ComparisonState.resolved
            slots.append({"id": one.comparison_id, "open_slots": left, "state": state})
    if assignments:
        session.execute(insert(Assignment), assignments)
        session.execute(insert(Annotation), annotations)
        session.execute(update(Comparison), slots)
