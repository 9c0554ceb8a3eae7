"""How far annotators agree, corrected for chance. Pure.

A *unit* is one comparison; its labels are what annotators said of it, reduced to a nominal value (for a pair: the
completion preferred, or "tie"). A figure for which there is too little data is None, never a NaN.
"""

import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import exp, sqrt

Units = dict[str, dict[str, str]]
"""Unit to annotator to label."""

MIN_UNITS = 5
"""Units with two labels or more below which no figure is given."""


@dataclass(frozen=True)
class Estimate:
    value: float | None
    low: float | None
    high: float | None
    count: int
    """What it was computed from: units for alpha, pairs of labels for agreement and kappa."""


NOT_ENOUGH = "not enough data"


def wilson(successes: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """The Wilson score interval of a share (Wilson 1927), 95 % by default."""
    centre = (successes + z * z / 2) / (n + z * z)
    half = z * sqrt(successes * (n - successes) / n + z * z / 4) / (n + z * z)
    return max(0.0, centre - half), min(1.0, centre + half)


def paired(units: Units) -> list[Sequence[str]]:
    """The labels of each unit that has at least two."""
    return [list(labels.values()) for labels in units.values() if len(labels) > 1]


def raw(units: Units) -> Estimate:
    """The share of pairs of annotators on the same comparison who said the same, with its Wilson interval."""
    same = total = 0
    for labels in paired(units):
        for a, b in combinations(labels, 2):
            same += a == b
            total += 1
    if len(paired(units)) < MIN_UNITS:
        return Estimate(None, None, None, total)
    return Estimate(same / total, *wilson(same, total), total)


Tally = Mapping[tuple[str, ...], int]
"""How many units have exactly these labels, in any order."""


def tally(units: Iterable[Sequence[str]]) -> Tally:
    return Counter(tuple(sorted(labels)) for labels in units)


def krippendorff_alpha(units: Tally) -> float | None:
    """Krippendorff's α for nominal data (Krippendorff 2011, §C); None when all have one value or nothing pairs."""
    coincidences: Counter[str] = Counter()
    observed = 0.0
    for labels, times in units.items():
        m = len(labels)
        for label, c in Counter(labels).items():
            coincidences[label] += times * c
            observed += times * c * (m - c) / (m - 1)
    n = sum(coincidences.values())
    expected = sum(c * (n - c) for c in coincidences.values()) / (n - 1) if n > 1 else 0
    return 1 - observed / expected if expected else None


def alpha(units: Units, samples: int = 500, seed: int = 0) -> Estimate:
    """α with a 95 % interval by bootstrap over units."""
    data = paired(units)
    if len(data) < MIN_UNITS:
        return Estimate(None, None, None, len(data))
    low, high = bootstrap(tally(data), samples, seed)
    return Estimate(krippendorff_alpha(tally(data)), low, high, len(data))


def bootstrap(units: Tally, samples: int, seed: int) -> tuple[float | None, float | None]:
    """The 2.5 and 97.5 percentiles of α over resamples of the units.

    A Poisson bootstrap (Hanley and MacGibbon 2006): each unit is drawn Poisson(1) times, hence units with the same
    labels together Poisson(how many) times. So ten thousand comparisons take no longer than ten.
    """
    rng = random.Random(seed)
    found = []
    for _ in range(samples):
        drawn = {labels: drawn for labels, times in units.items() if (drawn := _poisson(rng, times))}
        if (value := krippendorff_alpha(drawn)) is not None:
            found.append(value)
    found.sort()
    if not found:
        return None, None
    return found[int(0.025 * (len(found) - 1))], found[int(0.975 * (len(found) - 1))]


def _poisson(rng: random.Random, mean: float) -> int:
    """A Poisson number: exactly (Knuth) for a small mean, by the normal approximation for a large one."""
    if mean > 50:
        return max(0, round(rng.gauss(mean, sqrt(mean))))
    count, product, floor = 0, rng.random(), exp(-mean)
    while product > floor:
        count += 1
        product *= rng.random()
    return count


def cohen_kappa(pairs: Sequence[tuple[str, str]]) -> float | None:
    """Cohen's κ of two annotators (Cohen 1960); None when chance alone would make them agree."""
    n = len(pairs)
    if not n:
        return None
    observed = sum(a == b for a, b in pairs) / n
    first, second = Counter(a for a, _ in pairs), Counter(b for _, b in pairs)
    expected = sum(first[label] * second[label] for label in first) / n**2
    return (observed - expected) / (1 - expected) if expected < 1 else None


def kappas(units: Units) -> dict[tuple[str, str], Estimate]:
    """κ of every two annotators who share comparisons."""
    together: dict[tuple[str, str], list[tuple[str, str]]] = defaultdict(list)
    for labels in units.values():
        for a, b in combinations(sorted(labels), 2):
            together[a, b].append((labels[a], labels[b]))
    return {
        who: Estimate(cohen_kappa(said) if len(said) >= MIN_UNITS else None, None, None, len(said))
        for who, said in together.items()
    }


def per_annotator(units: Units) -> dict[str, Estimate]:
    """How often each annotator says what another says of the same comparison."""
    same: Counter[str] = Counter()
    total: Counter[str] = Counter()
    for labels in units.values():
        for a, b in combinations(labels, 2):
            for who in (a, b):
                same[who] += labels[a] == labels[b]
                total[who] += 1
    return {
        who: Estimate(same[who] / n, *wilson(same[who], n), n) if n >= MIN_UNITS else Estimate(None, None, None, n)
        for who, n in total.items()
    }


def nominal(ranking: Iterable[Iterable[str]]) -> str:
    """A ranking as one label: its groups spelled out, so that equal weak orders are equal labels."""
    return ">".join("=".join(sorted(group)) for group in ranking)
