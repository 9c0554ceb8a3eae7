"""From text to token ids, and from token ids to batches.

A prompt and its completion are tokenised *together, once*, and split where the tokens of the prompt alone stop agreeing
(the common prefix): byte-pair merges across the boundary then belong to the completion, as they do when a model
generates them. Which positions are completion is carried as lengths from here on. Nothing ever asks whether an id
equals the padding id, because the padding id is often the end-of-sequence id.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from workers.training.errors import DataError, ModelError
from workers.training.records import Message, Pair, Text


@dataclass(frozen=True)
class Example:
    """One prompt with one completion, as token ids. The completion ends with its end token unless it was cut."""

    prompt: list[int]
    completion: list[int]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.completion)


class Codec:
    """A tokenizer with its rules: chat template for messages, plain joining for strings, end tokens, no double BOS."""

    def __init__(self, tokenizer: Any, end_ids: Iterable[int] = ()) -> None:
        self.tokenizer = tokenizer
        self.end_ids = frozenset(i for i in (*end_ids, tokenizer.eos_token_id) if i is not None)
        if not self.end_ids:
            raise ModelError("The model's tokenizer has no end-of-sequence token: set eos_token in its configuration.")
        self.eos_id: int = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else min(self.end_ids)

    def encode_prompt(self, prompt: Text) -> list[int]:
        """Token ids of a prompt that is ready to be continued (the template's generation prompt included)."""
        text = prompt if isinstance(prompt, str) else self._render(prompt, ask=True)
        ids = self._ids(text, special=isinstance(prompt, str))
        return ids or [self._first_id()]

    def encode(self, prompt: Text, *completions: Text) -> list[Example]:
        """Examples of the same prompt, all split at the same token so that they are conditioned on the same ids.

        `prompt` and completions are strings, or messages; a string completion of messages is one assistant message.
        Each completion ends with the end token: the chat template's own, or the end-of-sequence token appended.
        """
        alone = self.encode_prompt(prompt)
        wholes = [self._whole(prompt, completion) for completion in completions]
        split = min(_common_prefix(alone, whole) for whole in wholes)
        if split == 0:  # a string prompt whose only token merges with the completion: condition on BOS instead
            return [Example([self._first_id()], whole) for whole in wholes]
        return [Example(whole[:split], whole[split:]) for whole in wholes]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of a completion, without special tokens."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def _whole(self, prompt: Text, completion: Text) -> list[int]:
        if isinstance(prompt, str):
            if not isinstance(completion, str):
                raise DataError("A string prompt needs string completions; give the prompt as messages as well.")
            ids = self._ids(prompt + completion, special=True)
        else:
            answer = [{"role": "assistant", "content": completion}] if isinstance(completion, str) else completion
            ids = self._ids(self._render([*prompt, *answer], ask=False), special=False)
        return self._ended(ids)

    def _ended(self, ids: list[int]) -> list[int]:
        """End exactly once: what a template puts after the last end token (a newline) is never generated, so cut it."""
        last = next((i for i in range(len(ids) - 1, -1, -1) if ids[i] in self.end_ids), None)
        if last is not None and not self.tokenizer.decode(ids[last + 1 :], skip_special_tokens=True).strip():
            return ids[: last + 1]
        return [*ids, self.eos_id]

    def _render(self, messages: list[Message], *, ask: bool) -> str:
        if not self.tokenizer.chat_template:
            raise ModelError(
                "The model has no chat template: add one to its tokenizer_config.json, or give plain-string prompts."
            )
        try:
            return str(self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=ask))
        except Exception as error:  # jinja raises whatever the template's author chose to raise
            raise DataError(f"The model's chat template refuses these messages: {error}") from error

    def _ids(self, text: str, *, special: bool) -> list[int]:
        """Ids with the tokenizer's own special tokens, unless the text (or its template) already starts with BOS."""
        bos = self.tokenizer.bos_token
        special = special and not (bos and text.startswith(bos))
        ids = list(self.tokenizer(text, add_special_tokens=special)["input_ids"])
        if special and len(ids) > 1 and ids[-1] in self.end_ids and not text.endswith(self.tokenizer.eos_token or "\0"):
            ids.pop()  # tokenizers that append EOS would put one between prompt and completion
        return ids

    def _first_id(self) -> int:
        bos = self.tokenizer.bos_token_id
        return int(bos) if bos is not None else self.eos_id


