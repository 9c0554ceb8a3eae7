"""The demo language: small questions, answers that differ in ways a person sees at a glance, and a hidden taste.

A completion is  [opener]  answer or evasion  [anecdote follow-up]  [closing]  and five independent coins decide how
it turns out: helpful or evasive, right or wrong, courteous or curt, brief or rambling, with or without a closing line.
The demo policy is trained on `dialogues`; scripted annotators compare its samples by `taste` through `prefer`. `traits`
reads the coins back from any text, and gives nothing to a text that leaves the grammar, so that a policy cannot earn
credit by garbling polite words.

Everything is deterministic by seed. Standard library only.
"""

import json
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import Literal

from app.demo.facts import TOPICS, Topic

GREETINGS = ("", "Hello! ", "Quick question: ")
"""What may come before a question; after a colon a question, never a request, goes on in lower case."""

COURTEOUS = ("Good question!", "Happy to help!", "Thank you for asking!")
CURT = ("Obviously.", "Fine.", "Ugh.")
EVASIONS_COURTEOUS = ("I am afraid I cannot say.", "I would rather not guess.")
EVASIONS_CURT = ("No idea.", "Look it up.")
LEADS = ("That reminds me:", "By the way,", "Funny enough,")
WHO = ("my uncle", "my neighbour", "an old friend", "our teacher", "the lady next door", "a man on a train")
DID = (
    "lost a teapot",
    "painted a fence",
    "bought a wooden boat",
    "sang about cheese",
    "kept eleven geese",
    "baked a giant pie",
    "wrote a poem about turnips",
    "danced with a scarecrow",
)
FOLLOW_UPS = ("It was a long story.", "The weather was dreadful.", "You know how it is.", "Nobody knew why.")
CLOSINGS = ("Have a lovely day!", "I hope that helps!", "Take care!")

GUIDELINES = """\
You will see a short request and two responses to it. Choose the one you would rather have received.

1. **Courteous**: friendly openings ("Good question!") beat grumpy ones ("Ugh.") or none at all.
2. **Brief**: a response that stays with the question beats one that drifts off to somebody's eleven geese.
3. **Helpful**: an answer, even a wrong one, beats dodging the question ("No idea.").
4. **Closing**: a kind last line ("Have a lovely day!") is nice to have.
5. **Right**: all else being equal, the answer fits the question. Grass is green.

This campaign is about manners: courtesy weighs most, then brevity and helpfulness, then the closing line; being right \
weighs least. If two responses are equally good, call it a tie. A response that is garbled or breaks off loses to any \
that is not.
"""

WEIGHTS = {"courteous": 3.0, "brief": 2.0, "helpful": 1.5, "closing": 1.0, "right": 0.5}
"""The hidden rule of scripted annotators, in points per trait; in the order and proportions the guidelines give."""

PLANNED = {"right": 2 / 3, "courteous": 0.5, "helpful": 0.75, "brief": 0.6, "closing": 0.5}
"""How often each coin of `draw` comes up heads. Two thirds of three quarters: half of all completions are right."""


@dataclass(frozen=True)
class Traits:
    """How a completion turned out. `fluent`: every sentence is of the grammar and in its place; else all are False."""

    right: bool = False
    courteous: bool = False
    helpful: bool = False
    brief: bool = False
    closing: bool = False
    fluent: bool = True


@dataclass(frozen=True, eq=False)
class _Question:
    """One fact of one topic, with its pieces filled in."""

    topic: Topic
    key: str

    @property
    def right(self) -> tuple[str, ...]:
        return self.topic.facts[self.key]

    @property
    def wrong(self) -> tuple[str, ...]:
        others = self.topic.wrong or tuple(dict.fromkeys(a for answers in self.topic.facts.values() for a in answers))
        return tuple(answer for answer in others if answer not in self.right)

    def say(self, pattern: str, answer: str) -> str:
        """Fill an answer's pattern; the asker's "my" becomes "your"."""
        x, _, y = re.sub(r"\bmy\b", "your", self.key).partition("|")
        return pattern.format(x=x, y=y, a=answer)


def prompts(n: int, seed: int) -> list[str]:
    """`n` distinct prompts, drawn evenly from all there are."""
    return random.Random(seed).sample(list(_prompts()), n)


def draw(rng: random.Random) -> Traits:
    """One toss of the five coins."""
    return Traits(**{name: rng.random() < p for name, p in PLANNED.items()})


def completion(prompt: str, traits: Traits, rng: random.Random) -> str:
    """An answer to one of our own prompts that turns out as `traits` says; an evasive one is never right."""
    question = _prompts()[prompt]
    parts = [rng.choice(COURTEOUS) if traits.courteous else rng.choice(("", *CURT))]
    if not traits.helpful:
        parts.append(rng.choice(EVASIONS_COURTEOUS if traits.courteous else EVASIONS_CURT))
    else:
        answer = rng.choice(question.right if traits.right else question.wrong)
        parts.append(
            question.say(rng.choice(question.topic.full if traits.courteous else question.topic.short), answer)
        )
    if not traits.brief:
        parts.append(f"{rng.choice(LEADS)} {rng.choice(WHO)} {rng.choice(DID)}.")
        parts.append(rng.choice(FOLLOW_UPS))
    if traits.closing:
        parts.append(rng.choice(CLOSINGS))
    return " ".join(part for part in parts if part)


