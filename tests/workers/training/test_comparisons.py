"""What rankings say about pairs."""

from dataclasses import replace

from tests.workers.training.nets_in_memory import example
from workers.training.comparisons import TokenComparison, pair_labels, pairs_of
from workers.training.records import Comparison


def test_a_ranking_is_all_its_pairs_with_one_weight_for_all_of_them() -> None:
    judged = Comparison("p", ("a", "b", "c"), ((2,), (0, 1)), confidence=0.8, margin=0.5, weight=3.0)
    assert pairs_of(judged) == [(2, 0, 0.8), (2, 1, 0.8), (0, 1, 0.5)]
    assert pairs_of(replace(judged, ties=False)) == [(2, 0, 0.8), (2, 1, 0.8)]
    labels = pair_labels([TokenComparison((example("p", "a"),) * 3, judged)])
    assert labels.weight.tolist() == [1.0, 1.0, 1.0]
    assert labels.margin.tolist() == [0.5, 0.5, 0.0], "of tied completions none should be ahead of the other"
