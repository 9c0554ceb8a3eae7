"""Ways of running: gradient checkpointing, adapters by themselves, 4 bits, trackers, estimates of memory, families."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from tests.workers.training.nets_in_memory import (
    FAMILIES,
    Recorder,
    example,
    policy,
    save_model,
    toy_pairs,
    write_jsonl,
)  # fmt: skip
from workers.training import dpo, memory, nets, sft
from workers.training.__main__ import main
from workers.training.errors import ModelError
from workers.training.layout import collate
from workers.training.nets import Policy
from workers.training.recipes import DPORecipe, Lora, SFTRecipe

EXAMPLES = [example("what is it", "a cat"), example("x", "nothing at all"), example("longer prompt than both", "y")]
KINDS = ["gpt2", *FAMILIES]


def _backward(net: Policy) -> tuple[dict[str, torch.Tensor], int]:
    """Gradients, and the bytes that were kept between the forward and the backward pass beside the weights."""
    kept: dict[int, int] = {}
    weights = {p.data_ptr() for p in net.model.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.data_ptr() not in weights:
            kept[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = net.log_probs(collate(EXAMPLES)).sum()
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in net.model.named_parameters() if p.grad is not None}
    net.model.zero_grad()
    return gradients, sum(kept.values())


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_checkpointing_changes_no_gradient_and_keeps_less(kind: str) -> None:
    net = policy(kind)
    expected, much = _backward(net)
    net.prepare(SFTRecipe(gradient_checkpointing=True), Recorder())
    gradients, little = _backward(net)
    assert set(gradients) == set(expected)
    assert all(torch.equal(gradients[name], expected[name]) for name in expected)
    assert little < 0.7 * much


def test_a_copy_of_a_net_that_recomputes_runs_through_its_own_blocks() -> None:
    net = policy()
    net.prepare(SFTRecipe(gradient_checkpointing=True), Recorder())
    other = Policy(copy.deepcopy(net.model), net.codec)
    before = net.log_probs(collate(EXAMPLES)).detach()
    with torch.no_grad():
        for parameter in net.model.model.layers.parameters():
            parameter.zero_()
    assert torch.equal(other.log_probs(collate(EXAMPLES)), before)


def test_adapters_are_published_by_themselves_and_load_as_the_merged_policy(tmp_path: Path, llama_dir: Path) -> None:
    data = write_jsonl(tmp_path / "d.jsonl", [{"prompt": r["prompt"], "completion": r["chosen"]} for r in toy_pairs(8)])
    for name, alone in (("merged", False), ("adapter", True)):
        recipe = SFTRecipe(learning_rate=0.01, lora=Lora(r=2, save_adapter=alone), batch_size=4)
        sft.train(recipe, data, tmp_path / name, Recorder(), model=str(llama_dir))
    adapter = tmp_path / "adapter" / "checkpoint"
    assert {p.name for p in adapter.iterdir()} >= {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json"}
    assert not (adapter / "model.safetensors").exists()
    assert json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"] == str(llama_dir)
    batch = collate(EXAMPLES)
    merged, alone_, base = (
        nets.load_policy(str(where)).log_probs(batch)
        for where in (tmp_path / "merged" / "checkpoint", adapter, llama_dir)
    )
    assert torch.allclose(merged, alone_, atol=1e-4)
    assert not torch.allclose(merged, base, atol=1e-2)
    with pytest.raises(ModelError, match="is an adapter itself"):
        nets.load_policy(str(adapter), lora=Lora(save_adapter=True))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_four_bits_need_a_gpu_and_adapters_that_stay_apart(llama_dir: Path) -> None:
    with pytest.raises(ModelError, match="nf4 needs a CUDA GPU"):
        nets.load_policy(str(llama_dir), lora=Lora(quantization="nf4", save_adapter=True))
    with pytest.raises(ValidationError, match="set save_adapter as well"):
        Lora(quantization="nf4")


def _shown(directory: Path) -> list[str]:
    rows = [{"prompt": r["prompt"], "completion": r["chosen"]} for r in toy_pairs(12)]
    return ["sft", "--data", str(write_jsonl(directory / "d.jsonl", rows)), "--out", str(directory / "out")]


def test_each_step_goes_to_tensorboard_too(tmp_path: Path, llama_dir: Path, capfd: pytest.CaptureFixture[str]) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    assert main([*_shown(tmp_path), "--model", str(llama_dir), "--track", "tensorboard", "--set", "batch_size=5"]) == 0
    lines = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    events = accumulator.EventAccumulator(str(tmp_path / "out" / "tensorboard" / "sft"))
    events.Reload()
    for name in ("loss", "mean_token_accuracy"):
        seen = [(e.step, pytest.approx(e.value)) for e in events.Scalars(name)]
        assert seen == [(line["step"], line["metrics"][name]) for line in lines[:-1]]


@pytest.mark.parametrize(
    ("names", "words"), [("tensorbored", "there is no such tracker"), ("wandb", "pip install wandb")]
)
def test_a_tracker_that_is_not_there_is_named_before_anything_is_trained(
    names: str, words: str, tmp_path: Path, llama_dir: Path, capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main([*_shown(tmp_path), "--model", str(llama_dir), "--track", names]) == 2
    assert words in capfd.readouterr().err


def test_the_estimate_of_memory_is_the_formulas() -> None:
    model = policy().model  # 2 layers of width 32, 261 words
    parameters = sum(p.numel() for p in model.parameters())
    full = memory.estimate(model, 1000)
    assert (full.weights, full.training) == (4 * parameters, 12 * parameters)
    assert full.activations == 34 * 2 * 1000 * 32 * 2
    assert full.head == 3 * 4 * 1000 * model.config.vocab_size
    assert memory.estimate(model, 10**9).head == 3 * 4 * 2**26
    assert memory.estimate(model, 1000, precision="bf16").activations == full.activations / 2
    lean = memory.estimate(model, 1000, checkpointing=True)
    assert lean.activations == 2 * 2 * 1000 * 32 * 2 + 34 * 2 * 1000 * 32
    gigabyte = 1 << 30
    shown = str(memory.Estimate(gigabyte, 3 * gigabyte, 40 << 20, 0))
    assert shown == "about 4.0 GB (weights 1.0 GB, gradients and AdamW 3.0 GB, activations 40 MB, logits 0 MB)"


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_the_estimate_of_activations_is_within_a_factor_of_two(kind: str) -> None:
    net = policy(kind)
    _, kept = _backward(net)
    tokens = collate(EXAMPLES).ids.numel()
    found = memory.estimate(net.model, tokens)
    assert 0.5 < (found.activations + found.head) / kept < 2


def test_too_little_memory_is_said_before_training_and_when_it_ran_out(
    tmp_path: Path, llama_dir: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = memory.Estimate(0, 100, 20, 0)
    assert memory.warning(needed, 100) is None and memory.warning(needed, 99) is not None
    monkeypatch.setattr(memory, "free", lambda: 100_000)

    def fail(*_: object) -> Any:
        raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(nets.Policy, "log_probs_and_hits", fail)
    assert main([*_shown(tmp_path), "--model", str(llama_dir)]) == 4
    said = capfd.readouterr().err.splitlines()
    assert any("Memory may not suffice: training takes about" in line and "0 MB are free" in line for line in said)
    assert said[-1].startswith("Out of memory. Training takes about")
    assert "activations 34 MB" in said[-1] and "lower micro_batch_tokens" in said[-1]


@pytest.mark.parametrize("kind", KINDS)
def test_any_family_goes_through_sft_and_dpo_and_comes_back_from_disk(kind: str, tmp_path: Path) -> None:
    model = save_model(tmp_path / "model", kind)
    pairs = write_jsonl(tmp_path / "pairs.jsonl", toy_pairs(10))
    shown = write_jsonl(
        tmp_path / "shown.jsonl", [{"prompt": r["prompt"], "completion": r["chosen"]} for r in toy_pairs(10)]
    )
    same = {"learning_rate": 1e-3, "batch_size": 10, "max_length": 100, "warmup_ratio": 0.0}
    report = Recorder()
    sft.train(SFTRecipe(**same, packing=True), shown, tmp_path / "sft", report, model=str(model))
    tuned = tmp_path / "sft" / "checkpoint"
    dpo.train(DPORecipe(**same), pairs, tmp_path / "dpo", report, model=str(tuned))
    assert report.steps_seen[1]["loss"] == pytest.approx(0.693147, abs=1e-5)
    batch = collate(EXAMPLES)
    start, middle, end = (nets.load_policy(str(d)) for d in (model, tuned, tmp_path / "dpo" / "checkpoint"))
    one, two, three = (net.log_probs(batch) for net in (start, middle, end))
    assert not torch.allclose(one, two, atol=1e-3) and not torch.allclose(two, three, atol=1e-3)
    assert end.codec.encode_prompt([{"role": "user", "content": "hi"}]) == start.codec.encode_prompt(
        [{"role": "user", "content": "hi"}]
    )
    again = tmp_path / "again"
    end.save(again)
    assert torch.equal(nets.load_policy(str(again)).log_probs(batch), three)
