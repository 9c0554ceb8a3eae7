"""Setting a campaign up and moving it through its states."""

import uuid
from typing import Any

from sqlalchemy import exists, func, select
from sqlalchemy.orm import Session

from app.accounts.models import CampaignRole, Membership, Role, User
from app.campaigns.models import Campaign, CampaignKind, CampaignState, Guidelines, Prompt
from app.core import audit, live, states
from app.core.errors import Conflict, Invalid

SCALES = (2, 4, 5, 7, 8)
MAX_OVERLAP = 50


def create(
    session: Session,
    by: User,
    *,
    name: str,
    kind: CampaignKind = CampaignKind.pairwise,
    overlap: int = 1,
    scale: int = 7,
    guidelines: str = "",
    policy_id: uuid.UUID | None = None,
    recipe: dict[str, Any] | None = None,
) -> Campaign:
    """A draft campaign, led by whoever made it. Raises `Invalid` naming the field to mend."""
    campaign = Campaign(
        name=_name(name),
        kind=kind,
        overlap=_overlap(overlap),
        scale=_scale(scale),
        policy_id=policy_id,
        initial_policy_id=policy_id,
        recipe=recipe or {},
        created_by=by.id,
    )
    session.add(campaign)
    session.flush()
    session.add(Membership(campaign_id=campaign.id, user_id=by.id, role=CampaignRole.lead))
    set_guidelines(session, campaign, by, guidelines)
    audit.record(session, by.id, "campaign.create", campaign, campaign_id=campaign.id, name=campaign.name)
    return campaign


def faults(name: str, overlap: int | None, scale: int | None) -> dict[str, str]:
    """What is wrong with each of these, by field: forms show everything at once. None is no number at all."""
    found = {}
    for field, check in (
        ("name", lambda: _name(name)),
        ("overlap", lambda: _overlap(overlap or 0)),
        ("scale", lambda: _scale(scale or 0)),
    ):
        try:
            check()
        except Invalid as error:
            found[field] = error.message
    return found


def edit(
    session: Session,
    campaign: Campaign,
    by: User,
    *,
    name: str | None = None,
    overlap: int | None = None,
    scale: int | None = None,
    recipe: dict[str, Any] | None = None,
) -> None:
    """Change settings. Scale and overlap are fixed after draft: labels would stop being comparable."""
    if name is not None:
        campaign.name = _name(name)
    if campaign.state is not CampaignState.draft and (
        (overlap not in (None, campaign.overlap)) or (scale not in (None, campaign.scale))
    ):
        raise Conflict("Overlap and scale cannot change once a campaign has been activated.")
    if overlap is not None:
        campaign.overlap = _overlap(overlap)
    if scale is not None:
        campaign.scale = _scale(scale)
    if recipe is not None:
        campaign.recipe = recipe
    audit.record(session, by.id, "campaign.edit", campaign, campaign_id=campaign.id)


def choose_policy(session: Session, campaign: Campaign, by: User, policy_id: uuid.UUID | None) -> None:
    """Which policy the campaign begins with. Once it is active and has one, only rounds change it."""
    if policy_id == campaign.policy_id:
        return
    if campaign.policy_id is not None and campaign.state is not CampaignState.draft:
        raise Conflict("The policy of an active campaign is changed by its rounds.", field="policy")
    campaign.policy_id = campaign.initial_policy_id = policy_id
    audit.record(session, by.id, "campaign.policy", campaign, campaign_id=campaign.id, policy=str(policy_id or ""))


def _name(name: str) -> str:
    name = " ".join(name.split())
    if not 1 <= len(name) <= 120:
        raise Invalid("Give the campaign a name of at most 120 characters.", "name")
    return name


def _overlap(overlap: int) -> int:
    if not 1 <= overlap <= MAX_OVERLAP:
        raise Invalid(f"Overlap is the number of annotators per comparison: from 1 to {MAX_OVERLAP}.", "overlap")
    return overlap


