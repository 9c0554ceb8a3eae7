"""Drawing completions: batched, left padding exact for learned positions too, log-probabilities kept.

Each completion has its own random stream, made from a seed and its place in the request. What is drawn therefore does
not depend on how the batch was put together, and a resumed run draws what the uninterrupted one would have drawn.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from workers.training.nets import Policy


@dataclass(frozen=True)
class Completion:
    """Token ids (the end token included when `ended`), and log π of each at the sampling temperature, top-p ignored."""

    tokens: list[int]
    log_probs: list[float]
    ended: bool


@torch.no_grad()
def generate(
    policy: Policy,
    prompts: Sequence[Sequence[int]],
    seeds: Sequence[int],
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    batch_size: int = 128,
    between: Callable[[int], None] | None = None,
) -> list[Completion]:
    """One completion per prompt, in order; `seeds` gives each its random stream.

    Temperature 0 is greedy, with log-probabilities at temperature 1. `between` is called with the number done after
    each batch, so that a caller can report or stop.
    """
    done: list[Completion | None] = [None] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), i))  # similar lengths: little padding
    for start in range(0, len(order), batch_size):
        group = order[start : start + batch_size]
        batch = _Draw(policy, max_new_tokens, temperature, top_p)
        for index, completion in zip(
            group, batch.run([prompts[i] for i in group], [seeds[i] for i in group]), strict=True
        ):
            done[index] = completion
        if between:
            between(start + len(group))
    return [completion for completion in done if completion is not None]


def clip_prompt(prompt: list[int], room: int) -> list[int]:
    """The end of a prompt that is longer than `room` tokens: the last question matters most."""
    return prompt[-room:] if len(prompt) > room else prompt


@dataclass
class _Draw:
    """One batch of generation."""

    policy: Policy
    max_new_tokens: int
    temperature: float
    top_p: float

    def run(self, prompts: Sequence[Sequence[int]], seeds: Sequence[int]) -> list[Completion]:
        from transformers import DynamicCache

        policy, rows, width = self.policy, len(prompts), max(len(p) for p in prompts)
        cache = DynamicCache(config=policy.model.config)
        ids, mask = self._left_padded(prompts, width)
        uniform = self._uniform(seeds)
        positions = (mask[:, :width].cumsum(1) - 1).clamp(min=0)
        ends = torch.tensor(sorted(policy.codec.end_ids), device=policy.device)
        tokens = torch.zeros(rows, self.max_new_tokens, dtype=torch.long, device=policy.device)
        log_probs = torch.zeros(rows, self.max_new_tokens, device=policy.device)
        lengths = torch.full((rows,), self.max_new_tokens, device=policy.device)
        ended = torch.zeros(rows, dtype=torch.bool, device=policy.device)
        alive = torch.arange(rows, device=policy.device)  # rows still being written; the others leave the cache
        for t in range(self.max_new_tokens):
            where = {"position_ids": positions} if policy.takes_positions else {}
            with policy.arithmetic():
                output = policy.model.base_model(
                    input_ids=ids, attention_mask=mask[:, : width + t], past_key_values=cache, use_cache=True, **where
                )
                logits = policy.project(output[0][:, -1]).float()
            drawn, log_prob = self._choose(logits, uniform[alive, t])
            tokens[alive, t], log_probs[alive, t] = drawn, log_prob
            stops = torch.isin(drawn, ends)
            lengths[alive[stops]], ended[alive[stops]] = t + 1, True
            keep = (~stops).nonzero().squeeze(1)
            if len(keep) == 0:
                break
            ids, positions = drawn[:, None], positions[:, -1:] + 1
            if len(keep) < len(alive):
                cache.batch_select_indices(keep)
                alive, mask, ids, positions = alive[keep], mask[keep], ids[keep], positions[keep]
        return [
            Completion(row[:length], logp[:length], end)
            for row, logp, length, end in zip(
                tokens.tolist(), log_probs.tolist(), lengths.tolist(), ended.tolist(), strict=True
            )
        ]

    def _left_padded(self, prompts: Sequence[Sequence[int]], width: int) -> tuple[Tensor, Tensor]:
        """Ids (B, width), and a mask with the columns of the tokens to come already true: (B, width + new)."""
        ids = torch.zeros(len(prompts), width, dtype=torch.long)
        mask = torch.ones(len(prompts), width + self.max_new_tokens, dtype=torch.long)
        for row, prompt in enumerate(prompts):
            ids[row, width - len(prompt) :] = torch.tensor(prompt)
            mask[row, : width - len(prompt)] = 0
        return ids.to(self.policy.device), mask.to(self.policy.device)

    def _uniform(self, seeds: Sequence[int]) -> Tensor:
        """(B, new) numbers in [0, 1), each row from its own generator on the host."""
        rows = [torch.rand(self.max_new_tokens, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        return torch.stack(rows).to(self.policy.device)

    def _choose(self, logits: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
        """Inverse-CDF draw from (B, V) logits with one uniform number per row; token ids and log-probabilities (B,)."""
        log_probs = torch.log_softmax(logits / (self.temperature or 1.0), dim=-1)
        if self.temperature == 0:
            drawn = logits.argmax(-1)
        elif self.top_p < 1.0:
            probs, tokens = log_probs.exp().sort(dim=-1, descending=True)
            before = probs.cumsum(-1) - probs
            drawn = tokens.gather(-1, _invert(probs * (before < self.top_p), uniform)[:, None]).squeeze(-1)
        else:
            drawn = _invert(log_probs.exp(), uniform)
        return drawn, log_probs.gather(-1, drawn[:, None]).squeeze(-1)


def _invert(weights: Tensor, uniform: Tensor) -> Tensor:
    """Index whose share of the cumulated weights (B, V) holds the uniform number (B,).

    In fp64, because 150,000 small fp32 terms would lose the tail; an index of weight 0 cannot come out, because the
    search looks for the first cumulated weight strictly above a number strictly below the total.
    """
    cumulated = weights.double().cumsum(-1)
    wanted = uniform.double() * cumulated[:, -1]
    return torch.searchsorted(cumulated, wanted[:, None], right=True).squeeze(-1).clamp(max=weights.shape[-1] - 1)
