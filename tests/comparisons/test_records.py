import pytest

from app.comparisons import records
from app.core.errors import Invalid


def test_completions_may_be_texts_or_objects_with_a_source() -> None:
    record = records.parse({"prompt": "Why?", "completions": ["a", {"text": "b", "source": "m"}]})
    assert record.prompt == [{"role": "user", "content": "Why?"}]
    assert record.completions == ["a", "b"] and record.sources == ["", "m"]


def test_the_same_texts_in_another_order_are_the_same_comparison() -> None:
    one = records.parse({"prompt": "Why?", "completions": ["a", "b"]})
    other = records.parse({"prompt": "Why?", "completions": ["b", "a"]})
    assert one.fingerprint == other.fingerprint


def test_chosen_and_rejected_carry_a_label() -> None:
    record = records.parse({"prompt": "Why?", "chosen": "good", "rejected": "bad"})
    assert record.completions == ["good", "bad"] and record.labels[0].ranking == [[0], [1]]


def test_whole_transcripts_give_the_prompt_that_they_have_in_common() -> None:
    start = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Why?\n\nAssistant:"
    record = records.parse({"chosen": f"{start} Because.", "rejected": f"{start} No."})
    assert [m["role"] for m in record.prompt] == ["user", "assistant", "user"]
    assert record.completions == ["Because.", "No."]


def test_conversational_columns_of_trl_are_read() -> None:
    record = records.parse(
        {
            "prompt": [{"role": "user", "content": "Why?"}],
            "chosen": [{"role": "assistant", "content": "good"}],
            "rejected": [{"role": "assistant", "content": "bad"}],
        }
    )
    assert record.completions == ["good", "bad"]


def test_pairs_with_named_annotators_keep_each_of_their_labels() -> None:
    record = records.parse(
        {
            "messages": [{"role": "user", "content": "Why?"}],
            "response_a": "x",
            "response_b": "y",
            "label": "a",
            "annotations": [{"annotator": "w1", "label": "a"}, {"annotator": "w2", "label": "tie"}],
        }
    )
    assert [(one.annotator, one.ranking) for one in record.labels] == [("w1", [[0], [1]]), ("w2", [[0, 1]])]


def test_gold_is_a_ranking_of_completion_numbers() -> None:
    assert records.parse({"prompt": "Why?", "completions": ["a", "b"], "gold": [[1], [0]]}).gold == [[1], [0]]


@pytest.mark.parametrize(
    ("value", "field", "says"),
    [
        ("text", None, "JSON object"),
        ({"prompt": "Why?"}, "completions", "no completions"),
        ({"prompt": "", "completions": ["a", "b"]}, "prompt[0].content", "empty"),
        ({"completions": ["a", "b"]}, "prompt", "missing"),
        ({"prompt": "x" * 1_000_001, "completions": ["a", "b"]}, "prompt[0].content", "1,000,001 characters"),
        ({"prompt": "Why?", "completions": ["a"]}, "completions", "2 to 9"),
        ({"prompt": "Why?", "completions": ["a", "a"]}, "completions", "same text"),
        ({"prompt": "Why?", "completions": ["a", " "]}, "completions[1].text", "empty"),
        ({"prompt": "Why?", "completions": ["a", 5]}, "completions[1]", "object with text"),
        ({"prompt": "Why\x00", "completions": ["a", "b"]}, "prompt[0].content", "NUL"),
        ({"prompt": "Why?", "completions": ["a", "\ud800"]}, "completions[1].text", "surrogate"),
        ({"prompt": "Why?", "completions": ["a", "b"], "gold": [[0]]}, "gold", "each completion number"),
        ({"prompt": "Why?", "completions": ["a", "b"], "gold": [[0], [True]]}, "gold", "each completion number"),
        (
            {
                "prompt": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
                "completions": ["a", "b"],
            },
            "prompt",
            "last message",
        ),
        ({"prompt": [{"role": "robot", "content": "a"}], "completions": ["a", "b"]}, "prompt[0]", "robot"),
        ({"chosen": "a", "rejected": "b"}, "chosen", "transcript"),
    ],
)
def test_a_bad_record_names_the_field_and_how_to_mend_it(value: object, field: str | None, says: str) -> None:
    with pytest.raises(Invalid, match=says) as error:
        records.parse(value)
    assert error.value.field == field
