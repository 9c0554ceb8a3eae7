"""The likelihood of people's judgements: identities between the losses, and what is learnt of the people."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.workers.training.nets_in_memory import example
from workers.training import losses
from workers.training.comparisons import TokenComparison, pairs_of
from workers.training.judgements import Judgements
from workers.training.recipes import RewardRecipe
from workers.training.records import Comparison

PAIR = Comparison("p", ("a", "b"))


def tokens(judged: Comparison) -> TokenComparison:
    return TokenComparison(tuple(example("p", str(text)) for text in judged.completions), judged)


def loss(judged: Comparison, scores: torch.Tensor, centering: float = 0.0, **options: Any) -> torch.Tensor:
    judgements = Judgements(RewardRecipe(**options), [judged])
    return judgements.losses(judgements.labels([tokens(judged)]), scores, centering).sum()


SHAPES: list[dict[str, Any]] = [
    {},
    {"ties": "davidson", "tie_nu": 0.7},
    {"ranking_loss": "plackett_luce"},
    {"annotators": "learned", "label_smoothing": 0.1},
    {"annotators": "learned", "ranking_loss": "plackett_luce"},
    {"annotators": "learned", "ties": "davidson"},
]
FOUR = Comparison("p", ("a", "b", "c", "d"), ((2,), (0, 3), (1,)), confidence=0.9)


@pytest.mark.parametrize("options", SHAPES)
def test_a_constant_added_to_all_rewards_changes_nothing(options: dict[str, Any]) -> None:
    scores = torch.tensor([0.3, -1.2, 2.0, 0.1])
    assert float(loss(FOUR, scores, **options)) == pytest.approx(float(loss(FOUR, scores + 5, **options)), abs=1e-5)


@pytest.mark.parametrize("options", SHAPES)
def test_the_order_in_which_completions_are_listed_changes_nothing(options: dict[str, Any]) -> None:
    scores, order = torch.tensor([0.3, -1.2, 2.0, 0.1]), [3, 1, 0, 2]
    listed = replace(
        FOUR,
        completions=tuple(FOUR.completions[i] for i in order),
        ranking=tuple(tuple(order.index(i) for i in group) for group in FOUR.ranking),
    )
    assert float(loss(FOUR, scores, **options)) == pytest.approx(
        float(loss(listed, scores[order], **options)), abs=1e-5
    )


@pytest.mark.parametrize("options", SHAPES)
def test_swapping_a_pair_and_its_label_changes_nothing(options: dict[str, Any]) -> None:
    scores, swapped = torch.tensor([0.3, -1.2]), replace(PAIR, ranking=((1,), (0,)), confidence=0.2)
    one, other = loss(replace(PAIR, confidence=0.8), scores, **options), loss(swapped, scores, **options)
    assert float(one) == pytest.approx(float(other), abs=1e-6)


@pytest.mark.parametrize("options", SHAPES)
def test_ties_alone_pull_nothing_at_equal_rewards(options: dict[str, Any]) -> None:
    scores = torch.zeros(4, requires_grad=True)
    loss(replace(FOUR, ranking=((0, 1, 2, 3),)), scores, **options).backward()
    assert scores.grad is not None and float(scores.grad.abs().max()) < 1e-7
    apart = torch.tensor([1.0, 0, 0, 0], requires_grad=True)
    loss(replace(FOUR, ranking=((0, 1, 2, 3),)), apart, **options).backward()
    assert apart.grad is not None and float(apart.grad[0]) > 0.001, "a tie pulls together what is apart"


@pytest.mark.parametrize("margin", [0.0, 0.4])
@pytest.mark.parametrize("confidence", [1.0, 0.7, 0.5])
@pytest.mark.parametrize("annotators", ["equal", "learned"])
def test_plackett_luce_of_two_is_bradley_terry(margin: float, confidence: float, annotators: str) -> None:
    judged = replace(PAIR, margin=margin, confidence=confidence, weight=2.0)
    for ranking in (judged.ranking, ((0, 1),)):
        gradients = []
        for ranking_loss in ("pairs", "plackett_luce"):
            scores = torch.tensor([0.3, -1.2], requires_grad=True)
            value = loss(
                replace(judged, ranking=ranking), scores, 0.1, ranking_loss=ranking_loss, annotators=annotators
            )
            (gradient,) = torch.autograd.grad(value, scores)
            gradients.append(torch.cat([value.detach()[None], gradient]))
        assert torch.allclose(*gradients, atol=1e-6)


def test_the_gradient_of_a_ranking_is_the_sum_of_its_pairs_gradients_over_their_number() -> None:
    """K = 4 with a tie, by hand: Σ over the six pairs of w·(σ(Δ) - y), w = 1/6."""
    scores = torch.tensor([0.3, -1.2, 2.0, 0.1], requires_grad=True)
    loss(FOUR, scores).backward()
    expected = [0.0] * 4
    pairs = pairs_of(FOUR)
    assert len(pairs) == 6
    for better, worse, y in pairs:
        pull = (1 / (1 + math.exp(-float(scores.detach()[better] - scores.detach()[worse]))) - y) / 6
        expected[better] += pull
        expected[worse] -= pull
    assert scores.grad is not None and scores.grad.tolist() == pytest.approx(expected, abs=1e-6)


def test_davidsons_tie_and_win_by_hand() -> None:
    """Δ = 2 log 2, ν = 1.5: P(win) = .5, P(tie) = .375; ε = .1 mixes win .5 and loss .125 and leaves the tie alone."""
    scores, options = torch.tensor([2 * math.log(2), 0.0]), {"ties": "davidson", "tie_nu": 1.5}
    assert float(loss(PAIR, scores, **options)) == pytest.approx(-math.log(0.5), abs=1e-6)
    for tie in (replace(PAIR, ranking=((0, 1),)), replace(PAIR, confidence=0.5)):
        assert float(loss(tie, scores, **options, label_smoothing=0.1)) == pytest.approx(-math.log(0.375), abs=1e-6)
    expected = -0.9 * math.log(0.5) - 0.1 * math.log(0.125)
    assert float(loss(PAIR, scores, **options, label_smoothing=0.1)) == pytest.approx(expected, abs=1e-6)


def test_an_annotator_starts_at_nine_of_ten_and_the_prior_holds_him_there() -> None:
    """P = .9 σ(1) + .1 σ(-1) = .684846; the prior's gradient at its middle is nothing, away from it it pulls back."""
    recipe = RewardRecipe(annotators="learned")
    judgements = Judgements(recipe, [PAIR, replace(PAIR, annotator="b")])
    value = judgements.losses(judgements.labels([tokens(PAIR)]), torch.tensor([1.0, 0.0]), 0.0)
    assert float(value) == pytest.approx(-math.log(0.9 * 0.731059 + 0.1 * 0.268941), abs=1e-5)
    (_, offsets), *_ = judgements.trainable()
    (gradient,) = torch.autograd.grad(judgements.prior(), offsets)
    assert gradient.tolist() == pytest.approx([0.0, 0.0], abs=1e-7)
    with torch.no_grad():
        offsets += torch.tensor([1.0, -1.0])
    (gradient,) = torch.autograd.grad(judgements.prior(), offsets)
    assert gradient[0] > 0 > gradient[1]


