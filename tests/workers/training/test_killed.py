"""`kill -9` at a random step of every stage: who goes on ends with the bytes of the run that was never killed."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app.core.db import ROOT
from tests.workers.training.nets_in_memory import toy_pairs, toy_prompts, write_jsonl

# Importing torch and transformers takes longer than training does here: one process does it, and forks for each run.
FORKS = """
import json, os, sys
import torch, transformers.models.llama.modeling_llama
from workers.training import dpo, grpo, kto, ppo, reward, rloo, sft
from workers.training.__main__ import main
torch.set_num_threads(1)
print("ready", flush=True)
for line in sys.stdin:
    if (pid := os.fork()) == 0:
        null = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(null, stream)
        os._exit(main(json.loads(line)))
    print(pid, flush=True)
    print(os.waitpid(pid, 0)[1], flush=True)
"""


class Forks:
    """Runs of the training command line, one at a time."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", FORKS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
        )
        self._line()

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def run(self, arguments: list[str], out: Path, kill_at: int | None = None) -> int:
        """The wait status of one run; with `kill_at` it is killed as soon as it has reported so many steps."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([*arguments, "--out", str(out)]) + "\n")
        self.process.stdin.flush()
        pid = int(self._line())
        if kill_at is not None:
            deadline = time.monotonic() + 60
            while steps(out) < kill_at and time.monotonic() < deadline:
                time.sleep(0.001)
            os.kill(pid, signal.SIGKILL)
        return int(self._line())


def steps(out: Path) -> int:
    """How many steps are in the journal of the run in `out`."""
    journal = out / "steps.jsonl"
    return journal.read_bytes().count(b"\n") if journal.exists() else 0


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    running = Forks()
    yield running
    running.process.kill()
    running.process.wait()


DATA = {
    "pairs": toy_pairs(12),
    "prompts": toy_prompts(8),
    "demonstrations": [{"prompt": row["prompt"], "completion": row["chosen"]} for row in toy_pairs(12)],
    "labels": [
        {"prompt": row["prompt"], "completion": row[side], "label": side == "chosen"}
        for row in toy_pairs(6)
        for side in ("chosen", "rejected")
    ],
}
SMALL: dict[str, Any] = {"batch_size": 4, "learning_rate": 1e-3, "save_every": 1, "max_length": 64}
ROLLOUTS: dict[str, Any] = {**SMALL, "steps": 9, "max_new_tokens": 8}
STAGES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "sft": ("sft", "demonstrations", {**SMALL, "epochs": 5}),
    "reward": ("reward", "pairs", {**SMALL, "epochs": 5}),
    "dpo": ("dpo", "pairs", {**SMALL, "epochs": 5}),
    "dpo with LoRA": ("dpo", "pairs", {**SMALL, "epochs": 5, "lora": {"r": 2, "alpha": 4}}),
    "kto": ("kto", "labels", {**SMALL, "epochs": 5}),
    "grpo": ("grpo", "prompts", {**ROLLOUTS, "batch_size": 2, "group_size": 3, "inner_epochs": 2, "beta": 0.1}),
    "rloo": ("rloo", "prompts", {**ROLLOUTS, "batch_size": 2, "group_size": 3}),
    "ppo": ("ppo", "prompts", {**ROLLOUTS, "inner_epochs": 2, "minibatches": 2}),
}


@pytest.mark.parametrize("name", STAGES)
def test_a_run_that_is_killed_again_and_again_ends_with_the_same_weights(
    name: str, forks: Forks, tmp_path: Path, llama_dir: Path, reward_dir: Path
) -> None:
    stage, kind, settings = STAGES[name]
    data = write_jsonl(tmp_path / "data.jsonl", DATA[kind])
    arguments = [stage, "--data", str(data), "--model", str(llama_dir), "--resume"]
    arguments += [f"--set={key}={json.dumps(value)}" for key, value in settings.items()]
    if kind == "prompts":
        arguments += ["--reward-model", str(reward_dir)]

    assert forks.run(arguments, tmp_path / "whole") == 0
    total, out = steps(tmp_path / "whole"), tmp_path / "killed"
    for _ in range(2):
        at = steps(out) + random.randint(1, total // 3)
        assert forks.run(arguments, out, kill_at=at) == signal.SIGKILL, f"killed at step {at} of {total}"
    assert forks.run(arguments, out) == 0
    one, other = ((where / "checkpoint" / "model.safetensors").read_bytes() for where in (tmp_path / "whole", out))
    assert one == other
