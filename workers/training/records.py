"""Reading JSONL training data, TRL column names (torch-free).

Every reader streams and stops at the first bad record with a `RecordError` that names file, line and field and says
how to mend it. Prompts and completions are strings, or lists of chat messages `{"role": …, "content": …}`.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from workers.training.errors import DataError, RecordError, TooFewError

Message = dict[str, str]
Text = str | list[Message]
ROLES = ("system", "developer", "user", "assistant", "tool")


@dataclass(frozen=True)
class Comparison:
    """Completions of one prompt, and how somebody ranked them.

    `ranking` holds groups of indices into `completions`, the best group first; who stands in none was not judged.
    Completions of one group are equally good, or, where `ties` is false, not ordered among themselves. `margin` is how
    much a better one should score above a worse one (reward units), `weight` how much the comparison counts, and
    `confidence` the probability that the ranking puts a pair in the right order.
    """

    prompt: Text
    completions: tuple[Text, ...]
    ranking: tuple[tuple[int, ...], ...] = ((0,), (1,))
    margin: float = 0.0
    weight: float = 1.0
    confidence: float = 1.0
    ties: bool = True
    annotator: str = ""
    source: str = ""


@dataclass(frozen=True)
class Demonstration:
    """A prompt with a completion to imitate, and where it stands: file and line."""

    prompt: Text
    completion: Text
    place: str = field(default="", compare=False)


@dataclass(frozen=True)
class Labelled:
    """A completion of a prompt that somebody called good or bad by itself."""

    prompt: Text
    completion: Text
    label: bool


@dataclass(frozen=True)
class PromptRow:
    """A prompt and the whole row it came in, so that ids and other columns pass through."""

    prompt: Text
    row: dict[str, Any]


def read_comparisons(path: Path) -> Iterator[Comparison]:
    """Preferences: `prompt` with `chosen` and `rejected`, or with `completions` and their `ranking`.

    A ranking is a list of places, best first; a place is an index into the completions or a list of tied ones. All
    rows may have `margin`, `weight`, `confidence`, `annotator` and `source`, rankings also `ties` (see `Comparison`).
    """
    for row in _rows(path):
        kwise = "completions" in row.values
        completions = row.texts("completions") if kwise else (row.text("chosen"), row.text("rejected"))
        yield Comparison(
            prompt=row.text("prompt"),
            completions=completions,
            ranking=row.ranking("ranking", len(completions)) if kwise else ((0,), (1,)),
            margin=row.number("margin", 0.0, low=0.0, high=math.inf),
            weight=row.number("weight", 1.0, low=0.0, high=math.inf),
            confidence=row.number("confidence", 1.0, low=0.0, high=1.0),
            ties=row.values.get("ties", True) is not False,
            annotator=str(row.values.get("annotator") or ""),
            source=str(row.values.get("source") or ""),
        )


def check_enough(comparisons: int, minimum: int) -> None:
    """Refuse to train on so few comparisons that the result would mean nothing."""
    if comparisons < minimum:
        plural = "preference is" if comparisons == 1 else "preferences are"
        raise TooFewError(f"{comparisons} {plural} too few to train on: at least {minimum} are needed.")


def read_demonstrations(path: Path) -> Iterator[Demonstration]:
    """Demonstrations: `prompt` and `completion`, or `messages`, a conversation whose assistant is to be imitated.

    The completion of a conversation starts with the assistant's first message that answers something.
    """
    for row in _rows(path):
        place = f"{path.name}, line {row.line}"
        if "messages" not in row.values:
            prompt, completion = row.text("prompt"), row.text("completion")
            if isinstance(completion, list) and all(message["role"] != "assistant" for message in completion):
                row.fail("completion", "has no message of the assistant; there is nothing to imitate.")
            yield Demonstration(prompt, completion, place)
            continue
        messages = row.text("messages")
        if isinstance(messages, str):
            row.fail("messages", "is a string; give a list of messages with 'role' and 'content'.")
        turn = next((i for i, m in enumerate(messages) if i > 0 and m["role"] == "assistant"), None)
        if turn is None:
            row.fail("messages", "has no message of the assistant that answers another; there is nothing to imitate.")
        yield Demonstration(messages[:turn], messages[turn:], place)


def read_labelled(path: Path) -> Iterator[Labelled]:
    """Unpaired feedback: `prompt`, `completion`, and `label`, true where the completion is good."""
    for row in _rows(path):
        yield Labelled(prompt=row.text("prompt"), completion=row.text("completion"), label=row.flag("label"))


def read_prompts(path: Path) -> Iterator[PromptRow]:
    """Rows with a `prompt` (or `question`, GSM8K's name for it); all columns are passed through untouched."""
    for row in _rows(path):
        field = "question" if "question" in row.values and "prompt" not in row.values else "prompt"
        yield PromptRow(prompt=row.text(field), row=row.values)


@dataclass(frozen=True)
class Probe:
    """A question, the same question from somebody who states a wrong view, and that view."""

    prompt: Text
    prompt_with_opinion: Text
    wrong: str


def read_probes(path: Path) -> Iterator[Probe]:
    """Probes of sycophancy: `prompt`, `prompt_with_opinion` and `wrong`, the words of the wrong view."""
    for row in _rows(path):
        wrong = row.values.get("wrong")
        if not isinstance(wrong, str) or not wrong.strip():
            row.fail("wrong", f"is a {_kind(wrong)}; give the words that an answer with the wrong view contains.")
        yield Probe(row.text("prompt"), row.text("prompt_with_opinion"), wrong)


@dataclass
class _Row:
    """One parsed line with its place, so that each complaint can say where it is."""

    file: str
    line: int
    values: dict[str, Any]

    def fail(self, field: str | None, problem: str) -> NoReturn:
        raise RecordError(self.file, self.line, field, problem)

    def text(self, field: str) -> Text:
        value = self.values.get(field)
        if value is None:
            have = ", ".join(sorted(self.values)) or "nothing"
            self.fail(field, f"is missing; the record has {have}. Give a string or a list of messages.")
        if isinstance(value, str):
            if not value.strip() and field == "prompt":
                self.fail(field, "is empty; give the text that the completions answer.")
            return value
        if not isinstance(value, list):
            self.fail(field, f"is a {_kind(value)}; give a string or a list of messages with 'role' and 'content'.")
        if not value:
            self.fail(field, "is an empty list; give at least one message.")
        for number, message in enumerate(value, start=1):
            self._check_message(field, number, message)
        return value

    def _check_message(self, field: str, number: int, message: Any) -> None:
        name = f"{field}[{number - 1}]"
        if not isinstance(message, dict):
            self.fail(name, f"is a {_kind(message)}; a message is an object with 'role' and 'content'.")
        if message.get("role") not in ROLES:
            self.fail(f"{name}.role", f"is {message.get('role')!r}; use one of {', '.join(ROLES)}.")
        if not isinstance(message.get("content"), str):
            self.fail(f"{name}.content", f"is a {_kind(message.get('content'))}; give a string.")

    def texts(self, field: str) -> tuple[Text, ...]:
        values = self.values.get(field)
        if not isinstance(values, list) or len(values) < 2:
            self.fail(field, f"is a {_kind(values)}; give a list of at least two completions.")
        rows = [_Row(self.file, self.line, {f"{field}[{n}]": value}) for n, value in enumerate(values)]
        return tuple(row.text(f"{field}[{n}]") for n, row in enumerate(rows))

    def ranking(self, field: str, completions: int) -> tuple[tuple[int, ...], ...]:
        value = self.values.get(field)
        if not isinstance(value, list) or not value:
            self.fail(field, f"is a {_kind(value)}; give a list of places, best first, such as [2, [0, 1]].")
        places = [place if isinstance(place, list) else [place] for place in value]
        named = [index for place in places for index in place]
        if any(isinstance(i, bool) or not isinstance(i, int) or not 0 <= i < completions for i in named):
            self.fail(field, f"names a completion that is not there; use the numbers 0 to {completions - 1}.")
        if len(set(named)) != len(named) or len(named) < 2:
            self.fail(field, "must name at least two completions, and each at most once.")
        return tuple(tuple(place) for place in places if place)

    def flag(self, field: str) -> bool:
        value = self.values.get(field)
        if not isinstance(value, bool):
            said = "is missing" if value is None else f"is a {_kind(value)}"
            self.fail(field, f"{said}; give true where the completion is good and false where it is bad.")
        return value

    def number(self, field: str, default: float, *, low: float, high: float) -> float:
        value = self.values.get(field)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            self.fail(field, f"is a {_kind(value)}; give a finite number.")
        if not low <= value <= high:
            bounds = f"at least {low:g}" if math.isinf(high) else f"between {low:g} and {high:g}"
            self.fail(field, f"is {value:g}; it must be {bounds}.")
        return float(value)


def _rows(path: Path) -> Iterator[_Row]:
    try:
        handle = path.open("rb")
    except FileNotFoundError:
        raise DataError(f"{path.name}: there is no such file.") from None
    except OSError as error:
        raise DataError(f"{path.name}: cannot be read ({error.strerror}).") from error
    with handle:
        for number, raw in enumerate(handle, start=1):
            if number == 1:
                raw = raw.removeprefix(b"\xef\xbb\xbf")
            if raw.strip():
                yield _Row(path.name, number, _parse(path.name, number, raw))


def _parse(file: str, number: int, raw: bytes) -> dict[str, Any]:
    try:
        value = json.loads(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise RecordError(file, number, None, f"is not UTF-8 (byte {error.start}); save the file as UTF-8.") from None
    except (json.JSONDecodeError, RecursionError) as error:
        detail = (
            f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else "nested too deep"
        )
        problem = f"is not valid JSON ({detail}); each line must be one complete JSON object."
        raise RecordError(file, number, None, problem) from None
    if not isinstance(value, dict):
        raise RecordError(file, number, None, f"is a {_kind(value)}; each line must be one JSON object.")
    return value


def _kind(value: Any) -> str:
    names = {dict: "object", list: "list", str: "string", bool: "boolean", int: "number", float: "number"}
    if isinstance(value, float) and not math.isfinite(value):
        return "non-finite number"
    return "null" if value is None else names.get(type(value), type(value).__name__)
