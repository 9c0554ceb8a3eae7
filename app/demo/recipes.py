"""Hyperparameters for the first policy, whichever it is."""

from typing import Any

# The defaults are for real language models; a million fresh parameters want learning rates a thousand times theirs.
# DPO: small steps on all weights, few epochs, a firm beta, smoothed labels. Every round trains on the old labels again
# from a moved reference, so anything stronger has the taste after two rounds and forgets to spell in the third (whole
# sentences after three rounds: 0.90 to 0.97 with this, 0.40 to 0.86 with the stronger settings that were tried).
# The reward model is a linear head on what the policy knows, which so few labels can teach.
DEMO_OVERRIDES: dict[str, dict[str, Any]] = {
    "reward": {"head_only": True},
    "dpo": {"epochs": 5, "batch_size": 16, "learning_rate": 2e-4, "beta": 0.3, "label_smoothing": 0.1},
    "ppo": {
        "steps": 30,
        "batch_size": 64,
        "inner_epochs": 2,
        "learning_rate": 5e-4,
        "value_learning_rate": 1e-3,
        "beta": 0.1,
        "max_new_tokens": 48,
    },
    "sample": {"max_new_tokens": 64},
    "evaluate": {"max_new_tokens": 64, "max_prompts": 128},
}


def overrides(model: str) -> dict[str, Any]:
    """What differs from the default round recipe: for the demo policy, or for a real `MODEL` on one small machine."""
    if not model:
        return DEMO_OVERRIDES
    lora = {"lora": {"r": 16, "alpha": 32}, "learning_rate": 1e-4}
    return {"reward": lora, "dpo": {**lora, "learning_rate": 5e-5}, "ppo": {**lora, "learning_rate": 3e-5}}