@pytest.mark.parametrize("options", [o for o in SHAPES if "annotators" in o])
def test_turning_all_answers_round_and_the_annotator_too_changes_nothing(options: dict[str, Any]) -> None:
    scores, rows = torch.tensor([0.3, -1.2, 2.0]), Comparison("p", ("a", "b", "c"), ((2,), (0,), (1,)))
    values = []
    for ranking, log_odds in ((rows.ranking, 1.3), (rows.ranking[::-1], -1.3)):
        judged = replace(rows, ranking=ranking)
        judgements = Judgements(RewardRecipe(**options), [judged])
        with torch.no_grad():
            judgements.trainable()[0][1].fill_(log_odds - math.log(9))
        values.append(float(judgements.losses(judgements.labels([tokens(judged)]), scores, 0.0).detach().sum()))
    assert values[0] == pytest.approx(values[1], abs=1e-6)


def test_the_reliability_learnt_from_answers_to_known_rewards_is_the_mode_of_the_posterior() -> None:
    """Δ = ±30 makes P(right) 1: 14 right, 6 wrong of 20, prior 9 and 1 of 10: (14 + 9) / 30."""
    answers = [replace(PAIR, annotator="a")] * 14 + [replace(PAIR, ranking=((1,), (0,)), annotator="a")] * 6
    judgements = Judgements(RewardRecipe(annotators="learned"), answers)
    labels, scores = judgements.labels([tokens(a) for a in answers]), torch.tensor([30.0, 0.0] * 20)
    parameters = [p for _, p in judgements.trainable()]
    search = torch.optim.LBFGS(parameters, max_iter=100, line_search_fn="strong_wolfe")

    def objective() -> torch.Tensor:
        search.zero_grad()
        value = judgements.losses(labels, scores, 0.0).sum() / judgements.total + judgements.prior()
        value.backward()
        return value

    search.step(objective)
    found = judgements.findings()["annotators"]
    assert found == {"a": {"reliability": pytest.approx(23 / 30, abs=1e-4), "answers": 20}}


