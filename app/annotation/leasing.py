"""Leases: one comparison to one annotator for a while. Exact overlap, nobody twice, nothing thrown away.

A claim takes one of the comparison's `open_slots` in the statement that picks it, under a row lock that others skip.
Counting live leases instead over-assigns (38–55 % of comparisons in a measured prototype), because the count reads the
statement's snapshot. Leases and answers are too many for the journal of `core.states`; the moves are the same
compare-and-set on the same table of moves.
"""

import uuid
from collections.abc import Collection
from datetime import timedelta

from sqlalchemy import func, select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from app.accounts.models import User
from app.annotation import comments, presentation
from app.annotation.models import Annotator, Assignment, AssignmentState
from app.campaigns.models import Campaign, CampaignState
from app.comparisons.models import Comparison, ComparisonState
from app.core.errors import Conflict, Invalid
from app.core.settings import settings

MAX_LIVE = 3
"""Comparisons that one annotator may hold: the one on screen, the one behind it, and one for a second tab."""

SKIP_REASONS = {
    "cannot_judge": "I cannot judge this",
    "not_competent": "I lack the knowledge",
    "broken_prompt": "The prompt makes no sense",
    "unreadable": "A response is unreadable",
    "unsafe": "It is unsafe or upsetting",
    "language": "I do not read this language",
    "technical": "Something does not work",
    "other": "Another reason",
}

CLAIM = text(
    """
    WITH candidate AS (
        SELECT c.id FROM comparisons c
        WHERE c.campaign_id = :campaign AND c.state = 'open' AND c.open_slots > 0
          AND NOT EXISTS (
              SELECT 1 FROM assignments a
              WHERE a.comparison_id = c.id AND a.annotator_id = :annotator AND a.state <> 'released')
        ORDER BY c.priority DESC, c.position
        LIMIT 1
        FOR UPDATE OF c SKIP LOCKED
    ), taken AS (
        UPDATE comparisons c SET open_slots = c.open_slots - 1
        FROM candidate WHERE c.id = candidate.id
        RETURNING c.id, c.campaign_id
    )
    INSERT INTO assignments (id, campaign_id, comparison_id, annotator_id, state, shown, leased_at, expires_at,
                             skip_reason)
    SELECT gen_random_uuid(), taken.campaign_id, taken.id, :annotator, 'leased', '[]', now(), now() + :lease, ''
    FROM taken
    ON CONFLICT (comparison_id, annotator_id) DO UPDATE
        SET state = 'leased', leased_at = now(), expires_at = now() + :lease
    RETURNING id
    """
)

RELEASE_EXPIRED = text(
    """
    WITH expired AS (
        SELECT id, comparison_id FROM assignments
        WHERE state = 'leased' AND expires_at < now() - interval '5 seconds'
        ORDER BY comparison_id LIMIT 500
        FOR UPDATE SKIP LOCKED
    ), released AS (
        UPDATE assignments a SET state = 'released' FROM expired WHERE a.id = expired.id RETURNING a.comparison_id
    )
    UPDATE comparisons c SET open_slots = c.open_slots + n.freed
    FROM (SELECT comparison_id, count(*) AS freed FROM released GROUP BY comparison_id) n
    WHERE c.id = n.comparison_id
    RETURNING c.id
    """
)


def lease_time() -> timedelta:
    return timedelta(minutes=settings().lease_minutes)


def annotator_of(session: Session, user: User) -> Annotator:
    """The annotator that a user is; made at first use."""
    statement = insert(Annotator).values(id=uuid.uuid4(), user_id=user.id, kind="human")
    session.execute(statement.on_conflict_do_nothing(index_elements=["user_id"]))
    return session.scalars(select(Annotator).where(Annotator.user_id == user.id)).one()


