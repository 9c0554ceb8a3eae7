# ruff: noqa: E501  (the table quotes code)
"""Bugs that trainers of this kind have had, planted one at a time: each must be caught by the check that is named.

A check is a small assertion about the real code that passes as the code is. A bug is a patch of one function, or a
change of its source. The test fails if the check does not notice.
"""

import inspect
import sys
import textwrap
from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.workers.training.nets_in_memory import byte_tokenizer, example, language_model, policy
from workers.training import advantages, dpo, episodes, layout, losses, ppo, sampling, shared
from workers.training.comparisons import TokenComparison
from workers.training.episodes import Rollout, roll_out
from workers.training.errors import TrainingError
from workers.training.layout import collate, lay_out
from workers.training.nets import Scorer
from workers.training.recipes import DPORecipe, PPORecipe
from workers.training.records import Comparison
from workers.training.tokens import Codec, Example

Plant = Callable[[pytest.MonkeyPatch], None]


def source(owner: Any, name: str, right: str, wrong: str) -> Plant:
    """Replace `right`, which must occur, by `wrong` in the source of a function or method, wherever it is used."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        original = inspect.unwrap(getattr(owner, name))
        text = textwrap.dedent(inspect.getsource(original))
        assert right in text, f"{name} no longer reads {right!r}: plant the bug in the code as it is"
        space: dict[str, Any] = {}
        module = sys.modules[original.__module__]
        exec(compile(text.replace(right, wrong), f"planted in {name}", "exec"), vars(module), space)  # noqa: S102
        before = getattr(owner, name)
        patch.setattr(owner, name, space[name])
        for place in [m for n, m in sys.modules.items() if n.startswith("workers.training")]:
            if getattr(place, name, None) is before:  # modules that imported the function by its name
                patch.setattr(place, name, space[name])

    return plant


# What a check looks at


MASK = torch.tensor([[True, True, True], [True, True, False]])
RECIPE = PPORecipe(
    batch_size=4, minibatches=1, max_new_tokens=5, micro_batch_tokens=64, temperature=0.6, missing_eos_penalty=1.0,
    learning_rate=1e-2, value_learning_rate=1e-2,
)  # fmt: skip
PROMPTS = [[5, 6, 7, 8], [9], [10, 11], [12, 13, 14, 15, 16, 17]]


def score(examples: Any, _: int) -> list[float]:
    return [float(len(e.completion)) for e in examples]


def learner(recipe: PPORecipe = RECIPE) -> ppo.Learner:
    actor = policy()
    headed = shared.Headed(language_model("llama", 1).base_model, actor.model.config, torch.ones(1, 32))
    return ppo.Learner(recipe, actor, Scorer(headed, actor.codec), total=10)


def rolled(who: ppo.Learner) -> Rollout:
    return roll_out(who.recipe, who.policy, ppo._frozen_copy(who.policy), score, who.critic, PROMPTS, step=0)


def shaped_by_hand() -> None:
    """β = .5, log-ratios (1, 2, -1 | 4, 0), scores 10 and 20 on the last tokens."""
    new = torch.tensor([[1.0, 2.0, -1.0], [4.0, 0.0, 99.0]])
    found = advantages.shaped_rewards(torch.tensor([10.0, 20.0]), new, torch.zeros(2, 3), MASK, beta=0.5)
    assert torch.equal(found, torch.tensor([[-0.5, -1.0, 10.5], [-2.0, 20.0, 0.0]]))


def gae_by_hand() -> None:
    """γ = .5, λ = .5, worked backwards; what stands off the mask must not matter."""
    rewards, values = (
        torch.tensor([[0.0, 0.0, 1.0], [1.0, 2.0, 77.0]]),
        torch.tensor([[0.5, 0.5, 0.5], [1.0, 1.0, 55.0]]),
    )
    found, returns = advantages.gae(rewards, values, MASK, gamma=0.5, lam=0.5)
    expected = torch.tensor([[-0.28125, -0.125, 0.5], [0.75, 1.0, 0.0]])
    assert torch.allclose(found, expected) and torch.allclose(returns, (expected + values) * MASK)


def whitening_by_hand() -> None:
    """1, 3, 5, 1, 5: mean 3, variance 3.2."""
    found = advantages.whiten(torch.tensor([[1.0, 3.0, 5.0], [1.0, 5.0, 1000.0]]), MASK)
    assert torch.allclose(found, torch.tensor([[-1.118034, 0.0, 1.118034], [-1.118034, 1.118034, 0.0]]), atol=1e-5)


def a_mean_by_hand() -> None:
    assert float(advantages.masked_mean(torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 99.0]]), MASK)) == 3.0


def the_controller_by_hand() -> None:
    """KL above its target: the penalty must grow, by at most a fifth of the horizon's share."""
    controller = advantages.KLController(0.1, target=6.0, horizon=100)
    controller.update(12.0, 50)
    assert controller.beta == pytest.approx(0.11)


