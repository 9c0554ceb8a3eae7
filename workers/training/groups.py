"""The loop that GRPO and RLOO share: draw groups of completions, score them, compare, improve, resume anywhere.

One step: each of `batch_size` prompts gets G completions from the current policy; the reward components score them;
the objective turns rewards into one advantage per completion; `inner_epochs` × `minibatches` optimiser steps follow on
the same completions. Minibatches consist of whole groups, which share their prompt in one row (`layout.py`).

Log-probabilities of the sampler are the old ones in fp32; in bf16 they are computed again by the scoring pass, because
sampler and trainer then round differently. Before the first update of a rollout the ratio must be 1: that is asserted.
A state may be written after any update: it holds the rollout, so that nothing is drawn or scored again.
"""

import copy
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from workers.training import baselines, nets, optimisation, sampling
from workers.training.checkpoints import States, digest, fingerprint, finished, publish
from workers.training.errors import DataError, Interrupted, TooFewError, TrainingError
from workers.training.nets import Policy
from workers.training.optimisation import Optimiser
from workers.training.recipes import GroupRecipe
from workers.training.records import PromptRow, read_prompts
from workers.training.report import Reporter
from workers.training.rewards import Rewards, identity, read_components
from workers.training.tokens import Example

_STATISTICS = ("loss", "low", "high", "region", "low_min", "high_max", "approx_kl", "ratio_off")


@dataclass(frozen=True)
class Rollout:
    """Groups of completions and all that is known about them before the policy moves. A group's are neighbours."""

    examples: list[Example]
    rewards: Tensor  # (P, G) fp64, NaN where unscorable
    mask: Tensor  # (B, R) true at completion tokens, B = P·G
    old: Tensor  # (B, R) log π of the sampled tokens, by the policy that sampled them
    reference: Tensor | None  # (B, R) log π_ref of the same, where the objective needs it
    ended: list[bool]
    facts: dict[str, float]  # metrics of everything drawn, also of what was not kept

    @property
    def lengths(self) -> list[int]:
        return [len(example.completion) for example in self.examples]


