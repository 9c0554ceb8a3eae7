"""Writes `fixtures/ppo_trl_1_12.json`: what the last TRL with PPO (1.12.0) makes of one rollout, number by number.

That version is no part of this project's environment, because its successor is. To write the file again:

    pip install --no-deps --target TRL_1_12 trl==1.12.0
    PYTHONPATH=TRL_1_12 TRL_EXPERIMENTAL_SILENCE=1 python tests/workers/training/referee_ppo_trl.py

TRL's own `PPOTrainer.train()` runs for one rollout of two inner epochs, on tiny random models and given completions;
its local variables are written down as it goes. Two cases: `even`, where every completion fills its row, and `ragged`,
where some end early.
"""

import copy
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

VOCABULARY, PAD, EOS, NEW, ROWS = 30, 28, 29, 6, 8
SETTINGS: dict[str, Any] = {
    "gamma": 0.97, "lam": 0.9, "kl_coef": 0.2, "vf_coef": 0.3, "cliprange": 0.05, "cliprange_value": 0.05,
    "temperature": 0.7, "missing_eos_penalty": 1.5, "whiten_rewards": False,
}  # fmt: skip


def main() -> None:
    found = {
        "even": run([NEW] * ROWS, {}),
        "ragged": run([2, 6, 3, 6, 5, 1, 4, 6], {}),
        "whitened": run([NEW] * ROWS, {"whiten_rewards": True}),
    }
    target = Path(__file__).parent / "fixtures" / "ppo_trl_1_12.json"
    target.write_text(json.dumps(found) + "\n")


def run(lengths: list[int], changes: dict[str, Any]) -> dict[str, Any]:
    """One `train()` on completions of these lengths; those shorter than the row end with EOS."""
    from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

    settings = SETTINGS | changes
    torch.manual_seed(0)
    vocabulary = {f"w{i}": i for i in range(PAD)} | {"<pad>": PAD, "</s>": EOS}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="w0"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="</s>")
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, initializer_range=0.6, pad_token_id=PAD, eos_token_id=EOS, num_labels=1,
    )  # fmt: skip
    policy, reference = LlamaForCausalLM(config), LlamaForCausalLM(config)
    reference.load_state_dict(policy.state_dict())
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    reward, value = LlamaForSequenceClassification(config), LlamaForSequenceClassification(config)
    completions = torch.randint(0, PAD, (ROWS, NEW))
    for row, length in enumerate(lengths):
        if length < NEW:
            completions[row, length - 1] = EOS

    def batch_generation(model: Any, queries: Any, *_: Any) -> tuple[Any, Any]:
        both = torch.cat([queries, completions], dim=1)
        logits = ppo_trainer.forward(model, both, PAD).logits[:, queries.shape[1] - 1 : -1]
        return both, logits / (settings["temperature"] + 1e-7)

    updates: list[dict[str, Any]] = []
    masked_mean, log = ppo_trainer.masked_mean, PPOTrainer.log
    record: dict[str, Any] = {}

    def watched_mean(values: Any, mask: Any, *rest: Any) -> Any:
        frame = sys._getframe(1).f_locals
        if frame.get("vpred") is not None and not (updates and updates[-1]["new"] is frame["new_logprobs"]):
            frame["new_logprobs"].retain_grad()
            frame["vpred"].retain_grad()
            updates.append({"new": frame["new_logprobs"], "vpred": frame["vpred"], "rows": frame["micro_batch_inds"]})
        return masked_mean(values, mask, *rest)

    def watched_log(self: Any, metrics: dict[str, float], *rest: Any) -> None:
        frame = sys._getframe(1).f_locals
        names = (
            "logprobs", "ref_logprobs", "scores", "values", "padding_mask", "padding_mask_p1", "rewards", "advantages",
            "returns",
        )  # fmt: skip
        record.update({name: frame[name].tolist() for name in names})
        statistics = ("approxkl", "pg_clipfrac", "pg_loss", "vf_loss", "vf_clipfrac", "ratio")
        for epoch, update in enumerate(updates):
            rows = torch.as_tensor(update.pop("rows"))
            back = rows.argsort()  # TRL shuffles the rows in every inner epoch: back to the rollout's order
            new, predicted = update.pop("new"), update.pop("vpred")
            update |= {"new_logprobs": new.detach()[back].tolist(), "values": predicted.detach()[back].tolist()}
            update |= {"new_gradient": new.grad[back].tolist(), "value_gradient": predicted.grad[back].tolist()}
            update |= {name: float(frame[f"{name}_stats"][epoch]) for name in statistics}
        record.update({"updates": updates, "metrics": {k: float(v) for k, v in metrics.items() if "/" in k}})

    ppo_trainer.batch_generation, ppo_trainer.masked_mean = batch_generation, watched_mean
    PPOTrainer.log = watched_log
    queries = Dataset.from_list([{"input_ids": torch.randint(0, PAD, (3,)).tolist()} for _ in range(ROWS)])
    with tempfile.TemporaryDirectory() as directory:
        arguments = PPOConfig(
            output_dir=directory, per_device_train_batch_size=ROWS, total_episodes=ROWS, num_ppo_epochs=2,
            num_mini_batches=1, learning_rate=3e-2, response_length=NEW, num_sample_generations=0, save_strategy="no",
            stop_token="eos", bf16=False, use_cpu=True, report_to=[], gradient_checkpointing=False, **settings,
        )  # fmt: skip
        trainer = PPOTrainer(arguments, tokenizer, policy, reference, reward, queries, value, eval_dataset=queries)
        trainer.train()
    ppo_trainer.masked_mean, PPOTrainer.log = masked_mean, log
    return {"settings": settings, "completions": completions.tolist(), "lengths": lengths, **copy.deepcopy(record)}


if __name__ == "__main__":
    main()
