"""Checks of completions, by examples; and that what was not checked is None, never 0."""

import json
import time
from fractions import Fraction
from typing import Any

import pytest

from workers.training.verifiers import Answer, Settings, code_block, number, verify


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("42", 42), ("1,234", 1234), ("$1,234.50", Fraction(2469, 2)), ("50\\%", 50), (".5", Fraction(1, 2)),
        ("It is 12, then 7.", 7), ("= -5", -5), ("3-5", 5), ("x-5", 5), ("\u22123", -3), ("-$5", -5), ("1e3", 1000),
        ("1/2", Fraction(1, 2)), ("\\frac{3}{4}", Fraction(3, 4)), ("-\\dfrac{3}{4}", Fraction(-3, 4)),
        ("we get 7\n#### 42", 42), ("#### 1,000 apples\nas 3 said", 1000), ("#### $18", 18),
        ("so \\boxed{12} or 13", 12), ("\\boxed{\\frac{1}{3}}", Fraction(1, 3)), ("\\boxed{1} no: \\boxed{2}", 2),
        ("<answer> 7 </answer> and 8", 7), ("<answer>\\boxed{9} = 9.5</answer>", 9), ("18 dollars", 18),
        ("2,50", 50), ("1,2345", 2345), ("no number", None), ("3/0", None), ("9" * 100, None), ("", None),
    ],
)  # fmt: skip
def test_numbers_are_read_as_rationals(text: str, value: object) -> None:
    assert number(text) == value


@pytest.mark.parametrize(
    ("said", "reference", "reward"),
    [
        ("The answer is 1,234.", "1234", 1.0), ("0.5", "1/2", 1.0), ("42.0", 42, 1.0), ("0.1", 0.1, 1.0),
        ("0.333", "1/3", 0.0), ("41", "#### 42", 0.0), ("no idea", "42", 0.0), ("-42", "42", 0.0),
        ("42", None, None), ("42", "unknown", None), ("42", True, None), ("42", [42], None),
    ],
)  # fmt: skip
def test_exact_numbers(said: str, reference: Any, reward: float | None) -> None:
    assert verify("exact_number", Answer(said), {"answer": reference}) == reward
    assert verify("exact_number", Answer(said), {"gold": reference}, Settings(field="gold")) == reward


# made up in the manner of GSM8K and SVAMP: a worked solution with calculator marks, and a bare float as text
RECORDS = [
    {"question": "Ana has 3 boxes of 14 pens and gives 5 away. How many are left?",
     "answer": "Ana has 3*14=<<3*14=42>>42 pens.\nShe keeps 42-5=<<42-5=37>>37.\n#### 37"},
    {"question": "A bike costs $1,200 and is sold at 15% off. What is the price?",
     "answer": "15% of 1200 is <<1200*.15=180>>180.\n1200-180=$<<1200-180=1020>>1,020\n#### 1,020"},
    {"question": "It was 4 degrees and fell by 9. What is it now?", "answer": "#### -5"},
    {"question": "Ben ate 2 of 8 slices. What share is left?", "answer": "6.0 / 8.0"},
    {"question": "How many wheels do 7 trikes have?", "answer": "21.0"},
]  # fmt: skip


@pytest.mark.parametrize("record", RECORDS)
def test_records_of_school_arithmetic_verify_their_own_solution_and_no_other(record: dict[str, str]) -> None:
    wanted = number(record["answer"])
    assert wanted is not None
    assert verify("exact_number", Answer(record["answer"]), record) == 1.0
    for text in (
        f"So it is {float(wanted)}.",
        f"\\boxed{{{wanted}}}",
        f"<think>9 8 7</think><answer>{wanted}</answer>",
    ):
        assert verify("exact_number", Answer(text), record) == 1.0
    assert verify("exact_number", Answer(f"#### {wanted + 1}"), record) == 0.0


@pytest.mark.parametrize(
    ("said", "letter"),
    [
        ("B", "B"), ("(b)", "B"), ("The answer is (C).", "C"), ("The answer is C because A is wrong", "C"),
        ("Answer: **D**", "D"), ("\\boxed{\\text{B}}", "B"), ("Neither (A) nor (B), so (D)", "D"), ("I think A", "A"),
        ("first A.\nthen B.", "B"),
    ],
)  # fmt: skip
def test_choices(said: str, letter: str) -> None:
    assert verify("multiple_choice", Answer(said), {"answer": letter}) == 1.0
    assert verify("multiple_choice", Answer(said), {"answer": "E"}) == 0.0


