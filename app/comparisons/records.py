"""One line of an import: a comparison, with or without what people said of it. Pure.

Accepted shapes, told apart by their keys:

- `{prompt, completions: [{text, source?} or text, …], gold?, annotations?, meta?}`: this project's own. `gold` and an
  annotation's `ranking` are groups of completion numbers, best first: `[[1], [0]]`.
- `{prompt?, chosen, rejected, margin?}`: one label. Strings or message lists (TRL), or whole transcripts in the
  `Human: … Assistant: …` form (HH-RLHF), from which the prompt is what both have in common.
- `{messages, response_a, response_b, label, annotations?}`: pairs with named annotators, `label` being a, b or tie.
"""

import hashlib
import json
import re
from dataclasses import dataclass, field
from typing import Any

from app.campaigns import messages as chat
from app.core.errors import Invalid

MAX_COMPLETIONS = 9
MAX_META = 20_000

Groups = list[list[int]]
"""A weak order over completion numbers, best group first."""


@dataclass
class Label:
    """What one annotator said, in completion numbers."""

    annotator: str
    ranking: Groups
    strength: int | None = None
    comment: str = ""


@dataclass
class Record:
    prompt: chat.Messages
    completions: list[str]
    sources: list[str]
    gold: Groups | None = None
    labels: list[Label] = field(default_factory=list)
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """The same prompt with the same texts is the same comparison, in whatever order they are given."""
        content = [chat.fingerprint(self.prompt), *sorted(self.completions)]
        return hashlib.sha256(json.dumps(content, ensure_ascii=False).encode()).hexdigest()


def parse(value: Any) -> Record:
    """The record behind one JSON value. Raises `Invalid` naming the field to mend."""
    if not isinstance(value, dict):
        raise Invalid("each line must be a JSON object with a prompt and completions.")
    if "completions" in value:
        record = _own(value)
    elif "chosen" in value and "rejected" in value:
        record = _chosen_rejected(value)
    elif "response_a" in value and "response_b" in value:
        record = _a_b(value)
    else:
        raise Invalid("there are no completions: give completions, or chosen and rejected.", "completions")
    if not 2 <= len(record.completions) <= MAX_COMPLETIONS:
        raise Invalid(
            f"a comparison has 2 to {MAX_COMPLETIONS} completions, not {len(record.completions)}.", "completions"
        )
    if len(set(record.completions)) < len(record.completions):
        raise Invalid("two completions are the same text, so there is nothing to compare.", "completions")
    if len(json.dumps(record.meta)) > MAX_META:
        raise Invalid(f"meta is longer than {MAX_META:,} characters.", "meta")
    return record


def _own(value: dict[str, Any]) -> Record:
    given = value["completions"]
    if not isinstance(given, list):
        raise Invalid("completions must be a list.", "completions")
    texts, sources = [], []
    for i, item in enumerate(given):
        item = {"text": item} if isinstance(item, str) else item
        if not isinstance(item, dict):
            raise Invalid("each completion must be text, or an object with text.", f"completions[{i}]")
        texts.append(chat.text(item.get("text"), f"completions[{i}].text", "The completion"))
        sources.append(str(item.get("source", ""))[:200])
    meta = value.get("meta") or {}
    if not isinstance(meta, dict):
        raise Invalid("meta must be an object.", "meta")
    gold = value.get("gold")
    labels = value.get("annotations") or []
    if not isinstance(labels, list):
        raise Invalid("annotations must be a list.", "annotations")
    return Record(
        prompt=chat.parse(value.get("prompt")),
        completions=texts,
        sources=sources,
        gold=groups(gold, len(texts), "gold") if gold is not None else None,
        labels=[_own_label(label, len(texts), f"annotations[{i}]") for i, label in enumerate(labels)],
        meta=meta,
    )


def _own_label(value: Any, k: int, where: str) -> Label:
    if not isinstance(value, dict) or "ranking" not in value:
        raise Invalid("each annotation must be an object with a ranking.", where)
    strength = value.get("strength")
    if strength is not None and (not isinstance(strength, int) or isinstance(strength, bool)):
        raise Invalid("strength must be a whole number.", f"{where}.strength")
    return Label(
        annotator=str(value.get("annotator", "imported"))[:200],
        ranking=groups(value["ranking"], k, f"{where}.ranking"),
        strength=strength,
        comment=str(value.get("comment") or "")[:10_000],
    )


