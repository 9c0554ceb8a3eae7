"""Losses against numbers worked by hand and against their own symmetries (against TRL: `test_referee.py`)."""

import itertools
import math
from typing import Any

import pytest
import torch

from workers.training import losses


def test_bradley_terry_gives_log_two_for_equal_rewards_and_softplus_of_the_gap_otherwise() -> None:
    """Δ = 0 → log 2 = .693147; Δ = 1 → log(1+e⁻¹) = .313262; Δ = -2 → log(1+e²) = 2.126928."""
    loss = losses.bradley_terry(torch.tensor([3.0, 2.0, 0.0]), torch.tensor([3.0, 1.0, 2.0]))
    assert torch.allclose(loss, torch.tensor([0.693147, 0.313262, 2.126928]), atol=1e-6)


def test_a_margin_is_taken_off_the_gap() -> None:
    """Δ = 2 - 0 - 1 = 1 → .313262."""
    assert float(losses.bradley_terry(torch.tensor([2.0]), torch.tensor([0.0]), margin=1.0)) == pytest.approx(
        0.313262, abs=1e-6
    )


def test_a_soft_label_mixes_both_orders() -> None:
    """y = .75, Δ = 1: .75·.313262 + .25·1.313262 = .563262."""
    loss = losses.bradley_terry(torch.tensor([1.0]), torch.tensor([0.0]), confidence=0.75)
    assert float(loss) == pytest.approx(0.563262, abs=1e-6)


def test_a_tie_at_equal_rewards_has_no_gradient() -> None:
    chosen = torch.zeros(1, requires_grad=True)
    losses.bradley_terry(chosen, torch.zeros(1), confidence=0.5).sum().backward()
    assert chosen.grad is not None and float(chosen.grad.abs().sum()) == 0.0


def test_swapping_a_pair_and_its_label_changes_nothing() -> None:
    one, other = torch.randn(5), torch.randn(5)
    assert torch.allclose(
        losses.bradley_terry(one, other, confidence=0.8), losses.bradley_terry(other, one, confidence=0.2), atol=1e-6
    )


def test_bradley_terry_stays_finite_where_exp_overflows() -> None:
    assert float(losses.bradley_terry(torch.tensor([-500.0]), torch.tensor([500.0]))) == pytest.approx(1000.0)


def test_davidson_gives_the_tie_a_probability_of_its_own() -> None:
    """Δ = 2 log 2, ν = 1.5: 2 : ½ : 1.5 of 4 → .5, .125, .375; at Δ = 0 a tie has ν/(2+ν) = 3/7."""
    outcomes = losses.davidson(torch.tensor([2 * math.log(2), 0.0]), math.log(1.5))
    assert [o.exp()[0].item() for o in outcomes] == pytest.approx([0.5, 0.125, 0.375])
    assert float(outcomes[2].exp()[1]) == pytest.approx(3 / 7)


def test_davidson_without_ties_is_bradley_terry_and_so_is_any_given_that_somebody_wins() -> None:
    gap = torch.linspace(-4, 4, 9)
    for nu in (1e-12, 2.0):
        won, lost, _ = losses.davidson(gap, math.log(nu))
        conditional = won - torch.logaddexp(won, lost)
        assert torch.allclose(-conditional, losses.bradley_terry(gap, torch.zeros(9)), atol=1e-6)


def test_somebody_who_is_right_four_times_of_five() -> None:
    """η = .8, P = .7: .8·.7 + .2·.3 = .62, and .38 for the reverse; at η = ½ the answer says nothing."""
    right, reversed = torch.tensor([0.7]).log(), torch.tensor([0.3]).log()
    said, opposed = losses.unreliable(right, reversed, torch.tensor([math.log(4)]))
    assert [float(said.exp()), float(opposed.exp())] == pytest.approx([0.62, 0.38])
    said, opposed = losses.unreliable(right, reversed, torch.zeros(1))
    assert float(said) == pytest.approx(float(opposed)) == pytest.approx(math.log(0.5))


