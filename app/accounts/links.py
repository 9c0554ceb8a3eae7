"""Invitations and one-time sign-in links: a secret in a URL that works once, for one e-mail address, for a while.

Looking at a link changes nothing, because mail scanners and chat previews look at links; using it is a compare-and-set,
so of two clicks at once exactly one wins. The row holds the secret's hash alone.
"""

import uuid
from datetime import datetime, timedelta

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from app.accounts.models import CampaignRole, Link, LinkPurpose, Role, User
from app.accounts.tokens import digest, new_secret
from app.core import audit
from app.core.errors import Invalid, NotFound, TiebreakError

MAX_AGE = timedelta(days=7)
SIGN_IN_AGE = timedelta(days=1)


class LinkSpent(TiebreakError):
    """The link was used, has expired, or never was: whoever holds it needs a new one."""

    status = 410
    title = "This link no longer works"


def create_link(
    session: Session,
    purpose: LinkPurpose,
    email: str,
    role: Role,
    *,
    campaign_id: uuid.UUID | None = None,
    campaign_role: CampaignRole | None = None,
    age: timedelta = MAX_AGE,
    actor_id: uuid.UUID | None = None,
) -> tuple[Link, str]:
    """A new link and its secret, which is never to be seen again. `age` is how long it works, at most seven days."""
    if not timedelta(0) < age <= MAX_AGE:
        raise Invalid(f"A link works for at most {MAX_AGE.days} days.", "age")
    if (campaign_id is None) != (campaign_role is None):
        raise Invalid("Say both into which campaign and as what.", "campaign_role")
    secret = new_secret()
    link = Link(
        purpose=purpose,
        token_hash=digest(secret),
        email=email,
        role=role,
        campaign_id=campaign_id,
        campaign_role=campaign_role,
        expires_at=_now(session) + age,
        created_by=actor_id,
    )
    session.add(link)
    session.flush()
    audit.record(session, actor_id, "link.create", link, campaign_id=campaign_id, purpose=purpose.value)
    return link, secret


def sign_in_link(
    session: Session, user: User, *, age: timedelta = SIGN_IN_AGE, actor_id: uuid.UUID | None = None
) -> str:
    """The secret of a link that signs this user in once, and lets them set a new password if they wish."""
    _, secret = create_link(session, LinkPurpose.sign_in, user.email, user.role, age=age, actor_id=actor_id)
    return secret


def look(session: Session, purpose: LinkPurpose, secret: str) -> Link:
    """The link of that secret if it still works, else `LinkSpent`. Changes nothing."""
    link = session.scalar(select(Link).where(Link.token_hash == digest(secret), Link.purpose == purpose))
    if link is None:
        raise LinkSpent("There is no such link. Check that you copied all of it, or ask for a new one.")
    if link.used_at is not None:
        raise LinkSpent("This link has been used already: each one works once. Ask for a new one.")
    if link.expires_at <= _now(session):
        raise LinkSpent("This link has expired. Ask for a new one.")
    return link


def use(session: Session, purpose: LinkPurpose, secret: str) -> Link:
    """Use the link up and return it, or raise `LinkSpent`. Of two callers at once, one gets it."""
    link = look(session, purpose, secret)
    taken = session.scalar(
        update(Link)
        .where(Link.id == link.id, Link.used_at.is_(None), Link.expires_at > func.now())
        .values(used_at=func.now())
        .returning(Link.id)
    )
    if taken is None:
        raise LinkSpent("This link has just been used. Ask for a new one.")
    return link


def open_invites(session: Session, campaign_id: uuid.UUID | None = None) -> list[Link]:
    """Invitations that nobody has accepted yet and that still work, the newest first; all, or one campaign's."""
    statement = (
        select(Link)
        .where(Link.purpose == LinkPurpose.invite, Link.used_at.is_(None), Link.expires_at > func.now())
        .order_by(Link.created_at.desc())
    )
    if campaign_id is not None:
        statement = statement.where(Link.campaign_id == campaign_id)
    return list(session.scalars(statement))


def revoke_link(session: Session, link_id: uuid.UUID, *, actor_id: uuid.UUID | None) -> None:
    """End a link before anybody used it."""
    link = session.get(Link, link_id)
    if link is None or link.used_at is not None:
        raise NotFound("There is no such open link. It may have been used or revoked already.")
    link.expires_at = _now(session)
    audit.record(session, actor_id, "link.revoke", link, campaign_id=link.campaign_id)


def revoke_links(session: Session, *, of: User, purpose: LinkPurpose | None = None) -> None:
    """End the user's own unused links; with no purpose given, also the invitations that they sent."""
    mine = Link.email == of.email
    condition = mine & (Link.purpose == purpose) if purpose else mine | (Link.created_by == of.id)
    session.execute(update(Link).where(condition, Link.used_at.is_(None)).values(expires_at=func.now()))


def replace_invites(session: Session, email: str, campaign_id: uuid.UUID | None) -> None:
    """End the open invitations of this address to the same place: a new one, with its role, takes over."""
    session.execute(
        update(Link)
        .where(
            Link.purpose == LinkPurpose.invite,
            Link.email == email,
            Link.campaign_id.is_not_distinct_from(campaign_id),
            Link.used_at.is_(None),
        )
        .values(expires_at=func.now())
    )


def _now(session: Session) -> datetime:
    return session.scalars(select(func.now())).one()