def test_the_share_of_ties_is_learnt() -> None:
    """Equal rewards, 30 ties of 100: ν/(2+ν) = .3 → ν = 6/7. It starts near, from the data, and gets there exactly."""
    answers = [PAIR] * 70 + [replace(PAIR, confidence=0.5)] * 30
    judgements = Judgements(RewardRecipe(ties="davidson"), answers)
    assert judgements.findings()["tie_nu"] == pytest.approx(6 / 7, rel=0.05)
    labels, (_, offset) = judgements.labels([tokens(a) for a in answers]), judgements.trainable()[0]
    search = torch.optim.LBFGS([offset], max_iter=50, line_search_fn="strong_wolfe")

    def objective() -> torch.Tensor:
        search.zero_grad()
        value = judgements.losses(labels, torch.zeros(200), 0.0).mean()
        value.backward()
        return value

    search.step(objective)
    assert judgements.findings()["tie_nu"] == pytest.approx(6 / 7, rel=1e-3)


def test_somebody_not_met_in_training_is_believed_as_the_prior_says() -> None:
    judgements = Judgements(RewardRecipe(annotators="learned"), [replace(PAIR, annotator="a")])
    with torch.no_grad():
        judgements.trainable()[0][1].fill_(-9.0)
    stranger = tokens(replace(PAIR, annotator="z"))
    value = judgements.losses(judgements.labels([stranger]), torch.tensor([1.0, 0.0]), 0.0)
    assert float(value) == pytest.approx(-math.log(0.684846), abs=1e-4)


def test_centring_and_weights_are_the_same_whatever_the_loss() -> None:
    """λ (1 - 2 ...)² by hand: pairs of (1, 2, 4): 3², 5², 6² over three, times λ .1 and weight 2 → 4.6667."""
    three = Comparison("p", ("a", "b", "c"), ((2,), (1,), (0,)), weight=2.0)
    scores = torch.tensor([1.0, 2.0, 4.0])
    for options in ({}, {"ranking_loss": "plackett_luce"}):
        difference = loss(three, scores, 0.1, **options) - loss(three, scores, 0.0, **options)
        assert float(difference) == pytest.approx(2 * 0.1 * (9 + 25 + 36) / 3, abs=1e-5)


def test_bradley_terry_is_the_default() -> None:
    scores = torch.tensor([0.3, -1.2])
    expected = losses.bradley_terry(scores[:1], scores[1:], 0.5, 0.8)
    assert float(loss(replace(PAIR, margin=0.5, confidence=0.8), scores)) == pytest.approx(float(expected), abs=1e-6)
