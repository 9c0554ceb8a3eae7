"""What the DPO family makes of pairs and rankings: labels, weights, cuts, the reference, and known optima."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from tests.workers.training.nets_in_memory import Recorder, example, policy, save_model, toy_pairs, write_jsonl
from workers.training import dpo, reference
from workers.training.comparisons import TokenComparison, examples_of
from workers.training.errors import DataError, Interrupted, ModelError
from workers.training.nets import Policy
from workers.training.recipes import DPORecipe, Lora
from workers.training.records import Comparison

PAIRWISE: list[dict[str, Any]] = [
    {"loss": "sigmoid"},
    {"loss": "sigmoid", "label_smoothing": 0.1, "sft_coef": 0.5},
    {"loss": "sigmoid", "length_normalised": True},
    {"loss": "robust", "label_smoothing": 0.2},
    {"loss": "ipo"},
    {"loss": "ipo", "length_normalised": True},
    {"loss": "hinge", "beta": 0.02},
    {"loss": "simpo", "beta": 2.0},
    {"loss": "orpo"},
]
ALL = [*PAIRWISE, {"loss": "plackett_luce"}, {"loss": "plackett_luce", "sft_coef": 0.5}]
each_loss = pytest.mark.parametrize("options", ALL, ids=lambda o: "-".join(map(str, o.values())))
SMALL: dict[str, Any] = {"batch_size": 8, "learning_rate": 1e-3, "micro_batch_tokens": 300, "max_length": 100}
TEXTS = ["short", "a longer answer", "x", "quite a bit longer than that", "aa", "medium one"]


def _pairs(**judgement: Any) -> list[TokenComparison]:
    """Three pairs of unequal lengths."""
    return [
        TokenComparison(
            (example(f"say {i}", TEXTS[2 * i]), example(f"say {i}", TEXTS[2 * i + 1])),
            Comparison("", ("", ""), weight=1.0 + i, **judgement),
        )
        for i in range(3)
    ]


def _judge(model: Policy, options: dict[str, Any], batch: Sequence[TokenComparison]) -> dpo.Judged:
    """With reference log-probabilities that a completion keeps wherever it stands."""
    log_probs = model.completion_log_probs(examples_of(batch))
    referred = torch.tensor([-3.0 * len(e.completion) + e.completion[0] % 5 for e in examples_of(batch)])
    return dpo.judge(DPORecipe(**options), batch, log_probs, referred * (options["loss"] not in dpo.REFERENCE_FREE))


def _total(model: Policy, options: dict[str, Any], batch: Sequence[TokenComparison]) -> float:
    return float(_judge(model, options, batch).losses.sum().detach())


def _same_gradients(model: Policy, *losses: torch.Tensor) -> bool:
    """Whether both losses pull every weight the same way, to single precision."""
    parameters = [p for _, p in model.trainable()]
    one, other = (torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)]) for loss in losses)
    return float((one - other).norm()) < 1e-5 * float(one.norm())


@each_loss
def test_turning_a_pair_round_with_its_label_changes_nothing(options: dict[str, Any]) -> None:
    model = policy()
    straight = _total(model, options, _pairs(confidence=0.8))
    turned = [
        TokenComparison(c.examples[::-1], Comparison("", ("", ""), weight=c.judged.weight, confidence=1 - 0.8))
        for c in _pairs()
    ]
    assert straight == pytest.approx(_total(model, options, turned), rel=1e-5)
    placed = [
        TokenComparison(
            c.examples[::-1], Comparison("", ("", ""), ((1,), (0,)), weight=c.judged.weight, confidence=0.8)
        )
        for c in _pairs()
    ]
    assert straight == pytest.approx(_total(model, options, placed), rel=1e-5)


@each_loss
def test_order_and_cut_of_a_batch_change_neither_loss_nor_gradient(options: dict[str, Any]) -> None:
    model, batch = policy(), _pairs(confidence=0.9)
    whole = _judge(model, options, batch).losses.sum()
    parts = torch.stack([_judge(model, options, [c]).losses.sum() for c in reversed(batch)]).sum()
    assert float(whole.detach()) == pytest.approx(float(parts.detach()), rel=1e-5)
    assert _same_gradients(model, whole, parts)


@each_loss
def test_weight_multiplies_the_loss_and_weight_nothing_has_no_effect(options: dict[str, Any]) -> None:
    model, batch = policy(), _pairs()
    silent = TokenComparison(batch[1].examples, Comparison("", ("", ""), weight=0.0))
    with_it, without = (_judge(model, options, [batch[0], *extra, batch[2]]).losses.sum() for extra in ([silent], []))
    assert float(with_it.detach()) == pytest.approx(float(without.detach()), rel=1e-5)
    assert _same_gradients(model, with_it, without)
    alone = _total(model, options, batch[2:])  # weight 3
    single = TokenComparison(batch[2].examples, Comparison("", ("", "")))
    assert alone == pytest.approx(3 * _total(model, options, [single]), rel=1e-5)


@pytest.mark.parametrize("options", PAIRWISE, ids=lambda o: "-".join(map(str, o.values())))
def test_a_ranking_is_its_pairs_each_with_an_even_share(options: dict[str, Any]) -> None:
    model = policy()
    answers = tuple(example("say", text) for text in TEXTS[:3])
    ranked = TokenComparison(answers, Comparison("", ("", "", ""), ((2,), (0,), (1,))))
    pairs = [
        TokenComparison((answers[a], answers[b]), Comparison("", ("", ""), weight=1 / 3))
        for a, b in ((2, 0), (2, 1), (0, 1))
    ]
    assert _total(model, options, [ranked]) == pytest.approx(_total(model, options, pairs), rel=1e-5)


def test_plackett_luce_of_pairs_is_dpo_and_of_four_the_product_of_its_choices() -> None:
    model, batch = policy(), _pairs(confidence=0.7)
    sigmoid, ranking = (_judge(model, {"loss": name}, batch).losses for name in ("sigmoid", "plackett_luce"))
    assert torch.allclose(sigmoid, ranking, atol=1e-6)
    answers = tuple(example("say", text) for text in TEXTS[:4])
    four = TokenComparison(answers, Comparison("", ("",) * 4, ((3,), (0,), (2,), (1,)), weight=2.0))
    recipe = DPORecipe(loss="plackett_luce", beta=0.5)
    log_probs = torch.tensor([-3.0, -4.0, -2.0, -1.0])
    r = 0.5 * (log_probs - torch.tensor([-2.0, -1.0, -1.0, -3.0]))
    expected = sum(torch.logsumexp(r[order], 0) - r[order[0]] for order in ([3, 0, 2, 1], [0, 2, 1], [2, 1]))
    judged = dpo.judge(recipe, [four], log_probs, torch.tensor([-2.0, -1.0, -1.0, -3.0]))
    assert float(judged.losses) == pytest.approx(2 * float(expected), rel=1e-6)


def test_means_are_over_the_trained_tokens_and_imitation_is_of_the_better_one() -> None:
    """Two answers of 2 and 4 trained tokens with log π = -2 and -8: means -1 and -2."""
    batch = [TokenComparison((example("p", "a"), example("p", "bbb")), Comparison("", ("", "")))]
    log_probs, referred = torch.tensor([-2.0, -8.0]), torch.tensor([-4.0, -4.0])
    log_sigmoid = torch.nn.functional.logsigmoid

    def loss(**options: Any) -> float:
        return float(dpo.judge(DPORecipe(**options), batch, log_probs, referred).losses.sum())

    assert loss(beta=0.5) == pytest.approx(-float(log_sigmoid(torch.tensor(0.5 * (2 + 4)))), rel=1e-6)
    assert loss(beta=0.5, length_normalised=True) == pytest.approx(
        -float(log_sigmoid(torch.tensor(0.5 * (1 + 1)))), rel=1e-6
    )
    assert loss(beta=0.5, sft_coef=3.0) - loss(beta=0.5) == pytest.approx(3.0, abs=1e-5)
    assert loss(loss="ipo", beta=0.1) == pytest.approx((6 - 5) ** 2, rel=1e-5)
    assert loss(loss="ipo", beta=0.1, length_normalised=True) == pytest.approx((2 - 5) ** 2, rel=1e-5)


def test_what_a_ranking_cannot_say_is_refused(tmp_path: Path) -> None:
    rows = [{"prompt": "p", "completions": ["a", "b", "c"], "ranking": [0, 1, 2], "confidence": 0.8}] * 10
    path = write_jsonl(tmp_path / "r.jsonl", rows)
    with pytest.raises(DataError, match=r"its confidence \(0.8\): use loss=sigmoid"):
        dpo.train(DPORecipe(loss="plackett_luce"), path, tmp_path / "o", Recorder(), model="none/such")
    with pytest.raises(ValidationError, match="label_smoothing has no meaning"):
        DPORecipe(loss="plackett_luce", label_smoothing=0.1)


@each_loss
def test_a_process_without_pairs_adds_nothing_and_takes_part(options: dict[str, Any]) -> None:
    none = torch.zeros(0, requires_grad=True)
    judged = dpo.judge(DPORecipe(**options), [], none, torch.zeros(0))
    judged.losses.sum().backward()
    assert float(judged.losses.sum().detach()) == 0 and judged.pairs.shape == (6, 0) and none.grad is not None


def test_eight_steps_of_accumulation_are_one_of_eight(
    tmp_path: Path, llama_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [row | {"prompt": [{"role": "user", "content": "say it again " + "x" * 16}]} for row in toy_pairs(8)]
    pairs = write_jsonl(tmp_path / "pairs.jsonl", rows)
    passes: list[int] = []
    score = Policy.completion_log_probs
    monkeypatch.setattr(
        Policy, "completion_log_probs", lambda self, part: (passes.append(len(part)), score(self, part))[1]
    )
    seen = []
    for budget in (64, 100_000):
        report = Recorder()
        recipe = DPORecipe(**(SMALL | {"micro_batch_tokens": budget}), loss="orpo", min_pairs=8)
        dpo.train(recipe, pairs, tmp_path / str(budget), report, model=str(llama_dir))
        seen.append([(s["loss"], s["grad_norm"], s["nll_loss"]) for s in report.steps_seen])
    assert passes == [2] * 8 + [16]
    assert torch.allclose(torch.tensor(seen[0]), torch.tensor(seen[1]), rtol=1e-4)


RESUMED: list[dict[str, Any]] = [
    {"loss": "ipo", "length_normalised": True},
    {"loss": "simpo", "beta": 2.0, "sft_coef": 0.1},
    {"loss": "plackett_luce", "lora": Lora(r=2)},
]


@pytest.mark.parametrize("options", RESUMED, ids=lambda o: o["loss"])
def test_a_resumed_run_of_each_kind_ends_with_the_bytes_of_the_uninterrupted_one(
    tmp_path: Path, llama_dir: Path, options: dict[str, Any]
) -> None:
    pairs = write_jsonl(tmp_path / "pairs.jsonl", toy_pairs(16))
    recipe = DPORecipe(**SMALL, **options, epochs=2, save_every=2)
    straight, stopped, resumed = Recorder(), Recorder(stop_after=3), Recorder()
    expected = dpo.train(recipe, pairs, tmp_path / "straight", straight, model=str(llama_dir), eval=pairs)
    assert expected["eval_accuracy"] > 0.5 and expected["eval_pairs"] == 16
    with pytest.raises(Interrupted):
        dpo.train(recipe, pairs, tmp_path / "stopped", stopped, model=str(llama_dir), eval=pairs)
    again = dpo.train(recipe, pairs, tmp_path / "stopped", resumed, model=str(llama_dir), eval=pairs, resume=True)
    assert again == expected
    assert stopped.steps_seen + resumed.steps_seen == straight.steps_seen
    one, other = (tmp_path / name / "checkpoint" / "model.safetensors" for name in ("straight", "stopped"))
    assert one.read_bytes() == other.read_bytes()


def _counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many completions each computation of the reference took."""
    counts: list[int] = []
    compute = reference.log_prob_sums

    def counting(model: Policy, examples: Any, tokens: int) -> list[float]:
        counts.append(len(examples))
        return compute(model, examples, tokens)

    monkeypatch.setattr(reference, "log_prob_sums", counting)
    return counts


