"""Rows of one example, shared prompts and packing: three layouts, one answer."""

import pytest
import torch

from tests.workers.training.nets_in_memory import example, policy, save_model
from workers.training import layout, nets
from workers.training.layout import collate, grouped, lay_out, micro_batches
from workers.training.tokens import Example

PROMPTS = ["what is it", "x", "a longer prompt than the two before"]
ANSWERS = [["a cat", "no idea at all", "y"], ["nothing", "b"], ["so", "and so", "on and on", "z"]]
EXAMPLES = [example(p, a) for p, answers in zip(PROMPTS, ANSWERS, strict=True) for a in answers]


def test_a_batch_knows_its_completions_by_length_even_where_padding_is_the_end_token() -> None:
    batch = collate([Example([5, 6], [7, 1]), Example([5], [1])])
    assert batch.ids.tolist() == [[5, 6, 7, 1], [5, 1, 0, 0]]
    assert batch.attention is None
    assert batch.mask.tolist() == [[True, True], [True, False]]
    assert (batch.before.tolist(), batch.at.tolist()) == ([1, 2, 4], [2, 3, 5])
    assert (batch.targets.tolist(), batch.owners.tolist()) == ([7, 1, 1], [0, 0, 1])
    assert batch.last.tolist() == [3, 5]
    assert batch.spread(batch.targets.float()).tolist() == [[7.0, 1.0], [1.0, 0.0]]


def test_completions_of_one_prompt_follow_it_one_by_one_at_the_same_positions() -> None:
    batch = lay_out([[[Example([5, 6], [7, 1]), Example([5, 6], [8])]]])
    assert batch.ids.tolist() == [[5, 6, 7, 1, 8]]
    assert batch.positions.tolist() == [[0, 1, 2, 3, 2]]
    assert (batch.before.tolist(), batch.at.tolist()) == ([1, 2, 1], [2, 3, 4])
    assert batch.last.tolist() == [3, 4]
    assert batch.attention is not None
    assert batch.attention[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [1, 1, 0, 0, 1],
    ]


def test_groups_that_share_a_row_do_not_see_each_other() -> None:
    batch = lay_out([[[Example([5], [1])], [Example([6], [1])]], [[Example([7], [1])]]])
    assert batch.positions.tolist()[0] == [0, 1, 0, 1]
    assert batch.attention is not None
    assert batch.attention[0, 0].int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]]
    assert batch.attention[1, 0].any(dim=1).all(), "a row of the mask without anything to see would be NaN"


def test_tokens_that_are_not_trained_are_read_and_not_counted() -> None:
    batch = collate([Example([5], [7, 8, 9], (True, False, True))])
    assert batch.mask.tolist() == [[True, False, True]]
    assert (batch.before.tolist(), batch.targets.tolist()) == ([0, 2], [7, 9])
    assert batch.last.tolist() == [3]


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen2", "gemma3"])
@pytest.mark.parametrize("pack", [False, True])
def test_sharing_and_packing_change_neither_log_probs_nor_gradients(
    kind: str, pack: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def both(shared: bool) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        ours = policy(kind)
        if not shared:
            monkeypatch.setattr(nets.Net, "reads_shared_rows", False)
        values = torch.zeros(len(EXAMPLES))
        for places, batch in ours.passes(EXAMPLES, 10_000, pack=pack):
            assert (batch.attention is not None) == shared or not shared
            values[places] = ours.log_probs(batch).sum(1)
        (values * torch.linspace(-1, 1, len(EXAMPLES))).sum().backward()
        return values.detach(), {n: p.grad for n, p in ours.model.named_parameters() if p.grad is not None}

    assert policy(kind).reads_shared_rows
    (together, with_sharing), (alone, without) = both(True), both(False)
    assert torch.allclose(together, alone, atol=1e-4, rtol=1e-6)
    for name, gradient in without.items():
        assert (with_sharing[name] - gradient).norm() <= 2e-5 * gradient.norm().clamp(min=1e-3), name


def test_scores_and_values_are_the_same_in_a_shared_row(llama_dir: str) -> None:
    scorer = nets.new_reward_model(str(llama_dir), seed=0)
    shared = lay_out([[EXAMPLES[:3]], [EXAMPLES[3:5]]])
    assert torch.allclose(scorer.scores(shared), scorer.scores(collate(EXAMPLES[:5])), atol=1e-5)
    assert torch.allclose(scorer.values(shared), scorer.values(collate(EXAMPLES[:5])), atol=1e-5)


def test_a_model_that_does_not_follow_our_mask_reads_each_example_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = policy()
    forward = ours.model.model.forward
    monkeypatch.setattr(ours.model.model, "forward", lambda *a, attention_mask=None, **k: forward(*a, **k))
    assert not ours.reads_shared_rows
    assert all(batch.attention is None for _, batch in ours.passes(EXAMPLES, 10_000, pack=True))


def test_beyond_the_attention_window_examples_stay_alone() -> None:
    short, long = [Example([3] * 6, [4]), Example([3] * 6, [5])], [Example([3] * 6, [4, 4, 4]), Example([3] * 6, [5])]
    assert grouped(short, 64, window=8) == [[0, 1]]
    assert grouped(long, 64, window=8) == [[0], [1]]


def test_a_row_is_shared_only_where_that_is_cheaper() -> None:
    short_prompt = [Example([3], [4] * 4000), Example([3], [5] * 4000)]
    assert grouped(short_prompt, 64) == [[0], [1]], "one token saved, and all pairs of both completions paid for"
    assert grouped([Example([3] * 50, [4]), Example([3] * 50, [5]), Example([2], [5])], 64) == [[0, 1], [2]]


def test_micro_batches_hold_every_item_once_within_the_budget() -> None:
    lengths = [5, 50, 7, 49, 6, 200, 5]
    groups = micro_batches(lengths, 100)
    assert sorted(i for group in groups for i in group) == list(range(7))
    assert all(len(group) == 1 or len(group) * max(lengths[i] for i in group) <= 100 for group in groups)
    assert [5] in groups  # longer than the budget: alone


def test_packed_rows_hold_every_example_once_and_are_no_longer_than_the_longest() -> None:
    examples = [Example([2] * n, [1]) for n in (1, 30, 4, 9, 12, 3, 14)]
    passes = list(layout.passes([[i] for i in range(7)], examples, 1000, 8192, pack=True))
    assert sorted(i for places, _ in passes for i in places) == list(range(7))
    rows = [row for _, rows in passes for row in rows]
    assert sorted(layout.length(row) for row in rows) == [25, 31, 24] or sum(map(layout.length, rows)) == 80
    assert len(rows) == 3 and max(layout.length(row) for row in rows) == 31


def test_saved_models_of_other_families_share_rows_too(tmp_path_factory: pytest.TempPathFactory) -> None:
    directory = save_model(tmp_path_factory.mktemp("models") / "qwen2", "qwen2")
    assert nets.load_policy(str(directory)).reads_shared_rows
