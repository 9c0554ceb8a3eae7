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
ROWS = [
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


def test_reward_loss_is_trls(trl: Any, tmp_path: Path) -> None:
    from datasets import Dataset

    directory = nets_in_memory.save_model(tmp_path / "model", template=TEMPLATE)
    scorer = new_reward_model(str(directory), seed=0)
    encoded = _encoded(scorer)
    recipe = RewardRecipe(centering=0.2)
    judged = Judgements(recipe, [comparison.judged for comparison in encoded])
    scores = scorer.completion_scores(comparisons.examples_of(encoded))
    ours = judged.losses(judged.labels(encoded), scores, recipe.centering).mean()

    tokenizer = scorer.codec.tokenizer
    tokenizer.pad_token = "<|system|>"  # HF's own head looks for padding ids, so give TRL one that is not the end token
    scorer.model.config.pad_token_id = tokenizer.pad_token_id
    trainer = trl.RewardTrainer(
        model=scorer.model,
        args=_arguments(trl.RewardConfig, tmp_path / "trl", center_rewards_coefficient=0.2, disable_dropout=True),
        processing_class=tokenizer,
        train_dataset=Dataset.from_list(ROWS),
    )
    theirs = trainer.compute_loss(trainer.model, next(iter(trainer.get_train_dataloader())))
    assert float(ours) == pytest.approx(float(theirs), abs=1e-5)


def _encoded(net: Net) -> list[comparisons.TokenComparison]:
    rows = [Comparison(row["prompt"], (row["chosen"], row["rejected"])) for row in ROWS]
    return comparisons.encode(net.codec, rows, 160, nets_in_memory.Recorder())
