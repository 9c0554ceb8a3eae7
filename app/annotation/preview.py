"""What an annotator would see, for a lead who wants to look before anybody is asked. Leases nothing."""

from datetime import UTC, datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.annotation.presentation import Shown
from app.campaigns.models import Campaign, Prompt
from app.comparisons.models import Comparison, ComparisonCompletion, Completion

STAND_INS = ("One answer of the model will stand here.", "Another answer of the model will stand here.")


def sample(session: Session, campaign: Campaign) -> Shown | None:
    """The comparison that is served first; else a prompt with stand-ins for completions; else None."""
    first = session.execute(
        select(Comparison.id, Prompt.messages)
        .join(Prompt, Prompt.id == Comparison.prompt_id)
        .where(Comparison.campaign_id == campaign.id)
        .order_by(Comparison.priority.desc(), Comparison.position)
        .limit(1)
    ).first()
    if first is None:
        messages = session.scalar(
            select(Prompt.messages).where(Prompt.campaign_id == campaign.id).order_by(Prompt.fingerprint).limit(1)
        )
        return _shown(messages, [(str(n), text) for n, text in enumerate(STAND_INS)]) if messages else None
    completions = session.execute(
        select(Completion.id, Completion.text)
        .join(ComparisonCompletion, ComparisonCompletion.completion_id == Completion.id)
        .where(ComparisonCompletion.comparison_id == first.id)
        .order_by(ComparisonCompletion.place)
    )
    return _shown(first.messages, [(str(i), text) for i, text in completions])


def _shown(messages: list[dict[str, str]], completions: list[tuple[str, str]]) -> Shown:
    return Shown(
        id="preview",
        comparison_id="preview",
        prompt=messages,
        completions=[{"id": i, "text": text} for i, text in completions[:2]],
        expires_at=datetime.now(UTC),
        state="preview",
    )