class Objective(Protocol):
    """What tells GRPO from RLOO."""

    @property
    def stage(self) -> str: ...

    @property
    def kl_in_loss(self) -> bool:
        """Whether the loss moves completions without advantage, too."""

    @property
    def ratio_of_sequence(self) -> bool:
        """Whether a completion has one ratio, not one for each token."""

    def advantages(self, rollout: Rollout) -> Tensor:
        """(P, G) on the host; 0 for what cannot be scored."""

    def losses(
        self, new: Tensor, old: Tensor, reference: Tensor | None, advantages: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Loss of each completion (C,) before the normaliser, and the ratios that were clipped: (C, R) or (C, 1)."""

    def normaliser(self, lengths: Sequence[int]) -> float:
        """What the sum of the losses of completions of these lengths is divided by."""


def train(
    objective: Objective,
    recipe: GroupRecipe,
    beta: float,
    data: Path,
    out: Path,
    report: Reporter,
    model: str,
    reward_model: str | None,
    rewards: Path | None,
    resume: bool,
) -> dict[str, float]:
    """Improve `model` on the prompts of `data` into `out/checkpoint`; returns the last metrics."""
    components = read_components(rewards, reward_model)
    inputs = [objective.stage, recipe.model_dump(), fingerprint(data), fingerprint(model), identity(components)]
    run = digest(inputs)
    states = States(out, run)
    if resume and (done := finished(out / "checkpoint", run)):
        report.steps = done["step"]
        return dict(done["metrics"])
    if not resume:
        states.clear()

    rows = list(read_prompts(data))  # before the models are loaded, so that bad data fails at once
    if not rows:
        raise TooFewError("There is no prompt to train on.")
    policy = nets.load_policy(model, recipe.precision, recipe.lora, recipe.seed)
    policy.prepare(recipe, report)
    sampler = _Sampler(
        recipe,
        rows,
        policy,
        _reference(policy) if beta else None,
        Rewards(components, policy, recipe.max_new_tokens, recipe.micro_batch_tokens),
    )
    optimiser = Optimiser([(policy.trainable(), recipe.learning_rate)], recipe)
    steps = recipe.steps or optimisation.total_steps(len(rows), recipe)
    updates, first = recipe.inner_epochs * recipe.minibatches, 0
    rollout: Rollout | None = None
    seen: list[Tensor] = []
    metrics: dict[str, float] = {}
    if resume and (saved := states.latest(report.log)):
        first, tensors, info = saved
        optimiser.restore(tensors)
        sampler.drawn, metrics = info["drawn"], info["metrics"]
        if "rollout" in info:
            rollout, seen = _restored(tensors, info["rollout"], policy.device)

    report.begin()
    for number in range(first, steps * updates):
        step, update = divmod(number, updates)
        if update == 0 or rollout is None:
            rollout, seen = sampler.draw(), []
            report.count(len(rollout.examples), sum(len(e) for e in rollout.examples))
        items = _minibatch(recipe, rollout, step, update)
        statistics = _accumulate(objective, recipe, policy, rollout, items)
        if update == 0:
            _assert_unmoved(recipe, statistics)
        norm = optimiser.step(number, steps * updates)
        seen.append(torch.cat([statistics, norm.reshape(1).to(statistics)]))
        if update == updates - 1:
            metrics = _metrics(rollout, seen)
            report.step(step + 1, steps, metrics)
        if report.stopping or (recipe.save_every and (number + 1) % recipe.save_every == 0):
            tensors, facts = _state(rollout, seen) if update < updates - 1 else ({}, {})
            states.save(number + 1, optimiser.state() | tensors, {"drawn": sampler.drawn, "metrics": metrics} | facts)
        if report.stopping:
            raise Interrupted(f"Stopped after update {number + 1} of {steps * updates}; --resume goes on from there.")

    publish(out / "checkpoint", policy.save, {"stage": objective.stage, "step": steps, "run": run, "metrics": metrics})
    states.clear()
    report.steps = steps
    return metrics


@dataclass
class _Sampler:
    """Draws rollouts; `drawn` counts the batches of prompts used so far, which is all that must be remembered."""

    recipe: GroupRecipe
    rows: list[PromptRow]
    policy: Policy
    reference: Policy | None  # the policy itself under LoRA, adapters off
    rewards: Rewards
    drawn: int = 0
    prompts: list[list[int]] = field(init=False)

    def __post_init__(self) -> None:
        recipe, codec = self.recipe, self.policy.codec
        room = min(recipe.max_length, self.policy.context_length) - recipe.max_new_tokens
        if room < 1:
            raise DataError("max_new_tokens leaves no room for a prompt: lower it, or raise max_length.")
        self.prompts = [sampling.clip_prompt(codec.encode_prompt(row.prompt), room) for row in self.rows]

    @torch.no_grad()
    def draw(self) -> Rollout:
        """One rollout; with `max_draws`, only groups that differ in reward, drawn until there are `batch_size`."""
        recipe, size = self.recipe, self.recipe.group_size
        examples: list[Example] = []
        drawn: list[sampling.Completion] = []
        scores = torch.empty(0, size, len(self.rewards.names), dtype=torch.float64)
        kept: list[int] = []
        for _ in range(recipe.max_draws):
            more, completions, scored = self._groups()
            examples, drawn = examples + more, drawn + completions
            scores = torch.cat([scores, scored])
            rewards = baselines.combine(scores, self.rewards.weights)
            useful = (~baselines.alike(rewards)).nonzero().flatten().tolist()
            kept = list(range(len(rewards))) if recipe.max_draws == 1 else useful[: recipe.batch_size]
            if len(kept) >= recipe.batch_size:
                break
        facts = self.rewards.metrics(scores) | _facts(rewards, drawn)
        chosen = [g * size + k for g in kept for k in range(size)]
        return self._measured([examples[i] for i in chosen], [drawn[i] for i in chosen], rewards[kept], facts)

    def _groups(self) -> tuple[list[Example], list[sampling.Completion], Tensor]:
        """The next batch of prompts: completions, a prompt's as neighbours, and their scores (P, G, C)."""
        recipe, size = self.recipe, self.recipe.group_size
        items = optimisation.step_items(len(self.prompts), recipe.batch_size, recipe.seed, self.drawn)
        repeated = [i for i in items for _ in range(size)]
        completions = sampling.generate(
            self.policy,
            [self.prompts[i] for i in repeated],
            [_seed(recipe.seed, self.drawn, place) for place in range(len(repeated))],
            max_new_tokens=recipe.max_new_tokens,
            temperature=recipe.temperature,
            batch_size=max(1, recipe.micro_batch_tokens // recipe.max_new_tokens),
        )
        self.drawn += 1
        examples = [Example(self.prompts[i], c.tokens) for i, c in zip(repeated, completions, strict=True)]
        scores = self.rewards.score(examples, [self.rows[i].row for i in repeated], [c.ended for c in completions])
        return examples, completions, scores.view(len(items), size, -1)

    def _measured(
        self, examples: list[Example], drawn: list[sampling.Completion], rewards: Tensor, facts: dict[str, float]
    ) -> Rollout:
        """The rollout with old and reference log-probabilities."""
        policy, temperature = self.policy, self.recipe.temperature
        lengths = torch.tensor([len(e.completion) for e in examples], dtype=torch.long)
        mask = (torch.arange(int(lengths.max()) if examples else 1) < lengths[:, None]).to(policy.device)
        old = torch.zeros(mask.shape, device=policy.device)
        reference = torch.zeros_like(old) if self.reference else None
        for row, completion in enumerate(drawn):
            old[row, : len(completion.tokens)] = torch.tensor(completion.log_probs, device=policy.device)
        if examples and (reference is not None or self.recipe.precision == "bf16"):
            for places, batch in policy.passes(examples, self.recipe.micro_batch_tokens):
                rows, width = torch.tensor(places, device=policy.device), batch.mask.shape[1]
                if self.recipe.precision == "bf16":
                    old[rows, :width] = policy.log_probs(batch, temperature)
                if reference is None or self.reference is None:
                    continue
                if self.reference is policy:
                    with policy.as_reference():
                        reference[rows, :width] = policy.log_probs(batch, temperature)
                else:
                    reference[rows, :width] = self.reference.log_probs(batch, temperature)
        return Rollout(examples, rewards, mask, old, reference, [c.ended for c in drawn], facts)


def _accumulate(
    objective: Objective, recipe: GroupRecipe, policy: Policy, rollout: Rollout, items: list[int]
) -> Tensor:
    """Gradients of the loss over the completions `items`; returns the values of `_STATISTICS`.

    Completions that cannot move the policy, because their advantage is 0 and no KL pulls at them, are not computed:
    they only count in the normaliser.
    """
    high_clip = recipe.clip if recipe.clip_high is None else recipe.clip_high
    lengths = rollout.lengths
    advantages = objective.advantages(rollout).flatten()
    moved = advantages.ne(0).tolist()
    advantages = advantages.to(rollout.old)
    active = [i for i in items if objective.kl_in_loss or moved[i]]
    normaliser = objective.normaliser([lengths[i] for i in items])
    total, moved_by, furthest = (torch.zeros((), device=policy.device) for _ in range(3))
    low, high = (torch.zeros(len(lengths), device=policy.device) for _ in range(2))
    for places, batch in (
        policy.passes([rollout.examples[i] for i in active], recipe.micro_batch_tokens) if active else ()
    ):
        part, width = [active[p] for p in places], batch.mask.shape[1]
        old, advantage = rollout.old[part, :width], advantages[part]
        reference = None if rollout.reference is None else rollout.reference[part, :width]
        new = policy.log_probs(batch, recipe.temperature)
        loss, ratio = objective.losses(new, old, reference, advantage, batch.mask)
        (loss.sum() / normaliser).backward()
        with torch.no_grad():
            off = (new - old) * batch.mask
            total += loss.sum() / normaliser
            moved_by += 0.5 * off.square().sum()
            furthest = torch.maximum(furthest, off.abs().max())
            low[part] = _share((ratio < 1 - recipe.clip) & (advantage < 0)[:, None], batch.mask)
            high[part] = _share((ratio > 1 + high_clip) & (advantage > 0)[:, None], batch.mask)
    if not items:
        return torch.zeros(len(_STATISTICS), device=policy.device)
    tokens = torch.tensor([lengths[i] for i in items], device=policy.device)
    weights = (torch.ones_like(tokens) if objective.ratio_of_sequence else tokens) / 1.0
    low, high, weights = low[items], high[items], weights / weights.sum()
    clipped = [(low * weights).sum(), (high * weights).sum(), ((low + high) * weights).sum(), low.min(), high.max()]
    return torch.stack([total, *clipped, moved_by / tokens.sum(), furthest])


def _share(clipped: Tensor, mask: Tensor) -> Tensor:
    """(C,) share of a completion's tokens that are clipped; a ratio of the whole sequence stands for all of them."""
    if clipped.shape[1] == 1:
        return clipped[:, 0].float()
    return (clipped * mask).sum(1) / mask.sum(1).clamp(min=1)


def _assert_unmoved(recipe: GroupRecipe, statistics: Tensor) -> None:
    """Before the first update the policy *is* the one that sampled: any other ratio means wrong log-probabilities."""
    off = float(statistics[_STATISTICS.index("ratio_off")])
    if not off <= (1e-2 if recipe.precision == "fp32" else 0.25):
        raise TrainingError(
            f"Log-probabilities of sampler and trainer differ (by {off:.3g} before the first update): "
            "this model's generation and scoring passes do not agree."
        )


def _minibatch(recipe: GroupRecipe, rollout: Rollout, step: int, update: int) -> list[int]:
    """Completions of this update: a slice of the inner epoch's shuffle of whole groups, less those masked out."""
    epoch, place = divmod(update, recipe.minibatches)
    order = list(range(len(rollout.rewards)))
    random.Random(f"{recipe.seed}/{step}/{epoch}").shuffle(order)
    size = -(-len(order) // recipe.minibatches)
    groups = order[place * size : (place + 1) * size]
    items = [g * recipe.group_size + k for g in groups for k in range(recipe.group_size)]
    return [i for i in items if rollout.ended[i] or not recipe.mask_truncated]


def _facts(rewards: Tensor, drawn: Sequence[sampling.Completion]) -> dict[str, float]:
    """TRL's names for what a rollout shows; rewards (P, G). Entropy is estimated by -log π of the sampled tokens."""
    scored = rewards[~rewards.isnan()]
    lengths = [len(c.tokens) for c in drawn]
    whole = [len(c.tokens) for c in drawn if c.ended] or [0]
    facts = {
        "reward": float(scored.mean()),
        "reward_std": float(baselines.deviation(scored, 0)),
        "frac_reward_zero_std": float(baselines.alike(rewards).double().mean()),
        "frac_unscorable": float(rewards.isnan().double().mean()),
        "entropy": -sum(sum(c.log_probs) for c in drawn) / max(1, sum(lengths)),
        "completions/mean_length": sum(lengths) / len(lengths),
        "completions/min_length": min(lengths),
        "completions/max_length": max(lengths),
        "completions/clipped_ratio": sum(not c.ended for c in drawn) / len(drawn),
        "completions/mean_terminated_length": sum(whole) / len(whole),
        "completions/min_terminated_length": min(whole),
        "completions/max_terminated_length": max(whole),
    }
    return {name: float(value) for name, value in facts.items() if value == value}


def _metrics(rollout: Rollout, seen: Sequence[Tensor]) -> dict[str, float]:
    """What one step reports: facts of the rollout, KL per token and per sequence, means over the updates."""
    average = dict(zip((*_STATISTICS, "grad_norm"), torch.stack(list(seen)).mean(0).tolist(), strict=True))
    found = rollout.facts | {"loss": average["loss"], "grad_norm": average["grad_norm"]}
    if rollout.reference is not None and rollout.examples:
        gaps = ((rollout.old - rollout.reference) * rollout.mask).sum(1).double()
        found |= {"kl": float(gaps.sum() / rollout.mask.sum()), "objective/kl": float(gaps.mean())}
    return found | {
        "policy/approxkl_avg": average["approx_kl"],
        "clip_ratio/low_mean": average["low"],
        "clip_ratio/low_min": average["low_min"],
        "clip_ratio/high_mean": average["high"],
        "clip_ratio/high_max": average["high_max"],
        "clip_ratio/region_mean": average["region"],
        "groups": len(rollout.rewards),
    }


def _state(rollout: Rollout, seen: Sequence[Tensor]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A rollout in the middle of its updates, as tensors and JSON for `States.save`."""
    tensors = {
        "rollout/rewards": rollout.rewards,
        "rollout/old": rollout.old,
        "rollout/seen": torch.stack(list(seen)),
        **({"rollout/reference": rollout.reference} if rollout.reference is not None else {}),
    }
    texts = [[e.prompt, e.completion] for e in rollout.examples]
    return tensors, {"rollout": {"texts": texts, "ended": rollout.ended, "facts": rollout.facts}}


def _restored(tensors: dict[str, Tensor], facts: dict[str, Any], device: torch.device) -> tuple[Rollout, list[Tensor]]:
    """What `_state` wrote."""
    examples = [Example(prompt, completion) for prompt, completion in facts["texts"]]
    old = tensors["rollout/old"].to(device)
    lengths = torch.tensor([len(e.completion) for e in examples], dtype=torch.long, device=device)
    mask = torch.arange(old.shape[1], device=device) < lengths[:, None]
    reference = tensors["rollout/reference"].to(device) if "rollout/reference" in tensors else None
    rollout = Rollout(examples, tensors["rollout/rewards"], mask, old, reference, facts["ended"], facts["facts"])
    return rollout, list(tensors["rollout/seen"].to(device).unbind())


def _seed(seed: int, draw: int, place: int) -> int:
    """One random stream for each completion of the run."""
    return random.Random(f"{seed}/{draw}/{place}").getrandbits(63)


def _reference(policy: Policy) -> Policy:
    """The starting policy: the same with adapters off under LoRA, a frozen copy otherwise."""
    if policy.peft is not None:
        return policy
    reference = Policy(copy.deepcopy(policy.model), policy.codec, policy.precision)
    reference.freeze()
    return reference
