"""How much memory training takes, before it is found out the hard way.

    weights       what the loaded parameters take
    training      12 bytes per trained parameter: gradient and AdamW's two moments in fp32
    activations   tokens · layers · width · 34 bytes in bf16, twice that in fp32 (Korthikanti et al. 2022, eq. 2 without
                  attention scores, which are not kept); with gradient checkpointing one hidden state per layer, and
                  the inside of one layer at a time
    head          the tile of logits that is alive at once, in three copies: logits, log-softmax, gradient

`tokens` is what one pass holds at most: `micro_batch_tokens`. It is an estimate: within a factor of two.
"""

import itertools
from dataclasses import dataclass
from typing import Any

from workers.training.losses import TILE

_PER_TOKEN = 34  # bytes per layer, token and unit of width, in two-byte numbers
_FAR = 1.2  # warn when the estimate exceeds what is free by this factor


@dataclass(frozen=True)
class Estimate:
    """Bytes."""

    weights: int
    training: int
    activations: int
    head: int

    @property
    def to_come(self) -> int:
        """What is taken on top of the weights, which are loaded first."""
        return self.training + self.activations + self.head

    def __str__(self) -> str:
        names = {
            "weights": self.weights,
            "gradients and AdamW": self.training,
            "activations": self.activations,
            "logits": self.head,
        }
        parts = ", ".join(f"{name} {_readable(value)}" for name, value in names.items())
        return f"about {_readable(self.weights + self.to_come)} ({parts})"


def estimate(
    model: Any, tokens: int, *, precision: str = "fp32", checkpointing: bool = False, head: bool = True
) -> Estimate:
    """What training `model`, a transformers model, takes with `tokens` tokens in a pass; `head` if logits are made."""
    config = model.config.get_text_config()
    parameters = list(model.parameters())
    wide = 2 if precision == "fp32" else 1
    layer = _PER_TOKEN * wide * tokens * config.hidden_size
    kept = 2 * wide * tokens * config.hidden_size * config.num_hidden_layers + layer
    return Estimate(
        weights=sum(p.numel() * p.element_size() for p in parameters),
        training=sum(12 * p.numel() for p in parameters if p.requires_grad),
        activations=kept if checkpointing else layer * config.num_hidden_layers,
        head=3 * 4 * min(tokens * config.vocab_size, TILE) if head else 0,
    )


def free() -> int:
    """Bytes that can still be had: on the accelerator, or on the host where there is none."""
    import psutil
    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.mem_get_info()[0]) + torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
    return int(psutil.virtual_memory().available)


def warning(needed: Estimate, available: int) -> str | None:
    """A sentence, where the estimate says that training will not fit by far."""
    if needed.to_come <= _FAR * available:
        return None
    return f"Memory may not suffice: training takes {needed}, and {_readable(available)} are free. {ADVICE}"


ADVICE = (
    "To make it fit, lower micro_batch_tokens, max_length or max_new_tokens, set gradient_checkpointing, "
    "lora, or precision=bf16."
)


def _readable(size: float) -> str:
    for unit, digits in zip(("MB", "GB", "TB"), itertools.chain([0], itertools.repeat(1)), strict=False):
        size /= 1024 if unit != "MB" else 1 << 20
        if size < 1000:
            return f"{size:.{digits}f} {unit}"
    return f"{size:.1f} TB"
