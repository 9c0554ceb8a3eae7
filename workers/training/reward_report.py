"""What `report.json` of a reward model says: pure functions of judged pairs with their rewards.

Decided pairs (people did not call them a tie) count for accuracy, log-loss and calibration; a pair to which the model
gives equal rewards is half right. Intervals are Wilson's at 95 % and treat pairs as independent, which the pairs of
one ranking are not quite. Names are TRL's where it has one (`accuracy`, `margin`, `min_reward`, …).
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from workers.training.calibration import expected_calibration_error, log_loss, reliability
from workers.training.comparisons import TokenComparison, pairs_of
from workers.training.evaluation import mean, wilson
from workers.training.monitors import spearman

_FEW = 30  # a slice with fewer decided pairs raises no alarm


@dataclass(frozen=True)
class JudgedPair:
    """One pair as people and the model saw it.

    gap: raw reward of `better` less that of `worse`. outcome: probability that `better` is better, ½ for a tie.
    longer: tokens of `better` less those of `worse`.
    """

    gap: float
    outcome: float
    longer: int
    annotator: str
    source: str


def judged_pairs(comparisons: Sequence[TokenComparison], rewards: Sequence[float]) -> list[JudgedPair]:
    """All pairs of the comparisons; `rewards` (C,) of their completions, one comparison after another."""
    found, start = [], 0
    for comparison in comparisons:
        judged, sizes = comparison.judged, [len(example.completion) for example in comparison.examples]
        for better, worse, outcome in pairs_of(judged):
            gap = rewards[start + better] - rewards[start + worse]
            found.append(JudgedPair(gap, outcome, sizes[better] - sizes[worse], judged.annotator, judged.source))
        start += len(comparison.examples)
    return found


def score(pairs: Iterable[JudgedPair]) -> tuple[float, int]:
    """Pairs won, of pairs decided."""
    decided = [pair for pair in pairs if pair.outcome != 0.5]
    return sum(_right(pair) for pair in decided), len(decided)


def quality(pairs: Sequence[JudgedPair]) -> dict[str, Any]:
    """Accuracy with its interval, log-loss, calibration, and all that by slices."""
    won, decided = score(pairs)
    sure = [pair for pair in pairs if pair.outcome != 0.5]
    gaps, outcomes = [pair.gap for pair in sure], [pair.outcome for pair in sure]
    curve = reliability(gaps, outcomes)
    ties = len(pairs) - decided
    return {
        **_share(pairs),
        "pairs": len(pairs),
        "ties": ties,
        "accuracy_ties_half": (won + 0.5 * ties) / len(pairs) if pairs else 0.5,
        "margin": mean([pair.gap if pair.outcome >= 0.5 else -pair.gap for pair in sure]),
        "log_loss": log_loss(gaps, outcomes),
        "ece": expected_calibration_error(curve),
        "reliability": [asdict(one) for one in curve],
        "slices": {
            "annotator": _slices((pair.annotator, pair) for pair in pairs),
            "source": _slices((pair.source, pair) for pair in pairs),
            "chosen_is": _slices((_length(pair), pair) for pair in sure),
            "confidence": _slices((_sureness(pair), pair) for pair in sure),
        },
    }


def rewards_summary(comparisons: Sequence[TokenComparison], rewards: Sequence[float]) -> dict[str, float]:
    """Range of the raw rewards, and how they go with length."""
    lengths = [len(example.completion) for comparison in comparisons for example in comparison.examples]
    return {
        "min_reward": min(rewards),
        "mean_reward": mean(rewards),
        "max_reward": max(rewards),
        "reward_length_spearman": spearman(rewards, lengths),
    }


def repeated_judgements(comparisons: Sequence[TokenComparison]) -> dict[str, float]:
    """How much people agree where the same two completions were compared several times; {} where none were.

    `agreement` A is the share of pairs of answers to one comparison that agree (ties left out). No model can be right
    more often than people are with themselves: were all pairs answered rightly with one probability p, then A = p² +
    (1-p)², hence `noise_ceiling` = p = ½ (1 + √(2A-1)). It is an upper bound where p varies, A a lower one.
    """
    votes: dict[tuple[Any, ...], Counter[bool]] = defaultdict(Counter)
    for comparison in comparisons:
        for better, worse, outcome in pairs_of(comparison.judged):
            if outcome != 0.5:
                first, second = ((tuple(comparison.examples[i].completion)) for i in (better, worse))
                key = (tuple(comparison.examples[better].prompt), *sorted((first, second)))
                votes[key][(first <= second) == (outcome > 0.5)] += 1
    several = [count for count in votes.values() if count.total() > 1]
    answers = sum(math.comb(count.total(), 2) for count in several)
    if not answers:
        return {}
    agreement = sum(math.comb(n, 2) for count in several for n in count.values()) / answers
    return {
        "repeated": len(several),
        "agreement": agreement,
        "noise_ceiling": 0.5 * (1 + math.sqrt(max(0.0, 2 * agreement - 1))),
    }


def alarms(section: dict[str, Any]) -> list[str]:
    """What somebody should look at before using the model."""
    found = []
    shorter = section["slices"]["chosen_is"].get("shorter")
    if section["reward_length_spearman"] > 0.5:
        found.append("The reward follows the length of completions (rank correlation above 0.5).")
    if shorter and shorter["decided"] >= _FEW and shorter["accuracy"] < 0.5:
        found.append("Where people chose the shorter completion, the model is wrong more often than right.")
    if section["decided"] >= _FEW and section["accuracy_low"] <= 0.5:
        found.append("The accuracy cannot be told from guessing.")
    if section["decided"] >= 20 * _FEW and section["ece"] > 0.1:
        found.append("Confidence and accuracy differ by more than 0.1 on average: rewards are too large or too small.")
    if section.get("pad_invariance", 0.0) > 0.01:
        found.append("Rewards depend on what else is in the batch (difference above 0.01): do not use this model.")
    return found


def _right(pair: JudgedPair) -> float:
    toward = pair.gap if pair.outcome > 0.5 else -pair.gap
    return 1.0 if toward > 0 else 0.5 if toward == 0 else 0.0


def _share(pairs: Sequence[JudgedPair]) -> dict[str, float]:
    won, decided = score(pairs)
    low, high = wilson(won, decided)
    share = won / decided if decided else 0.5
    return {"accuracy": share, "accuracy_low": low, "accuracy_high": high, "decided": decided}


def _slices(named: Iterable[tuple[str, JudgedPair]]) -> dict[str, dict[str, float]]:
    """Accuracy and log-loss of each group with a name; a single group is the whole, and left out."""
    groups: dict[str, list[JudgedPair]] = defaultdict(list)
    for name, pair in named:
        groups[name].append(pair)
    if len(groups) < 2:
        return {}
    return {
        name: _share(group) | {"log_loss": log_loss([p.gap for p in group], [p.outcome for p in group])}
        for name, group in sorted(groups.items())
    }


def _length(pair: JudgedPair) -> str:
    longer = pair.longer if pair.outcome > 0.5 else -pair.longer
    return "longer" if longer > 0 else "shorter" if longer < 0 else "equal"


def _sureness(pair: JudgedPair) -> str:
    sure = max(pair.outcome, 1 - pair.outcome)
    return "certain" if sure == 1 else "0.75 and more" if sure >= 0.75 else "below 0.75"
