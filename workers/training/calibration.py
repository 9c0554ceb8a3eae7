"""How far the probabilities of a reward model can be believed: pure functions of numbers (torch-free)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Bin:
    """Some predictions of similar confidence: how many, how sure they were on average, how often they were right."""

    count: int
    confidence: float
    accuracy: float


def log_loss(gaps: Sequence[float], outcomes: Sequence[float]) -> float:
    """Mean of -[y log σ(Δ) + (1-y) log σ(-Δ)], y the outcome in [0, 1]; log 2 for somebody who knows nothing."""
    if not gaps:
        return 0.0
    return math.fsum(_softplus(-gap) + (1 - y) * gap for gap, y in zip(gaps, outcomes, strict=True)) / len(gaps)


def reliability(gaps: Sequence[float], outcomes: Sequence[float], bins: int = 15) -> list[Bin]:
    """The reliability curve in bins of equal mass: predicted against observed.

    A prediction is for the side with the higher reward, with confidence σ(|Δ|) ≥ ½, and right to the degree y (or 1-y,
    when it was for the other side; ½ at Δ = 0). There are at most `bins`, whose sizes differ by one at most.
    """
    sure = sorted(
        (_sigmoid(abs(gap)), 0.5 if gap == 0 else y if gap > 0 else 1 - y)
        for gap, y in zip(gaps, outcomes, strict=True)
    )
    bins = min(bins, len(sure))
    curve = []
    for place in range(bins):
        part = sure[place * len(sure) // bins : (place + 1) * len(sure) // bins]
        curve.append(
            Bin(
                len(part),
                math.fsum(confidence for confidence, _ in part) / len(part),
                math.fsum(right for _, right in part) / len(part),
            )
        )
    return curve


def expected_calibration_error(curve: Sequence[Bin]) -> float:
    """Σ n_b / N |confidence_b - accuracy_b| (Naeini et al. 2015; Guo et al. 2017); 0 for nothing."""
    total = sum(one.count for one in curve)
    return sum(one.count * abs(one.confidence - one.accuracy) for one in curve) / total if total else 0.0


def _sigmoid(value: float) -> float:
    return math.exp(-_softplus(-value))


def _softplus(value: float) -> float:
    """log(1 + e^x) without overflow."""
    return max(value, 0.0) + math.log1p(math.exp(-abs(value)))
