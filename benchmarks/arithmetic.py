"""GRPO on arithmetic: a tiny model that adds roughly learns to add exactly, from a verifier alone.

    python benchmarks/arithmetic.py [--steps 200] [--seed 0]

The model is built from scratch on all sums of two digits with answers up to four off, each as likely as the right one:
it knows the form and the neighbourhood, and is right one time in nine. From there on it never sees an answer again,
only whether its own was right (`exact_number`). Prints a table for docs/benchmarks.md.
"""

import argparse
import json
import random
import tempfile
import time
from pathlib import Path

import torch

from workers.training import grpo, nets, sampling, tiny
from workers.training.recipes import GRPORecipe, TinyRecipe
from workers.training.report import Reporter
from workers.training.verifiers import Answer, verify

SUMS = [(a, b) for a in range(10) for b in range(10)]
OFF = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        run(Path(place), options.steps, options.seed)


def run(place: Path, steps: int, seed: int) -> None:
    rng = random.Random(seed)
    rows = [{"prompt": ask(a, b), "answer": a + b} for a, b in SUMS]
    rough = [(a, b, max(0, a + b + rng.randint(-OFF, OFF))) for a, b in SUMS for _ in range(30)]
    write(place / "rough.jsonl", [{"prompt": ask(a, b), "completion": str(said)} for a, b, said in rough])
    write(place / "sums.jsonl", rows)
    (place / "rewards.json").write_text(json.dumps([{"name": "correct", "kind": "exact_number"}]))

    small = TinyRecipe(steps=300, batch_size=64, hidden_size=64, layers=2, vocab_size=280, seed=seed)
    recipe = GRPORecipe(batch_size=25, group_size=32, steps=steps, learning_rate=1e-3, max_new_tokens=4, seed=seed)
    report = Reporter("arithmetic", stdout=(place / "log").open("w"))
    started, cpu = time.monotonic(), time.process_time()
    tiny.train(small, place / "rough.jsonl", place / "base", report)
    built = time.monotonic() - started, time.process_time() - cpu
    before = accuracy(place / "base" / "checkpoint", rows)
    started, cpu = time.monotonic(), time.process_time()
    grpo.train(
        recipe, place / "sums.jsonl", place / "out", report,
        model=str(place / "base" / "checkpoint"), rewards=place / "rewards.json",
    )  # fmt: skip
    learned = time.monotonic() - started, time.process_time() - cpu
    after = accuracy(place / "out" / "checkpoint", rows)
    print("| | greedy | sampled | seconds | CPU-seconds |\n|---|---|---|---|---|")
    print(f"| built on rough sums | {before[0]:.2f} | {before[1]:.2f} | {built[0]:.0f} | {built[1]:.0f} |")
    print(f"| after {steps} steps of GRPO | {after[0]:.2f} | {after[1]:.2f} | {learned[0]:.0f} | {learned[1]:.0f} |")


def ask(a: int, b: int) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"{a}+{b}"}]


def write(path: Path, rows: list[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def accuracy(model: Path, rows: list[dict[str, object]]) -> tuple[float, float]:
    """Share of the sums that are right: greedily, and over eight samples of each."""
    policy = nets.load_policy(str(model))
    found = []
    for temperature, times in ((0.0, 1), (1.0, 8)):
        asked = [row for row in rows for _ in range(times)]
        prompts = [policy.codec.encode_prompt(row["prompt"]) for row in asked]  # type: ignore[arg-type]
        drawn = sampling.generate(
            policy, prompts, range(len(asked)), max_new_tokens=4, temperature=temperature, batch_size=400
        )
        said = [Answer(policy.codec.decode(completion.tokens)) for completion in drawn]
        found.append(
            sum(verify("exact_number", s, row) == 1.0 for s, row in zip(said, asked, strict=True)) / len(asked)
        )
    return found[0], found[1]


if __name__ == "__main__":
    torch.set_num_threads(1)  # the model is too small to share
    main()