def returns_are_those_of_raw_advantages() -> None:
    """With λ = γ = 1 and no KL, every return is the score."""
    who = learner(RECIPE.model_copy(update={"lam": 1.0, "missing_eos_penalty": 0.0}))
    rollout = rolled(who)
    returns = ppo.Lessons.of(who.recipe, rollout, beta=0.0).returns
    assert torch.allclose(returns, rollout.scores[:, None] * rollout.mask, atol=1e-4)


def advantages_have_mean_nought_and_variance_one() -> None:
    who = learner()
    rollout = rolled(who)
    found = ppo.Lessons.of(who.recipe, rollout, beta=0.1).advantages[rollout.mask]
    assert abs(float(found.mean())) < 1e-5 and float(found.var(correction=0)) == pytest.approx(1.0, abs=1e-3)


def the_ratio_starts_at_one() -> None:
    who = learner()
    rollout = rolled(who)
    seen = who.update(rollout, ppo.Lessons.of(who.recipe, rollout, 0.1), 0, 0)
    assert seen["val/ratio"] == pytest.approx(1.0, abs=1e-4)


def clipping_by_hand() -> None:
    """ε = .2: A = 1, ρ = 1.5 → -1.2; A = -1, ρ = 1.5 → 1.5; A = 1, ρ = .5 → -.5."""
    new = torch.tensor([1.5, 1.5, 0.5]).log()
    loss, _ = losses.ppo_policy(new, torch.zeros(3), torch.tensor([1.0, -1.0, 1.0]), clip=0.2)
    assert torch.allclose(loss, torch.tensor([-1.2, 1.5, -0.5]), atol=1e-6)


def the_value_loss_by_hand() -> None:
    loss = losses.ppo_value(torch.tensor([1.0, -1.0]), torch.zeros(2), torch.ones(2), clip=0.2)
    assert torch.allclose(loss, torch.tensor([0.32, 2.0]))


def the_reference_stays() -> None:
    """After an update with a large step, the KL of the next rollout is far from 0."""
    who = learner()
    reference = ppo._frozen_copy(who.policy)
    for step in range(2):
        rollout = roll_out(RECIPE, who.policy, reference, score, who.critic, PROMPTS, step)
        if step == 0:
            who.update(rollout, ppo.Lessons.of(who.recipe, rollout, 0.1), 0, 0)
    assert float((rollout.old - rollout.reference).abs().max()) > 1e-3


def log_probs_are_those_of_the_whole_softmax() -> None:
    """Against transformers' own forward pass, example by example, at a temperature."""
    ours, items = policy(), [example("what is it", "a cat"), example("x", "nothing at all")]
    for item in items:
        logits = ours.model(torch.tensor([item.prompt + item.completion])).logits[0] / 0.7
        expected = logits.log_softmax(-1)[len(item.prompt) - 1 : -1].gather(1, torch.tensor(item.completion)[:, None])
        assert torch.allclose(ours.log_probs(collate([item]), 0.7)[0], expected[:, 0], atol=1e-4)
    assert [int(n) for n in collate(items).mask.sum(1)] == [len(i.completion) for i in items]


def completions_are_scored_at_their_end() -> None:
    """The score is the head on the state of the end token, whatever stands beside it in the batch."""
    scorer, items = _scorer(), [example("what is it", "a cat"), example("x", "nothing at all")]
    for row, item in enumerate(items):
        state = scorer.model.base_model(input_ids=torch.tensor([item.prompt + item.completion]))[0][0, -1]
        assert torch.allclose(scorer.scores(collate(items))[row], state @ scorer.model.score.weight[0], atol=1e-4)


