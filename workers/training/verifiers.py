"""Rewards that are checked, not learned: what a completion says against what its record knows (torch-free).

`verify(kind, answer, row)` gives a number, or None where nothing can be said: the record lacks the reference, or the
check itself could not be carried out in time. None is *not* 0: it is left out of baselines and advantages, because a
failure of ours must not teach the policy anything. A completion without an answer in it is wrong, hence 0.

Where a completion marks its final answer, only that is read: the last `<answer>…</answer>`, else what follows the last
`####` on its line (GSM8K), else the last `\\boxed{…}`; without a mark, all of it.
"""

import re
import signal
import threading
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from workers.training import sandbox

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Answer:
    """A completion: its text, its length in tokens (end token included), and whether it ended by itself."""

    text: str
    tokens: int = 0
    ended: bool = True


@dataclass(frozen=True)
class Settings:
    """What a check can be told. `field` names the record's reference column; None is the kind's usual one."""

    field: str | None = None
    pattern: str | None = None
    template: str = "<think>{}</think><answer>{}</answer>"
    max_tokens: int = 512
    buffer: int = 128
    seconds: float = 5.0
    memory_mb: int = 512


def verify(kind: str, answer: Answer, row: Row, settings: Settings | None = None) -> float | None:
    """The reward of one completion by the check `kind` (a key of `VERIFIERS`)."""
    return VERIFIERS[kind](answer, row, settings or Settings())


def exact_number(answer: Answer, row: Row, settings: Settings) -> float | None:
    """1 when the last number of the final answer equals the reference (`answer`) exactly, as a rational number.

    1,234 = $1234 = 1234.0; 1/2 = 0.5 = \\frac{1}{2}; a percent sign is a unit and is dropped.
    """
    wanted = number(row.get(settings.field or "answer"))
    return None if wanted is None else float(number(answer.text) == wanted)


def exact_match(answer: Answer, row: Row, settings: Settings) -> float | None:
    """1 when the final answer is the reference, or one of a list of them, but for case, spacing and end punctuation."""
    reference = row.get(settings.field or "answer")
    wanted = [reference] if isinstance(reference, str | int | float) else reference
    if not isinstance(wanted, list) or not wanted:
        return None
    return float(_plain(final_answer(answer.text)) in {_plain(final_answer(str(one))) for one in wanted})


def multiple_choice(answer: Answer, row: Row, settings: Settings) -> float | None:
    """1 when the letter chosen is the reference (`answer`): marked, or "answer is B", "(B)", or B at a line's end."""
    reference = row.get(settings.field or "answer")
    wanted = re.fullmatch(r"\W*([A-Za-z])\W*", reference) if isinstance(reference, str) else None
    return float(_choice(answer.text) == wanted[1].upper()) if wanted else None


def regex(answer: Answer, row: Row, settings: Settings) -> float | None:
    """1 when the pattern (the record's `pattern`, else the settings') is found; None when that takes too long."""
    pattern = row.get(settings.field or "pattern") or settings.pattern
    if not isinstance(pattern, str):
        return None
    try:
        with _at_most(settings.seconds):
            return float(re.search(pattern, answer.text, re.DOTALL | re.MULTILINE) is not None)
    except (re.error, TimeoutError):
        return None


def matches_format(answer: Answer, row: Row, settings: Settings) -> float | None:
    """1 when the whole text has the template's form: its marks once each and in order, something at every `{}`.

    The template is the record's `template`, else the settings' one.
    """
    template = row.get(settings.field or "template") or settings.template
    marks = [mark.strip() for mark in _BETWEEN_TAGS.sub("><", template).split("{}")]
    text = _BETWEEN_TAGS.sub("><", answer.text.strip())
    if len(marks) < 2 or not text.startswith(marks[0]) or not text.endswith(marks[-1]):
        return 0.0
    if any(text.count(mark) != marks.count(mark) for mark in marks if mark):
        return 0.0
    for mark, following in zip(marks, marks[1:], strict=False):
        text = text[len(mark) :]
        end = text.find(following) if following else len(text)
        if end < 0 or not text[:end].strip():
            return 0.0
        text = text[end:]
    return 1.0


def length(answer: Answer, row: Row, settings: Settings) -> float | None:
    """Soft overlong penalty (DAPO, Yu et al. 2025, eq. 13) on the tokens n of a completion, with L = `max_tokens`:

    0 up to L - buffer, falling in a line to -1 at L, and -1 beyond.
    """
    over = answer.tokens - (settings.max_tokens - settings.buffer)
    return -min(1.0, max(0, over) / settings.buffer) if settings.buffer else -float(over > 0)


def ended(answer: Answer, row: Row, settings: Settings) -> float | None:
    """1 when the model stopped by itself."""
    return float(answer.ended)


