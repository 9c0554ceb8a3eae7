"""From a verifier alone: a tiny model that adds roughly learns to add exactly (the whole: benchmarks/arithmetic.py)."""

import json
from pathlib import Path

from tests.workers.training.nets_in_memory import Recorder, write_jsonl
from workers.training import grpo, tiny
from workers.training.recipes import GRPORecipe, TinyRecipe


def test_grpo_makes_rough_sums_exact(tmp_path: Path) -> None:
    sums = [(a, b) for a in range(4) for b in range(4)]
    prompts = {(a, b): [{"role": "user", "content": f"{a}+{b}"}] for a, b in sums}
    rough = [
        {"prompt": prompts[a, b], "completion": str(max(0, a + b + off))}
        for a, b in sums
        for off in (-2, -1, 0, 1, 2)
        for _ in range(4)
    ]
    data = write_jsonl(tmp_path / "sums.jsonl", [{"prompt": prompts[a, b], "answer": a + b} for a, b in sums])
    rewards = tmp_path / "rewards.json"
    rewards.write_text(json.dumps([{"name": "correct", "kind": "exact_number"}]))
    small = TinyRecipe(steps=120, batch_size=32, hidden_size=32, layers=2, vocab_size=280, learning_rate=4e-3)
    tiny.train(small, write_jsonl(tmp_path / "rough.jsonl", rough), tmp_path / "base", Recorder())

    recipe = GRPORecipe(batch_size=16, group_size=16, steps=70, learning_rate=2e-3, max_new_tokens=3, save_every=0)
    report = Recorder()
    base = str(tmp_path / "base" / "checkpoint")
    grpo.train(recipe, data, tmp_path / "out", report, model=base, rewards=rewards)
    rates = [step["rewards/correct/pass_rate"] for step in report.steps_seen]
    assert rates[0] < 0.35
    assert sum(rates[-5:]) / 5 > 0.85
