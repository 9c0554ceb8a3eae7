"""Prompts, completions and where the one ends and the other begins."""

import pytest

from tests.workers.training.nets_in_memory import byte_tokenizer
from workers.training.errors import DataError, ModelError
from workers.training.tokens import Codec, Example, truncate

USER = [{"role": "user", "content": "hi"}]


def _text(codec: Codec, ids: list[int]) -> str:
    return codec.tokenizer.decode(ids)


def test_messages_go_through_the_chat_template_and_the_completion_ends_at_its_end_token() -> None:
    codec = Codec(byte_tokenizer())
    (example,) = codec.encode(USER, [{"role": "assistant", "content": "yes"}])
    assert _text(codec, example.prompt) == "<s><|user|>hi<|assistant|>"
    assert _text(codec, example.completion) == "yes</s>"  # the template's newline after it is never generated


def test_a_string_answer_to_messages_is_one_assistant_message() -> None:
    codec = Codec(byte_tokenizer())
    assert codec.encode(USER, "yes") == codec.encode(USER, [{"role": "assistant", "content": "yes"}])


def test_plain_strings_are_joined_without_a_template_and_the_end_token_is_appended_once() -> None:
    codec = Codec(byte_tokenizer(template=None))
    first, second = codec.encode("Once upon", " a time", " a time</s>")
    assert _text(codec, first.prompt) == "Once upon"
    assert _text(codec, first.completion) == " a time</s>"
    assert second == first


def test_a_merge_across_the_boundary_belongs_to_the_completion() -> None:
    """Prompt 'xa' and completion 'b' where 'ab' is one token: the prompt keeps only what the whole agrees with."""
    codec = Codec(byte_tokenizer(template=None, merges=[("a", "b")]))
    (example,) = codec.encode("xa", "b")
    assert _text(codec, example.prompt) == "x"
    assert _text(codec, example.completion) == "ab</s>"


def test_both_completions_of_a_pair_are_conditioned_on_the_same_tokens() -> None:
    codec = Codec(byte_tokenizer(template=None, merges=[("a", "b")]))
    merging, plain = codec.encode("xa", "b", "c")
    assert merging.prompt == plain.prompt
    assert _text(codec, plain.completion) == "ac</s>"


def test_bos_is_never_doubled() -> None:
    tokenizer = byte_tokenizer(template=None)
    from tokenizers.processors import TemplateProcessing

    tokenizer._tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    codec = Codec(tokenizer)
    assert codec.encode_prompt("hi").count(0) == 1
    assert codec.encode_prompt("<s>hi").count(0) == 1


def test_a_tokenizer_that_appends_eos_puts_none_between_prompt_and_completion() -> None:
    tokenizer = byte_tokenizer(template=None)
    from tokenizers.processors import TemplateProcessing

    tokenizer._tokenizer.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    codec = Codec(tokenizer)
    (example,) = codec.encode("hi", " you")
    assert _text(codec, codec.encode_prompt("hi")) == "hi"
    assert _text(codec, example.completion) == " you</s>"


def test_messages_for_a_model_without_a_template_say_what_to_do() -> None:
    with pytest.raises(ModelError, match=r"no chat template: add one to its tokenizer_config.json"):
        Codec(byte_tokenizer(template=None)).encode(USER, "yes")


def test_a_string_prompt_with_message_completions_is_refused() -> None:
    with pytest.raises(DataError, match="give the prompt as messages"):
        Codec(byte_tokenizer()).encode("hi", [{"role": "assistant", "content": "yes"}])


def test_what_a_template_refuses_is_the_datas_fault() -> None:
    codec = Codec(byte_tokenizer(template="{{ raise_exception('roles must alternate') }}"))
    with pytest.raises(DataError, match="roles must alternate"):
        codec.encode_prompt(USER)


def test_truncation_cuts_the_end_of_the_completion_and_drops_prompts_that_fill_the_room() -> None:
    assert truncate([Example([1, 2], [3, 4, 5])], 4) == [Example([1, 2], [3, 4])]
    assert truncate([Example([1, 2, 3, 4], [5])], 4) is None
    kept = truncate([Example([1], [2, 3, 4], (False, True, True))], 3)
    assert kept == [Example([1], [2, 3], (False, True))]