def completions_in_one_row_do_not_see_each_other() -> None:
    ours, items = policy(), [example("what is it", "a cat"), example("what is it", "nothing")]
    assert torch.allclose(ours.log_probs(lay_out([[items]])), ours.log_probs(collate(items)), atol=1e-4)


def sampled_tokens_have_the_log_probs_of_the_scoring_pass() -> None:
    """On learned positions, which do not forgive a shift."""
    ours = policy("gpt2")
    prompts = [[7, 8], [9, 10, 11, 12, 13, 14, 15]]
    for prompt, drawn in zip(prompts, sampling.generate(ours, prompts, [1, 2], max_new_tokens=6), strict=True):
        again = ours.log_probs(collate([Example(prompt, drawn.tokens)]))[0]
        assert torch.allclose(torch.tensor(drawn.log_probs), again, atol=1e-4)


def the_gradient_is_one_of_the_whole_minibatch() -> None:
    """Cut into passes of one example or not at all: the same gradients."""
    found = []
    for tokens in (1, 4096):
        who = learner(RECIPE.model_copy(update={"micro_batch_tokens": tokens}))
        rollout = rolled(learner())
        who._accumulate(rollout, ppo.Lessons.of(who.recipe, rollout, 0.1), [0, 1, 2, 3], 0, 0)
        found.append(torch.cat([p.grad.flatten() for _, p in who.optimiser.named if p.grad is not None]))
    assert torch.allclose(found[0], found[1], atol=1e-5)


def an_unfinished_completion_scores_less() -> None:
    scores = episodes.end_rule(RECIPE, torch.tensor([2.0, 2.0]), torch.tensor([True, False]))
    assert scores.tolist() == [2.0, 1.0]


def dpo_by_hand() -> None:
    """β = .5, log-ratios 1 and -1 as sums over completions of 2 and 3 tokens: z = 1, -log σ(z) = .313262."""
    pair = TokenComparison((Example([5], [6, 7]), Example([5], [8, 9, 10])), Comparison("x", ("a", "b")))
    log_probs, referred = torch.tensor([-3.0, -6.0]), torch.tensor([-4.0, -5.0])
    terms = dpo.judge(DPORecipe(beta=0.5), [pair], log_probs, referred).losses
    smoothed = dpo.judge(DPORecipe(beta=0.5, label_smoothing=0.1), [pair], log_probs, referred).losses
    assert float(terms.sum()) == pytest.approx(0.313262, abs=1e-5)
    assert float(smoothed.sum()) == pytest.approx(0.413262, abs=1e-5)


def _scorer() -> Scorer:
    model = language_model("llama")
    headed = shared.Headed(model.base_model, model.config, torch.linspace(-1, 1, 32)[None])
    return Scorer(headed, Codec(byte_tokenizer()))


