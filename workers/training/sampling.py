"""Drawing completions: batched, left padding exact for learned positions too, log-probabilities kept.

Each completion has its own random stream, made from a seed and its place in the request. What is drawn therefore does
not depend on how the batch was put together, and a resumed run draws what the uninterrupted one would have drawn.

Completions of one prompt share its prefill: the cache is computed once and copied. Where half of the rows have ended,
the next prompts take their places, so that a batch stays wide however unequal the completions are.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from workers.training.choosing import Rule
from workers.training.nets import Policy

_DEAD = 8  # the cache is rid of ended rows when one in so many has ended: each time costs a copy of it


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
    top_k: int = 0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    stop: Sequence[str] = (),
    batch_size: int = 128,
    between: Callable[[int], None] | None = None,
) -> list[Completion]:
    """One completion per prompt, in order; `seeds` gives each its random stream. See `Rule` for the numbers.

    A completion ends with an end token of the model, or with the token that completes one of the `stop` strings.
    `between` is called with the number done whenever new prompts are taken up, so that a caller can report or stop.
    """
    rule = Rule(temperature, top_p, top_k, min_p, repetition_penalty)
    draw = _Draw(policy, rule, tuple(stop), max_new_tokens, prompts, seeds)
    # Similar lengths need little padding; equal prompts stand together.
    waiting = deque(sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), tuple(prompts[i]), i)))
    rows: _Rows | None = None
    while waiting or rows:
        if waiting and (rows is None or (rows.joinable and 2 * rows.alive <= batch_size)):
            if between and draw.done:
                between(len(draw.done))
            taken = [waiting.popleft() for _ in range(min(len(waiting), batch_size - (rows.alive if rows else 0)))]
            fresh = draw.start(taken)
            rows = rows.join(fresh) if rows and fresh else fresh or rows
        elif rows:
            rows = draw.step(rows)
    if between:
        between(len(draw.done))
    return [draw.done[index] for index in range(len(prompts))]


def clip_prompt(prompt: list[int], room: int) -> list[int]:
    """The end of a prompt that is longer than `room` tokens: the last question matters most."""
    return prompt[-room:] if len(prompt) > room else prompt


class _PerRow(NamedTuple):
    """One entry per row; T columns of cache, N tokens at most to draw, V words (0 of them without a penalty)."""

    place: Tensor  # (B,) in the request
    position: Tensor  # (B, 1) of the token that is read next
    length: Tensor  # (B,) tokens drawn
    live: Tensor  # (B,) whether it is still being written
    mask: Tensor  # (B, T) true where a column holds a token
    uniform: Tensor  # (B, N) its random stream
    tokens: Tensor  # (B, N)
    log_probs: Tensor  # (B, N)
    seen: Tensor  # (B, V) tokens of prompt and completion


@dataclass
class _Rows:
    """Sequences that are being written: their cache, and what else belongs to each."""

    cache: Any
    each: _PerRow
    alive: int

    @property
    def joinable(self) -> bool:
        """Whether all layers keep all keys and values, so that caches of different widths can be put together."""
        from transformers.cache_utils import DynamicLayer

        return all(type(layer) is DynamicLayer for layer in self.cache.layers)

    def select(self, rows: Tensor) -> "_Rows":
        """These rows alone, in this order."""
        self.cache.batch_select_indices(rows)
        return _Rows(self.cache, _PerRow(*(values[rows] for values in self.each)), self.alive)

    def join(self, other: "_Rows") -> "_Rows":
        """Both as one batch, flush right; columns that none of these rows uses any more are dropped."""
        rows = self.select(self.each.live.nonzero().squeeze(1))
        mine, theirs = rows.each, other.each
        used, wide = int(mine.mask.sum(1).max()), theirs.mask.shape[1]
        width = max(used, wide)

        def cached(one: Tensor, new: Tensor) -> Tensor:  # the mask already has the column of the token read next
            return torch.cat([_flush(one, used - 1, width - 1, -2), _flush(new, wide - 1, width - 1, -2)])

        for one, new in zip(rows.cache.layers, other.cache.layers, strict=True):
            one.keys, one.values = cached(one.keys, new.keys), cached(one.values, new.values)
        mine = mine._replace(mask=_flush(mine.mask, used, width, -1))
        theirs = theirs._replace(mask=_flush(theirs.mask, wide, width, -1))
        joined = _PerRow(*(torch.cat(pair) for pair in zip(mine, theirs, strict=True)))
        return _Rows(rows.cache, joined, rows.alive + other.alive)


def _flush(values: Tensor, columns: int, width: int, dim: int) -> Tensor:
    """The last `columns` of a dimension (counted from the end), after so many zeros that they are `width`."""
    kept = values.narrow(dim, values.shape[dim] - columns, columns)
    return F.pad(kept, (0, 0) * (-dim - 1) + (width - columns, 0))


class _Draw:
    """One call of `generate`: `done` fills up with completions by their place in the request."""

    def __init__(
        self,
        policy: Policy,
        rule: Rule,
        stop: tuple[str, ...],
        max_new_tokens: int,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[int],
    ) -> None:
        self.policy, self.rule, self.stop, self.most = policy, rule, stop, max_new_tokens
        self.prompts, self.seeds = prompts, seeds
        self.done: dict[int, Completion] = {}
        self.vocabulary = policy.project.vocabulary
        self.is_end = torch.zeros(self.vocabulary, dtype=torch.bool)
        self.is_end[[i for i in policy.codec.end_ids if i < self.vocabulary]] = True
        self.is_end = self.is_end.to(policy.device)

    def start(self, places: Sequence[int]) -> _Rows | None:
        """Read the prompts at these places, each different one once, and draw the first token of each completion."""
        from transformers import DynamicCache

        device = self.policy.device
        prompts = [tuple(self.prompts[place]) for place in places]
        different = list(dict.fromkeys(prompts))
        width = max(map(len, different))
        ids = torch.zeros(len(different), width, dtype=torch.long)
        mask = torch.zeros(len(different), width, dtype=torch.bool)
        for row, prompt in enumerate(different):
            ids[row, width - len(prompt) :] = torch.tensor(prompt)
            mask[row, width - len(prompt) :] = True
        ids, mask = ids.to(device), mask.to(device)
        cache = DynamicCache(config=self.policy.model.config)
        logits = self._read(ids, mask, (mask.cumsum(1) - 1).clamp(min=0), cache)
        penalised = self.rule.repetition_penalty != 1.0
        seen = torch.zeros(len(different), self.vocabulary if penalised else 0, dtype=torch.bool, device=device)
        if penalised:
            for row, prompt in enumerate(different):
                seen[row, list(prompt)] = True
        row_of = {prompt: row for row, prompt in enumerate(different)}
        copies = torch.tensor([row_of[prompt] for prompt in prompts], device=device)
        if len(different) < len(prompts):
            cache.batch_select_indices(copies)
        streams = [torch.rand(self.most, generator=torch.Generator().manual_seed(self.seeds[p])) for p in places]
        each = _PerRow(
            place=torch.tensor(places, device=device),
            position=mask.sum(1, keepdim=True)[copies] - 1,
            length=torch.zeros(len(places), dtype=torch.long, device=device),
            live=torch.ones(len(places), dtype=torch.bool, device=device),
            mask=mask[copies],
            uniform=torch.stack(streams).to(device),
            tokens=torch.zeros(len(places), self.most, dtype=torch.long, device=device),
            log_probs=torch.zeros(len(places), self.most, device=device),
            seen=seen[copies],
        )
        return self._write(_Rows(cache, each, len(places)), logits[copies])

    def step(self, rows: _Rows) -> _Rows | None:
        """Read what was drawn last and draw one token more; None when all rows have ended."""
        each = rows.each
        ids = each.tokens.gather(1, (each.length - 1)[:, None])
        logits = self._read(ids, each.mask, each.position, rows.cache)
        return self._write(rows, logits)

    def _read(self, ids: Tensor, mask: Tensor, positions: Tensor, cache: Any) -> Tensor:
        """Logits (B, V) after the last column of `ids`; their keys and values go into the cache."""
        policy = self.policy
        where = {"position_ids": positions} if policy.takes_positions else {}
        with policy.arithmetic():
            output = policy.model.base_model(
                input_ids=ids, attention_mask=mask.long(), past_key_values=cache, use_cache=True, **where
            )
            return policy.project(output[0][:, -1]).float()

    def _write(self, rows: _Rows, logits: Tensor) -> _Rows | None:
        """Draw one token for each row, settle the rows that end with it, and make room for its keys and values."""
        each = rows.each
        at = each.length.clamp(max=self.most - 1)[:, None]
        drawn, log_prob = self.rule.choose(logits, each.uniform.gather(1, at).squeeze(1), each.seen)
        each.tokens.scatter_(1, at, drawn[:, None])
        each.log_probs.scatter_(1, at, log_prob[:, None])
        if each.seen.shape[1]:
            each.seen.scatter_(1, drawn[:, None], True)
        each.length.add_(each.live)
        ended = self.is_end[drawn] | self._stopped(each) if self.stop else self.is_end[drawn]
        over = (ended | (each.length == self.most)) & each.live
        settled = over.nonzero().squeeze(1)
        if len(settled):
            self._settle(each, settled, ended)
            each.live.logical_and_(~over)
            rows.alive -= len(settled)
            if rows.alive == 0:
                return None
        column = torch.ones_like(each.live)[:, None]
        rows.each = each._replace(position=each.position + 1, mask=torch.cat([each.mask, column], dim=1))
        if (len(each.live) - rows.alive) * _DEAD >= len(each.live):
            return rows.select(each.live.nonzero().squeeze(1))
        return rows

    def _settle(self, each: _PerRow, settled: Tensor, ended: Tensor) -> None:
        """Note the completions of these rows."""
        columns = (each.place, each.tokens, each.log_probs, each.length, ended)
        told = zip(*(values[settled].tolist() for values in columns), strict=True)
        for place, tokens, log_probs, count, end in told:
            self.done[place] = Completion(tokens[:count], log_probs[:count], end)

    def _stopped(self, each: _PerRow) -> Tensor:
        """Which rows have just completed a stop string. A token holds at least a byte, hence so long a tail."""
        tail = 4 * max(map(len, self.stop)) + 1
        flags = []
        for tokens, count, live in zip(each.tokens.tolist(), each.length.tolist(), each.live.tolist(), strict=True):
            text = self.policy.codec.decode(tokens[max(0, count - tail) : count]) if live else ""
            flags.append(any(end in text for end in self.stop))
        return torch.tensor(flags, device=self.policy.device)
