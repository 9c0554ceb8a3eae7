"""Figures that say how good a model is: pure functions, plus the KL between two policies on given samples (torch-free
except for the latter)."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from workers.training.nets import Policy
    from workers.training.tokens import Example


def distinct_n(texts: Sequence[str], n: int) -> float:
    """Different n-grams of words over all n-grams, the whole set taken together (Li et al. 2016); 0 without any."""
    grams = [tuple(words[i : i + n]) for words in (text.split() for text in texts) for i in range(len(words) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0


def wilson(successes: float, trials: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's score interval for a proportion, 95 % by default; successes may hold halves for ties. (0, 1) for none.

    (p + z²/2n ± z √(p(1-p)/n + z²/4n²)) / (1 + z²/n), Wilson 1927.
    """
    if trials == 0:
        return 0.0, 1.0
    share, shrink = successes / trials, 1 + z * z / trials
    middle = (share + z * z / (2 * trials)) / shrink
    half = z / shrink * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    return max(0.0, middle - half), min(1.0, middle + half)


def wins(first: Sequence[float], second: Sequence[float]) -> float:
    """How often `first` scores above `second`, ties counted as half."""
    return sum(1.0 if a > b else 0.5 if a == b else 0.0 for a, b in zip(first, second, strict=True))


def mean(values: Sequence[float]) -> float:
    """Arithmetic mean; 0 for nothing."""
    return math.fsum(values) / len(values) if values else 0.0


def log_prob_sums(
    policy: "Policy", examples: "Sequence[Example]", tokens: int, temperature: float = 1.0
) -> list[float]:
    """log π(completion | prompt), summed over tokens, of each example, without gradients."""
    import torch

    sums = [0.0] * len(examples)
    with torch.no_grad():
        for group, batch in policy.passes(examples, tokens):
            log_probs = policy.log_probs(batch, temperature)
            for index, value in zip(group, log_probs.double().sum(1).tolist(), strict=True):
                sums[index] = value
    return sums


def sequence_kl(new: Sequence[float], other: Sequence[float]) -> float:
    """KL(new ‖ other) in nats per sequence: the mean of log π_new - log π_other over samples *from new* (k1)."""
    return mean([a - b for a, b in zip(new, other, strict=True)])