def next_assignment(
    session: Session, campaign: Campaign, annotator: Annotator, holding: Collection[uuid.UUID] = ()
) -> Assignment | None:
    """What this annotator should judge next, other than what they say they are `holding`.

    First what they were already given (so a reload, a crash or another device resumes), then a fresh claim; None when
    nothing is left for them. Raises `Conflict` when the campaign serves nobody at present.
    """
    # One annotator's requests take turns, so that two tabs neither pass the limit nor claim the same comparison.
    session.execute(select(Annotator.id).where(Annotator.id == annotator.id).with_for_update())
    live = list(
        session.scalars(
            select(Assignment)
            .where(
                Assignment.annotator_id == annotator.id,
                Assignment.campaign_id == campaign.id,
                Assignment.state == AssignmentState.leased,
            )
            .order_by(Assignment.leased_at, Assignment.id)
        )
    )
    for held in live:
        if held.id not in holding:
            renew(session, held)
            return held
    require_serving(campaign)
    if len(live) >= MAX_LIVE:
        raise Conflict(f"You hold {len(live)} comparisons already; answer or skip one of them first.")
    return _claim(session, campaign, annotator)


def require_serving(campaign: Campaign) -> None:
    if campaign.state is not CampaignState.active:
        raise Conflict(f"This campaign is {campaign.state.value}, so no comparisons are served at present.")


def _claim(session: Session, campaign: Campaign, annotator: Annotator) -> Assignment | None:
    parameters = {"campaign": campaign.id, "annotator": annotator.id, "lease": lease_time()}
    claimed = session.scalar(CLAIM, parameters)
    if claimed is None:
        return None
    assignment = session.get_one(Assignment, claimed, populate_existing=True)
    if not assignment.shown:
        assignment.shown = presentation.draw(session, assignment.comparison_id)
        session.flush()
    return assignment


def renew(session: Session, assignment: Assignment) -> None:
    """The annotator is still there: the lease starts anew."""
    session.execute(
        update(Assignment)
        .where(Assignment.id == assignment.id, Assignment.state == AssignmentState.leased)
        .values(expires_at=func.now() + lease_time())
    )
    session.refresh(assignment)


def skip(session: Session, assignment: Assignment, reason: str, comment: str = "") -> None:
    """Give the comparison back, with a reason; this annotator is not asked again. Twice is the same as once."""
    if reason not in SKIP_REASONS:
        raise Invalid(f"The reason must be one of {', '.join(SKIP_REASONS)}.", "reason")
    session.execute(select(Comparison.id).where(Comparison.id == assignment.comparison_id).with_for_update())
    session.refresh(assignment, with_for_update=True)
    if assignment.state is AssignmentState.skipped:
        return
    if assignment.state is AssignmentState.submitted:
        raise Conflict("You have already answered this comparison; undo the answer first.")
    held = assignment.state is AssignmentState.leased
    assignment.state = AssignmentState.skipped
    assignment.skip_reason, assignment.skip_comment = reason, comments.check(comment)
    assignment.skipped_at = session.scalar(select(func.clock_timestamp()))
    if held:
        give_back_slot(session, assignment.comparison_id)
    session.flush()


def take_up_again(session: Session, assignment: Assignment) -> None:
    """Undo a skip. Where somebody else has the comparison by now, an answer is kept as surplus."""
    comparison = session.get_one(Comparison, assignment.comparison_id, with_for_update=True, populate_existing=True)
    session.refresh(assignment, with_for_update=True)
    if assignment.state is not AssignmentState.skipped:
        return
    free = comparison.state is ComparisonState.open and comparison.open_slots > 0
    comparison.open_slots -= free
    assignment.state = AssignmentState.leased if free else AssignmentState.released
    assignment.skipped_at = None
    session.flush()
    renew(session, assignment)


def give_back_slot(session: Session, comparison_id: uuid.UUID) -> None:
    session.execute(
        update(Comparison).where(Comparison.id == comparison_id).values(open_slots=Comparison.open_slots + 1)
    )


def release_expired(session: Session) -> int:
    """Return the slots of leases that have run out. Called by the tick; how many comparisons got a slot back."""
    return len(session.scalars(RELEASE_EXPIRED).all())
