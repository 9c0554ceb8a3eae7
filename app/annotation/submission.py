"""Answers: stored exactly once, never refused for being late, undone by a new version."""

import hashlib
import json
import uuid
from dataclasses import asdict, dataclass, field
from typing import Any

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from app.annotation import comments, leasing
from app.annotation.models import Annotation, Annotator, Assignment, AssignmentState
from app.annotation.ranking import Ranking
from app.annotation.scales import Scale
from app.campaigns import lifecycle
from app.campaigns.models import Campaign, CampaignState
from app.comparisons.models import Comparison, ComparisonState
from app.core import live
from app.core.errors import Conflict, Invalid, NotFound

FLAGS = ("both_bad", "both_good")


@dataclass
class Answer:
    """What an annotator sends for one assignment."""

    ranking: list[Any]
    strength: int | None = None
    flags: list[str] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    comment: str = ""
    elapsed_ms: int | None = None


@dataclass(frozen=True)
class Receipt:
    annotation: Annotation
    replayed: bool
    """The same answer had been stored before; nothing was written now."""


def checked(answer: Answer, of: list[str], scale: Scale) -> Ranking:
    """The ranking of an answer that makes sense on this scale. Pure; raises `Invalid` naming the field."""
    ranking = Ranking.parse(answer.ranking, of)
    unknown = [f for f in answer.flags if f not in FLAGS]
    if unknown:
        raise Invalid(f"The flag {unknown[0]!r} is unknown; there are {', '.join(FLAGS)}.", "flags")
    if answer.flags and not ranking.is_tie:
        raise Invalid("Both good and both bad go with a tie, not with a preference.", "flags")
    if ranking.is_tie and not answer.flags and not scale.has_tie:
        raise Invalid("This campaign asks for a preference: a tie is not on its scale.", "ranking")
    if ranking.is_tie and answer.strength is not None:
        raise Invalid("A tie has no strength.", "strength")
    if answer.strength is not None and not 1 <= answer.strength <= scale.strengths:
        raise Invalid(f"Strength goes from 1 to {scale.strengths} on this campaign's scale.", "strength")
    comments.check(answer.comment)
    if answer.elapsed_ms is not None and not 0 <= answer.elapsed_ms < 2**31:
        raise Invalid("elapsed_ms is a number of milliseconds.", "elapsed_ms")
    return ranking


def own_assignment(session: Session, annotator: Annotator, assignment_id: object) -> Assignment:
    """The annotator's assignment of that id; anybody else's is as unknown as one that does not exist."""
    try:
        identity = uuid.UUID(str(assignment_id))
    except ValueError:
        identity = None
    row = session.get(Assignment, identity) if identity else None
    if row is None or row.annotator_id != annotator.id:
        raise NotFound("There is no such assignment of yours.")
    return row


def submit(session: Session, campaign: Campaign, assignment: Assignment, answer: Answer, key: str = "") -> Receipt:
    """Store an answer once.

    The same idempotency key, or the same content, returns what is stored. Different content for an assignment that has
    been answered becomes its next version. After the lease ran out the answer takes a free slot or is kept as surplus.
    Raises `Conflict` only where an answer makes no sense any more (closed campaign, skipped comparison).
    """
    ranking = checked(answer, assignment.shown, Scale(campaign.scale))
    key = (key or f"content:{_digest(answer)}")[:200]
    # The comparison first, then the assignment: everybody locks in this order, so nobody waits in a circle.
    comparison = session.get_one(Comparison, assignment.comparison_id, with_for_update=True, populate_existing=True)
    session.refresh(assignment, with_for_update=True)
    current = _current(session, assignment)
    known = session.scalar(
        select(Annotation).where(Annotation.assignment_id == assignment.id, Annotation.idempotency_key == key)
    )
    if known and (known.superseded_at is None or assignment.state is AssignmentState.submitted):
        return Receipt(known, replayed=True)
    if current and _same(current, ranking, answer):
        return Receipt(current, replayed=True)
    if assignment.state is AssignmentState.skipped:
        raise Conflict("You skipped this comparison, so it went to somebody else.")
    if campaign.state is CampaignState.closed:
        raise Conflict("This campaign has been closed; it takes no more answers.")
    surplus = _settle(session, comparison, assignment, current)
    stored = _store(session, campaign, assignment, ranking, answer, _fresh(known, key), surplus, current)
    _resolve(session, comparison)
    live.nudge(session, f"campaign:{campaign.id}")
    return Receipt(stored, replayed=False)


def _digest(answer: Answer) -> str:
    return hashlib.sha256(json.dumps(asdict(answer), sort_keys=True, default=str).encode()).hexdigest()


