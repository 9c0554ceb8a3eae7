"""The figures that say how a policy and its reward are doing, as one flat report (pure, torch-free).

Names are TRL's where it has one (`completions/…`, `entropy`, `reward_std`).
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from workers.training import evaluation, texts
from workers.training.evaluation import mean

if TYPE_CHECKING:
    from workers.training.samplers import Drawn


def of_completions(drawn: "Sequence[Drawn]") -> dict[str, float]:
    """Length, ending, variety, repetition, form and manner; entropy where the log-probabilities are known."""
    said = [d.text for d in drawn]
    lengths = [d.length for d in drawn]
    ended = [d.length for d in drawn if d.ended]
    top, unique = texts.openers([d.tokens or d.text.split() for d in drawn])
    known = all(d.log_probs for d in drawn)
    return {
        "mean_length": mean(lengths),
        "completions/min_length": min(lengths, default=0),
        "completions/max_length": max(lengths, default=0),
        "completions/mean_terminated_length": mean(ended),
        "completions/clipped_ratio": 1 - len(ended) / max(1, len(lengths)),
        "eos_rate": len(ended) / max(1, len(lengths)),
        **({"entropy": evaluation.entropy([d.log_probs for d in drawn])} if known else {}),
        "distinct_1": texts.distinct_n(said, 1),
        "distinct_2": texts.distinct_n(said, 2),
        "distinct_3": texts.distinct_n(said, 3),
        "self_bleu": texts.self_bleu(said),
        "repetition": texts.repetition(said),
        "opener_top_share": top,
        "opener_unique_ratio": unique,
        "markdown_rate": texts.markdown_rate(said),
        "code_fence_rate": texts.code_fence_rate(said),
        "apology_rate": texts.apology_rate(said),
        "praise_rate": texts.praise_rate(said),
        "refusal_rate": texts.refusal_rate(said),
    }


def of_rewards(
    rewards: Sequence[float], lengths: Sequence[float], old_rewards: Sequence[float], old_lengths: Sequence[float]
) -> dict[str, float]:
    """Win rate, plain and at equal length, level and spread of the reward, and what length has to do with it."""
    won = evaluation.wins(rewards, old_rewards)
    low, high = evaluation.wilson(won, len(rewards))
    gaps = [new - old for new, old in zip(lengths, old_lengths, strict=True)]
    fair = evaluation.length_controlled(evaluation.outcomes(rewards, old_rewards), gaps)
    share = length_share(rewards, lengths, old_rewards, old_lengths)
    gain, gain_low, gain_high = evaluation.paired_bootstrap(rewards, old_rewards)
    return {
        "reward_win_rate": won / len(rewards),
        "reward_win_rate_low": low,
        "reward_win_rate_high": high,
        "reward_win_rate_at_equal_length": fair.rate,
        "reward_win_rate_at_equal_length_low": fair.low,
        "reward_win_rate_at_equal_length_high": fair.high,
        "reward_win_rate_length_slope": fair.slope,
        "reward": mean(rewards),
        "reward_std": evaluation.deviation(rewards),
        "baseline_reward": mean(old_rewards),
        "reward_gain": gain,
        "reward_gain_low": gain_low,
        "reward_gain_high": gain_high,
        "reward_length_spearman": spearman(rewards, lengths),
        **({} if share is None else {"reward_length_share": share}),
    }


def spearman(first: Sequence[float], second: Sequence[float]) -> float:
    """Rank correlation, ties at their mean rank; 0 where one of the two does not vary."""
    one, other = _ranks(first), _ranks(second)
    middle = (len(first) + 1) / 2
    cross = math.fsum((a - middle) * (b - middle) for a, b in zip(one, other, strict=True))
    scale = math.sqrt(math.fsum((a - middle) ** 2 for a in one) * math.fsum((b - middle) ** 2 for b in other))
    return cross / scale if scale else 0.0


def length_share(
    rewards: Sequence[float],
    lengths: Sequence[float],
    old_rewards: Sequence[float],
    old_lengths: Sequence[float],
    width: float = 20.0,
) -> float | None:
    """Share of the reward gain that completions won by being of other lengths (Singhal et al. 2023, §3).

    Both policies' completions are put into bins of `width` tokens; the gain within bins, weighted by the new policy's
    share of each, is what length does not explain: 1 - Σ_b p_new(b) (r̄_new(b) - r̄_old(b)) / (r̄_new - r̄_old), over the
    bins that both visit. None where the reward did not rise, or where they share no bin.
    """
    gain = mean(rewards) - mean(old_rewards)
    new_bins, old_bins = _binned(rewards, lengths, width), _binned(old_rewards, old_lengths, width)
    shared = new_bins.keys() & old_bins.keys()
    weight = sum(len(new_bins[b]) for b in shared)
    if gain <= 0 or not weight:
        return None
    within = math.fsum(len(new_bins[b]) * (mean(new_bins[b]) - mean(old_bins[b])) for b in sorted(shared)) / weight
    return 1 - within / gain


def fit_gold(distances: Sequence[float], rewards: Sequence[float]) -> tuple[float, float]:
    """α and β of R(d) = d (α - β log d), d = √KL, by least squares (Gao et al. 2023, eq. 1, reinforcement learning).

    R is the gain over the starting policy, whose own point (0, 0) adds nothing. The curve peaks at d = e^(α/β - 1).
    """
    points = [(d, d * math.log(d), r) for d, r in zip(distances, rewards, strict=True) if d > 0]
    aa = math.fsum(x * x for x, _, _ in points)
    ab = math.fsum(x * y for x, y, _ in points)
    bb = math.fsum(y * y for _, y, _ in points)
    ar = math.fsum(x * r for x, _, r in points)
    br = math.fsum(y * r for _, y, r in points)
    determinant = aa * bb - ab * ab
    if determinant <= 1e-12 * aa * bb:
        raise ValueError("Gao's curve needs points at two different distances.")
    return (ar * bb - br * ab) / determinant, (ar * ab - br * aa) / determinant


def _ranks(values: Sequence[float]) -> list[float]:
    order = sorted(range(len(values)), key=values.__getitem__)
    ranks = [0.0] * len(values)
    start = 0
    while start < len(order):
        end = start
        while end + 1 < len(order) and values[order[end + 1]] == values[order[start]]:
            end += 1
        for place in order[start : end + 1]:
            ranks[place] = (start + end) / 2 + 1
        start = end + 1
    return ranks


def _binned(rewards: Sequence[float], lengths: Sequence[float], width: float) -> dict[int, list[float]]:
    bins: dict[int, list[float]] = {}
    for reward, length in zip(rewards, lengths, strict=True):
        bins.setdefault(int(length // width), []).append(reward)
    return bins
