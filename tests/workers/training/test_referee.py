"""TRL 1.16 as the referee: its own `compute_loss` on the same models and rows, from text to loss and gradient."""

import os
from pathlib import Path
from typing import Any

import pytest

from tests.workers.training import nets_in_memory
from workers.training import comparisons
from workers.training.judgements import Judgements
from workers.training.nets import Net, new_reward_model
from workers.training.recipes import RewardRecipe
from workers.training.records import Comparison

# TRL's own template of a conversation: what follows the end token would count for TRL, and is cut by us
TEMPLATE = nets_in_memory.TEMPLATE.replace("</s>\n", "</s>")
ROWS: list[dict[str, Any]] = [
    {
        "prompt": [{"role": "user", "content": "say " + "x" * i}],
        "chosen": [{"role": "assistant", "content": "a" * (3 + 2 * i)}],
        "rejected": [{"role": "assistant", "content": "bc" * (7 - i)}],
    }
    for i in range(4)
]


@pytest.fixture(scope="module")
def trl() -> Any:
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    module = pytest.importorskip("trl")
    if not module.__version__.startswith("1.16"):
        pytest.skip("the referee is TRL 1.16")
    return module


def _arguments(config: Any, directory: Path, **options: Any) -> Any:
    return config(
        output_dir=str(directory), per_device_train_batch_size=4, bf16=False, use_cpu=True, report_to=[], **options
    )


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("options", [{"centering": 0.0}, {"centering": 0.2}, {"centering": 0.2, "margin": True}])
def test_reward_loss_and_gradients_are_trls(trl: Any, tmp_path: Path, kind: str, options: dict[str, Any]) -> None:
    from datasets import Dataset

    directory = nets_in_memory.save_model(tmp_path / "model", kind, template=TEMPLATE)
    scorer = new_reward_model(str(directory), seed=0)
    rows = [row | ({"margin": 0.3 * i} if "margin" in options else {}) for i, row in enumerate(ROWS)]
    encoded = _encoded(scorer, rows)
    recipe = RewardRecipe(centering=options["centering"])
    judged = Judgements(recipe, [comparison.judged for comparison in encoded])
    scores = scorer.completion_scores(comparisons.examples_of(encoded))
    ours = judged.losses(judged.labels(encoded), scores, recipe.centering).mean()
    ours.backward()
    gradients = {name: p.grad.clone() for name, p in scorer.model.named_parameters() if p.grad is not None}
    scorer.model.zero_grad()

    tokenizer = scorer.codec.tokenizer
    tokenizer.pad_token = "<|system|>"  # HF's own head looks for padding ids, so give TRL one that is not the end token
    scorer.model.config.pad_token_id = tokenizer.pad_token_id
    trainer = trl.RewardTrainer(
        model=scorer.model,
        args=_arguments(
            trl.RewardConfig, tmp_path / "trl", center_rewards_coefficient=recipe.centering or None,
            disable_dropout=True, gradient_checkpointing=False,
        ),
        processing_class=tokenizer,
        train_dataset=Dataset.from_list(rows),
    )  # fmt: skip
    theirs = trainer.compute_loss(trainer.model, next(iter(trainer.get_train_dataloader())))
    theirs.backward()
    assert float(ours.detach()) == pytest.approx(float(theirs.detach()), abs=1e-5)
    assert len(gradients) > 10
    for name, parameter in scorer.model.named_parameters():
        if parameter.grad is not None:
            scale = parameter.grad.abs().max().clamp(min=1.0)
            assert float((gradients[name] - parameter.grad).abs().max() / scale) < 1e-5, name


def _encoded(net: Net, rows: list[dict[str, Any]]) -> list[comparisons.TokenComparison]:
    read = [Comparison(row["prompt"], (row["chosen"], row["rejected"]), margin=row.get("margin", 0.0)) for row in rows]
    return comparisons.encode(net.codec, read, 160, nets_in_memory.Recorder())
