"""Proximal policy optimisation against a reward model, held near the starting policy by a KL penalty.

One step: draw completions y for a batch of prompts from the current policy, score them, and improve the policy on them.

    score      s  = clip((r(x, y) - mean) / std, ±c), less a penalty when y did not end by itself
    reward     r_t = -β (log π - log π_ref)_t, and s added at the last token            (KL estimator k1)
    advantage  Â by GAE(γ, λ) on the value model, whitened over the whole rollout; R = A + V from before whitening
    policy     max(-Â ρ, -Â clip(ρ, 1±ε)),  ρ = exp(log π_new - log π_old)
    value      ½ max((V - R)², (clip(V, V_old ± ε_v) - R)²)

both averaged over the completion tokens of the minibatch. The reference is the starting policy: adapters switched off
under LoRA, a frozen copy otherwise. The value model is a copy of the reward model, trained with its own learning rate.
Log-probabilities of the sampler are the old ones in fp32; in bf16 they are computed again by the scoring pass, because
sampler and trainer then round differently. Before the first update of a rollout ρ must be 1: that is asserted.

Deliberately left out: several completions per prompt, pre-training loss (PPO-ptx), a shared trunk for policy and value,
asynchronous generation. States are written between steps, where no rollout is half used.

    python -m workers.training ppo --data prompts.jsonl --model POLICY --reward-model RM --out OUT
"""

import copy
import math
import random
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from workers.training import losses, nets, optimisation, sampling
from workers.training.advantages import KLController, gae, masked_mean, shaped_rewards, whiten
from workers.training.checkpoints import States, digest, fingerprint, finished, publish
from workers.training.errors import DataError, Interrupted, TooFewError, TrainingError
from workers.training.nets import Policy, Scorer
from workers.training.optimisation import Optimiser
from workers.training.recipes import PPORecipe
from workers.training.records import read_prompts
from workers.training.report import Reporter
from workers.training.tokens import Example


def train(
    recipe: PPORecipe,
    data: Path,
    out: Path,
    report: Reporter,
    *,
    model: str,
    reward_model: str,
    resume: bool = False,
) -> dict[str, float]:
    """Improve `model` under `reward_model` on the prompts of `data` into `out/checkpoint`; returns the last metrics."""
    run = digest(["ppo", recipe.model_dump(), fingerprint(data), fingerprint(model), fingerprint(reward_model)])
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
    scorer = nets.load_reward_model(reward_model, recipe.precision)
    nets.same_tokens(policy, scorer)
    scorer.freeze()
    reference = policy if recipe.lora else _frozen_copy(policy)
    critic = scorer.as_critic(recipe.precision, recipe.lora, recipe.seed)
    room = min(recipe.max_length, policy.context_length) - recipe.max_new_tokens
    if room < 1:
        raise DataError("max_new_tokens leaves no room for a prompt: lower it, or raise max_length.")
    prompts = [sampling.clip_prompt(policy.codec.encode_prompt(row.prompt), room) for row in rows]

    actor_named = [(f"policy/{name}", p) for name, p in policy.trainable()]
    critic_named = [(f"value/{name}", p) for name, p in critic.trainable()]
    optimiser = Optimiser([(actor_named, recipe.learning_rate), (critic_named, recipe.value_learning_rate)], recipe)
    controller = KLController(recipe.beta, recipe.target_kl, recipe.kl_horizon)
    total, first = recipe.steps or optimisation.total_steps(len(prompts), recipe), 0
    updates = recipe.inner_epochs * recipe.minibatches  # per step, for the learning-rate schedule
    metrics: dict[str, float] = {}
    if resume and (saved := states.latest(report.log)):
        first, tensors, info = saved
        optimiser.restore(tensors)
        controller.beta, metrics = info["beta"], info["metrics"]

    report.begin()
    for step in range(first, total):
        items = optimisation.step_items(len(prompts), recipe.batch_size, recipe.seed, step)
        rollout = _roll_out(recipe, policy, reference, scorer, critic, [prompts[i] for i in items], step)
        rewards = shaped_rewards(rollout.scores, rollout.old, rollout.reference, rollout.mask, controller.beta)
        if recipe.whiten_rewards:
            rewards = whiten(rewards, rollout.mask, keep_mean=True)
        advantages, returns = gae(rewards, rollout.values, rollout.mask, recipe.gamma, recipe.lam)
        advantages = whiten(advantages, rollout.mask)

        seen: list[dict[str, Tensor]] = []
        for update in range(updates):
            epoch, place = divmod(update, recipe.minibatches)
            chosen = _minibatch(len(items), recipe.minibatches, f"{recipe.seed}/{step}/{epoch}", place)
            statistics = _accumulate(recipe, policy, critic, rollout, advantages, returns, chosen)
            if update == 0:
                _assert_unmoved(recipe, statistics)
            statistics["grad_norm"] = optimiser.step(step * updates + update, total * updates)
            seen.append(statistics)
            if recipe.max_approx_kl is not None and float(statistics["policy/approxkl_avg"]) > recipe.max_approx_kl:
                break

        report.count(len(items), sum(len(e) for e in rollout.examples))
        metrics = optimisation.to_floats(_statistics(rollout, rewards, returns, seen) | {"beta": controller.beta})
        controller.update(metrics["objective/kl"], len(items))
        report.step(step + 1, total, metrics)
        if report.stopping or (recipe.save_every and (step + 1) % recipe.save_every == 0):
            states.save(step + 1, optimiser.state(), {"beta": controller.beta, "metrics": metrics})
        if report.stopping:
            raise Interrupted(f"Stopped after step {step + 1} of {total}; --resume goes on from there.")

    publish(out / "checkpoint", policy.save, {"stage": "ppo", "step": total, "run": run, "metrics": metrics})
    states.clear()
    report.steps = total
    return metrics


