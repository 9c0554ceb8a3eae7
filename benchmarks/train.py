"""The training engine beside TRL: the same model, data, batch and precision, one CPU thread, alternating runs.

    python benchmarks/train.py [--jobs reward-2,reward-4,dpo,sft,grpo,ppo] [--repeats 3] [--ppo-python PYTHON]

A Llama-shaped model (4 layers, width 256, 32,768 words, fp32, random weights) learns from random words whose lengths
are log-normal (prompt about 150, completion about 120 tokens), batches of 8. Each run is a process of its own. Timed is
what follows loading and tokenising, up to the last optimiser step, DPO's reference pass included: TRL's `train()` at
the best settings that were found, and our loop. Figures are medians of CPU seconds, hence of one thread's work whatever
else the machine does, and peak resident memory. PPO needs the last TRL that had it in an environment of its own:
`python -m venv E && E/bin/pip install trl==1.12.0 torch==2.13.*`, then `--ppo-python E/bin/python`.
"""

import argparse
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

JOBS = ("reward-2", "reward-4", "dpo", "sft", "grpo", "ppo")
BATCH, ITEMS, WORDS, RATE = 8, 32, 32_768, 1e-5
GROUP, NEW_TOKENS = 8, 64


def words(rng: random.Random, mean: int) -> str:
    """Log-normal many random words around `mean`, one token each."""
    count = max(4, min(600, round(rng.lognormvariate(0, 0.6) * mean * 0.83)))
    return " ".join(f"w{rng.randrange(WORDS - 8)}" for _ in range(count))


def write_data(folder: Path) -> None:
    """One file per kind of job, the same for both sides."""
    rng = random.Random(0)
    groups = [(words(rng, 150), [words(rng, 120) for _ in range(4)]) for _ in range(ITEMS)]
    # every completion starts with a space, so that prompt and completion are the same tokens apart and together
    rows: dict[str, list[dict[str, Any]]] = {
        "pairs": [{"prompt": p, "chosen": f" {c[0]}", "rejected": f" {c[1]}"} for p, c in groups],
        "rankings": [
            {"prompt": p, "completions": [f" {x}" for x in c], "ranking": [0, 1, 2, 3]} for p, c in groups[: ITEMS // 2]
        ],
        "expanded": [
            {"prompt": p, "chosen": f" {c[i]}", "rejected": f" {c[j]}"}
            for p, c in groups[: ITEMS // 2]
            for i in range(4)
            for j in range(i + 1, 4)
        ],
        "demonstrations": [{"prompt": p, "completion": f" {x}"} for p, c in groups for x in c],
        "prompts": [{"prompt": " ".join(p.split()[:150])} for p, _ in groups],
    }
    for name, values in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in values))


