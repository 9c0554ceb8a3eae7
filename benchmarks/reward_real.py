"""A reward model on real pairs, ours beside TRL's RewardTrainer: same backbone, pairs, batches, learning rate, epochs.

    python benchmarks/reward_real.py PAIRS.jsonl MODEL_DIR [--pairs 1500] [--seeds 0 1 2] [--epochs 2] [--lr 5e-4]

PAIRS are HH-RLHF style rows (messages, response_a, response_b, label), MODEL_DIR a transformers checkpoint with a chat
template (such as `scripts/convert_llama2c.py` makes). Pairs with a completion beyond `--max-length` tokens are left out
for both, a fifth of the prompts is held out, and both models are scored by the same code. Needs TRL 1.16 (`dev`).
"""

import argparse
import hashlib
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from workers.training import nets, reward, reward_report
from workers.training.comparisons import encode, examples_of
from workers.training.recipes import RewardRecipe
from workers.training.records import read_comparisons
from workers.training.report import Reporter

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
BATCH = 32


def rows_of(path: Path, model: Path, most: int, max_length: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Training and held-out rows, split by prompt."""
    codec = nets.load_policy(str(model)).codec
    parts: tuple[list[dict[str, Any]], list[dict[str, Any]]] = ([], [])
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if row["label"] not in ("a", "b"):
            continue
        texts = [row["response_a"], row["response_b"]]
        if any(len(example) > max_length for example in codec.encode(row["messages"], *texts)):
            continue
        chosen, rejected = texts if row["label"] == "a" else texts[::-1]
        held_out = hashlib.sha256(json.dumps(row["messages"]).encode()).digest()[0] < 51
        parts[held_out].append(
            {
                "prompt": row["messages"],
                "chosen": [{"role": "assistant", "content": chosen}],
                "rejected": [{"role": "assistant", "content": rejected}],
            }
        )
    return parts[0][:most], parts[1]


def ours(model: Path, data: Path, out: Path, seed: int, options: argparse.Namespace) -> Path:
    recipe = RewardRecipe(
        epochs=options.epochs, batch_size=BATCH, learning_rate=options.lr, max_length=options.max_length, seed=seed
    )
    with open(os.devnull, "w") as nowhere:
        reward.train(recipe, data, out, Reporter("reward", nowhere, nowhere), model=str(model))
    return out / "checkpoint"


def trls(model: Path, data: Path, out: Path, seed: int, options: argparse.Namespace) -> Path:
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import RewardConfig, RewardTrainer

    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.pad_token = tokenizer.unk_token  # its head looks for padding ids: they must not be the end token
    arguments = RewardConfig(
        output_dir=str(out), per_device_train_batch_size=BATCH, num_train_epochs=options.epochs, seed=seed,
        learning_rate=options.lr, max_length=options.max_length, center_rewards_coefficient=0.01, warmup_steps=0.05,
        gradient_checkpointing=False, bf16=False, use_cpu=True, report_to=[], save_strategy="no", logging_steps=1000,
        disable_tqdm=True, disable_dropout=True, model_init_kwargs={"dtype": "float32"},
    )  # fmt: skip
    rows = [json.loads(line) for line in data.read_text(encoding="utf-8").splitlines()]
    trainer = RewardTrainer(
        model=str(model), args=arguments, processing_class=tokenizer, train_dataset=Dataset.from_list(rows)
    )
    trainer.train()
    trainer.model.save_pretrained(out / "checkpoint")
    tokenizer.save_pretrained(out / "checkpoint")
    return out / "checkpoint"


def measured(checkpoint: Path, held_out: Path, max_length: int) -> dict[str, Any]:
    scorer = nets.load_reward_model(str(checkpoint))
    data = encode(scorer.codec, list(read_comparisons(held_out)), max_length, Reporter("reward"))
    scores = scorer.combine(scorer.rate_heads(examples_of(data), 16384))
    return reward_report.quality(reward_report.judged_pairs(data, scores.tolist()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("--pairs", type=int, default=1500)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=float, default=2)
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--max-length", type=int, default=256)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        train, held_out = rows_of(options.data, options.model, options.pairs, options.max_length)
        paths = [place / "train.jsonl", place / "held_out.jsonl"]
        for path, rows in zip(paths, (train, held_out), strict=True):
            path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        print(f"{len(train)} training pairs, {len(held_out)} held out")
        print("| trainer | seed | held-out accuracy | log-loss | ECE | CPU seconds |\n|---|---|---|---|---|---|")
        for seed in options.seeds:
            for label, fit in (("ours", ours), ("TRL", trls)):
                started = time.process_time()
                checkpoint = fit(options.model, paths[0], place / f"{label}-{seed}", seed, options)
                seconds = time.process_time() - started
                found = measured(checkpoint, paths[1], options.max_length)
                low, high = found["accuracy_low"], found["accuracy_high"]
                shown = f"{found['accuracy']:.3f} [{low:.3f}, {high:.3f}]"
                print(f"| {label} | {seed} | {shown} | {found['log_loss']:.3f} | {found['ece']:.3f} | {seconds:.0f} |")


if __name__ == "__main__":
    main()