@dataclass(frozen=True)
class Rollout:
    """Completions of one step and all that is known about them before the policy moves. Shapes (B, R) but `scores`."""

    examples: list[Example]
    mask: Tensor
    old: Tensor  # log π of the sampled tokens, by the policy that sampled them
    reference: Tensor  # log π_ref of the same
    values: Tensor  # V before each token
    scores: Tensor  # (B,) normalised, clipped, end penalty taken off
    ended: list[bool]


@torch.no_grad()
def _roll_out(
    recipe: PPORecipe,
    policy: Policy,
    reference: Policy,
    scorer: Scorer,
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
    scores = torch.tensor(scorer.rate(examples, recipe.micro_batch_tokens), device=policy.device)
    missing = torch.tensor([not completion.ended for completion in drawn], device=policy.device)
    scores = scores.clamp(-recipe.score_clip, recipe.score_clip) - recipe.missing_eos_penalty * missing

    shape = len(examples), max(len(e.completion) for e in examples)
    mask = torch.arange(shape[1]) < torch.tensor([len(e.completion) for e in examples])[:, None]
    old, referred, values = (torch.zeros(shape, device=policy.device) for _ in range(3))
    for row, completion in enumerate(drawn):
        old[row, : len(completion.tokens)] = torch.tensor(completion.log_probs, device=policy.device)
    for group, batch in policy.passes(examples, recipe.micro_batch_tokens):
        rows, width = torch.tensor(group, device=policy.device), batch.mask.shape[1]
        if recipe.precision == "bf16":
            old[rows, :width] = policy.log_probs(batch, recipe.temperature)
        if policy is reference:
            with policy.as_reference():
                referred[rows, :width] = policy.log_probs(batch, recipe.temperature)
        else:
            referred[rows, :width] = reference.log_probs(batch, recipe.temperature)
        values[rows, :width] = critic.values(batch)
    return Rollout(examples, mask.to(policy.device), old, referred, values, scores, [c.ended for c in drawn])


def _accumulate(
    recipe: PPORecipe,
    policy: Policy,
    critic: Scorer,
    rollout: Rollout,
    advantages: Tensor,
    returns: Tensor,
    items: list[int],
) -> dict[str, Tensor]:
    """Gradients of both losses over the minibatch `items`, averaged over all its tokens; returns its statistics."""
    tokens = sum(len(rollout.examples[i].completion) for i in items)
    sums = torch.zeros(6, device=policy.device)
    furthest = torch.zeros((), device=policy.device)
    for group, batch in policy.passes([rollout.examples[i] for i in items], recipe.micro_batch_tokens):
        part = [items[g] for g in group]
        old, old_values, advantage, target = (
            tensor[part, : batch.mask.shape[1]] for tensor in (rollout.old, rollout.values, advantages, returns)
        )
        new = policy.log_probs(batch, recipe.temperature)
        policy_loss, ratio = losses.ppo_policy(new, old, advantage, recipe.clip)
        values = critic.values(batch)
        value_loss = losses.ppo_value(values, old_values, target, recipe.value_clip)
        loss = ((policy_loss + recipe.value_coef * value_loss) * batch.mask).sum() / tokens
        loss.backward()
        with torch.no_grad():
            ratio_off, value_off = (ratio - 1).abs(), (values - old_values).abs()
            per_token = (
                policy_loss,
                value_loss,
                0.5 * (new - old).square(),
                (ratio_off > recipe.clip).float(),
                ratio,
                (value_off > recipe.value_clip).float(),
            )
            sums += torch.stack([(value * batch.mask).sum() for value in per_token])
            furthest = torch.maximum(furthest, (ratio_off * batch.mask).max())
    names = (
        "loss/policy_avg",
        "loss/value_avg",
        "policy/approxkl_avg",
        "policy/clipfrac_avg",
        "val/ratio",
        "val/clipfrac_avg",
    )
    return dict(zip(names, (sums / tokens).unbind(), strict=True)) | {"ratio_off": furthest}


def _assert_unmoved(recipe: PPORecipe, statistics: dict[str, Tensor]) -> None:
    """Before the first update the policy *is* the one that sampled: any other ratio means wrong log-probabilities."""
    tolerance = 1e-2 if recipe.precision == "fp32" else 0.25
    if not float(statistics["ratio_off"]) <= tolerance:
        raise TrainingError(
            f"Log-probabilities of sampler and trainer differ (ratio off by {float(statistics['ratio_off']):.3g} "
            "before the first update): this model's generation and scoring passes do not agree."
        )


def _statistics(
    rollout: Rollout, rewards: Tensor, returns: Tensor, seen: list[dict[str, Tensor]]
) -> dict[str, Tensor | float]:
    """TRL's names for what one step shows; KL, entropy and reward are sums per sequence, averaged."""
    mask, values = rollout.mask, rollout.values
    kl = ((rollout.old - rollout.reference) * mask).sum(1).mean()
    spread = masked_mean((returns - masked_mean(returns, mask)).square(), mask).clamp(min=1e-8)
    averages = {name: torch.stack([s[name] for s in seen]).mean() for name in seen[0] if name != "ratio_off"}
    return {
        "objective/kl": kl,
        "objective/scores": rollout.scores.mean(),
        "objective/entropy": -(rollout.old * mask).sum(1).mean(),
        "objective/rlhf_reward": (rewards * mask).sum(1).mean(),
        **averages,
        "val/explained_variance": 1 - masked_mean((returns - values).square(), mask) / spread,
        "completions/mean_length": mask.sum(1).float().mean(),
        "completions/eos_rate": sum(rollout.ended) / len(rollout.ended),
    }


def _minibatch(items: int, minibatches: int, seed: str, place: int) -> list[int]:
    """The `place`-th of `minibatches` slices of the epoch's shuffle; with fewer items than slices, all of them."""
    order = list(range(items))
    random.Random(seed).shuffle(order)
    size = math.ceil(items / minibatches)
    return order[place * size : (place + 1) * size] or order


def _seed(seed: int, step: int, place: int) -> int:
    """One random stream for each completion of the run."""
    return random.Random(f"{seed}/{step}/{place}").getrandbits(63)


def _frozen_copy(policy: Policy) -> Policy:
    reference = Policy(copy.deepcopy(policy.model), policy.codec, policy.precision)
    reference.freeze()
    return reference
