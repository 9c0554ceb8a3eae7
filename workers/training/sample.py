"""Draw completions for prompts: fresh candidates for people to compare.

Each row of the input comes out again with `completions`, a list of `{"text", "tokens", "logprob", "ended"}`: `tokens`
is their number (end token included), `logprob` the sum of their log-probabilities at the sampling temperature, `ended`
whether the model stopped by itself. With `distinct`, completions of a prompt whose texts are equal (or empty) are
drawn again up to five times: two equal answers teach nothing.

    python -m workers.training sample --data prompts.jsonl --model POLICY --out OUT
"""

import json
import os
import random
from pathlib import Path
from typing import Any

from workers.training import nets, sampling
from workers.training.checkpoints import is_disk_full
from workers.training.errors import DataError, DiskFullError, Interrupted
from workers.training.recipes import SampleRecipe
from workers.training.records import read_prompts
from workers.training.report import Reporter
from workers.training.sampling import Completion

_ATTEMPTS = 5


def train(recipe: SampleRecipe, data: Path, out: Path, report: Reporter, *, model: str) -> dict[str, float]:
    """Write `out/completions.jsonl`; returns counts and lengths."""
    rows = list(read_prompts(data))
    policy = nets.load_policy(model, recipe.precision)
    room = min(recipe.max_length, policy.context_length) - recipe.max_new_tokens
    if room < 1:
        raise DataError("max_new_tokens leaves no room for a prompt: lower it, or raise max_length.")
    prompts = [sampling.clip_prompt(policy.codec.encode_prompt(row.prompt), room) for row in rows]

    report.begin()
    drawn: list[list[Completion | None]] = [[None] * recipe.n for _ in rows]
    texts: list[list[str]] = [[""] * recipe.n for _ in rows]
    wanted = [(row, slot) for row in range(len(rows)) for slot in range(recipe.n)]
    for attempt in range(_ATTEMPTS if recipe.distinct and recipe.temperature > 0 else 1):
        _draw(recipe, policy, prompts, wanted, attempt, drawn, texts, report)
        wanted = [(row, slot) for row in range(len(rows)) for slot in range(recipe.n) if _repeats(texts[row], slot)]
        if not wanted:
            break

    completions = [[c for c in row if c is not None] for row in drawn]
    write_rows(
        out / "completions.jsonl",
        [
            {**row.row, "completions": [_as_json(c, t) for c, t in zip(of_row, of_texts, strict=True)]}
            for row, of_row, of_texts in zip(rows, completions, texts, strict=True)
        ],
    )
    flat = [completion for of_row in completions for completion in of_row]
    report.steps = len(rows)
    return {
        "prompts": len(rows),
        "completions": len(flat),
        "mean_length": sum(len(c.tokens) for c in flat) / max(1, len(flat)),
        "eos_rate": sum(c.ended for c in flat) / max(1, len(flat)),
        "repeated": len(wanted),
    }


def _draw(
    recipe: SampleRecipe,
    policy: nets.Policy,
    prompts: list[list[int]],
    wanted: list[tuple[int, int]],
    attempt: int,
    drawn: list[list[Completion | None]],
    texts: list[list[str]],
    report: Reporter,
) -> None:
    """Draw the `wanted` (row, slot) completions into `drawn` and `texts`, reporting after each batch."""

    def between(done: int) -> None:
        if attempt == 0:
            report.step(done, len(wanted), {"completions": done})
        if report.stopping:
            raise Interrupted("Stopped while sampling; nothing was written.")

    found = sampling.generate(
        policy,
        [prompts[row] for row, _ in wanted],
        [random.Random(f"{recipe.seed}/{attempt}/{row}/{slot}").getrandbits(63) for row, slot in wanted],
        max_new_tokens=recipe.max_new_tokens,
        temperature=recipe.temperature,
        top_p=recipe.top_p,
        batch_size=recipe.batch_size,
        between=between,
    )
    for (row, slot), completion in zip(wanted, found, strict=True):
        drawn[row][slot], texts[row][slot] = completion, policy.codec.decode(completion.tokens).strip()
    report.count(len(found), sum(len(c.tokens) for c in found))


def _repeats(texts: list[str], slot: int) -> bool:
    """Whether this slot's text says nothing new: it is empty, or an earlier slot has it."""
    return not texts[slot] or texts[slot] in texts[:slot]


def _as_json(completion: Completion, text: str) -> dict[str, Any]:
    return {
        "text": text,
        "tokens": len(completion.tokens),
        "logprob": round(sum(completion.log_probs), 5),
        "ended": completion.ended,
    }


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """All rows or none: write beside, fsync, rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".tmp-{path.name}")
    try:
        with fresh.open("w", encoding="utf-8") as handle:
            handle.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            handle.flush()
            os.fsync(handle.fileno())
        fresh.replace(path)
    except OSError as error:
        fresh.unlink(missing_ok=True)
        if is_disk_full(error):
            raise DiskFullError(f"The disk is full: {path.name} could not be written; free some space.") from error
        raise
