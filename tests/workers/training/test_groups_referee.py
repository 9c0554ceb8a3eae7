"""TRL 1.16 as the referee of GRPO and RLOO: its own advantages, loss and gradients on given completions.

Reference, sampling and trained policy are three different ones, so that ratios are clipped on both sides and the KL is
not 0. TRL passes no position ids with its left-padded prompts, which a Llama does not mind.
"""

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.workers.training import nets_in_memory
from workers.training import groups
from workers.training.groups import Rollout
from workers.training.grpo import GRPO
from workers.training.nets import Policy, load_policy
from workers.training.recipes import GRPORecipe, RLOORecipe
from workers.training.rloo import RLOO
from workers.training.tokens import Example

G = 3
PROMPTS = ["say", "why is it"]
COMPLETIONS = ["a", "bcd", "xyzxyz", "no no", "yes", "k"]  # the third is cut off: no end token
REWARDS = [1.0, 0.0, 3.5, None, 0.25, 0.75]
DAPO = {"epsilon_high": 0.28, "mask_truncated_completions": True}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "DAPO": ({"loss_type": "dapo", **DAPO}, {"clip_high": 0.28, "mask_truncated": True}),
    "BNPO": ({"loss_type": "bnpo"}, {}),
    "the first GRPO": ({"loss_type": "grpo"}, {"normalise": "sequences"}),
    "Dr. GRPO": (
        {"loss_type": "dr_grpo", "scale_rewards": "none", "max_completion_length": 9},
        {"normalise": "constant", "scale": "none", "max_new_tokens": 9},
    ),
    "scaled by the batch": ({"loss_type": "dapo", "scale_rewards": "batch"}, {"scale": "batch"}),
    "GSPO": (
        {"loss_type": "grpo", "importance_sampling_level": "sequence"},
        {"normalise": "sequences", "ratio": "sequence"},
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def trl() -> Any:
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    module = pytest.importorskip("trl")
    if not module.__version__.startswith("1.16"):
        pytest.skip("the referee is TRL 1.16")
    return module


@pytest.mark.parametrize("beta", [0.0, 0.2])
@pytest.mark.parametrize("case", CASES)
def test_grpo_is_trls(trl: Any, case: str, beta: float, tmp_path: Path) -> None:
    theirs, ours = CASES[case]
    objective = GRPO(GRPORecipe(beta=beta, group_size=G, **ours))
    _compare(trl.GRPOTrainer, trl.GRPOConfig, {"beta": beta, **theirs}, objective, tmp_path)


@pytest.mark.parametrize("beta", [0.0, 0.2])
def test_rloo_is_trls(trl: Any, beta: float, tmp_path: Path) -> None:
    _compare(trl.RLOOTrainer, trl.RLOOConfig, {"beta": beta}, RLOO(RLOORecipe(beta=beta, group_size=G)), tmp_path)


def _compare(trainer_class: Any, config: Any, options: dict[str, Any], objective: Any, tmp_path: Path) -> None:
    directory = str(nets_in_memory.save_model(tmp_path / "model"))
    policy, reference = load_policy(directory), load_policy(directory)
    tokenizer = policy.codec.tokenizer
    tokenizer.pad_token = "<|system|>"  # TRL looks for padding ids
    prompts = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in PROMPTS for _ in range(G)]
    tails = [tokenizer(text, add_special_tokens=False)["input_ids"] + [1] for text in COMPLETIONS]
    tails[2].pop()
    examples = [Example(prompt, tail) for prompt, tail in zip(prompts, tails, strict=True)]

    trainer = _trainer(trainer_class, config, options, policy, tmp_path)
    if trainer.ref_model is not None:
        trainer.ref_model.eval()
    policy.model.eval()
    _perturb(policy, 1, 0.02)  # the policy that sampled
    trainer._generate = lambda _: _generated(trainer_class, prompts, tails)
    inputs = trainer._generate_and_score_completions([{"prompt": p} for p in PROMPTS for _ in range(G)])
    if "old_logps" not in inputs:
        ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
        seen = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
        with torch.no_grad():
            inputs["old_per_token_logps"] = trainer._get_per_token_logps_and_entropies(
                policy.model, ids, seen, inputs["completion_ids"].shape[1]
            )[0]
    rollout = _rollout(policy, reference if options["beta"] else None, examples)
    assert torch.allclose(objective.advantages(rollout).flatten().float(), inputs["advantages"].float(), atol=1e-5)

    _perturb(policy, 2, 0.03)  # the policy that learns
    loss = trainer._compute_loss(policy.model, inputs)
    loss.backward()
    expected = {name: p.grad.clone() for name, p in policy.trainable() if p.grad is not None}
    assert max(float(gradient.abs().max()) for gradient in expected.values()) > 1e-2
    policy.model.zero_grad()
    statistics = groups._accumulate(
        objective, objective.recipe, policy, rollout, groups._minibatch(objective.recipe, rollout, 0, 0)
    )
    count = len(COMPLETIONS)
    kept = groups._minibatch(objective.recipe, rollout, 0, 0)
    assert len(kept) == count - objective.recipe.mask_truncated
    assert float(statistics[0]) == pytest.approx(loss.item(), abs=1e-5)
    assert abs(loss.item()) > 1e-3 and float(statistics[1] + statistics[2]) > 0  # something is clipped
    if not objective.recipe.mask_truncated:  # TRL's extremes are then over what is masked out as well
        for place, name in enumerate(("low_mean", "high_mean", "region_mean", "low_min", "high_max"), start=1):
            (seen,) = trainer._metrics["eval"][f"clip_ratio/{name}"]
            assert float(statistics[place]) == pytest.approx(seen, abs=1e-6), name
    for name, parameter in policy.trainable():
        assert parameter.grad is not None
        assert torch.allclose(parameter.grad, expected[name], atol=1e-5, rtol=1e-4), name


