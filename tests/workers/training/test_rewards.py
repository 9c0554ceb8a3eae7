"""Reward components: what a rewards.json may say, how scores are put together and reported."""

import json
import math
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from tests.workers.training.nets_in_memory import example, policy, save_model, save_reward_model
from workers.training.__main__ import main
from workers.training.errors import DataError, ModelError
from workers.training.rewards import Component, Rewards, identity, read_components
from workers.training.verifiers import VERIFIERS


def components(path: Path, values: Any) -> Path:
    path.write_text(values if isinstance(values, str) else json.dumps(values))
    return path


def test_components_of_the_file_come_after_the_reward_model(tmp_path: Path) -> None:
    path = components(
        tmp_path / "r.json", [{"kind": "exact_number"}, {"kind": "length", "name": "short", "weight": 0.1}]
    )
    read = read_components(path, "some/model")
    assert [(c.name, c.kind, c.weight) for c in read] == [
        ("reward_model", "model", 1.0), ("exact_number", "exact_number", 1.0), ("short", "length", 0.1)
    ]  # fmt: skip
    assert [c.settings(77).max_tokens for c in read] == [77, 77, 77]
    assert Component(kind="length", max_tokens=5).settings(77).max_tokens == 5


def test_every_verifier_is_a_kind_of_component() -> None:
    assert set(get_args(Component.model_fields["kind"].annotation)) == {"model", *VERIFIERS}


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ("{", "not a readable JSON list"), ([], "nothing to reward"), ({"kind": "code"}, "valid list"),
        ([{"kind": "magic"}], "0.kind"), ([{"kind": "code", "wait": 1}], "0.wait"),
        ([{"kind": "model"}], "needs 'model'"), ([{"kind": "code", "model": "x"}], "needs 'model'"),
        ([{"kind": "code"}, {"kind": "code"}], "same name"), ([{"kind": "regex", "pattern": "("}], "expression"),
        ([{"kind": "code", "weight": "NaN"}], "0.weight"),
    ],
)  # fmt: skip
def test_a_wrong_file_is_refused_with_its_place(values: Any, complaint: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=complaint):
        read_components(components(tmp_path / "r.json", values), None)


def test_scores_stand_in_columns_and_metrics_count_what_could_not_be_scored() -> None:
    judge = Rewards([Component(kind="exact_number"), Component(kind="ended", name="end")], policy(), 64, 500)
    items = [example("2+2=", text) for text in ("4", "5", "four", "4.0")]
    rows = [{"answer": 4}, {"answer": 4}, {"answer": 4}, {}]
    scores = judge.score(items, rows, [True, True, False, False])
    assert scores[:3].tolist() == [[1.0, 1.0], [0.0, 1.0], [0.0, 0.0]]
    assert scores[3, 0].isnan() and scores[3, 1] == 0.0
    metrics = judge.metrics(scores.view(2, 2, 2))
    assert metrics["rewards/exact_number/mean"] == metrics["rewards/exact_number/pass_rate"] == pytest.approx(1 / 3)
    assert metrics["rewards/exact_number/std"] == pytest.approx(math.sqrt(1 / 3))
    assert metrics["rewards/exact_number/pass_at_k"] == 0.5 and metrics["rewards/exact_number/error_rate"] == 0.25
    assert metrics["rewards/end/mean"] == 0.5 and metrics["rewards/end/error_rate"] == 0.0


def test_programs_run_side_by_side_and_keep_their_order() -> None:
    judge = Rewards([Component(kind="code", seconds=30)], policy(), 64, 500)
    items = [example("x", f"x = {n}") for n in range(4)]
    scores = judge.score(items, [{"tests": "assert x % 2"}] * 4, [True] * 4)
    assert scores.flatten().tolist() == [0.0, 1.0, 0.0, 1.0]


def test_a_reward_models_scores_are_normalised_and_its_tokens_must_be_the_policys(tmp_path: Path) -> None:
    reward_dir = save_reward_model(tmp_path / "rm", save_model(tmp_path / "llama"))
    component = Component(kind="model", model=str(reward_dir), name="taste")
    judge = Rewards([component], policy(), 64, 500)
    items = [example("why", text) for text in ("a", "bc")]
    assert judge.scorers[0] is not None
    assert torch.allclose(
        judge.score(items, [{}, {}], [True, True])[:, 0].float(), torch.tensor(judge.scorers[0].rate(items, 99))
    )
    assert identity([component]) == identity([component.model_copy(update={"model": str(reward_dir)})])
    other = policy()
    other.codec.tokenizer.add_tokens(["new"])
    with pytest.raises(ModelError, match="different tokenizers"):
        Rewards([component], other, 64, 500)


@pytest.mark.parametrize("stage", ["grpo", "rloo", "best_of_n"])
def test_the_command_line_runs_the_stage(
    stage: str, tmp_path: Path, llama_dir: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = components(tmp_path / "d.jsonl", json.dumps({"question": "What is 1 + 1?", "answer": "#### 2"}) + "\n")
    rewards = components(tmp_path / "r.json", [{"kind": "exact_number"}, {"kind": "length", "weight": 0.1}])
    settings = ["--set", "max_new_tokens=5", "--set", "n=2" if stage == "best_of_n" else "group_size=2"]
    arguments = [stage, "--data", data, "--model", llama_dir, "--out", tmp_path / "o", *settings]
    assert main([*map(str, arguments), "--rewards", str(rewards)]) == 0
    assert json.loads(capfd.readouterr().out.splitlines()[-1])["metrics"]["rewards/exact_number/error_rate"] == 0.0
    assert main([*map(str, arguments)]) == 2
    assert "nothing to reward" in capfd.readouterr().out
