"""Inviting somebody by e-mail address, and what happens when they follow the link."""

import uuid
from dataclasses import dataclass

from sqlalchemy.orm import Session

from app.accounts import access, links, passwords, people
from app.accounts.models import CampaignRole, Link, LinkPurpose, Role, User
from app.core import audit
from app.core.errors import Conflict, Forbidden


@dataclass(frozen=True)
class Invited:
    """What an invitation led to: a link to hand over, or, for somebody who has an account, a membership at once."""

    email: str
    link: Link | None = None
    secret: str | None = None
    member: User | None = None


def invite(
    session: Session,
    actor: User,
    email: str,
    role: Role,
    *,
    campaign_id: uuid.UUID | None = None,
    campaign_role: CampaignRole | None = None,
) -> Invited:
    """Invite an address as `role`, and into a campaign when one is given.

    Somebody who has an account is let into the campaign at once: a link that could set the password of an existing
    account would let whoever made it take that account over.
    """
    email = people.clean_email(email)
    mine = people.campaign_role(session, actor, campaign_id) if campaign_id else None
    if not access.may_invite_as(actor.role, mine, role):
        raise Forbidden("You may invite annotators into the campaigns that you lead. Ask an administrator for more.")
    user = people.find_user(session, email)
    if user is not None:
        if not user.is_active:
            raise Conflict(f"The account of {email} is closed. Open it again instead.", field="email")
        if campaign_id is None or campaign_role is None:
            raise Conflict(f"{email} has an account already.", field="email")
        people.add_member(session, user, campaign_id, campaign_role, actor_id=actor.id)
        return Invited(email, member=user)
    links.replace_invites(session, email, campaign_id)
    link, secret = links.create_link(
        session,
        LinkPurpose.invite,
        email,
        role,
        campaign_id=campaign_id,
        campaign_role=campaign_role,
        actor_id=actor.id,
    )
    return Invited(email, link=link, secret=secret)


def accept(session: Session, secret: str, name: str, password: str) -> User:
    """Make the account that the invitation was for, or raise `LinkSpent`, `Invalid` or `Conflict` and use nothing."""
    link = links.look(session, LinkPurpose.invite, secret)
    name = people.clean_name(name)
    passwords.check_acceptable(password, link.email, name)
    links.use(session, LinkPurpose.invite, secret)
    user = people.create_user(session, link.email, link.role, name=name, password=password)
    if link.campaign_id and link.campaign_role:
        people.add_member(session, user, link.campaign_id, link.campaign_role, actor_id=link.created_by)
    audit.record(session, user.id, "link.use", link, campaign_id=link.campaign_id)
    return user


def sign_in_by_link(session: Session, secret: str, new_password: str = "") -> User:
    """Use a one-time sign-in link up; with a new password, set it (and end every other session)."""
    link = links.look(session, LinkPurpose.sign_in, secret)
    user = people.find_user(session, link.email)
    if user is None or not user.is_active:
        raise links.LinkSpent("The account behind this link is closed. Ask an administrator to open it again.")
    if new_password:
        passwords.check_acceptable(new_password, user.email, user.name)
    links.use(session, LinkPurpose.sign_in, secret)
    if new_password:
        people.set_password(session, user, new_password)
    audit.record(session, user.id, "link.use", link)
    return user