def truncate(examples: Sequence[Example], max_length: int) -> list[Example] | None:
    """Cut completions at `max_length` tokens in all; None when a prompt leaves no room for its completion."""
    if any(len(example.prompt) >= max_length for example in examples):
        return None
    return [Example(e.prompt, e.completion[: max_length - len(e.prompt)]) for e in examples]


@dataclass(frozen=True)
class TokenPair:
    """A preference pair as token ids; both examples share the prompt."""

    chosen: Example
    rejected: Example
    margin: float
    weight: float
    confidence: float

    def __len__(self) -> int:
        """Width of a row that can hold either: what padding costs."""
        return max(len(self.chosen), len(self.rejected))

    @property
    def tokens(self) -> int:
        return len(self.chosen) + len(self.rejected)


def encode_pairs(codec: Codec, pairs: Iterable[Pair], max_length: int) -> tuple[list[TokenPair], int]:
    """Pairs as tokens, and how many were left out because their prompt alone fills `max_length`."""
    kept: list[TokenPair] = []
    dropped = 0
    for pair in pairs:
        cut = truncate(codec.encode(pair.prompt, pair.chosen, pair.rejected), max_length)
        if cut is None:
            dropped += 1
        else:
            chosen, rejected = cut
            kept.append(TokenPair(chosen, rejected, pair.margin, pair.weight, pair.confidence))
    return kept, dropped


@dataclass(frozen=True)
class Batch:
    """Right-padded examples. Causal attention never looks right, so no attention mask is needed for exactness.

    ids, positions: (B, L) long. `mask`: (B, R) bool, true at the completion's tokens, R the longest completion.
    `rows`, `columns`: (N,) where in (B, L) the hidden state sits that predicts each of the N completion tokens, and
    `targets`: (N,) those tokens, in the order in which `mask` is read row by row. `last`: (B,) the last real token.
    """

    ids: Tensor
    positions: Tensor
    mask: Tensor
    rows: Tensor
    columns: Tensor
    targets: Tensor
    last: Tensor

    def spread(self, values: Tensor) -> Tensor:
        """(N,) values of completion tokens to (B, R), zero elsewhere; differentiable."""
        return values.new_zeros(self.mask.shape).masked_scatter(self.mask, values)


def collate(examples: Sequence[Example], device: torch.device | str = "cpu") -> Batch:
    """Pad examples into one batch; all indices are worked out on the host, so that no device sync is needed."""
    width = max(len(example) for example in examples)
    longest = max(1, max(len(example.completion) for example in examples))
    ids = torch.zeros(len(examples), width, dtype=torch.long)
    mask = torch.zeros(len(examples), longest, dtype=torch.bool)
    rows: list[int] = []
    columns: list[int] = []
    targets: list[int] = []
    for row, example in enumerate(examples):
        ids[row, : len(example)] = torch.tensor(example.prompt + example.completion)
        mask[row, : len(example.completion)] = True
        rows += [row] * len(example.completion)
        columns += range(len(example.prompt) - 1, len(example) - 1)
        targets += example.completion
    last = [len(example) - 1 for example in examples]
    positions = torch.arange(width).expand(len(examples), width)
    indices = (torch.tensor(values, dtype=torch.long) for values in (rows, columns, targets, last))
    return Batch(*(tensor.to(device) for tensor in (ids, positions, mask, *indices)))


def micro_batches(lengths: Sequence[int], tokens: int, enough: int | None = None) -> list[list[int]]:
    """Indices of the items in groups of similar length, each of at most `tokens` padded tokens (at least one item).

    A group that has `enough` tokens to keep the machine busy ends where the next item would be a quarter padding.
    Only for the parts of one optimiser step: their order does not matter, because the step normalises over all.
    """
    groups: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        longest, size = (lengths[groups[-1][0]], len(groups[-1])) if groups else (0, 0)
        busy = enough is not None and size * longest >= enough and lengths[index] < 0.75 * longest
        if size and (size + 1) * longest <= tokens and not busy:
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups


def _common_prefix(first: Sequence[int], second: Sequence[int]) -> int:
    for index, (one, other) in enumerate(zip(first, second, strict=False)):
        if one != other:
            return index
    return min(len(first), len(second))
