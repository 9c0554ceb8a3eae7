"""Rewards, GAE and whitening against numbers worked by hand."""

import pytest
import torch

from workers.training.advantages import KLController, gae, masked_mean, shaped_rewards, whiten

MASK = torch.tensor([[True, True, True], [True, True, False]])


def test_the_score_sits_on_the_last_real_token_and_every_token_pays_its_own_kl() -> None:
    """β = .5, log-ratios (1, 2, -1 | 4, 0, junk): rewards (-.5, -1, .5 + 10 | -2, 0 + 20, 0)."""
    new = torch.tensor([[1.0, 2.0, -1.0], [4.0, 0.0, 99.0]])
    rewards = shaped_rewards(torch.tensor([10.0, 20.0]), new, torch.zeros(2, 3), MASK, beta=0.5)
    assert torch.equal(rewards, torch.tensor([[-0.5, -1.0, 10.5], [-2.0, 20.0, 0.0]]))


def test_gae_by_hand() -> None:
    """γ = 1, λ = .5. Row 1: r = 0, 0, 1, V = .5, .5, .5 → δ = 0, 0, .5; A = .125, .25, .5.

    Row 2 (two tokens): r = 1, 2, V = 1, 1 → δ₁ = 1 + 1 - 1 = 1, δ₂ = 2 - 1 = 1; A = 1.5, 1. R = A + V.
    """
    rewards = torch.tensor([[0.0, 0.0, 1.0], [1.0, 2.0, 77.0]])
    values = torch.tensor([[0.5, 0.5, 0.5], [1.0, 1.0, 55.0]])
    advantages, returns = gae(rewards, values, MASK, gamma=1.0, lam=0.5)
    assert torch.allclose(advantages, torch.tensor([[0.125, 0.25, 0.5], [1.5, 1.0, 0.0]]))
    assert torch.allclose(returns, torch.tensor([[0.625, 0.75, 1.0], [2.5, 2.0, 0.0]]))


def test_gae_with_discount_by_hand() -> None:
    """γ = .5, λ = 1: A₁ = r₁ + γ r₂ - V₁ = 1 + 2 - .25 = 2.75, A₂ = r₂ - V₂ = 4 - 8 = -4."""
    advantages, _ = gae(
        torch.tensor([[1.0, 4.0]]), torch.tensor([[0.25, 8.0]]), torch.ones(1, 2, dtype=torch.bool), 0.5, 1.0
    )
    assert torch.allclose(advantages, torch.tensor([[2.75, -4.0]]))


def test_where_somebody_else_spoke_in_between_advantages_carry_over() -> None:
    """As if the hole were not there: γ = 1, λ = .5, r = 1, 2, V = 1, 1 as in row 2 above, a tool between them."""
    mask = torch.tensor([[True, False, True, False]])
    rewards, values = torch.tensor([[1.0, 50.0, 2.0, 50.0]]), torch.tensor([[1.0, 70.0, 1.0, 70.0]])
    advantages, returns = gae(rewards, values, mask, 1.0, 0.5)
    assert torch.equal(advantages, torch.tensor([[1.5, 0.0, 1.0, 0.0]]))
    assert torch.equal(returns, torch.tensor([[2.5, 0.0, 2.0, 0.0]]))
    shaped = shaped_rewards(torch.tensor([9.0]), torch.zeros(1, 4), torch.zeros(1, 4), mask, 1.0)
    assert torch.equal(shaped, torch.tensor([[0.0, 0.0, 9.0, 0.0]]))


def test_with_lambda_one_and_no_discount_returns_are_the_rewards_to_go() -> None:
    rewards = torch.randn(4, 6) * torch.ones(4, 6)
    mask = torch.ones(4, 6, dtype=torch.bool)
    _, returns = gae(rewards, torch.randn(4, 6), mask, 1.0, 1.0)
    assert torch.allclose(returns, rewards.flip(1).cumsum(1).flip(1), atol=1e-5)


def test_whitening_looks_only_at_the_mask() -> None:
    """Real values 1, 3, 5, 1, 5: mean 3, biased variance (4+0+4+4+4)/5 = 3.2 → ±2/√3.2 = ±1.118034, 0."""
    values = torch.tensor([[1.0, 3.0, 5.0], [1.0, 5.0, 1000.0]])
    expected = torch.tensor([[-1.118034, 0.0, 1.118034], [-1.118034, 1.118034, 0.0]])
    assert torch.allclose(whiten(values, MASK), expected, atol=1e-6)
    assert torch.allclose(whiten(values, MASK, keep_mean=True), (expected + 3.0) * MASK, atol=1e-6)


def test_a_masked_mean_divides_by_the_mask_and_not_by_the_width() -> None:
    assert float(masked_mean(torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 99.0]]), MASK)) == 3.0


@pytest.mark.parametrize(
    ("kl", "expected"),
    [(6.0, 0.1), (12.0, 0.1 * (1 + 0.2 * 0.5)), (6.6, 0.1 * (1 + 0.1 * 0.5)), (0.0, 0.1 * (1 - 0.2 * 0.5))],
)
def test_the_adaptive_controller_moves_beta_by_at_most_a_fifth(kl: float, expected: float) -> None:
    """Target 6, horizon 100, 50 episodes: β (1 + clip(KL/6 - 1, ±.2) · ½)."""
    controller = KLController(0.1, target=6.0, horizon=100)
    controller.update(kl, 50)
    assert controller.beta == pytest.approx(expected)


def test_without_a_target_beta_stays() -> None:
    controller = KLController(0.1, target=None, horizon=100)
    controller.update(1000.0, 50)
    assert controller.beta == 0.1
