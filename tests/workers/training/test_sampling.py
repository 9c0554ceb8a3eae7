"""Generation: exact under left padding, independent of the batch, with the log-probabilities that training sees."""

from itertools import pairwise
from typing import Any

import pytest
import torch

from tests.workers.training.nets_in_memory import byte_tokenizer, language_model, policy
from workers.training import sampling
from workers.training.layout import collate
from workers.training.nets import Policy
from workers.training.tokens import Codec, Example

PROMPTS = [[0, 2, 50, 51, 3], [0, 60], [0, 2, 70, 71, 72, 73, 74, 75, 76, 77, 3], [90]]
SEEDS = [11, 12, 13, 14]
KINDS = ["llama", "gpt2", "qwen2", "gemma3"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_the_samplers_log_probs_are_those_of_the_scoring_pass(kind: str, temperature: float) -> None:
    ours = policy(kind)
    drawn = sampling.generate(ours, PROMPTS, SEEDS, max_new_tokens=20, temperature=temperature)
    examples = [Example(prompt, completion.tokens) for prompt, completion in zip(PROMPTS, drawn, strict=True)]
    rescored = ours.log_probs(collate(examples), temperature)
    for row, completion in zip(rescored.tolist(), drawn, strict=True):
        assert row[: len(completion.tokens)] == pytest.approx(completion.log_probs, abs=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_completion_does_not_depend_on_its_batch(kind: str) -> None:
    ours = policy(kind)
    together = sampling.generate(ours, PROMPTS, SEEDS, max_new_tokens=24)
    alone = [sampling.generate(ours, [p], [s], max_new_tokens=24)[0] for p, s in zip(PROMPTS, SEEDS, strict=True)]
    in_twos = sampling.generate(ours, PROMPTS, SEEDS, max_new_tokens=24, batch_size=2)
    assert [c.tokens for c in together] == [c.tokens for c in alone] == [c.tokens for c in in_twos]


@pytest.mark.parametrize("kind", KINDS)
def test_completions_that_share_a_prefill_and_rows_that_join_later_are_those_drawn_alone(kind: str) -> None:
    """Three of each prompt, many of which end soon: their places go to the next prompts, in caches of other widths."""
    ours = Policy(language_model(kind), Codec(byte_tokenizer(), end_ids=range(5, 30)))
    prompts = [prompt for prompt in PROMPTS for _ in range(3)]
    drawn = sampling.generate(ours, prompts, range(12), max_new_tokens=24, temperature=2.0, batch_size=5)
    lengths = {len(c.tokens) for c in drawn}
    assert len(lengths) > 3 and 24 in lengths
    for seed, (prompt, completion) in enumerate(zip(prompts, drawn, strict=True)):
        [alone] = sampling.generate(ours, [prompt], [seed], max_new_tokens=24, temperature=2.0)
        assert completion.tokens == alone.tokens and completion.ended == alone.ended
        assert completion.log_probs == pytest.approx(alone.log_probs, abs=1e-4)


def test_a_prompt_with_many_completions_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, sizes = policy(), []
    forward = ours.model.base_model.forward

    def watched(**options: Any) -> Any:
        sizes.append(tuple(options["input_ids"].shape))
        return forward(**options)

    monkeypatch.setattr(ours.model.base_model, "forward", watched)
    sampling.generate(ours, [PROMPTS[0]] * 6, range(6), max_new_tokens=2)
    assert sizes[0] == (1, 5) and {columns for _, columns in sizes[1:]} == {1}


def test_greedy_is_hugging_faces_greedy() -> None:
    for kind in ("llama", "gpt2"):
        ours = policy(kind)
        drawn = sampling.generate(ours, PROMPTS, SEEDS, max_new_tokens=12, temperature=0)
        for prompt, completion in zip(PROMPTS, drawn, strict=True):
            expected = ours.model.generate(
                torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)), max_new_tokens=12, do_sample=False,
                pad_token_id=1,
            )  # fmt: skip
            assert completion.tokens == expected[0, len(prompt) :].tolist()


def test_a_completion_stops_at_its_end_token_and_says_so() -> None:
    ours = policy()
    seeds = list(range(300))
    drawn = sampling.generate(ours, [[0, 60]] * 300, seeds, max_new_tokens=30, temperature=3.0)
    assert any(c.ended for c in drawn) and not all(c.ended for c in drawn)
    for completion in drawn:
        assert (completion.tokens[-1] == 1) == completion.ended
        assert 1 not in completion.tokens[:-1]
        assert completion.ended or len(completion.tokens) == 30