def _trainer(trainer_class: Any, config: Any, options: dict[str, Any], policy: Policy, tmp_path: Path) -> Any:
    from datasets import Dataset

    return trainer_class(
        model=policy.model,
        reward_funcs=lambda completions, **_: REWARDS,
        args=config(
            output_dir=str(tmp_path / "trl"),
            per_device_train_batch_size=6,
            per_device_eval_batch_size=6,
            num_generations=G,
            num_generations_eval=G,
            bf16=False,
            use_cpu=True,
            report_to=[],
            gradient_checkpointing=False,
            **options,
        ),  # fmt: skip
        processing_class=policy.codec.tokenizer,
        train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in PROMPTS]),
    )


def _generated(trainer_class: Any, prompts: list[list[int]], tails: list[list[int]]) -> tuple[Any, ...]:
    if trainer_class.__name__ == "RLOOTrainer":
        return prompts, tails, COMPLETIONS
    return prompts, tails, None, COMPLETIONS, None, {}, None, None


@torch.no_grad()
def _rollout(policy: Policy, reference: Policy | None, examples: list[Example]) -> Rollout:
    lengths = torch.tensor([len(e.completion) for e in examples])
    mask = torch.arange(int(lengths.max())) < lengths[:, None]

    def measured(net: Policy) -> torch.Tensor:
        values = torch.zeros(mask.shape)
        for places, batch in net.passes(examples, 10_000):
            values[places, : batch.mask.shape[1]] = net.log_probs(batch)
        return values

    rewards = torch.tensor([torch.nan if r is None else r for r in REWARDS], dtype=torch.float64).view(-1, G)
    ended = [e.completion[-1] == 1 for e in examples]
    return Rollout(examples, rewards, mask, measured(policy), measured(reference) if reference else None, ended, {})


def _perturb(policy: Policy, seed: int, size: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter += size * torch.randn(parameter.shape, generator=generator)
