"""The scoring forwards against Hugging Face one sequence at a time; loading, merging, refusing."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.workers.training.nets_in_memory import byte_tokenizer, example, policy, save_model, save_reward_model
from workers.training import nets
from workers.training.errors import ModelError
from workers.training.layout import collate
from workers.training.recipes import Lora
from workers.training.tokens import Example

EXAMPLES = [example("what is it", "a cat"), example("x", "nothing at all"), example("longer prompt than both", "y")]


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probs_equal_one_sequence_at_a_time_through_hugging_face(kind: str, temperature: float) -> None:
    ours = policy(kind)
    batched = ours.log_probs(collate(EXAMPLES), temperature)
    for row, item in zip(batched, EXAMPLES, strict=True):
        logits = ours.model(input_ids=torch.tensor([item.prompt + item.completion])).logits[0] / temperature
        expected = torch.log_softmax(logits, -1)[:-1].gather(
            1, torch.tensor(item.prompt[1:] + item.completion)[:, None]
        )
        expected = expected[len(item.prompt) - 1 :, 0]
        assert torch.allclose(row[: len(item.completion)], expected, atol=1e-5)
        assert not row[len(item.completion) :].any()


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_neither_the_amount_of_padding_nor_the_padding_id_nor_the_order_matters(kind: str) -> None:
    ours = policy(kind)
    alone = [float(ours.log_probs(collate([item])).sum()) for item in EXAMPLES]
    wide = collate([*EXAMPLES, Example([3] * 60, [4] * 40)])
    assert wide.ids[0, -1] == 0
    together = ours.log_probs(wide).sum(1)[:3].tolist()
    wide.ids[wide.ids == 0] = 1  # padding id becomes the end token
    as_end = ours.log_probs(wide).sum(1)[:3].tolist()
    reversed_order = ours.log_probs(collate(EXAMPLES[::-1])).sum(1).tolist()[::-1]
    for other in (together, as_end, reversed_order):
        assert other == pytest.approx(alone, abs=1e-4)


def test_scores_are_read_at_the_last_real_token_whatever_the_padding(llama_dir: Path) -> None:
    scorer = nets.new_reward_model(str(llama_dir), seed=0)
    batched = scorer.scores(collate(EXAMPLES)).tolist()
    for item, score in zip(EXAMPLES, batched, strict=True):
        ids = torch.tensor([item.prompt + item.completion])
        hidden = scorer.model.model(input_ids=ids).last_hidden_state[0, -1]
        assert score == pytest.approx(float(hidden @ scorer.model.score.weight[0]), abs=1e-5)


def test_values_are_read_before_each_token_of_the_completion(reward_dir: Path) -> None:
    scorer = nets.load_reward_model(str(reward_dir))
    item = EXAMPLES[0]
    values = scorer.values(collate([item]))[0]
    for t in range(len(item.completion)):
        prefix = Example(item.prompt[:-1], [item.prompt[-1], *item.completion[:t]])
        assert float(values[t]) == pytest.approx(scorer.rate([prefix], 1000)[0], abs=1e-5)


def test_the_new_head_is_drawn_with_deviation_one_over_root_of_width_plus_one(llama_dir: Path) -> None:
    weights = torch.cat([nets.new_reward_model(str(llama_dir), seed).model.score.weight[0] for seed in range(20)])
    assert float(weights.std()) == pytest.approx((32 + 1) ** -0.5, rel=0.1)


def test_a_saved_reward_model_gives_the_same_scores_in_a_new_process(tmp_path: Path, llama_dir: Path) -> None:
    for lora in (None, Lora(r=4)):
        scorer = nets.new_reward_model(str(llama_dir), seed=1, lora=lora)
        with torch.no_grad():
            for _, parameter in scorer.trainable():
                parameter += 0.05
        scorer.normalise(0.3, 2.0)
        before = scorer.rate(EXAMPLES, 1000)
        scorer.save(tmp_path / "rm")
        program = (
            "import sys, json; from workers.training import nets; from workers.training.tokens import Example;"
            "print(json.dumps(nets.load_reward_model(sys.argv[1]).rate("
            "[Example(*e) for e in json.loads(sys.argv[2])], 1000)))"
        )
        examples = json.dumps([[e.prompt, e.completion] for e in EXAMPLES])
        if lora is not None:  # one new process is enough to show it; the merged one is loaded here
            after = nets.load_reward_model(str(tmp_path / "rm")).rate(EXAMPLES, 1000)
        else:
            command = [sys.executable, "-c", program, str(tmp_path / "rm"), examples]
            after = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        assert after == pytest.approx(before, abs=1e-5)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_lora_starts_as_the_base_trains_only_adapters_and_saves_merged(kind: str, tmp_path: Path) -> None:
    directory = save_model(tmp_path / kind, kind)
    plain = nets.load_policy(str(directory))
    adapted = nets.load_policy(str(directory), lora=Lora(r=4))
    batch = collate(EXAMPLES)
    assert torch.allclose(plain.log_probs(batch), adapted.log_probs(batch), atol=1e-5)
    assert all("lora_" in name for name, _ in adapted.trainable())
    with torch.no_grad():
        for _, parameter in adapted.trainable():
            parameter += 0.05
    moved = adapted.log_probs(batch).detach()
    assert not torch.allclose(moved, plain.log_probs(batch), atol=1e-2)
    with adapted.as_reference():
        assert torch.allclose(adapted.log_probs(batch), plain.log_probs(batch), atol=1e-5)
    adapted.save(tmp_path / "merged")
    assert not list((tmp_path / "merged").glob("adapter*"))
    assert torch.allclose(nets.load_policy(str(tmp_path / "merged")).log_probs(batch), moved, atol=1e-4)


def test_an_adapter_directory_is_loaded_by_merging_it_into_its_base(tmp_path: Path, llama_dir: Path) -> None:
    adapted = nets.load_policy(str(llama_dir), lora=Lora(r=2))
    with torch.no_grad():
        for _, parameter in adapted.trainable():
            parameter += 0.05
    assert adapted.peft is not None
    adapted.peft.peft_config["default"].base_model_name_or_path = str(llama_dir)
    adapted.peft.save_pretrained(tmp_path / "adapter")
    (tmp_path / "adapter" / "README.md").unlink(missing_ok=True)
    byte_tokenizer().save_pretrained(tmp_path / "adapter")
    merged = nets.load_policy(str(tmp_path / "adapter"))
    batch = collate(EXAMPLES)
    assert torch.allclose(merged.log_probs(batch), adapted.log_probs(batch), atol=1e-4)


def test_policy_and_reward_model_must_share_their_tokenizer(tmp_path: Path, llama_dir: Path) -> None:
    other = save_model(tmp_path / "other")
    byte_tokenizer(merges=[("a", "b")]).save_pretrained(other)
    reward = save_reward_model(tmp_path / "rm", other)
    with pytest.raises(ModelError, match="different tokenizers"):
        nets.same_tokens(nets.load_policy(str(llama_dir)), nets.load_reward_model(str(reward)))


def test_a_policy_is_not_taken_for_a_reward_model(llama_dir: Path) -> None:
    with pytest.raises(ModelError, match="not a reward model"):
        nets.load_reward_model(str(llama_dir))


def test_directories_that_could_run_code_or_are_damaged_are_refused(tmp_path: Path, llama_dir: Path) -> None:
    canary = tmp_path / "canary"
    evil = f"__import__('pathlib').Path({str(canary)!r}).touch()"

    def add(name: str, text: str) -> None:
        (case / name).write_text(text)

    def edit_config(**changes: object) -> None:
        config = json.loads((case / "config.json").read_text())
        (case / "config.json").write_text(json.dumps(config | changes))

    cases = {
        "a pickle": lambda: add("pytorch_model.bin", "x"),
        "a torch file": lambda: add("extra.pt", "x"),
        "a pkl": lambda: add("deep.pkl", "x"),
        "code": lambda: add("modeling_evil.py", evil),
        "auto_map": lambda: edit_config(auto_map={"AutoModelForCausalLM": "modeling_evil.Evil"}),
        "nested trust": lambda: edit_config(text_config={"trust_remote_code": True}),
        "not safetensors": lambda: (case / "model.safetensors").write_bytes(b"\x80\x04cposix\nsystem\n"),
        "huge header": lambda: (case / "model.safetensors").write_bytes((2**63).to_bytes(8, "little") + b"{}"),
        "broken config": lambda: add("config.json", "{"),
        "no weights": lambda: (case / "model.safetensors").unlink(),
    }
    for name, spoil in cases.items():
        case = tmp_path / name.replace(" ", "_")
        shutil.copytree(llama_dir, case)
        spoil()
        with pytest.raises(ModelError):
            nets.load_policy(str(case))
    assert not canary.exists()


def test_a_directory_that_is_not_there_is_named() -> None:
    with pytest.raises(ModelError, match="no such model directory"):
        nets.load_policy("/nowhere/at/all")