def test_frequencies_of_the_first_token_are_the_models_probabilities() -> None:
    ours = policy()
    with torch.no_grad():
        expected = torch.softmax(ours.model(torch.tensor([[0, 60]])).logits[0, -1], -1)
    drawn = sampling.generate(ours, [[0, 60]] * 4000, list(range(4000)), max_new_tokens=1, batch_size=4000)
    counts = torch.bincount(torch.tensor([c.tokens[0] for c in drawn]), minlength=len(expected)) / 4000
    assert float((counts - expected).abs().max()) < 4 * (0.25 / 4000) ** 0.5


def test_top_p_keeps_the_smallest_set_with_that_much_probability() -> None:
    ours = policy()
    with torch.no_grad():
        probs = torch.softmax(ours.model(torch.tensor([[0, 60]])).logits[0, -1], -1).sort(descending=True)
    size = next(i for i, total in enumerate(probs.values.cumsum(0).tolist(), 1) if total >= 0.5)
    drawn = sampling.generate(ours, [[0, 60]] * 500, list(range(500)), max_new_tokens=1, top_p=0.5, batch_size=500)
    assert {c.tokens[0] for c in drawn} <= set(probs.indices[:size].tolist())


def test_top_k_and_min_p_keep_the_likeliest() -> None:
    ours = policy()
    with torch.no_grad():
        probs = torch.softmax(ours.model(torch.tensor([[0, 60]])).logits[0, -1], -1).sort(descending=True)

    def found(**rule: Any) -> set[int]:
        drawn = sampling.generate(ours, [[0, 60]] * 500, range(500), max_new_tokens=1, batch_size=500, **rule)
        return {c.tokens[0] for c in drawn}

    assert found(top_k=2) == set(probs.indices[:2].tolist())
    above = int((probs.values >= 0.3 * probs.values[0]).sum())
    assert found(min_p=0.3) == set(probs.indices[:above].tolist())
    assert found(top_k=1) == found(min_p=1.0) == {int(probs.indices[0])}


def test_the_repetition_penalty_is_hugging_faces_and_leaves_the_log_probs_alone() -> None:
    ours = policy("gpt2")
    prompt = PROMPTS[2]
    [drawn] = sampling.generate(ours, [prompt], [0], max_new_tokens=16, temperature=0, repetition_penalty=1.6)
    expected = ours.model.generate(
        torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)), max_new_tokens=16, do_sample=False,
        pad_token_id=1, repetition_penalty=1.6,
    )  # fmt: skip
    assert drawn.tokens == expected[0, len(prompt) :].tolist()
    assert drawn.tokens != sampling.generate(ours, [prompt], [0], max_new_tokens=16, temperature=0)[0].tokens
    rescored = ours.log_probs(collate([Example(prompt, drawn.tokens)])).detach()[0].tolist()
    assert drawn.log_probs == pytest.approx(rescored, abs=1e-4)


def test_a_completion_ends_with_the_token_that_completes_a_stop_string() -> None:
    ours = policy()
    free = sampling.generate(ours, PROMPTS, SEEDS, max_new_tokens=24)
    text = ours.codec.decode(free[1].tokens)
    stop = text[5:7]
    cut = sampling.generate(ours, PROMPTS, SEEDS, max_new_tokens=24, stop=[stop, "never said"])
    for before, after in zip(free, cut, strict=True):
        said, whole = ours.codec.decode(after.tokens), ours.codec.decode(before.tokens)
        assert before.tokens[: len(after.tokens)] == after.tokens
        assert (stop in whole) == (stop in said) and stop not in ours.codec.decode(after.tokens[:-1])
        assert after.ended == (stop in said or before.ended)
    assert len(cut[1].tokens) < len(free[1].tokens)


def test_the_same_seed_draws_the_same_and_another_seed_something_else() -> None:
    ours = policy()
    one, again, other = (sampling.generate(ours, [[0, 60]], [seed], max_new_tokens=20)[0].tokens for seed in (5, 5, 6))
    assert one == again != other


def test_a_long_prompt_keeps_its_end() -> None:
    assert sampling.clip_prompt([1, 2, 3, 4], 2) == [3, 4]
    assert sampling.clip_prompt([1, 2], 2) == [1, 2]


def test_progress_is_told_after_each_batch() -> None:
    seen: list[int] = []
    sampling.generate(policy(), PROMPTS, SEEDS, max_new_tokens=2, batch_size=3, between=seen.append)
    assert seen == [3, 4] and all(a < b for a, b in pairwise(seen))