def code(answer: Answer, row: Row, settings: Settings) -> float | None:
    """1 when the last code block (without one: the whole text) passes every test in `tests`, a program or a list.

    Runs in the sandbox; None when the time was up.
    """
    tests = row.get(settings.field or "tests")
    tests = [tests] if isinstance(tests, str) else tests
    if not isinstance(tests, list) or not tests or not all(isinstance(test, str) for test in tests):
        return None
    passed = sandbox.passes(code_block(answer.text), tests, settings.seconds, settings.memory_mb)
    return None if passed is None else float(passed)


Verifier = Callable[[Answer, Row, Settings], float | None]
VERIFIERS: dict[str, Verifier] = {
    "exact_number": exact_number,
    "exact_match": exact_match,
    "multiple_choice": multiple_choice,
    "regex": regex,
    "format": matches_format,
    "length": length,
    "ended": ended,
    "code": code,
}
PASS_OR_FAIL = frozenset(VERIFIERS) - {"length"}
"""The kinds whose reward is 0 or 1, for which a pass rate means something."""


# --- final answers ----------------------------------------------------------------------------------------------------

_BLOCK = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL | re.IGNORECASE)
_SIGN = r"(?<![\w)\]}.])[-+]"
_DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?![\d])|\d+)(?:\.\d+)?(?:[eE][-+]?\d{1,2}(?!\d))?|\.\d+"
_NUMBER = re.compile(rf"((?:{_SIGN})?)((?<![\d.])(?:{_DIGITS}))(?:\s*/\s*({_DIGITS}))?")
_FRACTION = re.compile(r"\\[dt]?frac\s*\{\s*([\d.,]+)\s*\}\s*\{\s*([\d.,]+)\s*\}")
_BETWEEN_TAGS = re.compile(r">\s+<")
_LONGEST = 60  # characters of a number: more are no answer, and arithmetic on millions of digits is a trap
_SAID = re.compile(r"(?i:answer)\s*+(?:is|[:=])?+[\s:*_$(\\]*+(?:text\{)?([A-Z])\b(?!')")
_LAST_LETTER = re.compile(r"\(([A-Z])\)|(?:^|[\s*])([A-Z])(?=[).:*]*[ \t]*$)", re.MULTILINE)


def number(value: Any) -> Fraction | None:
    """The number that a value is, or that a text ends its final answer with."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    text = final_answer(value) if isinstance(value, str) else str(value)
    text = _FRACTION.sub(r"\1/\2", text.translate(_NORMAL))
    text = re.sub(r"([-+])\s*\\?[$€£]\s*", r"\1", text)
    found = None
    for match in _NUMBER.finditer(text):
        found = match
    return _rational(found) if found else None


def final_answer(text: str) -> str:
    """The part of a text that it marks as its answer; all of it without a mark."""
    if "</answer>" in text:
        text = text[: text.rindex("</answer>")].rpartition("<answer>")[2]
    if "####" in text:
        text = text.rpartition("####")[2].strip().partition("\n")[0]
    at = text.rfind("\\boxed{")
    return _braced(text[at + len("\\boxed{") :]) if at >= 0 else text


def code_block(text: str) -> str:
    """The last fenced block of Python, or the whole text."""
    blocks = _BLOCK.findall(text)
    return blocks[-1] if blocks else text


_NORMAL = str.maketrans({"\u2212": "-", "\u2013": "-", "\u00a0": " ", "\u202f": " "})  # minus, dash, narrow spaces


def _rational(match: re.Match[str]) -> Fraction | None:
    sign, above, below = match.groups()
    if len(match[0]) > _LONGEST:
        return None
    value, divisor = Fraction(above.replace(",", "")), Fraction(below.replace(",", "")) if below else Fraction(1)
    if divisor == 0:
        return None
    return (-value if sign == "-" else value) / divisor


def _braced(text: str) -> str:
    """Up to the brace that closes the one before `text`."""
    depth = 1
    for place, character in enumerate(text):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return text[:place]
    return text


def _plain(text: str) -> str:
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(folded.split()).strip(" .!?,;:\"'`*")


def _choice(text: str) -> str | None:
    marked = final_answer(text)
    alone = re.fullmatch(r"\W*(?:text\{)?([A-Za-z])\W*", marked)
    if alone:
        return alone[1].upper()
    said = _SAID.findall(marked)
    if said:
        return str(said[-1])
    letters = _LAST_LETTER.findall(marked)
    return (letters[-1][0] or letters[-1][1]) if letters else None


@contextmanager
def _at_most(seconds: float) -> Iterator[None]:
    """`TimeoutError` after so long; signals reach the main thread only, elsewhere there is no limit.

    A pattern with nested repeats can run for years; `re` looks for signals while it does.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
