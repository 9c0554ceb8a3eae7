"""Who did what: an append-only log of acts that matter (sign-ins, roles, tokens, campaigns, rounds, exports)."""

import uuid
from datetime import datetime
from typing import Any

from sqlalchemy import func
from sqlalchemy.orm import Mapped, Session, mapped_column

from app.core.db import Base


class AuditEntry(Base):
    __tablename__ = "audit_log"

    id: Mapped[int] = mapped_column(primary_key=True)
    at: Mapped[datetime] = mapped_column(server_default=func.now(), index=True)
    actor_id: Mapped[uuid.UUID | None] = mapped_column(index=True)
    action: Mapped[str]
    """A verb phrase such as `campaign.activate`."""
    object_type: Mapped[str] = mapped_column(server_default="")
    object_id: Mapped[uuid.UUID | None]
    campaign_id: Mapped[uuid.UUID | None] = mapped_column(index=True)
    detail: Mapped[dict[str, Any]] = mapped_column(default=dict)


def record(
    session: Session,
    actor_id: uuid.UUID | None,
    action: str,
    thing: Any = None,
    *,
    campaign_id: uuid.UUID | None = None,
    **detail: Any,
) -> None:
    """Write an entry in the caller's transaction: it is there exactly if the act is."""
    session.add(
        AuditEntry(
            actor_id=actor_id,
            action=action,
            object_type=getattr(thing, "__tablename__", ""),
            object_id=getattr(thing, "id", None),
            campaign_id=campaign_id,
            detail=detail,
        )
    )
