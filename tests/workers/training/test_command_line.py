"""The contract of `python -m workers.training`: streams, exit codes, all stages in a row, signals."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.workers.training.nets_in_memory import save_model, toy_pairs, toy_prompts, write_jsonl
from workers.training.__main__ import main
from workers.training.checkpoints import verify

Capture = pytest.CaptureFixture[str]
QUICK = ["--set", "batch_size=8", "--set", "learning_rate=0.001"]


def run(capfd: Capture, *arguments: str | Path) -> tuple[int, list[dict[str, Any]], str]:
    """Exit code, the JSON lines of stdout (anything else on it fails), the text of stderr."""
    capfd.readouterr()
    code = main([str(a) for a in arguments])
    captured = capfd.readouterr()
    return code, [json.loads(line) for line in captured.out.splitlines()], captured.err


def test_the_whole_loop_from_pairs_to_report(capfd: Capture, tmp_path: Path, llama_dir: Path) -> None:
    pairs = write_jsonl(tmp_path / "pairs.jsonl", toy_pairs(20))
    prompts = write_jsonl(tmp_path / "prompts.jsonl", toy_prompts(12))
    reward_model, policy = tmp_path / "rm" / "checkpoint", tmp_path / "dpo" / "checkpoint"

    code, lines, _ = run(
        capfd, "reward", "--data", pairs, "--eval", pairs, "--model", llama_dir, "--out", tmp_path / "rm", *QUICK
    )
    assert code == 0
    assert lines[0]["step"] == 1 and lines[0]["total_steps"] == 3 and "loss" in lines[0]["metrics"]
    assert lines[-1]["stage"] == "reward" and lines[-1]["steps"] == 3
    assert {"accuracy", "accuracy_low", "accuracy_high", "eval_pairs", "loss", "eval_loss", "train_accuracy"} <= set(
        lines[-1]["metrics"]
    )
    assert min(lines[-1][k] for k in ("seconds", "examples_per_s", "tokens_per_s", "peak_memory_mb")) > 0

    assert run(capfd, "dpo", "--data", pairs, "--model", llama_dir, "--out", tmp_path / "dpo", *QUICK)[0] == 0
    code, lines, _ = run(
        capfd, "ppo", "--data", prompts, "--model", policy, "--reward-model", reward_model, "--out", tmp_path / "ppo",
        "--set", "max_new_tokens=8", "--set", "steps=2", "--set", "batch_size=6", "--set", "lora={\"r\": 2}",
    )  # fmt: skip
    assert code == 0
    assert {
        "objective/kl", "objective/scores", "objective/entropy", "policy/approxkl_avg", "policy/clipfrac_avg",
        "val/ratio", "loss/policy_avg", "loss/value_avg", "completions/mean_length", "completions/eos_rate",
    } <= set(lines[0]["metrics"])  # fmt: skip
    verify(tmp_path / "ppo" / "checkpoint")

    code, lines, _ = run(
        capfd, "sample", "--data", prompts, "--model", policy, "--out", tmp_path / "s", "--set", "n=3",
        "--set", "max_new_tokens=9",
    )  # fmt: skip
    rows = [json.loads(line) for line in (tmp_path / "s" / "completions.jsonl").read_text().splitlines()]
    assert code == 0 and len(rows) == 12
    assert [row["id"] for row in rows] == [f"p{i}" for i in range(12)]
    for row in rows:
        assert len({c["text"] for c in row["completions"]}) == 3
        assert all(set(c) == {"text", "tokens", "logprob", "ended"} and c["logprob"] < 0 for c in row["completions"])

    code, lines, _ = run(
        capfd, "evaluate", "--data", prompts, "--model", policy, "--baseline", llama_dir, "--initial", llama_dir,
        "--reward-model", reward_model, "--out", tmp_path / "e", "--set", "max_new_tokens=9",
    )  # fmt: skip
    metrics = lines[-1]["metrics"]
    assert code == 0
    assert set(metrics) >= {
        "kl", "kl_initial", "mean_length", "baseline_mean_length", "distinct_2", "baseline_distinct_2", "eos_rate",
        "baseline_eos_rate", "reward_win_rate", "reward_win_rate_low", "reward_win_rate_high", "reward",
        "baseline_reward", "prompts",
    }  # fmt: skip
    assert metrics["kl"] == metrics["kl_initial"] != 0.0
    report = json.loads((tmp_path / "e" / "report.json").read_text())
    assert len(report["samples"]) == 10
    assert set(report["samples"][0]) == {"prompt", "completion", "baseline_completion", "reward", "baseline_reward"}
    assert report["metrics"]["reward_win_rate"] == pytest.approx(metrics["reward_win_rate"])


def test_a_policy_evaluated_against_itself_differs_in_nothing(capfd: Capture, tmp_path: Path, llama_dir: Path) -> None:
    prompts = write_jsonl(tmp_path / "prompts.jsonl", toy_prompts(5))
    _, lines, _ = run(
        capfd, "evaluate", "--data", prompts, "--model", llama_dir, "--baseline", llama_dir, "--out", tmp_path / "e",
        "--set", "max_new_tokens=9",
    )  # fmt: skip
    metrics = lines[-1]["metrics"]
    assert metrics["kl"] == 0.0
    assert metrics["mean_length"] == metrics["baseline_mean_length"]


def test_failures_have_their_kind_their_exit_code_and_one_last_sentence(
    capfd: Capture, tmp_path: Path, llama_dir: Path
) -> None:
    pairs, few = write_jsonl(tmp_path / "p.jsonl", toy_pairs(20)), write_jsonl(tmp_path / "few.jsonl", toy_pairs(3))
    bad = tmp_path / "bad.jsonl"
    bad.write_text(pairs.read_text() + "{oops\n")
    no_template = save_model(tmp_path / "plain", template=None)
    unsafe = save_model(tmp_path / "unsafe")
    (unsafe / "pytorch_model.bin").write_bytes(b"")
    base = ["--data", pairs, "--model", llama_dir, "--out", tmp_path / "o"]
    cases: list[tuple[list[str | Path], str, int, str]] = [
        (["dpo", *base, "--data", bad], "data", 2, "bad.jsonl, line 21"),
        (["dpo", *base, "--data", few], "too_few", 2, "3 preferences are too few"),
        (["dpo", *base, "--model", no_template], "model", 2, "no chat template"),
        (["dpo", *base, "--model", unsafe], "model", 2, "pytorch_model.bin"),
        (["dpo", *base, "--set", "beta=-1"], "data", 2, "field 'beta'"),
        (["dpo", *base, "--set", "bta=1"], "data", 2, "field 'bta'"),
        (["ppo", *base], "data", 2, "ppo needs --reward-model"),
        (["dpo"], "data", 2, "--data"),
        (["dance", *base], "data", 2, "dance"),
    ]
    for arguments, kind, exit_code, words in cases:
        code, lines, errors = run(capfd, *arguments)
        assert code == exit_code
        assert lines[-1]["error"]["kind"] == kind
        assert words in lines[-1]["error"]["message"]
        assert errors.splitlines()[-1] == lines[-1]["error"]["message"]
    assert not (tmp_path / "o" / "checkpoint").exists()


def test_a_full_disk_exits_3_and_a_full_memory_4_with_an_estimate(
    capfd: Capture, tmp_path: Path, llama_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from workers.training import nets

    pairs = write_jsonl(tmp_path / "p.jsonl", toy_pairs(20))
    arguments = ["dpo", "--data", pairs, "--model", llama_dir, "--out", tmp_path / "o"]

    def fail_with(error: Exception) -> Any:
        def fail(*_: object) -> None:
            raise error

        return fail

    with monkeypatch.context() as patch:
        patch.setattr(nets.Policy, "save", fail_with(OSError(28, "No space left on device")))
        code, lines, _ = run(capfd, *arguments)
    assert (code, lines[-1]["error"]["kind"]) == (3, "disk")
    with monkeypatch.context() as patch:
        patch.setattr(
            nets.Policy, "log_probs", fail_with(RuntimeError("[enforce fail] can't allocate memory: 9 bytes"))
        )
        code, lines, _ = run(capfd, *arguments)
    assert (code, lines[-1]["error"]["kind"]) == (4, "memory")
    assert "lower micro_batch_tokens" in lines[-1]["error"]["message"]
    with monkeypatch.context() as patch:
        patch.setattr(nets.Policy, "log_probs", fail_with(KeyError("surprise")))
        code, lines, errors = run(capfd, *arguments)
    assert (code, lines[-1]["error"]["kind"]) == (1, "internal")
    assert "Traceback" in errors


def test_sigterm_writes_a_state_exits_75_and_resume_ends_with_the_same_bytes(
    capfd: Capture, tmp_path: Path, llama_dir: Path
) -> None:
    pairs = write_jsonl(tmp_path / "p.jsonl", toy_pairs(40))
    arguments = ["dpo", "--data", pairs, "--model", llama_dir, *QUICK, "--set", "epochs=30", "--set", "save_every=0"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "workers.training", *map(str, arguments), "--out", str(tmp_path / "killed")]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment, text=True)
    assert child.stdout is not None
    for _ in range(5):
        assert "step" in json.loads(child.stdout.readline())
    child.send_signal(signal.SIGTERM)
    rest = child.stdout.read().splitlines()
    assert child.wait() == 75
    assert json.loads(rest[-1])["error"]["kind"] == "interrupted"

    assert run(capfd, *arguments, "--out", tmp_path / "killed", "--resume")[0] == 0
    assert run(capfd, *arguments, "--out", tmp_path / "straight")[0] == 0
    one, other = (tmp_path / name / "checkpoint" / "model.safetensors" for name in ("killed", "straight"))
    assert one.read_bytes() == other.read_bytes()


def test_closing_stdin_ends_an_orphan_at_once(tmp_path: Path, llama_dir: Path) -> None:
    pairs = write_jsonl(tmp_path / "p.jsonl", toy_pairs(40))
    command = [
        sys.executable, "-m", "workers.training", "dpo", "--data", str(pairs), "--model", str(llama_dir),
        "--out", str(tmp_path / "o"), "--set", "epochs=1000", "--stop-with-parent",
    ]  # fmt: skip
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(0.5)
    assert child.poll() is None
    assert child.stdin is not None
    child.stdin.close()
    assert child.wait(timeout=20) == 75
