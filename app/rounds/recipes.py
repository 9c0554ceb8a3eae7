"""A round's recipe: which method, the hyperparameters of each stage, the gates, and what starts the round.

The stages' own recipes come from the training library, so that form, API, command line and trainer agree by
construction. A campaign stores only what differs from the defaults.
"""

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from app.core.errors import Invalid
from workers.training.recipes import DPORecipe, EvaluateRecipe, PPORecipe, RewardRecipe, SampleRecipe

Metric = Literal["accuracy", "reward_win_rate", "kl", "length_ratio", "distinct_ratio", "eos_rate"]

WHY: dict[str, str] = {
    "accuracy": "A reward model that cannot tell which held-out answer people preferred cannot judge the policy.",
    "reward_win_rate": "The new policy should beat the current one on prompts that neither was trained on.",
    "kl": "A policy far from the one it started from has usually found a hole in the reward, not a better answer.",
    "length_ratio": "Longer answers win comparisons without being better; a jump in length is suspicious.",
    "distinct_ratio": "A policy that says the same to everything has collapsed.",
    "eos_rate": "Answers that never end were cut off by the length limit.",
}


class Gate(BaseModel):
    """A threshold that a candidate must keep to be promoted; where there is an interval, its better end must."""

    model_config = ConfigDict(extra="forbid")

    metric: Metric = Field(description="What is measured on held-out prompts.")
    at_least: float | None = Field(None, description="Lowest value that passes.")
    at_most: float | None = Field(None, description="Highest value that passes.")

    @model_validator(mode="after")
    def has_a_threshold(self) -> "Gate":
        if self.at_least is None and self.at_most is None:
            raise ValueError("a gate needs at_least or at_most")
        return self


DEFAULT_GATES = [
    Gate(metric="accuracy", at_least=0.55),
    Gate(metric="reward_win_rate", at_least=0.5),
    Gate(metric="kl", at_most=60),
    Gate(metric="length_ratio", at_least=0.25, at_most=2.5),
    Gate(metric="distinct_ratio", at_least=0.4),
]


class RoundRecipe(BaseModel):
    """Everything that a round needs to know before it starts."""

    model_config = ConfigDict(extra="forbid")

    method: Literal["dpo", "ppo"] = Field("dpo", description="How the policy learns from the labels.")
    batch_prompts: int = Field(100, ge=1, le=100_000, description="Prompts sampled for each batch of comparisons.")
    every_annotations: int | None = Field(
        None, ge=1, le=10_000_000, description="Start training after so many new answers; empty: only by hand."
    )
    every_hours: float | None = Field(
        None, gt=0, le=10_000, description="Start training this long after the last round began; empty: no schedule."
    )
    gates: list[Gate] = Field(default_factory=lambda: list(DEFAULT_GATES), description="What a candidate must pass.")
    reward: RewardRecipe = Field(default_factory=RewardRecipe)
    dpo: DPORecipe = Field(default_factory=DPORecipe)
    ppo: PPORecipe = Field(default_factory=PPORecipe)
    evaluate: EvaluateRecipe = Field(default_factory=EvaluateRecipe)
    sample: SampleRecipe = Field(default_factory=SampleRecipe)

    @model_validator(mode="after")
    def _checkpoints_stand_alone(self) -> Self:
        """A stored checkpoint must load long after the directory of its base model is gone."""
        for name in ("reward", "dpo", "ppo"):
            lora = getattr(self, name).lora
            if lora is not None and lora.save_adapter:
                raise ValueError(f"A round stores whole models: leave {name}.lora.save_adapter off")
        return self

    def stage(self, name: str) -> dict[str, Any]:
        """The recipe of one stage as JSON."""
        part: BaseModel = getattr(self, name)
        return part.model_dump(mode="json")


def merged(base: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    """`base` with `overrides` laid over it, key by key within nested objects. Pure."""
    result = dict(base)
    for key, value in overrides.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = merged(result[key], value) if both else value
    return result


def parse(stored: dict[str, Any], overrides: dict[str, Any] | None = None) -> RoundRecipe:
    """The recipe behind a campaign's stored settings and a request's overrides. Raises `Invalid` naming the key."""
    try:
        return RoundRecipe.model_validate(merged(stored, overrides or {}))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise Invalid(f"The recipe's {where}: {first['msg'].lower()}.", f"recipe.{where}") from None
