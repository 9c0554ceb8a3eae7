"""What people and events do to a round: open it, start its training, cancel it, overrule its gates."""

import uuid
from collections.abc import Collection
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.accounts.models import User
from app.annotation.models import Annotation
from app.campaigns.models import Campaign, CampaignState, Prompt, Split
from app.comparisons.models import Comparison, ComparisonState
from app.core import audit, jobs, live, states
from app.core.errors import Conflict, Invalid
from app.preferences.models import DatasetAnnotation
from app.rounds import recipes, runs
from app.rounds.models import LIVE_ROUNDS, Round, RoundState, Stage


def live_round(session: Session, campaign_id: uuid.UUID) -> Round | None:
    return session.scalar(select(Round).where(Round.campaign_id == campaign_id, Round.state.in_(LIVE_ROUNDS)))


def last_finished(session: Session, campaign_id: uuid.UUID) -> Round | None:
    """The newest round that is over."""
    return session.scalar(
        select(Round)
        .where(Round.campaign_id == campaign_id, Round.state.not_in(LIVE_ROUNDS))
        .order_by(Round.number.desc())
        .limit(1)
    )


def newest(session: Session, campaigns: Collection[uuid.UUID]) -> dict[uuid.UUID, Round]:
    """The latest round of each of the campaigns that have one."""
    latest = (
        select(Round.campaign_id, func.max(Round.number).label("number"))
        .where(Round.campaign_id.in_(campaigns))
        .group_by(Round.campaign_id)
        .subquery()
    )
    found = session.scalars(
        select(Round).join(latest, (latest.c.campaign_id == Round.campaign_id) & (latest.c.number == Round.number))
    )
    return {current.campaign_id: current for current in found}


def open_round(session: Session, campaign: Campaign) -> Round:
    """The campaign's live round; a collecting one is made when there is none."""
    # Whoever comes second waits here and then finds the first one's round.
    session.execute(select(Campaign.id).where(Campaign.id == campaign.id).with_for_update())
    if known := live_round(session, campaign.id):
        return known
    last = session.scalar(select(func.max(Round.number)).where(Round.campaign_id == campaign.id)) or 0
    made = Round(campaign_id=campaign.id, number=last + 1)
    session.add(made)
    session.flush()
    jobs.enqueue(session, runs.ADVANCE, made.id)
    live.nudge(session, f"campaign:{campaign.id}")
    return made


def start(
    session: Session,
    campaign: Campaign,
    by: User | None,
    overrides: dict[str, Any] | None = None,
    trigger: str = "lead",
) -> Round:
    """Begin training on what has been answered.

    Raises `Conflict` when a round is training already or there is too little to train on, `Invalid` for a bad recipe.
    """
    recipe = recipes.parse(campaign.recipe, overrides)
    if campaign.state is not CampaignState.active:
        raise Conflict(f"This campaign is {campaign.state.value}; activate it before starting a round.")
    if campaign.policy_id is None:
        raise Conflict("This campaign has no policy to train: choose one in its settings.")
    current = open_round(session, campaign)
    session.refresh(current, with_for_update=True)
    if current.state is not RoundState.collecting:
        raise Conflict(f"Round {current.number} is {current.state.value}; wait for it, or cancel it.")
    have = trainable_answers(session, campaign.id)
    if have < recipe.reward.min_pairs:
        raise Conflict(
            f"Only {have} preference{'' if have == 1 else 's'} on training prompts so far (ties and held-out prompts "
            f"not counted); a round needs at least {recipe.reward.min_pairs}. Collect more answers first."
        )
    states.move(
        session,
        current,
        RoundState.training,
        actor_id=by.id if by else None,
        reason=trigger,
        trigger=trigger,
        recipe=recipe.model_dump(mode="json"),
        policy_before_id=campaign.policy_id,
        started_at=func.clock_timestamp(),
    )
    audit.record(session, by.id if by else None, "round.start", current, campaign_id=campaign.id, trigger=trigger)
    jobs.enqueue(session, runs.ADVANCE, current.id)
    nudge(session, current)
    return current


def trainable_answers(session: Session, campaign_id: uuid.UUID, since_dataset: uuid.UUID | None = None) -> int:
    """Current answers that prefer something, on training prompts; optionally only those a snapshot does not hold."""
    statement = (
        select(func.count())
        .select_from(Annotation)
        .join(Comparison, Comparison.id == Annotation.comparison_id)
        .join(Prompt, Prompt.id == Comparison.prompt_id)
        .where(
            Annotation.campaign_id == campaign_id,
            Annotation.superseded_at.is_(None),
            Annotation.surplus.is_(False),
            Comparison.state != ComparisonState.discarded,
            Comparison.gold.is_(None),
            Prompt.split == Split.train,
            func.jsonb_array_length(Annotation.ranking) > 1,
        )
    )
    if since_dataset:
        held = select(DatasetAnnotation.annotation_id).where(DatasetAnnotation.dataset_id == since_dataset)
        statement = statement.where(Annotation.id.not_in(held))
    return session.scalar(statement) or 0


def cancel(session: Session, current: Round, by: User) -> None:
    """Stop a round that is training or evaluating, and its runs."""
    if current.state not in (RoundState.training, RoundState.evaluating):
        raise Conflict(f"Round {current.number} is {current.state.value}; there is nothing to cancel.")
    states.move(
        session, current, RoundState.cancelled, actor_id=by.id, reason="cancelled", finished_at=func.clock_timestamp()
    )
    for run in runs.newest(session, current.id).values():
        if run.stage is not Stage.sample:  # the batch it is making is wanted all the same
            runs.request_cancel(session, run)
    audit.record(session, by.id, "round.cancel", current, campaign_id=current.campaign_id)
    jobs.enqueue(session, runs.ADVANCE, current.id)
    nudge(session, current)


def override(session: Session, campaign: Campaign, current: Round, by: User, to: RoundState, reason: str) -> None:
    """The lead's word over the gates': promote what was rejected, or roll back what was promoted. Needs a reason."""
    reason = " ".join(reason.split())
    if not 3 <= len(reason) <= 1000:
        raise Invalid("Say in a few words why (it is kept with the round).", "reason")
    session.refresh(campaign, with_for_update=True)
    if to is RoundState.promoted:
        target = current.candidate_id
        if target is None:
            raise Conflict("This round has no candidate to promote.")
    else:
        target = current.policy_before_id
        if campaign.policy_id != current.candidate_id:
            raise Conflict("A later round's policy is in place; roll that one back first.")
    states.move(session, current, to, actor_id=by.id, reason=reason, decision_reason=f"{by.name or by.email}: {reason}")
    campaign.policy_id = target
    session.flush()
    audit.record(session, by.id, f"round.override.{to.value}", current, campaign_id=current.campaign_id, reason=reason)
    nudge(session, current)


def nudge(session: Session, current: Round) -> None:
    live.nudge(session, f"round:{current.id}")
    live.nudge(session, f"campaign:{current.campaign_id}")