def _fresh(known: Annotation | None, key: str) -> str:
    """After an undo the same content may come again under the same key; it is a new answer all the same."""
    return f"{key}:{uuid.uuid4()}"[:240] if known else key


def _current(session: Session, assignment: Assignment) -> Annotation | None:
    return session.scalar(
        select(Annotation).where(Annotation.assignment_id == assignment.id, Annotation.superseded_at.is_(None))
    )


def _same(current: Annotation, ranking: Ranking, answer: Answer) -> bool:
    return (current.ranking, current.strength, current.flags, current.reasons, current.comment) == (
        ranking.as_json(),
        answer.strength,
        answer.flags,
        answer.reasons,
        answer.comment,
    )


def _settle(session: Session, comparison: Comparison, assignment: Assignment, current: Annotation | None) -> bool:
    """Move the assignment to submitted. True when no slot is left for this answer, so that it is surplus."""
    if assignment.state is AssignmentState.submitted:
        return bool(current and current.surplus)
    surplus = comparison.state is ComparisonState.discarded
    if assignment.state is AssignmentState.released:
        surplus = surplus or comparison.open_slots == 0
        if not surplus:
            comparison.open_slots -= 1
    assignment.state = AssignmentState.submitted
    session.flush()
    return surplus


def _store(
    session: Session,
    campaign: Campaign,
    assignment: Assignment,
    ranking: Ranking,
    answer: Answer,
    key: str,
    surplus: bool,
    current: Annotation | None,
) -> Annotation:
    last = session.scalar(select(func.max(Annotation.version)).where(Annotation.assignment_id == assignment.id)) or 0
    if current:
        supersede(session, current)
    guidelines = lifecycle.guidelines(session, campaign.id)
    annotation = Annotation(
        campaign_id=campaign.id,
        comparison_id=assignment.comparison_id,
        assignment_id=assignment.id,
        annotator_id=assignment.annotator_id,
        version=last + 1,
        ranking=ranking.as_json(),
        strength=answer.strength,
        flags=answer.flags,
        reasons=answer.reasons,
        comment=answer.comment,
        elapsed_ms=answer.elapsed_ms,
        surplus=surplus,
        guidelines_id=guidelines.id if guidelines else None,
        idempotency_key=key,
    )
    session.add(annotation)
    session.flush()
    return annotation


def supersede(session: Session, annotation: Annotation) -> None:
    session.execute(update(Annotation).where(Annotation.id == annotation.id).values(superseded_at=func.now()))
    session.refresh(annotation)


def _resolve(session: Session, comparison: Comparison) -> None:
    """Resolve a comparison that has all its answers. The caller holds its lock, so the count cannot miss one."""
    answers = session.scalar(
        select(func.count()).where(
            Annotation.comparison_id == comparison.id,
            Annotation.superseded_at.is_(None),
            Annotation.surplus.is_(False),
        )
    )
    if comparison.state is ComparisonState.open and (answers or 0) >= comparison.overlap:
        comparison.state = ComparisonState.resolved
        session.flush()


def undo_last(session: Session, campaign: Campaign, annotator: Annotator) -> Assignment:
    """Take back this annotator's last answer or skip in the campaign; the comparison is theirs to answer again.

    Raises `Conflict` when there is nothing to undo.
    """
    last = session.scalar(
        select(Annotation)
        .where(
            Annotation.annotator_id == annotator.id,
            Annotation.campaign_id == campaign.id,
            Annotation.superseded_at.is_(None),
            Annotation.imported.is_(False),
        )
        .order_by(Annotation.created_at.desc())
        .limit(1)
    )
    skipped = session.scalar(
        select(Assignment)
        .where(
            Assignment.annotator_id == annotator.id,
            Assignment.campaign_id == campaign.id,
            Assignment.state == AssignmentState.skipped,
            Assignment.skipped_at > (last.created_at if last else campaign.created_at),
        )
        .order_by(Assignment.skipped_at.desc())
        .limit(1)
    )
    if skipped is not None:
        leasing.take_up_again(session, skipped)
        return skipped
    if last is None:
        raise Conflict("There is no answer of yours to undo in this campaign.")
    comparison = session.get_one(Comparison, last.comparison_id, with_for_update=True, populate_existing=True)
    assignment = session.get_one(Assignment, last.assignment_id, with_for_update=True, populate_existing=True)
    if last.surplus and comparison.open_slots > 0:
        comparison.open_slots -= 1
        last.surplus = False
    # A surplus answer held no slot, so undoing it may not make a lease that would give one back.
    assignment.state = AssignmentState.released if last.surplus else AssignmentState.leased
    supersede(session, last)
    if comparison.state is ComparisonState.resolved:
        comparison.state = ComparisonState.open
    session.flush()
    leasing.renew(session, assignment)
    live.nudge(session, f"campaign:{campaign.id}")
    return assignment
