"""Two processes make the run of one: the same steps, the same weights, one report and one checkpoint."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.workers.training.nets_in_memory import Recorder, toy_pairs, write_jsonl
from workers.training import parallel, sft
from workers.training.__main__ import main
from workers.training.errors import Interrupted
from workers.training.recipes import SFTRecipe

QUICK = ["batch_size=10", "learning_rate=0.001", "micro_batch_tokens=64", "save_every=2"]
PROGRAM = (
    "import json, os, sys; from workers.training.__main__ import main\n"
    "for port, arguments in json.loads(sys.argv[1]):\n"
    "    os.environ['MASTER_PORT'] = str(port)\n"
    "    if code := main(arguments): sys.exit(code)"
)


def _stages(directory: Path, model: Path) -> list[list[str]]:
    """Each data-parallel stage on 21 records, so that the last step has one and a process has none of it."""
    pairs = write_jsonl(directory / "pairs.jsonl", toy_pairs(21))
    shown = write_jsonl(
        directory / "shown.jsonl", [{"prompt": r["prompt"], "completion": r["chosen"]} for r in toy_pairs(21)]
    )
    labels = [r | {"label": i % 3 == 0} for i, r in enumerate(map(json.loads, shown.read_text().splitlines()))]
    data = {"sft": shown, "kto": write_jsonl(directory / "labels.jsonl", labels)}
    options = [word for setting in QUICK for word in ("--set", setting)]
    return [
        [stage, "--data", str(data.get(stage, pairs)), "--model", str(model), *options] for stage in parallel.STAGES
    ]


def _two(jobs: list[list[str]], *, sharded: bool) -> list[str]:
    """Run all jobs in each of two processes, as the launcher would start them; what each said on stdout."""
    free = [socket.create_server(("127.0.0.1", 0)) for _ in jobs]
    ports = [server.getsockname()[1] for server in free]
    for server in free:
        server.close()
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1"}
    work = json.dumps(list(zip(ports, jobs, strict=True)))
    children = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, work],
            env=os.environ | shared | {"RANK": str(rank), "ACCELERATE_USE_FSDP": str(sharded).lower()},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        said = [child.communicate(timeout=100) for child in children]
    finally:
        for child in children:
            child.kill()
    assert [child.returncode for child in children] == [0, 0], said
    return [out for out, _ in said]


@pytest.mark.parametrize("sharded", [False, True], ids=["replicated", "sharded"])
def test_two_processes_end_with_the_weights_of_one(
    sharded: bool, tmp_path: Path, llama_dir: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    jobs = _stages(tmp_path, llama_dir)
    capfd.readouterr()
    for job in jobs:
        assert main([*job, "--out", str(tmp_path / "one" / job[0])]) == 0
    alone = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    # SFT's first step is made by one process: two can go on from its state
    recipe = SFTRecipe(batch_size=10, learning_rate=0.001, micro_batch_tokens=64, save_every=2)
    data, out = tmp_path / "shown.jsonl", tmp_path / "two" / "sft"
    with pytest.raises(Interrupted):
        sft.train(recipe, data, out, Recorder(stop_after=1), model=str(llama_dir))
    del alone[0]
    first, second = _two([[*job, "--out", str(tmp_path / "two" / job[0]), "--resume"] for job in jobs], sharded=sharded)
    assert second == ""
    together = [json.loads(line) for line in first.splitlines()]
    assert len(together) == len(alone) == 4 * len(jobs) - 1
    for mine, theirs in zip(together, alone, strict=True):
        for metrics in (mine["metrics"], theirs["metrics"]):
            metrics.pop("rewards/accuracies", None)  # of DPO's first step, whose margins are nothing but rounding
        assert mine["metrics"] == pytest.approx(theirs["metrics"], abs=1e-4, rel=1e-5)
    for job in jobs:
        one, two = (load_file(tmp_path / n / job[0] / "checkpoint" / "model.safetensors") for n in ("one", "two"))
        assert set(one) == set(two)
        assert max(float((one[name] - two[name]).abs().max()) for name in one) <= 1e-5, job[0]


def test_a_process_alone_is_the_whole_world() -> None:
    assert parallel.alone() and parallel.first() and not parallel.sharded()
    assert parallel.share([3, 4, 5]) == [3, 4, 5] and parallel.level([[1]]) == [[1]]
    value: Any = torch.ones(2)
    assert parallel.total(value) is value and parallel.joined(value) is value and parallel.most(3) == 3


def test_the_shares_of_all_processes_are_the_step_once(monkeypatch: pytest.MonkeyPatch) -> None:
    shares = []
    for rank in range(3):
        monkeypatch.setattr(parallel, "_world", parallel.World(rank, 3))
        shares += parallel.share(range(8))
    assert sorted(shares) == list(range(8))


def test_a_stage_that_draws_samples_refuses_several_processes(
    tmp_path: Path, llama_dir: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(parallel, "start", lambda: parallel.World())
    monkeypatch.setattr(parallel, "alone", lambda: False)
    prompts = write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": "x"}])
    code = main(["sample", "--data", str(prompts), "--model", str(llama_dir), "--out", str(tmp_path / "o")])
    assert code == 2
    assert "sample runs in one process" in capfd.readouterr().err
