"""A real model learns a stated taste: DPO and PPO on the converted 260K-parameter story model, through the CLI alone.

    python scripts/convert_llama2c.py stories260K.bin tok512.bin MODEL_DIR
    python benchmarks/stories.py MODEL_DIR

The taste: within its next 48 tokens somebody in the story is happy, smiles or laughs. Candidates are sampled, a rule
prefers those that have it, a reward model is trained on the pairs, then DPO and PPO each start from the same model.
Prints the share of held-out stories with the taste, before and after, and the seconds of each stage.
"""

import argparse
import itertools
import json
import random
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

TASTE = re.compile(r"\b(happy|happily|smil\w+|laugh\w*|proud|joy\w*)\b", re.IGNORECASE)
NAMES = ("Lily", "Tim", "Ben", "Sue", "Max", "Anna", "Tom", "Mia", "Sam", "Lucy", "Jack", "Sara")
THINGS = ("a big dog", "a red ball", "an old tree", "a small bird", "a shiny car", "a sad frog", "a lost cat", "a book")
STARTS = ("{} saw {}.", "One day, {} found {}.", "{} wanted {}.", "In the park, {} met {}.")
NEW_TOKENS = 48


def stage(name: str, data: Path, out: Path, model: str, *options: str, **settings: Any) -> dict[str, Any]:
    """Run one stage; its summary."""
    command = [sys.executable, "-m", "workers.training", name, "--data", str(data), "--out", str(out), "--model", model]
    command += [f"--set={key}={json.dumps(value)}" for key, value in settings.items()]
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
    summary: dict[str, Any] = json.loads((done.stdout.strip().splitlines() or ["{}"])[-1])
    if done.returncode:
        raise SystemExit(f"{name}: {summary or done.stderr[-2000:]}")
    return summary


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def sampled(prompts: Path, out: Path, model: str, n: int, seed: int) -> list[dict[str, Any]]:
    stage("sample", prompts, out, model, n=n, max_new_tokens=NEW_TOKENS, seed=seed)
    return [json.loads(line) for line in (out / "completions.jsonl").open()]


def share(prompts: Path, out: Path, model: str) -> float:
    texts = [c["text"] for row in sampled(prompts, out, model, n=2, seed=99) for c in row["completions"]]
    return sum(bool(TASTE.search(text)) for text in texts) / len(texts)


def pairs_by_rule(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    pairs = []
    for row in rows:
        by_taste: dict[bool, list[str]] = {True: [], False: []}
        for completion in row["completions"]:
            by_taste[bool(TASTE.search(completion["text"]))].append(" " + completion["text"])
        couples = zip(by_taste[True], by_taste[False], strict=False)
        pairs += [{"prompt": row["prompt"], "chosen": a, "rejected": b} for a, b in couples]
    return pairs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    model = parser.parse_args().model
    starts = [s.format(n, t) for s, n, t in itertools.product(STARTS, NAMES, THINGS)]
    random.Random(0).shuffle(starts)
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        train = write(work / "train.jsonl", [{"prompt": start} for start in starts[:256]])
        held_out = write(work / "held_out.jsonl", [{"prompt": start} for start in starts[256:]])
        print(f"before: {share(held_out, work / 'before', model):.3f}", flush=True)
        pairs = pairs_by_rule(sampled(train, work / "candidates", model, n=6, seed=1))
        cut = len(pairs) * 9 // 10
        data, rest = write(work / "pairs.jsonl", pairs[:cut]), write(work / "rest.jsonl", pairs[cut:])
        common = {"batch_size": 32, "max_length": 256}
        reward = stage("reward", data, work / "rm", model, "--eval", str(rest), epochs=3, learning_rate=1e-3, **common)
        metrics = reward["metrics"]
        print(f"reward model: {cut} pairs, accuracy {metrics['accuracy']:.3f}, {reward['seconds']:.0f} s", flush=True)
        dpo = stage("dpo", data, work / "dpo", model, epochs=3, learning_rate=2e-4, beta=0.1, **common)
        after = share(held_out, work / "after-dpo", str(work / "dpo" / "checkpoint"))
        print(f"DPO: {after:.3f}, {dpo['seconds']:.0f} s", flush=True)
        scorer = ("--reward-model", str(work / "rm" / "checkpoint"))
        episodes = {"steps": 25, "batch_size": 64, "inner_epochs": 2, "max_new_tokens": NEW_TOKENS, "max_length": 256}
        rates = {"learning_rate": 3e-4, "value_learning_rate": 1e-3, "beta": 0.05, "missing_eos_penalty": 0.0}
        ppo = stage("ppo", train, work / "ppo", model, *scorer, **episodes, **rates)
        after = share(held_out, work / "after-ppo", str(work / "ppo" / "checkpoint"))
        print(f"PPO: {after:.3f}, KL {ppo['metrics']['objective/kl']:.1f}, {ppo['seconds']:.0f} s", flush=True)


if __name__ == "__main__":
    main()
