"""The pairwise decision as one form field: what can be chosen, under which key, and what each choice says. Pure.

A choice names the preferred completion by its id, never by its side, so a form that is sent twice, late or from another
device says the same about the same text.
"""

from dataclasses import dataclass

from app.annotation.ranking import Ranking
from app.annotation.scales import Scale
from app.annotation.submission import Answer
from app.core.errors import Invalid

CANNOT_JUDGE = "cannot_judge"
LETTERS = "ABCDEFGHI"
"""What an annotator calls the completions, in the shown order."""


@dataclass(frozen=True)
class Choice:
    """One thing to choose. `mark` draws it where there is no room for words."""

    value: str
    key: str
    words: str
    sentence: str
    side: str = ""
    """"A", "B", or nothing where neither is preferred."""
    mark: str = ""


def steps(shown: list[str], scale: Scale) -> list[Choice]:
    """The scale from "the left one is much better" to "the right one is"; keys count from 1.

    More than two have no left and right: one of them is the best.
    """
    if len(shown) != 2:
        return _best_of(shown, scale)
    strengths = range(1, scale.strengths + 1)
    left = [_preference(shown[0], "A", "‹", s, scale) for s in reversed(strengths)]
    middle = [("tie", "tie", "Neither is better", "", "=")] if scale.has_tie else []
    right = [_preference(shown[1], "B", "›", s, scale) for s in strengths]
    return [
        Choice(value, str(number), words, sentence, side, mark)
        for number, (value, words, sentence, side, mark) in enumerate([*left, *middle, *right], start=1)
    ]


def _best_of(shown: list[str], scale: Scale) -> list[Choice]:
    best = [(f"{i}.0", f"{a} best", f"{a} is the best", a, a) for i, a in zip(shown, LETTERS, strict=False)]
    tie = [("tie", "tie", "None is better", "", "=")] if scale.has_tie else []
    return [Choice(value, str(n), *rest) for n, (value, *rest) in enumerate([*best, *tie], start=1)]


def _preference(completion: str, side: str, mark: str, strength: int, scale: Scale) -> tuple[str, str, str, str, str]:
    words = scale.word(strength)
    return f"{completion}.{strength}", words, f"{side} is {words}", side, mark * strength


def others(scale: Scale, of: int = 2) -> list[Choice]:
    """What can be said of both, or of all, at once. On the keyboard's top row, to the right of the scale's own keys."""
    good, bad, unable = "890" if scale.steps < 8 else "90-"
    every = "both" if of == 2 else "all"
    return [
        Choice("both_good", good, f"{every} good", f"{every.capitalize()} are good"),
        Choice("both_bad", bad, f"{every} bad", f"{every.capitalize()} are bad"),
        Choice(CANNOT_JUDGE, unable, "cannot judge", "I cannot judge this"),
    ]


def answer(value: str, shown: list[str], comment: str = "", elapsed_ms: int | None = None) -> Answer:
    """The answer that a choice stands for. Raises `Invalid` for nothing, and for what is not a choice here."""
    comment = comment.replace("\r\n", "\n").strip()
    if not value:
        raise Invalid("Choose one of the answers first.", "choice")
    if value in ("tie", "both_good", "both_bad"):
        flags = [] if value == "tie" else [value]
        return Answer([list(shown)], flags=flags, comment=comment, elapsed_ms=elapsed_ms)
    preferred, _, strength = value.partition(".")
    if preferred not in shown or not (strength.isascii() and strength.isdigit() and len(strength) < 3):
        raise Invalid(
            "This answer does not belong to the comparison on screen. Reload the page and choose again.", "choice"
        )
    ranking = [[preferred], [other for other in shown if other != preferred]]
    return Answer(ranking, strength=int(strength) or None, comment=comment, elapsed_ms=elapsed_ms)


def value_of(ranking: list[list[str]], strength: int | None, flags: list[str]) -> str:
    """The choice that was made, from what is stored of it: the way back from `answer`."""
    if Ranking(tuple(frozenset(group) for group in ranking)).is_tie:
        return flags[0] if flags else "tie"
    return f"{ranking[0][0]}.{strength or (1 if sum(map(len, ranking)) == 2 else 0)}"


def sentence(value: str, shown: list[str], scale: Scale) -> str:
    """A choice in words, by the sides on which its annotator saw the completions."""
    said = {choice.value: choice.sentence for choice in (*steps(shown, scale), *others(scale, len(shown)))}
    return said.get(value, "An answer")