def test_a_margin_of_plackett_luce_lifts_all_that_are_worse() -> None:
    """r = log 4, log 2, log 1, margin log 2: 4/(4 + 4 + 2) · 2/(2 + 2) = 1/5."""
    scores, places = torch.tensor([[4.0, 2.0, 1.0]]).log(), torch.tensor([[0, 1, 2]])
    loss = losses.plackett_luce(scores, places, margin=torch.tensor([math.log(2)]))
    assert float(loss) == pytest.approx(math.log(5), abs=1e-6)


def test_plackett_luce_of_three_by_hand_and_shifted() -> None:
    """r = log 4, log 2, log 1 for places 0, 1, 2: P = 4/7 · 2/3, so the loss is log(21/8) = .965081; no shift moves it.

    Only the best named, the other two unordered: log(7/4) = .559616. Reversed: P = 1/7 · 2/6, loss log 21 = 3.044522.
    """
    scores = torch.tensor([4.0, 2.0, 1.0]).log()
    places = torch.tensor([[0, 1, 2], [0, 1, 1], [2, 1, 0]])
    expected = torch.tensor([0.965081, 0.559616, 3.044522])
    assert torch.allclose(losses.plackett_luce(scores.expand(3, 3), places), expected, atol=1e-6)
    assert torch.allclose(losses.plackett_luce(scores.expand(3, 3) + 7, places), expected, atol=1e-5)


def test_plackett_luce_probabilities_of_all_orders_add_up_to_one() -> None:
    orders = torch.tensor(list(itertools.permutations(range(4))))
    scores = torch.randn(4, generator=torch.Generator().manual_seed(0)).expand(24, 4)
    assert float((-losses.plackett_luce(scores, orders)).exp().sum()) == pytest.approx(1.0, abs=1e-5)


def test_plackett_luce_of_two_is_bradley_terry_and_padding_and_the_unranked_have_no_part_in_it() -> None:
    scores = torch.randn(5, 4, generator=torch.Generator().manual_seed(1), requires_grad=True)
    places = torch.tensor([1, 0, -1, -1]).expand(5, 4)
    loss = losses.plackett_luce(scores, places, torch.ones(5, dtype=torch.bool))
    assert torch.allclose(loss, losses.bradley_terry(scores[:, 1], scores[:, 0]), atol=1e-6)
    (gradient,) = torch.autograd.grad(loss.sum(), scores)
    assert not gradient[:, 2:].any() and torch.isfinite(gradient).all() and gradient[:, :2].all()


def test_a_group_of_plackett_luce_is_unordered_or_pulled_together() -> None:
    """Places 0, 0, 1, r = 1, 0, 0: log(1+e⁻¹) + log 2 = 1.006409; a tie adds -½ log σ(1) - ½ log σ(-1) = .813262."""
    scores, places = torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([[0, 0, 1]])
    assert float(losses.plackett_luce(scores, places)) == pytest.approx(1.006409, abs=1e-6)
    tied = losses.plackett_luce(scores, places, torch.tensor([True]))
    assert float(tied) == pytest.approx(1.006409 + 0.813262, abs=1e-6)


def test_ppo_clips_only_where_the_move_would_be_rewarded_further() -> None:
    """ε = .2, ρ = 1.5 and .5. A = 1: -min(1.5, 1.2) = -1.2, -min(.5, .8) = -.5; A = -1: max(1.5, 1.2) = 1.5, .8."""
    new = torch.tensor([1.5, 0.5, 1.5, 0.5]).log()
    loss, ratio = losses.ppo_policy(new, torch.zeros(4), torch.tensor([1.0, 1.0, -1.0, -1.0]), clip=0.2)
    assert torch.allclose(loss, torch.tensor([-1.2, -0.5, 1.5, 0.8]), atol=1e-6)
    assert torch.allclose(ratio, torch.tensor([1.5, 0.5, 1.5, 0.5]), atol=1e-6)


def test_a_dual_clip_bounds_the_loss_of_a_bad_token_and_of_no_other() -> None:
    """c = 3. A = -1, ρ = 5 → 3 instead of 5; ρ = 2 → 2 as before; A = 1, ρ = 5 → -1.2 as before."""
    new = torch.tensor([5.0, 2.0, 5.0]).log()
    loss, _ = losses.ppo_policy(new, torch.zeros(3), torch.tensor([-1.0, -1.0, 1.0]), clip=0.2, dual_clip=3.0)
    assert torch.allclose(loss, torch.tensor([3.0, 2.0, -1.2]), atol=1e-6)


