"""Length and over-optimisation in rewards, against numbers worked by hand."""

import math

import pytest

from workers.training import monitors


def test_spearman_gives_ties_their_mean_rank() -> None:
    assert monitors.spearman([1, 2, 3, 4], [10, 20, 40, 30]) == pytest.approx(0.8)
    assert monitors.spearman([1, 2, 2, 3], [1, 2, 3, 4]) == pytest.approx(4.5 / math.sqrt(4.5 * 5))
    assert monitors.spearman([1, 2], [5, 5]) == 0.0


def test_a_gain_won_by_moving_to_longer_bins_is_all_length() -> None:
    """Old: two of 10 tokens with reward 0 and 2. New: one of 10 with 1, one of 30 with 3. Within the shared bin the
    mean stays 1."""
    assert monitors.length_share([1, 3], [10, 30], [0, 2], [10, 10]) == pytest.approx(1.0)


def test_a_gain_at_the_same_lengths_is_not_length() -> None:
    assert monitors.length_share([2, 3], [10, 30], [0, 1], [10, 30]) == pytest.approx(0.0)


def test_a_gain_of_both_is_shared_out() -> None:
    """Old: 1, 1 at 10 and 3 at 30, mean 5/3. New: 2 at 10, 4 and 4 at 30, mean 10/3. Gain 5/3, within each bin 1:
    40 % is length."""
    share = monitors.length_share([2, 4, 4], [10, 30, 30], [1, 1, 3], [10, 10, 30])
    assert share == pytest.approx(0.4)


def test_without_a_gain_there_is_nothing_to_explain() -> None:
    assert monitors.length_share([1.0], [10], [1.0], [10]) is None
    assert monitors.length_share([2.0], [10], [1.0], [50]) is None


def test_the_curve_of_gao_is_found_again_from_its_own_points() -> None:
    alpha, beta = 2.0, 0.5
    distances = [0.0, 0.5, 1.0, 2.0, 5.0]
    rewards = [d * (alpha - beta * math.log(d)) if d else 0.0 for d in distances]
    assert monitors.fit_gold(distances, rewards) == pytest.approx((alpha, beta))
    with pytest.raises(ValueError, match="two different distances"):
        monitors.fit_gold([2.0, 2.0], [1.0, 1.0])