def _scale(scale: int) -> int:
    if scale not in SCALES:
        raise Invalid(f"The scale must have {', '.join(map(str, SCALES[:-1]))} or {SCALES[-1]} steps.", "scale")
    return scale


def set_guidelines(session: Session, campaign: Campaign, by: User, text: str) -> Guidelines:
    """A new version of the guidelines, unless the text is what it was."""
    current = guidelines(session, campaign.id)
    text = text.replace("\r\n", "\n").strip()
    if current and current.text == text:
        return current
    if len(text) > 100_000:
        raise Invalid(f"The guidelines are {len(text):,} characters long; at most 100,000.", "guidelines")
    version = current.version + 1 if current else 1
    made = Guidelines(campaign_id=campaign.id, version=version, text=text, created_by=by.id)
    session.add(made)
    session.flush()
    return made


def guidelines(session: Session, campaign_id: uuid.UUID) -> Guidelines | None:
    """The newest version."""
    return session.scalar(
        select(Guidelines).where(Guidelines.campaign_id == campaign_id).order_by(Guidelines.version.desc()).limit(1)
    )


def guidelines_versions(session: Session, campaign_id: uuid.UUID) -> list[tuple[Guidelines, str]]:
    """Every version with its author's name, the newest first."""
    rows = session.execute(
        select(Guidelines, User.name)
        .outerjoin(User, User.id == Guidelines.created_by)
        .where(Guidelines.campaign_id == campaign_id)
        .order_by(Guidelines.version.desc())
    )
    return [(version, author or "") for version, author in rows]


def activate(session: Session, campaign: Campaign, by: User, *, empty: bool = False) -> None:
    """Serve annotators from now on.

    Raises `Conflict` when there is nothing to serve and nothing to sample from, unless the caller says that comparisons
    will follow (`empty`).
    """
    if not empty and not session.scalar(select(exists().where(Prompt.campaign_id == campaign.id))):
        raise Conflict("This campaign has no prompts yet: add prompts, or import comparisons, and then activate it.")
    states.move(session, campaign, CampaignState.active, actor_id=by.id)
    audit.record(session, by.id, "campaign.activate", campaign, campaign_id=campaign.id)
    live.nudge(session, f"campaign:{campaign.id}")


def pause(session: Session, campaign: Campaign, by: User) -> None:
    states.move(session, campaign, CampaignState.paused, actor_id=by.id)
    audit.record(session, by.id, "campaign.pause", campaign, campaign_id=campaign.id)
    live.nudge(session, f"campaign:{campaign.id}")


def close(session: Session, campaign: Campaign, by: User) -> None:
    states.move(session, campaign, CampaignState.closed, actor_id=by.id)
    audit.record(session, by.id, "campaign.close", campaign, campaign_id=campaign.id)
    live.nudge(session, f"campaign:{campaign.id}")


def require_not_closed(campaign: Campaign) -> None:
    """Raise `Conflict` for a campaign that takes nothing in any more."""
    if campaign.state is CampaignState.closed:
        raise Conflict("This campaign is closed; nothing can be added to it.")


def prompt_count(session: Session, campaign_id: uuid.UUID) -> int:
    return session.scalar(select(func.count()).where(Prompt.campaign_id == campaign_id)) or 0


def visible_to(session: Session, user: User) -> list[Campaign]:
    """The campaigns that a user may know of, newest first."""
    statement = select(Campaign).order_by(Campaign.created_at.desc(), Campaign.id)
    if user.role is not Role.admin:
        mine = select(Membership.campaign_id).where(Membership.user_id == user.id)
        statement = statement.where(Campaign.id.in_(mine))
    return list(session.scalars(statement))


def led_by(session: Session, user: User) -> list[Campaign]:
    """The campaigns that a user runs, newest first."""
    statement = select(Campaign).order_by(Campaign.created_at.desc(), Campaign.id)
    if user.role is not Role.admin:
        led = select(Membership.campaign_id).where(Membership.user_id == user.id, Membership.role == CampaignRole.lead)
        statement = statement.where(Campaign.id.in_(led))
    return list(session.scalars(statement))