def test_the_reference_is_computed_once_for_all_runs_on_the_same_tokens(
    tmp_path: Path, llama_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = _counted(monkeypatch)
    monkeypatch.setenv("TIEBREAK_CACHE", str(tmp_path / "cache"))
    pairs = write_jsonl(tmp_path / "pairs.jsonl", toy_pairs(12))

    def run(**options: Any) -> list[dict[str, float]]:
        report = Recorder()
        recipe = DPORecipe(**(SMALL | options))
        dpo.train(recipe, pairs, tmp_path / f"{len(counts)}", report, model=str(llama_dir))
        return report.steps_seen

    first = run()
    assert counts == [24]
    assert run() == first and run(beta=0.5) != first and run(loss="ipo") != first
    assert counts == [24]
    run(loss="simpo"), run(loss="orpo")
    assert counts == [24]
    run(max_length=11)  # other tokens
    assert counts == [24, 24]
    run(precision="bf16")
    assert counts == [24, 24, 24]


def test_a_damaged_cache_is_computed_again_and_one_that_cannot_be_written_is_done_without(
    tmp_path: Path, llama_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = _counted(monkeypatch)
    pairs = write_jsonl(tmp_path / "pairs.jsonl", toy_pairs(12))
    seen = []
    for _ in range(2):
        report = Recorder()
        dpo.train(DPORecipe(**SMALL), pairs, tmp_path / "o", report, model=str(llama_dir))
        seen.append(report.steps_seen)
        (kept,) = (tmp_path / "o" / "reference").iterdir()
        values = kept / "log_probs.safetensors"
        values.write_bytes(values.read_bytes()[:-1] + b"\x7f")
    assert counts == [24, 24] and seen[0] == seen[1]
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TIEBREAK_CACHE", str(tmp_path / "file"))
    report = Recorder()
    dpo.train(DPORecipe(**SMALL), pairs, tmp_path / "p", report, model=str(llama_dir))
    assert report.steps_seen == seen[0]
    assert "could not be kept" in report.stderr.getvalue()  # type: ignore[attr-defined]


def test_another_model_can_be_the_reference(tmp_path: Path, llama_dir: Path, gpt2_dir: Path) -> None:
    pairs = write_jsonl(tmp_path / "pairs.jsonl", toy_pairs(12))
    report, other = Recorder(), save_model(tmp_path / "other", seed=1)
    dpo.train(DPORecipe(**SMALL), pairs, tmp_path / "o", report, model=str(llama_dir), reference_model=str(other))
    assert abs(report.steps_seen[0]["rewards/margins"]) > 0.01
    itself = Recorder()
    dpo.train(DPORecipe(**SMALL), pairs, tmp_path / "i", itself, model=str(llama_dir), reference_model=str(llama_dir))
    assert itself.steps_seen[0]["rewards/margins"] == pytest.approx(0.0, abs=1e-5)
    foreign = save_model(tmp_path / "foreign")
    settings = foreign / "tokenizer.json"
    settings.write_text(settings.read_text().replace("<|system|>", "<|sistem|>"))
    with pytest.raises(ModelError, match="reference model have different tokenizers"):
        dpo.train(
            DPORecipe(**SMALL), pairs, tmp_path / "f", Recorder(), model=str(llama_dir), reference_model=str(foreign)
        )


@pytest.mark.parametrize("from_reference", [True, False])
def test_likelihood_displacement_is_said_once(from_reference: bool) -> None:
    """Over ten steps the mean of -.11·s is 5 below 0 from s = 50 on, and 5 below that of the first ten from 55 on."""
    report, steps = Recorder(), []
    alarm = dpo._Displacement(report, from_reference)
    for step in range(120):
        alarm.see(-0.11 * step, 0.01 * step)
        steps.append(report.stderr.getvalue().count("Likelihood displacement"))  # type: ignore[attr-defined]
    assert steps.index(1) == (50 if from_reference else 55) and steps[-1] == 1
    quiet = Recorder()
    alarm = dpo._Displacement(quiet, from_reference)
    for step in range(120):
        alarm.see(-0.2 * step, -0.01 * step)  # the margin falls too: that is no displacement, it is a bad run
    assert "displacement" not in quiet.stderr.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("loss", ["sigmoid", "plackett_luce"])
def test_at_the_optimum_on_population_preferences_the_implied_rewards_are_the_true_ones(loss: Any, seed: int) -> None:
    """Gaps of β log(π/π_ref) between the responses to a prompt are those of the rewards that made the labels."""
    model, generator = policy(seed=seed), torch.Generator().manual_seed(seed)
    recipe = DPORecipe(loss=loss, beta=0.5)
    answers = [[example(prompt, text) for text in ("a", "bc", "d", "efg")] for prompt in ("one", "two")]
    rewards = torch.randn(2, 4, generator=generator)
    batch, index = [], []
    for prompt in range(2):
        for order in (
            itertools.permutations(range(4)) if loss == "plackett_luce" else itertools.combinations(range(4), 2)
        ):
            r = rewards[prompt][list(order)]
            probability = float(torch.exp(sum(r[k] - r[k:].logsumexp(0) for k in range(len(r)))))  # type: ignore[arg-type]
            count = len(order)
            judged = Comparison(
                "", ("",) * count, tuple((i,) for i in range(count)),
                **({"weight": probability} if count > 2 else {"confidence": probability}),
            )  # fmt: skip
            batch.append(TokenComparison(tuple(answers[prompt][i] for i in order), judged))
            index += [4 * prompt + i for i in order]
    every = [e for row in answers for e in row]
    referred = model.completion_log_probs(every).detach()
    parameters = [p for _, p in model.trainable()]
    search = torch.optim.LBFGS(
        parameters, max_iter=150, tolerance_grad=1e-8, tolerance_change=1e-12, line_search_fn="strong_wolfe"
    )

    def closure() -> torch.Tensor:
        search.zero_grad()
        log_probs = model.completion_log_probs(every)
        loss = dpo.judge(recipe, batch, log_probs[index], referred[index]).losses.sum()
        loss.backward()
        return loss.detach()

    search.step(closure)
    implied = (recipe.beta * (model.completion_log_probs(every).detach() - referred)).reshape(2, 4)
    difference = implied - rewards
    assert float((difference - difference[:, :1]).abs().max()) < 1e-3
