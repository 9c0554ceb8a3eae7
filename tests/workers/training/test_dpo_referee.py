"""TRL 1.16 as the referee of the DPO family and KTO: its own `compute_loss` on the same models and rows, from text to
loss and gradients. One trainer of each kind is made, and told which of its losses to compute."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.workers.training import nets_in_memory
from workers.training import comparisons, dpo, kto
from workers.training.nets import Policy, load_policy
from workers.training.recipes import DPORecipe, KTORecipe
from workers.training.records import Comparison, Labelled

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


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return nets_in_memory.save_model(tmp_path_factory.mktemp("referee") / "model", template=TEMPLATE)


@pytest.fixture(scope="module")
def moved(model_dir: Path) -> Policy:
    """A policy that has gone some way from its reference."""
    policy, generator = load_policy(str(model_dir)), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
    return policy


@pytest.fixture(scope="module")
def reference(model_dir: Path) -> Policy:
    return load_policy(str(model_dir))


def _arguments(config: Any, directory: Path, **options: Any) -> Any:
    return config(
        output_dir=str(directory), per_device_train_batch_size=4, bf16=False, use_cpu=True, report_to=[], **options
    )


def _take_gradients(policy: Policy, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    policy.model.zero_grad()
    loss.backward()
    found = {name: p.grad.clone() for name, p in policy.model.named_parameters() if p.grad is not None}
    policy.model.zero_grad()
    return found


def _agree(policy: Policy, ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert float(ours.detach()) == pytest.approx(float(theirs.detach()), rel=1e-5, abs=1e-5)
    mine, expected = _take_gradients(policy, ours), _take_gradients(policy, theirs)
    assert mine.keys() == expected.keys() and any(gradient.any() for gradient in mine.values())
    for name, gradient in mine.items():
        assert float((gradient - expected[name]).norm()) <= 1e-5 * max(1.0, float(expected[name].norm())), name


@pytest.fixture(scope="module")
def theirs(trl: Any, moved: Policy, reference: Policy, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """TRL's loss on the four rows (or on some of them) for the given settings of its trainer."""
    from datasets import Dataset

    trainer = trl.DPOTrainer(
        model=moved.model,
        ref_model=reference.model,
        args=_arguments(trl.DPOConfig, tmp_path_factory.mktemp("dpo"), beta=0.3),
        processing_class=moved.codec.tokenizer,
        train_dataset=Dataset.from_list(ROWS),
    )

    def loss(batch: int = 4, **settings: Any) -> torch.Tensor:
        for name, value in ({"beta": 0.3, "loss_weights": [1.0]} | settings).items():
            assert hasattr(trainer, name)
            setattr(trainer, name, value)
        rows = [trainer.train_dataset[i] for i in range(4)]
        parts = [trainer.data_collator(rows[i : i + batch]) for i in range(0, 4, batch)]
        return torch.stack([trainer.compute_loss(trainer.model, part) for part in parts]).mean()

    return loss


@pytest.fixture
def ours(moved: Policy, reference: Policy) -> Callable[..., torch.Tensor]:
    """Our loss on the four rows."""
    encoded = _encoded(moved)
    examples = comparisons.examples_of(encoded)
    with torch.no_grad():
        referred = reference.completion_log_probs(examples)

    def loss(**options: Any) -> torch.Tensor:
        recipe = DPORecipe(**({"beta": 0.3} | options))
        free = recipe.loss in dpo.REFERENCE_FREE
        log_probs = moved.completion_log_probs(examples)
        return dpo.judge(recipe, encoded, log_probs, referred * (not free)).losses.sum() / len(encoded)

    return loss


@pytest.mark.parametrize(
    ("options", "settings"),
    [
        ({"loss": "sigmoid"}, {"loss_types": ["sigmoid"]}),
        ({"loss": "sigmoid", "length_normalised": True}, {"loss_types": ["sigmoid_norm"]}),
        ({"loss": "robust", "label_smoothing": 0.2}, {"loss_types": ["robust"], "label_smoothing": 0.2}),
        ({"loss": "hinge", "beta": 0.03}, {"loss_types": ["hinge"], "beta": 0.03}),
        ({"loss": "ipo", "length_normalised": True}, {"loss_types": ["ipo"]}),
        ({"loss": "plackett_luce"}, {"loss_types": ["sigmoid"]}),
    ],
    ids=lambda o: "-".join(str(v) for v in o.values()),
)
def test_loss_and_gradients_are_trls(
    options: dict[str, Any], settings: dict[str, Any], ours: Any, theirs: Any, moved: Policy
) -> None:
    _agree(moved, ours(**options), theirs(**settings))


def test_conservative_dpo_is_trls_loss_and_that_of_the_turned_pairs(ours: Any, theirs: Any, moved: Policy) -> None:
    """TRL 1.16 ignores the label smoothing of its sigmoid loss; its robust loss is a known mixture of the two."""
    right = theirs(loss_types=["sigmoid"])
    robust = theirs(loss_types=["robust"], label_smoothing=0.2)
    turned = (0.8 * right - 0.6 * robust) / 0.2
    _agree(moved, ours(label_smoothing=0.1), 0.9 * right + 0.1 * turned)


