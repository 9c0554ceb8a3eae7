"""Best of n: draw n completions of each prompt, score them, keep the best: as demonstrations and as pairs.

`out/demonstrations.jsonl` has `{"prompt", "completion", "reward"}` with the best completion of each prompt (rejection
sampling, for `sft`), `out/pairs.jsonl` has `{"prompt", "chosen", "rejected", "margin"}` with best and worst, where they
differ (for `dpo` and `reward`). Completions that cannot be scored are as if they had not been drawn.

The policy that answers with the best of n is this far from the one that is sampled, whatever the reward, as long as no
two completions score the same (else it is nearer):

    KL(best of n ‖ policy) = log n - (n - 1) / n

and what it earns is estimated for every k ≤ n from the same draws, without bias, by the mean best of all subsets:

    E[best of k] = Σ_i  C(i - 1, k - 1) / C(n, k) · R_(i)        with R_(1) ≤ … ≤ R_(n)

Stiennon et al. 2020; Nakano et al. 2021; Chen et al. 2021 (the same estimator for pass@k).

    python -m workers.training best_of_n --data prompts.jsonl --model POLICY --rewards rewards.json --out OUT
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workers.training import baselines, nets, sampling
from workers.training.errors import DataError, Interrupted, TooFewError
from workers.training.recipes import BestOfNRecipe
from workers.training.records import Text, read_prompts
from workers.training.report import Reporter
from workers.training.rewards import Rewards, read_components
from workers.training.sample import write_rows
from workers.training.tokens import Example


@dataclass(frozen=True)
class Candidate:
    """A completion's text, its reward (None: unscorable), and whether it ended by itself."""

    text: str
    reward: float | None
    ended: bool = True


def train(
    recipe: BestOfNRecipe,
    data: Path,
    out: Path,
    report: Reporter,
    *,
    model: str,
    reward_model: str | None = None,
    rewards: Path | None = None,
) -> dict[str, float]:
    """Write `out/demonstrations.jsonl` and `out/pairs.jsonl`; returns the reward of every k, the KL, and counts."""
    components = read_components(rewards, reward_model)
    rows = list(read_prompts(data))
    if not rows:
        raise TooFewError("There is no prompt to answer.")
    policy = nets.load_policy(model, recipe.precision)
    judge = Rewards(components, policy, recipe.max_new_tokens, recipe.micro_batch_tokens)
    room = min(recipe.max_length, policy.context_length) - recipe.max_new_tokens
    if room < 1:
        raise DataError("max_new_tokens leaves no room for a prompt: lower it, or raise max_length.")
    prompts = [sampling.clip_prompt(policy.codec.encode_prompt(row.prompt), room) for row in rows]
    places = [(row, slot) for row in range(len(rows)) for slot in range(recipe.n)]

    def between(done: int) -> None:
        report.step(done, len(places), {"completions": done})
        if report.stopping:
            raise Interrupted("Stopped while sampling; nothing was written.")

    report.begin()
    drawn = sampling.generate(
        policy,
        [prompts[row] for row, _ in places],
        [random.Random(f"{recipe.seed}/{row}/{slot}").getrandbits(63) for row, slot in places],
        max_new_tokens=recipe.max_new_tokens,
        temperature=recipe.temperature,
        top_p=recipe.top_p,
        batch_size=recipe.batch_size,
        between=between,
    )
    examples = [Example(prompts[row], c.tokens) for (row, _), c in zip(places, drawn, strict=True)]
    report.count(len(examples), sum(len(e) for e in examples))
    scores = judge.score(examples, [rows[row].row for row, _ in places], [c.ended for c in drawn])
    scores = scores.view(len(rows), recipe.n, -1)
    totals = baselines.combine(scores, judge.weights).tolist()
    groups = [
        [
            Candidate(policy.codec.decode(completion.tokens), None if math.isnan(total) else total, completion.ended)
            for completion, total in zip(drawn[row * recipe.n : (row + 1) * recipe.n], totals[row], strict=True)
        ]
        for row in range(len(rows))
    ]
    demonstrations, pairs = chosen([row.prompt for row in rows], groups, recipe)
    write_rows(out / "demonstrations.jsonl", demonstrations)
    write_rows(out / "pairs.jsonl", pairs)
    report.steps = len(rows)
    scored = [[c.reward for c in group if c.reward is not None] for group in groups]
    return judge.metrics(scores) | {
        "prompts": len(rows),
        "demonstrations": len(demonstrations),
        "pairs": len(pairs),
        "frac_unscorable": 1 - sum(map(len, scored)) / len(places),
        "kl": kl(recipe.n),
        **{f"reward/best_of_{k}": value for k, value in reward_curve(scored, recipe.n).items()},
    }


def chosen(
    prompts: Sequence[Text], groups: Sequence[Sequence[Candidate]], recipe: BestOfNRecipe
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The rows of both files. Between equals the one drawn first is kept."""
    demonstrations: list[dict[str, Any]] = []
    pairs: list[dict[str, Any]] = []
    for prompt, group in zip(prompts, groups, strict=True):
        scored = [(candidate.reward, candidate) for candidate in group if candidate.reward is not None]
        allowed = [pair for pair in scored if pair[1].ended or not recipe.ended_only]
        if recipe.min_reward is not None:
            allowed = [pair for pair in allowed if pair[0] >= recipe.min_reward]
        if not allowed:
            continue
        reward, best = max(allowed, key=lambda pair: pair[0])
        least, worst = min(scored, key=lambda pair: pair[0])
        demonstrations.append({"prompt": prompt, "completion": _as_text(prompt, best), "reward": reward})
        if reward > least:
            pairs.append(
                {
                    "prompt": prompt,
                    "chosen": _as_text(prompt, best),
                    "rejected": _as_text(prompt, worst),
                    "margin": reward - least,
                }
            )
    return demonstrations, pairs


def kl(n: int) -> float:
    """log n - (n - 1) / n in nats: exact where no two completions score the same, else an upper bound."""
    return math.log(n) - (n - 1) / n


def reward_curve(scored: Sequence[Sequence[float]], n: int) -> dict[int, float]:
    """E[best of k] for k = 1, 2, 4, … and n: the mean over the prompts that have k scored completions."""
    found: dict[int, float] = {}
    for k in sorted({*(2**power for power in range(n.bit_length()) if 2**power <= n), n}):
        values = [expected_best(rewards, k) for rewards in scored if len(rewards) >= k]
        if values:
            found[k] = sum(values) / len(values)
    return found


def expected_best(rewards: Sequence[float], k: int) -> float:
    """Mean over all subsets of size k of their greatest reward: unbiased for the best of k independent draws."""
    subsets = math.comb(len(rewards), k)
    return sum(reward * math.comb(i, k - 1) / subsets for i, reward in enumerate(sorted(rewards)))


def _as_text(prompt: Text, candidate: Candidate) -> Text:
    """Of the prompt's kind: a string, or one assistant message."""
    return candidate.text if isinstance(prompt, str) else [{"role": "assistant", "content": candidate.text}]
