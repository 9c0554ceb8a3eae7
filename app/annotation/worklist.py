"""An annotator's own work: what is left for them, what they did today, their latest answers."""

import uuid
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import case, func, select, text
from sqlalchemy.orm import Session

from app.accounts.models import User
from app.annotation import choices
from app.annotation.models import Annotation, Annotator, Assignment
from app.annotation.scales import Scale
from app.campaigns.models import Campaign, Prompt
from app.comparisons.models import Comparison, Completion

COUNT_UP_TO = 1000
"""Nobody needs to know whether 41,000 or 42,000 comparisons are left; counting them all would cost every submit."""

IDLE_MS = 5 * 60_000
"""More than this on one comparison is a break rather than work."""

LEFT = text(
    """
    SELECT c.id,
        (SELECT count(*) FROM assignments a
         WHERE a.annotator_id = :annotator AND a.campaign_id = c.id AND a.state = 'leased')
        + (SELECT count(*) FROM (
            SELECT 1 FROM comparisons q
            WHERE q.campaign_id = c.id AND q.state = 'open' AND q.open_slots > 0
              AND NOT EXISTS (
                  SELECT 1 FROM assignments a
                  WHERE a.comparison_id = q.id AND a.annotator_id = :annotator AND a.state <> 'released')
            LIMIT :most) AS waiting)
    FROM campaigns c WHERE c.id = ANY(:campaigns)
    """
)


@dataclass(frozen=True)
class Work:
    """One annotator's work in one campaign."""

    done: int = 0
    today: int = 0
    """Since midnight UTC."""
    seconds_today: float = 0.0
    left: int = 0

    @property
    def total(self) -> int:
        return self.done + self.left

    @property
    def more(self) -> bool:
        """There is more left than was counted."""
        return self.left >= COUNT_UP_TO


def known_annotator(session: Session, user: User) -> Annotator | None:
    """The annotator that a user is, if they ever annotated."""
    return session.scalar(select(Annotator).where(Annotator.user_id == user.id))


def in_campaigns(
    session: Session, annotator: Annotator | None, campaigns: Collection[uuid.UUID]
) -> dict[uuid.UUID, Work]:
    """The work of one annotator (or of somebody who has not begun) in each of the campaigns: two queries in all."""
    if not campaigns:
        return {}
    # A user who never annotated has no answers and no leases: an id that nobody has finds none.
    identity = annotator.id if annotator else uuid.UUID(int=0)
    waiting = {"annotator": identity, "campaigns": list(campaigns), "most": COUNT_UP_TO}
    left = {row[0]: row[1] for row in session.execute(LEFT, waiting)}
    today = Annotation.created_at >= func.date_trunc("day", func.now(), "UTC")
    rows = session.execute(
        select(
            Annotation.campaign_id,
            func.count().label("done"),
            func.count(case((today, 1))).label("today"),
            func.sum(case((today, func.least(Annotation.elapsed_ms, IDLE_MS)), else_=0)).label("ms"),
        )
        .where(
            Annotation.annotator_id == identity,
            Annotation.campaign_id.in_(campaigns),
            Annotation.superseded_at.is_(None),
        )
        .group_by(Annotation.campaign_id)
    )
    done = {row.campaign_id: row for row in rows}
    return {
        i: Work(done[i].done, done[i].today, float(done[i].ms or 0) / 1000, left.get(i, 0))
        if i in done
        else Work(left=left.get(i, 0))
        for i in campaigns
    }


def in_campaign(session: Session, annotator: Annotator | None, campaign: Campaign) -> Work:
    return in_campaigns(session, annotator, [campaign.id])[campaign.id]


def earlier_answer(session: Session, assignment: Assignment) -> Annotation | None:
    """What its annotator last said of this assignment, undone or not: where a corrected answer starts from."""
    return session.scalar(
        select(Annotation).where(Annotation.assignment_id == assignment.id).order_by(Annotation.version.desc()).limit(1)
    )


@dataclass(frozen=True)
class Past:
    """One of an annotator's own answers, as they see it."""

    id: uuid.UUID
    prompt: str
    said: str
    chosen: str
    """The text they preferred; nothing for a tie."""
    comment: str
    seconds: float | None
    at: datetime
    surplus: bool


def answers(session: Session, campaign: Campaign, annotator: Annotator, *, limit: int, offset: int = 0) -> list[Past]:
    """Current answers, the newest first: the first of them is the one that an undo takes back."""
    preferred = case(
        (func.jsonb_array_length(Annotation.ranking) > 1, Annotation.ranking[0][0].astext), else_=None
    ).cast(Completion.id.type)
    rows = session.execute(
        select(Annotation, Assignment.shown, Prompt.messages, Completion.text)
        .join(Assignment, Assignment.id == Annotation.assignment_id)
        .join(Comparison, Comparison.id == Annotation.comparison_id)
        .join(Prompt, Prompt.id == Comparison.prompt_id)
        .outerjoin(Completion, Completion.id == preferred)
        .where(
            Annotation.annotator_id == annotator.id,
            Annotation.campaign_id == campaign.id,
            Annotation.superseded_at.is_(None),
        )
        .order_by(Annotation.created_at.desc(), Annotation.id)
        .limit(limit)
        .offset(offset)
    )
    return [_past(row[0], row[1], row[2], row[3], Scale(campaign.scale)) for row in rows]


def _past(annotation: Annotation, shown: list[str], messages: list[Any], chosen: str | None, scale: Scale) -> Past:
    value = choices.value_of(annotation.ranking, annotation.strength, annotation.flags)
    return Past(
        id=annotation.id,
        prompt=messages[-1]["content"],
        said=choices.sentence(value, shown, scale),
        chosen=chosen or "",
        comment=annotation.comment,
        seconds=annotation.elapsed_ms / 1000 if annotation.elapsed_ms is not None else None,
        at=annotation.created_at,
        surplus=annotation.surplus,
    )
