"""Who belongs to a campaign, and as what."""

import uuid
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.accounts import people
from app.accounts.models import CampaignRole, Membership, User
from app.campaigns.models import Campaign
from app.core import live
from app.core.errors import Conflict, NotFound


@dataclass(frozen=True)
class Member:
    user: User
    role: CampaignRole
    since: datetime


def of(session: Session, campaign_id: uuid.UUID) -> list[Member]:
    """Leads first, then by name."""
    rows = session.execute(
        select(User, Membership.role, Membership.created_at)
        .join(Membership, Membership.user_id == User.id)
        .where(Membership.campaign_id == campaign_id)
        .order_by(Membership.role.desc(), func.lower(User.name), User.email)
    )
    return [Member(user, role, since) for user, role, since in rows]


def find(session: Session, campaign: Campaign, user_id: uuid.UUID) -> User:
    """The member of that id, or `NotFound`; nobody learns of users outside the campaign this way."""
    user = session.scalar(
        select(User)
        .join(Membership, Membership.user_id == User.id)
        .where(Membership.campaign_id == campaign.id, User.id == user_id)
    )
    if user is None:
        raise NotFound("This person is not in the campaign.")
    return user


def change_role(session: Session, campaign: Campaign, user: User, role: CampaignRole, by: User) -> None:
    if role is not CampaignRole.lead:
        _keep_a_lead(session, campaign, user)
    people.add_member(session, user, campaign.id, role, actor_id=by.id)
    live.nudge(session, f"campaign:{campaign.id}")


def remove(session: Session, campaign: Campaign, user: User, by: User) -> None:
    """Take a member out; what they answered stays."""
    _keep_a_lead(session, campaign, user)
    people.remove_member(session, user, campaign.id, actor_id=by.id)
    live.nudge(session, f"campaign:{campaign.id}")


def _keep_a_lead(session: Session, campaign: Campaign, user: User) -> None:
    """Locks the leads, so that two who remove each other at once cannot both succeed."""
    leads = session.scalars(
        select(Membership.user_id)
        .where(Membership.campaign_id == campaign.id, Membership.role == CampaignRole.lead)
        .with_for_update()
    ).all()
    if list(leads) == [user.id]:
        raise Conflict("This is the campaign's only lead. Make somebody else a lead first.")
