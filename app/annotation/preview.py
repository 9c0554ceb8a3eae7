"""What an annotator would see, for a lead who wants to look before anybody is asked. Leases nothing."""

import uuid
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.campaigns.models import Prompt
from app.comparisons.models import Comparison, ComparisonCompletion, Completion


@dataclass(frozen=True)
class Sample:
    prompt: list[dict[str, str]]
    completions: list[str]
    """Empty while nothing has been sampled or imported."""


def sample(session: Session, campaign_id: uuid.UUID) -> Sample | None:
    """The comparison that is served first, else a prompt alone, else None."""
    first = session.execute(
        select(Comparison.id, Prompt.messages)
        .join(Prompt, Prompt.id == Comparison.prompt_id)
        .where(Comparison.campaign_id == campaign_id)
        .order_by(Comparison.priority.desc(), Comparison.position)
        .limit(1)
    ).first()
    if first is None:
        messages = session.scalar(select(Prompt.messages).where(Prompt.campaign_id == campaign_id).limit(1))
        return Sample(messages, []) if messages else None
    texts = session.scalars(
        select(Completion.text)
        .join(ComparisonCompletion, ComparisonCompletion.completion_id == Completion.id)
        .where(ComparisonCompletion.comparison_id == first.id)
        .order_by(ComparisonCompletion.place)
    )
    return Sample(first.messages, list(texts))
