"""Calibration figures against numbers worked by hand."""

import math

import pytest

from workers.training.calibration import Bin, expected_calibration_error, log_loss, reliability

LOG3 = math.log(3)  # σ(log 3) = ¾


def test_log_loss_of_sure_soft_and_knowing_nothing() -> None:
    """Δ = log 3: right -log ¾ = .287682, wrong -log ¼ = 1.386294, y = .75 their mixture .562335; Δ = 0 log 2."""
    assert log_loss([LOG3], [1.0]) == pytest.approx(0.287682, abs=1e-6)
    assert log_loss([LOG3], [0.0]) == pytest.approx(1.386294, abs=1e-6)
    assert log_loss([LOG3], [0.75]) == pytest.approx(0.562335, abs=1e-6)
    assert log_loss([0.0, 0.0], [1.0, 0.0]) == pytest.approx(math.log(2))
    assert log_loss([-800.0], [1.0]) == pytest.approx(800.0)
    assert log_loss([], []) == 0.0


def test_the_curve_has_bins_of_equal_mass_and_counts_who_was_predicted() -> None:
    """Two at Δ = 0 (½, half right each), two at ±log 3: one predicted and right, one predicted the wrong side."""
    curve = reliability([LOG3, 0.0, -LOG3, 0.0], [1.0, 1.0, 1.0, 0.0], bins=2)
    assert curve == [Bin(2, 0.5, 0.5), Bin(2, pytest.approx(0.75), 0.5)]
    assert expected_calibration_error(curve) == pytest.approx(0.5 * 0 + 0.5 * 0.25)
    sizes = [one.count for one in reliability([0.1 * i for i in range(100)], [1.0] * 100)]
    assert len(sizes) == 15 and sum(sizes) == 100 and set(sizes) == {6, 7}


def test_few_predictions_have_few_bins_and_none_have_no_error() -> None:
    assert len(reliability([1.0, 2.0], [1.0, 1.0])) == 2
    assert expected_calibration_error(reliability([], [])) == 0.0


def test_probabilities_that_come_true_are_calibrated() -> None:
    """At Δ = log 3 three of four are right."""
    curve = reliability([LOG3] * 400, [1.0, 1.0, 1.0, 0.0] * 100, bins=1)
    assert expected_calibration_error(curve) == pytest.approx(0.0, abs=1e-9)
    turned = reliability([-LOG3] * 400, [0.0, 0.0, 0.0, 1.0] * 100, bins=1)
    assert expected_calibration_error(turned) == pytest.approx(0.0, abs=1e-9)
