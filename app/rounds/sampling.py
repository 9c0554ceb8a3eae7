"""Asking for another batch of comparisons, by hand."""

import uuid

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.accounts.models import User
from app.campaigns.models import Campaign, CampaignState
from app.core import audit
from app.core.errors import Conflict
from app.rounds import progress
from app.rounds.models import Run, RunState, Stage


def newest(session: Session, campaign_id: uuid.UUID) -> Run | None:
    """The campaign's last sampling run, whatever became of it."""
    return session.scalar(
        select(Run)
        .where(Run.campaign_id == campaign_id, Run.stage == Stage.sample)
        .order_by(Run.created_at.desc())
        .limit(1)
    )


def request(session: Session, campaign: Campaign, by: User) -> Run:
    """Queue a batch. Raises `Conflict` when the campaign is closed, one is on its way, or there is nothing to use."""
    if campaign.state is CampaignState.closed:
        raise Conflict("This campaign is closed; nothing is sampled for it any more.")
    # Whoever asks second waits here and then finds the first one's run.
    session.execute(select(Campaign.id).where(Campaign.id == campaign.id).with_for_update())
    last = newest(session, campaign.id)
    if last and last.state in (RunState.queued, RunState.running):
        raise Conflict("A batch is being sampled already. Its comparisons appear here when it is done.")
    run = progress.queue_sample(session, campaign)
    audit.record(session, by.id, "batch.request", run, campaign_id=campaign.id)
    return run
