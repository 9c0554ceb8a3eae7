"""Every choice that is offered means what it says, and can be read back from what is stored."""

import uuid

import pytest

from app.annotation import choices
from app.annotation.scales import Scale
from app.annotation.submission import checked
from app.core.errors import Invalid

LEFT, RIGHT, THIRD = (str(uuid.UUID(int=n)) for n in (1, 2, 3))


@pytest.mark.parametrize("shown", [[LEFT, RIGHT], [RIGHT, LEFT], [LEFT, RIGHT, THIRD]])
@pytest.mark.parametrize("steps", [2, 4, 5, 7, 8])
def test_every_choice_is_an_answer_that_the_scale_accepts_and_that_reads_back_as_itself(
    steps: int, shown: list[str]
) -> None:
    scale = Scale(steps)
    offered = [*choices.steps(shown, scale), *choices.others(scale, len(shown))]
    assert len({choice.key for choice in offered}) == len(offered)
    for choice in offered:
        if choice.value == choices.CANNOT_JUDGE:
            continue
        answer = choices.answer(choice.value, shown)
        ranking = checked(answer, shown, scale)
        assert choices.value_of(ranking.as_json(), answer.strength, answer.flags) == choice.value
        assert choices.sentence(choice.value, shown, scale) == choice.sentence


def test_the_first_step_prefers_the_completion_on_the_left_whichever_that_is() -> None:
    for shown in ([LEFT, RIGHT], [RIGHT, LEFT]):
        first, *_, last = choices.steps(shown, Scale(7))
        assert choices.answer(first.value, shown).ranking == [[shown[0]], [shown[1]]]
        assert choices.answer(last.value, shown).ranking == [[shown[1]], [shown[0]]]


def test_of_three_one_is_the_best_and_the_others_stay_level() -> None:
    shown = [LEFT, RIGHT, THIRD]
    assert choices.answer(f"{RIGHT}.0", shown).ranking == [[RIGHT], [LEFT, THIRD]]
    assert choices.answer(f"{RIGHT}.0", shown).strength is None


@pytest.mark.parametrize("value", ["", "left", f"{THIRD}.1", f"{LEFT}", f"{LEFT}.x", f"{LEFT}.²", f"{LEFT}.999"])
def test_what_was_not_offered_is_refused(value: str) -> None:
    with pytest.raises(Invalid) as refused:
        choices.answer(value, [LEFT, RIGHT])
    assert refused.value.field == "choice"


def test_line_ends_of_a_form_become_those_of_a_text() -> None:
    assert choices.answer("tie", [LEFT, RIGHT], " one\r\ntwo ").comment == "one\ntwo"