def test_entropy_is_that_of_the_whole_distribution_at_the_temperature() -> None:
    """p = ¼, ¾: .562335 nats; at T = ½ p = .1, .9: .325083; a token that cannot come adds nothing."""
    logits = torch.tensor([[0.0, math.log(3), -math.inf]])
    assert float(losses.token_entropy(logits)) == pytest.approx(0.562335, abs=1e-6)
    assert float(losses.token_entropy(logits, 0.5)) == pytest.approx(0.325083, abs=1e-6)


def test_ppo_survives_a_runaway_log_ratio() -> None:
    loss, ratio = losses.ppo_policy(torch.tensor([900.0]), torch.zeros(1), torch.tensor([-1.0]), clip=0.2)
    assert math.isfinite(float(loss)) and float(ratio) == pytest.approx(math.exp(20), rel=1e-5)


def test_the_value_loss_takes_the_worse_of_moved_and_held_back() -> None:
    """V_old = 0, ε = .2. V = 1, R = 1: moved 0, held (.2-1)² → ½·.64 = .32. V = -1, R = 1: ½·max(4, 1.44) = 2."""
    loss = losses.ppo_value(torch.tensor([1.0, -1.0]), torch.zeros(2), torch.ones(2), clip=0.2)
    assert torch.allclose(loss, torch.tensor([0.32, 2.0]))


def test_token_log_probs_are_the_logarithm_of_the_softmax_at_the_temperature() -> None:
    """Logits (0, log 3): p = ¼, ¾. At T = ½ they are squared: 1/10, 9/10."""
    logits, targets = torch.tensor([[0.0, math.log(3)]] * 2), torch.tensor([0, 1])
    assert torch.allclose(losses.token_log_probs(logits, targets).exp(), torch.tensor([0.25, 0.75]))
    assert torch.allclose(losses.token_log_probs(logits, targets, 0.5).exp(), torch.tensor([0.1, 0.9]))


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_gradient_of_token_log_probs_is_autograds(temperature: float) -> None:
    logits = (5 * torch.randn(6, 40, generator=torch.Generator().manual_seed(0))).requires_grad_(True)
    targets, upstream = torch.tensor([3, 0, 39, 7, 7, 1]), torch.linspace(-2, 3, 6)
    (ours,) = torch.autograd.grad(losses.token_log_probs(logits, targets, temperature) @ upstream, logits)
    plain = torch.log_softmax(logits / temperature, -1).gather(1, targets[:, None]).squeeze(1)
    (expected,) = torch.autograd.grad(plain @ upstream, logits)
    assert torch.allclose(ours, expected, atol=1e-6)


def test_a_second_backward_pass_through_token_log_probs_is_refused_and_not_wrong() -> None:
    logits = torch.randn(2, 5, requires_grad=True)
    total = losses.token_log_probs(logits, torch.tensor([1, 2])).sum()
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="inplace"):
        total.backward()


def test_projecting_in_tiles_changes_neither_values_nor_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    head = torch.nn.Linear(8, 50, bias=False)
    hidden, targets = torch.randn(37, 8, requires_grad=True), torch.randint(0, 50, (37,))
    results: list[Any] = []
    for tile in (1 << 26, 50 * 10):
        monkeypatch.setattr(losses, "TILE", tile)
        values = losses.projected_log_probs(losses.Projection(head), hidden, targets)
        results.append((values.detach(), *torch.autograd.grad(values.sum(), (hidden, head.weight))))
    for whole, tiled in zip(*results, strict=True):
        assert torch.allclose(whole, tiled, atol=1e-6)


def test_soft_capped_logits_are_those_of_gemma() -> None:
    head = torch.nn.Linear(4, 9, bias=False)
    hidden = torch.randn(3, 4)
    expected = 30.0 * torch.tanh(head(hidden) * 0.5 / 30.0)
    assert torch.allclose(losses.Projection(head, soft_cap=30.0, scale=0.5)(hidden), expected)
