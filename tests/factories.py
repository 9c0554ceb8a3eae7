"""Rows for tests, as plain functions: the least that is needed, everything else by keyword."""

import uuid
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.accounts.models import CampaignRole, Membership, Role, User
from app.annotation import leasing
from app.annotation.models import Annotator
from app.campaigns import lifecycle
from app.campaigns.models import Campaign, CampaignState
from app.campaigns.prompts import Report
from app.checkpoints.models import Checkpoint, CheckpointKind
from app.comparisons.models import Comparison
from app.preferences import importing


def make_user(session: Session, role: Role = Role.annotator, **values: Any) -> User:
    user = User(email=f"{uuid.uuid4().hex[:10]}@example.org", name="Somebody", role=role, **values)
    session.add(user)
    session.flush()
    return user


def make_campaign(
    session: Session, *, state: CampaignState = CampaignState.active, by: User | None = None, **values: Any
) -> Campaign:
    values = {"name": "Kind answers", "guidelines": "Prefer the kinder answer.", **values}
    campaign = lifecycle.create(session, by or make_user(session, Role.lead), **values)
    campaign.state = state
    session.flush()
    return campaign


def make_annotator(session: Session, campaign: Campaign | None = None) -> Annotator:
    user = make_user(session)
    if campaign:
        session.add(Membership(campaign_id=campaign.id, user_id=user.id, role=CampaignRole.annotator))
    return leasing.annotator_of(session, user)


def pair(n: int, **more: Any) -> dict[str, Any]:
    """The n-th of a series of distinct comparisons."""
    return {"prompt": f"Question {n}?", "completions": [{"text": f"First {n}."}, {"text": f"Second {n}."}], **more}


def add_pairs(session: Session, campaign: Campaign, count: int, **more: Any) -> Report:
    return importing.import_comparisons(session, campaign, ((n, pair(n, **more)) for n in range(1, count + 1)))


def make_policy(session: Session, campaign: Campaign | None = None, uri: str = "file:///nowhere") -> Checkpoint:
    checkpoint = Checkpoint(
        campaign_id=campaign.id if campaign else None, name="policy", kind=CheckpointKind.policy, uri=uri
    )
    session.add(checkpoint)
    session.flush()
    return checkpoint


def comparisons_of(session: Session, campaign: Campaign) -> list[Comparison]:
    found = session.scalars(
        select(Comparison).where(Comparison.campaign_id == campaign.id).order_by(Comparison.position)
    )
    return list(found)