def write_models(folder: Path) -> None:
    """The random policy, with a tokenizer of one token per word, and a random reward model on it."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerFast

    vocabulary = {"<pad>": 0, "<end>": 1, "<unk>": 2} | {f"w{i}": i + 3 for i in range(WORDS - 3)}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="<end>", pad_token="<pad>", unk_token="<unk>", padding_side="left"
    )
    shape = {"hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 4, "num_attention_heads": 4}
    config = LlamaConfig(
        **shape,
        vocab_size=WORDS,
        num_key_value_heads=4,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    for name, model in (("policy", LlamaForCausalLM(config)), ("reward", None)):
        if model is None:
            config.num_labels = 1
            model = LlamaForSequenceClassification(config)
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)


# ---- one run ----


def ours(job: str, folder: Path, out: Path) -> float:
    """CPU seconds of our loop."""
    import importlib
    import io

    from workers.training.recipes import RECIPES
    from workers.training.report import Reporter

    class Stopwatch(Reporter):
        started = ended = 0.0

        def begin(self) -> None:
            self.started = time.process_time()

        def step(self, step: int, total_steps: int, metrics: Any) -> None:
            self.ended = time.process_time()

    stage, data = {
        "reward-2": ("reward", "pairs"),
        "reward-4": ("reward", "rankings"),
        "dpo": ("dpo", "pairs"),
        "sft": ("sft", "demonstrations"),
        "grpo": ("grpo", "prompts"),
        "ppo": ("ppo", "prompts"),
    }[job]
    settings: dict[str, Any] = {"batch_size": BATCH, "learning_rate": RATE, "save_every": 0}
    options: dict[str, Any] = {"model": str(folder / "policy")}
    if job == "grpo":
        settings |= {"batch_size": 1, "group_size": GROUP, "steps": 4, "max_new_tokens": NEW_TOKENS, "beta": 0.0}
        options["reward_model"] = str(folder / "reward")
    if job == "ppo":
        settings |= {"steps": 2, "batch_size": 16, "inner_epochs": 4, "max_new_tokens": NEW_TOKENS}
        options["reward_model"] = str(folder / "reward")
    recipe = RECIPES[stage](**settings)
    train = importlib.import_module(f"workers.training.{stage}").train
    report = Stopwatch(stage, io.StringIO(), io.StringIO())
    train(recipe, folder / f"{data}.jsonl", out, report, **options)
    return report.ended - report.started


def theirs(job: str, folder: Path, out: Path) -> float:
    """CPU seconds of TRL's `train()`."""
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    import datasets
    import torch
    import trl
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    datasets.disable_progress_bars()
    tokenizer = AutoTokenizer.from_pretrained(folder / "policy")
    common = {
        "output_dir": str(out),
        "per_device_train_batch_size": BATCH,
        "learning_rate": RATE,
        "num_train_epochs": 1,
        "bf16": False,
        "use_cpu": True,
        "report_to": [],
        "save_strategy": "no",
        "logging_steps": 1000,
        "gradient_checkpointing": False,
        "disable_tqdm": True,
    }

    def data(name: str) -> Any:
        return datasets.Dataset.from_list([json.loads(line) for line in (folder / f"{name}.jsonl").open()])

    policy = AutoModelForCausalLM.from_pretrained(folder / "policy", dtype=torch.float32)
    scorer = AutoModelForSequenceClassification.from_pretrained(folder / "reward", dtype=torch.float32, num_labels=1)
    if job.startswith("reward"):
        trainer = trl.RewardTrainer(
            model=scorer,
            args=trl.RewardConfig(**common, max_length=2048),
            processing_class=tokenizer,
            train_dataset=data("pairs" if job == "reward-2" else "expanded"),
        )
    elif job == "dpo":
        trainer = trl.DPOTrainer(
            model=policy,
            args=trl.DPOConfig(**common, max_length=2048, precompute_ref_log_probs=False),
            processing_class=tokenizer,
            train_dataset=data("pairs"),
        )
    elif job == "sft":
        trainer = trl.SFTTrainer(
            model=policy,
            args=trl.SFTConfig(**common, max_length=2048, completion_only_loss=True),
            processing_class=tokenizer,
            train_dataset=data("demonstrations"),
        )
    elif job == "grpo":
        sizes = {"num_generations": GROUP, "max_completion_length": NEW_TOKENS, "beta": 0.0}
        trainer = trl.GRPOTrainer(
            model=policy,
            reward_funcs=scorer,
            reward_processing_classes=tokenizer,
            args=trl.GRPOConfig(**{**common, **sizes, "max_steps": 4}),
            processing_class=tokenizer,
            train_dataset=data("prompts"),
        )
    else:
        from trl.experimental.ppo import PPOConfig, PPOTrainer

        prompts = data("prompts").map(lambda row: tokenizer(row["prompt"]), remove_columns=["prompt"])
        sizes = {"total_episodes": 32, "num_ppo_epochs": 4, "response_length": NEW_TOKENS, "num_mini_batches": 1}
        arguments = PPOConfig(**{**common, **sizes, "per_device_train_batch_size": 16}, num_sample_generations=0)
        trainer = PPOTrainer(
            args=arguments,
            processing_class=tokenizer,
            model=policy,
            ref_model=AutoModelForCausalLM.from_pretrained(folder / "policy", dtype=torch.float32),
            reward_model=scorer,
            value_model=AutoModelForSequenceClassification.from_pretrained(
                folder / "reward", dtype=torch.float32, num_labels=1
            ),
            train_dataset=prompts,
            eval_dataset=prompts,
        )
    started = time.process_time()
    trainer.train()
    return time.process_time() - started


# ---- all runs ----


def measure(side: str, job: str, folder: Path, python: str) -> tuple[float, float]:
    """CPU seconds and peak memory (MB) of one run in a process of its own."""
    command = [python, __file__, "--run", f"{side}:{job}", "--folder", str(folder)]
    root = str(Path(__file__).resolve().parents[1])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": root, "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{side} {job} failed:\n{done.stderr[-3000:]}")
    seconds, memory = json.loads(done.stdout.strip().splitlines()[-1])
    return seconds, memory


def run_here(side: str, job: str, folder: Path) -> None:
    import torch

    torch.set_num_threads(1)
    calls: dict[str, Callable[[str, Path, Path], float]] = {"ours": ours, "trl": theirs}
    with tempfile.TemporaryDirectory() as out:
        seconds = calls[side](job, folder, Path(out))
    print(json.dumps([seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", default=",".join(JOBS[:-1]))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--ppo-python", default=sys.executable)
    parser.add_argument("--run", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.run:
        side, job = given.run.split(":")
        run_here(side, job, given.folder)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_data(folder)
        write_models(folder)
        print(
            "| job | ours, CPU-s | TRL, CPU-s | TRL / ours | ours, MB | TRL, MB |\n|---|---|---|---|---|---|",
            flush=True,
        )
        for job in given.jobs.split(","):
            found: dict[str, list[tuple[float, float]]] = {"ours": [], "trl": []}
            for _ in range(given.repeats):
                for side, results in found.items():
                    python = given.ppo_python if (side, job) == ("trl", "ppo") else sys.executable
                    results.append(measure(side, job, folder, python))
            (mine, my_memory), (other, other_memory) = (
                (statistics.median(s for s, _ in found[side]), statistics.median(m for _, m in found[side]))
                for side in ("ours", "trl")
            )
            print(
                f"| {job} | {mine:.1f} | {other:.1f} | **{other / mine:.2f}** | {my_memory:.0f} | {other_memory:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
