"""Ranked completions as token ids, and what a ranking says about each pair of them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from workers.training.records import Comparison
from workers.training.report import Reporter
from workers.training.tokens import Codec, Example, truncate


@dataclass(frozen=True)
class TokenComparison:
    """The completions of one prompt, and the comparison that ranks them."""

    examples: tuple[Example, ...]
    judged: Comparison

    @property
    def tokens(self) -> int:
        return sum(len(example) for example in self.examples)


@dataclass(frozen=True)
class PairLabels:
    """What some comparisons say about the pairs of their completions, all (P,).

    `better` and `worse` index the completions of all comparisons, one comparison after another. `confidence` is the
    probability that `better` is better, ½ for a tie. The weight of a comparison is shared out evenly among its pairs,
    so that a prompt with nine completions does not count 36 times (Ouyang et al. 2022, §3.5).
    """

    better: Tensor
    worse: Tensor
    confidence: Tensor
    margin: Tensor
    weight: Tensor
    comparison: Tensor


@dataclass(frozen=True)
class Rankings:
    """Comparisons as whole rankings, padded: `index` and `places` (B, K), the rest (B,).

    `index` points into the completions of all comparisons, one comparison after another; `places` is 0 for the best,
    equal within a group, and -1 for padding and for completions that were not ranked. `ties` says whether a group
    means equally good, and `confidence` is the comparison's.
    """

    index: Tensor
    places: Tensor
    ties: Tensor
    confidence: Tensor
    weight: Tensor


def pairs_of(judged: Comparison) -> list[tuple[int, int, float]]:
    """(better, worse, confidence) of every pair that the ranking orders or calls equal."""
    places = [(index, place) for place, group in enumerate(judged.ranking) for index in group]
    found = []
    for (a, place_a), (b, place_b) in combinations(places, 2):
        if place_a != place_b:
            found.append((a, b, judged.confidence))
        elif judged.ties:
            found.append((a, b, 0.5))
    return found


def pair_labels(comparisons: Sequence[TokenComparison], device: torch.device | str = "cpu") -> PairLabels:
    """The pairs of all `comparisons` as tensors."""
    rows: list[tuple[float, ...]] = []
    start = 0
    for place, comparison in enumerate(comparisons):
        judged, pairs = comparison.judged, pairs_of(comparison.judged)
        for better, worse, confidence in pairs:
            share = judged.weight / len(pairs)
            margin = judged.margin if confidence != 0.5 else 0.0  # of equally good ones neither should be ahead
            rows.append((start + better, start + worse, place, confidence, margin, share))
        start += len(comparison.examples)
    columns = torch.tensor(rows, dtype=torch.float64).reshape(-1, 6).T
    better_at, worse_at, of = columns[:3].long().to(device)
    confidences, margins, weights = columns[3:].float().to(device)
    return PairLabels(better_at, worse_at, confidences, margins, weights, of)


def rankings(comparisons: Sequence[TokenComparison], device: torch.device | str = "cpu") -> Rankings:
    """The rankings of all `comparisons` as tensors."""
    widest = max((len(comparison.examples) for comparison in comparisons), default=1)
    index = torch.zeros(len(comparisons), widest, dtype=torch.long)
    places = torch.full((len(comparisons), widest), -1)
    start = 0
    for row, comparison in enumerate(comparisons):
        count = len(comparison.examples)
        index[row, :count] = torch.arange(start, start + count)
        for place, group in enumerate(comparison.judged.ranking):
            places[row, list(group)] = place
        start += count
    judged = [comparison.judged for comparison in comparisons]
    ties = torch.tensor([j.ties for j in judged], dtype=torch.bool)
    numbers = torch.tensor([[j.confidence, j.weight] for j in judged], dtype=torch.float32).reshape(-1, 2)
    confidence, weight = numbers.T
    return Rankings(*(tensor.to(device) for tensor in (index, places, ties, confidence, weight)))


def examples_of(comparisons: Iterable[TokenComparison]) -> list[Example]:
    """All completions, one comparison after another."""
    return [example for comparison in comparisons for example in comparison.examples]


def encode(codec: Codec, rows: Sequence[Comparison], max_length: int, report: Reporter) -> list[TokenComparison]:
    """Comparisons as tokens; those whose prompt alone fills `max_length` are left out, and that is reported."""
    kept: list[TokenComparison] = []
    for row in rows:
        cut = truncate(codec.encode(row.prompt, *row.completions), max_length)
        if cut is not None:
            kept.append(TokenComparison(tuple(cut), row))
    if len(kept) < len(rows):
        report.log(
            f"{len(rows) - len(kept)} of {len(rows)} comparisons left out: "
            f"their prompt alone fills {max_length} tokens."
        )
    return kept
