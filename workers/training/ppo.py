"""Proximal policy optimisation against a reward model, held near the starting policy by a KL penalty.

One step: draw completions y for a batch of prompts from the current policy, score them, and improve the policy on them.

    score      s  = clip((r(x, y) - mean) / std, ±c), less a penalty when y did not end by itself, or replaced by it
    reward     r_t = -β (log π - log π_ref)_t, and s added at the last token            (KL estimator k1)
    advantage  Â by GAE(γ, λ) on the value model, whitened over the whole rollout; R = A + V from before whitening
    policy     max(-Â ρ, -Â clip(ρ, 1±ε)),  ρ = exp(log π_new - log π_old)              (Â < 0: at most -cÂ, dual clip)
    value      ½ max((V - R)², (clip(V, V_old ± ε_v) - R)²)
    ptx        -γ log π(z) per token of demonstrations z                                 (PPO-ptx)

the first two averaged over the completion tokens of the minibatch, each minibatch a slice of a fresh shuffle in every
inner epoch. The reference is the starting policy: adapters switched off under LoRA, a frozen copy otherwise. The value
model starts as the reward model or at nothing, and has its own learning rate; who shares weights with whom is told in
`shared.py`. Log-probabilities of the sampler are the old ones in fp32; in bf16 they are computed again by the scoring
pass, because sampler and trainer then round differently.

Guards: before the first update of a rollout ρ must be 1, which is asserted; an update whose mean ratio is above 10 is
skipped; the inner epochs end when the policy has moved by more than `max_approx_kl` from the one that sampled.

States are written between steps and, on SIGTERM, after any update: the rollout and its place in the inner epochs are
part of them, and the resumed run ends with the bits of the uninterrupted one.

Deliberately left out: several completions per prompt, an average of the weights over time, asynchronous generation.

    python -m workers.training ppo --data prompts.jsonl --model POLICY --reward-model RM --out OUT
"""

import copy
import math
import random
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from workers.training import demonstrations, losses, nets, optimisation, sampling, shared
from workers.training.advantages import KLController, gae, masked_mean, shaped_rewards, whiten
from workers.training.checkpoints import States, digest, fingerprint, finished, publish
from workers.training.episodes import Rollout, roll_out
from workers.training.errors import DataError, Interrupted, TooFewError, TrainingError
from workers.training.nets import Policy, Scorer
from workers.training.optimisation import Optimiser
from workers.training.recipes import PPORecipe
from workers.training.records import read_demonstrations, read_prompts
from workers.training.report import Reporter
from workers.training.tokens import Example

MAX_RATIO = 10.0
"""An update on a minibatch whose mean ratio is beyond this would learn from other completions than the policy's."""


