"""What an annotator sees of a comparison, and in which order. Nothing here says where a completion came from."""

import random
import uuid
from collections import Counter
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.annotation.models import Assignment
from app.campaigns.models import Prompt
from app.comparisons.models import Comparison, ComparisonCompletion, Completion


def order(completions: list[str], first_before: Counter[str], rng: random.Random) -> list[str]:
    """A random order whose first place goes to one of those that have been first least often. Pure."""
    shuffled = rng.sample(completions, len(completions))
    least = min(first_before[c] for c in completions)
    first = next(c for c in shuffled if first_before[c] == least)
    shuffled.remove(first)
    return [first, *shuffled]


def draw(session: Session, comparison_id: uuid.UUID) -> list[str]:
    """The order for the next annotator of this comparison, balanced over those who had it before."""
    ids = session.scalars(
        select(ComparisonCompletion.completion_id)
        .where(ComparisonCompletion.comparison_id == comparison_id)
        .order_by(ComparisonCompletion.place)
    )
    shown = session.scalars(
        select(Assignment.shown[0].astext).where(
            Assignment.comparison_id == comparison_id, Assignment.shown != [], Assignment.shown.is_not(None)
        )
    )
    return order([str(i) for i in ids], Counter(shown), random.SystemRandom())


@dataclass(frozen=True)
class Shown:
    """An assignment as its annotator sees it. All ids are opaque."""

    id: str
    comparison_id: str
    prompt: list[dict[str, str]]
    completions: list[dict[str, str]]
    """`{id, text}` in the shown order, first on the left."""
    expires_at: datetime
    state: str

    def as_json(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "comparison_id": self.comparison_id,
            "prompt": self.prompt,
            "completions": self.completions,
            "expires_at": self.expires_at.isoformat(),
        }


def show(session: Session, assignment: Assignment) -> Shown:
    messages = session.scalar(
        select(Prompt.messages)
        .join(Comparison, Comparison.prompt_id == Prompt.id)
        .where(Comparison.id == assignment.comparison_id)
    )
    wanted = [uuid.UUID(i) for i in assignment.shown]
    texts = {
        str(i): t for i, t in session.execute(select(Completion.id, Completion.text).where(Completion.id.in_(wanted)))
    }
    return Shown(
        id=str(assignment.id),
        comparison_id=str(assignment.comparison_id),
        prompt=messages or [],
        completions=[{"id": i, "text": texts[i]} for i in assignment.shown],
        expires_at=assignment.expires_at,
        state=assignment.state,
    )
