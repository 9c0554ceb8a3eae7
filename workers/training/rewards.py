"""What a completion is worth: weighted named components, reward models and verifiers alike.

`rewards.json` is a list of components:

    [{"name": "correct", "kind": "exact_number"},
     {"name": "form", "kind": "format", "weight": 0.1},
     {"name": "taste", "kind": "model", "model": "runs/rm/checkpoint", "weight": 0.5}]

A verifier reads its reference from the columns of the prompt's record; a reward model's score is normalised. Keep the
weight of form and length low (a tenth of the whole): they are easier to satisfy than the task.
"""

import json
import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator
from torch import Tensor

from workers.training import nets
from workers.training.baselines import deviation
from workers.training.checkpoints import fingerprint
from workers.training.errors import DataError
from workers.training.nets import Policy, Scorer
from workers.training.tokens import Example
from workers.training.verifiers import PASS_OR_FAIL, Answer, Row, Settings, verify


class Component(BaseModel):
    """One entry of `rewards.json`."""

    model_config = ConfigDict(extra="forbid")

    kind: Literal[
        "model", "exact_number", "exact_match", "multiple_choice", "regex", "format", "length", "ended", "code"
    ] = Field(description="A reward model, or one of the verifiers.")
    name: str = Field("", description="What the metrics call it; the kind if empty.")
    weight: float = Field(1.0, allow_inf_nan=False, description="Factor of this component in the reward.")
    model: str | None = Field(None, description="Reward model directory (kind model).")
    field: str | None = Field(None, description="Column of the record that holds the reference; null: the usual one.")
    pattern: str | None = Field(None, description="Regular expression for records that bring none (kind regex).")
    template: str = Field(Settings.template, description="Form of the whole text, {} for any text (kind format).")
    max_tokens: int | None = Field(None, ge=1, description="Length of full penalty; null: max_new_tokens.")
    buffer: int = Field(Settings.buffer, ge=0, description="Tokens before it over which the penalty grows.")
    seconds: float = Field(Settings.seconds, gt=0, le=600, description="Time limit (kinds regex and code).")
    memory_mb: int = Field(Settings.memory_mb, ge=64, le=65536, description="Memory limit of a program (kind code).")

    @model_validator(mode="after")
    def _is_complete(self) -> "Component":
        if (self.kind == "model") != (self.model is not None):
            raise ValueError("kind 'model' needs 'model', and only it")
        try:
            re.compile(self.pattern or "")
        except re.error as error:
            raise ValueError(f"the pattern is not a regular expression ({error})") from error
        self.name = self.name or self.kind
        return self

    def settings(self, max_new_tokens: int) -> Settings:
        """What the verifier is told."""
        most = self.max_tokens or max_new_tokens
        return Settings(self.field, self.pattern, self.template, most, self.buffer, self.seconds, self.memory_mb)


def read_components(rewards: Path | None, reward_model: str | None) -> list[Component]:
    """The components of a `rewards.json` file and of a single reward model; `DataError` says what is wrong."""
    components = [Component(kind="model", name="reward_model", model=reward_model)] if reward_model else []
    if rewards is not None:
        try:
            components += TypeAdapter(list[Component]).validate_python(json.loads(rewards.read_text()))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "the list"
            raise DataError(f"{rewards.name}, {where}: {first['msg']}.") from error
        except (OSError, ValueError) as error:
            raise DataError(f"{rewards.name} is not a readable JSON list of reward components ({error}).") from error
    names = [component.name for component in components]
    if not names:
        raise DataError("There is nothing to reward: give --rewards rewards.json or --reward-model DIR.")
    if len(set(names)) < len(names):
        raise DataError("Two reward components have the same name: give each its own.")
    return components


def identity(components: Sequence[Component]) -> list[object]:
    """What identifies the components for resuming: their settings and the content of their models."""
    return [[c.model_dump(exclude={"model"}), fingerprint(c.model)] for c in components]


class Rewards:
    """Scores completions by all components."""

    def __init__(self, components: Sequence[Component], policy: Policy, max_new_tokens: int, tokens: int) -> None:
        """Load the reward models; `tokens` is the budget of one of their passes."""
        self.components, self.policy, self.tokens = list(components), policy, tokens
        self.names = [component.name for component in components]
        self.weights = torch.tensor([component.weight for component in components], dtype=torch.float64)
        self.settings = [component.settings(max_new_tokens) for component in components]
        self.scorers = [self._load(c.model) if c.model else None for c in components]

    def _load(self, directory: str) -> Scorer:
        scorer = nets.load_reward_model(directory, self.policy.precision)
        nets.same_tokens(self.policy, scorer)
        scorer.freeze()
        return scorer

    def score(self, examples: Sequence[Example], rows: Sequence[Row], ended: Sequence[bool]) -> Tensor:
        """(B, C) fp64 scores on the host, before weighting; NaN where a component has nothing to say."""
        decode = self.policy.codec.decode
        answers = [Answer(decode(e.completion), len(e.completion), end) for e, end in zip(examples, ended, strict=True)]
        columns: list[list[float | None]] = []
        for component, settings, scorer in zip(self.components, self.settings, self.scorers, strict=True):
            if scorer is not None:
                columns.append([*scorer.rate(examples, self.tokens)])
            else:
                columns.append(_verify_all(component.kind, answers, rows, settings))
        values = [[torch.nan if value is None else value for value in column] for column in columns]
        return torch.tensor(values, dtype=torch.float64).T

    def metrics(self, scores: Tensor) -> dict[str, float]:
        """Mean and spread of each component over (P, G, C) scores, and of verifiers how many passed and failed to run.

        `pass_at_k` is the share of prompts of which at least one of the G completions passes, `error_rate` the share
        of completions that could not be scored.
        """
        found: dict[str, float] = {}
        for place, component in enumerate(self.components):
            column, name = scores[:, :, place], f"rewards/{component.name}"
            flat = column[~column.isnan()]
            if len(flat):
                found |= {f"{name}/mean": float(flat.mean()), f"{name}/std": float(deviation(flat, 0))}
            if component.kind in PASS_OR_FAIL:
                passed, known = column == 1.0, ~column.isnan()
                found[f"{name}/pass_rate"] = int(passed.sum()) / max(1, int(known.sum()))
                found[f"{name}/pass_at_k"] = int(passed.any(1).sum()) / max(1, int(known.any(1).sum()))
            if component.kind != "model":
                found[f"{name}/error_rate"] = float(column.isnan().double().mean())
        return found


def _verify_all(kind: str, answers: Sequence[Answer], rows: Sequence[Row], settings: Settings) -> list[float | None]:
    """In order; programs run side by side, one for each core."""
    if kind != "code":
        return [verify(kind, answer, row, settings) for answer, row in zip(answers, rows, strict=True)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(lambda answer, row: verify(kind, answer, row, settings), answers, rows))
