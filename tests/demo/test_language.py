"""The demo language: what is written is read back, garbage earns nothing, the taste is the guidelines'."""

import json
import random
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from app.demo import language
from app.demo.facts import TOPICS
from app.demo.language import PLANNED, WEIGHTS, Traits, prefer, prompts, taste, traits

ASKED = "What is the capital of France?"
PERFECT = "Happy to help! The capital of France is Paris. Take care!"


def everything_written(n: int = 4000) -> list[tuple[str, Traits, str]]:
    rng = random.Random(5)
    rows = []
    for prompt in rng.choices(prompts(1000, seed=2), k=n):
        planned = language.draw(rng)
        rows.append((prompt, planned, language.completion(prompt, planned, rng)))
    return rows


def test_there_are_a_thousand_distinct_prompts_and_a_seed_fixes_the_choice() -> None:
    assert len(set(prompts(1000, seed=1))) == 1000
    assert prompts(50, seed=1) == prompts(50, seed=1) != prompts(50, seed=2)


def test_traits_read_back_what_was_written() -> None:
    for prompt, planned, text in everything_written():
        assert traits(prompt, text) == replace(planned, right=planned.right and planned.helpful), (prompt, text)


def test_dialogues_show_each_trait_as_often_as_planned() -> None:
    found = Counter(n for p, text in language.dialogues(4000, seed=3) for n in PLANNED if getattr(traits(p, text), n))
    expected = PLANNED | {"right": PLANNED["right"] * PLANNED["helpful"]}
    for name, share in expected.items():
        assert found[name] / 4000 == pytest.approx(share, abs=0.03), name


def test_two_completions_of_a_prompt_nearly_always_differ() -> None:
    rng = random.Random(1)
    pairs = [[language.completion(p, language.draw(rng), rng) for _ in range(2)] for p in prompts(1000, seed=4)]
    assert sum(a != b for a, b in pairs) >= 980


def test_every_sentence_is_whole() -> None:
    for prompt, _, text in everything_written(2000):
        for line in (prompt, text):
            assert line[0].isupper() and line[-1] in ".!?", line
            assert "  " not in line and "{" not in line and " my teeth" not in text, line


def test_no_wrong_answer_is_also_right() -> None:
    for topic in TOPICS:
        for key, right in topic.facts.items():
            wrong = language._Question(topic, key).wrong
            assert len(wrong) >= 3 and not set(wrong) & set(right), key


@pytest.mark.parametrize(
    "garbage",
    [
        "",
        " ",
        "Happy to help!",
        "Happy to help! Happy to help! The capital of France is Paris.",
        "Happy to help! The capital of France is Paris Paris.",
        "The capital of Paris is Italy. Take care!",
        "Paris",
        "Happy to help! The capital of France is Paris. Take care! Take care!",
        "Take care! The capital of France is Paris.",
        "Happy to help! The capital of France is Paris. By the way, my uncle lost a teapot.",
        "The capital of France is Paris. The capital of France is Paris.",
        "thank you thank you thank you.",
        "Happy to help! The capital of France is Par",
        "\0\ufffd {x} <script>",
    ],
)
def test_garbled_text_earns_no_credit_and_less_than_any_sentence(garbage: str) -> None:
    assert traits(ASKED, garbage) == Traits(fluent=False)
    rudest = "Ugh. No idea. By the way, my uncle lost a teapot. It was a long story."
    assert -1 <= taste(ASKED, garbage) < 0 == taste(ASKED, rudest)


def test_perfect_answer_has_the_full_marks() -> None:
    assert traits(ASKED, PERFECT) == Traits(True, True, True, True, True)
    assert taste(ASKED, PERFECT) == sum(WEIGHTS.values())


def test_each_trait_alone_is_worth_its_weight() -> None:
    worse = {
        "right": "Happy to help! The capital of France is Rome. Take care!",
        "courteous": "Ugh. The capital of France is Paris. Take care!",
        "brief": PERFECT.replace("Take", "By the way, my uncle lost a teapot. You know how it is. Take"),
        "closing": "Happy to help! The capital of France is Paris.",
    }
    for name, text in worse.items():
        assert taste(ASKED, PERFECT) - taste(ASKED, text) == pytest.approx(WEIGHTS[name]), name
    evasive = "Happy to help! I would rather not guess. Take care!"
    assert taste(ASKED, PERFECT) - taste(ASKED, evasive) == WEIGHTS["helpful"] + WEIGHTS["right"]


@pytest.mark.parametrize(
    "beside", ["The capital of Italy is Rome.", "How about Paris?", "Just a puppy.", "It is Rome."]
)
def test_answer_to_another_question_is_helpful_at_best(beside: str) -> None:
    assert traits(ASKED, beside) == Traits(right=beside == "How about Paris?", helpful=True, brief=True)


def test_guidelines_name_the_traits_in_the_order_of_their_weights() -> None:
    places = [language.GUIDELINES.index(f"**{name.title()}**") for name in WEIGHTS]
    assert places == sorted(places)
    assert list(WEIGHTS.values()) == sorted(WEIGHTS.values(), reverse=True)


def test_annotators_follow_the_taste_but_for_the_noise() -> None:
    rng = random.Random(0)
    bad = "Ugh. No idea."
    answers = Counter(prefer(ASKED, PERFECT, bad, rng, noise=0.1) for _ in range(4000))
    assert answers["a"] / 4000 == pytest.approx(0.9, abs=0.02) and answers["tie"] == 0
    assert {prefer(ASKED, bad, PERFECT, rng, noise=0) for _ in range(50)} == {"b"}
    assert {prefer(ASKED, PERFECT, PERFECT, rng) for _ in range(50)} == {"tie"}


def test_texts_of_any_other_model_are_ordered_by_their_manners() -> None:
    prompt = "How do I repot a fern?"
    kind = "Happy to help! Choose a pot one size larger, loosen the roots, and water it well."
    curt = "Bigger pot, then water."
    broken = "pot pot pot the fern is is and then the"
    assert taste(prompt, kind) > taste(prompt, curt) > taste(prompt, broken) > taste(prompt, "")
    assert taste(ASKED, "It is Paris, as far as I know.") > taste(ASKED, "It is Oslo, as far as I know.")


def test_prompt_of_another_campaign_has_no_scripted_completion() -> None:
    with pytest.raises(KeyError):
        language.completion("How do I repot a fern?", Traits(), random.Random(0))


def test_corpus_is_written_in_the_columns_of_training(tmp_path: Path) -> None:
    language.write_corpus(tmp_path / "a.jsonl", 20, seed=1)
    language.write_corpus(tmp_path / "b.jsonl", 20, seed=1)
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()
    rows = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    read = [(row["prompt"][0]["content"], row["completion"][0]["content"]) for row in rows]
    assert read == list(language.dialogues(20, seed=1))
    assert rows[0]["prompt"][0]["role"] == "user" and rows[0]["completion"][0]["role"] == "assistant"


def test_language_needs_nothing_but_the_standard_library() -> None:
    code = "import sys, app.demo.language; print(sorted({'torch', 'transformers', 'workers'} & set(sys.modules)))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