def test_imitation_beside_dpo_is_trls_where_each_row_is_its_own_batch(ours: Any, theirs: Any, moved: Policy) -> None:
    """TRL's mean is over the tokens of a micro-batch, ours over those of each completion (Pang et al., eq. 1)."""
    expected = theirs(batch=1, loss_types=["sigmoid", "sft"], loss_weights=[1.0, 0.7])
    _agree(moved, ours(sft_coef=0.7), expected)


@pytest.mark.parametrize("name", ["orpo", "cpo"])
def test_reference_free_losses_are_trls(name: str, trl: Any, ours: Any, moved: Policy, tmp_path: Path) -> None:
    """TRL counts the prompt's tokens in ORPO's imitation and the paper does not, so that term is compared by hand."""
    from datasets import Dataset

    module = pytest.importorskip(f"trl.experimental.{name}")
    rows = [_rendered(moved, row) for row in ROWS]
    special: dict[str, Any] = {"loss_type": "simpo", "cpo_alpha": 0.0, "simpo_gamma": 0.4} if name == "cpo" else {}
    trainer = getattr(module, f"{name.upper()}Trainer")(
        model=moved.model,
        args=_arguments(getattr(module, f"{name.upper()}Config"), tmp_path, beta=0.3, disable_dropout=True, **special),
        processing_class=moved.codec.tokenizer,
        train_dataset=Dataset.from_list(rows),
    )
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(4)])
    if name == "cpo":
        _agree(moved, ours(loss="simpo", simpo_gamma=0.4), trainer.compute_loss(trainer.model, batch))
        return
    chosen, rejected, _, _, nll = trainer.concatenated_forward(trainer.model, batch)[:5]
    expected = trainer.compute_loss(trainer.model, batch) - nll
    imitation = -moved.completion_log_probs([c.examples[0] for c in _encoded(moved)])
    sizes = torch.tensor([len(c.examples[0].completion) for c in _encoded(moved)])
    _agree(moved, ours(loss="orpo") - (imitation / sizes).mean(), expected)
    assert float((imitation / sizes).mean().detach()) == pytest.approx(-float(chosen.mean().detach()), abs=1e-5)


def _rendered(policy: Policy, row: dict[str, Any]) -> dict[str, str]:
    """A row as the plain strings that TRL's experimental trainers take."""
    render = policy.codec.tokenizer.apply_chat_template
    prompt = render(row["prompt"], tokenize=False, add_generation_prompt=True)
    return {"prompt": prompt} | {
        side: render(row["prompt"] + row[side], tokenize=False)[len(prompt) :] for side in ("chosen", "rejected")
    }


def _encoded(policy: Policy) -> list[comparisons.TokenComparison]:
    rows = [Comparison(row["prompt"], (row["chosen"], row["rejected"])) for row in ROWS]
    return comparisons.encode(policy.codec, rows, 160, nets_in_memory.Recorder())


def test_kto_loss_gradients_and_reference_point_are_trls(
    trl: Any, moved: Policy, reference: Policy, tmp_path: Path
) -> None:
    from datasets import Dataset

    rows = [
        {"prompt": row["prompt"], "completion": row["chosen" if i % 2 else "rejected"], "label": i != 2}
        for i, row in enumerate(ROWS)
    ]
    trainer = trl.KTOTrainer(
        model=moved.model,
        ref_model=reference.model,
        args=_arguments(trl.KTOConfig, tmp_path, beta=0.05, desirable_weight=1.5, undesirable_weight=0.8),
        processing_class=moved.codec.tokenizer,
        train_dataset=Dataset.from_list(rows),
    )
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(4)])
    theirs = trainer.compute_loss(trainer.model, batch)

    recipe = KTORecipe(beta=0.05, desirable_weight=1.5, undesirable_weight=0.8)
    labelled = [Labelled(row["prompt"], row["completion"], row["label"]) for row in rows]
    data_set = kto._encode(moved.codec, labelled, 160, nets_in_memory.Recorder())
    crossed = kto.mismatched(data_set, range(4), 160)
    with torch.no_grad():
        matched, far = (reference.completion_log_probs(part) for part in (kto._examples(data_set), crossed))
    kl = kto._kl(moved, crossed, far, 200)
    ratios = moved.completion_log_probs(kto._examples(data_set)) - matched
    desirable = torch.tensor([item.desirable for item in data_set])
    seen = trainer._metrics["eval"]
    assert float(kl) == pytest.approx(seen["kl"][-1], rel=1e-5) and float(kl) > 0
    rewards = kto._statistics(0.05 * ratios.detach(), ratios.detach(), desirable.tolist())
    assert float(rewards["rewards/margins"]) == pytest.approx(seen["rewards/margins"][-1], rel=1e-4)
    _agree(moved, kto._losses(recipe, ratios, desirable, kl).mean(), theirs)
