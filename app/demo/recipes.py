"""Hyperparameters for the first policy, whichever it is."""

from typing import Any

# The defaults are for real language models; a million fresh parameters want learning rates a thousand times theirs.
DEMO_OVERRIDES: dict[str, dict[str, Any]] = {
    "reward": {"epochs": 4, "batch_size": 16, "learning_rate": 5e-4},
    "dpo": {"epochs": 4, "batch_size": 16, "learning_rate": 3e-4, "beta": 0.1, "label_smoothing": 0.1},
    "ppo": {"steps": 30, "batch_size": 64, "learning_rate": 3e-4, "value_learning_rate": 1e-3, "max_new_tokens": 64},
    "sample": {"max_new_tokens": 64},
    "evaluate": {"max_new_tokens": 64, "max_prompts": 128},
}


def overrides(model: str) -> dict[str, Any]:
    """What differs from the default round recipe: for the demo policy, or for a real `MODEL` on one small machine."""
    if not model:
        return DEMO_OVERRIDES
    lora = {"lora": {"r": 16, "alpha": 32}, "learning_rate": 1e-4}
    return {"reward": lora, "dpo": {**lora, "learning_rate": 5e-5}, "ppo": {**lora, "learning_rate": 3e-5}}
