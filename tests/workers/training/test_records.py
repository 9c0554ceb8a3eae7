"""Reading JSONL: what is accepted, and how a bad line is complained about."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.workers.training.nets_in_memory import write_jsonl
from workers.training.errors import DataError, RecordError
from workers.training.records import Comparison, Demonstration, read_comparisons, read_demonstrations, read_prompts

GOOD = {"prompt": "p", "chosen": "c", "rejected": "r"}


def test_pairs_of_strings_and_of_messages_with_their_optional_columns(tmp_path: Path) -> None:
    user, answer = [{"role": "user", "content": "p"}], [{"role": "assistant", "content": "c"}]
    path = write_jsonl(
        tmp_path / "p.jsonl",
        [GOOD, {"prompt": user, "chosen": answer, "rejected": answer, "margin": 1, "weight": 0.5, "confidence": 0.9}],
    )
    assert list(read_comparisons(path)) == [
        Comparison("p", ("c", "r")),
        Comparison(user, (answer, answer), margin=1.0, weight=0.5, confidence=0.9),
    ]


def test_rankings_name_their_completions_by_number_ties_as_lists(tmp_path: Path) -> None:
    row = {"prompt": "p", "completions": ["a", "b", "c", "d"], "ranking": [2, [0, 1]], "ties": False, "annotator": "x"}
    (read,) = read_comparisons(write_jsonl(tmp_path / "r.jsonl", [row]))
    assert read == Comparison("p", ("a", "b", "c", "d"), ((2,), (0, 1)), ties=False, annotator="x")


@pytest.mark.parametrize(
    ("change", "field", "says"),
    [
        ({"completions": ["a"]}, "completions", "at least two"),
        ({"completions": ["a", 3]}, "completions[1]", "is a number"),
        ({"ranking": None}, "ranking", "is a null; give a list of places"),
        ({"ranking": [0, 2]}, "ranking", "use the numbers 0 to 1"),
        ({"ranking": [0, [0, 1]]}, "ranking", "each at most once"),
        ({"ranking": [1]}, "ranking", "at least two"),
    ],
)
def test_a_bad_ranking_is_refused(tmp_path: Path, change: dict[str, Any], field: str, says: str) -> None:
    row = {"prompt": "p", "completions": ["a", "b"], "ranking": [0, 1]} | change
    with pytest.raises(RecordError, match=says) as e:
        list(read_comparisons(write_jsonl(tmp_path / "r.jsonl", [row])))
    assert e.value.field == field


def test_prompts_keep_their_other_columns_and_blank_lines_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('\ufeff{"prompt": "a", "id": 7, "x": {"y": [1]}}\n\n  \n{"prompt": "b"}')
    rows = list(read_prompts(path))
    assert [row.prompt for row in rows] == ["a", "b"]
    assert rows[0].row == {"prompt": "a", "id": 7, "x": {"y": [1]}}


def test_demonstrations(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "d.jsonl", [{"prompt": "p", "completion": ""}])
    assert list(read_demonstrations(path)) == [Demonstration("p", "")]


def test_a_malformed_line_731_of_1000_is_named_and_those_before_it_were_read(tmp_path: Path) -> None:
    lines = [json.dumps(GOOD)] * 1000
    lines[730] = '{"prompt": "p", "chosen": '
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(lines))
    read = []
    with pytest.raises(RecordError, match=r"pairs\.jsonl, line 731: is not valid JSON .* one complete JSON") as e:
        read.extend(read_comparisons(path))
    assert (len(read), e.value.line, e.value.exit_code) == (730, 731, 2)


@pytest.mark.parametrize(
    ("change", "field", "says"),
    [
        ({"chosen": None}, "chosen", "is missing"),
        ({"prompt": ""}, "prompt", "is empty"),
        ({"prompt": "  \n"}, "prompt", "is empty"),
        ({"prompt": 3}, "prompt", "is a number"),
        ({"prompt": []}, "prompt", "empty list"),
        ({"prompt": ["hi"]}, "prompt[0]", "is a string; a message is an object"),
        ({"prompt": [{"role": "human", "content": "x"}]}, "prompt[0].role", "use one of system"),
        ({"prompt": [{"role": "user", "content": None}]}, "prompt[0].content", "is a null"),
        ({"margin": "big"}, "margin", "is a string; give a finite number"),
        ({"margin": -1}, "margin", "at least 0"),
        ({"weight": True}, "weight", "is a boolean"),
        ({"confidence": 1.5}, "confidence", "between 0 and 1"),
    ],
)
def test_a_wrong_field_is_named_with_what_to_do(tmp_path: Path, change: dict[str, Any], field: str, says: str) -> None:
    path = write_jsonl(tmp_path / "p.jsonl", [GOOD, {**GOOD, **change}])
    with pytest.raises(RecordError) as e:
        list(read_comparisons(path))
    assert (e.value.line, e.value.field) == (2, field)
    assert says in str(e.value)


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b'{"prompt": "\xff"}', "not UTF-8"),
        (b"[1, 2]", "is a list"),
        (b'{"prompt": "p", "chosen": "c", "rejected": "r", "margin": NaN}', "non-finite"),
        (b"[" * 100_000, "nested too deep"),
    ],
)
def test_bytes_that_are_no_record_are_refused(tmp_path: Path, raw: bytes, says: str) -> None:
    (tmp_path / "p.jsonl").write_bytes(raw)
    with pytest.raises(RecordError, match=says):
        list(read_comparisons(tmp_path / "p.jsonl"))


def test_a_file_that_is_not_there_is_the_datas_fault(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        list(read_comparisons(tmp_path / "none.jsonl"))
