"""Annotators, assignments (leases) and annotations (answers, versioned)."""

import uuid
from datetime import datetime
from enum import StrEnum
from typing import Any, ClassVar

from sqlalchemy import ForeignKey, ForeignKeyConstraint, Index, UniqueConstraint, func, text
from sqlalchemy.orm import Mapped, mapped_column

from app.core.db import Row


class AnnotatorKind(StrEnum):
    human = "human"
    ai = "ai"


class Annotator(Row):
    """Who ranks. Apart from `users`, so that labels can outlive an account and exports name nobody."""

    __tablename__ = "annotators"

    kind: Mapped[AnnotatorKind] = mapped_column(default=AnnotatorKind.human)
    user_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("users.id", ondelete="SET NULL"), unique=True)
    label: Mapped[str] = mapped_column(server_default="")
    """For imported annotators: what the source file calls them."""
    campaign_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("campaigns.id", ondelete="CASCADE"))
    """For imported annotators: the campaign they were imported into."""


class AssignmentState(StrEnum):
    leased = "leased"
    """With an annotator until `expires_at`. *Expired* is the clock's: computed, not stored."""
    submitted = "submitted"
    """Answered. Undoing the answer makes it leased again."""
    skipped = "skipped"
    """The annotator declined, with a reason; the slot went back and they are not asked again, unless they undo it."""
    released = "released"
    """The lease ran out and the slot went back. A late answer is kept all the same."""


class Assignment(Row):
    """A lease of one comparison to one annotator."""

    __tablename__ = "assignments"
    __table_args__ = (
        UniqueConstraint("comparison_id", "annotator_id"),  # nobody is asked the same thing twice
        UniqueConstraint("campaign_id", "id"),
        ForeignKeyConstraint(
            ["campaign_id", "comparison_id"], ["comparisons.campaign_id", "comparisons.id"], ondelete="CASCADE"
        ),
        Index(
            "ix_assignments_live",
            "annotator_id",
            "campaign_id",
            "leased_at",
            postgresql_where=text("state = 'leased'"),
        ),
        Index("ix_assignments_expiry", "expires_at", postgresql_where=text("state = 'leased'")),
        Index("ix_assignments_campaign_id_annotator_id", "campaign_id", "annotator_id"),
    )

    MOVES: ClassVar[dict[AssignmentState, set[AssignmentState]]] = {
        AssignmentState.leased: {AssignmentState.submitted, AssignmentState.skipped, AssignmentState.released},
        AssignmentState.submitted: {AssignmentState.leased},
        AssignmentState.skipped: {AssignmentState.leased, AssignmentState.released},
        AssignmentState.released: {AssignmentState.submitted, AssignmentState.leased},
    }

    campaign_id: Mapped[uuid.UUID]
    comparison_id: Mapped[uuid.UUID]
    annotator_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("annotators.id", ondelete="CASCADE"))
    state: Mapped[AssignmentState] = mapped_column(default=AssignmentState.leased)
    shown: Mapped[list[Any]]
    """Completion ids in the order shown to this annotator, first on the left."""
    leased_at: Mapped[datetime] = mapped_column(server_default=func.now())
    expires_at: Mapped[datetime]
    skip_reason: Mapped[str] = mapped_column(server_default="")
    skip_comment: Mapped[str] = mapped_column(server_default="")
    skipped_at: Mapped[datetime | None]


class Annotation(Row):
    """One version of one answer. Rows are never edited: an edit or an undo supersedes the version before."""

    __tablename__ = "annotations"
    __table_args__ = (
        UniqueConstraint("assignment_id", "version"),
        UniqueConstraint("assignment_id", "idempotency_key"),
        ForeignKeyConstraint(
            ["campaign_id", "comparison_id"], ["comparisons.campaign_id", "comparisons.id"], ondelete="CASCADE"
        ),
        ForeignKeyConstraint(
            ["campaign_id", "assignment_id"], ["assignments.campaign_id", "assignments.id"], ondelete="CASCADE"
        ),
        Index(
            "uq_annotations_current",
            "assignment_id",
            unique=True,
            postgresql_where=text("superseded_at IS NULL"),
        ),
        Index(
            "ix_annotations_campaign_current",
            "campaign_id",
            "created_at",
            postgresql_where=text("superseded_at IS NULL"),
        ),
        Index("ix_annotations_comparison_id", "comparison_id"),
        Index("ix_annotations_annotator_id_created_at", "annotator_id", "created_at"),
    )

    campaign_id: Mapped[uuid.UUID]
    comparison_id: Mapped[uuid.UUID]
    assignment_id: Mapped[uuid.UUID]
    annotator_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("annotators.id", ondelete="CASCADE"))
    version: Mapped[int] = mapped_column(default=1)
    ranking: Mapped[list[Any]]
    """Groups of completion ids, best group first; ids in one group are tied."""
    strength: Mapped[int | None]
    """How much better the first group is: 1 is slightly; the campaign's scale says how far it goes. None for a tie."""
    flags: Mapped[list[Any]] = mapped_column(default=list)
    """Such as `both_bad`."""
    reasons: Mapped[list[Any]] = mapped_column(default=list)
    comment: Mapped[str] = mapped_column(server_default="")
    elapsed_ms: Mapped[int | None]
    """From shown to submitted, by the annotator's browser."""
    surplus: Mapped[bool] = mapped_column(default=False)
    """Came after the lease had run out and somebody else had taken the slot: kept, shown, not counted."""
    imported: Mapped[bool] = mapped_column(default=False)
    guidelines_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("guidelines.id"))
    idempotency_key: Mapped[str]
    superseded_at: Mapped[datetime | None]
