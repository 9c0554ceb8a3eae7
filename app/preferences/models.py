"""Preference datasets and what went into them."""

import uuid
from typing import Any

from sqlalchemy import ForeignKey
from sqlalchemy.orm import Mapped, mapped_column

from app.core.db import Base, Row


class PreferenceDataset(Row):
    """An immutable snapshot. The files are named by their content, so the same labels give the same snapshot."""

    __tablename__ = "preference_datasets"

    campaign_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("campaigns.id", ondelete="CASCADE"), index=True)
    sha256: Mapped[str]
    """Of the two files' hashes."""
    train_uri: Mapped[str]
    held_out_uri: Mapped[str]
    train_pairs: Mapped[int]
    held_out_pairs: Mapped[int]
    ties: Mapped[int]
    """Ties and both-bad answers: counted, not trained on."""
    annotations: Mapped[int]
    filters: Mapped[dict[str, Any]] = mapped_column(default=dict)


class DatasetAnnotation(Base):
    """Lineage: which answers a snapshot was made from."""

    __tablename__ = "dataset_annotations"

    dataset_id: Mapped[uuid.UUID] = mapped_column(
        ForeignKey("preference_datasets.id", ondelete="CASCADE"), primary_key=True
    )
    annotation_id: Mapped[uuid.UUID] = mapped_column(
        ForeignKey("annotations.id", ondelete="CASCADE"), primary_key=True, index=True
    )
