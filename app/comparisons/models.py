"""Completions, comparisons and batches."""

import uuid
from enum import StrEnum
from typing import Any, ClassVar

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    ForeignKey,
    ForeignKeyConstraint,
    Identity,
    Index,
    UniqueConstraint,
    text,
)
from sqlalchemy.orm import Mapped, mapped_column

from app.core.db import Base, Row


class Source(StrEnum):
    """Where a completion came from."""

    checkpoint = "checkpoint"
    imported = "imported"


class Batch(Row):
    """The comparisons that came together: sampled from one checkpoint, or imported from one file."""

    __tablename__ = "batches"

    campaign_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("campaigns.id", ondelete="CASCADE"), index=True)
    source: Mapped[Source]
    checkpoint_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("checkpoints.id"))
    run_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("runs.id", use_alter=True), unique=True)
    """The sampling run; unique, so that a run's completions become a batch once."""


class Completion(Row):
    __tablename__ = "completions"
    __table_args__ = (
        UniqueConstraint("campaign_id", "id"),
        ForeignKeyConstraint(["campaign_id", "prompt_id"], ["prompts.campaign_id", "prompts.id"], ondelete="CASCADE"),
        Index("ix_completions_prompt_id", "prompt_id"),
    )

    campaign_id: Mapped[uuid.UUID]
    prompt_id: Mapped[uuid.UUID]
    text: Mapped[str]
    source: Mapped[Source]
    source_name: Mapped[str] = mapped_column(server_default="")
    """The importer's name for the model. Never shown to annotators."""
    checkpoint_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("checkpoints.id"), index=True)
    meta: Mapped[dict[str, Any]] = mapped_column(default=dict)
    """Tokens and log-probability by the sampler."""


class ComparisonState(StrEnum):
    open = "open"
    """Wants answers: served while it has open slots."""
    resolved = "resolved"
    """Has as many answers as its overlap asks for. An undo opens it again."""
    discarded = "discarded"
    """Taken out by a lead; its answers train nothing."""


class Comparison(Row):
    __tablename__ = "comparisons"
    __table_args__ = (
        CheckConstraint("open_slots >= 0 and open_slots <= overlap", name="open_slots"),
        UniqueConstraint("campaign_id", "fingerprint"),
        UniqueConstraint("campaign_id", "id"),
        ForeignKeyConstraint(["campaign_id", "prompt_id"], ["prompts.campaign_id", "prompts.id"], ondelete="CASCADE"),
        # The queue: read in this order, and only where somebody is still wanted.
        Index(
            "ix_comparisons_queue",
            "campaign_id",
            text("priority DESC"),
            "position",
            postgresql_where=text("state = 'open' AND open_slots > 0"),
        ),
        Index("ix_comparisons_batch_id", "batch_id"),
        Index("ix_comparisons_prompt_id", "prompt_id"),
    )

    MOVES: ClassVar[dict[ComparisonState, set[ComparisonState]]] = {
        ComparisonState.open: {ComparisonState.resolved, ComparisonState.discarded},
        ComparisonState.resolved: {ComparisonState.open, ComparisonState.discarded},
        ComparisonState.discarded: {ComparisonState.open},
    }

    campaign_id: Mapped[uuid.UUID]
    prompt_id: Mapped[uuid.UUID]
    batch_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("batches.id", ondelete="CASCADE"))
    state: Mapped[ComparisonState] = mapped_column(default=ComparisonState.open)
    overlap: Mapped[int]
    open_slots: Mapped[int]
    """How many more annotators are wanted: overlap less the live leases and the answers. Decremented by a claim."""
    priority: Mapped[float] = mapped_column(default=0.0)
    """Higher is served first; computed off-line, never in a request."""
    position: Mapped[int] = mapped_column(BigInteger, Identity())
    """Order of arrival, which breaks equal priorities."""
    fingerprint: Mapped[str]
    """Of the prompt and the completion texts: the same comparison is not stored twice in a campaign."""
    gold: Mapped[list[Any] | None]
    """A known ranking, as lists of completion ids, best first."""
    meta: Mapped[dict[str, Any]] = mapped_column(default=dict)


class ComparisonCompletion(Base):
    """Which completions a comparison holds, in the order they were given (which is never the order shown)."""

    __tablename__ = "comparison_completions"

    comparison_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("comparisons.id", ondelete="CASCADE"), primary_key=True)
    place: Mapped[int] = mapped_column(primary_key=True)
    completion_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("completions.id", ondelete="CASCADE"), index=True)
