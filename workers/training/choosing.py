"""How a token is chosen from logits: penalty, temperature, truncation, and one uniform number (pure)."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rule:
    """A decoding rule. Temperature 0 is greedy, with log-probabilities at temperature 1.

    In this order: `repetition_penalty` divides the logits of tokens seen before (multiplies negative ones; Keskar et
    al. 2019), temperature, `min_p` drops what has less than this share of the likeliest token's probability (Nguyen et
    al. 2024), `top_k` keeps so many (0: all), `top_p` keeps the smallest set with this much of what is left.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    def choose(self, logits: Tensor, uniform: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        """Draw from (B, V) fp32 logits with one number in [0, 1) per row; tokens and their log-probabilities (B,).

        The log-probability is the model's at this temperature, penalty and truncation ignored: what a scoring pass
        over the same tokens finds. `seen` (B, V) marks what the penalty is for, and is not read without one.
        """
        log_probs = torch.log_softmax(logits / (self.temperature or 1.0), dim=-1)
        if self.repetition_penalty == 1.0:
            chances = log_probs
        else:
            penalised = torch.where(logits > 0, logits / self.repetition_penalty, logits * self.repetition_penalty)
            logits = torch.where(seen, penalised, logits)
            chances = torch.log_softmax(logits / (self.temperature or 1.0), dim=-1)
        drawn = logits.argmax(-1) if self.temperature == 0 else self._draw(chances.exp(), uniform)
        return drawn, log_probs.gather(-1, drawn[:, None]).squeeze(-1)

    def _draw(self, probs: Tensor, uniform: Tensor) -> Tensor:
        """Inverse-CDF draw from what truncation leaves of (B, V) probabilities."""
        if self.min_p > 0:
            probs = probs.where(probs >= self.min_p * probs.amax(-1, keepdim=True), 0.0)
        if 0 < self.top_k < probs.shape[-1]:
            probs = probs.where(probs >= probs.topk(self.top_k, dim=-1).values[:, -1:], 0.0)
        if self.top_p == 1.0:
            return _invert(probs, uniform)
        ordered, tokens = probs.sort(dim=-1, descending=True)
        before = ordered.cumsum(-1) - ordered
        kept = ordered.where(before < self.top_p * ordered.sum(-1, keepdim=True), 0.0)
        return tokens.gather(-1, _invert(kept, uniform)[:, None]).squeeze(-1)


def _invert(weights: Tensor, uniform: Tensor) -> Tensor:
    """Index whose share of the cumulated weights (B, V) holds the uniform number (B,).

    In fp64, because 150,000 small fp32 terms would lose the tail; an index of weight 0 cannot come out, because the
    search looks for the first cumulated weight strictly above a number strictly below the total.
    """
    cumulated = weights.double().cumsum(-1)
    wanted = uniform.double() * cumulated[:, -1]
    return torch.searchsorted(cumulated, wanted[:, None], right=True).squeeze(-1).clamp(max=weights.shape[-1] - 1)
