"""Hand-worked figures, and one published: Krippendorff's own nominal example has α = 0.743 (2011, table on page 3)."""

import math

import pytest

from app.quality import agreement
from app.quality.agreement import Units

# Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability", §C: four observers, twelve units, missing values.
PUBLISHED = {
    "A": "1 2 3 3 2 1 4 1 2 * * *",
    "B": "1 2 3 3 2 2 4 1 2 5 * 3",
    "C": "* 3 3 3 2 3 4 2 2 5 1 *",
    "D": "1 2 3 3 2 4 4 1 2 5 1 *",
}


def published() -> Units:
    columns = {who: row.split() for who, row in PUBLISHED.items()}
    return {str(u): {w: row[u] for w, row in columns.items() if row[u] != "*"} for u in range(12)}


def test_alpha_is_krippendorffs_own_figure() -> None:
    value = agreement.alpha(published()).value
    assert value is not None and math.isclose(value, 0.743, abs_tol=0.0005)


def test_kappa_by_hand() -> None:
    """20 yes-yes, 5 yes-no, 10 no-yes, 15 no-no: observed 35/50, expected (25·30 + 25·20)/2500 = 0.5, κ = 0.4."""
    said = [("y", "y")] * 20 + [("y", "n")] * 5 + [("n", "y")] * 10 + [("n", "n")] * 15
    kappa = agreement.cohen_kappa(said)
    assert kappa is not None and math.isclose(kappa, 0.4)


def test_raw_agreement_is_the_share_of_pairs_of_annotators_who_say_the_same() -> None:
    units = {str(n): {"p": "x", "q": "x" if n < 6 else "y"} for n in range(8)}
    found = agreement.raw(units)
    assert (found.value, found.count) == (0.75, 8)
    assert found.low is not None and found.high is not None and found.low < 0.75 < found.high


def test_the_wilson_interval_by_hand() -> None:
    """8 of 10 at 95 %: (0.4902, 0.9433), Wilson 1927."""
    low, high = agreement.wilson(8, 10)
    assert math.isclose(low, 0.4902, abs_tol=1e-4) and math.isclose(high, 0.9433, abs_tol=1e-4)


def test_where_there_is_too_little_data_there_is_no_figure() -> None:
    units = {"1": {"p": "x", "q": "x"}}
    assert agreement.alpha(units).value is None and agreement.raw(units).value is None
    assert agreement.per_annotator(units)["p"].value is None


def test_when_everybody_always_says_the_same_alpha_is_undefined_and_not_a_nan() -> None:
    assert agreement.alpha({str(n): {"p": "x", "q": "x"} for n in range(9)}).value is None


def test_labels_of_one_annotator_alone_do_not_count() -> None:
    units = {**{str(n): {"p": "x", "q": "x"} for n in range(6)}, "lonely": {"p": "y"}}
    assert agreement.raw(units).count == 6


def test_the_interval_holds_the_value_and_is_reproducible() -> None:
    first, again = agreement.alpha(published()), agreement.alpha(published())
    assert first == again
    assert first.low is not None and first.value is not None and first.high is not None
    assert first.low <= first.value <= first.high


@pytest.mark.parametrize(("one", "other"), [([["a", "b"]], [["b", "a"]]), ([["a"], ["b", "c"]], [["a"], ["c", "b"]])])
def test_equal_weak_orders_are_equal_labels(one: list[list[str]], other: list[list[str]]) -> None:
    assert agreement.nominal(one) == agreement.nominal(other)
