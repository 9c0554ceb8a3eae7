"""The DPO family against numbers worked by hand (against TRL: `test_dpo_referee.py`)."""

import math

import pytest
import torch

from workers.training import dpo_losses

GAPS = torch.tensor([0.0, 1.0, -2.0])


def test_sigmoid_is_softplus_of_the_negative_gap_and_stays_finite() -> None:
    """z = 0, 1, -2: log 2, log(1+e⁻¹), log(1+e²)."""
    assert torch.allclose(dpo_losses.sigmoid(GAPS), torch.tensor([0.693147, 0.313262, 2.126928]), atol=1e-6)
    assert float(dpo_losses.sigmoid(torch.tensor(-1000.0))) == 1000.0


def test_the_robust_loss_under_flips_has_the_expectation_of_the_clean_one() -> None:
    """ε = .2, z = 1: (.8·.313262 - .2·1.313262)/.6 = -.020071; with flips of that probability: DPO's own .313262."""
    right, flipped = (float(dpo_losses.robust(torch.tensor(z), 0.2)) for z in (1.0, -1.0))
    assert right == pytest.approx(-0.020071, abs=1e-5)
    assert 0.8 * right + 0.2 * flipped == pytest.approx(0.313262, abs=1e-6)


def test_hinge_is_nothing_from_a_gap_of_one_on() -> None:
    assert dpo_losses.hinge(torch.tensor([0.0, 1.0, 3.0, -2.0])).tolist() == [1.0, 0.0, 0.0, 3.0]


def test_ipo_wants_the_log_ratios_one_half_over_beta_apart() -> None:
    """β = .25: the target is 2; z = .25·h with h = 2, 0, 5 → 0, 4, 9."""
    gaps = 0.25 * torch.tensor([2.0, 0.0, 5.0])
    assert torch.allclose(dpo_losses.ipo(gaps, 0.25), torch.tensor([0.0, 4.0, 9.0]))


def test_simpo_takes_its_margin_off_the_gap() -> None:
    assert float(dpo_losses.simpo(torch.tensor(2.0), 1.0)) == pytest.approx(0.313262, abs=1e-6)


def test_odds_ratio_of_two_probabilities_by_hand() -> None:
    """P = ½ and ¼: odds 1 and ⅓, so the log odds are log 3 apart and the loss is log(1 + ⅓) = .287682."""
    loss = dpo_losses.odds_ratio(torch.tensor(0.5).log(), torch.tensor(0.25).log())
    assert float(loss) == pytest.approx(0.287682, abs=1e-6)


@pytest.mark.parametrize("value", [0.0, -1e-9, -1e-3, -0.69, -0.7, -5.0, -40.0, -800.0])
def test_log1mexp_is_exact_and_has_a_finite_gradient_everywhere(value: float) -> None:
    x = torch.tensor(value, requires_grad=True)
    result = dpo_losses.log1mexp(x)
    held = min(value, -1e-7)
    exact = math.log(-math.expm1(held)) if held > -0.5 else math.log1p(-math.exp(held))
    assert float(result) == pytest.approx(exact, rel=1e-5, abs=1e-40)
    (gradient,) = torch.autograd.grad(result, x)
    assert math.isfinite(float(gradient))


def test_kto_by_hand() -> None:
    """β = .5, KL = 2, l = 4 and 0. Desirable: 1 - σ(1) = .268941, 1 - σ(-1) = .731059; undesirable the other way."""
    log_ratios, kl = torch.tensor([4.0, 0.0, 4.0, 0.0]), torch.tensor(2.0)
    loss = dpo_losses.kto(log_ratios, torch.tensor([True, True, False, False]), kl, 0.5)
    assert torch.allclose(loss, torch.tensor([0.268941, 0.731059, 0.731059, 0.268941]), atol=1e-6)
