"""The figures, against numbers worked by hand."""

import math

import pytest
import torch

from tests.workers.training.nets_in_memory import example, policy
from workers.training.evaluation import (
    deviation,
    entropy,
    held_out_loss,
    length_controlled,
    log_prob_sums,
    mean,
    paired_bootstrap,
    regressed,
    sequence_kl,
    token_kl,
    wilson,
    wins,
)
from workers.training.layout import collate
from workers.training.tokens import Example


@pytest.mark.parametrize(
    ("won", "of", "low", "high"),
    [(8, 10, 0.4902, 0.9433), (0, 10, 0.0, 0.2775), (50, 100, 0.4038, 0.5962), (0, 0, 0.0, 1.0)],
)
def test_wilson_intervals_of_the_textbook(won: int, of: int, low: float, high: float) -> None:
    assert wilson(won, of) == pytest.approx((low, high), abs=1e-4)


def test_a_tie_is_half_a_win() -> None:
    assert wins([1.0, 2.0, 3.0], [0.0, 2.0, 5.0]) == 1.5


def test_kl_is_the_mean_log_ratio_over_samples_of_the_new_policy() -> None:
    assert sequence_kl([-1.0, -2.0], [-2.0, -5.0]) == 2.0
    assert token_kl([-1.0, -2.0], [-2.0, -5.0], [3, 5]) == 4.0 / 8
    assert mean([]) == 0.0


def test_entropy_is_the_mean_surprise_of_the_tokens_not_of_the_completions() -> None:
    assert entropy([[-1.0, -2.0], [-6.0]]) == 3.0


def test_deviation_divides_by_n_minus_1() -> None:
    assert deviation([1.0, 3.0]) == pytest.approx(math.sqrt(2))
    assert deviation([1.0]) == 0.0


def test_at_equal_lengths_the_length_controlled_win_rate_is_the_win_rate() -> None:
    """30 of 40: θ = log 3, se = 1/√(40 · 3/16) = 0.3651; σ(1.0986 ± 0.7157)."""
    found = length_controlled([1.0] * 30 + [0.0] * 10, [0.0] * 40)
    assert (found.rate, found.low, found.high) == pytest.approx((0.75, 0.5946, 0.8599), abs=1e-3)
    assert found.slope == pytest.approx(0.0, abs=1e-9)


def test_a_win_rate_made_by_length_alone_goes_back_to_a_half() -> None:
    """Expected results of θ = 0, φ = 2, the new completions mostly longer: many wins, none at equal length."""
    gaps = [float(g) for g in range(-100, 301)]
    spread = math.sqrt(sum(g * g for g in gaps) / len(gaps))
    won = [1 / (1 + math.exp(-2 * math.tanh(g / spread))) for g in gaps]
    found = length_controlled(won, gaps)
    assert mean(won) > 0.65
    assert found.rate == pytest.approx(0.5, abs=1e-3) and found.low < 0.5 < found.high
    assert found.slope == pytest.approx(2.0, abs=2e-3)


def test_a_fit_without_a_single_loss_stays_finite_and_unsure() -> None:
    found = length_controlled([1.0] * 10, [3.0, -1.0] * 5)
    assert 0.9 < found.rate < 1.0 and found.low < 0.5 and math.isfinite(found.slope)


def test_the_paired_bootstrap_is_as_wide_as_the_normal_interval() -> None:
    """60 of 100 items better by 1: 0.6 ± 1.96 √(0.24 / 100)."""
    difference, low, high = paired_bootstrap([1.0] * 60 + [0.0] * 40, [0.0] * 100)
    assert difference == 0.6
    assert (low, high) == pytest.approx((0.504, 0.696), abs=0.015)
    assert paired_bootstrap([2.0, 3.0], [1.0, 2.0]) == (1.0, 1.0, 1.0)


def test_a_capability_has_regressed_when_it_fell_by_more_than_noise_and_chance() -> None:
    old = [1.0] * 90 + [0.0] * 10
    assert regressed([1.0] * 80 + [0.0] * 20, old)
    assert not regressed([1.0] * 80 + [0.0] * 20, old, noise=0.06)  # within two deviations
    assert not regressed([1.0] * 89 + [0.0] * 11, old)  # one item
    assert not regressed(old, [1.0] * 80 + [0.0] * 20)


def test_held_out_loss_is_per_token_and_leaves_out_what_is_not_trained() -> None:
    ours, one, two = policy(), example("x", "abc"), example("y", "a")
    sums = [float(ours.log_probs(collate([e])).detach().sum()) for e in (one, two)]
    assert held_out_loss(ours, [one, two], 1000) == pytest.approx(-sum(sums) / 6, abs=1e-5)
    half = Example(one.prompt, one.completion, (True, False, False, False))
    first = float(ours.log_probs(collate([one])).detach()[0, 0])
    assert held_out_loss(ours, [half], 1000) == pytest.approx(-first, abs=1e-5)


def test_log_prob_sums_are_in_the_order_given_however_the_budget_cuts() -> None:
    ours, examples = policy(), [example("x", "abc"), example("longer prompt", "a"), example("y", "b" * 30)]
    expected = [float(ours.log_probs(collate([e])).detach().sum()) for e in examples]
    for budget in (1, 50, 10_000):
        assert log_prob_sums(ours, examples, budget) == pytest.approx(expected, abs=1e-3)


def test_the_estimated_kl_is_the_exact_kl_of_one_token_within_three_deviations() -> None:
    """One token, all of the vocabulary summed exactly, against 20,000 draws."""
    new, other = policy(seed=0), policy(seed=1)
    prompt = torch.tensor([[0, 60]])
    with torch.no_grad():
        p = torch.log_softmax(new.model(prompt).logits[0, -1].double(), -1)
        q = torch.log_softmax(other.model(prompt).logits[0, -1].double(), -1)
    exact = float((p.exp() * (p - q)).sum())
    drawn = torch.multinomial(p.exp(), 20_000, replacement=True, generator=torch.Generator().manual_seed(0))
    ratios = (p - q)[drawn]
    estimate = sequence_kl(p[drawn].tolist(), q[drawn].tolist())
    assert abs(estimate - exact) < 3 * float(ratios.std()) / 20_000**0.5
