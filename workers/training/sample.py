"""Draw completions for prompts: fresh candidates for people to compare.

Each row of the input comes out again with `completions`, a list of `{"text", "tokens", "logprob", "ended"}`: `tokens`
is their number (end token included), `logprob` the sum of their log-probabilities at the sampling temperature, `ended`
whether the model stopped by itself. With `distinct`, completions of a prompt whose texts are equal (or empty) are
drawn again up to five times: two equal answers teach nothing. With `log_probs`, also `token_ids` and the `log_probs` of
each. A server that does not tell log-probabilities leaves `logprob` out.

    python -m workers.training sample --data prompts.jsonl --model POLICY [--server URL] --out OUT

With `server`, POLICY is the name under which an OpenAI-compatible server (vLLM) has it, and nothing is loaded here.
"""

import json
import os
import random
from pathlib import Path
from typing import Any

from workers.training import nets
from workers.training.checkpoints import is_disk_full
from workers.training.choosing import Rule
from workers.training.errors import DiskFullError, Interrupted
from workers.training.recipes import SampleRecipe
from workers.training.records import Text, read_prompts
from workers.training.report import Reporter
from workers.training.samplers import Drawn, InProcess, Sampler, Server, Settings

_ATTEMPTS = 5
_NOTHING = Drawn("", 0, False)


def train(
    recipe: SampleRecipe, data: Path, out: Path, report: Reporter, *, model: str, server: str | None = None
) -> dict[str, float]:
    """Write `out/completions.jsonl`; returns counts and lengths."""
    rows = list(read_prompts(data))
    how = Settings(
        recipe.max_new_tokens,
        recipe.max_length,
        Rule(recipe.temperature, recipe.top_p, recipe.top_k, recipe.min_p, recipe.repetition_penalty),
        (recipe.stop,) if recipe.stop else (),
        recipe.batch_size,
    )
    sampler: Sampler = (
        Server(server, model, how) if server else InProcess(nets.load_policy(model, recipe.precision), how)
    )
    prompts = [row.prompt for row in rows]

    report.begin()
    drawn: list[list[Drawn]] = [[_NOTHING] * recipe.n for _ in rows]
    wanted = [(row, slot) for row in range(len(rows)) for slot in range(recipe.n)]
    for attempt in range(_ATTEMPTS if recipe.distinct and recipe.temperature > 0 else 1):
        _draw(recipe, sampler, prompts, wanted, attempt, drawn, report)
        wanted = [(row, slot) for row in range(len(rows)) for slot in range(recipe.n) if _repeats(drawn[row], slot)]
        if not wanted:
            break

    write_rows(
        out / "completions.jsonl",
        [
            {**row.row, "completions": [_as_json(d, recipe.log_probs) for d in of_row]}
            for row, of_row in zip(rows, drawn, strict=True)
        ],
    )
    flat = [completion for of_row in drawn for completion in of_row]
    report.steps = len(rows)
    return {
        "prompts": len(rows),
        "completions": len(flat),
        "mean_length": sum(c.length for c in flat) / max(1, len(flat)),
        "eos_rate": sum(c.ended for c in flat) / max(1, len(flat)),
        "repeated": len(wanted),
    }


def _draw(
    recipe: SampleRecipe,
    sampler: Sampler,
    prompts: list[Text],
    wanted: list[tuple[int, int]],
    attempt: int,
    drawn: list[list[Drawn]],
    report: Reporter,
) -> None:
    """Draw the `wanted` (row, slot) completions into `drawn`, reporting after each batch."""

    def between(done: int) -> None:
        if attempt == 0:
            report.step(done, len(wanted), {"completions": done})
        if report.stopping:
            raise Interrupted("Stopped while sampling; nothing was written.")

    found = sampler.draw(
        [prompts[row] for row, _ in wanted],
        [random.Random(f"{recipe.seed}/{attempt}/{row}/{slot}").getrandbits(63) for row, slot in wanted],
        between,
    )
    for (row, slot), completion in zip(wanted, found, strict=True):
        drawn[row][slot] = completion
    report.count(len(found), sum(d.length for d in found))


def _repeats(of_row: list[Drawn], slot: int) -> bool:
    """Whether this slot's text says nothing new: it is empty, or an earlier slot has it."""
    said = of_row[slot].text
    return not said or any(said == other.text for other in of_row[:slot])


def _as_json(drawn: Drawn, each: bool) -> dict[str, Any]:
    known: dict[str, Any] = {"logprob": round(sum(drawn.log_probs), 5)} if drawn.log_probs else {}
    if each:
        known |= {"token_ids": drawn.tokens, "log_probs": [round(value, 5) for value in drawn.log_probs]}
    return {"text": drawn.text, "tokens": drawn.length, **known, "ended": drawn.ended}


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
