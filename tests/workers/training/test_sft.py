"""Supervised fine-tuning: TRL's loss and metrics, packing that changes nothing, resuming to the bit."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.workers.training.nets_in_memory import Recorder, policy, save_model, toy_pairs, write_jsonl
from tests.workers.training.test_demonstrations import MARKED, TALK
from workers.training import demonstrations, nets, sft
from workers.training.errors import Interrupted
from workers.training.layout import collate
from workers.training.recipes import Lora, SFTRecipe
from workers.training.records import read_demonstrations

SMALL: dict[str, Any] = {"batch_size": 8, "learning_rate": 1e-3, "max_length": 150, "save_every": 2}


@pytest.fixture(scope="module")
def talks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Single and multi-turn demonstrations of very different lengths."""
    short = [{"prompt": r["prompt"], "completion": r["chosen"]} for r in toy_pairs(15)]
    long = [{"messages": [*TALK[:3], {"role": "user", "content": "x" * (9 * i)}, TALK[4]]} for i in range(5)]
    return write_jsonl(tmp_path_factory.mktemp("data") / "talks.jsonl", short + long)


def _train(
    out: Path, data: Path, model: Path, report: Recorder | None = None, **recipe: Any
) -> dict[str, torch.Tensor]:
    sft.train(SFTRecipe(**SMALL | recipe), data, out, report or Recorder(), model=str(model))
    return load_file(out / "checkpoint" / "model.safetensors")


def test_packing_changes_neither_loss_nor_gradients_nor_the_final_weights(
    tmp_path: Path, talks: Path, llama_dir: Path
) -> None:
    plain, packed = Recorder(), Recorder()
    one = _train(tmp_path / "plain", talks, llama_dir, plain, packing=False)
    other = _train(tmp_path / "packed", talks, llama_dir, packed, packing=True)
    for a, b in zip(plain.steps_seen, packed.steps_seen, strict=True):
        assert a == pytest.approx(b, rel=1e-5)
    assert max(float((one[name] - other[name]).abs().max()) for name in one) < 1e-5
    examples = demonstrations.encode(policy().codec, list(read_demonstrations(talks)), 150, "all", Recorder())
    rows = [len(batch.ids) for _, batch in policy().passes(examples, 10_000, pack=True)]
    assert sum(rows) < len(examples) / 2, "nothing was packed"


@pytest.mark.parametrize("lora", [None, Lora(r=2)], ids=["full", "adapters"])
def test_a_packed_run_resumes_to_the_bit(lora: Lora | None, tmp_path: Path, talks: Path, llama_dir: Path) -> None:
    recipe = SFTRecipe(**SMALL, packing=True, lora=lora, epochs=2)
    straight, stopped, resumed = Recorder(), Recorder(stop_after=3), Recorder()
    sft.train(recipe, talks, tmp_path / "straight", straight, model=str(llama_dir))
    with pytest.raises(Interrupted):
        sft.train(recipe, talks, tmp_path / "stopped", stopped, model=str(llama_dir))
    sft.train(recipe, talks, tmp_path / "stopped", resumed, model=str(llama_dir), resume=True)
    assert stopped.steps_seen + resumed.steps_seen == straight.steps_seen
    one, two = (tmp_path / name / "checkpoint" / "model.safetensors" for name in ("straight", "stopped"))
    assert one.read_bytes() == two.read_bytes()


def test_accuracy_and_tokens_are_counted_over_the_whole_step(tmp_path: Path, talks: Path, llama_dir: Path) -> None:
    ours = nets.load_policy(str(llama_dir))
    examples = demonstrations.encode(ours.codec, list(read_demonstrations(talks)), 150, "all", Recorder())
    hits = targets = 0
    for example in examples:
        ids = torch.tensor([example.prompt + example.completion])
        likeliest = ours.model(input_ids=ids).logits[0].argmax(-1)[len(example.prompt) - 1 : -1].tolist()
        flags = example.trained or (True,) * len(example.completion)
        hits += sum(on and a == b for on, a, b in zip(flags, likeliest, example.completion, strict=True))
        targets += sum(flags)
    report = Recorder()
    _train(
        tmp_path / "o", talks, llama_dir, report, batch_size=20, micro_batch_tokens=200, learning_rate=1e-12, epochs=2
    )
    for number, step in enumerate(report.steps_seen, start=1):
        assert step["mean_token_accuracy"] == pytest.approx(hits / targets)
        assert step["num_tokens"] == number * sum(len(example) for example in examples)


def test_bf16_learns_and_keeps_trained_weights_in_fp32(tmp_path: Path, talks: Path, llama_dir: Path) -> None:
    report = Recorder()
    weights = _train(tmp_path / "o", talks, llama_dir, report, precision="bf16", epochs=4)
    assert report.steps_seen[-1]["loss"] < 0.8 * report.steps_seen[0]["loss"]
    assert all(tensor.dtype == torch.float32 for tensor in weights.values())


@pytest.mark.parametrize("conversational", [False, True])
def test_loss_and_gradients_are_trls(conversational: bool, tmp_path: Path) -> None:
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    trl = pytest.importorskip("trl")
    if not trl.__version__.startswith("1.16"):
        pytest.skip("the referee is TRL 1.16")
    from datasets import Dataset

    template = MARKED.replace("{{ '\n' }}", "")  # what follows the end token would count for TRL, and is cut by us
    directory = save_model(tmp_path / "model", template=template)
    talk = [{"messages": [*TALK[:3], {"role": "user", "content": "x" * (4 * i)}, TALK[4]]} for i in range(4)]
    single = [{"prompt": r["prompt"], "completion": r["chosen"]} for r in toy_pairs(4)]
    rows: list[dict[str, Any]] = talk if conversational else single
    ours = nets.load_policy(str(directory))
    trainer = trl.SFTTrainer(
        model=ours.model,
        args=trl.SFTConfig(
            output_dir=str(tmp_path / "trl"), per_device_train_batch_size=4, bf16=False, use_cpu=True, report_to=[],
            assistant_only_loss=conversational,
        ),
        processing_class=ours.codec.tokenizer,
        train_dataset=Dataset.from_list(rows),
    )  # fmt: skip
    theirs = trainer.compute_loss(trainer.model, next(iter(trainer.get_train_dataloader())))
    theirs.backward()
    expected = {name: p.grad.clone() for name, p in ours.model.named_parameters() if p.grad is not None}
    ours.model.zero_grad()

    data = list(read_demonstrations(write_jsonl(tmp_path / "d.jsonl", rows)))
    examples = demonstrations.encode(ours.codec, data, 160, "all", Recorder())
    loss = -ours.log_probs_and_hits(collate(examples))[0].sum() / sum(e.targets for e in examples)
    loss.backward()
    assert float(loss) == pytest.approx(float(theirs), abs=1e-5)
    for name, parameter in ours.model.named_parameters():
        assert torch.allclose(parameter.grad, expected[name], atol=1e-4), name
