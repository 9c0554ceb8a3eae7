"""Comparing two policies: pure functions, plus the KL between two policies on given samples (torch-free except for the
latter)."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from workers.training.nets import Policy
    from workers.training.tokens import Example

_Z = 1.959964  # two-sided 95 %
_RIDGE = 0.01  # keeps a fit finite where every outcome is the same; a hundredth of one comparison's information


@dataclass(frozen=True)
class LengthControlled:
    """The win rate at equal length with its 95 % interval, and φ, the log-odds that length alone is worth."""

    rate: float
    low: float
    high: float
    slope: float


def wilson(successes: float, trials: int, z: float = _Z) -> tuple[float, float]:
    """Wilson's score interval for a proportion, 95 % by default; successes may hold halves for ties. (0, 1) for none.

    (p + z²/2n ± z √(p(1-p)/n + z²/4n²)) / (1 + z²/n), Wilson 1927.
    """
    if trials == 0:
        return 0.0, 1.0
    share, shrink = successes / trials, 1 + z * z / trials
    middle = (share + z * z / (2 * trials)) / shrink
    half = z / shrink * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    return max(0.0, middle - half), min(1.0, middle + half)


def outcomes(first: Sequence[float], second: Sequence[float]) -> list[float]:
    """1 where `first` scores above `second`, ½ for a tie, else 0."""
    return [1.0 if a > b else 0.5 if a == b else 0.0 for a, b in zip(first, second, strict=True)]


def wins(first: Sequence[float], second: Sequence[float]) -> float:
    """How often `first` scores above `second`, ties counted as half."""
    return math.fsum(outcomes(first, second))


def length_controlled(results: Sequence[float], gaps: Sequence[float]) -> LengthControlled:
    """The win rate that is left when both completions are equally long (Dubois et al. 2024, AlpacaEval 2).

    logit P(win) = θ + φ tanh(Δ/sd), Δ the difference in length (new - old) and sd its root mean square; `results` are
    1, ½ or 0. Maximum likelihood by Newton's method with a faint ridge on both; the rate is σ(θ), and its interval
    σ(θ ± 1.96 se) with se from the information matrix.
    """
    spread = math.sqrt(mean([gap * gap for gap in gaps])) or 1.0
    features = [math.tanh(gap / spread) for gap in gaps]
    theta = phi = 0.0
    for _ in range(50):
        shares = [_sigmoid(theta + phi * x) for x in features]
        errors = [result - share for result, share in zip(results, shares, strict=True)]
        weights = [share * (1 - share) for share in shares]
        slope_1 = math.fsum(errors) - _RIDGE * theta
        slope_2 = math.fsum(e * x for e, x in zip(errors, features, strict=True)) - _RIDGE * phi
        a = math.fsum(weights) + _RIDGE
        b = math.fsum(w * x for w, x in zip(weights, features, strict=True))
        c = math.fsum(w * x * x for w, x in zip(weights, features, strict=True)) + _RIDGE
        determinant = a * c - b * b
        step_1, step_2 = (c * slope_1 - b * slope_2) / determinant, (a * slope_2 - b * slope_1) / determinant
        damping = max(1.0, abs(step_1), abs(step_2))  # a full step from afar can overshoot
        theta, phi = theta + step_1 / damping, phi + step_2 / damping
        if max(abs(step_1), abs(step_2)) < 1e-9:
            break
    error = math.sqrt(c / determinant)
    return LengthControlled(_sigmoid(theta), _sigmoid(theta - _Z * error), _sigmoid(theta + _Z * error), phi)


def paired_bootstrap(
    new: Sequence[float], old: Sequence[float], draws: int = 1000, seed: int = 0
) -> tuple[float, float, float]:
    """Mean difference new - old over the same items, with its 95 % percentile interval (Efron 1979)."""
    differences = [a - b for a, b in zip(new, old, strict=True)]
    if not differences:
        return 0.0, 0.0, 0.0
    chance = random.Random(seed)
    means = sorted(mean(chance.choices(differences, k=len(differences))) for _ in range(draws))
    return mean(differences), means[int(0.025 * draws)], means[min(draws - 1, int(0.975 * draws))]


def regressed(new: Sequence[float], old: Sequence[float], noise: float = 0.0) -> bool:
    """Whether a capability fell: by more than twice its run-to-run deviation `noise` and one point, and not by chance.

    Scores lie between 0 and 1; by chance means that the paired bootstrap's interval reaches 0.
    """
    difference, _, high = paired_bootstrap(new, old)
    return difference < -max(2 * noise, 0.01) and high < 0.0


def mean(values: Sequence[float]) -> float:
    """Arithmetic mean; 0 for nothing."""
    return math.fsum(values) / len(values) if values else 0.0


def deviation(values: Sequence[float]) -> float:
    """Standard deviation with n - 1; 0 for fewer than two."""
    middle = mean(values)
    return math.sqrt(math.fsum((v - middle) ** 2 for v in values) / (len(values) - 1)) if len(values) > 1 else 0.0


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


def held_out_loss(policy: "Policy", examples: "Sequence[Example]", tokens: int) -> float:
    """-log π per token of demonstrations that nothing was trained on: Σ -log π(y|x) / Σ |y|, in nats."""
    counted = sum(sum(e.trained) if e.trained else len(e.completion) for e in examples)
    return -math.fsum(log_prob_sums(policy, examples, tokens)) / max(1, counted)


def sequence_kl(new: Sequence[float], other: Sequence[float]) -> float:
    """KL(new ‖ other) in nats per sequence: the mean of log π_new - log π_other over samples *from new* (k1)."""
    return mean([a - b for a, b in zip(new, other, strict=True)])


def token_kl(new: Sequence[float], other: Sequence[float], lengths: Sequence[int]) -> float:
    """The same per token: Σ (log π_new - log π_other) / Σ tokens."""
    return sequence_kl(new, other) * len(new) / max(1, sum(lengths))


def entropy(log_probs: Sequence[Sequence[float]]) -> float:
    """Entropy per token in nats, estimated without bias from the policy's own samples: the mean of -log π."""
    flat = [value for of_completion in log_probs for value in of_completion]
    return -mean(flat)


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))
