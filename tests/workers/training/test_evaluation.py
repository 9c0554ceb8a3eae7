"""The figures, against numbers worked by hand."""

import pytest
import torch

from tests.workers.training.nets_in_memory import example, policy
from workers.training.evaluation import distinct_n, log_prob_sums, mean, sequence_kl, wilson, wins
from workers.training.layout import collate


def test_distinct_2_counts_different_bigrams_over_the_whole_set() -> None:
    """a b c → ab bc; a b → ab; one word → none: 2 different of 3."""
    assert distinct_n(["a b c", "a b", "z", ""], 2) == pytest.approx(2 / 3)
    assert distinct_n([], 2) == 0.0


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
    assert mean([]) == 0.0


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
