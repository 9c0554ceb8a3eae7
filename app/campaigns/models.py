"""Campaigns, their guidelines and their prompts."""

import uuid
from enum import StrEnum
from typing import Any, ClassVar

from sqlalchemy import CheckConstraint, ForeignKey, Index, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from app.core.db import Row


class CampaignKind(StrEnum):
    """What annotators are asked for."""

    pairwise = "pairwise"
    """Which of two completions is better, and by how much."""


class CampaignState(StrEnum):
    draft = "draft"
    """Being set up: nobody is served. Activating needs prompts or comparisons."""
    active = "active"
    """Annotators are served; rounds may run."""
    paused = "paused"
    """Nobody is served and no round starts; what is leased may still be submitted."""
    closed = "closed"
    """For good. Everything can still be read and exported."""


class Campaign(Row):
    __tablename__ = "campaigns"
    __table_args__ = (CheckConstraint("overlap between 1 and 50", name="overlap"),)

    MOVES: ClassVar[dict[CampaignState, set[CampaignState]]] = {
        CampaignState.draft: {CampaignState.active, CampaignState.closed},
        CampaignState.active: {CampaignState.paused, CampaignState.closed},
        CampaignState.paused: {CampaignState.active, CampaignState.closed},
        CampaignState.closed: set(),
    }

    name: Mapped[str]
    kind: Mapped[CampaignKind]
    state: Mapped[CampaignState] = mapped_column(default=CampaignState.draft)
    overlap: Mapped[int] = mapped_column(default=1)
    """How many annotators judge each comparison."""
    scale: Mapped[int] = mapped_column(default=7)
    """Steps of the preference scale: 2, 4 and 8 have no tie in the middle, 5 and 7 do."""
    policy_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("checkpoints.id", use_alter=True))
    """The current policy: what the next batch is sampled from and the next round starts from."""
    initial_policy_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("checkpoints.id", use_alter=True))
    """The policy that the campaign began with; later ones are measured against it."""
    recipe: Mapped[dict[str, Any]] = mapped_column(default=dict)
    """A `rounds.recipes.RoundRecipe`."""
    created_by: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("users.id", ondelete="SET NULL"))


class Guidelines(Row):
    """One version of a campaign's instructions to annotators. Versions are never edited; a change is a new one."""

    __tablename__ = "guidelines"
    __table_args__ = (UniqueConstraint("campaign_id", "version"),)

    campaign_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("campaigns.id", ondelete="CASCADE"))
    version: Mapped[int]
    text: Mapped[str]
    """Markdown."""
    created_by: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("users.id", ondelete="SET NULL"))


class Split(StrEnum):
    train = "train"
    held_out = "held_out"
    """Never trained on: rewards and policies are measured on these prompts."""


class Prompt(Row):
    """Input to a model: a list of chat messages. The same prompt is stored once per campaign."""

    __tablename__ = "prompts"
    __table_args__ = (
        UniqueConstraint("campaign_id", "fingerprint"),
        UniqueConstraint("campaign_id", "id"),
        Index("ix_prompts_campaign_id_samples", "campaign_id", "samples"),
    )

    campaign_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("campaigns.id", ondelete="CASCADE"))
    messages: Mapped[list[Any]]
    fingerprint: Mapped[str]
    split: Mapped[Split]
    """Decided by the fingerprint alone, so a prompt never changes sides."""
    samples: Mapped[int] = mapped_column(default=0)
    """How many batches have been sampled for it: the least sampled prompts come first."""
