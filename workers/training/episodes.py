"""What PPO learns from: completions that the policy has just drawn, with all that is known before it moves.

Everything here is a function of the models' weights, the prompts and the step, so that a rollout can be put aside in
the middle of its inner epochs (`tensors`) and taken up again to the bit (`restored`).
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from workers.training import sampling
from workers.training.nets import Policy, Scorer
from workers.training.recipes import PPORecipe
from workers.training.tokens import Example

Rate = Callable[[Sequence[Example], int], Sequence[float]]
"""Scores of whole completions, in passes of at most so many tokens; `Scorer.rate` is one."""


@dataclass(frozen=True)
class Rollout:
    """Completions of one step. Shapes (B, R), but `scores` and `ended` (B,)."""

    examples: list[Example]
    mask: Tensor
    old: Tensor  # log π of the sampled tokens, by the policy that sampled them
    reference: Tensor  # log π_ref of the same
    values: Tensor  # V before each token
    sampled: Tensor  # log π as the sampler gave it; differs from `old` by rounding alone
    scores: Tensor  # normalised, clipped, end rule applied
    ended: Tensor

    def tensors(self) -> dict[str, Tensor]:
        """All of it but the prompts, for a resumable state."""
        named = {name: getattr(self, name) for name in _FIELDS}
        tokens = torch.zeros_like(self.mask, dtype=torch.long)
        for row, example in enumerate(self.examples):
            tokens[row, : len(example.completion)] = torch.tensor(example.completion, device=tokens.device)
        return {f"rollout/{name}": value for name, value in (named | {"tokens": tokens}).items()}

    @classmethod
    def restored(
        cls, prompts: Sequence[list[int]], tensors: Mapping[str, Tensor], device: torch.device
    ) -> "Rollout | None":
        """The rollout on `prompts` that a state holds; None where it was saved between two steps."""
        if "rollout/tokens" not in tensors:
            return None
        named = {name: tensors[f"rollout/{name}"].to(device) for name in _FIELDS}
        lengths = tensors["rollout/mask"].sum(1).tolist()
        rows = zip(prompts, tensors["rollout/tokens"].tolist(), lengths, strict=True)
        return cls([Example(prompt, ids[:length]) for prompt, ids, length in rows], **named)


_FIELDS = ("mask", "old", "reference", "values", "sampled", "scores", "ended")


@torch.no_grad()
def roll_out(
    recipe: PPORecipe,
    policy: Policy,
    reference: Policy,
    rate: Rate,
    critic: Scorer,
    prompts: list[list[int]],
    step: int,
) -> Rollout:
    """Sample one completion per prompt and score it."""
    drawn = sampling.generate(
        policy,
        prompts,
        [_seed(recipe.seed, step, place) for place in range(len(prompts))],
        max_new_tokens=recipe.max_new_tokens,
        temperature=recipe.temperature,
        batch_size=max(1, recipe.micro_batch_tokens // recipe.max_new_tokens),
    )
    examples = [Example(prompt, completion.tokens) for prompt, completion in zip(prompts, drawn, strict=True)]
    ended = torch.tensor([completion.ended for completion in drawn], device=policy.device)
    scores = torch.tensor(rate(examples, recipe.micro_batch_tokens), device=policy.device)
    scores = end_rule(recipe, scores.clamp(-recipe.score_clip, recipe.score_clip), ended)

    shape = len(examples), max(len(e.completion) for e in examples)
    mask = torch.arange(shape[1]) < torch.tensor([len(e.completion) for e in examples])[:, None]
    sampled, referred, values = (torch.zeros(shape, device=policy.device) for _ in range(3))
    for row, completion in enumerate(drawn):
        sampled[row, : len(completion.tokens)] = torch.tensor(completion.log_probs, device=policy.device)
    old = sampled.clone()
    for group, batch in policy.passes(examples, recipe.micro_batch_tokens):
        rows, width = torch.tensor(group, device=policy.device), batch.mask.shape[1]
        if recipe.precision == "bf16":  # sampler and trainer round differently
            old[rows, :width] = policy.log_probs(batch, recipe.temperature)
        if policy is reference:
            with policy.as_reference():
                referred[rows, :width] = policy.log_probs(batch, recipe.temperature)
        else:
            referred[rows, :width] = reference.log_probs(batch, recipe.temperature)
        values[rows, :width] = critic.values(batch)
    return Rollout(examples, mask.to(policy.device), old, referred, values, sampled, scores, ended)


def end_rule(recipe: PPORecipe, scores: Tensor, ended: Tensor) -> Tensor:
    """Scores (B,) with the penalty of completions that did not end by themselves: taken off, or put in their place.

    Replacing is Ziegler et al. 2019 (their code: -1); taking off is TRL's `missing_eos_penalty`.
    """
    penalised = -recipe.missing_eos_penalty + (scores if recipe.missing_eos == "penalty" else torch.zeros_like(scores))
    return torch.where(ended, scores, penalised)


def _seed(seed: int, step: int, place: int) -> int:
    """One random stream for each completion of the run."""
    return random.Random(f"{seed}/{step}/{place}").getrandbits(63)
