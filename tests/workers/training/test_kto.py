"""KTO: what it takes, its reference point, and that it learns from labels without pairs."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.workers.training.nets_in_memory import Recorder, example, policy, save_model, toy_pairs, write_jsonl
from workers.training import kto
from workers.training.__main__ import main
from workers.training.errors import DataError, Interrupted, RecordError, TooFewError
from workers.training.kto import Item
from workers.training.recipes import KTORecipe
from workers.training.records import Labelled, read_labelled

SMALL: dict[str, Any] = {"batch_size": 8, "learning_rate": 1e-3, "micro_batch_tokens": 300, "max_length": 100}


def labelled(count: int, offset: int = 0) -> list[dict[str, Any]]:
    """Answers of a's are good and those of b's are bad; lengths differ, and one label in three is good."""
    return [
        {
            "prompt": row["prompt"],
            "completion": row["chosen"] if i % 3 == 0 else row["rejected"],
            "label": i % 3 == 0,
        }
        for i, row in enumerate(toy_pairs(count, offset))
    ]


def test_labels_are_true_or_false_and_nothing_else(tmp_path: Path) -> None:
    good = {"prompt": "p", "completion": "c", "label": True}
    assert list(read_labelled(write_jsonl(tmp_path / "g.jsonl", [good, good | {"label": False}]))) == [
        Labelled("p", "c", True),
        Labelled("p", "c", False),
    ]
    for label, words in ((1, "is a number"), ("yes", "is a string"), (None, "is missing")):
        path = write_jsonl(tmp_path / "b.jsonl", [good, good | {"label": label}])
        with pytest.raises(RecordError, match=rf"line 2, field 'label': {words}; give true where") as error:
            list(read_labelled(path))
        assert error.value.field == "label"
    with pytest.raises(DataError, match="'completion'"):
        list(read_labelled(write_jsonl(tmp_path / "c.jsonl", [{"prompt": "p", "label": True}])))


def test_each_prompt_meets_the_completion_before_it_and_a_lone_one_that_of_the_next_example() -> None:
    data_set = [Item(example(f"p{i}", "abc"[i] * (i + 1)), True) for i in range(3)]
    prompts, answers = [d.example.prompt for d in data_set], [d.example.completion for d in data_set]
    crossed = kto.mismatched(data_set, [2, 0, 1], 100)
    assert [e.prompt for e in crossed] == [prompts[2], prompts[0], prompts[1]]
    assert [e.completion for e in crossed] == [answers[1], answers[2], answers[0]]
    (alone,) = kto.mismatched(data_set, [2], 100)
    assert (alone.prompt, alone.completion) == (prompts[2], answers[0])
    (cut,) = kto.mismatched(data_set, [1], len(prompts[1]) + 2)
    assert cut.completion == answers[2][:2]


def test_the_reference_point_is_the_mean_log_ratio_and_never_below_nothing() -> None:
    model = policy()
    crossed = [example("one", "a"), example("two", "a longer one"), example("three", "bc")]
    with torch.no_grad():
        now = model.completion_log_probs(crossed)
    for shift, expected in ((torch.tensor([1.0, 2.0, 6.0]), 3.0), (torch.tensor([1.0, -7.0, 0.0]), 0.0)):
        for tokens in (10, 1000):
            assert float(kto._kl(model, crossed, now - shift, tokens)) == pytest.approx(expected, abs=1e-4)


def test_good_and_bad_are_weighed_apart_and_the_reference_point_gives_no_gradient() -> None:
    """β = .5, KL = 1, l = 1: ½ on either side, times λ."""
    ratios, kl = torch.ones(2, requires_grad=True), torch.ones(1, requires_grad=True)
    recipe = KTORecipe(beta=0.5, desirable_weight=2.0, undesirable_weight=0.0)
    loss = kto._losses(recipe, ratios, torch.tensor([True, False]), kl.detach())
    assert loss.tolist() == [1.0, 0.0]
    (gradient,) = torch.autograd.grad(loss.sum(), ratios)
    assert gradient.tolist() == pytest.approx([-2.0 * 0.5 * 0.25, 0.0])  # -λ β σ(1-σ)


def test_it_starts_at_one_half_and_learns_to_tell_good_from_bad(tmp_path: Path, llama_dir: Path) -> None:
    data = write_jsonl(tmp_path / "data.jsonl", labelled(24))
    held_out = write_jsonl(tmp_path / "eval.jsonl", labelled(12, offset=24))
    report = Recorder()
    metrics = kto.train(KTORecipe(**SMALL, epochs=4), data, tmp_path / "o", report, model=str(llama_dir), eval=held_out)
    first, last = report.steps_seen[0], report.steps_seen[-1]
    assert first["loss"] == pytest.approx(0.5, abs=1e-4) and first["kl"] == pytest.approx(0.0, abs=1e-3)
    assert last["rewards/margins"] > 0.3 and last["loss"] < 0.47
    assert metrics["eval_accuracy"] > 0.8 and metrics["eval_loss"] < 0.47 and metrics["eval_examples"] == 12
    assert metrics["eval_accuracy_low"] < metrics["eval_accuracy"] <= metrics["eval_accuracy_high"]
    assert set(last) == {
        "loss", "kl", "rewards/chosen", "rewards/rejected", "rewards/margins", "logps/chosen", "logps/rejected",
        "grad_norm",
    }  # fmt: skip


def test_a_step_of_one_kind_reports_that_kind_alone(tmp_path: Path, llama_dir: Path) -> None:
    data = write_jsonl(tmp_path / "data.jsonl", [row | {"label": True} for row in labelled(12)])
    report = Recorder()
    kto.train(KTORecipe(**SMALL), data, tmp_path / "o", report, model=str(llama_dir))
    assert "rewards/chosen" in report.steps_seen[0] and "rewards/rejected" not in report.steps_seen[0]


def test_cuts_of_a_step_change_nothing_and_neither_does_a_weight_of_nothing(tmp_path: Path, llama_dir: Path) -> None:
    data = write_jsonl(tmp_path / "data.jsonl", labelled(17))  # the last step has one example
    seen = []
    for budget in (64, 100_000):
        report = Recorder()
        kto.train(
            KTORecipe(**(SMALL | {"micro_batch_tokens": budget}), epochs=2), data, tmp_path / str(budget), report,
            model=str(llama_dir),
        )  # fmt: skip
        seen.append([(s["loss"], s["grad_norm"], s["kl"]) for s in report.steps_seen])
    assert torch.allclose(torch.tensor(seen[0]), torch.tensor(seen[1]), rtol=1e-3, atol=1e-5)
    report = Recorder()
    ignored = write_jsonl(tmp_path / "bad.jsonl", [row | {"label": False} for row in labelled(10)])
    kto.train(KTORecipe(**SMALL, undesirable_weight=0), ignored, tmp_path / "n", report, model=str(llama_dir))
    assert all(step["grad_norm"] == 0 and step["loss"] == 0 for step in report.steps_seen)


def test_a_resumed_run_ends_with_the_bytes_of_the_uninterrupted_one(tmp_path: Path, llama_dir: Path) -> None:
    data = write_jsonl(tmp_path / "data.jsonl", labelled(20))
    recipe = KTORecipe(**SMALL, epochs=2, save_every=2)
    straight, stopped, resumed = Recorder(), Recorder(stop_after=3), Recorder()
    expected = kto.train(recipe, data, tmp_path / "straight", straight, model=str(llama_dir))
    with pytest.raises(Interrupted):
        kto.train(recipe, data, tmp_path / "stopped", stopped, model=str(llama_dir))
    metrics = kto.train(recipe, data, tmp_path / "stopped", resumed, model=str(llama_dir), resume=True)
    assert metrics == expected and stopped.steps_seen + resumed.steps_seen == straight.steps_seen
    one, other = (tmp_path / name / "checkpoint" / "model.safetensors" for name in ("straight", "stopped"))
    assert one.read_bytes() == other.read_bytes()


def test_weights_that_do_not_balance_the_labels_are_named_with_ones_that_do(tmp_path: Path, llama_dir: Path) -> None:
    data, report = write_jsonl(tmp_path / "data.jsonl", labelled(12)), Recorder()  # 4 good, 8 bad
    kto.train(KTORecipe(**SMALL), data, tmp_path / "o", report, model=str(llama_dir))
    assert "Set desirable_weight=2, or undesirable_weight=0.5." in report.stderr.getvalue()  # type: ignore[attr-defined]
    report = Recorder()
    kto.train(KTORecipe(**SMALL, desirable_weight=2.5), data, tmp_path / "p", report, model=str(llama_dir))
    assert "desirable_weight" not in report.stderr.getvalue()  # type: ignore[attr-defined]


def test_the_command_line_knows_the_stage_and_its_reference(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, llama_dir: Path
) -> None:
    data = write_jsonl(tmp_path / "data.jsonl", labelled(12))
    command = ["kto", "--data", data, "--model", llama_dir, "--out", tmp_path / "o", "--set", "batch_size=6"]
    capfd.readouterr()
    starts = []
    for reference in (llama_dir, save_model(tmp_path / "other", seed=1)):
        assert main([str(part) for part in (*command, "--reference-model", reference)]) == 0
        lines = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
        assert lines[-1]["stage"] == "kto" and lines[-1]["steps"] == 2
        starts.append(lines[0]["metrics"]["rewards/chosen"])
    assert abs(starts[0]) < 1e-4 < abs(starts[1])
    assert main([str(part) for part in (*command, "--set", "batch_size=1")]) == 2
    assert "field 'batch_size'" in json.loads(capfd.readouterr().out.splitlines()[-1])["error"]["message"]


def test_three_labels_are_too_few(tmp_path: Path, llama_dir: Path) -> None:
    data = write_jsonl(tmp_path / "data.jsonl", labelled(3))
    with pytest.raises(TooFewError, match="3 labelled completions are too few to train on: at least 10"):
        kto.train(KTORecipe(), data, tmp_path / "o", Recorder(), model=str(llama_dir))