def test_what_is_no_choice_is_wrong_and_a_missing_reference_unscorable() -> None:
    assert verify("multiple_choice", Answer("The answer is a car"), {"answer": "A"}) == 0.0
    assert verify("multiple_choice", Answer("A"), {"answer": "both"}) is None


def test_strings_match_but_for_case_spacing_and_end_punctuation() -> None:
    row = {"answer": ["New  York", "NYC"]}
    assert verify("exact_match", Answer("<answer>new york.</answer>"), row) == 1.0
    assert verify("exact_match", Answer("nyc"), row) == 1.0
    assert verify("exact_match", Answer("York"), row) == 0.0
    assert verify("exact_match", Answer("York"), {}) is None


def test_patterns_come_from_the_record_or_the_settings_and_may_not_run_for_years() -> None:
    assert verify("regex", Answer("call 555-12"), {"pattern": r"\d{3}-\d\d$"}) == 1.0
    assert verify("regex", Answer("call"), {}, Settings(pattern="^C")) == 0.0
    assert verify("regex", Answer("call"), {}) is None
    assert verify("regex", Answer("call"), {"pattern": "("}) is None
    started = time.monotonic()
    assert verify("regex", Answer("a" * 60 + "b"), {"pattern": "(a+)+$"}, Settings(seconds=0.2)) is None
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    ("text", "reward"),
    [
        ("<think>why</think><answer>42</answer>", 1.0), (" <think>a\nb</think>\n\n<answer>42</answer>\n", 1.0),
        ("<think></think><answer>42</answer>", 0.0), ("<answer>42</answer>", 0.0),
        ("<think>a</think><answer>42</answer> bye", 0.0), ("<think>a</think><answer>4</answer><answer>2</answer>", 0.0),
        ("<think>a</think>so<answer>42</answer>", 0.0), ("<answer>a</answer><think>b</think>", 0.0), ("", 0.0),
        ("<think>a<think>b</think><answer>42</answer>", 0.0),
    ],
)  # fmt: skip
def test_the_form_is_kept_or_not(text: str, reward: float) -> None:
    assert verify("format", Answer(text), {}) == reward


def test_a_template_of_ones_own() -> None:
    assert verify("format", Answer("Dear Ana: hello. Yours, Ben"), {"template": "Dear {}: {} Yours, {}"}) == 1.0
    assert verify("format", Answer("Dear Ana: hello."), {"template": "Dear {}: {} Yours, {}"}) == 0.0
    assert verify("format", Answer("hello"), {"template": "no holes"}) == 0.0


def test_length_is_free_then_falls_in_a_line_then_costs_one() -> None:
    settings = Settings(max_tokens=100, buffer=20)
    rewards = [verify("length", Answer("", tokens), {}, settings) for tokens in (1, 80, 81, 90, 100, 101, 5000)]
    assert rewards == [0.0, 0.0, -0.05, -0.5, -1.0, -1.0, -1.0]
    sharp = Settings(max_tokens=100, buffer=0)
    assert [verify("length", Answer("", tokens), {}, sharp) for tokens in (100, 101)] == [0.0, -1.0]


def test_ended() -> None:
    assert [verify("ended", Answer("x", 1, end), {}) for end in (True, False)] == [1.0, 0.0]


def test_the_last_block_of_code_is_what_runs() -> None:
    text = "First\n```python\nx = 1\n```\nbetter:\n```\nx = 2\n```\ndone"
    assert code_block(text) == "x = 2\n"
    assert code_block("x = 3") == "x = 3"
    assert code_block("```py\nx = 4") == "x = 4"
    assert code_block("```json\n{}\n```") == "```json\n{}\n```"


def test_code_is_run_against_its_tests() -> None:
    row = {"tests": ["assert add(1, 2) == 3", "assert add('a', 'b') == 'ab'"]}
    assert verify("code", Answer("Sure:\n```python\ndef add(a, b):\n    return a + b\n```"), row) == 1.0
    assert verify("code", Answer("```python\ndef add(a, b):\n    return 3\n```"), row) == 0.0
    assert verify("code", Answer("no code"), row) == 0.0
    assert verify("code", Answer("def add(a, b): return a + b"), {"tests": row["tests"][0]}) == 1.0
    for missing in ({}, {"tests": []}, {"tests": [1]}, {"tests": None}):
        assert verify("code", Answer("x"), missing) is None
    assert json.dumps(row)  # untouched