BUGS: dict[str, tuple[Callable[[], None], Plant]] = {
    "the KL penalty has the wrong sign": (
        shaped_by_hand, source(advantages, "shaped_rewards", "-beta * (new - reference)", "beta * (new - reference)"),
    ),
    "k3 stands in the reward": (
        shaped_by_hand,
        source(advantages, "shaped_rewards", "-beta * (new - reference)", "-beta * ((reference - new).expm1() - reference + new)"),
    ),
    "the score stands on the last column, not on the last token": (
        shaped_by_hand, source(advantages, "shaped_rewards", "mask.flip(1).int().argmax(1)", "mask.flip(1).int().argmax(1) * 0"),
    ),
    "padding pays a KL penalty": (
        shaped_by_hand, source(advantages, "shaped_rewards", "(new - reference) * mask", "(new - reference)"),
    ),
    "the adaptive penalty moves the wrong way": (
        the_controller_by_hand, source(advantages.KLController, "update", "kl / self.target - 1.0", "1.0 - kl / self.target"),
    ),
    "GAE reads values and rewards beyond the end": (
        gae_by_hand, source(advantages, "gae", "real = mask[:, t]", "real = torch.ones_like(mask[:, t])"),
    ),
    "GAE forgets the discount": (
        gae_by_hand, source(advantages, "gae", "delta + gamma * lam * following", "delta + lam * following"),
    ),
    "padding is in the mean": (
        a_mean_by_hand, source(advantages, "masked_mean", "mask.sum().clamp(min=1)", "mask.numel()"),
    ),
    "whitening looks at the padding": (
        whitening_by_hand, source(advantages, "whiten", "mean = masked_mean(values, mask)", "mean = values.mean()"),
    ),
    "returns are taken after whitening": (
        returns_are_those_of_raw_advantages,
        source(ppo.Lessons, "of", "whiten(advantages, mask), returns", "whiten(advantages, mask), whiten(advantages, mask) + rollout.values"),
    ),
    "advantages are not whitened": (
        advantages_have_mean_nought_and_variance_one,
        source(ppo.Lessons, "of", "whiten(advantages, mask), returns", "advantages, returns"),
    ),
    "clipping takes the smaller loss": (
        clipping_by_hand, source(losses, "ppo_policy", "torch.maximum(", "torch.minimum("),
    ),
    "the value loss takes the smaller error": (
        the_value_loss_by_hand, source(losses, "ppo_value", "torch.maximum(", "torch.minimum("),
    ),
    "the trainer forgets the temperature": (
        the_ratio_starts_at_one, source(losses, "token_log_probs", ".apply(logits, targets, temperature)", ".apply(logits, targets, 1.0)"),
    ),
    "log-probabilities are off by one token": (
        log_probs_are_those_of_the_whole_softmax,
        source(layout, "lay_out", "start + i - 1 if i else ask", "start + i if i else ask"),
    ),
    "the end token is not learnt": (
        log_probs_are_those_of_the_whole_softmax,
        source(layout, "lay_out", "example.trained is None or example.trained[i] for i in range(size)", "i + 1 < size for i in range(size)"),
    ),
    "the reference is trained along": (
        the_reference_stays, source(ppo, "_frozen_copy", "copy.deepcopy(policy.model)", "policy.model"),
    ),
    "a completion without an end is let off": (
        an_unfinished_completion_scores_less, source(episodes, "end_rule", "torch.where(ended, scores, penalised)", "scores"),
    ),
    "the reward model is read one token too early": (
        completions_are_scored_at_their_end, source(layout, "lay_out", "start + size - 1 if size", "start + size - 2 if size"),
    ),
    "completions of a shared row see each other": (
        completions_in_one_row_do_not_see_each_other,
        source(layout, "_attention", "(branch[:, None, :] == 0) | (branch[:, None, :] == branch[:, :, None])", "branch[:, None, :] >= 0"),
    ),
    "the sampler counts positions over the left padding": (
        sampled_tokens_have_the_log_probs_of_the_scoring_pass,
source(sampling._Draw, "start", "(mask.cumsum(1) - 1)", "(torch.ones_like(mask).cumsum(1) - 1)"),
    ),
    "DPO takes means over the tokens instead of sums": (
        dpo_by_hand, source(dpo, "judge", "(sizes if by_token else 1)", "sizes"),
    ),
    "DPO leaves out the reference": (
        dpo_by_hand, source(dpo, "judge", "(log_probs - referred) /", "log_probs /"),
    ),
    "DPO ignores label smoothing": (
        dpo_by_hand, source(dpo, "judge", "sure * (1 - 2 * smoothing) + smoothing", "sure"),
    ),
    "gradient accumulation takes a mean of means": (
        the_gradient_is_one_of_the_whole_minibatch,
        source(ppo.Learner, "_accumulate", "((policy_loss * mask).sum() / tokens)", "((policy_loss * mask).sum() / mask.sum())"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_caught(bug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check, plant = BUGS[bug]
    plant(monkeypatch)
    with pytest.raises((AssertionError, TrainingError)):  # the check's, or a guard of the code's own
        check()


@pytest.mark.parametrize("check", {check for check, _ in BUGS.values()}, ids=lambda check: check.__name__)
def test_without_a_bug_its_check_is_content(check: Callable[[], None]) -> None:
    check()
