"""The checkpoints of a campaign as a tree that can be read as a list: what came from what, and which one is current."""

import uuid
from dataclasses import dataclass
from typing import Any

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from app.campaigns.models import Campaign
from app.checkpoints import lineage
from app.checkpoints.models import Checkpoint, CheckpointKind
from app.rounds.models import Round, Run

DEEPEST = 4
"""Further indentation helps nobody; the parent's name stands in the row."""


@dataclass
class Leaf:
    """A checkpoint in its place."""

    checkpoint: Checkpoint
    parent: Checkpoint | None
    round: Round | None
    """The round that made it; none for a base model."""
    depth: int
    is_current: bool
    is_initial: bool

    @property
    def is_policy(self) -> bool:
        return self.checkpoint.kind is CheckpointKind.policy

    @property
    def metrics(self) -> dict[str, Any]:
        return self.checkpoint.metrics


def leaves(db: Session, campaign: Campaign) -> list[Leaf]:
    """Oldest first. The way to the current policy keeps to the left; what branched off it is indented."""
    found = _checkpoints(db, campaign)
    rounds = _rounds(db, campaign)
    children: dict[uuid.UUID | None, list[Checkpoint]] = {}
    for checkpoint in found.values():
        children.setdefault(checkpoint.parent_id if checkpoint.parent_id in found else None, []).append(checkpoint)
    trunk = _trunk(db, campaign, found)
    made: list[Leaf] = []

    def walk(start: Checkpoint, depth: int) -> None:
        here: Checkpoint | None = start
        while here is not None:
            parent = found.get(here.parent_id) if here.parent_id else None
            made.append(
                Leaf(
                    checkpoint=here,
                    parent=parent,
                    round=rounds.get(here.run_id) if here.run_id else None,
                    depth=min(depth, DEEPEST),
                    is_current=here.id == campaign.policy_id,
                    is_initial=here.id == campaign.initial_policy_id,
                )
            )
            own = children.get(here.id, [])
            onward = _onward(own, trunk)
            for child in own:
                if child is not onward:
                    walk(child, depth + 1)
            here = onward

    for root in children.get(None, []):
        walk(root, 0)
    return made


def _onward(children: list[Checkpoint], trunk: set[uuid.UUID]) -> Checkpoint | None:
    """Which child goes on at the same level: the one towards the current policy."""
    return next((child for child in children if child.id in trunk), None)


def _trunk(db: Session, campaign: Campaign, found: dict[uuid.UUID, Checkpoint]) -> set[uuid.UUID]:
    current = found.get(campaign.policy_id) if campaign.policy_id else None
    return {current.id, *(c.id for c in lineage.ancestors(db, current))} if current else set()


def _checkpoints(db: Session, campaign: Campaign) -> dict[uuid.UUID, Checkpoint]:
    """The campaign's own, and the base models that it has to do with."""
    own = select(Checkpoint).where(Checkpoint.campaign_id == campaign.id)
    parents = select(Checkpoint.parent_id).where(Checkpoint.campaign_id == campaign.id)
    bases = select(Checkpoint).where(
        Checkpoint.campaign_id.is_(None),
        or_(Checkpoint.id.in_(parents), Checkpoint.id.in_([campaign.policy_id, campaign.initial_policy_id])),
    )
    rows = [*db.scalars(bases), *db.scalars(own)]
    return {checkpoint.id: checkpoint for checkpoint in sorted(rows, key=lambda c: c.created_at)}


def _rounds(db: Session, campaign: Campaign) -> dict[uuid.UUID, Round]:
    """The round behind each run."""
    rows = db.execute(select(Run.id, Round).join(Round, Round.id == Run.round_id).where(Run.campaign_id == campaign.id))
    return {row.id: row.Round for row in rows}
