"""What each annotator of a campaign has done: count, pace, position bias, agreement."""

import uuid
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import case, func, select
from sqlalchemy.orm import Session

from app.accounts.models import User
from app.annotation.models import Annotation, Annotator, Assignment, AssignmentState
from app.comparisons.models import Comparison, ComparisonCompletion
from app.quality import agreement
from app.quality.agreement import Estimate, Units


@dataclass(frozen=True)
class Line:
    """One annotator in a campaign."""

    annotator_id: uuid.UUID
    name: str
    answers: int
    skipped: int
    median_seconds: float | None
    last_at: datetime | None
    first_share: Estimate
    """Share of preferences that went to the completion shown first; 0.5 without position bias."""
    agreement: Estimate


def units(session: Session, campaign_id: uuid.UUID) -> Units:
    """Comparison to annotator to label, of every current answer that counts.

    A label names completions by their place in the comparison, which says nothing about them: so two annotators agree
    by chance about half the time, and that is what α and κ have to correct for. Named by their ids, which no two
    comparisons share, they would seem to agree by chance never.
    """
    places = {
        str(completion): str(place)
        for completion, place in session.execute(
            select(ComparisonCompletion.completion_id, ComparisonCompletion.place)
            .join(Comparison, Comparison.id == ComparisonCompletion.comparison_id)
            .where(Comparison.campaign_id == campaign_id)
        )
    }
    found: Units = {}
    rows = session.execute(
        select(Annotation.comparison_id, Annotation.annotator_id, Annotation.ranking).where(
            Annotation.campaign_id == campaign_id, Annotation.superseded_at.is_(None), Annotation.surplus.is_(False)
        )
    )
    for comparison, annotator, ranking in rows:
        label = agreement.nominal([[places[i] for i in group] for group in ranking])
        found.setdefault(str(comparison), {})[str(annotator)] = label
    return found


def prefers_a_position(share: Estimate) -> bool:
    """The interval excludes one half: which response came first seems to matter to this annotator."""
    return share.low is not None and share.high is not None and not share.low <= 0.5 <= share.high


def first_share(first: int, decided: int) -> Estimate:
    if decided < agreement.MIN_UNITS:
        return Estimate(None, None, None, decided)
    return Estimate(first / decided, *agreement.wilson(first, decided), decided)


def lines(session: Session, campaign_id: uuid.UUID, units: Units) -> list[Line]:
    """The campaign's annotators, the busiest first."""
    # Not where the order shown is unknown (imports), and not for ties, which prefer no position.
    decided = (func.jsonb_array_length(Annotation.ranking) > 1) & Annotation.imported.is_(False)
    first = decided & (Annotation.ranking[0][0].astext == Assignment.shown[0].astext)
    answered = (
        select(
            Annotation.annotator_id,
            func.count().label("answers"),
            func.percentile_cont(0.5).within_group(Annotation.elapsed_ms).label("pace"),
            func.max(Annotation.created_at).label("last_at"),
            func.count(case((decided, 1))).label("decided"),
            func.count(case((first, 1))).label("first"),
        )
        .join(Assignment, Assignment.id == Annotation.assignment_id)
        .where(Annotation.campaign_id == campaign_id, Annotation.superseded_at.is_(None))
        .group_by(Annotation.annotator_id)
        .subquery()
    )
    skipped = (
        select(Assignment.annotator_id, func.count().label("skipped"))
        .where(Assignment.campaign_id == campaign_id, Assignment.state == AssignmentState.skipped)
        .group_by(Assignment.annotator_id)
        .subquery()
    )
    rows = session.execute(
        select(Annotator.id, Annotator.label, User.name, User.email, answered, skipped.c.skipped)
        .outerjoin(User, User.id == Annotator.user_id)
        .outerjoin(answered, answered.c.annotator_id == Annotator.id)
        .outerjoin(skipped, skipped.c.annotator_id == Annotator.id)
        .where((answered.c.answers > 0) | (skipped.c.skipped > 0))
        .order_by(func.coalesce(answered.c.answers, 0).desc(), Annotator.id)
    )
    agreements = agreement.per_annotator(units)
    return [
        Line(
            annotator_id=row.id,
            name=row.name or row.email or row.label or "imported",
            answers=row.answers or 0,
            skipped=row.skipped or 0,
            median_seconds=row.pace / 1000 if row.pace is not None else None,
            last_at=row.last_at,
            first_share=first_share(row.first or 0, row.decided or 0),
            agreement=agreements.get(str(row.id), Estimate(None, None, None, 0)),
        )
        for row in rows
    ]
