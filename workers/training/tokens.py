"""From text to token ids.

A prompt and its completion are tokenised *together, once*, and split where the tokens of the prompt alone stop agreeing
(the common prefix): byte-pair merges across the boundary then belong to the completion, as they do when a model
generates them. Which positions are completion is carried as lengths from here on. Nothing ever asks whether an id
equals the padding id, because the padding id is often the end-of-sequence id.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from workers.training.errors import DataError, ModelError
from workers.training.records import Message, Text

_GENERATION = re.compile(r"\{%-?\s*generation\b")


@dataclass(frozen=True)
class Example:
    """One prompt with one completion, as token ids. The completion ends with its end token unless it was cut.

    `trained` says which tokens of the completion count, where not all do.
    """

    prompt: list[int]
    completion: list[int]
    trained: tuple[bool, ...] | None = None

    def __len__(self) -> int:
        return len(self.prompt) + len(self.completion)

    @property
    def targets(self) -> int:
        """How many tokens are trained."""
        return len(self.completion) if self.trained is None else sum(self.trained)


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

    def encode_turns(self, prompt: list[Message], completion: list[Message]) -> Example:
        """An example that trains the assistant's turns in `completion`, the end token of each included.

        Where the template marks what the assistant says ({% generation %}), its marks count. Else a turn is what is
        rendered between the messages before it, generation prompt included, and the same messages with it.
        """
        (example,) = self.encode(prompt, completion)
        messages, ids = [*prompt, *completion], example.prompt + example.completion
        if _GENERATION.search(self.tokenizer.chat_template):
            spans = self._marked(messages)
        else:
            spans = self._rendered(messages, range(len(prompt), len(messages)), ids)
        trained = [False] * len(ids)
        for start, end in spans:
            if 0 < end < len(ids) and ids[end - 1] not in self.end_ids and ids[end] in self.end_ids:
                end += 1
            trained[start:end] = [True] * (min(end, len(ids)) - start)
        return Example(example.prompt, example.completion, tuple(trained[len(example.prompt) :]))

    def _marked(self, messages: list[Message]) -> list[tuple[int, int]]:
        """Where the template's own marks begin and end, in tokens."""
        encoded = self.tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
        marks = [0, *encoded["assistant_masks"], 0]
        edges = [i for i in range(len(marks) - 1) if marks[i] != marks[i + 1]]
        return list(zip(edges[::2], edges[1::2], strict=True))

    def _rendered(self, messages: list[Message], turns: Iterable[int], ids: list[int]) -> list[tuple[int, int]]:
        """Where each of the assistant's `turns` begins and ends in `ids`, by rendering the conversation up to it."""
        spans = []
        whole = self._render(messages, ask=False)
        for turn in turns:
            if messages[turn]["role"] != "assistant":
                continue
            texts = [self._render(messages[: turn + n], ask=False) for n in (0, 1)]
            if not all(whole.startswith(text) for text in texts):
                raise ModelError(
                    "The model's chat template is not prefix-preserving: it renders earlier turns differently once "
                    "later ones follow, so that training on all of them would show what is never seen in use. "
                    "Set train_on=last, or put {% generation %} around the assistant's turns in the template."
                )
            start = _common_prefix(self._ids(self._render(messages[:turn], ask=True), special=False), ids)
            end = _common_prefix(self._ids(texts[1], special=False), ids)
            ends = [i for i in range(start, end) if ids[i] in self.end_ids]
            if ends and not self.tokenizer.decode(ids[ends[-1] + 1 : end], skip_special_tokens=True).strip():
                end = ends[-1] + 1  # what the template puts after the end token is not the assistant's
            spans.append((start, end))
        return spans

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
    return [
        Example(e.prompt, e.completion[:room], e.trained[:room] if e.trained else None)
        for e, room in ((e, max_length - len(e.prompt)) for e in examples)
    ]


def _common_prefix(first: Sequence[int], second: Sequence[int]) -> int:
    for index, (one, other) in enumerate(zip(first, second, strict=False)):
        if one != other:
            return index
    return min(len(first), len(second))
