"""Advantages of groups, against numbers worked out by hand."""

import math

import pytest
import torch

from workers.training.baselines import alike, combine, deviation, leave_one_out, relative_to_group

NAN = math.nan


def rows(values: object) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_grpo_subtracts_the_groups_mean_and_divides_by_its_deviation() -> None:
    rewards = rows([[1.0, 0.0, 0.0, 1.0], [3.0, 1.0, 1.0, 1.0]])
    one, other = math.sqrt(1 / 3), 1.0  # n - 1: (4 · ¼) / 3 and (2.25 + 3 · 0.25) / 3
    assert relative_to_group(rewards)[0].tolist() == pytest.approx([x / (one + 1e-4) for x in (0.5, -0.5, -0.5, 0.5)])
    assert relative_to_group(rewards)[1].tolist() == pytest.approx(
        [x / (other + 1e-4) for x in (1.5, -0.5, -0.5, -0.5)]
    )
    assert relative_to_group(rewards, "none")[1].tolist() == [1.5, -0.5, -0.5, -0.5]
    spread = rewards.flatten().std()  # torch's own, n - 1
    assert torch.allclose(relative_to_group(rewards, "batch"), relative_to_group(rewards, "none") / (spread + 1e-4))


def test_the_leave_one_out_baseline_is_the_mean_of_the_others() -> None:
    assert leave_one_out(rows([[1.0, 2.0, 6.0]])).tolist() == [[1 - 4, 2 - 3.5, 6 - 1.5]]


def test_the_unscorable_are_in_no_mean_and_have_no_advantage() -> None:
    assert relative_to_group(rows([[1.0, NAN, 3.0]]), "none").tolist() == [[-1.0, 0.0, 1.0]]
    assert relative_to_group(rows([[1.0, NAN, 3.0]]))[0, 2] == pytest.approx(1 / (math.sqrt(2) + 1e-4))
    assert leave_one_out(rows([[1.0, NAN, 3.0]])).tolist() == [[-2.0, 0.0, 2.0]]
    for lonely in ([[NAN, 5.0, NAN]], [[NAN, NAN, NAN]]):
        assert relative_to_group(rows(lonely)).tolist() == leave_one_out(rows(lonely)).tolist() == [[0.0, 0.0, 0.0]]


def test_equal_rewards_give_no_advantage_at_all() -> None:
    rewards = rows([[0.1] * 7, [0.3] * 6 + [NAN]])
    assert float(relative_to_group(rewards).abs().max()) < 1e-9
    assert alike(rewards).tolist() == [True, True]
    assert alike(rows([[0.0, 0.0, 1.0], [NAN, NAN, NAN], [NAN, 2.0, NAN]])).tolist() == [False, True, True]


def test_components_are_weighted_and_added() -> None:
    scores = rows([[[1.0, 10.0], [0.0, 20.0]]])
    assert combine(scores, rows([1.0, 0.5])).tolist() == [[6.0, 10.0]]


def test_a_component_that_knows_nothing_of_a_prompt_does_not_count_there_and_one_that_failed_leaves_a_hole() -> None:
    scores = rows([[[NAN, 1.0], [NAN, 2.0]], [[1.0, 1.0], [NAN, 2.0]], [[NAN, NAN], [NAN, NAN]]])
    combined = combine(scores, rows([10.0, 1.0]))
    assert combined[0].tolist() == [1.0, 2.0]
    assert combined[1, 0] == 11.0 and combined[1, 1].isnan()
    assert combined[2].isnan().all()


def test_deviation_ignores_holes_and_is_nothing_for_a_single_value() -> None:
    assert float(deviation(rows([1.0, NAN, 3.0]), 0)) == pytest.approx(math.sqrt(2))
    assert float(deviation(rows([NAN, 4.0]), 0)) == 0.0
