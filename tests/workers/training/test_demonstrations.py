"""Which tokens of a conversation are trained, and what is said when a template or a record makes that impossible."""

from pathlib import Path
from typing import Any

import pytest

from tests.workers.training.nets_in_memory import TEMPLATE, Recorder, byte_tokenizer, write_jsonl
from workers.training import demonstrations
from workers.training.errors import DataError, ModelError, RecordError
from workers.training.records import Demonstration, read_demonstrations
from workers.training.tokens import Codec, Example

TALK = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "yes"},
    {"role": "user", "content": "more"},
    {"role": "assistant", "content": "no"},
]
WHAT_THE_ASSISTANT_SAYS = (
    "{{ '<|assistant|>' }}{% generation %}{{ m['content'] + '</s>' }}{% endgeneration %}{{ '\n' }}"
)
MARKED = (
    "{{ '<s>' }}{% for m in messages %}{% if m['role'] == 'assistant' %}" + WHAT_THE_ASSISTANT_SAYS + "{% else %}"
    "{{ '<|' + m['role'] + '|>' + m['content'] }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
FORGETFUL = TEMPLATE.replace(  # what the assistant said before its last turn is rendered as dots
    "m['content'] }}", "(m['content'] if m['role'] != 'assistant' or loop.last else '...') }}"
)


def _rows(directory: Path, *rows: dict[str, Any]) -> list[Demonstration]:
    return list(read_demonstrations(write_jsonl(directory / "shown.jsonl", list(rows))))


def _encode(
    template: str, rows: list[Demonstration], train_on: Any = "all", length: int = 200
) -> tuple[Codec, Any, str]:
    codec, report = Codec(byte_tokenizer(template)), Recorder()
    examples = demonstrations.encode(codec, rows, length, train_on, report)
    return codec, examples, report.stderr.getvalue()  # type: ignore[attr-defined]


def _trained(codec: Codec, example: Example) -> str:
    flags = example.trained or [True] * len(example.completion)
    return str(codec.tokenizer.decode([i for i, on in zip(example.completion, flags, strict=True) if on]))


@pytest.mark.parametrize(
    "template",
    [
        TEMPLATE,
        MARKED,
        MARKED.replace("m['content'] + '</s>' }}{% endgeneration %}{{ '", "m['content'] }}{% endgeneration %}{{ '</s>"),
    ],
)
def test_every_turn_of_the_assistant_is_trained_with_its_end_token_and_nothing_else(
    template: str, tmp_path: Path
) -> None:
    codec, (example,), said = _encode(template, _rows(tmp_path, {"messages": TALK}))
    assert codec.tokenizer.decode(example.prompt) == "<s><|system|>be brief<|user|>hi<|assistant|>"
    assert _trained(codec, example) == "yes</s>no</s>"
    assert example.targets == 7 and said == ""


def test_a_prompt_with_several_messages_as_completion_is_the_same_conversation(tmp_path: Path) -> None:
    one, other = _rows(tmp_path, {"messages": TALK}, {"prompt": TALK[:2], "completion": TALK[2:]})
    _, examples, _ = _encode(TEMPLATE, [one, other])
    assert examples[0] == examples[1]


def test_the_last_turn_alone_is_trained_when_asked_for(tmp_path: Path) -> None:
    codec, (example,), _ = _encode(TEMPLATE, _rows(tmp_path, {"messages": [*TALK, TALK[3]]}), "last")
    assert codec.tokenizer.decode(example.prompt).endswith("yes</s>\n<|user|>more<|assistant|>")
    assert _trained(codec, example) == "no</s>" and example.trained is None


def test_what_the_assistant_says_first_is_context() -> None:
    rows = [Demonstration(TALK[2:4], TALK[4:])]
    codec, (example,), _ = _encode(TEMPLATE, rows)
    assert _trained(codec, example) == "no</s>"


def test_merges_across_the_end_of_a_turn_train_what_the_model_would_generate() -> None:
    codec = Codec(byte_tokenizer(TEMPLATE.replace("{{ '</s>\n' }}", "{{ '</s>' }}"), merges=[("n", "o")]))
    example = codec.encode_turns(TALK[:2], TALK[2:])
    assert _trained(codec, example) == "yes</s>no</s>"
    assert example.targets == 6  # 'no' is one token


def test_a_template_that_forgets_earlier_turns_is_refused_unless_only_the_last_is_trained(tmp_path: Path) -> None:
    rows = _rows(tmp_path, {"messages": TALK})
    with pytest.raises(ModelError, match="not prefix-preserving.*train_on=last"):
        _encode(FORGETFUL, rows)
    codec, (example,), _ = _encode(FORGETFUL, rows, "last")
    assert _trained(codec, example) == "no</s>"


def test_an_example_without_a_trained_token_is_named(tmp_path: Path) -> None:
    unmarked = MARKED.replace(
        "{% generation %}{{ m['content'] + '</s>' }}", "{{ m['content'] + '</s>' }}{% generation %}"
    )
    rows = _rows(tmp_path, {"prompt": "a", "completion": "b"}, {"messages": TALK})
    with pytest.raises(DataError, match="shown.jsonl, line 2: no token of this example is trained"):
        _encode(unmarked, rows)


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({"messages": TALK[:2]}, "line 1, field 'messages': has no message of the assistant"),
        ({"messages": [TALK[2], TALK[1]]}, "has no message of the assistant that answers another"),
        ({"messages": "hi"}, "is a string; give a list"),
        ({"prompt": TALK[:2], "completion": [TALK[3]]}, "field 'completion': has no message of the assistant"),
    ],
)
def test_a_conversation_without_an_answer_is_a_bad_record(row: dict[str, Any], complaint: str, tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=complaint):
        _rows(tmp_path, row)


def test_a_turn_whose_end_token_is_not_trained_is_reported_once(tmp_path: Path) -> None:
    endless = TEMPLATE.replace("{{ '</s>\n' }}", "{{ '\n' }}")
    _, examples, said = _encode(endless, _rows(tmp_path, {"messages": TALK}, {"messages": TALK}))
    assert len(examples) == 2
    assert said.count("In 2 of 2 examples a turn ends without a stop token that is trained") == 1


def test_a_conversation_that_is_cut_before_the_assistant_speaks_is_left_out(tmp_path: Path) -> None:
    rows = _rows(tmp_path, {"messages": TALK}, {"prompt": "a", "completion": "b"})
    _, examples, said = _encode(TEMPLATE, rows, "last", length=16)
    assert len(examples) == 1 and "1 of 2 examples left out" in said
