"""Accounts and memberships: making them, changing them, ending them. Every act leaves an audit entry."""

import re
import uuid

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from app.accounts import passwords
from app.accounts.links import revoke_links
from app.accounts.models import CampaignRole, LinkPurpose, Membership, Role, User, WebSession
from app.accounts.sessions import revoke_all
from app.accounts.tokens import revoke_all_tokens
from app.core import audit
from app.core.db import require
from app.core.errors import Conflict, Invalid, NotFound

MAX_EMAIL = 254
MAX_NAME = 80


def clean_email(email: str) -> str:
    """The one spelling under which an address is stored, or `Invalid`."""
    email = email.strip().lower()
    if not email:
        raise Invalid("Enter an e-mail address.", "email")
    if len(email) > MAX_EMAIL or not re.fullmatch(
        r"[^@\s\x00-\x1f<>\"]+@[^@\s\x00-\x1f<>\".]+(\.[^@\s\x00-\x1f<>\".]+)*", email
    ):
        raise Invalid("Enter an e-mail address, such as ada@example.org.", "email")
    return email


def clean_name(name: str) -> str:
    """The name as it is shown, or `Invalid`."""
    name = " ".join(name.split())
    if not name:
        raise Invalid("Enter a name: it is how others will see you.", "name")
    if len(name) > MAX_NAME:
        raise Invalid(f"Use at most {MAX_NAME} characters.", "name")
    return name


def find_user(session: Session, email: str) -> User | None:
    """The user of that address, in whatever case it is written."""
    return session.scalar(select(User).where(User.email == email.strip().lower()))


def create_user(
    session: Session,
    email: str,
    role: Role,
    *,
    name: str = "",
    password: str | None = None,
    actor_id: uuid.UUID | None = None,
) -> User:
    """A new account. Raises `Conflict` when the address has one, `Invalid` for a poor password."""
    email = clean_email(email)
    if find_user(session, email) is not None:
        raise Conflict(f"{email} has an account already.", field="email")
    if password is not None:
        passwords.check_acceptable(password, email, name)
    user = User(
        email=email,
        name=clean_name(name) if name else email.split("@")[0][:MAX_NAME],
        role=role,
        password_hash=None if password is None else passwords.hash_password(password),
    )
    session.add(user)
    session.flush()
    audit.record(session, actor_id, "user.create", user, role=role.value)
    return user


def rename(session: Session, user: User, name: str) -> None:
    """Change how others see the user."""
    user.name = clean_name(name)
    audit.record(session, user.id, "user.rename", user)


def set_password(
    session: Session, user: User, password: str, *, keep: WebSession | None = None, actor_id: uuid.UUID | None = None
) -> None:
    """Give the user a new password. Every other session and every unused sign-in link of theirs ends."""
    passwords.check_acceptable(password, user.email, user.name)
    user.password_hash = passwords.hash_password(password)
    revoke_all(session, user, keep=keep)
    revoke_links(session, of=user, purpose=LinkPurpose.sign_in)
    audit.record(session, actor_id or user.id, "user.password", user)


def change_role(session: Session, user: User, role: Role, *, actor_id: uuid.UUID | None) -> None:
    """Change what the user is in this installation. They sign in anew, with the new rights."""
    if user.role is role:
        return
    if user.role is Role.admin:
        _refuse_last_admin(session, user)
    was, user.role = user.role, role
    revoke_all(session, user)
    audit.record(session, actor_id, "user.role", user, was=was.value, now=role.value)


def deactivate(session: Session, user: User, *, actor_id: uuid.UUID | None) -> None:
    """Close the account at once: sessions, API tokens and links end. What the person answered stays."""
    if not user.is_active:
        return
    if user.role is Role.admin:
        _refuse_last_admin(session, user)
    user.is_active = False
    revoke_all(session, user)
    revoke_all_tokens(session, user)
    revoke_links(session, of=user)
    audit.record(session, actor_id, "user.deactivate", user)


def activate(session: Session, user: User, *, actor_id: uuid.UUID | None) -> None:
    """Open a closed account again, with its password; its tokens stay ended."""
    user.is_active = True
    audit.record(session, actor_id, "user.activate", user)


def add_member(
    session: Session, user: User, campaign_id: uuid.UUID, role: CampaignRole, *, actor_id: uuid.UUID | None
) -> Membership:
    """Let the user into a campaign, or change what they are in it."""
    membership = session.get(Membership, (campaign_id, user.id))
    if membership is None:
        membership = Membership(campaign_id=campaign_id, user_id=user.id, role=role)
        session.add(membership)
    membership.role = role
    session.flush()
    audit.record(session, actor_id, "member.add", user, campaign_id=campaign_id, role=role.value)
    return membership


def remove_member(session: Session, user: User, campaign_id: uuid.UUID, *, actor_id: uuid.UUID | None) -> None:
    """Take the user out of a campaign; their answers stay."""
    membership = session.get(Membership, (campaign_id, user.id))
    if membership is None:
        raise NotFound("This person is not in the campaign.")
    session.delete(membership)
    session.flush()
    audit.record(session, actor_id, "member.remove", user, campaign_id=campaign_id)


def campaign_role(session: Session, user: User, campaign_id: uuid.UUID) -> CampaignRole | None:
    """What the user is in that campaign; None for nothing."""
    membership = session.get(Membership, (campaign_id, user.id))
    return membership.role if membership else None


def everybody(session: Session) -> list[User]:
    """All accounts: open ones first, then by name."""
    return list(session.scalars(select(User).order_by(User.is_active.desc(), func.lower(User.name), User.email)))


def require_user(session: Session, user_id: uuid.UUID) -> User:
    """The user of that id, or `NotFound`."""
    return require(session, User, user_id)


def _refuse_last_admin(session: Session, user: User) -> None:
    """Locks the admins, so that two who close each other's account at once cannot both succeed."""
    admins = session.scalars(
        select(User.id).where(User.role == Role.admin, User.is_active).order_by(User.id).with_for_update()
    ).all()
    if all(admin == user.id for admin in admins):
        raise Conflict("This is the only administrator left. Make somebody else one first.")


def store_hash(session: Session, user: User, password_hash: str) -> None:
    """Replace the hash of an unchanged password; nothing that the person could notice."""
    session.execute(update(User).where(User.id == user.id).values(password_hash=password_hash))
