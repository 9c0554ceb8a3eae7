"""Checkpoints. Policy, reference policy and reward model are roles that they play, not kinds of storage."""

import uuid
from enum import StrEnum
from typing import Any

from sqlalchemy import ForeignKey
from sqlalchemy.orm import Mapped, mapped_column

from app.core.db import Row


class CheckpointKind(StrEnum):
    policy = "policy"
    """A causal language model with a chat template."""
    reward = "reward"
    """The same body with a scalar head."""


class Checkpoint(Row):
    """A row exists only if the directory behind `uri` is complete (its manifest is there)."""

    __tablename__ = "checkpoints"

    campaign_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("campaigns.id", ondelete="CASCADE"), index=True)
    """None for a base model, which any campaign may start from."""
    name: Mapped[str]
    kind: Mapped[CheckpointKind]
    uri: Mapped[str]
    """fsspec URL of a transformers directory, or `hub:<owner/name>` for a base model of the Hugging Face hub."""
    manifest_sha256: Mapped[str] = mapped_column(server_default="")
    parent_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("checkpoints.id"))
    """What training started from."""
    run_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("runs.id", use_alter=True), unique=True)
    metrics: Mapped[dict[str, Any]] = mapped_column(default=dict)