def groups(value: Any, k: int, where: str) -> Groups:
    """A weak order over 0…k-1, every number exactly once."""
    if not isinstance(value, list) or not value or not all(isinstance(g, list) and g for g in value):
        raise Invalid("a ranking is a list of non-empty groups, best first, such as [[1], [0]].", where)
    flat = [n for g in value for n in g]
    if any(isinstance(n, bool) or not isinstance(n, int) for n in flat) or sorted(flat) != list(range(k)):
        raise Invalid(f"the ranking must name each completion number from 0 to {k - 1} once.", where)
    return value


def _chosen_rejected(value: dict[str, Any]) -> Record:
    chosen, rejected, prompt = value["chosen"], value["rejected"], value.get("prompt")
    if isinstance(chosen, str) and isinstance(rejected, str) and prompt is None:
        prompt, chosen, rejected = _transcripts(chosen, rejected)
    elif isinstance(chosen, list) and isinstance(rejected, list):
        prompt, chosen, rejected = _message_lists(prompt, chosen, rejected)
    texts = [
        chat.text(chosen, "chosen", "The chosen completion"),
        chat.text(rejected, "rejected", "The rejected completion"),
    ]
    return Record(chat.parse(prompt), texts, ["", ""], labels=[Label("imported", [[0], [1]])])


def _message_lists(prompt: Any, chosen: list[Any], rejected: list[Any]) -> tuple[Any, Any, Any]:
    """TRL's conversational form: with an explicit prompt, or with the prompt as the lists' common beginning."""
    ends = [side[-1].get("content") if side and isinstance(side[-1], dict) else None for side in (chosen, rejected)]
    if prompt is None:
        if chosen[:-1] != rejected[:-1]:
            raise Invalid("chosen and rejected must have all messages but the last in common.", "chosen")
        prompt = chosen[:-1]
    return prompt, *ends


TURN = re.compile(r"\n\n(Human|Assistant): ?")


def _transcripts(chosen: str, rejected: str) -> tuple[chat.Messages, str, str]:
    sides = []
    for name, transcript in (("chosen", chosen), ("rejected", rejected)):
        parts = TURN.split("\n\n" + transcript.lstrip("\n"))
        turns = [
            {"role": "user" if who == "Human" else "assistant", "content": said.strip()}
            for who, said in zip(parts[1::2], parts[2::2], strict=True)
        ]
        if len(turns) < 2 or turns[-1]["role"] != "assistant":
            raise Invalid("without a prompt, it must be a transcript of Human: and Assistant: turns.", name)
        sides.append(turns)
    if sides[0][:-1] != sides[1][:-1]:
        raise Invalid("the two transcripts differ before their last turn, so they answer different prompts.", "chosen")
    return sides[0][:-1], sides[0][-1]["content"], sides[1][-1]["content"]


SIDES: dict[str, Groups] = {"a": [[0], [1]], "b": [[1], [0]], "tie": [[0, 1]]}


def _a_b(value: dict[str, Any]) -> Record:
    texts = [chat.text(value[f"response_{s}"], f"response_{s}", "The completion") for s in "ab"]
    given = value.get("annotations") or [{"annotator": "imported", "label": value.get("label")}]
    labels = []
    for i, one in enumerate(given):
        side = one.get("label") if isinstance(one, dict) else None
        if side is None:
            continue
        if side not in SIDES:
            raise Invalid("a label must be a, b or tie.", f"annotations[{i}].label")
        labels.append(Label(str(one.get("annotator", "imported"))[:200], SIDES[side], comment=one.get("reason") or ""))
    meta: dict[str, Any] = {k: value[k] for k in ("id", "source", "license") if k in value}
    sources = [str(value.get(f"model_{s}") or "") for s in "ab"]
    return Record(chat.parse(value.get("messages"), "messages"), texts, sources, labels=labels, meta=meta)
