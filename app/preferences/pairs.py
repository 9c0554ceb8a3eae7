"""From rankings to preference pairs. Pure.

One answer of any size weighs 1: a ranking that orders n pairs gives each of them the weight 1/n (InstructGPT normalises
by C(K, 2) for the same reason). Ties order nothing and give no pair.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from app.annotation.ranking import Ranking


@dataclass(frozen=True)
class Answered:
    """A current, counted answer with the texts it is about."""

    annotation_id: str
    comparison_id: str
    annotator: str
    """A pseudonym."""
    prompt: list[dict[str, str]]
    texts: dict[str, str]
    """Completion id to text."""
    ranking: Ranking
    strength: int | None
    strengths: int
    """How many degrees of strength the scale has."""
    held_out: bool
    batch_id: str
    guidelines_version: int | None


def pairs(answers: Iterable[Answered]) -> Iterator[tuple[Answered, dict[str, Any]]]:
    """`(answer, row)` for each strictly ordered pair; the row is conversational and has TRL's column names."""
    for answer in answers:
        ordered = answer.ranking.pairs()
        for better, worse in ordered:
            yield (
                answer,
                {
                    "prompt": answer.prompt,
                    "chosen": [{"role": "assistant", "content": answer.texts[better]}],
                    "rejected": [{"role": "assistant", "content": answer.texts[worse]}],
                    "margin": round((answer.strength or 1) / answer.strengths, 6),
                    "weight": round(1 / len(ordered), 6),
                    "comparison_id": answer.comparison_id,
                    "annotation_id": answer.annotation_id,
                    "annotator": answer.annotator,
                    "chosen_id": better,
                    "rejected_id": worse,
                    "batch_id": answer.batch_id,
                    "guidelines_version": answer.guidelines_version,
                },
            )