def train(
    recipe: PPORecipe,
    data: Path,
    out: Path,
    report: Reporter,
    *,
    model: str,
    reward_model: str,
    ptx_data: Path | None = None,
    resume: bool = False,
) -> dict[str, float]:
    """Improve `model` under `reward_model` on the prompts of `data` into `out/checkpoint`; returns the last metrics."""
    inputs = [fingerprint(source) for source in (data, model, reward_model, ptx_data)]
    run = digest(["ppo", recipe.model_dump(), *inputs])
    states = States(out, run)
    if resume and (done := finished(out / "checkpoint", run)):
        report.steps = done["step"]
        return dict(done["metrics"])
    if not resume:
        states.clear()

    rows = list(read_prompts(data))  # before the models are loaded, so that bad data fails at once
    if not rows:
        raise TooFewError("There is no prompt to train on.")
    if (recipe.ptx_coef > 0) != (ptx_data is not None):
        raise DataError("ptx_coef and --ptx-data go together: give both, or neither.")
    shown = list(read_demonstrations(ptx_data)) if ptx_data else []
    policy = nets.load_policy(model, recipe.precision, recipe.lora, recipe.seed)
    policy.prepare(recipe, report)
    reference = policy if recipe.lora else _frozen_copy(policy)
    scorer, critic = shared.reward_and_value(recipe, policy, model, reward_model)
    room = min(recipe.max_length, policy.context_length) - recipe.max_new_tokens
    if room < 1:
        raise DataError("max_new_tokens leaves no room for a prompt: lower it, or raise max_length.")
    prompts = [sampling.clip_prompt(policy.codec.encode_prompt(row.prompt), room) for row in rows]
    ptx = demonstrations.encode(policy.codec, shown, recipe.max_length, "all", report)

    total, first = recipe.steps or optimisation.total_steps(len(prompts), recipe), 0
    learner = Learner(recipe, policy, critic, total, ptx)
    controller = KLController(recipe.beta, recipe.target_kl, recipe.kl_horizon)
    metrics: dict[str, float] = {}
    seen: list[dict[str, float]] = []
    rollout: Rollout | None = None
    if resume and (saved := states.latest(report.log)):
        first, tensors, info = saved
        learner.optimiser.restore(tensors)
        controller.beta, metrics, seen = info["beta"], info["metrics"], info["seen"]
        items = optimisation.step_items(len(prompts), recipe.batch_size, recipe.seed, first)
        rollout = Rollout.restored([prompts[i] for i in items], tensors, policy.device)

    report.begin()
    for step in range(first, total):
        if rollout is None:
            items = optimisation.step_items(len(prompts), recipe.batch_size, recipe.seed, step)
            rollout = roll_out(recipe, policy, reference, scorer.rate, critic, [prompts[i] for i in items], step)
        lessons = Lessons.of(recipe, rollout, controller.beta)
        while len(seen) < learner.updates and not (seen and seen[-1]["policy/stopped"]):
            seen.append(learner.update(rollout, lessons, step, len(seen)))
            if report.stopping and len(seen) < learner.updates:
                kept = {"beta": controller.beta, "metrics": metrics, "seen": seen}
                states.save(step, learner.optimiser.state() | rollout.tensors(), kept)
                raise Interrupted(f"Stopped within step {step + 1} of {total}; --resume goes on from there.")

        report.count(len(rollout.examples), sum(len(e) for e in rollout.examples))
        metrics = optimisation.to_floats(_statistics(rollout, lessons, seen, controller.beta))
        controller.update(metrics["objective/kl"], len(rollout.examples))
        rollout, seen = None, []
        report.step(step + 1, total, metrics)
        if report.stopping or (recipe.save_every and (step + 1) % recipe.save_every == 0):
            kept = {"beta": controller.beta, "metrics": metrics, "seen": []}
            states.save(step + 1, learner.optimiser.state(), kept)
        if report.stopping:
            raise Interrupted(f"Stopped after step {step + 1} of {total}; --resume goes on from there.")

    publish(out / "checkpoint", policy.save, {"stage": "ppo", "step": total, "run": run, "metrics": metrics})
    states.clear()
    report.steps = total
    return metrics


@dataclass(frozen=True)
class Lessons:
    """What a rollout teaches: rewards, advantages (whitened) and returns of its tokens, all (B, R)."""

    rewards: Tensor
    advantages: Tensor
    returns: Tensor

    @classmethod
    def of(cls, recipe: PPORecipe, rollout: Rollout, beta: float) -> "Lessons":
        """By the recipe's discounts, with the KL penalty at weight `beta`."""
        mask = rollout.mask
        rewards = shaped_rewards(rollout.scores, rollout.old, rollout.reference, mask, beta)
        if recipe.whiten_rewards:
            rewards = whiten(rewards, mask, keep_mean=True)
        advantages, returns = gae(rewards, rollout.values, mask, recipe.gamma, recipe.lam)
        return cls(rewards, whiten(advantages, mask), returns)


