"""The tiny policy: an ordinary checkpoint, the same every time, and, built in full, a speaker of the demo language."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from app.demo import language
from workers.training import nets, tiny
from workers.training.checkpoints import verify
from workers.training.errors import Interrupted, RecordError, TooFewError
from workers.training.recipes import TinyRecipe
from workers.training.records import read_demonstrations
from workers.training.report import Reporter

QUICK = TinyRecipe(steps=65, batch_size=4, learning_rate=0.01, hidden_size=32, layers=1, vocab_size=400)


def build(folder: Path, recipe: TinyRecipe = QUICK, dialogues: int = 300, **of_reporter: Any) -> tuple[Path, list[Any]]:
    """Build a policy on the demo language; where it lies, and what was reported."""
    folder.mkdir(parents=True, exist_ok=True)
    language.write_corpus(folder / "corpus.jsonl", dialogues, seed=7)
    out = io.StringIO()
    report = Reporter("tiny", out, io.StringIO())
    for name, value in of_reporter.items():
        setattr(report, name, value)
    tiny.train(recipe, folder / "corpus.jsonl", folder, report)
    return folder / "checkpoint", [json.loads(line) for line in out.getvalue().splitlines()]


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Any]]:
    return build(tmp_path_factory.mktemp("tiny"))


def test_checkpoint_is_an_ordinary_transformers_directory(quick: tuple[Path, list[Any]]) -> None:
    directory, _ = quick
    verify(directory)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(directory), AutoTokenizer.from_pretrained(directory)
    names = {path.name for path in directory.iterdir()}
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "MANIFEST.json"} <= names
    assert tokenizer.pad_token_id != tokenizer.eos_token_id == model.generation_config.eos_token_id
    assert model.generation_config.pad_token_id == tokenizer.pad_token_id
    asked = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hello!"}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    said = model.generate(**asked, max_new_tokens=5, do_sample=True)
    assert said.shape[1] > asked["input_ids"].shape[1]


def test_tokenizer_spells_any_text_and_marks_what_the_assistant_said(quick: tuple[Path, list[Any]]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(quick[0])
    for text in ("Grüße, 日本! \t\n 🙂", "", "  two  spaces ", "What colour is snow?"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    messages = [{"role": "user", "content": "Hello!"}, {"role": "assistant", "content": "Fine."}]
    marked = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
    said = [i for i, mark in zip(marked["input_ids"], marked["assistant_masks"], strict=True) if mark]
    assert tokenizer.decode(said) == "Fine.<|end|>"
    asked = tokenizer.apply_chat_template(messages[:1], tokenize=False, add_generation_prompt=True)
    assert tokenizer.apply_chat_template(messages, tokenize=False).startswith(asked)


def test_it_trains_on_the_very_tokens_that_the_other_stages_read(quick: tuple[Path, list[Any]]) -> None:
    rows = list(read_demonstrations(quick[0].parent / "corpus.jsonl"))[:50]
    policy = nets.load_policy(str(quick[0]))
    own = tiny._encode(policy.codec.tokenizer, rows, max_length=256)
    assert own == [policy.codec.encode(row.prompt, row.completion)[0] for row in rows]


def test_same_seed_builds_the_same_policy_and_another_seed_another(
    tmp_path: Path, quick: tuple[Path, list[Any]]
) -> None:
    def weights(directory: Path) -> bytes:
        return (directory / "model.safetensors").read_bytes()

    torch.manual_seed(99)  # whatever the caller's random state
    assert weights(build(tmp_path / "again")[0]) == weights(quick[0])
    assert weights(build(tmp_path / "other", QUICK.model_copy(update={"seed": 1}))[0]) != weights(quick[0])


def test_loss_falls_and_progress_is_reported(quick: tuple[Path, list[Any]]) -> None:
    steps = quick[1]
    assert [row["step"] for row in steps] == [10, 20, 30, 40, 50, 60, 65] and steps[-1]["total_steps"] == 65
    assert steps[-1]["metrics"]["loss"] < 5.0  # log(400) = 6.0 is what knowing nothing costs


def test_plain_strings_are_dialogues_too(tmp_path: Path) -> None:
    rows = [{"prompt": f"Say {i}.", "completion": f"It is {i}."} for i in range(20)]
    (tmp_path / "plain.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = Reporter("tiny", io.StringIO(), io.StringIO())
    tiny.train(QUICK.model_copy(update={"steps": 2}), tmp_path / "plain.jsonl", tmp_path, report)
    verify(tmp_path / "checkpoint")


def test_useless_data_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    report = Reporter("tiny", io.StringIO(), io.StringIO())
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(TooFewError):
        tiny.train(QUICK, tmp_path / "empty.jsonl", tmp_path, report)
    (tmp_path / "bad.jsonl").write_text('{"prompt": "a", "completion": "b"}\n{"prompt": 3}\n')
    with pytest.raises(RecordError, match="line 2"):
        tiny.train(QUICK, tmp_path / "bad.jsonl", tmp_path, report)
    assert not (tmp_path / "checkpoint").exists()


def test_stopping_leaves_no_half_built_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        build(tmp_path, stopping=True)
    assert not (tmp_path / "checkpoint").exists()


@pytest.mark.slow
def test_full_build_speaks_the_demo_language(tmp_path: Path) -> None:
    """Sampled at temperature 1: whole sentences, varied, right often enough that preferences can make it righter."""
    directory, _ = build(tmp_path, TinyRecipe(), dialogues=24_000)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(directory), AutoTokenizer.from_pretrained(directory)
    assert 700_000 < model.num_parameters() < 1_300_000
    prompts = language.prompts(300, seed=99)
    chats = [[{"role": "user", "content": prompt}] for prompt in prompts]
    texts = tokenizer.apply_chat_template(chats, tokenize=False, add_generation_prompt=True)
    asked = tokenizer(texts, return_tensors="pt", padding=True, padding_side="left", return_token_type_ids=False)
    torch.manual_seed(0)
    first, second = (
        tokenizer.batch_decode(
            model.generate(**asked, do_sample=True, top_k=0, max_new_tokens=64)[:, asked["input_ids"].shape[1] :],
            skip_special_tokens=True,
        )
        for _ in range(2)
    )
    found = [language.traits(p, text) for texts in (first, second) for p, text in zip(prompts, texts, strict=True)]
    share = {name: sum(getattr(t, name) for t in found) / len(found) for name in ("fluent", *language.PLANNED)}
    assert share["fluent"] >= 0.94  # 0.96 measured; two standard deviations of 600 draws below it
    assert share["right"] >= 0.4
    assert all(0.35 < share[name] < 0.8 for name in ("courteous", "helpful", "brief", "closing")), share
    assert sum(a != b for a, b in zip(first, second, strict=True)) >= 0.9 * len(prompts)
