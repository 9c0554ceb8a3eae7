"""Users and what proves who they are. Nothing that grants access is stored in the clear: only SHA-256 of it."""

import uuid
from datetime import datetime
from enum import StrEnum

from sqlalchemy import ForeignKey, Index, String, UniqueConstraint, func
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Mapped, mapped_column

from app.core.db import Base, Row


class Role(StrEnum):
    """What a user is in the installation; a campaign's members have a `CampaignRole` in it besides."""

    admin = "admin"
    """Everything, everywhere, including people."""
    lead = "lead"
    """Creates campaigns; full rights in those where they are lead."""
    annotator = "annotator"
    """Annotates in the campaigns they belong to."""


class CampaignRole(StrEnum):
    lead = "lead"
    annotator = "annotator"


class User(Row):
    __tablename__ = "users"

    email: Mapped[str] = mapped_column(unique=True)
    """Lower-cased."""
    name: Mapped[str] = mapped_column(server_default="")
    password_hash: Mapped[str | None]
    """argon2id; None until the person has set a password through a link."""
    role: Mapped[Role]
    is_active: Mapped[bool] = mapped_column(default=True)


class Membership(Base):
    __tablename__ = "memberships"

    campaign_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("campaigns.id", ondelete="CASCADE"), primary_key=True)
    user_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), primary_key=True, index=True)
    role: Mapped[CampaignRole]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class WebSession(Row):
    """A signed-in browser. The cookie holds the token; the row its hash."""

    __tablename__ = "sessions"

    user_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), index=True)
    token_hash: Mapped[str] = mapped_column(unique=True)
    csrf_token: Mapped[str]
    last_seen_at: Mapped[datetime] = mapped_column(server_default=func.now())
    expires_at: Mapped[datetime]
    """Absolute end; a session idle for too long ends sooner."""
    user_agent: Mapped[str] = mapped_column(server_default="")


class LinkPurpose(StrEnum):
    invite = "invite"
    """Creates the account (or joins the campaign) and sets a password."""
    sign_in = "sign_in"
    """Signs an existing user in, once."""


class Link(Row):
    """A single-use link, bound to an e-mail address."""

    __tablename__ = "links"

    purpose: Mapped[LinkPurpose]
    token_hash: Mapped[str] = mapped_column(unique=True)
    email: Mapped[str]
    role: Mapped[Role]
    campaign_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("campaigns.id", ondelete="CASCADE"))
    campaign_role: Mapped[CampaignRole | None]
    expires_at: Mapped[datetime]
    used_at: Mapped[datetime | None]
    created_by: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("users.id", ondelete="SET NULL"))


class Scope(StrEnum):
    """What an API token may be used for, within what its user may do."""

    annotate = "annotate"
    manage = "manage"
    read = "read"


class ApiToken(Row):
    __tablename__ = "api_tokens"
    __table_args__ = (UniqueConstraint("token_hash"), Index("ix_api_tokens_user_id", "user_id"))

    user_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    name: Mapped[str]
    prefix: Mapped[str]
    """The first characters of the token, so that a person can tell theirs apart."""
    token_hash: Mapped[str]
    scopes: Mapped[list[str]] = mapped_column(ARRAY(String))
    expires_at: Mapped[datetime]
    last_used_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]