@dataclass
class Learner:
    """The networks that learn, and their optimiser."""

    recipe: PPORecipe
    policy: Policy
    critic: Scorer
    total: int  # steps of the run, for the learning-rate schedule
    ptx: list[Example] = field(default_factory=list)

    def __post_init__(self) -> None:
        recipe = self.recipe
        actor = [(f"policy/{name}", p) for name, p in self.policy.trainable()]
        critic = [(f"value/{name}", p) for name, p in self.critic.trainable()]
        self.optimiser = Optimiser([(actor, recipe.learning_rate), (critic, recipe.value_learning_rate)], recipe)
        self.updates = recipe.inner_epochs * recipe.minibatches

    def update(self, rollout: Rollout, lessons: Lessons, step: int, number: int) -> dict[str, float]:
        """Update `number` of step `step` (both from 0), unless a guard forbids it; returns what was seen before it."""
        recipe = self.recipe
        epoch, place = divmod(number, recipe.minibatches)
        chosen = _minibatch(len(rollout.examples), recipe.minibatches, f"{recipe.seed}/{step}/{epoch}", place)
        seen = optimisation.to_floats(self._accumulate(rollout, lessons, chosen, step, number))
        if number == 0:
            _assert_unmoved(recipe, seen.pop("ratio_off"))
        too_far = recipe.max_approx_kl is not None and seen["policy/k3_avg"] > recipe.max_approx_kl
        seen["policy/stopped"] = float(too_far)
        if too_far or not seen["val/ratio"] <= MAX_RATIO:
            self.optimiser.adam.zero_grad(set_to_none=True)
            return seen
        if self.ptx and step >= recipe.freeze_policy_steps:
            seen["loss/ptx"] = float(self._accumulate_ptx(step * self.updates + number))
        norm = self.optimiser.step(step * self.updates + number, self.total * self.updates)
        return seen | {"grad_norm": float(norm)}

    def _accumulate(
        self, rollout: Rollout, lessons: Lessons, items: list[int], step: int, number: int
    ) -> dict[str, Tensor]:
        """Gradients of both losses over the minibatch `items`, averaged over all its tokens; its statistics."""
        recipe, policy, critic = self.recipe, self.policy, self.critic
        tokens = sum(len(rollout.examples[i].completion) for i in items)
        sums: list[Tensor] = []
        off: list[Tensor] = []
        entropies: list[Tensor] = []
        for group, batch in policy.passes([rollout.examples[i] for i in items], recipe.micro_batch_tokens):
            part, mask = [items[g] for g in group], batch.mask
            old, sampled, old_values, advantage, target = (
                tensor[part, : mask.shape[1]]
                for tensor in (rollout.old, rollout.sampled, rollout.values, lessons.advantages, lessons.returns)
            )
            with torch.set_grad_enabled(step >= recipe.freeze_policy_steps):
                if number < recipe.minibatches:
                    new, entropy = policy.log_probs_and_entropy(batch, recipe.temperature)
                    entropies.append(entropy.sum() / tokens)
                else:
                    new = policy.log_probs(batch, recipe.temperature)
                policy_loss, ratio = losses.ppo_policy(new, old, advantage, recipe.clip, recipe.dual_clip)
                if recipe.sampler_ratio_cap is not None:
                    policy_loss = policy_loss * (old - sampled).exp().clamp(max=recipe.sampler_ratio_cap)
                if policy_loss.requires_grad:
                    ((policy_loss * mask).sum() / tokens).backward()
            with critic.reading():
                values = critic.values(batch)
                value_loss = losses.ppo_value(values, old_values, target, recipe.value_clip)
                (recipe.value_coef * (value_loss * mask).sum() / tokens).backward()
            with torch.no_grad():
                per_token = {
                    "loss/policy_avg": policy_loss,
                    "loss/value_avg": value_loss,
                    "policy/approxkl_avg": 0.5 * (new - old).square(),
                    "policy/k3_avg": losses.k3(old, new),  # of the sampling policy from the new one
                    "policy/clipfrac_avg": losses.ppo_policy(new, old, advantage, recipe.clip)[0] > -advantage * ratio,
                    "val/ratio": ratio,
                    "val/squared_ratio": ratio.square(),
                    "val/clipfrac_avg": value_loss > 0.5 * (values - target).square(),
                }
                sums.append(torch.stack([(value * mask).sum() for value in per_token.values()]))
                off.append(((ratio - 1).abs() * mask).max())
        means = torch.stack(sums).sum(0) / tokens
        statistics = dict(zip(per_token, means.unbind(), strict=True))
        statistics["val/ess"] = statistics["val/ratio"].square() / statistics.pop("val/squared_ratio")
        if number == 0:
            statistics["ratio_off"] = torch.stack(off).max()
        return statistics | ({"policy/entropy_avg": torch.stack(entropies).sum()} if entropies else {})

    def _accumulate_ptx(self, update: int) -> Tensor:
        """Gradients of γ · NLL per token on the next demonstrations; returns the NLL."""
        recipe = self.recipe
        items = optimisation.step_items(len(self.ptx), recipe.ptx_batch_size, recipe.seed, update)
        examples = [self.ptx[i] for i in items]
        tokens = sum(example.targets for example in examples)
        nll = torch.zeros((), device=self.policy.device)
        for _, batch in self.policy.passes(examples, recipe.micro_batch_tokens):
            part = -self.policy.log_probs(batch).sum() / tokens
            (recipe.ptx_coef * part).backward()
            nll += part.detach()
        return nll