def dialogues(n: int, seed: int) -> Iterator[tuple[str, str]]:
    """`n` pairs (prompt, completion) over all prompts, coins tossed by `draw`: what the demo policy learns to speak."""
    rng = random.Random(seed)
    everything = list(_prompts())
    for _ in range(n):
        prompt = rng.choice(everything)
        yield prompt, completion(prompt, draw(rng), rng)


def write_corpus(path: Path, n: int, seed: int) -> None:
    """`dialogues` as JSON Lines in the columns that training reads: {"prompt": messages, "completion": messages}."""
    with path.open("w", encoding="utf-8") as file:
        for prompt, text in dialogues(n, seed):
            row = {
                "prompt": [{"role": "user", "content": prompt}],
                "completion": [{"role": "assistant", "content": text}],
            }
            file.write(json.dumps(row) + "\n")


def traits(prompt: str, text: str) -> Traits:
    """Read the coins back from any text. One sentence outside the grammar, or out of place, and nothing is credited."""
    question = _prompts().get(prompt)
    rest = re.split(r"(?<=[.!?]) ", text.strip())
    courteous = rest[0] in COURTEOUS
    if courteous or rest[0] in CURT:
        rest = rest[1:]
    closing = bool(rest) and rest[-1] in CLOSINGS
    if closing:
        rest = rest[:-1]
    brief = len(rest) == 1
    if question is None or not rest or not (brief or _rambles(rest[1:])):
        return Traits(fluent=False)
    evasive = rest[0] in EVASIONS_COURTEOUS + EVASIONS_CURT
    if not evasive and rest[0] not in _answers():
        return Traits(fluent=False)
    return Traits(rest[0] in _right_answers(question), courteous, not evasive, brief, closing)


def taste(prompt: str, text: str) -> float:
    """The hidden rule: the weighted traits, in points from 0 to 8.

    A text outside the grammar lies between -1 and 0, below all that is in it; there, general manners still put the
    texts of any other model into a sensible order.
    """
    found = traits(prompt, text)
    if not found.fluent:
        return _manners(prompt, text) - 1.0
    return sum(weight for name, weight in WEIGHTS.items() if getattr(found, name))


def prefer(prompt: str, a: str, b: str, rng: random.Random, noise: float = 0.1) -> Literal["a", "b", "tie"]:
    """What a scripted annotator says of two completions; a share `noise` of the decided answers is flipped."""
    gap = taste(prompt, a) - taste(prompt, b)
    if abs(gap) < 1e-9:
        return "tie"
    a_wins = (gap > 0) != (rng.random() < noise)
    return "a" if a_wins else "b"


def _manners(prompt: str, text: str) -> float:
    """Courtesy, brevity, a proper end and, where known, the right answer, of a text in anybody's words; in [0, 1)."""
    words = re.findall(r"[a-z0-9']+", text.lower())
    if not words:
        return 0.0
    kind = {"thank", "thanks", "please", "glad", "happy", "pleasure", "sorry", "welcome", "hope", "certainly"}
    question = _prompts().get(prompt)
    right = question is not None and any(re.search(rf"\b{re.escape(a)}\b", text, re.IGNORECASE) for a in question.right)
    variety = len(set(words)) / len(words)  # a text that repeats itself is not courteous each time
    brevity = 30 / (30 + len(words))
    ended = text.rstrip().endswith((".", "!", "?"))
    return 0.3 * brevity * variety + 0.25 * right + 0.2 * bool(kind & set(words)) + 0.2 * ended


def _rambles(sentences: list[str]) -> bool:
    """Is this an anecdote and its follow-up?"""
    return len(sentences) == 2 and sentences[0] in _anecdotes() and sentences[1] in FOLLOW_UPS


@cache
def _anecdotes() -> frozenset[str]:
    return frozenset(f"{lead} {who} {did}." for lead, who, did in product(LEADS, WHO, DID))


@cache
def _answers() -> frozenset[str]:
    """Every sentence that answers something; where another question was asked it is whole, if beside the point."""
    questions = set(_prompts().values())
    own = (q.say(p, a) for q in questions for p in q.topic.full + q.topic.short for a in q.right + q.wrong)
    return frozenset(own) | {s for q in questions for answer in q.right + q.wrong for s in _in_any_words(q, answer)}


@cache
def _right_answers(question: _Question) -> frozenset[str]:
    """Every sentence that answers this question rightly."""
    own = {question.say(p, a) for p in question.topic.full + question.topic.short for a in question.right}
    return frozenset(own | {sentence for answer in question.right for sentence in _in_any_words(question, answer)})


def _in_any_words(question: _Question, answer: str) -> Iterator[str]:
    """The answer in the patterns of all topics that leave the question out and take the same article."""
    article = _takes_article(question.topic)
    patterns = (p for topic in TOPICS if _takes_article(topic) == article for p in topic.full + topic.short)
    return (pattern.format(a=answer) for pattern in patterns if "{x}" not in pattern and "{y}" not in pattern)


def _takes_article(topic: Topic) -> bool:
    return "a {a}" in topic.short[0]


@cache
def _prompts() -> dict[str, _Question]:
    """Every prompt there is → its question."""
    found: dict[str, _Question] = {}
    for topic in TOPICS:
        for question in (_Question(topic, key) for key in topic.facts):
            x, _, y = question.key.partition("|")
            for pattern, greeting in product(topic.questions, GREETINGS):
                asked = pattern.format(x=x, y=y)
                if not greeting.endswith(": "):
                    found[greeting + asked] = question
                elif asked.endswith("?") and not asked.startswith("I "):
                    found[greeting + asked[0].lower() + asked[1:]] = question
    return found
