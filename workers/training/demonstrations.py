"""Demonstrations as tokens, with what may go wrong between a conversation, a chat template and a mask."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from workers.training.errors import DataError
from workers.training.records import Demonstration
from workers.training.report import Reporter
from workers.training.tokens import Codec, Example, truncate


def encode(
    codec: Codec, rows: Sequence[Demonstration], max_length: int, train_on: Literal["all", "last"], report: Reporter
) -> list[Example]:
    """Demonstrations as tokens; those that have no trained token within `max_length` are left out, and reported."""
    kept: list[Example] = []
    unstopped = 0
    for row in rows:
        example = _encode(codec, row, train_on)
        if not example.targets:
            raise DataError(
                f"{row.place}: no token of this example is trained; put {{% generation %}} around all that the "
                "assistant says in the model's chat template, or take the marks out of it."
            )
        unstopped += not _stops(codec, example)
        cut = truncate([example], max_length)
        if cut is not None and cut[0].targets:
            kept.append(cut[0])
    if len(kept) < len(rows):
        report.log(
            f"{len(rows) - len(kept)} of {len(rows)} examples left out: what is to be imitated begins after the first "
            f"{max_length} tokens."
        )
    if unstopped:
        report.log(
            f"In {unstopped} of {len(rows)} examples a turn ends without a stop token that is trained, so the model "
            "will not learn to stop there. Let the chat template end its turns with the end-of-turn token, "
            "inside of {% generation %} where it has that, and name it in eos_token_id of generation_config.json."
        )
    return kept


def _encode(codec: Codec, row: Demonstration, train_on: Literal["all", "last"]) -> Example:
    prompt, completion = row.prompt, row.completion
    if isinstance(prompt, list) and isinstance(completion, list):
        if train_on == "last":
            last = max(i for i, message in enumerate(completion) if message["role"] == "assistant")
            prompt, completion = [*prompt, *completion[:last]], completion[last : last + 1]
        if len(completion) > 1:
            return codec.encode_turns(prompt, completion)
    return codec.encode(prompt, completion)[0]


def _stops(codec: Codec, example: Example) -> bool:
    """Whether each stretch of trained tokens ends with a token that ends a turn."""
    if example.trained is None:
        return example.completion[-1] in codec.end_ids
    ends = [i for i, (now, then) in enumerate(pairwise([*example.trained, False])) if now and not then]
    return all(example.completion[i] in codec.end_ids for i in ends)
