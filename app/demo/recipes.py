"""Hyperparameters for the first policy, whichever it is."""

from typing import Any

DEMO_OVERRIDES: dict[str, dict[str, Any]] = {}


def overrides(model: str) -> dict[str, Any]:
    """What differs from the default round recipe: for the demo policy, or for a real `MODEL` on one small machine."""
    if not model:
        return DEMO_OVERRIDES
    lora = {"lora": {"r": 16, "alpha": 32}, "learning_rate": 1e-4}
    return {"reward": lora, "dpo": {**lora, "learning_rate": 5e-5}, "ppo": {**lora, "learning_rate": 3e-5}}