def _assert_unmoved(recipe: PPORecipe, off: float) -> None:
    """Before the first update the policy *is* the one that sampled: any other ratio means wrong log-probabilities."""
    if not off <= (1e-2 if recipe.precision == "fp32" else 0.25):
        raise TrainingError(
            f"Log-probabilities of sampler and trainer differ (ratio off by {off:.3g} before the first update): "
            "this model's generation and scoring passes do not agree."
        )


def _statistics(
    rollout: Rollout, lessons: Lessons, seen: list[dict[str, float]], beta: float
) -> dict[str, Tensor | float]:
    """TRL's names for what one step shows; KL, entropy and reward are sums per sequence, averaged."""
    mask, values, returns = rollout.mask, rollout.values, lessons.returns
    spread = masked_mean((returns - masked_mean(returns, mask)).square(), mask).clamp(min=1e-8)
    names = {name: None for entry in seen for name in entry if name != "policy/stopped"}
    found = {name: [entry[name] for entry in seen if name in entry] for name in names}
    kl = ((rollout.old - rollout.reference) * mask).sum(1).mean()
    return {
        "objective/kl": kl,
        "objective/scores": rollout.scores.mean(),
        "objective/entropy": -(rollout.old * mask).sum(1).mean(),
        "objective/non_score_reward": -beta * kl,
        "objective/rlhf_reward": rollout.scores.mean() - beta * kl,
        **{name: sum(numbers) / len(numbers) for name, numbers in found.items()},
        "policy/updates": float(len(found.get("grad_norm", []))),
        "sampling/sampling_logp_difference/mean": masked_mean((rollout.old - rollout.sampled).abs(), mask),
        "val/explained_variance": 1 - masked_mean((returns - values).square(), mask) / spread,
        "completions/mean_length": mask.sum(1).float().mean(),
        "completions/eos_rate": rollout.ended.float().mean(),
        "beta": beta,
    }


def _minibatch(items: int, minibatches: int, seed: str, place: int) -> list[int]:
    """The `place`-th of `minibatches` slices of the epoch's shuffle; with fewer items than slices, all of them."""
    order = list(range(items))
    random.Random(seed).shuffle(order)
    size = math.ceil(items / minibatches)
    return order[place * size : (place + 1) * size] or order


def _frozen_copy(policy: Policy) -> Policy:
    reference = Policy(copy.deepcopy(policy.model), policy.codec, policy.precision)
    reference.freeze()
    return reference
